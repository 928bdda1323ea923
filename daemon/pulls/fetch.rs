//! One source on its way here, and those who want it.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use m40_control::{PullPhase, PullProgress};
use m40_store::{
    FetchError, Phase, Progress, Pull, Pulled, Request, Source, StoreError, hash_file,
};
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::{Failure, NotHere, Pulls, check_size};
use crate::store::defaults::Defaults;
use crate::store::sources::{Found, Key, Record, Stamp, key_of};
use crate::store::{StoredFile, unix_s};

/// Wait before what a manifest defines is tried again; it doubles with each failure in a row.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Longest such wait.
const AGAIN_AFTER_MAX: Duration = Duration::from_secs(3600);
/// Bytes between two looks at how far the hash of a local file is.
const HASH_STEP_BYTES: u64 = 16 << 20;

/// How far a fetch is.
#[derive(Debug, Clone)]
pub(crate) enum State {
    Coming(PullProgress),
    Here(Arc<Record>),
    Failed(Arc<Failure>),
}

/// Who wants a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Interest {
    is_defined: bool,
    watchers: usize,
    /// Those of them who wait while it is tried again.
    patient: usize,
}

/// A source that is being fetched, or waits to be tried again.
#[derive(Debug)]
pub(crate) struct Fetch {
    key: Key,
    // Its mirrors and size may change on the way.
    request: Mutex<Request>,
    state: watch::Sender<State>,
    interest: watch::Sender<Interest>,
    /// Somebody asks for another try now.
    again: Notify,
}

