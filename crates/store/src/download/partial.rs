//! A download on disk: the bytes that came, and the chain of those that are hashed and flushed.
//!
//! ```text
//! partial/<key>/data         the file, from its start on; behind that anything
//! partial/<key>/chain        states of its hash after each chunk, 32 bytes each
//! partial/<key>/origin.toml  which file of which origin it is
//! ```
//!
//! A state is written when its chunk is on disk. Whatever a crash leaves, a download goes on after
//! the last chunk that hashes from the state before it to the state after it; nothing else is
//! believed, so nothing needs to be written in one piece.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::blobs::{read_capped, replace};
use crate::error::{StoreError, failed};
use crate::sha256::{CHUNK_BYTES, Hasher, State};

/// Longest description that is read.
const ORIGIN_BYTES_MAX: u64 = 64 << 10;

/// Which file of which origin a download has bytes of.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// Its URL.
    pub(crate) url: String,
    /// What the origin says that tells this file from a later one at the same place.
    pub(crate) validator: Option<String>,
    /// Its length.
    pub(crate) size_bytes: Option<u64>,
}

/// The folder of one download.
#[derive(Debug)]
pub(crate) struct Partial {
    dir: PathBuf,
    data: File,
    chain: File,
}

impl Partial {
    pub(crate) fn open(dir: PathBuf) -> Result<Self, StoreError> {
        fs::create_dir_all(&dir).map_err(failed("make the folder", &dir))?;
        let open = |name: &str| {
            let path = dir.join(name);
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options.open(&path).map_err(failed("write", &path))
        };
        let (data, chain) = (open("data")?, open("chain")?);
        Ok(Self { dir, data, chain })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn data(&self) -> &File {
        &self.data
    }

    pub(crate) fn data_path(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Which file it has bytes of, if that is known.
    pub(crate) fn origin(&self) -> Option<Origin> {
        let text = read_capped(&self.dir.join("origin.toml"), ORIGIN_BYTES_MAX).ok()?;
        toml::from_str(&text).ok()
    }

    pub(crate) fn set_origin(&self, origin: &Origin) -> Result<(), StoreError> {
        let path = self.dir.join("origin.toml");
        let text = toml::to_string(origin).map_err(io::Error::other);
        replace(&path, text.map_err(failed("write", &path))?.as_bytes())
    }

    /// Bytes of the file that take space already.
    pub(crate) fn taken_bytes(&self) -> Result<u64, StoreError> {
        let found = self.data.metadata().map_err(failed("read", &self.data_path()))?;
        Ok(found.blocks().saturating_mul(512))
    }

    /// Hashes what is there, as far as it is what the chain says. `progress` hears how far it is.
    /// It may be dropped on its way.
    pub(crate) async fn check(&self, progress: &dyn Fn(u64)) -> Result<Hasher, StoreError> {
        let path = self.data_path();
        let length = |file: &File| file.metadata().map(|found| found.len());
        let data_bytes = length(&self.data).map_err(failed("read", &path))?;
        let chain_bytes = length(&self.chain).map_err(failed("read", &path))?;
        let states = chain_bytes / State::BYTES as u64;
        let mut good: Vec<State> = Vec::new();
        let mut chunk = vec![0; CHUNK_BYTES as usize];
        for index in 0..states.min(data_bytes / CHUNK_BYTES) {
            let mut noted = [0; State::BYTES];
            self.chain
                .read_exact_at(&mut noted, index * State::BYTES as u64)
                .and_then(|()| self.data.read_exact_at(&mut chunk, index * CHUNK_BYTES))
                .map_err(failed("read", &path))?;
            let state = State::after(good.last().copied(), &chunk);
            if state != State::from_bytes(&noted) {
                break;
            }
            good.push(state);
            progress((index + 1) * CHUNK_BYTES);
            tokio::task::yield_now().await;
        }
        Ok(Hasher::after(&good))
    }

    /// Flushes the data, and then notes the states of its chunks from this one on.
    pub(crate) fn keep(&self, first: usize, states: &[State]) -> Result<(), StoreError> {
        self.data.sync_data().map_err(failed("flush", &self.data_path()))?;
        let bytes: Vec<u8> = states.iter().flat_map(|state| state.to_bytes()).collect();
        let path = self.dir.join("chain");
        let at = (first * State::BYTES) as u64;
        self.chain.write_all_at(&bytes, at).map_err(failed("write", &path))?;
        self.chain.sync_data().map_err(failed("flush", &path))
    }

    /// What was hashed belongs to a file that is not wanted any more.
    pub(crate) fn forget(&self) -> Result<(), StoreError> {
        let forget = || {
            self.chain.set_len(0)?;
            self.chain.sync_all()
        };
        forget().map_err(failed("write", &self.dir.join("chain")))
    }

    /// Cuts the file off at its length, with what is known of it on disk.
    pub(crate) fn finish(&self, size_bytes: u64) -> Result<(), StoreError> {
        let path = self.data_path();
        self.data.set_len(size_bytes).map_err(failed("write", &path))?;
        self.data.sync_all().map_err(failed("flush", &path))
    }
}
