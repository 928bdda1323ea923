//! The store itself: one folder, which one process has at a time.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::warn;

use crate::adopt::Adopted;
use crate::blobs::{Blob, Blobs};
use crate::download::Transfer;
use crate::download::retry::Limiter;
use crate::error::{OpenError, StoreError};
use crate::host::{Host, Machine};
use crate::import::{Unfinished, Ways};
use crate::prune::{Pruned, Referenced};
use crate::settings::Settings;
use crate::sha256::Sha256;
use crate::verify::Verified;

/// Folder of what is being downloaded or imported.
pub(crate) const PARTIAL: &str = "partial";
/// Prefix of imports that are not blobs yet.
pub(crate) const UNFINISHED: &str = "import-";

/// Model files by the hash of what is in them. A cheap handle; the folder is locked until the last
/// one is gone, and no transfer runs.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) dir: PathBuf,
    pub(crate) blobs: Blobs,
    pub(crate) host: Arc<dyn Host>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) limiter: Limiter,
    transfers: Mutex<BTreeMap<String, Arc<Transfer>>>,
    // What is listed and then removed must not be replaced meanwhile.
    changing: Mutex<()>,
    unfinished_count: AtomicU64,
    _lock: File,
}

impl Store {
    /// Opens the folder, makes what is missing in it, and removes what interrupted imports left.
    /// Interrupted downloads stay: they go on when they are asked for again.
    pub fn open(dir: &Path, settings: Settings) -> Result<Self, OpenError> {
        Self::open_on(dir, settings, Arc::new(Machine))
    }

    /// The same on another machine, which tests have.
    pub fn open_on(dir: &Path, settings: Settings, host: Arc<dyn Host>) -> Result<Self, OpenError> {
        for part in Blobs::DIRS.into_iter().chain([PARTIAL]) {
            let part = dir.join(part);
            fs::create_dir_all(&part).map_err(create(&part))?;
        }
        let path = dir.join("lock");
        let lock = File::create(&path).map_err(create(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse { dir: dir.to_path_buf() });
            }
            Err(TryLockError::Error(source)) => return Err(create(&path)(source)),
        }
        remove_unfinished(&dir.join(PARTIAL), UNFINISHED);
        // Where imports were begun before there was a folder for it.
        remove_unfinished(&dir.join("blobs/sha256"), ".import-");
        let inner = Inner {
            dir: dir.to_path_buf(),
            blobs: Blobs::new(dir),
            host,
            settings: Arc::new(settings),
            limiter: Limiter::default(),
            transfers: Mutex::default(),
            changing: Mutex::default(),
            unfinished_count: AtomicU64::default(),
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Where the blob of this hash is, or would be.
    pub fn path(&self, sha256: &Sha256) -> PathBuf {
        self.inner.blobs.path(sha256)
    }

    /// The blob of this hash.
    pub fn find(&self, sha256: &Sha256) -> Option<Blob> {
        self.inner.blobs.find(sha256)
    }

    /// All blobs, by hash.
    pub fn list(&self) -> Result<Vec<Blob>, StoreError> {
        self.inner.blobs.list()
    }

    /// Stores a file of this machine, which must not be written to meanwhile: as a clone or as
    /// another name of it where its file system can, else as a copy. `progress` hears of each piece
    /// of bytes that was hashed. Blocking.
    pub fn import(&self, path: &Path, progress: &mut dyn FnMut(u64)) -> Result<Blob, StoreError> {
        let source = path.to_str().and_then(|path| path.parse().ok());
        self.inner.import(path, Ways::UpToCopy, source.into_iter().collect(), progress)
    }

    /// Stores what somebody sends, if it has the hash that was announced; of `size_bytes`, where that was
    /// announced too. Blocking.
    pub fn receive(
        &self,
        expected: &Sha256,
        size_bytes: Option<u64>,
        from: &mut dyn Read,
    ) -> Result<Blob, StoreError> {
        self.inner.receive(expected, size_bytes, from)
    }

    /// Stores what a models folder of Ollama or a hub cache of Hugging Face holds, without copying:
    /// as other names of its files, or by reference to them. `progress` hears the bytes hashed and
    /// in all. Blocking.
    pub fn adopt(
        &self,
        dir: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Adopted, StoreError> {
        self.inner.adopt(dir, progress)
    }

    /// Hashes a blob again, and quarantines it if it is not what its name says. `progress` hears of
    /// each piece of bytes. Blocking, and at idle priority: a thread of its own does it.
    pub fn verify(
        &self,
        sha256: &Sha256,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Verified, StoreError> {
        self.inner.verify(sha256, progress)
    }

    /// Removes a blob, and what is known of it. Where it is another name of a file, or refers to one,
    /// that file stays.
    pub fn remove(&self, sha256: &Sha256) -> Result<(), StoreError> {
        let _one_at_a_time = self.inner.changing();
        match self.inner.blobs.find(sha256) {
            Some(_) => self.inner.blobs.remove(sha256),
            None => Err(StoreError::NoBlob { sha256: *sha256 }),
        }
    }

    /// Removes the blobs that are not referenced, what is in quarantine, and downloads that nobody
    /// goes on with; all of them only if nothing happened to them for `unused_for`, so that what was
    /// just stored can still be named by a model.
    pub fn prune(
        &self,
        referenced: &Referenced,
        unused_for: Duration,
    ) -> Result<Pruned, StoreError> {
        self.inner.prune(referenced, unused_for, true)
    }

    /// What `prune` would remove.
    pub fn prune_dry_run(
        &self,
        referenced: &Referenced,
        unused_for: Duration,
    ) -> Result<Pruned, StoreError> {
        self.inner.prune(referenced, unused_for, false)
    }
}

impl Inner {
    /// A path for a file that is not a blob yet.
    pub(crate) fn unfinished(&self) -> Unfinished {
        let number = self.unfinished_count.fetch_add(1, Ordering::Relaxed);
        Unfinished(self.dir.join(PARTIAL).join(format!("{UNFINISHED}{number}")))
    }

    /// The downloads that run, by their keys.
    pub(crate) fn transfers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Transfer>>> {
        // Every change to the map is one insert or remove, so a panic elsewhere leaves it whole.
        self.transfers.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// While this is held no blob comes or goes.
    pub(crate) fn changing(&self) -> MutexGuard<'_, ()> {
        // It guards files, which a panic leaves as an error would.
        self.changing.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

fn create(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Io { path, source }
}

fn remove_unfinished(dir: &Path, prefix: &str) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        if let Err(error) = fs::remove_file(entry.path()) {
            warn!(%error, file = %entry.path().display(), "cannot remove an unfinished import");
        }
    }
}

pub(crate) fn unix_s(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
