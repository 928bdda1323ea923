//! A file is put together from its parts, or taken out of an archive.

use std::fs::File;
use std::io::{self, Read};

use zip::ZipArchive;
use zip::result::ZipError;

use super::{Pieces, Task, Wanted};
use crate::blobs::{Blob, BlobInfo, Kept};
use crate::download::error::FetchError;
use crate::error::failed;
use crate::import::{check_space, write_and_hash};
use crate::progress::Phase;
use crate::source::{Member, Source};
use crate::store::unix_s;

impl Task {
    /// Joins the pieces in their order. Those that came for this are removed.
    pub(super) fn assemble(
        &self,
        source: &Source,
        pieces: &Pieces,
        wanted: &Wanted<'_>,
    ) -> Result<Blob, FetchError> {
        let total = pieces.blobs.iter().map(|blob| blob.size_bytes).sum();
        let mut whole: Box<dyn Read> = Box::new(io::empty());
        for blob in &pieces.blobs {
            let path = self.inner.blobs.path(&blob.sha256);
            let file = File::open(&path).map_err(failed("read", &path))?;
            whole = Box::new(whole.chain(file));
        }
        let blob = self.write(source, &mut *whole, total, wanted)?;
        self.remove(pieces, &blob)?;
        Ok(blob)
    }

    /// Takes a member out of an archive, which is removed if it came for this.
    pub(super) fn extract(
        &self,
        source: &Source,
        member: &Member,
        archive: &Pieces,
        wanted: &Wanted<'_>,
    ) -> Result<Blob, FetchError> {
        let bad = |error: ZipError| FetchError::Archive {
            archive: member.archive().to_string(),
            member: member.name().to_owned(),
            reason: error.to_string(),
        };
        let Some(packed) = archive.blobs.first() else { return Err(FetchError::Lost) };
        let path = self.inner.blobs.path(&packed.sha256);
        let file = File::open(&path).map_err(failed("read", &path))?;
        let mut zip = ZipArchive::new(io::BufReader::new(file)).map_err(bad)?;
        let packed = zip.by_name(member.name()).map_err(bad)?;
        let size_bytes = packed.size().min(u64::MAX - 1);
        // What says that it is small and is not ends soon after where it said; the checksum is
        // compared when the end is met.
        let mut contents = packed.take(size_bytes + 1);
        let blob = self.write(source, &mut contents, size_bytes, wanted)?;
        self.remove(archive, &blob)?;
        Ok(blob)
    }

    fn write(
        &self,
        source: &Source,
        contents: &mut dyn Read,
        size_bytes: u64,
        wanted: &Wanted<'_>,
    ) -> Result<Blob, FetchError> {
        let inner = &self.inner;
        check_space(&*inner.host, &inner.dir, size_bytes)?;
        self.publish(Phase::Assembling, 0, None);
        let unfinished = inner.unfinished();
        let hasher = write_and_hash(&*inner.host, contents, &unfinished.0, &mut |_| {})?;
        if hasher.length() != size_bytes {
            let (url, found_bytes) = (source.to_string(), hasher.length());
            return Err(FetchError::Size { url, expected_bytes: size_bytes, found_bytes });
        }
        wanted.check(source, hasher.finish(), hasher.length())?;
        let now = unix_s(inner.host.today());
        let info = BlobInfo {
            sources: vec![source.clone()],
            added_unix_s: now,
            verified_unix_s: now,
            kept: Kept::Own,
        };
        Ok(inner.admit(&unfinished.0, &hasher, info)?)
    }

    fn remove(&self, pieces: &Pieces, made: &Blob) -> Result<(), FetchError> {
        for sha256 in pieces.fresh.iter().filter(|&&sha256| sha256 != made.sha256) {
            self.inner.blobs.remove(sha256)?;
        }
        Ok(())
    }
}
