//! Whatever the verifier accepts runs: a damaged program is refused by it, or runs without a panic.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

#[path = "../../program/tests/rules/mutate.rs"]
mod mutate;

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use m40_cpu::{Executor, ExecutorOptions, Isa, Numerics, Row};
use m40_gguf::{Gguf, TensorType};
use m40_program::verify::verify;
use m40_program::{BuildOptions, Program, build};
use m40_testkit::gguf::TinyModel;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

type Tiny = (Program, Arc<Gguf<Vec<u8>>>);

/// One small model of each architecture.
static MODELS: LazyLock<Vec<Tiny>> = LazyLock::new(|| {
    let make = |architecture| {
        let model = TinyModel::new(architecture).weights(TensorType::Q4_0).layers(1);
        let gguf = Gguf::parse(model.build()).unwrap();
        (build(&gguf, BuildOptions::default()).unwrap(), Arc::new(gguf))
    };
    TinyModel::architectures().map(make).into()
});

/// Runs two passes of two sequences.
fn run(program: Program, gguf: &Arc<Gguf<Vec<u8>>>, numerics: Numerics, isa: Isa) {
    let vocab = program.description.vocab as u32;
    let options = ExecutorOptions { threads: Some(2), numerics, isa: Some(isa) };
    let made = Executor::new(Arc::new(program), Arc::clone(gguf), options);
    // The verifier does not know the file: shapes that are not the file's are refused here.
    let Ok(mut executor) = made else { return };
    let mut caches = [executor.cache(4), executor.cache(4)];
    for position in [0, 1] {
        let row = |cache, logits| Row { token: vocab - 1, position, cache, segment: 0, logits };
        let mut caches = caches.each_mut();
        executor.forward(&[row(0, true), row(1, position == 1)], &mut caches);
    }
}

#[test]
fn accepted_programs_run_without_a_panic() {
    let changes = proptest::collection::vec(any::<[usize; 4]>(), 1..4);
    let isa = prop::sample::select(Isa::available().collect::<Vec<_>>());
    let numerics = prop::sample::select(vec![Numerics::Fast, Numerics::Oracle]);
    let model = 0..MODELS.len();
    let config = ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() };
    let accepted = std::cell::Cell::new(0);
    let tried = TestRunner::new(config).run(
        &(changes, model, isa, numerics),
        |(changes, model, isa, numerics)| {
            let (program, gguf) = &MODELS[model];
            let mut program = program.clone();
            changes.into_iter().for_each(|change| mutate::mutate(&mut program, change));
            if verify(&program).is_ok() {
                accepted.set(accepted.get() + 1);
                run(program, gguf, numerics, isa);
            }
            Ok(())
        },
    );
    tried.unwrap_or_else(|error| panic!("{error}"));
    assert!(accepted.get() > 50, "only {} damaged programs were accepted", accepted.get());
}

/// Chance seldom finds the one wrong buffer among many, so single changes are tried out: every part
/// of every op, and of a copy of it that follows it.
#[test]
fn every_single_change_of_an_op_is_refused_or_runs() {
    const CHANGED: usize = 2;
    const COPIED: usize = 4;
    for (program, gguf) in MODELS.iter() {
        let len = program.ops.len();
        let mut seen = HashSet::new();
        for (at, kind) in (0..len).flat_map(|at| [(at, CHANGED), (at + len * (at + 1), COPIED)]) {
            for (part, value) in (0..12).flat_map(|part| (0..42).map(move |value| (part, value))) {
                let mut changed = program.clone();
                mutate::mutate(&mut changed, [kind, at, part, value]);
                if verify(&changed).is_ok() && seen.insert(format!("{:?}", changed.ops)) {
                    run(changed, gguf, Numerics::Fast, Isa::detect());
                }
            }
        }
        assert!(seen.len() > 100, "only {} changed programs were accepted", seen.len());
    }
}
