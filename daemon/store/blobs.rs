//! Files named by the hash of their contents.

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tracing::warn;

use super::{StoreError, failed, sync_dir};

const CHUNK_BYTES: usize = 1 << 20;

/// Prefix of files that are not blobs yet.
const UNFINISHED: &str = ".import-";

/// The folder of blobs.
#[derive(Debug)]
pub(super) struct Blobs {
    dir: PathBuf,
}

impl Blobs {
    /// Opens the folder and removes what an interrupted import left in it.
    pub(super) fn open(dir: &Path) -> Self {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        for entry in entries {
            if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                continue;
            }
            if let Err(error) = fs::remove_file(entry.path()) {
                warn!(%error, file = %entry.path().display(), "cannot remove an unfinished import");
            }
        }
        Self { dir: dir.to_path_buf() }
    }

    /// Adds a file and returns the hash of its contents in hexadecimal. `progress` hears of each
    /// piece of bytes done. On the same file system the blob is another link to the file and
    /// takes no space; elsewhere it is a copy.
    pub(super) fn add(
        &self,
        source: &Path,
        progress: &mut dyn FnMut(u64),
    ) -> Result<String, StoreError> {
        // A link to a symbolic link would be one, so links are followed first.
        let source = source.canonicalize().map_err(failed("read", source))?;
        let unfinished = Unfinished(self.dir.join(format!("{UNFINISHED}{}", std::process::id())));
        let hash = match fs::hard_link(&source, &unfinished.0) {
            Ok(()) => hash_unchanging(&source, &unfinished.0, progress)?,
            Err(_) => copy_and_hash(&source, &unfinished.0, progress)?,
        };
        let blob = self.dir.join(&hash);
        fs::rename(&unfinished.0, &blob).map_err(failed("store", &blob))?;
        sync_dir(&self.dir)?;
        Ok(hash)
    }
}

/// A file that goes away unless it was renamed. (Renaming a file onto another link to itself
/// does nothing and leaves both, which this removes as well.)
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn hash_unchanging(
    source: &Path,
    link: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<String, StoreError> {
    let file = File::open(link).map_err(failed("read", source))?;
    let before = file.metadata().map_err(failed("read", source))?;
    let hash = digest(&file, &mut io::sink(), progress).map_err(failed("read", source))?;
    // The owner may write to the file through its other name.
    let after = file.metadata().map_err(failed("read", source))?;
    if stamp(&before) != stamp(&after) {
        return Err(StoreError::Changed { path: source.to_path_buf() });
    }
    file.sync_all().map_err(failed("flush", source))?;
    Ok(hash)
}

fn stamp(metadata: &Metadata) -> (u64, Option<std::time::SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}

fn copy_and_hash(
    source: &Path,
    target: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<String, StoreError> {
    let from = File::open(source).map_err(failed("read", source))?;
    let mut to = File::create(target).map_err(failed("write", target))?;
    let hash = digest(&from, &mut to, progress).map_err(failed("copy", source))?;
    to.sync_all().map_err(failed("flush", target))?;
    Ok(hash)
}

fn digest(
    mut from: &File,
    to: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&chunk[..read]);
        to.write_all(&chunk[..read])?;
        progress(read as u64);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
