//! `m40ctl pull`

use std::path::{Path, absolute};

use clap::Args;
use m40_control::{Client, ClientError, ModelEntry, PullEvent, PullRequest, PullTarget};

use super::bar::Bar;
use crate::completion::names_and_files;
use crate::error::{CommandError, Kind};
use crate::output::{Output, size};

/// What a source that is no path begins with.
const SOURCES: [&str; 5] = ["https://", "http://", "hf:", "ollama:", "zip+"];

/// Get a model: from the web, a registry or a file of this machine
///
/// Checked by its hash, and kept by the daemon. A file of this machine takes no space again where the file
/// system allows; of a split model name any one file. Ctrl-C ends a download, and the same command
/// goes on with it; that of a model which a manifest defines goes on by itself.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// A URL, hf:org/repo/file.gguf, hf:org/repo:Q4_K_M, ollama:name:tag, zip+ARCHIVE!/member, a GGUF
    /// file, or the name of a model that is known
    #[arg(value_name = "SOURCE|NAME", add = names_and_files())]
    source: String,
    /// Name of the model [default: made of the source]
    #[arg(long)]
    name: Option<String>,
    /// Take the name from another model that has it
    #[arg(long)]
    replace: bool,
    /// Ask the origin for what it has now, also if the model is here
    #[arg(long)]
    update: bool,
}

pub(crate) async fn run(
    args: &PullArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = PullRequest {
        what: target(&args.source)?,
        name: args.name.clone(),
        replace: args.replace,
        update: args.update,
    };
    let mut goes_on = false;
    tokio::select! {
        done = watch(client, &request, &mut goes_on, output) => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            output.progress("")?;
            let message = match goes_on {
                true => "the download goes on: `m40ctl list` shows how far it is",
                false => "the download was stopped, and the same command goes on with it",
            };
            Err(CommandError::new(Kind::Interrupted, message))
        }
    }
}

fn target(typed: &str) -> Result<PullTarget, CommandError> {
    if SOURCES.iter().any(|start| typed.starts_with(start)) {
        return Ok(PullTarget::Source(typed.to_owned()));
    }
    if typed.contains('/') || typed.ends_with(".gguf") {
        return Ok(PullTarget::File(absolute(Path::new(typed))?));
    }
    Ok(PullTarget::Name(typed.to_owned()))
}

async fn watch(
    client: &Client,
    request: &PullRequest,
    is_defined: &mut bool,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut events = client.pull(request).await?;
    let mut bar = Bar::default();
    while let Some(event) = events.next().await? {
        if output.json && !matches!(event, PullEvent::Error { .. }) {
            output.value(&event)?;
        }
        match event {
            PullEvent::Begun { model, goes_on } => {
                *is_defined = goes_on;
                bar = Bar::new(&model);
            }
            PullEvent::Progress(progress) => bar.show(&progress, output)?,
            PullEvent::Error { error } => {
                bar.clear(output)?;
                return Err(error.into());
            }
            PullEvent::Done { .. } if output.json => return Ok(()),
            PullEvent::Done { model, was_here } => {
                bar.clear(output)?;
                return Ok(output.line(&done(&model, was_here))?);
            }
        }
    }
    Err(ClientError::Closed.into())
}

fn done(model: &ModelEntry, was_here: bool) -> String {
    let (name, size) = (&model.name, size(model.size_bytes));
    if was_here {
        return format!("{name} is here ({size}): `m40ctl pull --update` asks for a newer one");
    }
    let format = format!(", {} {}", model.architecture, model.quantization);
    format!("added {name} ({size}{})", format.trim_end_matches([' ', ',']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_files_and_names_are_told_apart() {
        for source in ["hf:o/r:Q4_0", "ollama:llama3.2", "https://h/m.gguf", "zip+/w.whl!/m.gguf"] {
            assert_eq!(target(source).unwrap(), PullTarget::Source(source.into()));
        }
        assert_eq!(target("qwen3:8b").unwrap(), PullTarget::Name("qwen3:8b".into()));
        assert_eq!(target("/m/x").unwrap(), PullTarget::File("/m/x".into()));
        let PullTarget::File(path) = target("x.gguf").unwrap() else { panic!("no file") };
        assert!(path.is_absolute() && path.ends_with("x.gguf"));
    }
}
