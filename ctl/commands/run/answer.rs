//! One question and its answer, which is shown as it comes.

use m40_control::{Client, ClientError, ModelRef, RunEvent, RunRequest, RunStats};

use super::conversation::Conversation;
use crate::error::CommandError;
use crate::output::Output;

/// How an answer ended.
#[derive(Debug)]
pub(super) enum Ended {
    Done(RunStats),
    Interrupted,
}

/// Asks and prints the answer, or its beginning up to Ctrl-C. Question and answer become part of
/// the conversation, unless the question failed.
pub(super) async fn ask(
    model: &ModelRef,
    conversation: &mut Conversation,
    question: String,
    verbose: bool,
    client: &Client,
    output: &mut Output,
) -> Result<Ended, CommandError> {
    let request = conversation.request(model, &question);
    let mut answer = String::new();
    let ended = tokio::select! {
        stats = stream(&request, client, output, &mut answer) => {
            let stats = stats?;
            if verbose {
                output.note(&figures(&stats))?;
            }
            Ended::Done(stats)
        }
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            if !output.json {
                output.line("")?;
            }
            Ended::Interrupted
        }
    };
    conversation.add(question, answer);
    Ok(ended)
}

async fn stream(
    request: &RunRequest,
    client: &Client,
    output: &mut Output,
    answer: &mut String,
) -> Result<RunStats, CommandError> {
    let mut events = output.waiting("waiting for the model", client.run(request)).await??;
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
            RunEvent::Done { stats } => {
                if !output.json && !answer.ends_with('\n') {
                    output.piece("\n")?;
                }
                return Ok(stats);
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

fn figures(stats: &RunStats) -> String {
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
