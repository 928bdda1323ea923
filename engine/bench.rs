//! How fast a loaded model is: prompts, tokens of several sequences at several depths, and what
//! bounds them.
//!
//! Every figure is measured several times, warm: what comes first is not counted. Next to decoding
//! stands what a Tesla M40 will make of it, by `m40_gpu::predict`: a prediction from machine code.

use std::fmt;
use std::ops::ControlFlow;
#[cfg(feature = "cuda")]
use std::sync::Arc;
use std::time::{Duration, Instant};

use m40_cpu::{Executor, KvCache, Row as CpuRow};
use m40_program::Program;
use m40_program::cost::PassShape;
use memmap2::Mmap;

use crate::cpu::SIDE_BY_SIDE;
use crate::generate::GenerateError;
use crate::model::Model;

/// Bytes of keys and values that sequences may take on a CPU unless that is said: deep ones of large models
/// would take all memory.
const CPU_KV_BYTES: u64 = 2 << 30;

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// How often each figure is measured, at least once.
    pub repeats: usize,
    /// Tokens of prompts, each at least one.
    pub prompts: Vec<usize>,
    /// Tokens that each sequence is given at a time, at least one.
    pub tokens: usize,
    /// Tokens that sequences hold before.
    pub depths: Vec<usize>,
    /// Sequences at a time.
    pub batches: Vec<usize>,
    /// Bytes of keys and values that sequences may take on a CPU, beyond those of the session that is
    /// measured in. What takes more is left out.
    pub kv_bytes: u64,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            repeats: 5,
            prompts: vec![512],
            tokens: 32,
            depths: vec![0, 4096],
            batches: vec![1, 2, 4, 8, 16, 32],
            kv_bytes: CPU_KV_BYTES,
        }
    }
}

impl BenchOptions {
    /// Tokens of KV cache, in pages of `page`, that the largest of all takes that fits a context.
    pub(crate) fn kv_tokens(&self, context: usize, page: usize) -> usize {
        let depths = self.depths.iter().map(|depth| depth.saturating_add(self.tokens.max(1)));
        let deepest = depths.filter(|tokens| *tokens <= context).max().unwrap_or(0);
        let sequences = self.batches.iter().copied().max().unwrap_or(0);
        deepest.next_multiple_of(page).saturating_mul(sequences)
    }
}

/// A figure measured several times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// On average.
    pub mean: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of these figures; `None` of none.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mean = figures.iter().sum::<f64>() / figures.len() as f64;
        let min = figures.iter().copied().reduce(f64::min)?;
        let max = figures.iter().copied().reduce(f64::max)?;
        Some(Self { mean, min, max })
    }
}

/// What a figure is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchTest {
    /// A copy on the device, which bounds how fast it reads weights.
    Copy,
    /// A barrier across the device.
    Barrier,
    /// Something that its caller measures beside a model, by its name.
    Beside(&'static str),
    /// A prompt, in a sequence of its own.
    Prompt {
        /// Its tokens.
        tokens: usize,
        /// Tokens that the sequence holds before.
        depth: usize,
    },
    /// Tokens that sequences are given one after another.
    Decode {
        /// Tokens of each sequence.
        tokens: usize,
        /// Sequences at a time.
        sequences: usize,
        /// Tokens that each holds before.
        depth: usize,
    },
}

/// As in `prefill 512`, `prefill 512 at 4096` and `decode 8 at 4096`, which are 8 sequences.
impl fmt::Display for BenchTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy => f.write_str("copy"),
            Self::Barrier => f.write_str("barrier"),
            Self::Beside(name) => f.write_str(name),
            Self::Prompt { tokens, depth: 0 } => write!(f, "prefill {tokens}"),
            Self::Prompt { tokens, depth } => write!(f, "prefill {tokens} at {depth}"),
            Self::Decode { sequences, depth, .. } => write!(f, "decode {sequences} at {depth}"),
        }
    }
}

/// A line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchRow {
    /// What was measured.
    pub test: BenchTest,
    /// Unit of the figure: `tokens/s` of all sequences together, `GB/s` or `us`.
    pub unit: &'static str,
    /// The figure.
    pub value: Spread,
    /// Tokens a second of each sequence.
    pub per_sequence: Option<f64>,
    /// Weights read, GB/s.
    pub weights_gb_per_s: Option<f64>,
    /// That as a share of what a copy moves.
    pub copy_share: Option<f64>,
    /// Tokens a second, of all sequences, that are predicted for a Tesla M40.
    pub m40_tokens_per_s: Option<f64>,
}

