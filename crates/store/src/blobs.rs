//! Files named by the hash of what is in them, with what is known of them beside.
//!
//! ```text
//! blobs/sha256/<hex>    the file, or a link to one that stays where it is
//! meta/<hex>.toml       where it came from and when
//! meta/<hex>.chain      states of its hash after each chunk, 32 bytes each
//! quarantine/<hex>      a file that is not what its name says
//! ```
//!
//! A blob exists exactly when its file does. The other two are written before it and can be lost:
//! then less is known of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::error::{StoreError, failed};
use crate::sha256::{CHUNK_BYTES, Sha256, State};
use crate::source::Source;

/// Longest sidecar that is read.
const META_BYTES_MAX: u64 = 1 << 20;

/// A stored file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// The hash of its contents.
    pub sha256: Sha256,
    /// Its length.
    pub size_bytes: u64,
    /// What else is known of it.
    pub info: BlobInfo,
}

/// What is known of a blob beside its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobInfo {
    /// Where it came from: all sources that were found to have it.
    #[serde(default)]
    pub sources: Vec<Source>,
    /// When it was first stored.
    #[serde(default)]
    pub added_unix_s: u64,
    /// When all of it was last hashed.
    #[serde(default)]
    pub verified_unix_s: u64,
    /// How it takes space.
    #[serde(default)]
    pub kept: Kept,
}

/// How a blob takes space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// As a file of the store's own.
    #[default]
    Own,
    /// As a clone that shares its blocks with another file until one of the two is written to.
    Clone,
    /// As another name of a file.
    HardLink,
    /// Not at all: it is a symbolic link to a file elsewhere.
    Reference,
}

/// The folders of blobs.
#[derive(Debug)]
pub(crate) struct Blobs {
    blobs: PathBuf,
    meta: PathBuf,
    quarantine: PathBuf,
}

impl Blobs {
    pub(crate) const DIRS: [&str; 3] = ["blobs/sha256", "meta", "quarantine"];

    pub(crate) fn new(dir: &Path) -> Self {
        let [blobs, meta, quarantine] = Self::DIRS.map(|part| dir.join(part));
        Self { blobs, meta, quarantine }
    }

    pub(crate) fn path(&self, sha256: &Sha256) -> PathBuf {
        self.blobs.join(sha256.to_string())
    }

    /// The blob, if it is there; of a reference, if what it leads to is.
    pub(crate) fn find(&self, sha256: &Sha256) -> Option<Blob> {
        let metadata = fs::metadata(self.path(sha256)).ok().filter(|found| found.is_file())?;
        let info = self.info(sha256);
        Some(Blob { sha256: *sha256, size_bytes: metadata.len(), info })
    }

    /// All blobs, by hash. What has no hash for a name is none.
    pub(crate) fn list(&self) -> Result<Vec<Blob>, StoreError> {
        let names = names_in(&self.blobs)?;
        let hashes = names.iter().filter_map(|name| name.parse().ok());
        let mut blobs: Vec<Blob> = hashes.filter_map(|sha256| self.find(&sha256)).collect();
        blobs.sort_by_key(|blob| blob.sha256);
        Ok(blobs)
    }

    /// References whose files are gone.
    pub(crate) fn dangling(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut paths: Vec<PathBuf> =
            names_in(&self.blobs)?.iter().map(|name| self.blobs.join(name)).collect();
        paths.retain(|path| path.is_symlink() && !path.exists());
        Ok(paths)
    }

    /// Makes a file a blob by renaming it. It and its chain are what was hashed, and on disk.
    pub(crate) fn admit(
        &self,
        file: &Path,
        sha256: &Sha256,
        chain: &[State],
        info: &BlobInfo,
    ) -> Result<(), StoreError> {
        let info = match self.find(sha256) {
            Some(known) => merged(known.info, info),
            None => info.clone(),
        };
        self.write_chain(sha256, chain)?;
        self.write_info(sha256, &info)?;
        sync_dir(&self.meta)?;
        let path = self.path(sha256);
        fs::rename(file, &path).map_err(failed("store", &path))?;
        sync_dir(&self.blobs)
    }

