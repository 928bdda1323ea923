//! `m40ctl queue` and `m40ctl cancel`

use clap::Args;
use m40_control::{CancelRequest, Client, QueueEntry};

use crate::error::CommandError;
use crate::output::{Output, time};

/// End a request that waits or runs
#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Its number, as `m40ctl queue` shows it
    request: u64,
}

pub(crate) async fn run(client: &Client, output: &mut Output) -> Result<(), CommandError> {
    let queue = client.queue().await?;
    if output.json {
        return Ok(output.value(&queue)?);
    }
    if queue.requests.is_empty() {
        output.note("no request waits or runs")?;
        return Ok(());
    }
    Ok(output.table(&rows(&queue.requests))?)
}

/// A row for each request, below headings.
pub(crate) fn rows(requests: &[QueueEntry]) -> Vec<Vec<String>> {
    let heading = ["REQUEST", "MODEL", "URGENCY", "STATE", "FOR", "AHEAD", "WAITS IN ALL"];
    let heading = heading.map(str::to_owned).to_vec();
    std::iter::once(heading).chain(requests.iter().map(row)).collect()
}

fn row(entry: &QueueEntry) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        entry.request.to_string(),
        entry.model.clone(),
        entry.urgency.clone(),
        state(entry).to_owned(),
        time(entry.since_ms),
        or_dash(entry.ahead.map(|ahead| ahead.to_string())),
        or_dash(entry.wait_ms.map(time)),
    ]
}

fn state(entry: &QueueEntry) -> &'static str {
    if entry.running { "runs" } else { "waits" }
}

pub(crate) async fn cancel(
    args: &CancelArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let entry = client.cancel(&CancelRequest { request: args.request }).await?;
    if output.json {
        return Ok(output.value(&entry)?);
    }
    let was = if entry.running { "ran on" } else { "waited for" };
    Ok(output.line(&format!("cancelled {}, which {was} {}", entry.request, entry.model))?)
}
