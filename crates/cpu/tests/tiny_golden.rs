//! Tiny models of every architecture, rope scaling and weight type against llama.cpp.

use std::sync::Arc;

use m40_cpu::{Executor, ExecutorOptions, Numerics, Row};
use m40_gguf::Gguf;
use m40_program::{BuildOptions, build};
use m40_testkit::tiny_golden::{self, TinyGolden};

/// The largest difference of a log-probability from the golden one, over all positions.
fn worst_difference(golden: &TinyGolden, numerics: Numerics) -> f32 {
    let gguf = Gguf::parse(golden.model.build()).expect("a tiny model is valid");
    let options = BuildOptions { context: Some(tiny_golden::CONTEXT), ..BuildOptions::default() };
    let program = build(&gguf, options).expect("the architecture is known");
    let options = ExecutorOptions { numerics, threads: Some(2), ..ExecutorOptions::default() };
    let mut executor =
        Executor::new(Arc::new(program), Arc::new(gguf), options).expect("every weight type runs");
    let mut cache = executor.cache(tiny_golden::CONTEXT as usize);
    let row = |(position, &token)| Row { token, position, cache: 0, segment: 0, logits: true };
    let rows: Vec<Row> = golden.prompt.iter().enumerate().map(row).collect();
    let logits = executor.forward(&rows, &mut [&mut cache]);

    let vocab = golden.model.vocab_size();
    let differences = golden.positions.iter().flat_map(|position| {
        let logits = &logits[position.index * vocab..][..vocab];
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
        let logprob = move |id: u32| logits[id as usize] - max - sum.ln();
        position.top.iter().map(move |&(id, expected)| (logprob(id) - expected).abs())
    });
    differences.fold(0.0, |worst: f32, d| if d.is_nan() { f32::INFINITY } else { worst.max(d) })
}

fn check_all(numerics: Numerics) {
    let mut wrong = Vec::new();
    for golden in tiny_golden::all() {
        let worst = worst_difference(&golden, numerics);
        if worst > golden.tolerance {
            wrong.push((golden.name, worst, golden.tolerance));
        }
    }
    assert!(wrong.is_empty(), "too far from llama.cpp: {wrong:?}");
}

#[test]
fn oracle_agrees_with_llama_cpp_on_every_tiny_model() {
    check_all(Numerics::Oracle);
}

#[test]
fn fast_path_agrees_with_llama_cpp_on_every_tiny_model() {
    check_all(Numerics::Fast);
}
