//! How many sequences passes of decoding had: counted where passes run, read by whoever measures.

use std::sync::atomic::{AtomicU64, Ordering};

/// Most sequences of the passes of each count but the last, which has those of more.
const BOUNDS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Passes of decoding since a model was loaded, by how many sequences had a row in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodePasses {
    /// Passes of up to 1, 2, 4, 8, 16, 32 and 64 sequences, and of more; each counts once.
    pub counts: [u64; BOUNDS.len() + 1],
    /// Rows of all of them.
    pub rows: u64,
}

impl DecodePasses {
    /// Each count, with the most sequences of its passes; none where there is no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<usize>, u64)> {
        BOUNDS.into_iter().map(Some).chain([None]).zip(self.counts)
    }
}

/// Counts passes while they run.
#[derive(Debug, Default)]
pub(crate) struct PassCounter {
    counts: [AtomicU64; BOUNDS.len() + 1],
    rows: AtomicU64,
}

impl PassCounter {
    /// So many passes, each with a row of so many sequences.
    pub(crate) fn count(&self, passes: u32, sequences: usize) {
        let passes = u64::from(passes);
        let bucket = BOUNDS.partition_point(|most| *most < sequences);
        self.counts[bucket].fetch_add(passes, Ordering::Relaxed);
        self.rows.fetch_add(passes * sequences as u64, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> DecodePasses {
        let counts = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        DecodePasses { counts, rows: self.rows.load(Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_counts_by_its_sequences() {
        let counter = PassCounter::default();
        for (passes, sequences) in [(3, 1), (2, 2), (1, 3), (1, 64), (1, 65)] {
            counter.count(passes, sequences);
        }
        let read = counter.read();
        assert_eq!(read, DecodePasses { counts: [3, 2, 1, 0, 0, 0, 1, 1], rows: 139 });
        let buckets: Vec<_> = read.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(buckets, [(Some(1), 3), (Some(2), 2), (Some(4), 1), (Some(64), 1), (None, 1)]);
    }
}
