//! The threads that answer for one model: a bounded queue, first come, first served.
//!
//! A thread answers a job at a time, in a session. There are as many as the model gains by: one on the
//! CPU; on a GPU all that it has places for, and it batches them. The session of an answer that ends
//! when no other is under way is kept, for whoever comes next may go on with its conversation. Kept
//! beside others it would hold memory that they need.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use m40llm::{
    CancelToken, Chunk, Completion, GenerateError, GenerateParams, GpuError, Model, Session,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tracing::warn;

use super::tally::Tally;

/// Something to generate.
#[derive(Debug)]
pub(crate) struct Job {
    pub prompt: Vec<u32>,
    pub params: GenerateParams,
    pub cancel: CancelToken,
    /// Unbounded, so that a client that reads slowly never holds up the model; a job's events
    /// are bounded by the model's context.
    pub events: UnboundedSender<Event>,
    /// Counts the job until it has ended.
    pub counted: CountedJob,
}

/// What a job has to say. After `Done` or `Failed` nothing follows.
#[derive(Debug)]
pub(crate) enum Event {
    Chunk(Chunk),
    Done(Completion),
    Failed(JobError),
}

/// Why a job did not end by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JobError {
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error("the answer was cut short: {0}")]
    CutShort(Reason),
    #[error("the model's worker failed, see the log of m40d")]
    Worker,
}

/// Why an operator cut answers short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Stopping,
    Unloaded,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stopping => "m40d is stopping",
            Self::Unloaded => "the model was unloaded",
        })
    }
}

/// How a worker ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) enum Ending {
    #[default]
    Asked,
    DeviceLost(GpuError),
    Panicked,
}

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    QueueFull { limit: usize },
    Ending,
}

/// The way to a model's threads.
#[derive(Debug)]
pub(crate) struct Worker {
    queue_max: usize,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    // `None` once the worker was told to end or failed: threads leave when the queue is empty.
    queue: Mutex<Option<SyncSender<Job>>>,
    current: Mutex<Current>,
    jobs: AtomicU64,
    jobs_done: AtomicU64,
    tally: Tally,
}

/// One lock for both, so that a job either sees the reason before it starts or is cancelled.
#[derive(Debug, Default)]
struct Current {
    cut_short: Option<Reason>,
    /// By thread.
    running: BTreeMap<usize, CancelToken>,
}

/// What the threads of a worker share with each other alone: it goes with the last of them.
struct Crew<'a> {
    model: &'a Model,
    queue: Mutex<Receiver<Job>>,
    /// The session that is kept; none while a job runs.
    idle: Mutex<Option<Session>>,
    ending: Mutex<Ending>,
    shared: &'a Shared,
}

impl Worker {
    /// Starts threads for `side_by_side` jobs at a time; `ended` is called at the very end of the
    /// last.
    pub(crate) fn spawn(
        name: &str,
        model: &Model,
        side_by_side: usize,
        queue_max: usize,
        ended: impl FnOnce(Ending) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(queue_max);
        let shared = Arc::new(Shared {
            queue: Mutex::new(Some(sender)),
            current: Mutex::default(),
            jobs: AtomicU64::new(0),
            jobs_done: AtomicU64::new(0),
            tally: Tally::default(),
        });
        let (thread_shared, model) = (Arc::clone(&shared), model.clone());
        thread::Builder::new().name(thread_name(name)).spawn(move || {
            // Jobs that are still queued learn of it by the end of their events.
            let ending = Crew::new(&model, receiver, &thread_shared).work(side_by_side);
            drop(model);
            ended(ending);
        })?;
        Ok(Self { queue_max, shared })
    }

    /// Queues a job, or gives it back with the reason.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Refusal> {
        let queue = lock(&self.shared.queue);
        let Some(queue) = queue.as_ref() else { return Err(Refusal::Ending) };
        // Counted first, so that the thread never counts down what was not counted up.
        self.shared.jobs.fetch_add(1, Ordering::Relaxed);
        queue.try_send(job).map_err(|error| {
            self.shared.jobs.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => Refusal::QueueFull { limit: self.queue_max },
                TrySendError::Disconnected(_) => Refusal::Ending,
            }
        })
    }

    /// Whether it was not told to end.
    pub(crate) fn takes_jobs(&self) -> bool {
        lock(&self.shared.queue).is_some()
    }

    /// Takes no more jobs and ends the threads after those there are, which are cut short when there
    /// is a reason.
    pub(crate) fn end(&self, cut_short: Option<Reason>) {
        if let Some(reason) = cut_short {
            let mut current = lock(&self.shared.current);
            current.cut_short = Some(reason);
            current.running.values().for_each(CancelToken::cancel);
        }
        *lock(&self.shared.queue) = None;
    }

    /// Jobs waiting or running.
    pub(crate) fn jobs(&self) -> u64 {
        self.shared.jobs.load(Ordering::Relaxed)
    }

    /// Jobs ended since the start.
    pub(crate) fn jobs_done(&self) -> u64 {
        self.shared.jobs_done.load(Ordering::Relaxed)
    }

    /// What its jobs compute.
    pub(crate) fn tally(&self) -> &Tally {
        &self.shared.tally
    }
}

// The kernel keeps 15 bytes of a thread's name.
fn thread_name(model: &str) -> String {
    model.chars().take(15).collect()
}

