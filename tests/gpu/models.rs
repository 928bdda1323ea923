//! Whole models on a device: tiny ones of every architecture against the CPU's oracle.

use std::ops::ControlFlow;
use std::sync::Arc;

use m40_cpu::{ExecutorOptions as CpuOptions, KvCache, Numerics, Row as CpuRow};
use m40_cuda::{ALIGNMENT, Arena, CudaError, Device, KernelSource};
use m40_gguf::{Gguf, TensorType};
use m40_gpu::Sequence;
use m40_gpu::executor::{
    BuildKernels as _, Chosen, Executor, ExecutorOptions, Launches, LoadError, PassError, Plan, Row,
};
use m40_gpu::weights::Loader;
use m40_program::diff::Comparison;
use m40_program::{BuildOptions, KvType, Program, build};
use m40_testkit::gguf::{Noise, TinyModel};
use m40llm::{BenchLine, BenchOptions, BenchTest, bench_executor};

use super::{Gpu, gpu, say};

/// How far logits, of size 2 to 10, may be from the oracle's: keys and values are rounded in both, and
/// where a rounding falls the other way an element differs by 5e-4 of itself in f16.
const TOLERANCE: f32 = 1e-2;

/// The same with int8, where it differs by 8e-3 of the largest one.
const INT8_TOLERANCE: f32 = 5e-2;

pub(super) const LAUNCHES: [Launches; 3] = [Launches::OpByOp, Launches::Recorded, Launches::Whole];

/// Tokens of context: more than a chunk of attention.
const CONTEXT: u32 = 400;

pub(super) struct Model {
    gguf: Arc<Gguf<Vec<u8>>>,
    program: Arc<Program>,
}

impl Model {
    pub(super) fn new(tiny: &TinyModel) -> Self {
        Self::with_kv(tiny, KvType::F16)
    }

    /// With keys and values of this type.
    fn with_kv(tiny: &TinyModel, kv_type: KvType) -> Self {
        let gguf = Gguf::parse(tiny.build()).unwrap_or_else(|error| panic!("{error}"));
        let program = build(&gguf, BuildOptions { kv_type, ..BuildOptions::default() });
        let program = program.unwrap_or_else(|error| panic!("{error}"));
        Self { gguf: Arc::new(gguf), program: Arc::new(program) }
    }

    fn plan(&self, device: &Device, launches: Launches) -> Plan {
        let options = ExecutorOptions { context: CONTEXT, sequences: 40, launches };
        let blocks = device.info().multiprocessors;
        Plan::new(self.program.clone(), options, blocks).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(super) fn load(&self, arena: &Arena, launches: Launches, tokens: usize) -> Executor {
        let plan = self.plan(arena.device(), launches);
        let kv = plan.kv_bytes(tokens);
        self.try_load(arena, plan, kv).unwrap_or_else(|error| panic!("{error}"))
    }

    fn try_load(&self, arena: &Arena, plan: Plan, kv: u64) -> Result<Executor, LoadError> {
        let mut loader = Loader::new(arena.device(), 2)?;
        let on = &mut |_| ControlFlow::Continue(());
        Executor::load(plan, &self.gguf, arena, kv, &mut loader, &mut m40llm::kernel_builder(), on)
    }

    fn oracle_executor(&self) -> m40_cpu::Executor<Vec<u8>> {
        let options = CpuOptions { numerics: Numerics::Oracle, ..CpuOptions::default() };
        let (program, gguf) = (self.program.clone(), self.gguf.clone());
        let executor = m40_cpu::Executor::new(program, gguf, options);
        executor.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Logits after each token, by the oracle.
    fn oracle(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut executor = self.oracle_executor();
        let mut cache: KvCache = executor.cache(tokens.len());
        let logits = executor.forward(&oracle_rows(tokens), &mut [&mut cache]);
        let vocab = self.program.description.vocab;
        logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect()
    }

    /// The hidden state of each token after the last norm, by the oracle.
    pub(super) fn oracle_states(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut executor = self.oracle_executor();
        let mut cache: KvCache = executor.cache(tokens.len());
        let states = executor.hidden(&oracle_rows(tokens), &mut [&mut cache]);
        states.chunks_exact(states.len() / tokens.len()).map(<[f32]>::to_vec).collect()
    }
}

/// A text's rows, each with its result.
fn oracle_rows(tokens: &[u32]) -> Vec<CpuRow> {
    let row = |(position, &token)| CpuRow { token, position, cache: 0, segment: 0, logits: true };
    tokens.iter().enumerate().map(row).collect()
}

pub(super) fn arena(gpu: &Gpu) -> Arena {
    Arena::new(&gpu.device, 256 << 20).unwrap_or_else(|error| panic!("{error}"))
}

/// Types as files have them.
pub(super) fn mixed(architecture: &str) -> TinyModel {
    TinyModel::new(architecture)
        .weights(TensorType::Q4K)
        .weights_of("attn_v", TensorType::Q6K)
        .weights_of("ffn_up", TensorType::Q5_0)
        .weights_of("attn_output", TensorType::F16)
        .embedding(TensorType::Q8_0)
}

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut noise = Noise::new(seed);
    (0..n).map(|_| 6 + noise.below(280) as u32).collect()
}

/// How far two rows are from each other at most.
pub(super) fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(f, e)| f - e);
    differences.fold(0.0, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d.abs()) })
}

