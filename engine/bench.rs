//! How fast a loaded model is: prompts, tokens of several sequences at several depths, and what
//! bounds them.
//!
//! Every figure is measured several times, warm: what comes first is not counted. Next to decoding
//! stands what a Tesla M40 will make of it, by `m40_gpu::predict`: a prediction from machine code.

#[cfg(feature = "cuda")]
pub(crate) mod card;
mod cpu;
mod figures;

use std::ops::ControlFlow;
#[cfg(feature = "cuda")]
use std::sync::Arc;
use std::time::Duration;

use m40_program::Program;
use m40_program::cost::PassShape;

use crate::generate::GenerateError;
use crate::model::Model;

pub(crate) use self::cpu::CpuSubject;
pub use self::figures::{BenchLine, BenchOptions, BenchRow, BenchTest, Spread};

/// Takes each line as soon as it is known, and may end the benchmark.
pub type OnLine<'a> = dyn FnMut(BenchLine) -> ControlFlow<()> + 'a;

/// What is measured: sequences of any tokens, and passes over them.
pub(crate) trait Subject {
    /// The program.
    fn program(&self) -> &Program;
    /// Tokens that a sequence may have.
    fn context(&self) -> usize;
    /// Tokens that all sequences together may have.
    fn room(&self) -> usize;
    /// Tokens that a sequence's part of that grows by.
    fn page(&self) -> usize;
    /// How often weights are read for a token of each of so many sequences.
    fn passes(&self, sequences: usize) -> usize;
    /// How long a prompt takes in a sequence of its own that holds `depth` tokens; there are no others.
    fn prompt(&mut self, tokens: &[u32], depth: usize) -> Result<Duration, GenerateError>;
    /// Makes these sequences, of so many tokens each, the only ones.
    fn begin(&mut self, sequences: usize, depth: usize) -> Result<(), GenerateError>;
    /// How long so many tokens of each sequence take; it holds `depth` again afterwards.
    fn decode(&mut self, tokens: usize, depth: usize) -> Result<Duration, GenerateError>;
    /// Bytes a second that a copy moves, where that bounds reading weights.
    fn copy_rate(&mut self) -> Result<Option<f64>, GenerateError>;
    /// How long a barrier across the device takes, where there is one.
    fn barrier(&mut self) -> Result<Option<Duration>, GenerateError>;
}

impl Model {
    /// Bytes of KV cache with which [`Session::bench`](crate::Session::bench) leaves nothing out for want of
    /// it: nothing where sequences have the model's own.
    pub fn bench_bytes(&self, options: &BenchOptions) -> u64 {
        self.runner().bench_bytes(options)
    }
}

/// Measures an executor that its caller has loaded, with as much KV cache as it likes.
///
/// # Errors
/// [`GenerateError`], when the card fails.
#[cfg(feature = "cuda")]
pub fn bench_executor(
    executor: &mut m40_gpu::executor::Executor,
    options: &BenchOptions,
    on_line: &mut OnLine<'_>,
) -> Result<(), GenerateError> {
    bench(&mut card::CardSubject::new(executor, Arc::default()), options, on_line)
}

