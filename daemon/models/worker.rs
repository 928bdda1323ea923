//! The thread that answers for one model: a bounded queue, first come, first served.
//!
//! The thread owns the model's session. Continuous batching will replace its inside; jobs and
//! events stay.

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

/// How a worker's thread ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ending {
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

/// The way to a model's thread.
#[derive(Debug)]
pub(crate) struct Worker {
    // `None` once the worker was told to end: the thread leaves when the queue is empty.
    queue: Mutex<Option<SyncSender<Job>>>,
    queue_max: usize,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    current: Mutex<Current>,
    jobs: AtomicU64,
    jobs_done: AtomicU64,
}

/// One lock for both, so that a job either sees the reason before it starts or is cancelled.
#[derive(Debug, Default)]
struct Current {
    cut_short: Option<Reason>,
    running: Option<CancelToken>,
}

impl Worker {
    /// Starts the thread; `ended` is called on it at its very end.
    pub(crate) fn spawn(
        name: &str,
        model: &Model,
        queue_max: usize,
        ended: impl FnOnce(Ending) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(queue_max);
        let shared = Arc::new(Shared::default());
        let (thread_shared, model) = (Arc::clone(&shared), model.clone());
        thread::Builder::new().name(thread_name(name)).spawn(move || {
            let ending = work(&model, &receiver, &thread_shared);
            // Jobs that are still queued learn of it by the end of their events.
            drop((receiver, model));
            ended(ending);
        })?;
        Ok(Self { queue: Mutex::new(Some(sender)), queue_max, shared })
    }

    /// Queues a job, or gives it back with the reason.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Refusal> {
        let queue = lock(&self.queue);
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
        lock(&self.queue).is_some()
    }

    /// Takes no more jobs and ends the thread after those it has, which are cut short when there
    /// is a reason.
    pub(crate) fn end(&self, cut_short: Option<Reason>) {
        if let Some(reason) = cut_short {
            let mut current = lock(&self.shared.current);
            current.cut_short = Some(reason);
            if let Some(running) = &current.running {
                running.cancel();
            }
        }
        *lock(&self.queue) = None;
    }

    /// Jobs waiting or running.
    pub(crate) fn jobs(&self) -> u64 {
        self.shared.jobs.load(Ordering::Relaxed)
    }

    /// Jobs ended since the start.
    pub(crate) fn jobs_done(&self) -> u64 {
        self.shared.jobs_done.load(Ordering::Relaxed)
    }
}

// The kernel keeps 15 bytes of a thread's name.
fn thread_name(model: &str) -> String {
    model.chars().take(15).collect()
}

fn work(model: &Model, queue: &Receiver<Job>, shared: &Shared) -> Ending {
    let mut session = model.session();
    while let Ok(job) = queue.recv() {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut session, &job, shared)));
        lock(&shared.current).running = None;
        shared.jobs.fetch_sub(1, Ordering::Relaxed);
        shared.jobs_done.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(None) => {}
            Ok(Some(lost)) => return Ending::DeviceLost(lost),
            Err(_) => {
                // The session may be half changed, so nothing more is asked of it.
                let _ = job.events.send(Event::Failed(JobError::Worker));
                return Ending::Panicked;
            }
        }
        // Last, so that no job is counted means that every event was sent.
        drop(job.counted);
    }
    Ending::Asked
}

/// Answers a job; returns why no other can be answered, if so.
fn run(session: &mut Session, job: &Job, shared: &Shared) -> Option<GpuError> {
    {
        let mut current = lock(&shared.current);
        if let Some(reason) = current.cut_short {
            let _ = job.events.send(Event::Failed(JobError::CutShort(reason)));
            return None;
        }
        current.running = Some(job.cancel.clone());
    }
    if job.cancel.is_cancelled() || job.events.is_closed() {
        return None;
    }
    let mut on_chunk = |chunk| {
        if job.events.send(Event::Chunk(chunk)).is_err() {
            job.cancel.cancel();
        }
    };
    let result = session.generate(&job.prompt, &job.params, &job.cancel, &mut on_chunk);
    let cut_short = lock(&shared.current).cut_short.filter(|_| job.cancel.is_cancelled());
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