fn largest(logits: &[f32]) -> u32 {
    let all = (0..).zip(logits);
    all.fold((0, f32::NEG_INFINITY), |best, (id, x)| if *x > best.1 { (id, *x) } else { best }).0
}

/// Rows of sequence `sequence`, the last with its logits if `last`.
pub(super) fn rows(tokens: &[u32], first: usize, sequence: usize, last: bool) -> Vec<Row> {
    let end = first + tokens.len();
    let row = |(position, &token)| {
        let logits = last && position + 1 == end;
        Row { token, position, sequence, logits }
    };
    (first..).zip(tokens).map(row).collect()
}

pub(super) fn forward(
    executor: &mut Executor,
    rows: &[Row],
    sequences: &mut [&mut Sequence],
) -> Vec<f32> {
    let logits = executor.forward(rows, sequences).unwrap_or_else(|error| panic!("{error}"));
    logits.to_vec()
}

pub(super) fn begin(executor: &Executor) -> Sequence {
    executor.begin().unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn tiny_models_compute_what_the_oracle_does() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    for architecture in TinyModel::architectures() {
        agrees_with_the_oracle(&arena, architecture, &Model::new(&mixed(architecture)), TOLERANCE);
    }
}

#[test]
fn tiny_models_of_int8_and_with_sinks_compute_what_the_oracle_does() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    for architecture in TinyModel::architectures() {
        let tiny = mixed(architecture).sinks(true);
        agrees_with_the_oracle(&arena, architecture, &Model::new(&tiny), TOLERANCE);
        let int8 = Model::with_kv(&tiny, KvType::Int8);
        agrees_with_the_oracle(&arena, &format!("{architecture} in int8"), &int8, INT8_TOLERANCE);
    }
}

fn agrees_with_the_oracle(arena: &Arena, name: &str, model: &Model, tolerance: f32) {
    // A prompt in two pieces, then tokens one by one.
    let text = tokens(300, 1);
    let expected = model.oracle(&text);
    for launches in LAUNCHES {
        let mut executor = model.load(arena, launches, CONTEXT as usize);
        let mut sequence = begin(&executor);
        let mut worst_of_all = 0.0f32;
        let quiet = rows(&text[..9], 0, 0, false);
        assert!(forward(&mut executor, &quiet, &mut [&mut sequence]).is_empty());
        let mut at = 9;
        for size in [251, 1, 1, 1, 30, 1, 1, 1, 1, 1, 1] {
            let rows = rows(&text[at..at + size], at, 0, true);
            let logits = forward(&mut executor, &rows, &mut [&mut sequence]);
            at += size;
            let worst = worst(&logits, &expected[at - 1]);
            assert!(worst < tolerance, "{name}, {launches:?}, {at} tokens: {worst}");
            worst_of_all = worst_of_all.max(worst);
        }
        say(&format!("{name}, {launches:?}: at most {worst_of_all:.1e} off"));
    }
}

