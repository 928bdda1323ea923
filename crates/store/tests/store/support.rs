//! A store in a temporary folder, on a machine whose disk and patience a test decides.

use std::fs::File;
use std::future::Future;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use m40_store::{
    CHUNK_BYTES, FetchError, Host, Machine, OpenError, Proxy, Pulled, Request, Settings, Sha256,
    Source, Store,
};
use m40_testkit::origin::Origin;
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub(crate) const CHUNK: usize = CHUNK_BYTES as usize;

/// A machine that does not sleep, and whose disk may be full.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) slept: Mutex<Vec<Duration>>,
    pub(crate) free_bytes: AtomicU64,
    /// The byte at this place of a file gets another value on its way to the disk.
    pub(crate) spoils_at: AtomicU64,
    /// Bytes that may still be written before the disk is full.
    pub(crate) room_bytes: AtomicU64,
}

impl Host for Stage {
    fn now(&self) -> Instant {
        Machine.now()
    }

    fn today(&self) -> SystemTime {
        Machine.today()
    }

    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.slept.lock().expect("nobody panics with it").push(time);
        Box::pin(std::future::ready(()))
    }

    fn chance(&self) -> f64 {
        0.0
    }

    fn free_bytes(&self, _: &Path) -> io::Result<u64> {
        Ok(self.free_bytes.load(Ordering::Relaxed))
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let takes = |room: u64| room.checked_sub(bytes.len() as u64);
        match self.room_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, takes) {
            Ok(_) => {
                let mut bytes = bytes.to_vec();
                let spoilt = self.spoils_at.load(Ordering::Relaxed).checked_sub(offset);
                if let Some(byte) = spoilt.and_then(|at| bytes.get_mut(at as usize)) {
                    *byte ^= 1;
                }
                Machine.write_at(file, &bytes, offset)
            }
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

/// An origin, and a folder for a store.
pub(crate) struct Site {
    pub(crate) origin: Origin,
    pub(crate) root: TempDir,
    pub(crate) stage: Arc<Stage>,
    runtime: Runtime,
}

impl Site {
    pub(crate) fn new() -> Self {
        let stage = Stage {
            slept: Mutex::default(),
            free_bytes: AtomicU64::new(u64::MAX),
            spoils_at: AtomicU64::new(u64::MAX),
            room_bytes: AtomicU64::new(u64::MAX),
        };
        Self {
            origin: Origin::start(),
            root: tempfile::tempdir().expect("a temporary folder"),
            stage: Arc::new(stage),
            runtime: Runtime::new().expect("a runtime"),
        }
    }

    /// Settings that give up soon, with so many connections.
    pub(crate) fn settings(&self, connections: usize) -> Settings {
        let here = self.origin.url("").parse().expect("a URL");
        Settings {
            connections,
            tries_max: 4,
            stall_timeout: Duration::from_secs(60),
            proxy: Proxy::Direct,
            hugging_face: Clone::clone(&here),
            ollama: here,
            ..Settings::default()
        }
    }

    pub(crate) fn store(&self) -> Store {
        self.store_with(self.settings(1))
    }

    /// Opens the store, also where one of this process was just dropped: a transfer that has ended, or
    /// a child between its fork and its exec, may have the lock a moment longer.
    pub(crate) fn store_with(&self, settings: Settings) -> Store {
        let dir = self.root.path().join("state");
        let give_up = Instant::now() + Duration::from_secs(30);
        loop {
            let host = Arc::clone(&self.stage) as Arc<dyn Host>;
            match Store::open_on(&dir, settings.clone(), host) {
                Err(OpenError::InUse { .. }) if Instant::now() < give_up => thread::yield_now(),
                opened => return opened.expect("a store"),
            }
        }
    }

    /// The source of a path at the origin.
    pub(crate) fn source(&self, path: &str) -> Source {
        self.origin.url(path).parse().expect("a source")
    }

    /// Whatever is at a path of the origin, which must hash as these bytes do.
    pub(crate) fn request(&self, path: &str, bytes: &[u8]) -> Request {
        Request { sha256: Some(Sha256::of(bytes)), ..Request::new(self.source(path)) }
    }

    pub(crate) fn pull(&self, store: &Store, request: Request) -> Result<Arc<Pulled>, FetchError> {
        self.wait(store.pull(request).done())
    }

    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Which byte each request to a path began with.
    pub(crate) fn starts(&self, path: &str) -> Vec<u64> {
        let start = |range: &str| {
            let start = range.strip_prefix("bytes=").and_then(|range| range.split('-').next());
            start.and_then(|start| start.parse().ok()).expect("a range")
        };
        let seen = self.origin.seen_at(path);
        seen.iter().map(|seen| seen.header("range").map_or(0, start)).collect()
    }

    /// Names in the folder of downloads that are not over.
    pub(crate) fn partial(&self) -> Vec<String> {
        names(&self.root.path().join("state/partial"))
    }
}

/// A folder on another file system than the site's, or a word about why there is none.
pub(crate) fn other_file_system(site: &Site) -> Option<TempDir> {
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    let dir = tempfile::Builder::new().tempdir_in("/dev/shm").ok();
    let dir = dir.filter(|dir| device(dir.path()) != device(site.root.path()));
    if dir.is_none() {
        // Not through the harness, which shows this only of tests that fail.
        let line = b"store: skipped: /dev/shm is no file system of its own here\n";
        io::stderr().write_all(line).expect("standard error is open");
    }
    dir
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("the folder must be there");
    let name = |entry: io::Result<std::fs::DirEntry>| {
        entry.expect("a readable folder").file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort();
    names
}

/// Bytes without a pattern, other ones for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

/// The contents of the one file that was pulled.
pub(crate) fn contents(store: &Store, pulled: &Pulled) -> Vec<u8> {
    let [file] = pulled.files.as_slice() else { panic!("not one file: {pulled:?}") };
    std::fs::read(store.path(&file.blob.sha256)).expect("the blob must be there")
}
