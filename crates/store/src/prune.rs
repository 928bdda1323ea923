//! What nobody needs is removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::blobs::{Blob, Kept, names_in};
use crate::error::{StoreError, failed};
use crate::sha256::Sha256;
use crate::source::Source;
use crate::store::{Inner, PARTIAL, UNFINISHED, unix_s};

/// What was removed, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Blobs that nothing refers to.
    pub blobs: Vec<Sha256>,
    /// Files in quarantine, downloads that nobody went on with, and references to files that are
    /// gone.
    pub leftovers: Vec<PathBuf>,
    /// Bytes of all of these. Those of a file that has another name elsewhere stay taken.
    pub bytes: u64,
}

/// What is not to be removed.
#[derive(Debug, Clone, Default)]
pub struct Referenced {
    /// Blobs that are in use.
    pub blobs: BTreeSet<Sha256>,
    /// Sources that are still to come: blobs that came from one of them stay, and, while there is
    /// any, all that was downloaded in part.
    pub sources: BTreeSet<Source>,
}

impl Referenced {
    fn has(&self, blob: &Blob) -> bool {
        let is_to_come = |source: &Source| self.sources.contains(source);
        self.blobs.contains(&blob.sha256) || blob.info.sources.iter().any(is_to_come)
    }
}

impl Inner {
    pub(crate) fn prune(
        &self,
        referenced: &Referenced,
        unused_for: Duration,
        remove: bool,
    ) -> Result<Pruned, StoreError> {
        let _nothing_comes_meanwhile = self.changing();
        let mut pruned = Pruned::default();
        let now = self.host.today();
        let old_unix_s = unix_s(now).saturating_sub(unused_for.as_secs());
        for blob in self.blobs.list()? {
            if referenced.has(&blob) || blob.info.added_unix_s > old_unix_s {
                continue;
            }
            if remove {
                self.blobs.remove(&blob.sha256)?;
            }
            if blob.info.kept != Kept::Reference {
                pruned.bytes += blob.size_bytes;
            }
            pruned.blobs.push(blob.sha256);
        }
        for path in self.blobs.dangling()? {
            if remove {
                remove_all(&path)?;
            }
            pruned.leftovers.push(path);
        }
        // No download begins meanwhile.
        let transfers = self.transfers();
        let parts = referenced.sources.is_empty().then_some(PARTIAL);
        for dir in ["quarantine"].into_iter().chain(parts).map(|dir| self.dir.join(dir)) {
            for name in names_in(&dir)? {
                let path = dir.join(&name);
                let is_busy = name.starts_with(UNFINISHED) || transfers.contains_key(&name);
                if is_busy || !is_unused(&path, now, unused_for) {
                    continue;
                }
                pruned.bytes += bytes_of(&path);
                if remove {
                    remove_all(&path)?;
                }
                pruned.leftovers.push(path);
            }
        }
        Ok(pruned)
    }
}

fn is_unused(path: &Path, now: SystemTime, unused_for: Duration) -> bool {
    let touched = |path: &Path| fs::symlink_metadata(path)?.modified();
    // A folder's own time does not change with what is written to its files.
    let newest = files_in(path).iter().filter_map(|file| touched(file).ok()).max();
    let newest = newest.or_else(|| touched(path).ok());
    newest.is_some_and(|newest| now.duration_since(newest).is_ok_and(|age| age >= unused_for))
}

fn bytes_of(path: &Path) -> u64 {
    let length = |path: &PathBuf| fs::symlink_metadata(path).map_or(0, |found| found.len());
    files_in(path).iter().map(length).sum()
}

/// The files in a folder, or the file itself.
fn files_in(path: &Path) -> Vec<PathBuf> {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![path.to_path_buf()],
    }
}

fn remove_all(path: &Path) -> Result<(), StoreError> {
    let is_dir = fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
    let removed = if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(failed("remove", path))
}