#[test]
fn kernels_of_the_same_source_are_loaded_once() {
    let Some(gpu) = gpu() else { return };
    let source = |text| KernelSource { name: "test", text, headers: &[] };
    let one = source("extern \"C\" __global__ void one(int* x) { *x = 1; }\n");
    let other = source("extern \"C\" __global__ void one(int* x) { *x = 2; }\n");
    let mut builder = m40llm::kernel_builder();
    let mut module = |of| builder.build(of, &gpu.device, &["one"]).expect("it is CUDA");
    let [first, second, again] = [module(one), module(other), module(one)];
    assert!(Arc::ptr_eq(&first, &again) && !Arc::ptr_eq(&first, &second));
}

#[test]
fn every_weight_type_runs_through_a_whole_model() {
    use TensorType::*;
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let types = [
        F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, IQ4NL, IQ4XS, MXFP4,
    ];
    for ty in types {
        // Wide enough that rows are split between warps.
        let tiny = TinyModel::new("qwen3").weights(ty).hidden(1024).feed_forward(2048);
        let model = Model::new(&tiny.heads(16, 4, 64));
        let text = tokens(20, 2);
        let expected = model.oracle(&text);
        let mut executor = model.load(&arena, Launches::OpByOp, 64);
        let mut sequence = begin(&executor);
        for (from, to) in [(0, 17), (17, 18), (18, 19), (19, 20)] {
            let rows = rows(&text[from..to], from, 0, true);
            let logits = forward(&mut executor, &rows, &mut [&mut sequence]);
            let worst = worst(&logits, &expected[to - 1]);
            assert!(worst < TOLERANCE, "{ty} after {to} tokens: {worst}");
        }
    }
}

#[test]
fn a_row_is_the_same_alone_and_beside_others_however_it_is_launched() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    same_alone_and_beside_others(&arena, &Model::new(&mixed("gemma2")));
    let int8 = Model::with_kv(&mixed("qwen3").sinks(true), KvType::Int8);
    same_alone_and_beside_others(&arena, &int8);
}

fn same_alone_and_beside_others(arena: &Arena, model: &Model) {
    let texts: Vec<_> = (0..10).map(|seed| tokens(3 + seed as usize, 10 + seed)).collect();
    let mut all: Vec<Vec<Vec<f32>>> = vec![];
    for launches in LAUNCHES {
        for together in [10, 5, 3, 1] {
            let mut executor = model.load(arena, launches, 1000);
            let vocab = model.program.description.vocab;
            let mut found = vec![];
            for texts in texts.chunks(together) {
                let mut sequences: Vec<_> = texts.iter().map(|_| begin(&executor)).collect();
                let mut logits = vec![vec![]; texts.len()];
                for position in 0..12 {
                    let alive = texts.iter().enumerate().filter(|(_, text)| position < text.len());
                    let rows: Vec<_> = alive
                        .map(|(sequence, text)| {
                            let token = text[position];
                            Row { token, position, sequence, logits: true }
                        })
                        .collect();
                    let mut sequences: Vec<_> = sequences.iter_mut().collect();
                    let found = forward(&mut executor, &rows, &mut sequences);
                    for (row, found) in rows.iter().zip(found.chunks_exact(vocab)) {
                        logits[row.sequence].extend_from_slice(found);
                    }
                }
                found.extend(logits);
            }
            all.push(found);
        }
    }
    for (i, found) in all.iter().enumerate() {
        assert!(*found == all[0], "way {i} differs");
    }
}

