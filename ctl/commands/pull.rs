//! `m40ctl pull`

use std::path::{PathBuf, absolute};

use clap::Args;
use m40_control::{Client, ClientError, ImportEvent, ImportRequest};

use crate::error::CommandError;
use crate::output::{Output, size};

/// Add a GGUF file on this machine to the daemon's models
///
/// The file is checked, hashed and kept by the daemon: as another link where the file system
/// allows, else as a copy. Of a split model name any one file; all are taken.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The GGUF file
    file: PathBuf,
    /// Name of the model [default: made of the file name]
    #[arg(long)]
    name: Option<String>,
    /// Take the name from another model that has it
    #[arg(long)]
    replace: bool,
}

pub(crate) async fn run(
    args: &PullArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let path = absolute(&args.file)?;
    let request = ImportRequest { path, name: args.name.clone(), replace: args.replace };
    let mut events = client.import(&request).await?;
    while let Some(event) = events.next().await? {
        match event {
            ImportEvent::Progress { done_bytes, total_bytes } => {
                let (done, total) = (size(done_bytes), size(total_bytes));
                output.progress(&format!("hashing {done} of {total}"))?;
            }
            ImportEvent::Error { error } => {
                output.progress("")?;
                return Err(error.into());
            }
            ImportEvent::Imported { model } => {
                output.progress("")?;
                if output.json {
                    return Ok(output.value(&model)?);
                }
                let (name, size) = (&model.name, size(model.size_bytes));
                let format = format!("{} {}", model.architecture, model.quantization);
                return Ok(output.line(&format!("added {name} ({size}, {format})"))?);
            }
        }
    }
    Err(ClientError::Closed.into())
}
