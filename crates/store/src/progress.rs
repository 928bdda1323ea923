//! How far a download is. What is counted is on disk, and the count never goes back.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::host::Host;

/// The rate is that of this time.
const RATE_OVER: Duration = Duration::from_secs(10);
/// Most points in time that are kept for it.
const POINTS_MAX: usize = 64;

/// How far a download is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes that are hashed and on disk. They never become fewer.
    pub done_bytes: u64,
    /// Bytes in all, once that is known.
    pub total_bytes: Option<u64>,
    /// Bytes that got to the disk per second, lately.
    pub bytes_per_s: u64,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The origin is asked what there is.
    Resolving,
    /// What an earlier download left is hashed.
    Checking,
    /// Bytes come.
    Downloading,
    /// Something failed and is tried again.
    Waiting,
    /// The hash is wrong, and the bytes that are to blame are sought and replaced.
    Repairing,
    /// Parts are put together, or a member is taken out of an archive.
    Assembling,
}

impl Progress {
    pub(crate) const START: Self =
        Self { phase: Phase::Resolving, done_bytes: 0, total_bytes: None, bytes_per_s: 0 };
}

/// Where a download says how far it is.
#[derive(Debug)]
pub(crate) struct Meter {
    host: Arc<dyn Host>,
    progress: watch::Sender<Progress>,
    points: Mutex<VecDeque<(Instant, u64)>>,
}

impl Meter {
    pub(crate) fn new(host: Arc<dyn Host>) -> Self {
        Self { host, progress: watch::Sender::new(Progress::START), points: Mutex::default() }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(crate) fn phase(&self, phase: Phase) {
        self.progress
            .send_if_modified(|progress| std::mem::replace(&mut progress.phase, phase) != phase);
    }

    pub(crate) fn total(&self, bytes: u64) {
        self.progress.send_modify(|progress| progress.total_bytes = Some(bytes));
    }

    /// So many bytes were there already.
    pub(crate) fn found(&self, bytes: u64) {
        self.advance(bytes, None);
    }

    /// So many bytes are on disk by now.
    pub(crate) fn durable(&self, bytes: u64) {
        self.advance(bytes, Some(self.rate(bytes)));
    }

    fn advance(&self, bytes: u64, rate: Option<u64>) {
        self.progress.send_modify(|progress| {
            progress.done_bytes = progress.done_bytes.max(bytes);
            progress.bytes_per_s = rate.unwrap_or(progress.bytes_per_s);
        });
    }

    fn rate(&self, bytes: u64) -> u64 {
        let now = self.host.now();
        let mut points = self.points.lock().unwrap_or_else(|poison| poison.into_inner());
        points.push_back((now, bytes));
        while points.len() > POINTS_MAX
            || points.front().is_some_and(|(then, _)| now.duration_since(*then) > RATE_OVER)
        {
            points.pop_front();
        }
        let Some((then, before)) = points.front() else { return 0 };
        let seconds = now.duration_since(*then).as_secs_f64();
        if seconds > 0.0 { (bytes.saturating_sub(*before) as f64 / seconds) as u64 } else { 0 }
    }
}
