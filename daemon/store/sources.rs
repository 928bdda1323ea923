//! What sources turned out to be, on disk: so that after a restart a model is here without anybody
//! on the network being asked.
//!
//! ```text
//! sources/<key>/source.toml     what the source is; it is known exactly when this file is there
//! sources/<key>/files/<file>    links to the blobs under the files' own names (splits need them)
//! ```
//!
//! The key is a hash of the source, and of the hash that its file was asked to have: with another
//! one it may be another file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use m40_store::{Request, Sha256, Source};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::defaults::Defaults;
use super::{BlobError, StoredFile, failed, link_files, sync_dir, write_toml};

/// Longest record that is read.
const RECORD_BYTES_MAX: u64 = 2 << 20;

/// What tells sources apart.
pub(crate) type Key = (Source, Option<Sha256>);

/// What tells sources apart, of something that is asked for.
pub(crate) fn key_of(request: &Request) -> Key {
    (request.source.clone(), request.sha256)
}

/// What a source turned out to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub source: Source,
    /// What its file was asked to hash to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    pub fetched_at_unix_s: u64,
    pub found: Found,
    #[serde(default)]
    pub defaults: Defaults,
    /// What the source has beside, and is not used.
    #[serde(default)]
    pub left_out: Vec<String>,
}

/// Where the files of a source are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Found {
    /// In the store: one, or all of a split in order.
    Stored(Vec<StoredFile>),
    /// Where it was, with the right hash when it looked like this.
    InPlace(Stamp),
}

/// What changes when somebody writes to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stamp {
    pub size_bytes: u64,
    modified_unix_s: i64,
    modified_ns: i64,
    inode: u64,
}

impl Stamp {
    /// The stamp of the file that a path leads to.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            size_bytes: found.len(),
            modified_unix_s: found.mtime(),
            modified_ns: found.mtime_nsec(),
            inode: found.ino(),
        })
    }
}

impl Record {
    pub(crate) fn key(&self) -> Key {
        (self.source.clone(), self.sha256)
    }

    /// Its files in the store.
    pub(crate) fn files(&self) -> &[StoredFile] {
        match &self.found {
            Found::Stored(files) => files,
            Found::InPlace(_) => &[],
        }
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        match &self.found {
            Found::Stored(files) => files.iter().map(|file| file.size_bytes).sum(),
            Found::InPlace(stamp) => stamp.size_bytes,
        }
    }
}

/// All records. They are in memory; what is on disk is as old as the last change.
#[derive(Debug)]
pub(crate) struct Sources {
    dir: PathBuf,
    records: Mutex<BTreeMap<Key, Arc<Record>>>,
}

impl Sources {
    /// Reads the folder, which must be there. What cannot be read is left out and logged.
    pub(crate) fn open(dir: PathBuf) -> Self {
        let mut records = BTreeMap::new();
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match read(&entry.path()) {
                Ok(Some(record)) => drop(records.insert(record.key(), Arc::new(record))),
                Ok(None) => {}
                Err(error) => {
                    warn!(error, dir = %entry.path().display(), "what a source is is unreadable");
                }
            }
        }
        Self { dir, records: Mutex::new(records) }
    }

    pub(crate) fn find(&self, key: &Key) -> Option<Arc<Record>> {
        self.records().get(key).cloned()
    }

    /// The file to load: of a split, the first. It may be gone.
    pub(crate) fn path_of(&self, record: &Record) -> PathBuf {
        match (&record.found, &record.source) {
            (Found::InPlace(_), Source::File(file)) => file.path().to_path_buf(),
            _ => {
                let files = self.dir_of(&record.key()).join("files");
                record.files().first().map_or_else(|| files.clone(), |file| files.join(&file.name))
            }
        }
    }

    /// Keeps what a source turned out to be, in the place of what it was before. On disk when this
    /// returns.
    pub(crate) fn keep(&self, record: Record) -> Result<Arc<Record>, BlobError> {
        let dir = self.dir_of(&record.key());
        fs::create_dir_all(&dir).map_err(failed("make the folder", &dir))?;
        if let Found::Stored(files) = &record.found {
            link_files(&dir.join("files"), Path::new("../../../blobs/sha256"), files)?;
        }
        write_toml(&dir.join("source.toml"), &record)?;
        sync_dir(&self.dir)?;
        let record = Arc::new(record);
        self.records().insert(record.key(), Arc::clone(&record));
        Ok(record)
    }

    /// Forgets what is not wanted.
    pub(crate) fn retain(&self, is_wanted: impl Fn(&Record) -> bool) -> Result<(), BlobError> {
        let unwanted: Vec<Key> = {
            let records = self.records();
            let unwanted = records.values().filter(|record| !is_wanted(record));
            unwanted.map(|record| record.key()).collect()
        };
        for key in unwanted {
            self.records().remove(&key);
            let dir = self.dir_of(&key);
            fs::remove_dir_all(&dir).map_err(failed("remove", &dir))?;
        }
        Ok(())
    }

    fn dir_of(&self, (source, sha256): &Key) -> PathBuf {
        let sha256 = sha256.map(|sha256| sha256.to_string()).unwrap_or_default();
        // A source has no line breaks in it.
        self.dir.join(Sha256::of(format!("{source}\n{sha256}").as_bytes()).to_string())
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Record>>> {
        // Every change to the map is one insert or remove, so a panic elsewhere leaves it whole.
        self.records.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

fn read(dir: &Path) -> Result<Option<Record>, String> {
    let path = dir.join("source.toml");
    let file = match fs::File::open(path) {
        Ok(file) => file,
        // An interrupted first write.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, RECORD_BYTES_MAX), &mut text)
        .map_err(|error| error.to_string())?;
    toml::from_str(&text).map(Some).map_err(|error| error.message().to_owned())
}