#[test]
fn passes_that_feed_themselves_choose_what_single_ones_do() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let model = Model::new(&mixed("llama"));
    let mut all: Vec<Vec<Vec<u32>>> = vec![];
    for (launches, cut) in [
        (Launches::OpByOp, vec![1; 24]),
        (Launches::OpByOp, vec![20, 4]),
        (Launches::Whole, vec![1; 24]),
        (Launches::Whole, vec![3, 20, 1]),
    ] {
        let mut executor = model.load(&arena, launches, 1000);
        let mut texts: Vec<_> = [7, 8, 9].map(|token| vec![token]).into();
        let mut sequences: Vec<_> = texts.iter().map(|_| begin(&executor)).collect();
        for passes in cut {
            let rows: Vec<_> = (0..3)
                .map(|sequence| {
                    let (token, position) =
                        (*texts[sequence].last().expect("it has begun"), sequences[sequence].len());
                    Row { token, position, sequence, logits: false }
                })
                .collect();
            let mut sequences: Vec<_> = sequences.iter_mut().collect();
            let chosen = executor.choose(&rows, &mut sequences, passes);
            let chosen: Vec<Chosen> = chosen.unwrap_or_else(|error| panic!("{error}"));
            for pass in chosen.chunks_exact(3) {
                for (text, chosen) in texts.iter_mut().zip(pass) {
                    assert!(chosen.probability > 0.0);
                    text.push(chosen.token);
                }
            }
        }
        all.push(texts);
    }
    let alone = &all[0];
    for text in alone {
        let expected = model.oracle(&text[..24]);
        for (logits, token) in expected.iter().zip(&text[1..]) {
            let best = logits[largest(logits) as usize];
            assert!(
                best - logits[*token as usize] < TOLERANCE,
                "a token was chosen that is none of the likeliest"
            );
        }
    }
    for (i, texts) in all.iter().enumerate() {
        assert_eq!(texts, alone, "way {i}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_memory_comes_back() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    let free = arena.usage().free;
    let model = Model::new(&mixed("qwen2"));
    {
        let plan = model.plan(&gpu.device, Launches::OpByOp);
        let fixed = plan.fixed_bytes().unwrap_or_else(|error| panic!("{error}"));
        let kv = plan.kv_bytes(64).next_multiple_of(ALIGNMENT);
        assert_eq!(plan.kv_bytes(33), plan.kv_bytes(64));
        assert!(matches!(model.try_load(&arena, plan.clone(), 5), Err(LoadError::NoCache { .. })));
        let mut executor = model.load(&arena, Launches::OpByOp, 64);
        let taken = free - arena.usage().free;
        assert_eq!(taken, fixed + kv, "{fixed} and {kv} were planned");
        assert_eq!(executor.pages(), (2, 2));
        let mut sequence = begin(&executor);
        let text = tokens(90, 3);
        let refused = |executor: &mut Executor, sequence: &mut Sequence, rows: &[Row]| {
            executor.forward(rows, &mut [sequence]).map(|logits| logits.len())
        };
        let found = refused(&mut executor, &mut sequence, &rows(&text, 0, 0, true));
        assert!(matches!(found, Err(PassError::Pages(_))), "{found:?}");
        assert_eq!((sequence.len(), executor.pages()), (0, (2, 2)));
        let found = refused(&mut executor, &mut sequence, &rows(&text[..2], 1, 0, true));
        assert!(matches!(found, Err(PassError::Position { position: 1, len: 0 })), "{found:?}");
        let found = refused(&mut executor, &mut sequence, &rows(&[u32::MAX], 0, 0, true));
        assert!(matches!(found, Err(PassError::Token { .. })), "{found:?}");
        let found = refused(&mut executor, &mut sequence, &rows(&text[..40], 0, 0, true));
        assert!(found.is_ok(), "{found:?}");
        // What is forgotten is computed again, to the same bits as in a pass like the first.
        sequence.truncate(0);
        assert_eq!(executor.pages(), (2, 2));
        let again = refused(&mut executor, &mut sequence, &rows(&text[..40], 0, 0, true));
        assert!(again.is_ok(), "{again:?}");
        drop(sequence);
        assert_eq!(executor.pages(), (2, 2));
    }
    assert_eq!(arena.usage().free, free);
}

#[test]
fn every_op_that_can_be_seen_is_the_oracles() {
    let Some(gpu) = gpu() else { return };
    let arena = arena(&gpu);
    for architecture in TinyModel::architectures() {
        let model = Model::new(&mixed(architecture));
        for launches in LAUNCHES {
            let mut executor = model.load(&arena, launches, CONTEXT as usize);
            let mut sequence = executor.begin().unwrap();
            let mut oracle = model.oracle_executor();
            let mut cache = oracle.cache(4);
            let mut comparison = Comparison::new();
            for (position, token) in tokens(4, 31).into_iter().enumerate() {
                comparison.begin_pass();
                let row = CpuRow { token, position, cache: 0, segment: 0, logits: true };
                oracle.forward_observed(&[row], &mut [&mut cache], &mut |output| {
                    comparison.expect(output);
                    ControlFlow::Continue(())
                });
                let row = Row { token, position, sequence: 0, logits: true };
                let observed =
                    executor.decode_observed(&[row], &mut [&mut sequence], &mut |output| {
                        comparison.find(output);
                        ControlFlow::Continue(())
                    });
                observed.unwrap_or_else(|error| panic!("{error}"));
            }
            let first = comparison.departs(2e-3);
            let first =
                first.map(|(op, ..)| model.program.text_of(&model.program.ops[op]).to_string());
            assert_eq!(first, None, "{architecture}, {launches:?}");
            assert!(comparison.differences().count() > 5, "{architecture}");
        }
    }
}

#[test]
fn every_figure_of_a_benchmark_is_measured() {
    let Some(gpu) = gpu() else { return };
    let arena = Arena::new(&gpu.device, 1 << 30).unwrap();
    let model = Model::new(&mixed("llama"));
    let options = BenchOptions {
        repeats: 2,
        prompts: vec![64],
        tokens: 4,
        depths: vec![0, 300, 100_000],
        batches: vec![1, 9],
        ..BenchOptions::default()
    };
    for launches in LAUNCHES {
        let mut executor = model.load(&arena, launches, 9 * CONTEXT as usize);
        let mut rows = vec![];
        let mut left_out = vec![];
        let on_line = &mut |line| {
            match line {
                BenchLine::Row(row) => rows.push(row),
                BenchLine::LeftOut { test, .. } => left_out.push(test.to_string()),
            }
            ControlFlow::Continue(())
        };
        bench_executor(&mut executor, &options, on_line).unwrap_or_else(|error| panic!("{error}"));
        let names: Vec<_> = rows.iter().map(|row| row.test.to_string()).collect();
        assert_eq!(names[..2], ["copy", "barrier"]);
        assert_eq!(names[2..5], ["prefill 64", "decode 1 at 0", "decode 9 at 0"]);
        assert_eq!(names[5..], ["prefill 64 at 300", "decode 1 at 300", "decode 9 at 300"]);
        let deep = ["prefill 64 at 100000", "decode 1 at 100000", "decode 9 at 100000"];
        assert_eq!(left_out, deep);
        rows.iter().for_each(|row| say(&format!("{launches:?}: {row:?}")));
        assert!(rows.iter().all(|row| row.value.mean > 0.0), "{rows:?}");
        let mut decodes = rows.iter().filter(|row| matches!(row.test, BenchTest::Decode { .. }));
        assert!(decodes.all(|row| row.copy_share.is_some()), "{rows:?}");
        // Its sequences have gone back.
        assert_eq!(executor.pages().0, executor.pages().1);
    }
}

#[test]
fn a_model_takes_one_piece_whose_place_the_next_can_have() {
    let Some(gpu) = gpu() else { return };
    let model = Model::new(&mixed("qwen2"));
    let plan = model.plan(&gpu.device, Launches::OpByOp);
    let [small, large] = [32, 64].map(|tokens| plan.kv_bytes(tokens).next_multiple_of(ALIGNMENT));
    let fixed = plan.fixed_bytes().unwrap_or_else(|error| panic!("{error}"));
    let arena =
        Arena::new(&gpu.device, 3 * (fixed + small)).unwrap_or_else(|error| panic!("{error}"));
    let mut models: Vec<_> = (0..3).map(|_| model.load(&arena, Launches::OpByOp, 32)).collect();
    assert_eq!(arena.usage().free, 0);
    drop(models.remove(1));
    assert_eq!((arena.usage().free, arena.usage().largest), (fixed + small, fixed + small));
    drop(models.remove(0));
    // Two neighbours are one piece; one alone has no place for more.
    assert_eq!(arena.usage().largest, 2 * (fixed + small));
    let between = model.load(&arena, Launches::OpByOp, 64);
    let refused = model.try_load(&arena, plan.clone(), small).map(|_| ());
    let Err(LoadError::Cuda(CudaError::ArenaExhausted { asked, largest, .. })) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!((asked, largest), (fixed + small, fixed + 2 * small - large));
    drop(between);
    assert!(model.try_load(&arena, plan, large).is_ok());
}
