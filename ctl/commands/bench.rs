//! `m40ctl bench`

mod plot;
mod rows;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum, ValueHint};
use m40_control::{BenchEvent, BenchRequest, Client, ClientError};

use super::model_ref;
use crate::completion::names_and_files;
use crate::error::{CommandError, Kind};
use crate::output::Output;
use plot::Plot;

/// Measure how fast a model is; loads it when it is not loaded
///
/// Named as llama-bench does: pp512 is a prompt of 512 tokens, tg128 are 128 tokens of each of a batch of
/// sequences, @ d4096 behind 4096 tokens. The table has the mean of all sequences together, half its
/// range, tokens a second of each sequence, weights read and their share of what a copy moves on the
/// GPU, and what a Tesla M40 is predicted to reach. The model answers nobody else meanwhile.
///
/// A line of CSV has the columns model, device, test (pp, tg, copy, barrier), tokens, batch, depth, unit,
/// mean, min, max, per_sequence, weights_gb_per_s, copy_share and m40_tokens_per_s, some of which may be
/// empty. Lines of JSON are events: `loaded` has model and device, `row` the other columns by the same
/// names, `left_out` what was not measured and why, `done` ends them.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// Name of the model, or a GGUF file
    #[arg(value_name = "NAME|FILE", add = names_and_files())]
    model: String,
    /// How often each figure is measured [default: 5]
    #[arg(short, long, value_name = "N")]
    repeats: Option<u32>,
    /// Tokens of prompts [default: 512]
    #[arg(short, long, value_name = "N,N", value_delimiter = ',')]
    prompts: Option<Vec<u32>>,
    /// Tokens that each sequence is given [default: 128]
    #[arg(short = 'n', long, value_name = "N")]
    tokens: Option<u32>,
    /// Tokens that sequences hold before [default: 0,4096]
    #[arg(short, long, value_name = "N,N", value_delimiter = ',')]
    depths: Option<Vec<u32>>,
    /// Sequences at a time [default: 1,2,4,8,16,32]
    #[arg(short, long, value_name = "N,N", value_delimiter = ',')]
    batches: Option<Vec<u32>>,
    /// How to print what was measured; json is the same as --json
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Draw tokens a second against the batch into an SVG file, with a line for each depth
    #[arg(long, value_name = "FILE.svg", value_hint = ValueHint::FilePath)]
    plot: Option<PathBuf>,
}

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Csv,
    Json,
}

impl BenchArgs {
    fn request(&self) -> Result<BenchRequest, CommandError> {
        Ok(BenchRequest {
            model: model_ref(&self.model)?,
            repeats: self.repeats,
            prompts: self.prompts.clone(),
            tokens: self.tokens,
            depths: self.depths.clone(),
            batches: self.batches.clone(),
        })
    }

    fn format(&self, json: bool) -> Result<Format, CommandError> {
        match self.output {
            Format::Csv if json => {
                Err(CommandError::new(Kind::Usage, "--json and --output csv are two formats")
                    .hint("leave one of them out"))
            }
            Format::Table if json => Ok(Format::Json),
            format => Ok(format),
        }
    }
}

pub(crate) async fn run(
    args: &BenchArgs,
    client: &Client,
    output: &mut Output,
) -> Result<(), CommandError> {
    let format = args.format(output.json)?;
    if let Some(file) = &args.plot {
        check_writable(file)?;
    }
    let mut events = client.bench(&args.request()?).await?;
    let mut subject = (String::new(), String::new());
    let mut plot = Plot::default();
    while let Some(event) = events.next().await? {
        if let BenchEvent::Error { error } = event {
            return Err(error.into());
        }
        print(&event, format, &subject, output)?;
        match event {
            BenchEvent::Done => return finish(args, &plot, &subject, output),
            BenchEvent::Loaded { model, device } => subject = (model, device),
            BenchEvent::Row { row } => plot.add(&row),
            BenchEvent::LeftOut { .. } | BenchEvent::Error { .. } => {}
        }
    }
    Err(ClientError::Closed.into())
}

/// Prints an event; `subject` is the model, and what computes it.
fn print(
    event: &BenchEvent,
    format: Format,
    subject: &(String, String),
    output: &mut Output,
) -> Result<(), CommandError> {
    match (format, event) {
        (Format::Json, event) => output.value(event)?,
        (Format::Csv, BenchEvent::Loaded { .. }) => output.line(&rows::csv(rows::COLUMNS)?)?,
        (Format::Csv, BenchEvent::Row { row }) => {
            output.line(&rows::csv(rows::values(subject, row))?)?;
        }
        (Format::Csv, BenchEvent::LeftOut { what, why }) => {
            output.note(&format!("{}left out: {why}", rows::name(what)))?;
        }
        (Format::Table, BenchEvent::Loaded { model, device }) => {
            output.line(&format!("{model} on {device}"))?;
            output.line(&rows::line(&rows::HEADINGS))?;
        }
        (Format::Table, BenchEvent::Row { row }) => output.line(&rows::line(&rows::cells(row)))?,
        (Format::Table, BenchEvent::LeftOut { what, why }) => {
            output.line(&format!("{}left out: {why}", rows::name(what)))?;
        }
        (Format::Csv | Format::Table, BenchEvent::Done | BenchEvent::Error { .. }) => {}
    }
    Ok(())
}

/// Fails before anything is measured where the result could not be written after it.
fn check_writable(file: &Path) -> Result<(), CommandError> {
    match File::options().append(true).create(true).open(file) {
        Ok(_) => Ok(()),
        Err(error) => Err(cannot_write(file, &error)),
    }
}

fn cannot_write(file: &Path, error: &std::io::Error) -> CommandError {
    CommandError::new(Kind::Io, format!("cannot write {}: {error}", file.display()))
        .hint("name a file of a folder that is there and yours with --plot")
}

fn finish(
    args: &BenchArgs,
    plot: &Plot,
    (model, device): &(String, String),
    output: &Output,
) -> Result<(), CommandError> {
    let Some(file) = &args.plot else { return Ok(()) };
    let Some(svg) = plot.svg(model, device) else {
        return Err(CommandError::new(Kind::Refused, "nothing to plot: all was left out")
            .hint("name smaller --depths and --batches"));
    };
    fs::write(file, svg).map_err(|error| cannot_write(file, &error))?;
    Ok(output.note(&format!("wrote {}", file.display()))?)
}
