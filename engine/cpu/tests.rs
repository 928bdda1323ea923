//! Passes that sessions share: without threads, on a clock that is counted, and on tiny models.

mod answers;
mod pace;
mod prefixes;

use std::sync::Arc;

use m40_cpu::ExecutorOptions;
use m40_gguf::Gguf;
use m40_program::{BuildOptions, build};
use m40_testkit::gguf::TinyModel;

use super::*;

/// Tokens that a conversation may have.
const CONTEXT: usize = 4096;

fn executor(model: &TinyModel) -> Executor<Vec<u8>> {
    let gguf = Gguf::parse(model.build()).expect("a tiny model is whole");
    let program = build(&gguf, BuildOptions::default()).expect("a tiny model is known");
    let options = ExecutorOptions { threads: Some(1), ..ExecutorOptions::default() };
    Executor::new(Arc::new(program), Arc::new(gguf), options).expect("a tiny model runs")
}

/// Ordinary tokens of the tiny vocabularies.
fn prompt(n: usize, seed: u32) -> Vec<u32> {
    crate::tests::prompt(n, seed)
}

/// What a session asks for of a model of no layers: who comes when is all that counts.
fn job(session: u64, tokens: &[u32]) -> Job {
    let mut job = Job::new(session, KvCache::new(&[], CONTEXT));
    job.follow(0, tokens);
    job
}