impl BenchRow {
    /// A figure and nothing beside it.
    pub fn plain(test: BenchTest, unit: &'static str, value: Spread) -> Self {
        Self {
            test,
            unit,
            value,
            per_sequence: None,
            weights_gb_per_s: None,
            copy_share: None,
            m40_tokens_per_s: None,
        }
    }
}

/// What a benchmark has to tell.
#[derive(Clone, Debug, PartialEq)]
pub enum BenchLine {
    /// Something was measured.
    Row(BenchRow),
    /// Something does not fit the model's context or its memory.
    LeftOut {
        /// What.
        test: BenchTest,
        /// Why.
        why: String,
    },
}

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

/// A model on the CPU.
pub(crate) struct CpuSubject<'a> {
    executor: &'a mut Executor<Mmap>,
    context: usize,
    kv_bytes: u64,
    caches: Vec<KvCache>,
}

impl<'a> CpuSubject<'a> {
    /// With memory for one sequence of `context` tokens, and so many bytes more.
    pub(crate) fn new(executor: &'a mut Executor<Mmap>, context: usize, kv_bytes: u64) -> Self {
        Self { executor, context, kv_bytes, caches: vec![] }
    }
}

impl Subject for CpuSubject<'_> {
    fn program(&self) -> &Program {
        self.executor.program()
    }

    fn context(&self) -> usize {
        self.context
    }

    fn room(&self) -> usize {
        let bytes = self.program().kv_bytes_per_token() as u64;
        let more = self.kv_bytes.checked_div(bytes).unwrap_or(u64::MAX);
        let more = usize::try_from(more).unwrap_or(usize::MAX);
        self.context.next_multiple_of(self.page()).saturating_add(more)
    }

    fn page(&self) -> usize {
        m40_cpu::kv::PAGE_TOKENS
    }

    fn passes(&self, sequences: usize) -> usize {
        sequences.div_ceil(SIDE_BY_SIDE)
    }

    fn prompt(&mut self, tokens: &[u32], depth: usize) -> Result<Duration, GenerateError> {
        self.caches.clear();
        let mut cache = self.executor.cache(depth + tokens.len());
        let row = |position, token| CpuRow {
            token,
            position,
            cache: 0,
            segment: 0,
            logits: position + 1 == depth + tokens.len(),
        };
        // The first pass makes the pages of all positions before its own, which is no part of a prompt.
        if let Some(last) = depth.checked_sub(1) {
            self.executor.forward(&[row(last, 0)], &mut [&mut cache]);
        }
        let begun = Instant::now();
        let rows: Vec<_> = (depth..).zip(tokens).map(|(at, &token)| row(at, token)).collect();
        for rows in rows.chunks(crate::backend::PROMPT_ROWS) {
            self.executor.forward(rows, &mut [&mut cache]);
        }
        Ok(begun.elapsed())
    }

    fn begin(&mut self, sequences: usize, _depth: usize) -> Result<(), GenerateError> {
        self.caches.clear();
        // The first pass makes the pages of all positions before its own, full of zeros.
        self.caches.extend((0..sequences).map(|_| self.executor.cache(self.context)));
        Ok(())
    }

    fn decode(&mut self, tokens: usize, depth: usize) -> Result<Duration, GenerateError> {
        let vocab = self.program().description.vocab;
        let mut caches: Vec<_> = self.caches.iter_mut().collect();
        let begun = Instant::now();
        for position in depth..depth + tokens {
            let row = |cache| {
                let token = token(position + cache, vocab);
                CpuRow { token, position, cache, segment: 0, logits: true }
            };
            // As sessions would, for which the model has its working memory.
            for caches in caches.chunks_mut(SIDE_BY_SIDE) {
                let rows: Vec<_> = (0..caches.len()).map(row).collect();
                self.executor.forward(&rows, caches);
            }
        }
        let time = begun.elapsed();
        self.caches.iter_mut().for_each(|cache| cache.truncate(depth));
        Ok(time)
    }

    fn copy_rate(&mut self) -> Result<Option<f64>, GenerateError> {
        Ok(None)
    }

    fn barrier(&mut self) -> Result<Option<Duration>, GenerateError> {
        Ok(None)
    }
}

