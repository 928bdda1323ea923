//! Blobs are hashed again, and taken out of the store if they are not what they were.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;

use ioprio::{Class, Pid, Priority, Target};
use rustix::fs::Advice;
use tracing::{debug, warn};

use crate::error::{StoreError, failed};
use crate::import::{hash, hash_file};
use crate::sha256::{CHUNK_BYTES, Sha256, State};
use crate::store::{Inner, unix_s};

/// What became of a blob that was hashed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// It is what its name says.
    Right,
    /// It is not, and is now in quarantine.
    Quarantined {
        /// What its contents hash to.
        found: Sha256,
        /// Where it is now.
        path: PathBuf,
        /// Which of its chunks of 4 MiB went bad, where that is known.
        bad_chunks: Vec<u64>,
    },
}

impl Inner {
    pub(crate) fn verify(
        &self,
        sha256: &Sha256,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Verified, StoreError> {
        idly(|| self.verify_here(sha256, progress))
    }

    fn verify_here(
        &self,
        sha256: &Sha256,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Verified, StoreError> {
        let blob = self.blobs.find(sha256).ok_or(StoreError::NoBlob { sha256: *sha256 })?;
        let path = self.blobs.path(sha256);
        let file = File::open(&path).map_err(failed("read", &path))?;
        // What is in the page cache says nothing about the disk. Pages that a loaded model has
        // mapped stay.
        if let Err(error) = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed) {
            debug!(%error, "the page cache keeps the file");
        }
        let hasher = hash(&mut &file, progress).map_err(failed("read", &path))?;
        if hasher.finish() == *sha256 {
            let mut info = blob.info;
            info.verified_unix_s = unix_s(self.host.today());
            self.blobs.write_chain(sha256, hasher.chain())?;
            self.blobs.write_info(sha256, &info)?;
            return Ok(Verified::Right);
        }
        let chain = self.blobs.chain(sha256, blob.size_bytes).unwrap_or_default();
        let bad_chunks = bad_chunks(&file, &chain).map_err(failed("read", &path))?;
        let _one_at_a_time = self.changing();
        let quarantined = self.blobs.quarantine(sha256)?;
        warn!(blob = %sha256, found = %hasher.finish(), ?bad_chunks, "a blob went bad");
        Ok(Verified::Quarantined { found: hasher.finish(), path: quarantined, bad_chunks })
    }
}

/// As [`hash_file`], giving way to all other use of the disk.
pub fn hash_file_idly(
    path: &Path,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<(Sha256, u64), StoreError> {
    idly(|| hash_file(path, progress))
}

/// Does this on a thread that gives way to all other use of the disk: the priority belongs to a thread and
/// cannot be raised again everywhere.
fn idly<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        be_idle();
        work()
    };
    thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Which whole chunks of a file do not take one state of a chain to the next.
pub(crate) fn bad_chunks(file: &File, chain: &[State]) -> std::io::Result<Vec<u64>> {
    let mut bad = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES as usize];
    let mut before = None;
    for (index, state) in (0..).zip(chain) {
        file.read_exact_at(&mut chunk, index * CHUNK_BYTES)?;
        if State::after(before, &chunk) != *state {
            bad.push(index);
        }
        before = Some(*state);
    }
    Ok(bad)
}

fn be_idle() {
    if let Err(error) =
        ioprio::set_priority(Target::Process(Pid::this()), Priority::new(Class::Idle))
    {
        debug!(%error, "no idle IO priority");
    }
}