impl<'a> Crew<'a> {
    fn new(model: &'a Model, queue: Receiver<Job>, shared: &'a Shared) -> Self {
        let (idle, ending) = (Mutex::default(), Mutex::default());
        Self { model, queue: Mutex::new(queue), idle, ending, shared }
    }

    /// Answers until the worker is told to end, or fails; `threads` jobs at a time, of which this
    /// thread has one.
    fn work(self, threads: usize) -> Ending {
        let crew = &self;
        let name = thread::current().name().unwrap_or_default().to_owned();
        thread::scope(|scope| {
            for number in 1..threads {
                let thread = thread::Builder::new().name(name.clone());
                if let Err(error) = thread.spawn_scoped(scope, move || crew.answer_all(number)) {
                    warn!(%error, "a model answers only {number} requests at a time");
                    break;
                }
            }
            crew.answer_all(0);
        });
        self.ending.into_inner().unwrap_or_else(|poison| poison.into_inner())
    }

    fn answer_all(&self, thread: usize) {
        while let Some(job) = self.next() {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.answer(thread, &job)));
            lock(&self.shared.current).running.remove(&thread);
            self.shared.jobs.fetch_sub(1, Ordering::Relaxed);
            self.shared.jobs_done.fetch_add(1, Ordering::Relaxed);
            match outcome {
                Ok(None) => {}
                Ok(Some(lost)) => self.fail(Ending::DeviceLost(lost)),
                Err(_) => {
                    let _ = job.events.send(Event::Failed(JobError::Worker));
                    self.fail(Ending::Panicked);
                }
            }
            // Last, so that no job is counted means that every event was sent.
            drop(job.counted);
        }
    }

    /// The next job to answer. One thread waits for it, the others for their turn to wait.
    fn next(&self) -> Option<Job> {
        let job = lock(&self.queue).recv().ok()?;
        (*lock(&self.ending) == Ending::Asked).then_some(job)
    }

    /// Takes no more jobs and answers none that wait: the first reason counts.
    fn fail(&self, reason: Ending) {
        let mut ending = lock(&self.ending);
        if *ending == Ending::Asked {
            *ending = reason;
        }
        *lock(&self.shared.queue) = None;
    }

    /// Answers a job; returns why no other can be answered, if so.
    fn answer(&self, thread: usize, job: &Job) -> Option<GpuError> {
        {
            let mut current = lock(&self.shared.current);
            if let Some(reason) = current.cut_short {
                let _ = job.events.send(Event::Failed(JobError::CutShort(reason)));
                return None;
            }
            current.running.insert(thread, job.cancel.clone());
        }
        if job.cancel.is_cancelled() || job.events.is_closed() {
            return None;
        }
        let mut tallied = self.shared.tally.begin(job.prompt.len());
        let mut on_chunk = |chunk| {
            tallied.chunk(&chunk);
            if job.events.send(Event::Chunk(chunk)).is_err() {
                job.cancel.cancel();
            }
        };
        let mut session = self.session();
        let result = session.generate(&job.prompt, &job.params, &job.cancel, &mut on_chunk);
        self.keep(session);
        if let Ok(completion) = &result {
            tallied.done(completion);
        }
        // Before anyone hears that the answer is there.
        drop(tallied);
        let cut_short = lock(&self.shared.current).cut_short.filter(|_| job.cancel.is_cancelled());
        let lost = match &result {
            Err(GenerateError::Gpu(error)) if error.is_lost() => Some(error.clone()),
            _ => None,
        };
        let last = match (result, cut_short) {
            (Ok(_), Some(reason)) => Event::Failed(JobError::CutShort(reason)),
            (Ok(completion), None) => Event::Done(completion),
            (Err(error), _) => Event::Failed(error.into()),
        };
        // Nobody may be listening any more.
        let _ = job.events.send(last);
        lost
    }

    fn session(&self) -> Session {
        lock(&self.idle).take().unwrap_or_else(|| self.model.session())
    }

    /// Keeps a session for later if no job but its own runs.
    fn keep(&self, session: Session) {
        // Held until it is kept: who comes later finds it, and leaves none that is kept beside it.
        let current = lock(&self.shared.current);
        if current.running.len() == 1 {
            *lock(&self.idle) = Some(session);
        }
    }
}

// What the locks guard is replaced in single assignments, so a panic leaves it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// How many jobs there are in the whole daemon.
#[derive(Debug, Clone)]
pub(crate) struct JobCount(watch::Sender<usize>);

impl Default for JobCount {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl JobCount {
    /// Counts one more until the token is dropped.
    pub(crate) fn count(&self) -> CountedJob {
        self.0.send_modify(|jobs| *jobs += 1);
        CountedJob(self.0.clone())
    }

    /// Waits until there are none.
    pub(crate) async fn none(&self) {
        // The sender is alive in self, so this ends only when the count is zero.
        let _ = self.0.subscribe().wait_for(|jobs| *jobs == 0).await;
    }
}

/// One job that counts.
#[derive(Debug)]
pub(crate) struct CountedJob(watch::Sender<usize>);

impl Drop for CountedJob {
    fn drop(&mut self) {
        self.0.send_modify(|jobs| *jobs = jobs.saturating_sub(1));
    }
}
