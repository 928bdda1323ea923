//! Which rows the next pass of a model on the CPU has.
//!
//! A session asks for what follows its next tokens, and waits. Those who ask with one token, streams,
//! have a row each in the next pass, all of them. Prompts have rows beside them, in the order in which they
//! came, up to a budget: every few passes as many as take about the time of those passes, or as many as a
//! pass may have if there are no streams. A row has the same bits whatever is beside it, so none of
//! this shows in what is said. Sessions join and leave between any two passes.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::time::{Duration, Instant};

use m40_cpu::{Executor, KvCache, Row};
use m40_sched::Pace;

use crate::backend::PROMPT_ROWS;
use crate::generate::GenerateError;

/// Passes from one that has rows of prompts to the next such, at most.
const PASSES_MAX: u32 = 8;

/// What a session asks for and what came of it. It is used again for the session's next question.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) session: u64,
    /// Of all tokens before the first of `tokens`.
    pub(super) cache: KvCache,
    position: usize,
    /// What follows, at least one token; of a long prompt the first ones.
    tokens: Vec<u32>,
    /// Whether nothing follows `tokens`, so that the logits after them are wanted.
    is_end: bool,
    /// How many of `tokens` the next pass has, or the last one had.
    pub(super) count: usize,
    /// `[vocab]`, after the last token, if that was computed.
    pub(super) logits: Vec<f32>,
    /// Why nothing was computed.
    pub(super) failure: Option<GenerateError>,
}

impl Job {
    pub(super) fn new(session: u64, cache: KvCache) -> Self {
        Self {
            session,
            cache,
            position: 0,
            tokens: vec![],
            is_end: false,
            count: 0,
            logits: vec![],
            failure: None,
        }
    }

    /// Asks for what follows `tokens`, the first of which is at `position`.
    pub(super) fn follow(&mut self, position: usize, tokens: &[u32]) {
        let now = &tokens[..tokens.len().min(PROMPT_ROWS)];
        self.cache.truncate(position);
        self.position = position;
        self.tokens.clear();
        self.tokens.extend_from_slice(now);
        self.is_end = now.len() == tokens.len();
        self.count = 0;
    }

    /// Where in the conversation what it asks with is.
    pub(super) fn positions(&self) -> Range<usize> {
        self.position..self.position + self.tokens.len()
    }

    /// Whether it goes on with one token.
    pub(super) fn is_stream(&self) -> bool {
        self.tokens.len() == 1
    }

    /// Whether the pass ends with logits for it.
    pub(super) fn wants_logits(&self) -> bool {
        self.is_end && self.count == self.tokens.len()
    }

    /// Its rows of the pass, in which its cache has this index.
    fn rows(&self, cache: usize) -> impl Iterator<Item = Row> {
        let last = self.position + self.count - 1;
        let logits = self.wants_logits();
        (self.position..).zip(&self.tokens[..self.count]).map(move |(position, &token)| {
            let logits = logits && position == last;
            Row { token, position, cache, segment: 0, logits }
        })
    }
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing, until somebody asks.
    Nothing,
    /// Wait so long for sessions that should ask soon.
    Wait(Duration),
    /// [`Batch::pass`].
    Pass,
}

/// What sessions of one model have asked for and do not have yet.
#[derive(Debug)]
pub(super) struct Batch {
    pace: Pace,
    /// Jobs of one token.
    streams: VecDeque<Job>,
    /// Jobs of more tokens.
    prompts: VecDeque<Job>,
    /// Sessions that were in the latest pass and have said nothing since, and until when they are
    /// waited for.
    awaited: Vec<u64>,
    patience: Instant,
    /// Passes since the latest that had rows of prompts.
    since_prompt: u32,
}

