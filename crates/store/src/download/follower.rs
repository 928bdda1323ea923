//! Hashes a file behind the connections that write it, and flushes it to the disk behind that.
//!
//! Two threads: hashing takes a core, flushing takes the disk, and neither may hold up the bytes
//! that come. What is hashed is read back from the file, so that a connection may write anywhere.

use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use crate::download::partial::Partial;
use crate::error::{StoreError, failed};
use crate::progress::Meter;
use crate::sha256::{CHUNK_BYTES, Hasher, State};

/// Bytes that are hashed at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// The two threads behind a download. Dropped without `finish`, they end soon.
#[derive(Debug)]
pub(crate) struct Follower {
    shared: Arc<Shared>,
    hashing: Option<JoinHandle<Result<Hasher, StoreError>>>,
    flushing: Option<JoinHandle<Result<(), StoreError>>>,
}

#[derive(Debug, Default)]
struct Shared {
    goal: Mutex<Goal>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct Goal {
    /// Bytes that are in the file without a gap.
    written: u64,
    /// There will be no more.
    is_final: bool,
    /// One of the two could not go on.
    is_failed: bool,
}

impl Shared {
    fn goal(&self) -> MutexGuard<'_, Goal> {
        self.goal.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn set(&self, change: impl FnOnce(&mut Goal)) {
        change(&mut self.goal());
        self.changed.notify_all();
    }

    /// Waits for bytes behind these, and returns how far they go; `None` at the end.
    fn next(&self, hashed: u64) -> Option<u64> {
        let waits = |goal: &mut Goal| !goal.is_failed && !goal.is_final && goal.written <= hashed;
        let goal = self.changed.wait_while(self.goal(), waits);
        let goal = goal.unwrap_or_else(|poison| poison.into_inner());
        (!goal.is_failed && goal.written > hashed).then_some(goal.written)
    }
}

impl Follower {
    /// Goes on with a file that is hashed as far as `hasher` is.
    pub(crate) fn start(
        partial: &Arc<Partial>,
        hasher: Hasher,
        meter: &Arc<Meter>,
    ) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared::default());
        let (chunks, hashed) = channel();
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        let (file, known, meter) = (Arc::clone(partial), hasher.chain().len(), Arc::clone(meter));
        let follower = Arc::clone(&shared);
        let flushing = spawn("store-flush").spawn(move || {
            let result = flush(&file, known, &hashed, &meter);
            follower.set(|goal| goal.is_failed |= result.is_err());
            result
        });
        let (file, follower) = (Arc::clone(partial), Arc::clone(&shared));
        let hashing = spawn("store-hash").spawn(move || {
            let result = hash(&file, hasher, &follower, &chunks);
            follower.set(|goal| goal.is_failed |= result.is_err());
            result
        });
        let failed = || failed("start a thread for", partial.dir());
        Ok(Self {
            shared,
            hashing: Some(hashing.map_err(failed())?),
            flushing: Some(flushing.map_err(failed())?),
        })
    }

    /// So many bytes are in the file without a gap. False when something failed, which `finish`
    /// tells.
    pub(crate) fn advance(&self, written: u64) -> bool {
        self.shared.set(|goal| goal.written = goal.written.max(written));
        !self.shared.goal().is_failed
    }

    /// Waits until all is hashed and on disk.
    pub(crate) fn finish(mut self) -> Result<Hasher, StoreError> {
        self.shared.set(|goal| goal.is_final = true);
        let flushed = join(self.flushing.take());
        let hashed = join(self.hashing.take());
        if let Some(result) = flushed {
            result?;
        }
        hashed.unwrap_or_else(|| Ok(Hasher::new()))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.shared.set(|goal| goal.is_final = true);
        // The files must not be written to by a download that is over.
        let _ = self.hashing.take().map(JoinHandle::join);
        let _ = self.flushing.take().map(JoinHandle::join);
    }
}

fn join<T>(thread: Option<JoinHandle<T>>) -> Option<T> {
    let joined = thread?.join();
    Some(joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

fn hash(
    partial: &Partial,
    mut hasher: Hasher,
    shared: &Shared,
    chunks: &Sender<State>,
) -> Result<Hasher, StoreError> {
    let mut piece = vec![0; PIECE_BYTES as usize];
    let mut told = hasher.chain().len();
    while let Some(written) = shared.next(hasher.length()) {
        let length = (written - hasher.length()).min(PIECE_BYTES);
        let piece = &mut piece[..length as usize];
        let read = partial.data().read_exact_at(piece, hasher.length());
        read.map_err(failed("read", &partial.data_path()))?;
        hasher.update(piece);
        for state in &hasher.chain()[told..] {
            // A flusher that failed has said so already.
            let _ = chunks.send(*state);
        }
        told = hasher.chain().len();
    }
    Ok(hasher)
}

fn flush(
    partial: &Partial,
    mut kept: usize,
    hashed: &Receiver<State>,
    meter: &Meter,
) -> Result<(), StoreError> {
    while let Ok(state) = hashed.recv() {
        // All that came during the last flush are in this one.
        let states: Vec<State> = std::iter::once(state).chain(hashed.try_iter()).collect();
        partial.keep(kept, &states)?;
        kept += states.len();
        meter.durable(kept as u64 * CHUNK_BYTES);
    }
    Ok(())
}
