//! `m40ctl reload`

use clap::Args;
use m40_control::{Client, ReloadRequest};

use crate::error::{CommandError, Kind};
use crate::output::Output;

/// Reread the manifests and show what changes; the daemon does so by itself when they change
#[derive(Debug, Args)]
pub(crate) struct ReloadArgs {
    /// Only show what would change
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(
    args: &ReloadArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let reload = client.reload(&ReloadRequest { dry_run: args.dry_run }).await?;
    if output.json {
        output.value(&reload)?;
    } else {
        output.line(reload.to_string().trim_end())?;
    }
    let wrong = match reload.problems.len() {
        0 => return Ok(()),
        1 => "a manifest is wrong".to_owned(),
        count => format!("{count} manifests are wrong"),
    };
    Err(CommandError::new(Kind::BadData, wrong)
        .hint("mend what is shown above; saving it is enough"))
}
