//! Workers of several threads, as models on a GPU have them, on the CPU.

use std::sync::mpsc::{Receiver as Ended, channel};

use m40_sched::sampler::SamplingParams;
use m40_testkit::gguf::TinyModel;
use m40llm::{Engine, EngineOptions, ModelOptions};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;

/// More tokens than are ever generated here.
const CONTEXT: u32 = 1 << 20;

fn tiny() -> Model {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    std::fs::write(&path, TinyModel::new("llama").context(CONTEXT).build()).unwrap();
    let engine = Engine::new(EngineOptions { threads: Some(1), ..EngineOptions::default() });
    engine.unwrap().load(&path, &ModelOptions::default()).unwrap()
}

fn worker(side_by_side: usize, queue_max: usize) -> (Worker, Ended<Ending>) {
    let (sender, ended) = channel();
    let tell = move |ending| sender.send(ending).unwrap();
    (Worker::spawn("tiny", &tiny(), side_by_side, queue_max, tell).unwrap(), ended)
}

fn job(prompt: &[u32], max_tokens: Option<u32>) -> (Job, UnboundedReceiver<Event>) {
    let (events, heard) = unbounded_channel();
    let params = GenerateParams {
        sampling: SamplingParams::greedy(),
        max_tokens,
        ignore_eos: true,
        ..GenerateParams::default()
    };
    let (cancel, counted) = (CancelToken::new(), JobCount::default().count());
    (Job { prompt: prompt.to_vec(), params, cancel, events, counted }, heard)
}

fn submit(worker: &Worker, prompt: &[u32], most: Option<u32>) -> UnboundedReceiver<Event> {
    let (job, heard) = job(prompt, most);
    worker.submit(job).unwrap();
    heard
}

/// What is said and how it ended, without a wait for more than that.
fn answer(mut heard: UnboundedReceiver<Event>) -> (String, Event) {
    let mut text = String::new();
    loop {
        match heard.blocking_recv().unwrap() {
            Event::Chunk(chunk) => text.push_str(&chunk.text),
            last => return (text, last),
        }
    }
}

#[test]
fn as_many_are_answered_at_a_time_as_there_are_threads() {
    let (worker, ended) = worker(3, 1);
    let mut running: Vec<_> = (0..3u32)
        .map(|i| {
            let mut heard = submit(&worker, &[7 + i, 9], None);
            assert!(matches!(heard.blocking_recv(), Some(Event::Chunk(_))));
            heard
        })
        .collect();
    running.push(submit(&worker, &[20, 21], None));
    let refused = worker.submit(job(&[30], None).0);
    assert_eq!(refused, Err(Refusal::QueueFull { limit: 1 }));
    assert_eq!((worker.jobs(), worker.jobs_done()), (4, 0));
    assert!(running[3].try_recv().is_err(), "no thread is left for it");

    worker.end(Some(Reason::Unloaded));
    for heard in running {
        let (_, last) = answer(heard);
        assert!(matches!(last, Event::Failed(JobError::CutShort(Reason::Unloaded))), "{last:?}");
    }
    assert_eq!(ended.recv(), Ok(Ending::Asked));
    assert_eq!((worker.jobs(), worker.jobs_done()), (0, 4));
    assert_eq!(worker.submit(job(&[30], None).0), Err(Refusal::Ending));
}

#[test]
fn answers_side_by_side_are_those_of_one_at_a_time_and_all_come_before_the_end() {
    let prompt = |i: u32| [7 + i, 40 - i, 9];
    let answers = |side_by_side| {
        let (worker, ended) = worker(side_by_side, 8);
        let heard: Vec<_> = (0..8).map(|i| submit(&worker, &prompt(i), Some(12))).collect();
        worker.end(None);
        let answers: Vec<_> = heard.into_iter().map(|heard| answer(heard).0).collect();
        assert_eq!(ended.recv(), Ok(Ending::Asked));
        answers
    };
    assert_eq!(answers(4), answers(1));
}

#[test]
fn the_session_of_who_was_alone_is_kept_for_the_next_turn() {
    let (worker, _ended) = worker(2, 4);
    let cached = |prompt: &[u32]| match answer(submit(&worker, prompt, Some(2))).1 {
        Event::Done(completion) => completion.cached_tokens,
        other => panic!("{other:?}"),
    };
    assert_eq!(cached(&[7, 8, 9, 10]), 0);
    assert_eq!(cached(&[7, 8, 9, 10, 11]), 4);

    let mut other = submit(&worker, &[50], None);
    assert!(matches!(other.blocking_recv(), Some(Event::Chunk(_))));
    assert_eq!(cached(&[7, 8, 9, 10, 11, 12]), 0, "the other has the session");
    assert_eq!(cached(&[7, 8, 9, 10, 11, 12]), 0, "none is kept beside the other");
    worker.end(Some(Reason::Stopping));
}
