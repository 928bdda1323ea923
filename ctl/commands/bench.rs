//! `m40ctl bench`

use clap::Args;
use m40_control::{BenchEvent, BenchRequest, BenchRow, Client, ClientError};

use super::model_ref;
use crate::error::CommandError;
use crate::output::Output;

/// Measure how fast a model is; loads it when it is not loaded
///
/// Prompts of 512 tokens, and tokens of several sequences at several depths: the mean, half the
/// range, tokens a second of each sequence, weights read and their share of what a copy moves on the
/// GPU, and what a Tesla M40 is predicted to reach. The model answers nobody else meanwhile.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Name of the model, or a GGUF file
    model: String,
    /// How often each figure is measured [default: 5]
    #[arg(long, value_name = "N")]
    repeats: Option<u32>,
    /// Tokens that sequences hold before [default: 0,4096]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    depths: Option<Vec<u32>>,
    /// Sequences at a time [default: 1,2,4,8,16,32]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    batches: Option<Vec<u32>>,
}

pub(crate) async fn run(
    args: &BenchArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let request = BenchRequest {
        model: model_ref(&args.model)?,
        repeats: args.repeats,
        depths: args.depths.clone(),
        batches: args.batches.clone(),
    };
    let mut events = client.bench(&request).await?;
    while let Some(event) = events.next().await? {
        if let BenchEvent::Error { error } = event {
            return Err(error.into());
        }
        if output.json {
            output.value(&event)?;
        }
        let text = match event {
            BenchEvent::Done => return Ok(()),
            _ if output.json => continue,
            BenchEvent::Loaded { model, device } => {
                format!("{model} on {device}\n{}", BenchRow::line(&BenchRow::HEADINGS))
            }
            BenchEvent::Row { row } => BenchRow::line(&row.cells()),
            BenchEvent::LeftOut { what, why } => format!("{what:<18} left out: {why}"),
            BenchEvent::Error { .. } => continue,
        };
        output.line(&text)?;
    }
    Err(ClientError::Closed.into())
}
