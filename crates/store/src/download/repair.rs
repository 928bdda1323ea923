//! A file whose hash is wrong is made right: the disk is read again, then the file is compared with
//! what the origin sends the second time. Only the bytes that differ are replaced.

use std::fs;
use std::os::unix::fs::FileExt;

use rustix::fs::Advice;
use tracing::{debug, info, warn};

use super::Download;
use super::error::{FetchError, shown, size_error};
use super::retry::Tries;
use super::round::{check_is_file, content_range};
use crate::client::check_status;
use crate::error::failed;
use crate::import::PIECE_BYTES;
use crate::sha256::{CHUNK_BYTES, Hasher, Sha256};
use crate::store::PARTIAL;
use crate::verify::bad_chunks;

/// So often a file is compared with the origin's, and if it still is another, that is all.
const PASSES_MAX: usize = 3;

impl Download<'_> {
    /// Makes the file hash to this, or says why it cannot be done.
    pub(super) async fn repair(
        &self,
        mut hasher: Hasher,
        expected: Sha256,
    ) -> Result<Hasher, FetchError> {
        hasher = self.hash_again(&hasher, self.differs_on_disk(&hasher)?)?;
        for _ in 0..PASSES_MAX {
            if hasher.finish() == expected {
                return Ok(hasher);
            }
            // A second connection, and another origin where there is one.
            self.url.set((self.url.get() + 1) % self.job.urls.len());
            match self.compare(hasher.length()).await {
                Ok(Some(first)) => hasher = self.hash_again(&hasher, first)?,
                Ok(None) => return Err(self.other_file(expected, hasher.finish())),
                // Another mirror may still do.
                Err(error) if error.is_the_origins() && self.job.urls.len() > 1 => {
                    warn!(%error, "a file could not be compared");
                }
                Err(error) => return Err(error),
            }
        }
        if hasher.finish() == expected {
            return Ok(hasher);
        }
        Err(FetchError::Inconsistent { url: shown(self.address()), expected })
    }

    /// Where the disk begins to have other bytes than those that were hashed: the memory between the
    /// two may be bad, and the disk right. What is behind the last whole chunk may always be other.
    fn differs_on_disk(&self, hasher: &Hasher) -> Result<u64, FetchError> {
        let data = self.partial.data();
        // Memory would say again what it said.
        if let Err(error) = rustix::fs::fadvise(data, 0, None, Advice::DontNeed) {
            debug!(%error, "the page cache keeps the file");
        }
        let bad = bad_chunks(data, hasher.chain());
        let bad = bad.map_err(failed("read", &self.partial.data_path()))?;
        Ok(bad.first().map_or_else(|| hasher.length(), |chunk| chunk * CHUNK_BYTES))
    }

    /// Compares bytes of the file, which has this length, with the origin's and replaces those that
    /// differ. Returns the place of the first that did.
    async fn compare(&self, length: u64) -> Result<Option<u64>, FetchError> {
        let mut tries = Tries::default();
        let mut at = 0;
        let mut first = None;
        while at < length {
            let before = at;
            if let Err(error) = self.compare_some(&mut at, length, &mut first).await {
                if !error.is_passing() {
                    return Err(error);
                }
                if at > before + CHUNK_BYTES {
                    tries.reset();
                }
                self.wait(&mut tries, error).await?;
            }
        }
        if first.is_some() {
            let flushed = self.partial.data().sync_data();
            flushed.map_err(failed("flush", &self.partial.data_path()))?;
        }
        Ok(first)
    }

    async fn compare_some(
        &self,
        at: &mut u64,
        length: u64,
        first: &mut Option<u64>,
    ) -> Result<(), FetchError> {
        let url = self.address().clone();
        let range = (reqwest::header::RANGE, format!("bytes={at}-{}", length - 1));
        let (response, url) = self.client.get(&url, &[range]).await?;
        let mut response = check_status(response, &url)?;
        // What is not this file must not be written over it.
        check_is_file(&response, &url)?;
        let is_part = response.status() == reqwest::StatusCode::PARTIAL_CONTENT;
        let (range, total) = match content_range(&response) {
            Some((Some(range), total)) if is_part => (range, total),
            _ if is_part => return Err(self.ranges_error("it does not say which part it sends")),
            // An origin without ranges begins at the start, and has that compared as well.
            _ => (0..length, response.content_length()),
        };
        if is_part && range != (*at..length) {
            return Err(self.ranges_error(format!("bytes {at}.. were asked for, {range:?} came")));
        }
        if let Some(total) = total.filter(|&total| total != length) {
            return Err(size_error(&url, length, total));
        }
        let mut place = range.start;
        let mut mine = vec![0; PIECE_BYTES];
        while let Some(piece) = self.client.piece(&mut response, &url).await? {
            self.throttle(piece.len() as u64).await;
            for theirs in piece.chunks(PIECE_BYTES) {
                let theirs = &theirs[..theirs.len().min(length.saturating_sub(place) as usize)];
                self.compare_piece(theirs, &mut mine[..theirs.len()], place, first)?;
                place += theirs.len() as u64;
                *at = place.max(*at);
            }
        }
        if *at < length {
            let reason = format!("it ended after {at} of {length} bytes");
            return Err(FetchError::Broken { url: shown(&url), reason });
        }
        Ok(())
    }

    fn compare_piece(
        &self,
        theirs: &[u8],
        mine: &mut [u8],
        place: u64,
        first: &mut Option<u64>,
    ) -> Result<(), FetchError> {
        let data = self.partial.data();
        data.read_exact_at(mine, place).map_err(failed("read", &self.partial.data_path()))?;
        let Some(differs) = mine.iter().zip(theirs).position(|(mine, theirs)| mine != theirs)
        else {
            return Ok(());
        };
        let differs = place + differs as u64;
        info!(byte = differs, "a byte is another the second time");
        *first = Some(first.map_or(differs, |first| first.min(differs)));
        let written = self.inner.host.write_at(data, theirs, place);
        written.map_err(|error| self.write_failed(error, place))
    }

    /// Hashes the file from the chunk on in which it changed.
    fn hash_again(&self, hasher: &Hasher, changed: u64) -> Result<Hasher, FetchError> {
        let known = ((changed / CHUNK_BYTES) as usize).min(hasher.chain().len());
        let mut again = Hasher::after(&hasher.chain()[..known]);
        let mut piece = vec![0; PIECE_BYTES];
        while again.length() < hasher.length() {
            let left = (hasher.length() - again.length()).min(PIECE_BYTES as u64);
            let piece = &mut piece[..left as usize];
            let read = self.partial.data().read_exact_at(piece, again.length());
            read.map_err(failed("read", &self.partial.data_path()))?;
            again.update(piece);
        }
        self.partial.keep(known, &again.chain()[known..])?;
        Ok(again)
    }

    /// The origin has another file than was said. It is kept under its own hash, where a download
    /// finds it that wants just that.
    fn other_file(&self, expected: Sha256, found: Sha256) -> FetchError {
        let dir = self.inner.dir.join(PARTIAL).join(found.to_string());
        if let Err(error) = fs::rename(self.partial.dir(), &dir) {
            debug!(%error, "what came stays where it is");
        }
        FetchError::Digest { url: shown(self.address()), expected, found }
    }
}