/// Measures all there is; ends early when told so.
pub(crate) fn bench(
    subject: &mut dyn Subject,
    options: &BenchOptions,
    on_line: &mut OnLine<'_>,
) -> Result<(), GenerateError> {
    let repeats = options.repeats.max(1);
    let mut tell = |row| on_line(BenchLine::Row(row));
    let copy = figures(repeats, || Ok(subject.copy_rate()?.map(|rate| rate / 1e9)))?;
    if copy.is_some_and(|copy| tell(BenchRow::plain(BenchTest::Copy, "GB/s", copy)).is_break()) {
        return Ok(());
    }
    let barrier = figures(repeats, || Ok(subject.barrier()?.map(|time| time.as_secs_f64() * 1e6)))?;
    let row = |time| BenchRow::plain(BenchTest::Barrier, "us", time);
    if barrier.is_some_and(|time| tell(row(time)).is_break()) {
        return Ok(());
    }
    for &depth in &options.depths {
        for &tokens in &options.prompts {
            let line = prompt(subject, options, (tokens.max(1), depth))?;
            if on_line(line).is_break() {
                return Ok(());
            }
        }
        for &sequences in &options.batches {
            let line = decode(subject, options, (sequences, depth), copy.map(|copy| copy.mean))?;
            if on_line(line).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A figure as often as asked for, where there is one.
fn figures(
    repeats: usize,
    mut measure: impl FnMut() -> Result<Option<f64>, GenerateError>,
) -> Result<Option<Spread>, GenerateError> {
    let figures = (0..repeats).map(|_| measure()).collect::<Result<Option<Vec<_>>, _>>()?;
    Ok(figures.and_then(|figures| Spread::of(&figures)))
}

fn prompt(
    subject: &mut dyn Subject,
    options: &BenchOptions,
    (length, depth): (usize, usize),
) -> Result<BenchLine, GenerateError> {
    let test = BenchTest::Prompt { tokens: length, depth };
    if let Some(why) = too_large(subject, 1, depth.saturating_add(length)) {
        return Ok(BenchLine::LeftOut { test, why });
    }
    let vocab = subject.program().description.vocab;
    let tokens: Vec<_> = (0..length).map(|i| token(i, vocab)).collect();
    subject.prompt(&tokens, depth)?;
    let rate = || Ok(Some(length as f64 / subject.prompt(&tokens, depth)?.as_secs_f64()));
    let rate = figures(options.repeats.max(1), rate)?.expect("measured at least once");
    let predicted = (depth == 0).then(|| predicted_prompt(subject.program(), length));
    Ok(BenchLine::Row(BenchRow {
        m40_tokens_per_s: predicted.flatten(),
        ..BenchRow::plain(test, "tokens/s", rate)
    }))
}

fn decode(
    subject: &mut dyn Subject,
    options: &BenchOptions,
    (sequences, depth): (usize, usize),
    copy: Option<f64>,
) -> Result<BenchLine, GenerateError> {
    let tokens = options.tokens.max(1);
    let test = BenchTest::Decode { tokens, sequences, depth };
    if let Some(why) = too_large(subject, sequences, depth.saturating_add(tokens)) {
        return Ok(BenchLine::LeftOut { test, why });
    }
    subject.begin(sequences, depth)?;
    subject.decode(tokens, depth)?;
    let rate = || {
        let time = subject.decode(tokens, depth)?;
        Ok(Some((sequences * tokens) as f64 / time.as_secs_f64()))
    };
    let value = figures(options.repeats.max(1), rate)?.expect("measured at least once");
    let pass_bytes = weight_bytes(subject.program()) * subject.passes(sequences) as f64;
    let weights = value.mean / sequences as f64 * pass_bytes / 1e9;
    Ok(BenchLine::Row(BenchRow {
        per_sequence: Some(value.mean / sequences as f64),
        weights_gb_per_s: Some(weights),
        copy_share: copy.map(|copy| weights / copy),
        m40_tokens_per_s: predicted(subject.program(), sequences, depth),
        ..BenchRow::plain(test, "tokens/s", value)
    }))
}

/// Why sequences of so many tokens cannot be.
fn too_large(subject: &dyn Subject, sequences: usize, tokens: usize) -> Option<String> {
    let (context, room) = (subject.context(), subject.room());
    if tokens > context {
        return Some(format!("the context has {context} tokens"));
    }
    let taken = sequences * tokens.next_multiple_of(subject.page());
    (taken > room).then(|| format!("there is a KV cache for {room} tokens"))
}

/// Bytes of weights that a pass of decoding reads.
fn weight_bytes(program: &Program) -> f64 {
    let shape = PassShape { rows: 1, logit_rows: 1, context: 1 };
    program.pass_cost(shape).weight_bytes as f64
}

#[cfg(feature = "cuda")]
fn predicted(program: &Program, sequences: usize, depth: usize) -> Option<f64> {
    use m40_gpu::predict::{M40, Slots, predict};
    let prediction = predict(program, sequences, depth, &Slots::of_this_build(), &M40).ok()?;
    Some(prediction.tokens_per_second())
}

#[cfg(feature = "cuda")]
fn predicted_prompt(program: &Program, tokens: usize) -> Option<f64> {
    use m40_gpu::predict::{M40, Slots, predict_prompt};
    let prediction = predict_prompt(program, tokens, &Slots::of_this_build(), &M40).ok()?;
    Some(prediction.tokens_per_second())
}

#[cfg(not(feature = "cuda"))]
fn predicted_prompt(_: &Program, _: usize) -> Option<f64> {
    None
}

#[cfg(not(feature = "cuda"))]
fn predicted(_: &Program, _: usize, _: usize) -> Option<f64> {
    None
}

/// Any token costs the same; these are not all alike.
fn token(i: usize, vocab: usize) -> u32 {
    (i * 7919 % vocab) as u32
}

#[cfg(test)]
mod tests {
    use m40_testkit::gguf::TinyModel;

    use super::figures::CPU_KV_BYTES;
    use super::*;
    use crate::tests::Tiny;

    fn options(depths: &[usize], batches: &[usize]) -> BenchOptions {
        let (depths, batches) = (depths.to_vec(), batches.to_vec());
        let kv_bytes = CPU_KV_BYTES;
        BenchOptions { repeats: 2, prompts: vec![16], tokens: 3, depths, batches, kv_bytes }
    }

    fn lines(options: &BenchOptions) -> Vec<BenchLine> {
        let model = Tiny::new(&TinyModel::new("llama").builder()).load();
        let mut lines = vec![];
        model
            .session()
            .bench(options, &mut |line| {
                lines.push(line);
                ControlFlow::Continue(())
            })
            .unwrap();
        lines
    }

    #[test]
    fn a_spread_has_a_mean_and_ends() {
        assert_eq!(Spread::of(&[1.0, 4.0, 1.0]), Some(Spread { mean: 2.0, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn the_cpu_is_measured_in_all_that_it_has() {
        let lines = lines(&options(&[0, 40], &[1, 3]));
        let rows: Vec<_> = lines
            .into_iter()
            .map(|line| match line {
                BenchLine::Row(row) => row,
                left_out => panic!("{left_out:?}"),
            })
            .collect();
        let names: Vec<_> = rows.iter().map(|row| row.test.to_string()).collect();
        let at_0 = ["prefill 16", "decode 1 at 0", "decode 3 at 0"];
        let at_40 = ["prefill 16 at 40", "decode 1 at 40", "decode 3 at 40"];
        assert_eq!(names, [at_0, at_40].concat());
        for row in &rows {
            let Spread { mean, min, max } = row.value;
            assert!(min > 0.0 && min <= mean && mean <= max, "{row:?}");
            assert_eq!(row.copy_share, None);
        }
        for row in rows.iter().filter(|row| matches!(row.test, BenchTest::Decode { .. })) {
            assert!(row.weights_gb_per_s.unwrap() > 0.0, "{row:?}");
            assert_eq!(row.m40_tokens_per_s.is_some(), cfg!(feature = "cuda"));
        }
        let [one, three] = [&rows[1], &rows[2]];
        assert_eq!(one.per_sequence, Some(one.value.mean));
        assert!((three.per_sequence.unwrap() * 3.0 - three.value.mean).abs() < 1e-6);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let lines = lines(&options(&[1 << 20], &[1]));
        let [BenchLine::LeftOut { test: prompt, .. }, BenchLine::LeftOut { test, why }] =
            &lines[..]
        else {
            panic!("{lines:?}")
        };
        let depth = 1 << 20;
        assert_eq!(*prompt, BenchTest::Prompt { tokens: 16, depth });
        assert_eq!(*test, BenchTest::Decode { tokens: 3, sequences: 1, depth });
        assert!(why.contains("context"), "{why}");
    }

    #[test]
    fn sequences_beyond_the_sessions_memory_take_what_they_are_given() {
        let model = Tiny::new(&TinyModel::new("llama").builder()).load();
        let asked = options(&[0], &[4, 9]);
        let bytes = model.bench_bytes(&asked);
        assert_eq!(bytes, (9 * 64 - 256) * model.info().kv_bytes_per_token);
        let mut session = model.session();
        for (kv_bytes, expected) in [(bytes - 1, 1), (bytes, 0)] {
            let mut left_out = vec![];
            let on_line = &mut |line| {
                left_out.extend(match line {
                    BenchLine::LeftOut { test, .. } => Some(test),
                    BenchLine::Row(_) => None,
                });
                ControlFlow::Continue(())
            };
            let asked = BenchOptions { kv_bytes, ..asked.clone() };
            session.bench(&asked, on_line).unwrap();
            let most = BenchTest::Decode { tokens: 3, sequences: 9, depth: 0 };
            assert_eq!(left_out, vec![most; expected]);
        }
    }

    #[test]
    fn a_listener_that_has_enough_ends_it() {
        let model = Tiny::new(&TinyModel::new("llama").builder()).load();
        let mut lines = 0;
        let on_line = &mut |_| {
            lines += 1;
            ControlFlow::Break(())
        };
        model.session().bench(&options(&[0], &[1, 2, 3]), on_line).unwrap();
        assert_eq!(lines, 1);
    }
}
