//! One file comes from the web into the store.
//!
//! ```text
//!  origin ──▶ connections ──▶ partial/<key>/data ──▶ hash ──▶ flush, note in the chain ──▶ progress
//!             (this thread)                         (thread)  (thread)
//! ```
//!
//! A download has a thread and a runtime of its own, so that it may wait for the disk, and outlives
//! whoever asked for it. Several who ask for one file share one download.

pub(crate) mod error;
mod follower;
mod have;
mod partial;
mod repair;
pub(crate) mod retry;
mod round;

use std::cell::{Cell, RefCell};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::sync::{Notify, watch};
use tracing::{info, warn};
use url::Url;

use crate::blobs::{Blob, BlobInfo, Kept};
use crate::client::Client;
use crate::error::{StoreError, failed};
use crate::import::check_space;
use crate::progress::{Meter, Phase, Progress};
use crate::sha256::{CHUNK_BYTES, Hasher, Sha256};
use crate::source::Source;
use crate::store::{Inner, PARTIAL, unix_s};
use error::{FetchError, shown};
use follower::Follower;
use have::Have;
use partial::{Origin, Partial};
use retry::Tries;

/// A file to download.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// Where it is: the origin and its mirrors. There is at least one.
    pub(crate) urls: Vec<Url>,
    /// What it must hash to.
    pub(crate) sha256: Option<Sha256>,
    /// How long it must be.
    pub(crate) size_bytes: Option<u64>,
    /// What to note as where it came from.
    pub(crate) source: Source,
}

impl Job {
    /// The name of its folder. Downloads of one name are one download.
    pub(crate) fn key(&self) -> String {
        match (self.sha256, self.urls.first()) {
            (Some(sha256), _) => sha256.to_string(),
            (None, url) => {
                let url = url.map(Url::as_str).unwrap_or_default();
                format!("url-{}", Sha256::of(url.as_bytes()))
            }
        }
    }
}

/// What came of a download, once it is over.
type Outcome = Option<Result<Blob, FetchError>>;

/// A running download, which all who want the file share.
#[derive(Debug)]
pub(crate) struct Transfer {
    meter: Arc<Meter>,
    outcome: watch::Sender<Outcome>,
    cancelled: watch::Sender<bool>,
    interested: AtomicUsize,
}

impl Transfer {
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.meter.subscribe()
    }

    pub(crate) async fn done(&self) -> Result<Blob, FetchError> {
        let mut outcome = self.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(FetchError::Lost)),
            Err(_) => Err(FetchError::Lost),
        }
    }

    /// If it ends because nobody wants it: waits until its files are not in use any more.
    pub(crate) async fn left(&self) {
        if *self.cancelled.borrow() {
            let _ = self.done().await;
        }
    }
}

impl Inner {
    /// The download of a file: the one that runs, or a new one.
    pub(crate) async fn transfer(self: &Arc<Self>, job: &Job) -> Result<Arc<Transfer>, FetchError> {
        loop {
            let ending = match self.join_or_start(job)? {
                Joined::Transfer(transfer) => return Ok(transfer),
                Joined::Ending(transfer) => transfer,
            };
            // Its files are in use until it is over.
            let _ = ending.done().await;
        }
    }

    /// Somebody does not want a file any more; without anybody who does, its download ends.
    pub(crate) fn leave(&self, transfer: &Transfer) {
        // While nobody joins.
        let _transfers = self.transfers();
        if transfer.interested.fetch_sub(1, Ordering::Relaxed) == 1 {
            transfer.cancelled.send_replace(true);
        }
    }

    fn join_or_start(self: &Arc<Self>, job: &Job) -> Result<Joined, FetchError> {
        let key = job.key();
        let mut transfers = self.transfers();
        if let Some(running) = transfers.get(&key) {
            if *running.cancelled.borrow() {
                return Ok(Joined::Ending(Arc::clone(running)));
            }
            running.interested.fetch_add(1, Ordering::Relaxed);
            return Ok(Joined::Transfer(Arc::clone(running)));
        }
        let transfer = Arc::new(Transfer {
            meter: Arc::new(Meter::new(Arc::clone(&self.host))),
            outcome: watch::Sender::new(None),
            cancelled: watch::Sender::new(false),
            interested: AtomicUsize::new(1),
        });
        let running = Running { key: key.clone(), transfer: Arc::clone(&transfer) };
        let (inner, job) = (Arc::clone(self), job.clone());
        let thread = thread::Builder::new().name("store-fetch".to_owned());
        thread
            .spawn(move || running.run(inner, job))
            .map_err(failed("start a thread for", &self.dir))?;
        transfers.insert(key, Arc::clone(&transfer));
        Ok(Joined::Transfer(transfer))
    }
}

