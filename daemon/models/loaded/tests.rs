//! Several answers at a time, as models on a GPU give them, on the CPU.

use std::thread;

use m40_sched::sampler::SamplingParams;
use m40_testkit::gguf::TinyModel;
use m40llm::{Engine, EngineOptions, GenerateParams, ModelOptions};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::super::job::Reason;
use super::*;

/// More tokens than are ever generated here.
const CONTEXT: u32 = 1 << 20;

/// A tiny model, and who is told when it is out of memory.
fn tiny() -> (Loaded, UnboundedReceiver<ModelName>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, TinyModel::new("llama").context(CONTEXT).build()).unwrap();
    let engine = Engine::new(EngineOptions { threads: Some(1), ..EngineOptions::default() });
    let model = engine.unwrap().load(&path, &ModelOptions::default()).unwrap();
    let (told, departed) = unbounded_channel();
    let departure = Departure { name: "tiny".into(), told };
    (Loaded::new(Source::in_place(path), model, Duration::ZERO, departure), departed)
}

fn job(prompt: &[u32], max_tokens: Option<u32>) -> (Job, UnboundedReceiver<JobEvent>) {
    let (events, heard) = unbounded_channel();
    let params = GenerateParams {
        sampling: SamplingParams::greedy(),
        max_tokens,
        ignore_eos: true,
        ..GenerateParams::default()
    };
    (Job { prompt: prompt.into(), params, events }, heard)
}

/// What is said and how it ended.
fn said(mut heard: UnboundedReceiver<JobEvent>) -> (String, JobEvent) {
    let mut text = String::new();
    loop {
        match heard.blocking_recv().unwrap() {
            JobEvent::Chunk(chunk) => text.push_str(&chunk.text),
            last => return (text, last),
        }
    }
}

fn answer(model: &Loaded, prompt: &[u32], max_tokens: u32) -> (String, JobEvent) {
    let (job, heard) = job(prompt, Some(max_tokens));
    model.answer(&job, &Cut::default()).unwrap();
    said(heard)
}

#[test]
fn answers_side_by_side_are_those_of_one_at_a_time() {
    let (model, _departed) = tiny();
    let prompt = |i: u32| [7 + i, 40 - i, 9];
    let alone: Vec<_> = (0..8).map(|i| answer(&model, &prompt(i), 12).0).collect();
    let together: Vec<_> = thread::scope(|scope| {
        let model = &model;
        let threads: Vec<_> =
            (0..8).map(|i| scope.spawn(move || answer(model, &prompt(i), 12).0)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
    assert_eq!(model.jobs_done(), 16);
}

#[test]
fn the_session_of_who_was_alone_is_kept_for_the_next_turn() {
    let (model, _departed) = tiny();
    let cached = |prompt: &[u32]| match answer(&model, prompt, 2).1 {
        JobEvent::Done(completion) => completion.cached_tokens,
        other => panic!("{other:?}"),
    };
    assert_eq!(cached(&[7, 8, 9, 10]), 0);
    assert_eq!(cached(&[7, 8, 9, 10, 11]), 4);
    let (endless, mut heard) = job(&[50], None);
    let cut = Cut::default();
    thread::scope(|scope| {
        let running = scope.spawn(|| model.answer(&endless, &cut));
        assert!(matches!(heard.blocking_recv(), Some(JobEvent::Chunk(_))));
        assert_eq!(cached(&[7, 8, 9, 10, 11, 12]), 0, "the other has the session");
        assert_eq!(cached(&[7, 8, 9, 10, 11, 12]), 0, "none is kept beside the other");
        cut.short(Reason::Cancelled);
        running.join().unwrap().unwrap();
    });
    drop(endless);
    let (_, last) = said(heard);
    assert!(matches!(last, JobEvent::Failed(JobError::CutShort(Reason::Cancelled))), "{last:?}");
}

#[test]
fn an_answer_ends_when_nobody_listens_and_a_model_says_when_it_is_gone() {
    let (model, mut departed) = tiny();
    let (endless, heard) = job(&[50], None);
    drop(heard);
    model.answer(&endless, &Cut::default()).unwrap();
    assert!(departed.try_recv().is_err());
    drop(model);
    assert_eq!(departed.try_recv(), Ok("tiny".into()));
}
