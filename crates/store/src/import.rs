//! Files of this machine become blobs: as a clone, as another name, or as a copy.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::blobs::{Blob, BlobInfo, Kept};
use crate::error::{StoreError, failed};
use crate::host::Host;
use crate::sha256::{Hasher, Sha256};
use crate::source::Source;
use crate::store::{Inner, unix_s};

/// Bytes that are read at a time.
pub(crate) const PIECE_BYTES: usize = 1 << 20;

/// What may be done to have a file's contents in the store, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ways {
    /// Clone, another name, copy.
    UpToCopy,
    /// Clone, another name, a reference. Nothing that takes space.
    UpToReference,
}

impl Inner {
    /// Stores the file at a path. `progress` hears of each piece of bytes that was hashed.
    pub(crate) fn import(
        &self,
        path: &Path,
        ways: Ways,
        sources: Vec<Source>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Blob, StoreError> {
        // A link to a symbolic link would be one, so links are followed first.
        let path = source_at(path)?;
        let unfinished = self.unfinished();
        let (kept, hasher) = self.take_in(&path, &unfinished.0, ways, progress)?;
        let now = unix_s(self.host.today());
        let info = BlobInfo { sources, added_unix_s: now, verified_unix_s: now, kept };
        self.admit(&unfinished.0, &hasher, info)
    }

    /// Stores what a reader gives, if that has this hash; of so many bytes, where that is known.
    pub(crate) fn receive(
        &self,
        expected: &Sha256,
        size_bytes: Option<u64>,
        from: &mut dyn Read,
    ) -> Result<Blob, StoreError> {
        let unfinished = self.unfinished();
        let dir = unfinished.0.parent().unwrap_or(&self.dir);
        check_space(&*self.host, dir, size_bytes.unwrap_or(0))?;
        let hasher = write_and_hash(&*self.host, from, &unfinished.0, &mut |_| {})?;
        let found = hasher.finish();
        if found != *expected {
            return Err(StoreError::Digest { expected: *expected, found });
        }
        let now = unix_s(self.host.today());
        let info = BlobInfo {
            sources: Vec::new(),
            added_unix_s: now,
            verified_unix_s: now,
            kept: Kept::Own,
        };
        self.admit(&unfinished.0, &hasher, info)
    }

    /// Makes a file of the store's own a blob. It must be on disk, and be what was hashed.
    pub(crate) fn admit(
        &self,
        file: &Path,
        hasher: &Hasher,
        info: BlobInfo,
    ) -> Result<Blob, StoreError> {
        let sha256 = hasher.finish();
        let _one_at_a_time = self.changing();
        self.blobs.admit(file, &sha256, hasher.chain(), &info)?;
        Ok(Blob { sha256, size_bytes: hasher.length(), info: self.blobs.info(&sha256) })
    }

    fn take_in(
        &self,
        path: &Path,
        to: &Path,
        ways: Ways,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(Kept, Hasher), StoreError> {
        if clone_file(path, to).is_ok() {
            // Whatever happens to the file it came from, the clone stays as it is.
            let hasher = hash_unchanging(to, to, progress)?;
            return Ok((Kept::Clone, hasher));
        }
        let _ = fs::remove_file(to);
        if fs::hard_link(path, to).is_ok() {
            return Ok((Kept::HardLink, hash_unchanging(path, to, progress)?));
        }
        if ways == Ways::UpToReference {
            std::os::unix::fs::symlink(path, to).map_err(failed("make the link", to))?;
            return Ok((Kept::Reference, hash_unchanging(path, to, progress)?));
        }
        let hasher = copy_and_hash(&*self.host, path, to, progress)?;
        Ok((Kept::Own, hasher))
    }
}

/// A file that goes away unless it was renamed. (Renaming a file onto another link to itself
/// does nothing and leaves both, which this removes as well.)
#[derive(Debug)]
pub(crate) struct Unfinished(pub(crate) PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The file that a path leads to in the end.
pub(crate) fn source_at(path: &Path) -> Result<PathBuf, StoreError> {
    if !path.is_absolute() {
        return Err(StoreError::NotAbsolute { path: path.to_path_buf() });
    }
    let metadata = fs::metadata(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => StoreError::NoFile { path: path.to_path_buf() },
        _ => StoreError::Io { action: "read", path: path.to_path_buf(), source },
    })?;
    if !metadata.is_file() {
        return Err(StoreError::NotAFile { path: path.to_path_buf() });
    }
    path.canonicalize().map_err(failed("read", path))
}

/// Hash and length of a file of this machine, which must not be written to meanwhile. `progress`
/// hears of each piece of bytes. Blocking.
pub fn hash_file(path: &Path, progress: &mut dyn FnMut(u64)) -> Result<(Sha256, u64), StoreError> {
    let path = source_at(path)?;
    let mut file = File::open(&path).map_err(failed("read", &path))?;
    let hasher = hash_as_it_is(&mut file, &path, progress)?;
    Ok((hasher.finish(), hasher.length()))
}

fn clone_file(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(File::create(to)?, File::open(from)?)?)
}

fn hash_unchanging(
    source: &Path,
    link: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Hasher, StoreError> {
    let mut file = File::open(link).map_err(failed("read", source))?;
    let hasher = hash_as_it_is(&mut file, source, progress)?;
    file.sync_all().map_err(failed("flush", source))?;
    Ok(hasher)
}

/// Hashes a file that its owner may write to meanwhile, which is an error.
fn hash_as_it_is(
    file: &mut File,
    source: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Hasher, StoreError> {
    let before = file.metadata().map_err(failed("read", source))?;
    let hasher = hash(file, progress).map_err(failed("read", source))?;
    let after = file.metadata().map_err(failed("read", source))?;
    if stamp(&before) != stamp(&after) {
        return Err(StoreError::Changed { path: source.to_path_buf() });
    }
    Ok(hasher)
}

fn stamp(metadata: &Metadata) -> (u64, Option<SystemTime>) {
    (metadata.len(), metadata.modified().ok())
}

fn copy_and_hash(
    host: &dyn Host,
    source: &Path,
    target: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Hasher, StoreError> {
    let mut from = File::open(source).map_err(failed("read", source))?;
    let size_bytes = from.metadata().map_err(failed("read", source))?.len();
    let dir = target.parent().unwrap_or(target);
    check_space(host, dir, size_bytes)?;
    write_and_hash(host, &mut from, target, progress)
}

/// Writes all that a reader gives into a new file, and flushes it to the disk.
pub(crate) fn write_and_hash(
    host: &dyn Host,
    from: &mut dyn Read,
    target: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<Hasher, StoreError> {
    let to = File::create(target).map_err(failed("write", target))?;
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = read_some(from, &mut piece).map_err(failed("read for", target))?;
        if read == 0 {
            break;
        }
        let at = hasher.length();
        host.write_at(&to, &piece[..read], at).map_err(failed("write", target))?;
        hasher.update(&piece[..read]);
        progress(read as u64);
    }
    to.sync_all().map_err(failed("flush", target))?;
    Ok(hasher)
}

/// Refuses what would not fit, before any of it is written.
pub(crate) fn check_space(
    host: &dyn Host,
    dir: &Path,
    needed_bytes: u64,
) -> Result<(), StoreError> {
    let free_bytes = host.free_bytes(dir).map_err(failed("find the free space of", dir))?;
    if needed_bytes > free_bytes {
        return Err(StoreError::NoSpace { dir: dir.to_path_buf(), needed_bytes, free_bytes });
    }
    Ok(())
}

/// Hashes all that a reader gives.
pub(crate) fn hash(from: &mut dyn Read, progress: &mut dyn FnMut(u64)) -> io::Result<Hasher> {
    let mut hasher = Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = read_some(from, &mut piece)?;
        if read == 0 {
            return Ok(hasher);
        }
        hasher.update(&piece[..read]);
        progress(read as u64);
    }
}

fn read_some(from: &mut dyn Read, piece: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
