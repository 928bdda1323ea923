//! Model files as read-only memory maps.
#![expect(unsafe_code, reason = "a memory map is only as constant as its file")]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::Mmap;

/// Maps a whole file.
///
/// The file must not be truncated or rewritten while it is mapped: the store keeps blobs immutable,
/// and whoever loads a file of their own must do the same. A truncated file ends the process with
/// SIGBUS when a missing page is touched; a rewritten one gives other weights.
pub(crate) fn map(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // SAFETY: the map is read-only and outlives no borrow of it; that the file stays as it is is the
    // documented duty above, which no program can enforce on Linux.
    unsafe { Mmap::map(&file) }
}
