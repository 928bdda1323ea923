//! Something to generate, what comes of it, and why it may end early.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use m40llm::{CancelToken, Chunk, Completion, GenerateError, GenerateParams};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

/// Something to generate.
#[derive(Debug)]
pub(crate) struct Job {
    pub prompt: Arc<[u32]>,
    pub params: GenerateParams,
    /// Unbounded, so that a client that reads slowly never holds up the model; a job's events
    /// are bounded by the model's context.
    pub events: UnboundedSender<JobEvent>,
}

/// What a job has to say. After `Done` or `Failed` nothing follows.
#[derive(Debug)]
pub(crate) enum JobEvent {
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
    #[error("the model failed, see the log of m40d")]
    Panicked,
}

/// Why an answer was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    Stopping,
    Unloaded,
    Cancelled,
    Deadline,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stopping => "m40d is stopping",
            Self::Unloaded => "the model was unloaded",
            Self::Cancelled => "an operator cancelled it",
            Self::Deadline => "the request's time is over",
        })
    }
}

/// The way to end a running request from elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    reason: OnceLock<Reason>,
    token: CancelToken,
}

impl Cut {
    /// Ends it within a token. The first reason counts.
    pub(crate) fn short(&self, reason: Reason) {
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// Ends it because nobody listens.
    pub(crate) fn abandon(&self) {
        self.token.cancel();
    }

    /// Whether it was ended, and if by somebody else than who listens, why.
    pub(crate) fn reason(&self) -> Option<Reason> {
        self.reason.get().copied()
    }

    /// What the engine looks at.
    pub(crate) fn token(&self) -> &CancelToken {
        &self.token
    }
}

// No change of what the locks guard can panic halfway, so a panic leaves it whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// How many requests wait or run in the whole daemon.
#[derive(Debug, Clone)]
pub(crate) struct JobCount(watch::Sender<usize>);

impl Default for JobCount {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl JobCount {
    /// Counts one more until the token is dropped.
    pub(super) fn count(&self) -> CountedJob {
        self.0.send_modify(|jobs| *jobs += 1);
        CountedJob(self.0.clone())
    }

    /// Follows the count.
    pub(crate) fn subscribe(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }

    /// Waits until there are none.
    pub(crate) async fn none(&self) {
        // The sender is alive in self, so this ends only when the count is zero.
        let _ = self.0.subscribe().wait_for(|jobs| *jobs == 0).await;
    }
}

/// One job that counts.
#[derive(Debug)]
pub(super) struct CountedJob(watch::Sender<usize>);

impl Drop for CountedJob {
    fn drop(&mut self) {
        self.0.send_modify(|jobs| *jobs = jobs.saturating_sub(1));
    }
}
