//! Models whose files come from elsewhere: what is fetched, how far it is, and why it is not here.
//!
//! ```text
//!  catalog ──▶ follow ──▶ Fetch (one for each source) ──▶ record in store::sources ──▶ file_of
//!  m40ctl pull ──────────▶  │  ▲
//!                    failed ▼  │ after a while, or when somebody asks
//! ```
//!
//! What a manifest defines is fetched when the definition comes, and until it is here or the
//! definition is gone; who asks for the model meanwhile is told how far it is. What `m40ctl pull` asks
//! for is fetched as long as it listens, and after a restart. All who want one source share one fetch. A file of this machine
//! that must have a hash is "fetched" by hashing it where it is.

mod failure;
mod fetch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use m40_control::PullProgress;
use m40_manifest::{Catalog, Definition};
use m40_store::{FetchError, Request, Source};
use tokio::sync::{Notify, Semaphore, watch};

pub(crate) use failure::{Failure, NotHere, blob_error};
use fetch::Fetch;
pub(crate) use fetch::{State, Watching};

use crate::store::sources::{Found, Key, Record, Sources, Stamp, key_of};

/// Sources that are fetched at a time. More wait for their turn: each has threads and connections.
const FETCHES_MAX: usize = 4;

/// All fetches, and what came of them. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Pulls {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    blobs: m40_store::Store,
    sources: Sources,
    fetches: Mutex<BTreeMap<Key, Arc<Fetch>>>,
    /// What somebody waits for, once for each.
    watched: Mutex<Vec<Source>>,
    turns: Semaphore,
    /// Something that a definition needs is not here any more.
    missing: Notify,
    /// How often something has come.
    arrivals: watch::Sender<u64>,
    /// Bytes of all that has come.
    fetched_bytes: AtomicU64,
}