#[cfg(feature = "cuda")]
pub(crate) mod card {
    //! A model on a GPU.

    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use m40_gpu::Sequence;
    use m40_gpu::executor::{Executor, Row, Unattended};
    use m40_gpu::ops::PAGE_TOKENS;
    use m40_program::Program;

    use super::{Subject, token};
    use crate::generate::GenerateError;
    use crate::gpu::failed;
    use crate::pulse::Pulse;

    /// Executor, and the sequences that are measured.
    pub(crate) struct CardSubject<'a> {
        executor: &'a mut Executor,
        sequences: Vec<Sequence>,
        pulse: Arc<Pulse>,
    }

    impl<'a> CardSubject<'a> {
        /// Each measurement is a step of `pulse`.
        pub(crate) fn new(executor: &'a mut Executor, pulse: Arc<Pulse>) -> Self {
            Self { executor, sequences: vec![], pulse }
        }

        fn sequence(&self) -> Result<Sequence, GenerateError> {
            self.executor
                .begin()
                .map_err(|error| GenerateError::TooManySessions { most: error.most })
        }
    }

    impl Subject for CardSubject<'_> {
        fn program(&self) -> &Program {
            self.executor.program()
        }

        fn context(&self) -> usize {
            self.executor.lowered().target.context as usize
        }

        fn room(&self) -> usize {
            let held: usize = self.sequences.iter().map(Sequence::pages).sum();
            (self.executor.pages().0 + held) * PAGE_TOKENS
        }

        fn page(&self) -> usize {
            PAGE_TOKENS
        }

        fn passes(&self, sequences: usize) -> usize {
            sequences.div_ceil(self.executor.rows_at_once(sequences).max(1))
        }

        fn prompt(&mut self, tokens: &[u32], depth: usize) -> Result<Duration, GenerateError> {
            self.pulse.step();
            self.sequences.clear();
            let mut sequence = self.sequence()?;
            self.executor.pretend(&mut sequence, depth).map_err(|error| failed(&error))?;
            let row = |(i, &token)| {
                let logits = i == tokens.len() - 1;
                Row { token, position: depth + i, sequence: 0, logits }
            };
            let rows: Vec<_> = tokens.iter().enumerate().map(row).collect();
            let begun = Instant::now();
            self.executor.forward(&rows, &mut [&mut sequence]).map_err(|error| failed(&error))?;
            Ok(begun.elapsed())
        }

        fn begin(&mut self, sequences: usize, depth: usize) -> Result<(), GenerateError> {
            self.pulse.step();
            self.sequences.clear();
            for _ in 0..sequences {
                let mut sequence = self.sequence()?;
                self.executor.pretend(&mut sequence, depth).map_err(|error| failed(&error))?;
                self.sequences.push(sequence);
            }
            Ok(())
        }

        /// More sequences than a pass has rows go through the card in groups, one after another.
        fn decode(&mut self, tokens: usize, depth: usize) -> Result<Duration, GenerateError> {
            self.pulse.step();
            let vocab = self.program().description.vocab;
            let begun = Instant::now();
            let rows = self.executor.rows_at_once(self.sequences.len()).max(1);
            for sequences in self.sequences.chunks_mut(rows) {
                let row = |sequence| {
                    let token = token(sequence, vocab);
                    Row { token, position: depth, sequence, logits: false }
                };
                let rows: Vec<_> = (0..sequences.len()).map(row).collect();
                let mut sequences: Vec<_> = sequences.iter_mut().collect();
                self.executor
                    .choose_attended(&rows, &mut sequences, tokens as u32, &mut Unattended)
                    .map_err(|error| failed(&error))?;
            }
            let time = begun.elapsed();
            for sequence in &mut self.sequences {
                // Full pages go as a whole.
                let lost = depth - sequence.truncate(depth);
                self.executor.pretend(sequence, lost).map_err(|error| failed(&error))?;
            }
            Ok(time)
        }

        fn copy_rate(&mut self) -> Result<Option<f64>, GenerateError> {
            self.executor.copy_rate().map_err(|error| failed(&error))
        }

        fn barrier(&mut self) -> Result<Option<Duration>, GenerateError> {
            self.executor.barrier_time().map_err(|error| failed(&error))
        }
    }
}

#[cfg(test)]
mod tests {
    use m40_testkit::gguf::TinyModel;

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
