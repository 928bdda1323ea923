//! `m40ctl run`

mod answer;
mod chat;
mod conversation;
mod editor;
mod typed;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;

use clap::Args;
use m40_control::paths::{Env, client_state_dir};
use m40_control::{Client, RunParams};

use self::answer::{Ended, ask};
use self::chat::Chat;
use self::conversation::{Conversation, set};
use self::editor::Editor;
use super::model_ref;
use crate::completion::names_and_files;
use crate::error::{CommandError, Kind};
use crate::output::Output;

/// Longest prompt that is read from a pipe.
const PIPED_BYTES_MAX: u64 = 16 << 20;

/// Ask a model, or chat with it
///
/// With a prompt, prints the answer. What is piped in, or comes from a file by `<`, is the prompt, or
/// follows it after an empty line; `< /dev/null` keeps a script's own input out of it.
///
/// On a terminal without a prompt it is a chat, with the history of earlier ones at the arrow keys:
/// Ctrl-C stops an answer, Ctrl-D ends the chat, and /help lists what else there is. What is between
/// two """ is one message however many lines it has, as is what is pasted.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Name of a model, or a GGUF file to use where it is
    #[arg(value_name = "NAME|FILE", add = names_and_files())]
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
    /// Set a parameter, such as top_k=40; /help in a chat lists them
    #[arg(long, value_name = "PARAMETER=VALUE", value_parser = parse_setting)]
    set: Vec<(String, String)>,
    /// Print token counts and rates to stderr after each answer
    #[arg(long, short, alias = "stats")]
    verbose: bool,
    /// Neither read nor keep what was typed in chats
    #[arg(long)]
    no_history: bool,
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it has no =")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl RunArgs {
    fn conversation(&self) -> Result<Conversation, CommandError> {
        let mut params = RunParams {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            seed: self.seed,
            ..RunParams::default()
        };
        for (name, value) in &self.set {
            params = set(&params, name, value)?;
        }
        Ok(Conversation { system: self.system.clone(), params, messages: Vec::new() })
    }
}

pub(crate) async fn run(
    args: &RunArgs,
    client: &Client,
    env: &Env,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut conversation = args.conversation()?;
    let model = model_ref(&args.model)?;
    let prompt = args.prompt.join(" ");
    let stdin = io::stdin();
    if prompt.is_empty() && stdin.is_terminal() && output.is_terminal() {
        if output.json {
            return Err(CommandError::new(Kind::Usage, "--json needs a prompt")
                .hint("put one behind the model's name, or pipe one in"));
        }
        // Without a home there is no place for a history, and a chat is one all the same.
        let history = client_state_dir(env).ok().filter(|_| !args.no_history);
        let editor = Editor::new(history.map(|dir| dir.join("history")))?;
        return Chat::new(model, conversation, args.verbose, env)
            .interact(editor, client, output)
            .await;
    }
    let reads = prompt.is_empty() || follows(&stdin)?;
    let piped = if reads { read_piped()? } else { String::new() };
    let prompt = join(prompt, piped)?;
    match ask(&model, &mut conversation, prompt, args.verbose, client, output).await? {
        Ended::Done(_) => Ok(()),
        Ended::Interrupted => Err(CommandError::new(Kind::Interrupted, "interrupted")),
    }
}

/// Whether what is on stdin belongs to a prompt of the command line. A socket does not: programs
/// start others with one that they never write to nor close.
fn follows(stdin: &impl AsFd) -> io::Result<bool> {
    let stdin = File::from(stdin.as_fd().try_clone_to_owned()?);
    let kind = stdin.metadata()?.file_type();
    Ok(kind.is_file() || kind.is_fifo())
}

fn read_piped() -> Result<String, CommandError> {
    let mut text = String::new();
    let read = io::stdin().take(PIPED_BYTES_MAX + 1).read_to_string(&mut text);
    let read = read.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => {
            CommandError::new(Kind::Usage, "what is piped in is not UTF-8 text")
                .hint("`iconv -t UTF-8` makes it so where it is text")
        }
        _ => error.into(),
    })?;
    if read as u64 > PIPED_BYTES_MAX {
        let message = format!("the prompt is longer than {PIPED_BYTES_MAX} bytes");
        return Err(CommandError::new(Kind::Usage, message).hint("ask about parts of it"));
    }
    Ok(text)
}

/// What is asked: the prompt of the command line, what was piped in, or the one after the other.
fn join(prompt: String, piped: String) -> Result<String, CommandError> {
    match (prompt.trim().is_empty(), piped.trim().is_empty()) {
        (true, true) => Err(CommandError::new(Kind::Usage, "no prompt")
            .hint("give one, pipe one in, or chat on a terminal")),
        (true, false) => Ok(piped),
        (false, true) => Ok(prompt),
        (false, false) => Ok(format!("{prompt}\n\n{piped}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_piped_in_is_the_prompt_or_follows_it() {
        let join = |a: &str, b: &str| join(a.to_owned(), b.to_owned()).map_err(|error| error.kind);
        assert_eq!(join("sum up", "a\nb\n").unwrap(), "sum up\n\na\nb\n");
        assert_eq!(join("hi", "\n").unwrap(), "hi");
        assert_eq!(join("", "hi\n").unwrap(), "hi\n");
        assert_eq!(join(" ", "\n"), Err(Kind::Usage));
    }
}
