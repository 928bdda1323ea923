//! `m40ctl unload`

use clap::Args;
use m40_control::{Client, UnloadRequest};

use crate::completion::names_in_memory;
use crate::error::CommandError;
use crate::output::Output;

/// Take a model out of memory, after the answers it is giving
#[derive(Debug, Args)]
pub(crate) struct UnloadArgs {
    /// Name of the model
    #[arg(add = names_in_memory())]
    name: String,
    /// Cut running and waiting answers short instead of finishing them
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(
    args: &UnloadArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = UnloadRequest { model: args.name.clone(), force: args.force };
    let entry = client.unload(&request).await?;
    if output.json {
        return Ok(output.value(&entry)?);
    }
    Ok(output.line(&format!("unloaded {}", entry.name))?)
}
