//! `m40ctl log-level`

use clap::Args;
use m40_control::{Client, LogRequest};

use crate::error::CommandError;
use crate::output::Output;

/// Show what the daemon logs, or change it until it ends
///
/// A level is error, warn, info, debug or trace. A list of modules and levels such as
/// "info,m40d::models=debug" logs more of some of them. What is to be logged from the start on is
/// [log] level in m40d.toml. Prompts and answers are never logged.
#[derive(Debug, Args)]
pub(crate) struct LogLevelArgs {
    /// Log this from now on
    #[arg(value_name = "LEVEL|FILTER")]
    filter: Option<String>,
}

pub(crate) async fn run(
    args: &LogLevelArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let level = match &args.filter {
        Some(filter) => client.set_log_level(&LogRequest { filter: filter.clone() }).await?,
        None => client.log_level().await?,
    };
    if output.json {
        return Ok(output.value(&level)?);
    }
    if level.filter == level.configured {
        return Ok(output.line(&level.filter)?);
    }
    Ok(output.line(&format!("{} ([log] level is {})", level.filter, level.configured))?)
}
