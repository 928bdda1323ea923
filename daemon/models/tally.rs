//! What a model's jobs have computed, counted while they run.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use m40_control::ModelWork;
use m40llm::{Chunk, Completion};

use super::job::lock;

/// The counts of a model, since it was loaded.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    context_tokens: AtomicU64,
    running: Mutex<Running>,
}

#[derive(Debug, Default)]
struct Running {
    jobs: u64,
    /// When the first of them began.
    since: Option<Instant>,
    /// Time before that in which there were some.
    before: Duration,
}

impl Tally {
    /// A job with a prompt of so many tokens begins; it ends when what this returns is dropped.
    pub(crate) fn begin(&self, prompt_tokens: usize) -> TalliedJob<'_> {
        let mut running = lock(&self.running);
        running.jobs += 1;
        running.since.get_or_insert_with(Instant::now);
        drop(running);
        self.context_tokens.fetch_add(prompt_tokens as u64, Ordering::Relaxed);
        TalliedJob { tally: self, held: prompt_tokens as u64, prompt: 0, made: 0 }
    }

    /// Tokens of prompts and answers of jobs that run.
    pub(crate) fn context_tokens(&self) -> u64 {
        self.context_tokens.load(Ordering::Relaxed)
    }

    /// What was done so far.
    pub(crate) fn work(&self) -> ModelWork {
        let running = lock(&self.running);
        let busy = running.before + running.since.map_or(Duration::ZERO, |since| since.elapsed());
        drop(running);
        ModelWork {
            prompt_tokens: self.prompt_tokens.load(Ordering::Relaxed),
            cached_tokens: self.cached_tokens.load(Ordering::Relaxed),
            completion_tokens: self.completion_tokens.load(Ordering::Relaxed),
            busy_ms: busy.as_millis() as u64,
        }
    }
}

/// A running job's share of the counts.
#[derive(Debug)]
pub(crate) struct TalliedJob<'a> {
    tally: &'a Tally,
    /// Its tokens in [`Tally::context_tokens`].
    held: u64,
    prompt: u64,
    made: u64,
}

impl TalliedJob<'_> {
    /// A piece of the answer is there.
    pub(crate) fn chunk(&mut self, chunk: &Chunk) {
        self.count(u64::from(chunk.prompt_tokens), u64::from(chunk.tokens));
    }

    /// The answer is there: counts what no piece of it told of.
    pub(crate) fn done(&mut self, completion: &Completion) {
        let cached = u64::from(completion.cached_tokens);
        let prompt = u64::from(completion.prompt_tokens).saturating_sub(cached);
        let made = u64::from(completion.completion_tokens);
        self.count(prompt.saturating_sub(self.prompt), made.saturating_sub(self.made));
        self.tally.cached_tokens.fetch_add(cached, Ordering::Relaxed);
    }

    /// All tokens were computed, and there is no answer but vectors.
    pub(crate) fn embedded(mut self) {
        self.count(self.held, 0);
    }

    fn count(&mut self, prompt: u64, made: u64) {
        self.prompt += prompt;
        self.made += made;
        self.held += made;
        self.tally.prompt_tokens.fetch_add(prompt, Ordering::Relaxed);
        self.tally.completion_tokens.fetch_add(made, Ordering::Relaxed);
        self.tally.context_tokens.fetch_add(made, Ordering::Relaxed);
    }
}

impl Drop for TalliedJob<'_> {
    fn drop(&mut self) {
        self.tally.context_tokens.fetch_sub(self.held, Ordering::Relaxed);
        let mut running = lock(&self.tally.running);
        running.jobs -= 1;
        if running.jobs == 0
            && let Some(since) = running.since.take()
        {
            running.before += since.elapsed();
        }
    }
}

#[cfg(test)]
mod tests {
    use m40llm::FinishReason;

    use super::*;

    fn chunk(prompt_tokens: u32, tokens: u32) -> Chunk {
        Chunk { prompt_tokens, tokens, ..Chunk::default() }
    }

    #[test]
    fn each_token_counts_once_whether_a_piece_told_of_it_or_the_end() {
        let tally = Tally::default();
        let mut job = tally.begin(10);
        job.chunk(&chunk(7, 1));
        job.chunk(&chunk(0, 2));
        assert_eq!((lock(&tally.running).jobs, tally.context_tokens()), (1, 13));
        assert_eq!((tally.work().prompt_tokens, tally.work().completion_tokens), (7, 3));
        let completion = Completion {
            finish: FinishReason::Stop,
            stopped_by: None,
            prompt_tokens: 10,
            cached_tokens: 3,
            completion_tokens: 5,
            tokens: vec![1; 5],
            prompt_time: Duration::ZERO,
            decode_time: Duration::ZERO,
        };
        job.done(&completion);
        assert_eq!(tally.context_tokens(), 15);
        drop(job);
        let work = tally.work();
        assert_eq!((work.prompt_tokens, work.cached_tokens, work.completion_tokens), (7, 3, 5));
        assert_eq!((lock(&tally.running).jobs, tally.context_tokens()), (0, 0));
    }

    #[test]
    fn a_job_that_failed_holds_nothing_and_those_beside_it_go_on() {
        let tally = Tally::default();
        let (failed, _other) = (tally.begin(100), tally.begin(20));
        drop(failed);
        assert_eq!((lock(&tally.running).jobs, tally.context_tokens()), (1, 20));
        assert!(lock(&tally.running).since.is_some());
    }
}
