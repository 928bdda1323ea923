//! A chat at a terminal.

use std::path::{Path, PathBuf};

use m40_control::paths::Env;
use m40_control::{Client, LoadRequest, ModelEntry, ModelRef, RunParams};
use nix::sys::signal::{SigSet, Signal};

use super::answer::{Ended, ask};
use super::conversation::{Conversation, set};
use super::editor::{Editor, Line};
use super::typed::{COMMANDS, Typed, understand};
use crate::error::{CommandError, Kind};
use crate::output::Output;
use crate::terminal::{Before, Ends, Quiet};

/// A conversation with a model, and how it is shown.
pub(super) struct Chat {
    model: ModelRef,
    conversation: Conversation,
    verbose: bool,
    home: Option<PathBuf>,
    /// The file that the conversation is in, which may be written again.
    file: Option<PathBuf>,
}

impl Chat {
    /// A chat that begins with this conversation.
    pub(super) fn new(
        model: ModelRef,
        conversation: Conversation,
        verbose: bool,
        env: &Env,
    ) -> Self {
        let home = env.var("HOME").map(PathBuf::from);
        Self { model, conversation, verbose, home, file: None }
    }

    /// Loads the model and answers until the person leaves, or a signal ends it. However that is,
    /// the terminal is left as it was.
    pub(super) async fn interact(
        mut self,
        editor: Editor,
        client: &Client,
        output: &mut Output,
    ) -> Result<(), CommandError> {
        let before = Before::editing(std::io::stdin(), output.is_screen())?;
        resized().thread_block().map_err(std::io::Error::from)?;
        let mut ends = Ends::new()?;
        let ended = tokio::select! {
            ended = self.converse(editor, client, output) => ended,
            () = ends.asked() => Err(CommandError::new(Kind::Interrupted, "ended by a signal")),
        };
        before.restore();
        ended
    }

    async fn converse(
        &mut self,
        mut editor: Editor,
        client: &Client,
        output: &mut Output,
    ) -> Result<(), CommandError> {
        // What is wrong with the model is said before anybody has typed a question.
        let Some(entry) = load_model(&self.model, client, output).await? else {
            return Err(CommandError::new(Kind::Interrupted, "interrupted"));
        };
        let context =
            entry.loaded.map(|loaded| format!(", context {} tokens", loaded.context_tokens));
        let (name, context) = (entry.name, context.unwrap_or_default());
        output.note(&format!("{name}{context}; /help lists commands, Ctrl-D leaves"))?;
        let mut leaving = false;
        loop {
            let line;
            (editor, line) = read(editor).await?;
            let text = match line {
                Line::Text(text) => text,
                Line::End => return Ok(()),
                Line::Interrupted if leaving => return Ok(()),
                Line::Interrupted => {
                    leaving = true;
                    output.note("Ctrl-C again or Ctrl-D leaves")?;
                    continue;
                }
            };
            leaving = false;
            match self.answer(&text, &mut editor, client, output).await {
                Ok(Next::Go) => {}
                Ok(Next::Leave) => return Ok(()),
                // One failure does not end a chat; a terminal or a daemon that is gone does.
                Err(error) if error.ends_a_chat() => return Err(error),
                Err(error) => output.note(&format!("m40ctl: {error}"))?,
            }
        }
    }

    async fn answer(
        &mut self,
        text: &str,
        editor: &mut Editor,
        client: &Client,
        output: &mut Output,
    ) -> Result<Next, CommandError> {
        let typed = understand(text).map_err(|message| CommandError::new(Kind::Usage, message));
        if !matches!(typed, Ok(Typed::Nothing))
            && let Err(error) = editor.remember(text)
        {
            output.note(&format!("m40ctl: {error}"))?;
        }
        match typed? {
            Typed::Nothing => {}
            Typed::Message(question) => self.ask(question, client, output).await?,
            Typed::Help => output.line(&help())?,
            Typed::Clear => self.conversation.messages.clear(),
            Typed::System(system) => self.conversation.system = system,
            Typed::Set { name, value } => {
                self.conversation.params = set(&self.conversation.params, &name, &value)?;
            }
            Typed::Show => self.show(client, output).await?,
            Typed::Save(file) => self.save(&file, output)?,
            Typed::Load(file) => self.load(&file, output)?,
            Typed::Verbose => self.verbose = !self.verbose,
            Typed::Leave => return Ok(Next::Leave),
        }
        Ok(Next::Go)
    }

