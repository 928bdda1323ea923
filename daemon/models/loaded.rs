//! A model in memory, and how it answers.
//!
//! Each request that runs has a thread and a session. The session of an answer that ends when no other
//! is under way is kept, for whoever comes next may go on with its conversation. Kept beside others it
//! would hold memory that they need.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use m40_sched::ModelName;
use m40llm::{
    BenchOptions, Completion, FinishReason, GenerateError, GpuError, Model, OnLine, Session,
};
use tokio::sync::mpsc::UnboundedSender;

use super::job::{Cut, Job, JobError, JobEvent, lock};
use super::source::Source;
use super::tally::Tally;

#[cfg(test)]
mod tests;

/// A model in memory. It is out of memory when the last handle goes.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub name: ModelName,
    /// What it was loaded from.
    pub(super) source: Source,
    pub(super) load_time: Duration,
    jobs_done: AtomicU64,
    tally: Tally,
    sessions: Mutex<Sessions>,
    pub model: Model,
    // The last to be dropped, when the memory is free.
    _departure: Departure,
}

/// The conversations of a model.
#[derive(Debug, Default)]
struct Sessions {
    /// Answers under way.
    running: usize,
    /// One that is kept; none while an answer is under way.
    kept: Option<Session>,
}

/// Says that a model is out of memory.
#[derive(Debug)]
pub(super) struct Departure {
    pub name: ModelName,
    pub told: UnboundedSender<ModelName>,
}

impl Drop for Departure {
    fn drop(&mut self) {
        // Nobody keeps the books of a daemon that has ended.
        let _ = self.told.send(self.name.clone());
    }
}

/// What is to be done about a model after an answer.
#[derive(Debug)]
pub(super) enum Failed {
    DeviceLost(GpuError),
    Panicked,
}

impl Loaded {
    pub(super) fn new(
        source: Source,
        model: Model,
        load_time: Duration,
        departure: Departure,
    ) -> Self {
        Self {
            name: departure.name.clone(),
            source,
            load_time,
            jobs_done: AtomicU64::new(0),
            tally: Tally::default(),
            sessions: Mutex::default(),
            model,
            _departure: departure,
        }
    }

    /// Answers ended since the load.
    pub(super) fn jobs_done(&self) -> u64 {
        self.jobs_done.load(Ordering::Relaxed)
    }

    /// What its answers compute.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Does something else than answering. Blocking.
    pub(super) fn compute<T>(&self, cut: &Cut, work: impl FnOnce(&Self, &Cut) -> T) -> Option<T> {
        let computed = catch_unwind(AssertUnwindSafe(|| work(self, cut)));
        self.jobs_done.fetch_add(1, Ordering::Relaxed);
        computed.ok()
    }

    /// Answers a job and says all that there is to say of it. Blocking.
    pub(super) fn answer(&self, job: &Job, cut: &Cut) -> Result<(), Failed> {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.generate(job, cut)));
        self.jobs_done.fetch_add(1, Ordering::Relaxed);
        let (last, failed) = match outcome {
            Ok(Ok(last)) => (last, None),
            Ok(Err(error)) => {
                let lost = match &error {
                    GenerateError::Gpu(error) if error.is_lost() => Some(error.clone()),
                    _ => None,
                };
                (JobEvent::Failed(error.into()), lost.map(Failed::DeviceLost))
            }
            Err(_) => (JobEvent::Failed(JobError::Panicked), Some(Failed::Panicked)),
        };
        // Nobody may be listening any more.
        let _ = job.events.send(last);
        failed.map_or(Ok(()), Err)
    }

    fn generate(&self, job: &Job, cut: &Cut) -> Result<JobEvent, GenerateError> {
        let mut tallied = self.tally.begin(job.prompt.len());
        let mut is_first = true;
        let mut on_chunk = |chunk| {
            tallied.chunk(&chunk);
            if job.events.send(JobEvent::Chunk(chunk)).is_err() {
                cut.abandon();
            }
            // Whoever sends it may have been woken on this processor, which the next token would keep from
            // them for as long as it takes.
            if mem::take(&mut is_first) {
                thread::yield_now();
            }
        };
        let mut session = self.begin();
        let result = session.generate(&job.prompt, &job.params, cut.token(), &mut on_chunk);
        self.end(session);
        if let Ok(completion) = &result {
            tallied.done(completion);
        }
        match (result?, cut.reason()) {
            (Completion { finish: FinishReason::Cancelled, .. }, Some(reason)) => {
                Ok(JobEvent::Failed(JobError::CutShort(reason)))
            }
            (completion, _) => Ok(JobEvent::Done(completion)),
        }
    }

    /// Measures the model in a session of its own. Blocking.
    pub(crate) fn bench(
        &self,
        options: &BenchOptions,
        on_line: &mut OnLine<'_>,
    ) -> Result<(), GenerateError> {
        let mut session = self.begin();
        let done = session.bench(options, on_line);
        self.end(session);
        done
    }

    fn begin(&self) -> Session {
        let mut sessions = lock(&self.sessions);
        sessions.running += 1;
        sessions.kept.take().unwrap_or_else(|| self.model.session())
    }

    fn end(&self, session: Session) {
        let mut sessions = lock(&self.sessions);
        sessions.running -= 1;
        if sessions.running == 0 {
            sessions.kept = Some(session);
        }
    }
}
