//! How the tiles of a region are shared out over threads.

use std::array::from_fn;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Pieces that a share is cut into: enough that a thread which is interrupted leaves most of its
/// share to the others.
const PIECES: usize = 8;

/// More threads than this take pieces of the same shares.
const MAX_SHARES: usize = 16;

/// The items `0..total`, cut into one share per thread. A thread takes its own share piece by piece
/// in ascending order, so that it walks through memory; then what is left of the others'.
pub(super) struct Shares {
    total: usize,
    count: usize,
    piece: usize,
    /// The first item of each share that nobody has taken.
    next: [Cursor; MAX_SHARES],
}

/// On a cache line of its own.
#[repr(align(64))]
struct Cursor(AtomicUsize);

impl Shares {
    pub(super) fn new(total: usize, threads: usize) -> Self {
        let count = threads.clamp(1, MAX_SHARES);
        let piece = (total / (PIECES * threads.max(1))).max(1);
        let next = from_fn(|share| Cursor(AtomicUsize::new(total * share.min(count) / count)));
        Self { total, count, piece, next }
    }

    /// Calls `f` with pieces, and the end of the share each is of, until all are taken.
    pub(super) fn take(&self, thread: usize, mut f: impl FnMut(Range<usize>, usize)) {
        for other in 0..self.count {
            let share = (thread + other) % self.count;
            let end = self.total * (share + 1) / self.count;
            loop {
                let first = self.next[share].0.fetch_add(self.piece, Ordering::Relaxed);
                if first >= end {
                    break;
                }
                f(first..end.min(first + self.piece), end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_item_is_taken_once_by_however_many_threads_come() {
        for total in [0, 1, 2, 7, 36, 1000] {
            for threads in [1_usize, 2, 3, 16, 40] {
                for come in [1, threads.div_ceil(2), threads] {
                    let shares = Shares::new(total, threads);
                    let taken = Mutex::new(vec![0; total]);
                    std::thread::scope(|scope| {
                        for thread in 0..come {
                            let (shares, taken) = (&shares, &taken);
                            scope.spawn(move || {
                                shares.take(thread, |piece, end| {
                                    assert!(piece.end <= end && end <= total);
                                    taken.lock().unwrap()[piece].iter_mut().for_each(|n| *n += 1);
                                });
                            });
                        }
                    });
                    assert!(taken.into_inner().unwrap().iter().all(|n| *n == 1));
                }
            }
        }
    }
}
