//! Whole decode passes of tiny models against the CPU's oracle.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use m40_gguf::TensorType;
use m40_gpu::lower::Target;
use m40_gpu::ops::PAGE_TOKENS;
use m40_program::KvType;
use m40_sched::pages::Rank;
use m40_testkit::emulation::{compile, compile_for};
use m40_testkit::gguf::{Noise, TinyModel};

use crate::model::{Model, Placed, Sequence, Way};

/// Few enough for an emulation, and a number that divides no count of rows.
pub(crate) const TARGET: Target = Target { blocks: 3, context: 600 };

/// The emulation, compiled once for all tests.
pub(crate) fn emulation() -> Option<PathBuf> {
    static PROGRAM: OnceLock<Result<Option<PathBuf>, String>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| compile("decode", env!("CARGO_TARGET_TMPDIR")))
        .clone()
        .unwrap_or_else(|error| panic!("{error}"))
}

/// One layer, as small as rows of 256 weights allow.
pub(crate) fn tiny(architecture: &str) -> TinyModel {
    TinyModel::new(architecture).layers(1).feed_forward(256)
}

pub(crate) fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut noise = Noise::new(seed);
    (0..n).map(|_| 6 + noise.below(280) as u32).collect()
}

pub(crate) fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(f, e)| f - e);
    differences.fold(0.0, |worst, d| if d.is_nan() { f32::INFINITY } else { worst.max(d.abs()) })
}

fn largest(logits: &[f32]) -> u32 {
    let all = (0..).zip(logits);
    all.fold((0, f32::NEG_INFINITY), |best, (id, x)| if *x > best.1 { (id, *x) } else { best }).0
}

/// Feeds sequences side by side, a token of each a pass, and compares every row with the oracle.
/// Returns the logits by sequence and position.
fn check(model: &Model, placed: &mut Placed, way: Way, prompts: &[Vec<u32>]) -> Vec<Vec<Vec<f32>>> {
    let mut oracle = model.oracle();
    let expected: Vec<_> = prompts.iter().map(|prompt| oracle.logits(prompt)).collect();
    let mut sequences: Vec<_> = prompts.iter().map(|_| placed.sequence()).collect();
    let mut found: Vec<Vec<Vec<f32>>> = vec![vec![]; prompts.len()];
    loop {
        let mut rows = vec![];
        let mut of = vec![];
        for (i, sequence) in sequences.iter_mut().enumerate() {
            if let Some(&token) = prompts[i].get(sequence.tokens) {
                of.push((i, sequence.tokens));
                rows.push((sequence, token));
            }
        }
        if rows.is_empty() {
            break;
        }
        for ((logits, chosen), (i, position)) in placed.pass(way, &mut rows).into_iter().zip(of) {
            let worst = worst(&logits, &expected[i][position]);
            let name = &model.program.description.architecture;
            assert!(worst < model.tolerance(), "{name}: sequence {i} at {position}: {worst}");
            assert_eq!(chosen, largest(&logits), "{name}: sequence {i} at {position}");
            found[i].push(logits);
        }
    }
    sequences.into_iter().for_each(|sequence| placed.release(sequence));
    found
}

#[test]
fn every_architecture_computes_what_the_oracle_does() {
    let Some(emulation) = emulation() else { return };
    for architecture in TinyModel::architectures() {
        let model = Model::new(&tiny(architecture));
        let mut placed = Placed::new(&emulation, &model, TARGET, 4);
        check(&model, &mut placed, Way::OpByOp, &[tokens(3, 1), tokens(2, 2)]);
        placed.end();
    }
}

#[test]
fn every_weight_type_runs_through_a_whole_model() {
    use TensorType::*;
    let Some(emulation) = emulation() else { return };
    let types = [
        F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, IQ4NL, IQ4XS, MXFP4,
    ];
    for ty in types {
        let model = Model::new(&tiny("qwen3").weights(ty));
        let mut placed = Placed::new(&emulation, &model, TARGET, 1);
        check(&model, &mut placed, Way::Resident, &[tokens(2, 3)]);
        placed.end();
    }
}

/// Types as files have them, and products that are split in two for it.
fn mixed(architecture: &str) -> TinyModel {
    tiny(architecture)
        .weights(TensorType::Q4K)
        .weights_of("attn_v", TensorType::Q6K)
        .weights_of("ffn_up", TensorType::Q5_0)
        .weights_of("attn_output", TensorType::F16)
        .embedding(TensorType::Q8_0)
}

/// Integers for keys and values, and sinks.
fn int8() -> Model {
    Model::with_kv(&mixed("qwen3").layers(2).sinks(true), KvType::Int8)
}

#[test]
fn a_row_is_the_same_alone_and_beside_others_resident_or_op_by_op() {
    for model in [Model::new(&mixed("gemma3").layers(2)), int8()] {
        same_alone_and_beside_others(&model);
    }
}

fn same_alone_and_beside_others(model: &Model) {
    let Some(emulation) = emulation() else { return };
    let prompts: Vec<_> = (0..8).map(|seed| tokens(2, 10 + seed)).collect();
    let mut placed = Placed::new(&emulation, model, TARGET, 8);
    let together = check(model, &mut placed, Way::Resident, &prompts);
    for rows in [&prompts[..1], &prompts[1..3], &prompts[3..7]] {
        let first = prompts.iter().position(|prompt| *prompt == rows[0]).unwrap();
        let found = check(model, &mut placed, Way::OpByOp, rows);
        for (found, expected) in found.iter().zip(&together[first..]) {
            assert!(found == expected, "{} rows", rows.len());
        }
    }
    placed.end();
}

