//! Benchmarks of loaded models.

use std::ops::ControlFlow;

use m40_control::{ApiError, BenchEvent, BenchRequest, BenchRow, BenchTest, BenchWhat, ErrorCode};
use m40llm::{BenchLine, BenchOptions, GenerateError};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::models::{JobError, Models, Run};
use crate::net::Phase;

/// Numbers in a list, at most.
const LIST_MAX: usize = 16;

/// Tokens that each sequence is given unless that is said: what others measure too.
const TOKENS: u32 = 128;

/// Why a benchmark is not begun.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("repeats is {found}, it may be 1 to 100")]
    Repeats { found: u32 },
    #[error("batches has {found}, it may have 1 to 64")]
    Batch { found: u32 },
    #[error("{list} has {found} numbers, it may have {LIST_MAX} at most")]
    List { list: &'static str, found: usize },
    #[error("{key} has 0 tokens, it has at least one")]
    NoTokens { key: &'static str },
}

impl From<BenchError> for ApiError {
    fn from(error: BenchError) -> Self {
        Self::new(ErrorCode::InvalidRequest, error.to_string())
    }
}

/// What to measure, from what was asked.
pub(crate) fn options(request: &BenchRequest) -> Result<BenchOptions, BenchError> {
    let mut options = BenchOptions::default();
    if let Some(repeats) = request.repeats {
        if !(1..=100).contains(&repeats) {
            return Err(BenchError::Repeats { found: repeats });
        }
        options.repeats = repeats as usize;
    }
    let list = |list, numbers: &[u32]| {
        let found = numbers.len();
        if found > LIST_MAX {
            return Err(BenchError::List { list, found });
        }
        Ok(numbers.iter().map(|&number| number as usize).collect())
    };
    let tokens = request.tokens.unwrap_or(TOKENS);
    if tokens == 0 {
        return Err(BenchError::NoTokens { key: "tokens" });
    }
    options.tokens = tokens as usize;
    if let Some(prompts) = &request.prompts {
        if prompts.contains(&0) {
            return Err(BenchError::NoTokens { key: "prompts" });
        }
        options.prompts = list("prompts", prompts)?;
    }
    if let Some(depths) = &request.depths {
        options.depths = list("depths", depths)?;
    }
    if let Some(batches) = &request.batches {
        if let Some(&found) = batches.iter().find(|batch| !(1..=64).contains(*batch)) {
            return Err(BenchError::Batch { found });
        }
        options.batches = list("batches", batches)?;
    }
    Ok(options)
}

/// Measures a model, whose request has its turn, on a thread of its own. Ends early, between two lines, when nobody listens any
/// more, the model is unloaded or the daemon stops.
pub(crate) fn start(
    models: &Models,
    run: Run,
    options: BenchOptions,
) -> UnboundedReceiver<BenchEvent> {
    let (sender, receiver) = unbounded_channel();
    let models = models.clone();
    tokio::task::spawn_blocking(move || {
        // A client that left does not want the events.
        let send = |event| drop(sender.send(event));
        let Run { loaded, cut, .. } = &run;
        send(BenchEvent::Loaded { model: loaded.name.to_string(), device: models.device() });
        let mut ended = false;
        let kv_bytes = run.lend(loaded.model.bench_bytes(&options));
        let options = BenchOptions { kv_bytes, ..options };
        let result = loaded.bench(&options, &mut |line| {
            send(event(line));
            let stopping = *models.phase().borrow() != Phase::Serving;
            ended = stopping || sender.is_closed() || cut.token().is_cancelled();
            if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        send(match result {
            Ok(()) if ended => {
                let message = "the benchmark was cut short: the model was unloaded or m40d stops";
                BenchEvent::Error { error: ApiError::new(ErrorCode::Aborted, message) }
            }
            Ok(()) => BenchEvent::Done,
            Err(error) => {
                if let GenerateError::Gpu(error) = &error {
                    models.device_failed(error.clone());
                }
                BenchEvent::Error { error: JobError::from(error).into() }
            }
        });
        drop(run);
    });
    receiver
}

fn event(line: BenchLine) -> BenchEvent {
    match line {
        BenchLine::LeftOut { test, why } => BenchEvent::LeftOut { what: what(test), why },
        BenchLine::Row(row) => BenchEvent::Row {
            row: BenchRow {
                what: what(row.test),
                unit: row.unit.to_owned(),
                mean: row.value.mean,
                min: row.value.min,
                max: row.value.max,
                per_sequence: row.per_sequence,
                weights_gb_per_s: row.weights_gb_per_s,
                copy_share: row.copy_share,
                m40_tokens_per_s: row.m40_tokens_per_s,
            },
        },
    }
}

fn what(test: m40llm::BenchTest) -> BenchWhat {
    let of_device = |test| BenchWhat { test, tokens: None, batch: None, depth: None };
    // None of these exceeds what a request may say.
    let number = |n: usize| Some(u32::try_from(n).unwrap_or(u32::MAX));
    let pass = |test, tokens, batch, depth| {
        let (tokens, batch, depth) = (number(tokens), number(batch), number(depth));
        BenchWhat { test, tokens, batch, depth }
    };
    match test {
        m40llm::BenchTest::Copy => of_device(BenchTest::Copy),
        m40llm::BenchTest::Barrier => of_device(BenchTest::Barrier),
        m40llm::BenchTest::Beside(_) => of_device(BenchTest::Other),
        m40llm::BenchTest::Prompt { tokens, depth } => pass(BenchTest::Pp, tokens, 1, depth),
        m40llm::BenchTest::Decode { tokens, sequences, depth } => {
            pass(BenchTest::Tg, tokens, sequences, depth)
        }
    }
}
