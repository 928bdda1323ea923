//! `m40ctl prune`

use clap::Args;
use m40_control::{Client, PruneRequest};

use crate::error::CommandError;
use crate::output::{Output, size};

/// Remove files that no model needs, and what is left of downloads that nobody goes on with
///
/// Models that are stored, what manifests name and what is on its way stay.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
}

pub(crate) async fn run(
    args: &PruneArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let pruned = client.prune(&PruneRequest { dry_run: args.dry_run }).await?;
    if output.json {
        return Ok(output.value(&pruned)?);
    }
    for file in &pruned.files {
        let from = file.sources.first().map(|source| format!(", from {source}"));
        let (size, from) = (size(file.size_bytes), from.unwrap_or_default());
        output.line(&format!("{} ({size}{from})", file.sha256))?;
    }
    for path in &pruned.leftovers {
        output.line(&path.display().to_string())?;
    }
    if pruned.files.is_empty() && pruned.leftovers.is_empty() {
        return Ok(output.line("there is nothing to remove")?);
    }
    let verb = if pruned.dry_run { "would be removed" } else { "removed" };
    Ok(output.line(&format!("{verb}: {}", size(pruned.bytes)))?)
}