    async fn ask(
        &mut self,
        question: String,
        client: &Client,
        output: &mut Output,
    ) -> Result<(), CommandError> {
        // What is typed meanwhile is for the next prompt and not for the middle of an answer.
        let _quiet = Quiet::begin(std::io::stdin())?;
        let asked =
            ask(&self.model, &mut self.conversation, question, self.verbose, client, output)
                .await?;
        match asked {
            Ended::Done(stats) if stats.finish_reason == "length" => {
                Ok(output.note("(cut off: max_tokens is reached, or the context is full)")?)
            }
            Ended::Done(_) | Ended::Interrupted => Ok(()),
        }
    }

    async fn show(&self, client: &Client, output: &mut Output) -> Result<(), CommandError> {
        let Some(entry) = load_model(&self.model, client, output).await? else { return Ok(()) };
        let format = format!("{} {}", entry.architecture, entry.quantization);
        output.line(&format!("model       {} ({})", entry.name, format.trim()))?;
        if let Some(loaded) = &entry.loaded {
            output.line(&format!("context     {} tokens", loaded.context_tokens))?;
        }
        output.line(&format!("messages    {}", self.conversation.messages.len()))?;
        if let Some(system) = &self.conversation.system {
            output.line(&format!("system      {system}"))?;
        }
        let params =
            serde_json::to_value(&self.conversation.params).map_err(std::io::Error::other)?;
        for (name, value) in params.as_object().into_iter().flatten() {
            output.line(&format!("{name:<11} {value}"))?;
        }
        Ok(())
    }

    fn save(&mut self, file: &Path, output: &Output) -> Result<(), CommandError> {
        let path = self.path(file);
        self.conversation.save(&path, self.file.as_ref() == Some(&path))?;
        output.note(&format!("saved to {}", path.display()))?;
        self.file = Some(path);
        Ok(())
    }

    fn load(&mut self, file: &Path, output: &Output) -> Result<(), CommandError> {
        let path = self.path(file);
        self.conversation = Conversation::load(&path)?;
        let count = self.conversation.messages.len();
        output.note(&format!("loaded {count} messages from {}", path.display()))?;
        self.file = Some(path);
        Ok(())
    }

    /// A path as people type it, where no shell has looked at it.
    fn path(&self, typed: &Path) -> PathBuf {
        match (typed.strip_prefix("~"), &self.home) {
            (Ok(below), Some(home)) => home.join(below),
            _ => typed.to_path_buf(),
        }
    }
}

enum Next {
    Go,
    Leave,
}

/// Loads the model; `None` where Ctrl-C ended the wait for it.
async fn load_model(
    model: &ModelRef,
    client: &Client,
    output: &Output,
) -> Result<Option<ModelEntry>, CommandError> {
    let request = LoadRequest { model: model.clone() };
    tokio::select! {
        entry = output.waiting("loading", client.load(&request)) => Ok(Some(entry??)),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            Ok(None)
        }
    }
}

/// The signal that the terminal has another size.
fn resized() -> SigSet {
    SigSet::from_iter([Signal::SIGWINCH])
}

/// Reads a line. That blocks, so it has its own thread, and a signal meanwhile is not kept waiting.
async fn read(mut editor: Editor) -> Result<(Editor, Line), CommandError> {
    let read = tokio::task::spawn_blocking(move || {
        // So that it wakes the editor and no other thread.
        let _ = resized().thread_unblock();
        let line = editor.read();
        (editor, line)
    });
    tokio::select! {
        read = read => {
            let (editor, line) = read.map_err(std::io::Error::other)?;
            Ok((editor, line?))
        }
        // The editor takes Ctrl-C as a key. Here it is a terminal that the editor cannot handle, or
        // somebody else's signal.
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            Err(CommandError::new(Kind::Interrupted, "interrupted"))
        }
    }
}

fn help() -> String {
    let commands =
        COMMANDS.map(|(name, takes, does)| format!("{:<22}{does}", format!("{name} {takes}")));
    format!(
        "{}\n\n\
         Ctrl-C stops an answer; \"\"\" begins a message of several lines and ends it.\n\
         A space before a slash sends it as a message. Parameters: {}.",
        commands.join("\n"),
        RunParams::NAMES.join(", ")
    )
}
