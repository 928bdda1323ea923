//! What every pass promises, on tiny models of every architecture: a row's logits are the same to
//! the last bit however its sequence is cut into passes, whatever else is in a pass, on any number
//! of threads; and the fast path stays near the oracle.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::ops::ControlFlow;
use std::sync::Arc;

use m40_cpu::{Executor, ExecutorOptions, Isa, KvCache, Numerics, PrepareError, Row};
use m40_gguf::{Gguf, TensorType};
use m40_program::{BuildOptions, Op, Program, build};
use m40_testkit::gguf::{Noise, TinyModel};

type TinyExecutor = Executor<Vec<u8>>;

/// A tiny model, opened once and run in several ways.
struct Tiny {
    program: Arc<Program>,
    gguf: Arc<Gguf<Vec<u8>>>,
}

impl Tiny {
    fn new(model: &TinyModel) -> Self {
        let gguf = Gguf::parse(model.build()).unwrap();
        let program = build(&gguf, BuildOptions::default()).unwrap();
        Self { program: Arc::new(program), gguf: Arc::new(gguf) }
    }

    fn executor(&self, options: ExecutorOptions) -> TinyExecutor {
        Executor::new(Arc::clone(&self.program), Arc::clone(&self.gguf), options).unwrap()
    }

    fn fast(&self, isa: Isa, threads: usize) -> TinyExecutor {
        let (threads, isa) = (Some(threads), Some(isa));
        self.executor(ExecutorOptions { threads, isa, numerics: Numerics::Fast })
    }

    fn oracle(&self) -> TinyExecutor {
        let numerics = Numerics::Oracle;
        self.executor(ExecutorOptions { threads: Some(2), numerics, isa: None })
    }
}

/// Every architecture with quantised weights of several types, as real files have them.
fn quantised() -> impl Iterator<Item = Tiny> {
    TinyModel::architectures().into_iter().map(|architecture| {
        let model = TinyModel::new(architecture)
            .weights(TensorType::Q4K)
            .weights_of("ffn_down", TensorType::Q6K)
            .weights_of("attn_output", TensorType::F16)
            .embedding(TensorType::Q8_0);
        Tiny::new(&model)
    })
}

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut noise = Noise::new(seed);
    (0..n).map(|_| 6 + noise.below(280) as u32).collect()
}

/// Rows of one sequence, all with logits.
fn rows(tokens: &[u32], from: usize, cache: usize) -> Vec<Row> {
    let row = |(position, &token)| Row { token, position, cache, segment: 0, logits: true };
    (from..).zip(tokens).map(row).collect()
}

/// Logits after each token, from passes of these many rows (the last size repeats).
fn feed(
    executor: &mut TinyExecutor,
    cache: &mut KvCache,
    tokens: &[u32],
    mut sizes: impl FnMut() -> usize,
) -> Vec<Vec<f32>> {
    let vocab = executor.program().description.vocab;
    let mut all = vec![];
    let mut rest = tokens;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(sizes().min(rest.len()));
        let rows = rows(now, cache.len(), 0);
        let logits = executor.forward(&rows, &mut [&mut *cache]);
        all.extend(logits.chunks_exact(vocab).map(<[f32]>::to_vec));
        rest = later;
    }
    all
}

/// Logits after each token, in one pass over a fresh cache.
fn at_once(executor: &mut TinyExecutor, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut cache = executor.cache(tokens.len());
    feed(executor, &mut cache, tokens, || tokens.len())
}

fn same(found: &[Vec<f32>], expected: &[Vec<f32>], what: impl Fn() -> String) {
    assert_eq!(found.len(), expected.len(), "{}", what());
    for (position, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(found == expected, "{}: row {position} differs", what());
    }
}

fn worst(found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().flatten().zip(expected.iter().flatten()).map(|(f, e)| f - e);
    differences.fold(0.0, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d.abs()) })
}