impl Pulls {
    /// Those of a store; `sources` is what came before.
    pub(crate) fn new(blobs: m40_store::Store, sources: Sources) -> Self {
        let inner = Inner {
            blobs,
            sources,
            fetches: Mutex::default(),
            watched: Mutex::default(),
            turns: Semaphore::new(FETCHES_MAX),
            missing: Notify::new(),
            arrivals: watch::Sender::new(0),
            fetched_bytes: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What came.
    pub(crate) fn sources(&self) -> &Sources {
        &self.inner.sources
    }

    /// Changes whenever something has come.
    pub(crate) fn arrivals(&self) -> watch::Receiver<u64> {
        self.inner.arrivals.subscribe()
    }

    /// Bytes of all that was fetched since the start.
    pub(crate) fn fetched_bytes(&self) -> u64 {
        self.inner.fetched_bytes.load(Ordering::Relaxed)
    }

    /// The file of this definition, or why it is not here yet. Of a path without a hash it is not
    /// said that it is there: a load finds that out.
    pub(crate) fn file_of(&self, definition: &Definition) -> Result<PathBuf, NotHere> {
        let request = request_of(definition);
        if let Source::File(file) = &request.source
            && request.sha256.is_none()
        {
            return check_size(file.path(), &request).map_err(|error| NotHere::failed(&error));
        }
        if let Some(path) = self.here(&request) {
            return Ok(path);
        }
        let Some(fetch) = self.fetches().get(&key_of(&request)).cloned() else {
            self.inner.missing.notify_one();
            return Err(NotHere::Coming(PullProgress::default()));
        };
        Err(fetch.not_here())
    }

    /// A definition with what its source says where it says nothing itself.
    pub(crate) fn complete(&self, definition: &Arc<Definition>) -> Arc<Definition> {
        let key = key_of(&request_of(definition));
        let record = self.inner.sources.find(&key);
        record.map_or_else(|| Arc::clone(definition), |record| record.defaults.complete(definition))
    }

    /// What came of this, if it is what is asked for and all of it is still there.
    pub(crate) fn record(&self, request: &Request) -> Option<Arc<Record>> {
        let record = self.inner.sources.find(&key_of(request))?;
        let is_right = match (&record.found, &record.source) {
            (Found::InPlace(stamp), Source::File(file)) => {
                Stamp::of(file.path()).is_ok_and(|found| found == *stamp)
            }
            (Found::InPlace(_), _) => false,
            (Found::Stored(files), _) => {
                let is_there = |path: PathBuf| path.is_file();
                files.iter().all(|file| is_there(self.inner.blobs.path(&file.sha256)))
            }
        };
        let fits = |bytes| record.size_bytes() == bytes;
        (is_right && request.size_bytes.is_none_or(fits)).then_some(record)
    }

    fn here(&self, request: &Request) -> Option<PathBuf> {
        self.record(request).map(|record| self.inner.sources.path_of(&record))
    }

    /// Fetches this for whoever watches; `anew` also if it is here.
    pub(crate) fn watch(&self, request: Request, anew: bool) -> Watching {
        if let Some(record) = self.record(&request).filter(|_| !anew) {
            return Watching::done(self, record);
        }
        self.join(&mut self.fetches(), request, |fetch| Watching::of(self, fetch, false))
    }

    /// The same for somebody who waits while what fails in passing is tried again.
    pub(crate) fn watch_patiently(&self, request: Request) -> Watching {
        if let Some(record) = self.record(&request) {
            return Watching::done(self, record);
        }
        self.join(&mut self.fetches(), request, |fetch| Watching::of(self, fetch, true))
    }

    /// Fetches what the catalog and each change of it need. Ends with the manifests.
    pub(crate) async fn follow(self, mut catalog: watch::Receiver<Arc<Catalog>>) {
        loop {
            let now = Arc::clone(&catalog.borrow_and_update());
            self.want(&now);
            tokio::select! {
                changed = catalog.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = self.inner.missing.notified() => {}
            }
        }
    }

    /// Looks again whether all that is defined is here: files have come or gone.
    pub(crate) fn look_again(&self) {
        self.inner.missing.notify_one();
        self.inner.arrivals.send_modify(|arrivals| *arrivals += 1);
    }

    fn want(&self, catalog: &Catalog) {
        let requests = catalog.models().map(|model| request_of(&model.definition));
        let missing: Vec<Request> = requests
            .filter(|request| needs_fetch(request) && self.record(request).is_none())
            .collect();
        let keys: BTreeSet<Key> = missing.iter().map(key_of).collect();
        let mut fetches = self.fetches();
        for request in missing {
            self.join(&mut fetches, request.clone(), |fetch| fetch.define(request));
        }
        for (_, fetch) in fetches.iter().filter(|(key, _)| !keys.contains(key)) {
            fetch.undefine();
        }
    }

    /// Joins the fetch of this: the one that there is, or a new one. `join` says who wants it.
    fn join<T>(
        &self,
        fetches: &mut BTreeMap<Key, Arc<Fetch>>,
        request: Request,
        join: impl FnOnce(Arc<Fetch>) -> T,
    ) -> T {
        let key = key_of(&request);
        if let Some(fetch) = fetches.get(&key) {
            return join(Arc::clone(fetch));
        }
        let fetch = Arc::new(Fetch::new(request));
        fetches.insert(key, Arc::clone(&fetch));
        // It ends when nobody wants it, so somebody does before it begins.
        let joined = join(Arc::clone(&fetch));
        tokio::spawn(fetch.run(self.clone()));
        joined
    }

    /// A fetch is over.
    fn forget(&self, fetch: &Fetch) {
        self.fetches().remove(fetch.key());
    }

    /// A fetch is over if really nobody wants it.
    fn forget_abandoned(&self, fetch: &Fetch) -> bool {
        let mut fetches = self.fetches();
        let is_over = fetch.is_abandoned();
        if is_over {
            fetches.remove(fetch.key());
        }
        is_over
    }

    /// The sources that are on their way or waited for, and what they are made of.
    pub(crate) fn coming(&self, catalog: &Catalog) -> BTreeSet<Source> {
        let running: Vec<Source> =
            self.fetches().keys().map(|(source, _)| source.clone()).collect();
        let defined = catalog.models().map(|model| request_of(&model.definition));
        let missing = defined
            .filter(|request| needs_fetch(request) && self.record(request).is_none())
            .map(|request| request.source);
        let watched = self.watched().clone();
        running
            .into_iter()
            .chain(missing)
            .chain(watched)
            .flat_map(|source| with_pieces(&source))
            .collect()
    }

    fn watched(&self) -> MutexGuard<'_, Vec<Source>> {
        // Every change is one push or remove, so a panic elsewhere leaves it whole.
        self.inner.watched.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn fetches(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Fetch>>> {
        // Every change to the map is one insert or remove, so a panic elsewhere leaves it whole.
        self.inner.fetches.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// What a definition needs.
pub(crate) fn request_of(definition: &Definition) -> Request {
    Request {
        source: definition.source.clone(),
        mirrors: definition.mirrors.iter().cloned().map(Source::Web).collect(),
        sha256: definition.sha256,
        size_bytes: definition.size_bytes,
    }
}

/// Whether more has to be done for this than to look at a path.
pub(crate) fn needs_fetch(request: &Request) -> bool {
    !matches!(request.source, Source::File(_)) || request.sha256.is_some()
}

/// Whether a file has the size that it should have, if it is there.
fn check_size(path: &Path, request: &Request) -> Result<PathBuf, FetchError> {
    let found = std::fs::metadata(path).map(|found| found.len());
    match (request.size_bytes, found) {
        (Some(expected_bytes), Ok(found_bytes)) if expected_bytes != found_bytes => {
            let url = path.display().to_string();
            Err(FetchError::Size { url, expected_bytes, found_bytes })
        }
        _ => Ok(path.to_path_buf()),
    }
}

/// A source, and those of the files that it is made of.
fn with_pieces(source: &Source) -> Vec<Source> {
    let mut all = vec![source.clone()];
    match source {
        Source::Parts(parts) => all.extend(parts.as_slice().iter().flat_map(with_pieces)),
        Source::Member(member) => all.push(member.archive().clone()),
        Source::Web(_) | Source::HuggingFace(_) | Source::Ollama(_) | Source::File(_) => {}
    }
    all
}