/// What a GPU runs: all sizes are constants. The same bits as of kernels that know nothing.
#[test]
fn kernels_for_one_program_compute_what_those_for_any_do() {
    for model in [Model::new(&mixed("gemma3").layers(2)), int8()] {
        same_with_kernels_for_one_program(&model);
    }
}

fn same_with_kernels_for_one_program(model: &Model) {
    let Some(emulation) = emulation() else { return };
    let source = model.source(TARGET);
    let of_program = compile_for("decode", env!("CARGO_TARGET_TMPDIR"), source.text());
    let of_program = of_program.unwrap_or_else(|error| panic!("{error}")).unwrap();
    let prompts: Vec<_> = (0..8).map(|seed| tokens(2, 30 + seed)).collect();
    let mut any = Placed::new(&emulation, model, TARGET, 8);
    let expected = check(model, &mut any, Way::Resident, &prompts);
    any.end();
    let mut placed = Placed::with(&of_program, model, TARGET, 8, Some(&source));
    for (way, rows) in [(Way::Resident, 0..8), (Way::OpByOp, 2..3), (Way::Resident, 5..7)] {
        let found = check(model, &mut placed, way, &prompts[rows.clone()]);
        assert!(found == expected[rows.clone()], "rows {rows:?}");
    }
    placed.end();
}

#[test]
fn passes_that_feed_themselves_choose_what_the_oracle_does() {
    let Some(emulation) = emulation() else { return };
    let model = Model::new(&mixed("llama").layers(2));
    let mut placed = Placed::new(&emulation, &model, TARGET, 8);
    let mut oracle = model.oracle();
    let mut texts = [vec![7], vec![8], vec![9]];
    let mut sequences = [(); 3].map(|()| placed.sequence());
    for passes in [1, 3, 2] {
        let last = texts.each_ref().map(|text| text[text.len() - 1]);
        let mut rows: Vec<_> = sequences.iter_mut().zip(last).collect();
        let results = placed.passes(Way::Resident, &mut rows, passes);
        for (row, (text, (logits, chosen))) in texts.iter_mut().zip(results).enumerate() {
            for pass in 0..passes {
                let expected = oracle.logits(text);
                text.push(largest(&expected[text.len() - 1]));
                assert_eq!(placed.chosen(pass, row), text[text.len() - 1], "pass {pass}");
            }
            let expected = oracle.logits(&text[..text.len() - 1]);
            let worst = worst(&logits, &expected[text.len() - 2]);
            assert!(worst < model.tolerance(), "{worst} after {passes} passes");
            assert_eq!(chosen, text[text.len() - 1]);
        }
    }
    sequences.into_iter().for_each(|sequence| placed.release(sequence));
    placed.end();
}

/// Feeds a sequence the rest of a text; the bits of the logits of each token.
fn feed(placed: &mut Placed, sequence: &mut Sequence, text: &[u32]) -> Vec<Vec<u32>> {
    let mut found = vec![];
    for &token in &text[sequence.tokens..] {
        let (logits, _) = placed.pass(Way::Resident, &mut [(&mut *sequence, token)]).remove(0);
        sequence.cache.computed(&[token]).unwrap();
        found.push(logits.into_iter().map(f32::to_bits).collect());
    }
    found
}

#[test]
fn who_reads_pages_of_others_computes_the_same_bits() {
    let Some(emulation) = emulation() else { return };
    // A window that begins in a page that was read.
    let model = Model::with_kv(&tiny("gemma3").sliding_window(8), KvType::Int8);
    let mut placed = Placed::new(&emulation, &model, TARGET, 3);
    let text = tokens(PAGE_TOKENS + 4, 11);
    let other = [&text[..PAGE_TOKENS], &tokens(4, 12)].concat();
    let pool = Arc::clone(&placed.pool);
    let begin = |placed: &mut Placed, arrival: u64, text: &[u32]| {
        let rank = Rank { priority: 0, arrival };
        placed.sequence_with(pool.begin_with(rank, text).unwrap())
    };
    let mut first = begin(&mut placed, 1, &text);
    assert_eq!(first.tokens, 0);
    let expected = feed(&mut placed, &mut first, &text);
    // Beside the one that computed them, with another text behind; and after it.
    let mut second = begin(&mut placed, 2, &other);
    assert_eq!(second.tokens, PAGE_TOKENS);
    let beside = feed(&mut placed, &mut second, &other);
    // Its page goes to the other one, and it begins again.
    first.cache.reserve(2 * PAGE_TOKENS + 1).unwrap();
    assert!(second.cache.is_empty());
    placed.release(first);
    second.tokens = second.cache.resume(&other);
    assert_eq!(second.tokens, PAGE_TOKENS);
    assert_eq!(feed(&mut placed, &mut second, &other), beside);
    placed.release(second);
    let mut third = begin(&mut placed, 3, &text);
    assert_eq!(third.tokens, PAGE_TOKENS);
    assert_eq!(feed(&mut placed, &mut third, &text), expected[PAGE_TOKENS..]);
    assert_ne!(beside, expected[PAGE_TOKENS..]);
    placed.release(third);
    placed.end();
}
