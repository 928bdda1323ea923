//! `m40ctl adopt`

use std::path::{PathBuf, absolute};

use clap::{Args, ValueHint};
use m40_control::{AdoptEvent, AdoptRequest, Client, ClientError};

use super::bar::Bar;
use crate::error::CommandError;
use crate::output::{Output, size};

/// Take over the models of Ollama or of Hugging Face's cache, without copying them
#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    /// Ollama's models folder, such as ~/.ollama/models, or ~/.cache/huggingface/hub
    #[arg(value_hint = ValueHint::DirPath)]
    dir: PathBuf,
}

pub(crate) async fn run(
    args: &AdoptArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let mut events = client.adopt(&AdoptRequest { dir: absolute(&args.dir)? }).await?;
    let mut bar = Bar::default();
    while let Some(event) = events.next().await? {
        if output.json && !matches!(event, AdoptEvent::Error { .. }) {
            output.value(&event)?;
        }
        match event {
            AdoptEvent::Progress(progress) => bar.show(&progress, output)?,
            AdoptEvent::Adopted { model } => {
                bar.clear(output)?;
                if !output.json {
                    let (name, size) = (&model.name, size(model.size_bytes));
                    output.line(&format!(
                        "adopted {name} ({size}) from {}",
                        model.source.display()
                    ))?;
                }
            }
            AdoptEvent::Left { path, reason } => {
                bar.clear(output)?;
                if !output.json {
                    output.line(&format!("left {}: {reason}", path.display()))?;
                }
            }
            AdoptEvent::Done { adopted, left } => {
                if !output.json {
                    output.line(&format!("{adopted} adopted, {left} left"))?;
                }
                return Ok(());
            }
            AdoptEvent::Error { error } => {
                bar.clear(output)?;
                return Err(error.into());
            }
        }
    }
    Err(ClientError::Closed.into())
}
