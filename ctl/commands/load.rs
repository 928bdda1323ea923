//! `m40ctl load`

use clap::Args;
use m40_control::{Client, LoadRequest};

use super::model_ref;
use crate::completion::names_and_files;
use crate::error::CommandError;
use crate::output::Output;

/// Load a model into memory and wait until it is ready
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Name of a model, or a GGUF file to use where it is
    #[arg(value_name = "NAME|FILE", add = names_and_files())]
    model: String,
}

pub(crate) async fn run(
    args: &LoadArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let entry = client.load(&LoadRequest { model: model_ref(&args.model)? }).await?;
    if output.json {
        return Ok(output.value(&entry)?);
    }
    let figures = entry.loaded.as_ref().map_or_else(String::new, |loaded| {
        format!(" in {} ms, context {} tokens", loaded.load_ms, loaded.context_tokens)
    });
    Ok(output.line(&format!("loaded {}{figures}", entry.name))?)
}