impl Batch {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            pace: Pace::new(PASSES_MAX, PROMPT_ROWS),
            streams: VecDeque::new(),
            prompts: VecDeque::new(),
            awaited: vec![],
            patience: now,
            since_prompt: PASSES_MAX,
        }
    }

    pub(super) fn ask(&mut self, job: Job) {
        self.heard(job.session);
        let jobs = if job.is_stream() { &mut self.streams } else { &mut self.prompts };
        jobs.push_back(job);
    }

    /// Nothing waits for this session any more.
    pub(super) fn heard(&mut self, session: u64) {
        self.awaited.retain(|awaited| *awaited != session);
    }

    /// Takes back what a session asked for, unless a pass has it.
    pub(super) fn withdraw(&mut self, session: u64) -> Option<Job> {
        [&mut self.streams, &mut self.prompts].into_iter().find_map(|jobs| {
            let at = jobs.iter().position(|job| job.session == session)?;
            jobs.remove(at)
        })
    }

    /// Sessions that wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.streams.len() + self.prompts.len()
    }

    pub(super) fn next(&self, now: Instant) -> Next {
        if self.streams.is_empty() && self.prompts.is_empty() {
            return Next::Nothing;
        }
        let left = self.patience.saturating_duration_since(now);
        if self.awaited.is_empty() || left.is_zero() { Next::Pass } else { Next::Wait(left) }
    }

    /// Jobs of the next pass, each told how many tokens of it that has. Nobody is waited for any more.
    pub(super) fn pass(&mut self) -> Vec<Job> {
        let mut room = self.prompt_rows();
        self.awaited.clear();
        let streams = self.streams.len().min(PROMPT_ROWS);
        let mut jobs: Vec<_> = self.streams.drain(..streams).collect();
        jobs.iter_mut().for_each(|job| job.count = 1);
        while room > 0
            && let Some(mut job) = self.prompts.pop_front()
        {
            job.count = job.tokens.len().min(room);
            room -= job.count;
            jobs.push(job);
        }
        jobs
    }

    /// Rows of prompts that the next pass may have. Streams that are late will come, and are not to
    /// find a long pass before theirs.
    fn prompt_rows(&self) -> usize {
        let due = self.since_prompt + 1 >= self.pace.passes();
        match (self.streams.is_empty(), self.awaited.is_empty()) {
            (true, true) => PROMPT_ROWS,
            (true, false) => self.pace.rows(),
            (false, _) if due => self.pace.rows(),
            (false, _) => 0,
        }
    }

    /// A pass over these jobs took `time`, until `now`.
    pub(super) fn ran(&mut self, jobs: &[Job], time: Duration, now: Instant) {
        let (streams, prompts): (Vec<_>, Vec<_>) = jobs.iter().partition(|job| job.is_stream());
        let rows = prompts.iter().map(|job| job.count).sum();
        match (streams.is_empty(), rows) {
            (_, 0) => self.pace.ran(1, time),
            (true, rows) => self.pace.sliced(rows, time),
            (false, rows) => self.pace.sliced_beside(rows, time),
        }
        self.since_prompt = if rows == 0 { self.since_prompt.saturating_add(1) } else { 0 };
        let served = jobs.iter().filter(|job| job.failure.is_none());
        self.awaited.extend(served.map(|job| job.session));
        self.patience = now + self.pace.patience();
    }
}

/// Runs one pass over all jobs. If it panics, each has one of its own, so that whoever is to blame fails
/// alone.
pub(super) fn compute<B: AsRef<[u8]>>(executor: &mut Executor<B>, jobs: &mut [Job]) {
    // What a pass leaves behind is scratch, and positions of caches that the next one writes again.
    let computed = catch_unwind(AssertUnwindSafe(|| run(executor, jobs)));
    match (computed, jobs) {
        (Ok(()), _) => {}
        (Err(_), [job]) => {
            let reason = "a pass of the model panicked, see the log".into();
            job.failure = Some(GenerateError::Pass { reason });
        }
        (Err(_), jobs) => {
            jobs.iter_mut().for_each(|job| compute(executor, slice::from_mut(job)));
        }
    }
}

fn run<B: AsRef<[u8]>>(executor: &mut Executor<B>, jobs: &mut [Job]) {
    let vocab = executor.program().description.vocab;
    let rows: Vec<_> = jobs.iter().enumerate().flat_map(|(cache, job)| job.rows(cache)).collect();
    let mut caches: Vec<_> = jobs.iter_mut().map(|job| &mut job.cache).collect();
    let logits = executor.forward(&rows, &mut caches);
    let wanted = jobs.iter_mut().filter(|job| job.wants_logits());
    for (job, logits) in wanted.zip(logits.chunks_exact(vocab)) {
        job.logits.clear();
        job.logits.extend_from_slice(logits);
    }
}