    pub(crate) fn info(&self, sha256: &Sha256) -> BlobInfo {
        let path = self.info_path(sha256);
        let unknown = BlobInfo {
            sources: Vec::new(),
            added_unix_s: 0,
            verified_unix_s: 0,
            kept: Kept::default(),
        };
        match read_capped(&path, META_BYTES_MAX) {
            Ok(text) => toml::from_str(&text).unwrap_or_else(|error: toml::de::Error| {
                warn!(error = error.message(), file = %path.display(), "unreadable, left out");
                unknown
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => unknown,
            Err(error) => {
                warn!(%error, file = %path.display(), "unreadable, left out");
                unknown
            }
        }
    }

    pub(crate) fn write_info(&self, sha256: &Sha256, info: &BlobInfo) -> Result<(), StoreError> {
        let path = self.info_path(sha256);
        let text =
            toml::to_string(info).map_err(io::Error::other).map_err(failed("write", &path))?;
        replace(&path, text.as_bytes())
    }

    /// The states that were kept of a blob of this size; none where they are not all there.
    pub(crate) fn chain(&self, sha256: &Sha256, size_bytes: u64) -> Option<Vec<State>> {
        let bytes = fs::read(self.chain_path(sha256)).ok()?;
        let (states, rest) = bytes.as_chunks();
        let whole = rest.is_empty() && states.len() as u64 == size_bytes / CHUNK_BYTES;
        whole.then(|| states.iter().map(State::from_bytes).collect())
    }

    pub(crate) fn write_chain(&self, sha256: &Sha256, chain: &[State]) -> Result<(), StoreError> {
        let bytes: Vec<u8> = chain.iter().flat_map(|state| state.to_bytes()).collect();
        replace(&self.chain_path(sha256), &bytes)
    }

    /// Takes a blob out of the store and keeps it where nothing reads it.
    pub(crate) fn quarantine(&self, sha256: &Sha256) -> Result<PathBuf, StoreError> {
        let (from, to) = (self.path(sha256), self.quarantine.join(sha256.to_string()));
        fs::rename(&from, &to).map_err(failed("quarantine", &from))?;
        sync_dir(&self.quarantine)?;
        sync_dir(&self.blobs)?;
        Ok(to)
    }

    pub(crate) fn remove(&self, sha256: &Sha256) -> Result<(), StoreError> {
        let path = self.path(sha256);
        fs::remove_file(&path).map_err(failed("remove", &path))?;
        for beside in [self.info_path(sha256), self.chain_path(sha256)] {
            let _ = fs::remove_file(beside);
        }
        sync_dir(&self.blobs)
    }

    fn info_path(&self, sha256: &Sha256) -> PathBuf {
        self.meta.join(format!("{sha256}.toml"))
    }

    fn chain_path(&self, sha256: &Sha256) -> PathBuf {
        self.meta.join(format!("{sha256}.chain"))
    }
}

fn merged(mut known: BlobInfo, new: &BlobInfo) -> BlobInfo {
    for source in &new.sources {
        if !known.sources.contains(source) {
            known.sources.push(source.clone());
        }
    }
    known.verified_unix_s = new.verified_unix_s;
    known.kept = new.kept;
    known
}

/// The names of what is in a folder.
pub(crate) fn names_in(dir: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(dir).map_err(failed("list", dir))?;
    entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(failed("list", dir))
}

/// Reads a small text file.
pub(crate) fn read_capped(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(File::open(path)?, bytes_max + 1), &mut text)?;
    if text.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it is longer than {bytes_max} bytes")));
    }
    Ok(text)
}

/// Writes a file so that a crash leaves the old one or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let fresh = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(failed("write", &fresh))?;
    fs::rename(&fresh, path).map_err(failed("write", path))
}

/// A rename is on disk only when its folder is.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("flush", dir))
}
