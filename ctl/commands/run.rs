//! `m40ctl run`

use std::io::{self, IsTerminal, Read, Write};

use clap::Args;
use m40_control::{Client, ClientError, ModelRef, RunEvent, RunMessage, RunRequest, RunStats};

use super::model_ref;
use crate::error::{CommandError, Kind};
use crate::output::Output;

/// Longest prompt that is read from a pipe.
const PIPED_BYTES_MAX: u64 = 16 << 20;

/// Ask a model, or chat with it
///
/// With a prompt, prints the answer. Without one, reads the prompt from a pipe, or chats when
/// there is a terminal: Ctrl-C stops an answer, Ctrl-D ends the chat.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Name of a model, or a GGUF file to use where it is
    #[arg(value_name = "NAME|FILE")]
    model: String,
    /// What to ask; several words are joined
    prompt: Vec<String>,
    /// Instructions that go before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer [default: what the context leaves]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Randomness; 0 always takes the likeliest token
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Make a random answer repeatable
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Print rates to stderr after each answer
    #[arg(long)]
    stats: bool,
}

/// How an answer ended.
enum Ended {
    Done,
    Interrupted,
}

pub(crate) async fn run(
    args: &RunArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut chat = Chat::new(args)?;
    let prompt = args.prompt.join(" ");
    let interactive = prompt.is_empty() && io::stdin().is_terminal();
    if interactive {
        if output.json {
            return Err(CommandError::new(Kind::Usage, "--json needs a prompt"));
        }
        return chat.interact(client, output).await;
    }
    let prompt = if prompt.is_empty() { read_piped()? } else { prompt };
    match chat.ask(prompt, client, output).await? {
        Ended::Done => Ok(()),
        Ended::Interrupted => Err(CommandError::new(Kind::Interrupted, "interrupted")),
    }
}

/// A conversation so far.
struct Chat<'a> {
    args: &'a RunArgs,
    model: ModelRef,
    messages: Vec<RunMessage>,
}

impl<'a> Chat<'a> {
    fn new(args: &'a RunArgs) -> Result<Self, CommandError> {
        let messages = args.system.iter().map(|system| message("system", system)).collect();
        Ok(Self { args, model: model_ref(&args.model)?, messages })
    }

    async fn interact(&mut self, client: &Client, output: &mut Output) -> Result<(), CommandError> {
        output.note("Ctrl-C stops an answer, Ctrl-D ends the chat")?;
        while let Some(line) = prompt_line().await? {
            if line.trim().is_empty() {
                continue;
            }
            // One failed answer does not end a chat, a daemon that is gone does.
            match self.ask(line, client, output).await {
                Ok(_) => {}
                Err(error) if matches!(error.kind, Kind::Unavailable | Kind::Io) => {
                    return Err(error);
                }
                Err(error) => output.note(&format!("m40ctl: {error}"))?,
            }
        }
        Ok(())
    }

    /// Asks and prints the answer; both become part of the conversation once there is one.
    async fn ask(
        &mut self,
        prompt: String,
        client: &Client,
        output: &mut Output,
    ) -> Result<Ended, CommandError> {
        let question = message("user", &prompt);
        let mut messages = self.messages.clone();
        messages.push(question.clone());
        let request = RunRequest {
            model: self.model.clone(),
            messages,
            max_tokens: self.args.max_tokens,
            temperature: self.args.temperature,
            seed: self.args.seed,
        };
        let mut answer = String::new();
        let ended = tokio::select! {
            ended = stream(client, &request, output, &mut answer, self.args.stats) => {
                ended?;
                Ended::Done
            }
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                if !output.json {
                    output.line("")?;
                }
                Ended::Interrupted
            }
        };
        self.messages.push(question);
        self.messages.push(message("assistant", &answer));
        Ok(ended)
    }
}

async fn stream(
    client: &Client,
    request: &RunRequest,
    output: &mut Output,
    answer: &mut String,
    stats: bool,
) -> Result<(), CommandError> {
    let mut events = client.run(request).await?;
    while let Some(event) = events.next().await? {
        if output.json {
            output.value(&event)?;
        }
        match event {
            RunEvent::Loaded { .. } => {}
            RunEvent::Text { text } => {
                if !output.json {
                    output.piece(&text)?;
                }
                answer.push_str(&text);
            }
            RunEvent::Done { stats: figures } => {
                if !output.json && !answer.ends_with('\n') {
                    output.piece("\n")?;
                }
                if stats {
                    output.note(&rates(&figures))?;
                }
                return Ok(());
            }
            RunEvent::Error { error } => {
                if !output.json && !answer.is_empty() {
                    output.piece("\n")?;
                }
                return Err(error.into());
            }
        }
    }
    Err(ClientError::Closed.into())
}

fn rates(stats: &RunStats) -> String {
    let per_s =
        |rate: Option<f64>| rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
    format!(
        "prompt {} tokens ({} cached), {} tokens/s; answer {} tokens, {} tokens/s; ended by {}",
        stats.prompt_tokens,
        stats.cached_tokens,
        per_s(stats.prompt_tokens_per_s()),
        stats.completion_tokens,
        per_s(stats.decode_tokens_per_s()),
        stats.finish_reason,
    )
}

fn message(role: &str, content: &str) -> RunMessage {
    RunMessage { role: role.to_owned(), content: content.to_owned() }
}

fn read_piped() -> Result<String, CommandError> {
    let mut text = String::new();
    let read = io::stdin().take(PIPED_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > PIPED_BYTES_MAX {
        let message = format!("the prompt is longer than {PIPED_BYTES_MAX} bytes");
        return Err(CommandError::new(Kind::Usage, message));
    }
    if text.trim().is_empty() {
        return Err(CommandError::new(Kind::Usage, "no prompt: give one, or pipe one in"));
    }
    Ok(text)
}

/// Asks for a line; `None` at the end of input. Reading blocks, so it has its own thread.
async fn prompt_line() -> Result<Option<String>, CommandError> {
    let read = tokio::task::spawn_blocking(|| {
        let mut out = io::stdout();
        out.write_all(b">>> ")?;
        out.flush()?;
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line)?;
        Ok::<_, io::Error>((read > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned()))
    });
    let mut read = std::pin::pin!(read);
    loop {
        tokio::select! {
            line = &mut read => return Ok(line.map_err(io::Error::other)??),
            // At the prompt there is nothing to stop, and it must not end the program.
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                let mut out = io::stdout();
                out.write_all(b"\n>>> ")?;
                out.flush()?;
            }
        }
    }
}
