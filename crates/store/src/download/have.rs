//! Which bytes of a file have come, and who gets which of the others.

use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes that one request asks for.
pub(crate) const SPAN_BYTES: u64 = 32 << 20;
/// How far ahead of the first missing byte requests go. A crash loses what is ahead.
const AHEAD_BYTES: u64 = 256 << 20;

/// Which bytes have come.
#[derive(Debug, Default)]
pub(crate) struct Have {
    /// Ranges, by their starts; they do not touch.
    come: BTreeMap<u64, u64>,
    /// Ranges that somebody fetches, by their starts.
    claimed: BTreeMap<u64, u64>,
}

/// What there is to do for one more connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// These bytes, which nobody else fetches.
    Range(Range<u64>),
    /// Nothing before bytes come that are further in front.
    Wait,
    /// Nothing: all bytes have come or are being fetched.
    Nothing,
}

impl Have {
    /// The first so many bytes are there.
    pub(crate) fn up_to(end: u64) -> Self {
        let mut have = Self::default();
        have.add(0..end);
        have
    }

    /// How many bytes are there without a gap from the start.
    pub(crate) fn frontier(&self) -> u64 {
        self.come.get(&0).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, mut range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        if let Some((&start, &end)) = self.come.range(..=range.start).next_back()
            && end >= range.start
        {
            range = start..end.max(range.end);
        }
        while let Some((&start, &end)) = self.come.range(range.start..=range.end).next() {
            self.come.remove(&start);
            range.end = range.end.max(end);
        }
        self.come.insert(range.start, range.end);
    }

    /// The next bytes to fetch of a file of this length.
    pub(crate) fn claim(&mut self, size: u64) -> Claim {
        let frontier = self.frontier();
        let mut start = frontier;
        // Steps over what is there or on its way, in whatever order the two come.
        while let Some(end) = end_at(&self.come, start).or_else(|| end_at(&self.claimed, start)) {
            start = end;
        }
        if start >= size {
            return Claim::Nothing;
        }
        if start - frontier >= AHEAD_BYTES {
            return Claim::Wait;
        }
        let next = |ranges: &BTreeMap<u64, u64>| ranges.range(start..).next().map(|(&at, _)| at);
        let end = [next(&self.come), next(&self.claimed), Some(size)].into_iter().flatten().min();
        let end = end.unwrap_or(size).min(start + SPAN_BYTES);
        self.claimed.insert(start, end);
        Claim::Range(start..end)
    }

    /// Somebody fetches this range, which was not claimed before.
    pub(crate) fn take(&mut self, range: Range<u64>) {
        self.claimed.insert(range.start, range.end);
    }

    /// Nobody fetches anything any more.
    pub(crate) fn give_all_back(&mut self) {
        self.claimed.clear();
    }

    /// Nobody fetches the range that begins here any more.
    pub(crate) fn give_back(&mut self, start: u64) {
        self.claimed.remove(&start);
    }
}

fn end_at(ranges: &BTreeMap<u64, u64>, at: u64) -> Option<u64> {
    ranges.range(..=at).next_back().map(|(_, &end)| end).filter(|&end| end > at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_frontier_is_the_first_byte_that_is_missing(
            ranges in proptest::collection::vec((0u64..60, 1u64..12), 0..24),
        ) {
            let mut have = Have::default();
            let mut bytes = [false; 80];
            for (start, length) in ranges {
                have.add(start..start + length);
                bytes[start as usize..(start + length) as usize].fill(true);
                let missing = bytes.iter().position(|come| !come).unwrap() as u64;
                prop_assert_eq!(have.frontier(), missing);
            }
        }
    }

    #[test]
    fn each_byte_is_fetched_by_one_connection() {
        let mut have = Have::up_to(SPAN_BYTES / 2);
        let size = 3 * SPAN_BYTES;
        let first = SPAN_BYTES / 2..SPAN_BYTES / 2 + SPAN_BYTES;
        assert_eq!(have.claim(size), Claim::Range(first.clone()));
        let second = first.end..first.end + SPAN_BYTES;
        assert_eq!(have.claim(size), Claim::Range(second.clone()));
        assert_eq!(have.claim(size), Claim::Range(second.end..size));
        assert_eq!(have.claim(size), Claim::Nothing);
        // The second breaks off after ten bytes: what is left of it is there to be had again.
        have.add(second.start..second.start + 10);
        have.give_back(second.start);
        assert_eq!(have.claim(size), Claim::Range(second.start + 10..second.end));
        assert_eq!(have.frontier(), SPAN_BYTES / 2);
    }

    #[test]
    fn nobody_runs_far_ahead_of_a_slow_connection() {
        let mut have = Have::default();
        let size = 4 * AHEAD_BYTES;
        let Claim::Range(slow) = have.claim(size) else { panic!("nothing to do") };
        while let Claim::Range(range) = have.claim(size) {
            have.add(range.clone());
            have.give_back(range.start);
        }
        assert_eq!(have.claim(size), Claim::Wait);
        have.add(slow);
        assert!(matches!(have.claim(size), Claim::Range(_)));
    }
}
