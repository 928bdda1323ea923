//! `m40ctl rm`

use clap::Args;
use m40_control::{Client, NameRequest};

use crate::completion::names_removable;
use crate::error::CommandError;
use crate::output::{Output, size};

/// Remove a stored model, with the files that no other model needs
///
/// A model that is in memory, or that a manifest defines, is not removed.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Name of the model
    #[arg(add = names_removable())]
    name: String,
}

pub(crate) async fn run(
    args: &RmArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let removed = client.remove(&NameRequest { model: args.name.clone() }).await?;
    if output.json {
        return Ok(output.value(&removed)?);
    }
    let freed = match removed.freed_bytes {
        0 => "its files are needed elsewhere, or take no space of their own".to_owned(),
        bytes => format!("{} freed", size(bytes)),
    };
    Ok(output.line(&format!("removed {}: {freed}", removed.model))?)
}
