//! Why the store could not do what it was asked to.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::Sha256;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon has it.
    #[error("the state folder {} is in use by another m40d", dir.display())]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A folder or file could not be made.
    #[error("cannot make {}: {source}", path.display())]
    Io {
        /// What could not be made.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a file was not stored, checked or removed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A relative path means nothing to a daemon.
    #[error("the path {} is not absolute", path.display())]
    NotAbsolute {
        /// The path.
        path: PathBuf,
    },
    /// Nothing is there.
    #[error("there is no file {}", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// A folder, a socket or the like.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Somebody wrote to the file.
    #[error("{} changed while it was imported: try again when nothing writes to it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The disk is too full, as is known before anything is written.
    #[error(
        "not enough space in {}: {} more needed, {} free",
        dir.display(), Bytes(*needed_bytes), Bytes(*free_bytes)
    )]
    NoSpace {
        /// Where it would have been written.
        dir: PathBuf,
        /// Bytes that are still to be written.
        needed_bytes: u64,
        /// Bytes that are free.
        free_bytes: u64,
    },
    /// A hash that no stored file has.
    #[error("there is no blob {sha256} in the store")]
    NoBlob {
        /// The hash.
        sha256: Sha256,
    },
    /// What came is not what was announced.
    #[error("digest mismatch, expected \"sha256:{expected}\", got \"sha256:{found}\"")]
    Digest {
        /// What it was to hash to.
        expected: Sha256,
        /// What it hashes to.
        found: Sha256,
    },
    /// What was to be adopted is neither of the two that can be.
    #[error(
        "{} is neither a models folder of Ollama (with manifests and blobs in it) nor a hub cache of \
         Hugging Face (with models--ORG--NAME in it)", dir.display()
    )]
    NotAdoptable {
        /// The folder.
        dir: PathBuf,
    },
    /// The file system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// For `map_err`: what was tried, on what.
pub(crate) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { action, path, source }
}

/// A number of bytes for people: whole where it is small, else in MB or GB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes(pub(crate) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes @ 10_000_000_000.. => write!(f, "{:.1} GB", bytes as f64 / 1e9),
            bytes @ 10_000_000.. => write!(f, "{:.1} MB", bytes as f64 / 1e6),
            bytes => write!(f, "{bytes} bytes"),
        }
    }
}