enum Joined {
    Transfer(Arc<Transfer>),
    Ending(Arc<Transfer>),
}

/// A download in its thread.
struct Running {
    key: String,
    transfer: Arc<Transfer>,
}

impl Running {
    fn run(self, inner: Arc<Inner>, job: Job) {
        // Whatever happens here, the others hear of its end.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.outcome(&inner, job)));
        let outcome = outcome.unwrap_or(Err(FetchError::Lost));
        match &outcome {
            Ok(blob) => info!(blob = %blob.sha256, bytes = blob.size_bytes, "downloaded"),
            Err(error) => warn!(%error, "a download failed"),
        }
        // Who hears of the end may ask again at once, or open the store anew.
        inner.transfers().remove(&self.key);
        drop(inner);
        self.transfer.outcome.send_replace(Some(outcome));
    }

    fn outcome(&self, inner: &Inner, job: Job) -> Result<Blob, FetchError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(failed("start a runtime for", &inner.dir))?;
        let mut cancelled = self.transfer.cancelled.subscribe();
        runtime.block_on(async {
            tokio::select! {
                blob = Download::run(inner, job, &self.key, &self.transfer.meter) => blob,
                _ = cancelled.wait_for(|cancelled| *cancelled) => Err(FetchError::Cancelled),
            }
        })
    }
}

/// The state of a download in its thread.
struct Download<'a> {
    inner: &'a Inner,
    job: Job,
    client: Client,
    partial: Arc<Partial>,
    meter: &'a Arc<Meter>,
    origin: RefCell<Origin>,
    have: RefCell<Have>,
    /// Bytes have come, or a connection is over.
    moved: Notify,
    follower: RefCell<Option<Follower>>,
    /// Which of the URLs is asked.
    url: Cell<usize>,
    connections: Cell<usize>,
    /// How often an origin answered ranges wrongly.
    range_faults: Cell<u32>,
}

impl<'a> Download<'a> {
    async fn run(
        inner: &'a Inner,
        job: Job,
        key: &str,
        meter: &'a Arc<Meter>,
    ) -> Result<Blob, FetchError> {
        let dir = inner.dir.join(PARTIAL).join(key);
        if let Some(blob) = job.sha256.and_then(|sha256| inner.blobs.find(&sha256)) {
            let _ = fs::remove_dir_all(&dir);
            return Ok(blob);
        }
        let download = Self::open(inner, job, dir, meter).await?;
        download.fetch().await?;
        let hasher = download.hashed()?;
        download.settle(hasher).await
    }

    /// Finds out what an earlier download left, by hashing it.
    async fn open(
        inner: &'a Inner,
        job: Job,
        dir: PathBuf,
        meter: &'a Arc<Meter>,
    ) -> Result<Self, FetchError> {
        let client = Client::new(Arc::clone(&inner.settings))?;
        let partial = Arc::new(Partial::open(dir)?);
        // Where the length is known beforehand, so is whether there is room.
        if let Some(size) = job.size_bytes {
            let needed = size.saturating_sub(partial.taken_bytes()?);
            check_space(&*inner.host, partial.dir(), needed)?;
        }
        let origin = partial.origin().unwrap_or_default();
        if let Some(size) = job.size_bytes.or(origin.size_bytes) {
            meter.total(size);
        }
        meter.phase(Phase::Checking);
        let hasher = partial.check(&|bytes| meter.found(bytes)).await?;
        let have = Have::up_to(hasher.length());
        let follower = Follower::start(&partial, hasher, meter)?;
        Ok(Self {
            inner,
            client,
            partial,
            meter,
            origin: RefCell::new(origin),
            have: RefCell::new(have),
            moved: Notify::new(),
            follower: RefCell::new(Some(follower)),
            url: Cell::new(0),
            connections: Cell::new(inner.settings.connections.max(1)),
            range_faults: Cell::new(0),
            job,
        })
    }