#[test]
fn a_row_is_the_same_in_passes_of_any_size_on_any_number_of_threads() {
    let tokens = tokens(40, 1);
    for tiny in quantised() {
        for isa in Isa::available() {
            let expected = at_once(&mut tiny.fast(isa, 1), &tokens);
            assert!(expected.iter().flatten().all(|logit| logit.is_finite()));
            for threads in [1, 2, 3] {
                let mut executor = tiny.fast(isa, threads);
                let what = |how| {
                    let name = &tiny.program.description.architecture;
                    format!("{name} {how} on {isa}, {threads} threads")
                };
                same(&at_once(&mut executor, &tokens), &expected, || what("at once"));
                for size in [1, 7] {
                    let mut cache = executor.cache(tokens.len());
                    let found = feed(&mut executor, &mut cache, &tokens, || size);
                    same(&found, &expected, || what("in pieces"));
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_beside_rows_of_other_sequences() {
    let sequences = [tokens(23, 2), tokens(9, 3), tokens(31, 4)];
    for tiny in quantised() {
        for isa in Isa::available() {
            let expected: Vec<_> =
                sequences.iter().map(|tokens| at_once(&mut tiny.fast(isa, 1), tokens)).collect();
            for threads in [1, 3] {
                let mut executor = tiny.fast(isa, threads);
                let found = side_by_side(&mut executor, &sequences, [4, 1, 9]);
                for ((found, expected), i) in found.iter().zip(&expected).zip(0..) {
                    let name = &tiny.program.description.architecture;
                    same(found, expected, || format!("{name} on {isa}, sequence {i}"));
                }
            }
        }
    }
}

/// Feeds three sequences together, so many rows of each in a pass, until all have ended.
fn side_by_side(
    executor: &mut TinyExecutor,
    sequences: &[Vec<u32>; 3],
    sizes: [usize; 3],
) -> [Vec<Vec<f32>>; 3] {
    let vocab = executor.program().description.vocab;
    let mut caches = [0, 1, 2].map(|_| executor.cache(40));
    let mut found = [vec![], vec![], vec![]];
    loop {
        let mut pass = vec![];
        for (i, tokens) in sequences.iter().enumerate() {
            let from = caches[i].len();
            let to = tokens.len().min(from + sizes[i]);
            pass.extend(rows(&tokens[from..to], from, i));
        }
        if pass.is_empty() {
            return found;
        }
        // Rows of different sequences may alternate.
        pass.sort_by_key(|row| (row.position % sizes[row.cache], row.cache));
        let mut caches = caches.each_mut();
        let logits = executor.forward(&pass, &mut caches);
        for (row, logits) in pass.iter().zip(logits.chunks_exact(vocab)) {
            found[row.cache].push(logits.to_vec());
        }
    }
}

#[test]
fn logits_come_for_the_rows_that_want_them_in_order() {
    let tokens = tokens(12, 5);
    for tiny in quantised() {
        let mut executor = tiny.fast(Isa::detect(), 2);
        let expected = at_once(&mut executor, &tokens);
        let mut cache = executor.cache(tokens.len());
        let mut pass = rows(&tokens, 0, 0);
        pass.iter_mut().for_each(|row| row.logits = matches!(row.position, 2 | 3 | 11));
        let vocab = tiny.program.description.vocab;
        let logits = executor.forward(&pass, &mut [&mut cache]);
        let found: Vec<_> = logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect();
        let wanted = [2, 3, 11].map(|i| expected[i].clone());
        same(&found, &wanted, || tiny.program.description.architecture.clone());
    }
}

#[test]
fn a_pass_without_logits_fills_the_cache_all_the_same() {
    let tokens = tokens(20, 6);
    for tiny in quantised() {
        let mut executor = tiny.fast(Isa::detect(), 2);
        let expected = at_once(&mut executor, &tokens);
        let mut cache = executor.cache(tokens.len());
        let mut quiet = rows(&tokens[..15], 0, 0);
        quiet.iter_mut().for_each(|row| row.logits = false);
        assert!(executor.forward(&quiet, &mut [&mut cache]).is_empty());
        assert_eq!(cache.len(), 15);
        let found = feed(&mut executor, &mut cache, &tokens[15..], || 5);
        same(&found, &expected[15..], || tiny.program.description.architecture.clone());
    }
}

#[test]
fn a_pass_of_no_rows_does_nothing() {
    for tiny in quantised() {
        for mut executor in [tiny.fast(Isa::detect(), 2), tiny.oracle()] {
            let mut cache = executor.cache(4);
            assert!(executor.forward(&[], &mut [&mut cache]).is_empty());
            assert!(cache.is_empty());
        }
    }
}

#[test]
fn what_follows_a_truncated_cache_is_as_if_it_had_never_been_longer() {
    let (start, old, new) = (tokens(70, 7), tokens(80, 8), tokens(30, 9));
    for tiny in quantised() {
        let mut executor = tiny.fast(Isa::detect(), 2);
        let whole = [start.clone(), new.clone()].concat();
        let expected = at_once(&mut executor, &whole);
        let mut cache = executor.cache(256);
        feed(&mut executor, &mut cache, &start, || 70);
        feed(&mut executor, &mut cache, &old, || 80);
        let bytes = cache.bytes();
        cache.truncate(200);
        assert_eq!(cache.len(), 150, "a longer length changes nothing");
        cache.truncate(start.len());
        assert_eq!(cache.len(), start.len());
        assert!(cache.bytes() < bytes, "pages are freed");
        let found = feed(&mut executor, &mut cache, &new, || 11);
        same(&found, &expected[start.len()..], || tiny.program.description.architecture.clone());
    }
}

#[test]
fn windows_hold_across_pages_and_spans() {
    let tokens = tokens(330, 10);
    // Ending inside a page, and beyond a span of 256 positions.
    for window in [70, 300] {
        // Both a local and a global layer.
        let model = TinyModel::new("gemma2").context(512).sliding_window(window);
        let tiny = Tiny::new(&model);
        let oracle = at_once(&mut tiny.oracle(), &tokens);
        for isa in Isa::available() {
            let expected = at_once(&mut tiny.fast(isa, 1), &tokens);
            let worst = worst(&expected, &oracle);
            assert!(worst < 1e-2, "window {window} on {isa}: {worst} from the oracle");
            let mut executor = tiny.fast(isa, 3);
            let mut cache = executor.cache(512);
            // Large passes share rows between threads; single rows share spans.
            let mut count = 0;
            let sizes = || {
                count += 1;
                if count > 2 { 1 } else { 120 }
            };
            let found = feed(&mut executor, &mut cache, &tokens, sizes);
            same(&found, &expected, || format!("window {window} on {isa}"));
        }
    }
}

#[test]
fn nothing_before_the_window_matters() {
    let tokens = tokens(280, 11);
    for window in [1, 64, 100] {
        let model = TinyModel::new("llama").layers(1).context(512).sliding_window(window as u32);
        let tiny = Tiny::new(&model);
        for mut executor in [tiny.fast(Isa::detect(), 2), tiny.oracle()] {
            let expected = at_once(&mut executor, &tokens);
            for position in [window, 279] {
                let first = position + 1 - window;
                let mut other = tokens.clone();
                other[..first].iter_mut().for_each(|id| *id = 291 - *id);
                let unseen = at_once(&mut executor, &other[..=position]);
                assert!(unseen[position] == expected[position], "window {window} at {position}");
                other[first] = tokens[first] % 280 + 7;
                let seen = at_once(&mut executor, &other[..=position]);
                assert!(seen[position] != expected[position], "window {window} at {position}");
            }
        }
    }
}

#[test]
fn without_quantisation_the_fast_path_is_the_oracle_but_for_rounding() {
    let tokens = tokens(48, 12);
    for architecture in TinyModel::architectures() {
        let tiny = Tiny::new(&TinyModel::new(architecture).layers(3));
        let expected = at_once(&mut tiny.oracle(), &tokens);
        for isa in Isa::available() {
            let worst = worst(&at_once(&mut tiny.fast(isa, 2), &tokens), &expected);
            // Keys and values are stored in f16: a rounding that falls the other way is worth 5e-4
            // of an element.
            assert!(worst < 2e-3, "{architecture} on {isa}: {worst}");
        }
    }
}

#[test]
fn every_weight_type_runs_through_a_whole_model() {
    use TensorType::*;
    let types = [
        F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, IQ4NL, IQ4XS, MXFP4,
    ];
    let tokens = tokens(20, 13);
    for ty in types {
        let tiny = Tiny::new(&TinyModel::new("qwen3").weights(ty));
        let expected = at_once(&mut tiny.oracle(), &tokens);
        for isa in Isa::available() {
            let mut executor = tiny.fast(isa, 2);
            let together = at_once(&mut executor, &tokens);
            let worst = worst(&together, &expected);
            assert!(worst < 0.35, "{ty} on {isa}: {worst} from the oracle");
            let mut cache = executor.cache(tokens.len());
            let alone = feed(&mut executor, &mut cache, &tokens, || 1);
            same(&alone, &together, || format!("{ty} on {isa}"));
        }
    }
}

#[test]
fn observers_see_every_output_of_every_op() {
    let tiny = Tiny::new(&TinyModel::new("gemma3"));
    let mut executor = tiny.fast(Isa::detect(), 2);
    let tokens = tokens(5, 14);
    let mut cache = executor.cache(8);
    let mut seen = vec![];
    let mut last = vec![];
    let pass = rows(&tokens, 0, 0);
    let logits = executor.forward_observed(&pass, &mut [&mut cache], &mut |output| {
        seen.push((output.op, output.buffer, output.values.len()));
        last = output.values.to_vec();
        ControlFlow::Continue(())
    });
    assert_eq!(last, logits);
    let writes = |(index, op): (usize, &Op)| {
        let len = |id| (index, id, 5 * tiny.program.buffer(id).width);
        op.writes().into_iter().map(len).collect::<Vec<_>>()
    };
    let expected: Vec<_> = tiny.program.ops.iter().enumerate().flat_map(writes).collect();
    assert_eq!(seen, expected);
}

#[test]
fn an_observer_ends_a_pass_after_any_op() {
    let tiny = Tiny::new(&TinyModel::new("llama"));
    let mut executor = tiny.oracle();
    let mut cache = executor.cache(8);
    let mut ops = vec![];
    let pass = rows(&tokens(3, 16), 0, 0);
    let logits = executor.forward_observed(&pass, &mut [&mut cache], &mut |output| {
        ops.push(output.op);
        if output.op == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(logits.is_empty());
    assert_eq!(ops.last(), Some(&3));
}

#[test]
fn caches_grow_by_pages_up_to_their_context() {
    let tiny = Tiny::new(&TinyModel::new("llama"));
    let mut executor = tiny.fast(Isa::detect(), 1);
    let mut cache = executor.cache(100);
    assert_eq!((cache.context(), cache.bytes()), (100, 0));
    let tokens = tokens(100, 15);
    let page = 64 * tiny.program.kv_bytes_per_token();
    for (len, pages) in [(1, 1), (64, 1), (65, 2), (100, 2)] {
        let from = cache.len();
        feed(&mut executor, &mut cache, &tokens[from..len], || 100);
        assert_eq!((cache.len(), cache.bytes()), (len, pages * page));
    }
}

#[test]
fn programs_and_files_that_do_not_belong_together_are_refused() {
    let error = |program: &TinyModel, file: &TinyModel| {
        let (program, file) = (Tiny::new(program), Tiny::new(file));
        let made = Executor::new(program.program, file.gguf, ExecutorOptions::default());
        made.map(|executor| executor.threads()).unwrap_err()
    };
    let base = TinyModel::new("llama");
    let found = error(&base.clone().layers(3), &base);
    assert!(
        matches!(&found, PrepareError::MissingTensor { tensor } if tensor.starts_with("blk.2.")),
        "{found}"
    );
    for other in [
        base.clone().weights(TensorType::Q8_0),
        base.clone().feed_forward(256),
        base.clone().hidden(512),
    ] {
        let found = error(&base, &other);
        assert!(matches!(found, PrepareError::OtherTensor { .. }), "{found}");
    }
}