impl Fetch {
    pub(super) fn new(request: Request) -> Self {
        Self {
            key: key_of(&request),
            request: Mutex::new(request),
            state: watch::Sender::new(State::Coming(PullProgress::default())),
            interest: watch::Sender::new(Interest::default()),
            again: Notify::new(),
        }
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    fn source(&self) -> &Source {
        &self.key.0
    }

    fn request(&self) -> Request {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Request> {
        // It is replaced as a whole.
        self.request.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// A manifest asks for it, in this way.
    pub(super) fn define(&self, request: Request) {
        let is_new = self
            .interest
            .send_if_modified(|interest| !std::mem::replace(&mut interest.is_defined, true));
        let mut known = self.lock();
        let differs = known.mirrors != request.mirrors || known.size_bytes != request.size_bytes;
        *known = request;
        drop(known);
        if is_new || differs {
            self.try_again();
        }
    }

    /// No manifest asks for it.
    pub(super) fn undefine(&self) {
        self.interest.send_modify(|interest| interest.is_defined = false);
    }

    /// Whether nobody wants it.
    pub(super) fn is_abandoned(&self) -> bool {
        *self.interest.borrow() == Interest::default()
    }

    /// If it has failed, it is tried again now.
    fn try_again(&self) {
        let has_failed = self.state.send_if_modified(|state| {
            let has_failed = matches!(state, State::Failed(_));
            if has_failed {
                *state = State::Coming(PullProgress::default());
            }
            has_failed
        });
        if has_failed {
            self.again.notify_one();
        }
    }

    /// Why it is not here, for somebody who asks for it. A file of this machine is then looked at
    /// again: it may be another one by now.
    pub(super) fn not_here(&self) -> NotHere {
        let state = self.state.borrow().clone();
        match state {
            State::Coming(progress) => NotHere::Coming(progress),
            State::Here(_) => NotHere::Coming(PullProgress::default()),
            State::Failed(failure) => {
                if matches!(self.source(), Source::File(_)) {
                    self.try_again();
                }
                NotHere::Failed(failure)
            }
        }
    }

    /// Fetches until it is here, or nobody wants it any more.
    pub(super) async fn run(self: Arc<Self>, pulls: Pulls) {
        let mut until_here = Box::pin(self.until_here(&pulls));
        loop {
            tokio::select! {
                record = &mut until_here => {
                    info!(source = record.source.shown(), bytes = record.size_bytes(), "fetched");
                    pulls.inner.fetched_bytes.fetch_add(record.size_bytes(), Ordering::Relaxed);
                    // In this order: who finds no fetch finds the record.
                    pulls.forget(&self);
                    self.state.send_replace(State::Here(record));
                    pulls.inner.arrivals.send_modify(|arrivals| *arrivals += 1);
                    return;
                }
                () = self.abandoned() => {
                    // Unless somebody has come meanwhile.
                    if pulls.forget_abandoned(&self) {
                        info!(source = self.source().shown(), "not wanted any more; what came is kept");
                        return;
                    }
                }
            }
        }
    }

    async fn abandoned(&self) {
        let mut interest = self.interest.subscribe();
        // The sender is alive in self.
        let _ = interest.wait_for(|interest| *interest == Interest::default()).await;
    }

    async fn until_here(&self, pulls: &Pulls) -> Arc<Record> {
        let mut wait = AGAIN_AFTER;
        loop {
            let error = match self.attempt(pulls).await {
                Ok(record) => return record,
                Err(error) => error,
            };
            let Interest { is_defined, patient, .. } = *self.interest.borrow();
            let is_waited_for = (is_defined || patient > 0) && error.may_pass();
            let again = is_waited_for.then(|| Instant::now() + wait);
            let failure = Failure::new(&error, again);
            warn!(source = self.source().shown(), "cannot fetch: {failure}");
            self.state.send_replace(State::Failed(Arc::new(failure)));
            tokio::select! {
                () = self.again.notified() => {}
                () = until(again) => wait = AGAIN_AFTER_MAX.min(2 * wait),
            }
            self.state.send_replace(State::Coming(PullProgress::default()));
        }
    }

    async fn attempt(&self, pulls: &Pulls) -> Result<Arc<Record>, FetchError> {
        if pulls.inner.turns.available_permits() == 0 {
            let queued = PullProgress { phase: PullPhase::Queued, ..PullProgress::default() };
            self.state.send_replace(State::Coming(queued));
        }
        // Nobody closes it; if somebody did, nobody would have to wait.
        let _turn = pulls.inner.turns.acquire().await;
        let request = self.request();
        let (found, defaults, left_out) = match &request.source {
            Source::File(file) => {
                (self.check(file.path(), &request).await?, Defaults::default(), Vec::new())
            }
            _ => self.pull(&pulls.inner.blobs, request.clone()).await?,
        };
        let record = Record {
            source: request.source,
            sha256: request.sha256,
            fetched_at_unix_s: unix_s(SystemTime::now()),
            found,
            defaults,
            left_out,
        };
        let pulls = pulls.clone();
        let kept = tokio::task::spawn_blocking(move || pulls.sources().keep(record)).await;
        Ok(kept.map_err(|_| FetchError::Lost)??)
    }

    async fn pull(
        &self,
        blobs: &m40_store::Store,
        request: Request,
    ) -> Result<(Found, Defaults, Vec<String>), FetchError> {
        let pull = CancelOnDrop(blobs.pull(request));
        let mut progress = pull.0.progress();
        let mut done = std::pin::pin!(pull.0.done());
        let pulled = loop {
            let now = *progress.borrow_and_update();
            self.state.send_replace(State::Coming(told(&now)));
            tokio::select! {
                pulled = &mut done => break pulled?,
                Ok(()) = progress.changed() => {}
            }
        };
        let found = files(&pulled);
        let weights = found.first().map(|file| blobs.path(&file.sha256)).unwrap_or_default();
        let defaults = move || {
            let ollama = pulled.ollama.as_ref();
            ollama.map(|model| Defaults::beside(model, &weights)).unwrap_or_default()
        };
        let defaults = tokio::task::spawn_blocking(defaults).await;
        let (defaults, left_out) = defaults.map_err(|_| FetchError::Lost)?;
        if !left_out.is_empty() {
            let left_out = left_out.join(", ");
            info!(source = self.source().shown(), left_out, "the source says more than is used");
        }
        Ok((Found::Stored(found), defaults, left_out))
    }

    /// Hashes a file of this machine where it is.
    async fn check(&self, path: &Path, request: &Request) -> Result<Found, FetchError> {
        check_size(path, request)?;
        let path = path.to_path_buf();
        let state = self.state.clone();
        let hashed = tokio::task::spawn_blocking({
            let path = path.clone();
            move || hash_in_place(&path, &state)
        });
        let (found, stamp) = hashed.await.map_err(|_| FetchError::Lost)??;
        match request.sha256 {
            Some(expected) if expected != found => {
                Err(FetchError::Digest { url: path.display().to_string(), expected, found })
            }
            _ => Ok(Found::InPlace(stamp)),
        }
    }
}

fn hash_in_place(
    path: &Path,
    state: &watch::Sender<State>,
) -> Result<(m40_store::Sha256, Stamp), StoreError> {
    let stamp = || {
        let action = "read";
        Stamp::of(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => StoreError::NoFile { path: path.to_path_buf() },
            _ => StoreError::Io { action, path: path.to_path_buf(), source },
        })
    };
    let before = stamp()?;
    let (phase, total_bytes) = (PullPhase::Checking, Some(before.size_bytes));
    let mut progress = PullProgress { phase, total_bytes, ..PullProgress::default() };
    let mut told = 0;
    let (sha256, _) = hash_file(path, &mut |bytes| {
        progress.done_bytes += bytes;
        if progress.done_bytes >= told + HASH_STEP_BYTES {
            told = progress.done_bytes;
            state.send_replace(State::Coming(progress));
        }
    })?;
    if stamp()? != before {
        return Err(StoreError::Changed { path: PathBuf::from(path) });
    }
    Ok((sha256, before))
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// What nobody waits for any more is cancelled.
struct CancelOnDrop(Pull);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Somebody who wants a source, and hears how far it is. While there is one, nothing that came of it
/// is pruned.
#[derive(Debug)]
pub(crate) struct Watching {
    state: watch::Receiver<State>,
    /// Where it is not here, and whether this one waits while it is tried again.
    fetch: Option<(Arc<Fetch>, bool)>,
    pulls: Pulls,
    source: Source,
}

impl Watching {
    /// Of a fetch that runs.
    pub(super) fn of(pulls: &Pulls, fetch: Arc<Fetch>, is_patient: bool) -> Self {
        fetch.interest.send_modify(|interest| {
            interest.watchers += 1;
            interest.patient += usize::from(is_patient);
        });
        // What is told is what comes of the try that begins now.
        fetch.try_again();
        let (state, source) = (fetch.state.subscribe(), fetch.source().clone());
        Self::new(pulls, source, state, Some((fetch, is_patient)))
    }

    /// Of what is here.
    pub(super) fn done(pulls: &Pulls, record: Arc<Record>) -> Self {
        let source = record.source.clone();
        Self::new(pulls, source, watch::Sender::new(State::Here(record)).subscribe(), None)
    }

    fn new(
        pulls: &Pulls,
        source: Source,
        state: watch::Receiver<State>,
        fetch: Option<(Arc<Fetch>, bool)>,
    ) -> Self {
        pulls.watched().push(source.clone());
        Self { state, fetch, pulls: pulls.clone(), source }
    }

    /// How far it is.
    pub(crate) fn state(&mut self) -> State {
        self.state.borrow_and_update().clone()
    }

    /// Waits for news, of which there are none after the end.
    pub(crate) async fn changed(&mut self) {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut watched = self.pulls.watched();
        if let Some(at) = watched.iter().position(|source| *source == self.source) {
            watched.swap_remove(at);
        }
        drop(watched);
        if let Some((fetch, is_patient)) = &self.fetch {
            fetch.interest.send_modify(|interest| {
                interest.watchers -= 1;
                interest.patient -= usize::from(*is_patient);
            });
        }
    }
}

fn files(pulled: &Pulled) -> Vec<StoredFile> {
    let file = |file: &m40_store::PulledFile| StoredFile {
        name: legal_name(&file.name),
        sha256: file.blob.sha256,
        size_bytes: file.blob.size_bytes,
    };
    pulled.files.iter().map(file).collect()
}

/// A name that a file can have: an origin may say any.
fn legal_name(name: &str) -> String {
    let is_legal = (1..=200).contains(&name.len())
        && !name.starts_with('.')
        && !name.chars().any(|c| c.is_control() || c == '/');
    if is_legal { name.to_owned() } else { "model.gguf".to_owned() }
}

fn told(progress: &Progress) -> PullProgress {
    PullProgress {
        phase: match progress.phase {
            Phase::Resolving => PullPhase::Resolving,
            Phase::Checking => PullPhase::Checking,
            Phase::Downloading => PullPhase::Downloading,
            Phase::Waiting => PullPhase::Waiting,
            Phase::Repairing => PullPhase::Repairing,
            Phase::Assembling => PullPhase::Assembling,
        },
        done_bytes: progress.done_bytes,
        total_bytes: progress.total_bytes,
        bytes_per_s: progress.bytes_per_s,
    }
}