    /// Fetches until all bytes are there, as often as it takes and is allowed.
    async fn fetch(&self) -> Result<(), FetchError> {
        let mut tries = Tries::default();
        let mut refused = 0;
        loop {
            let before = self.frontier();
            let Err(error) = self.round().await else { return Ok(()) };
            self.have.borrow_mut().give_all_back();
            self.check_follower()?;
            if self.frontier() >= before + CHUNK_BYTES {
                tries.reset();
                refused = 0;
            }
            if error.is_passing() {
                self.wait(&mut tries, error).await?;
            } else {
                refused += 1;
                if !error.is_the_origins() || refused >= self.job.urls.len() {
                    return Err(error);
                }
                warn!(%error, "trying a mirror");
            }
            self.url.set((self.url.get() + 1) % self.job.urls.len());
        }
    }

    /// Waits before the next try, if there is one.
    async fn wait(&self, tries: &mut Tries, error: FetchError) -> Result<(), FetchError> {
        if error.is_too_many() {
            self.connections.set(self.connections.get().div_ceil(2));
        }
        if matches!(error, FetchError::Ranges { .. }) {
            self.range_faults.set(self.range_faults.get() + 1);
        }
        let host = &self.inner.host;
        let wait = tries.next(&self.inner.settings, error.retry_after(), host.chance());
        let Some(wait) = wait else {
            return Err(FetchError::GaveUp { tries: tries.count(), last: Box::new(error) });
        };
        info!(%error, wait_ms = wait.as_millis() as u64, "a download goes on later");
        self.meter.phase(Phase::Waiting);
        host.sleep(wait).await;
        Ok(())
    }

    fn frontier(&self) -> u64 {
        self.have.borrow().frontier()
    }

    fn address(&self) -> &Url {
        &self.job.urls[self.url.get()]
    }

    /// How long the file is, if anybody said so.
    fn size(&self) -> Option<u64> {
        self.job.size_bytes.or(self.origin.borrow().size_bytes)
    }

    /// Begins at the first byte again. What is on disk stays, and is written over by what may well
    /// be the same.
    fn restart(&self) -> Result<(), FetchError> {
        drop(self.follower.take());
        *self.have.borrow_mut() = Have::default();
        let follower = Follower::start(&self.partial, Hasher::new(), self.meter)?;
        *self.follower.borrow_mut() = Some(follower);
        Ok(())
    }

    /// Says what failed behind the connections, if anything did.
    fn check_follower(&self) -> Result<(), FetchError> {
        let frontier = self.frontier();
        let goes_on = self.follower.borrow().as_ref().is_some_and(|f| f.advance(frontier));
        if goes_on { Ok(()) } else { self.hashed().map(|_| ()) }
    }

    /// Waits until all bytes are hashed and on disk.
    fn hashed(&self) -> Result<Hasher, FetchError> {
        let follower = self.follower.take().ok_or(FetchError::Lost)?;
        let hasher = follower.finish()?;
        self.partial.finish(hasher.length())?;
        Ok(hasher)
    }

    /// The file becomes a blob if it is what was wanted, or can be made so.
    async fn settle(&self, mut hasher: Hasher) -> Result<Blob, FetchError> {
        if let Some(expected) = self.job.sha256
            && hasher.finish() != expected
        {
            self.meter.phase(Phase::Repairing);
            warn!(%expected, found = %hasher.finish(), "a download has a wrong hash");
            hasher = self.repair(hasher, expected).await?;
        }
        let now = unix_s(self.inner.host.today());
        let info = BlobInfo {
            sources: vec![self.job.source.clone()],
            added_unix_s: now,
            verified_unix_s: now,
            kept: Kept::Own,
        };
        let blob = self.inner.admit(&self.partial.data_path(), &hasher, info)?;
        self.meter.total(blob.size_bytes);
        self.meter.found(blob.size_bytes);
        let _ = fs::remove_dir_all(self.partial.dir());
        Ok(blob)
    }

    /// A write that failed for want of space says how much is missing.
    fn write_failed(&self, source: std::io::Error, written: u64) -> FetchError {
        let dir = self.partial.dir().to_path_buf();
        if source.kind() == std::io::ErrorKind::StorageFull {
            let free_bytes = self.inner.host.free_bytes(&dir).unwrap_or(0);
            let needed_bytes = self.size().unwrap_or(written).saturating_sub(written).max(1);
            return StoreError::NoSpace { dir, needed_bytes, free_bytes }.into();
        }
        failed("write", &self.partial.data_path())(source).into()
    }

    fn ranges_error(&self, reason: impl Into<String>) -> FetchError {
        FetchError::Ranges { url: shown(self.address()), reason: reason.into() }
    }
}
