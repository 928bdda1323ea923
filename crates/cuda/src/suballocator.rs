//! Which parts of one large allocation are free: arithmetic on offsets, no memory.

use std::collections::{BTreeMap, BTreeSet};

/// Every block begins at a multiple of this many bytes: a memory transaction of the device is 128
/// bytes, and the driver gives its own allocations this alignment.
pub const ALIGNMENT: u64 = 256;

/// Gives out aligned, disjoint blocks of `0..capacity`: the smallest gap that fits, the lowest of
/// equal ones. Gaps that touch become one at once. Each call costs O(log gaps).
#[derive(Debug)]
pub struct SubAllocator {
    capacity: u64,
    free: u64,
    /// Length of each gap by its offset. No two touch.
    gaps: BTreeMap<u64, u64>,
    /// The same gaps as (length, offset).
    by_length: BTreeSet<(u64, u64)>,
}

/// A part of a [`SubAllocator`]'s range. Not `Clone`: it is given back once.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    offset: u64,
    bytes: u64,
}

impl Block {
    /// First byte, a multiple of [`ALIGNMENT`].
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length: what was asked for, rounded up to [`ALIGNMENT`].
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// No gap is large enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for {asked} bytes: {free} are free, the largest gap has {largest}")]
pub struct Exhausted {
    /// Bytes asked for.
    pub asked: u64,
    /// Bytes of all gaps.
    pub free: u64,
    /// Bytes of the largest gap.
    pub largest: u64,
}

impl SubAllocator {
    /// All free. Bytes past the last multiple of [`ALIGNMENT`] are not used.
    pub fn new(capacity: u64) -> Self {
        let capacity = capacity / ALIGNMENT * ALIGNMENT;
        let mut new = Self { capacity, free: 0, gaps: BTreeMap::new(), by_length: BTreeSet::new() };
        if capacity > 0 {
            new.insert(0, capacity);
        }
        new
    }

    /// Bytes that there are.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes of all gaps.
    pub fn free(&self) -> u64 {
        self.free
    }

    /// Bytes of the largest gap: the largest request that succeeds.
    pub fn largest(&self) -> u64 {
        self.by_length.last().map_or(0, |gap| gap.0)
    }

    /// A block of at least `bytes` bytes, and at least one.
    pub fn allocate(&mut self, bytes: u64) -> Result<Block, Exhausted> {
        let exhausted = Exhausted { asked: bytes, free: self.free, largest: self.largest() };
        let length = bytes.max(1).checked_next_multiple_of(ALIGNMENT).ok_or(exhausted)?;
        let &(gap, offset) = self.by_length.range((length, 0)..).next().ok_or(exhausted)?;
        self.remove(offset, gap);
        if gap > length {
            self.insert(offset + length, gap - length);
        }
        Ok(Block { offset, bytes: length })
    }

    /// Takes a block of this allocator back.
    pub fn release(&mut self, block: Block) {
        let Block { mut offset, bytes: mut length } = block;
        if let Some((&before, &bytes)) = self.gaps.range(..offset).next_back()
            && before + bytes == offset
        {
            self.remove(before, bytes);
            (offset, length) = (before, length + bytes);
        }
        if let Some(&bytes) = self.gaps.get(&(offset + length)) {
            self.remove(offset + length, bytes);
            length += bytes;
        }
        self.insert(offset, length);
    }

    fn insert(&mut self, offset: u64, bytes: u64) {
        self.gaps.insert(offset, bytes);
        self.by_length.insert((bytes, offset));
        self.free += bytes;
    }

    fn remove(&mut self, offset: u64, bytes: u64) {
        self.gaps.remove(&offset);
        self.by_length.remove(&(bytes, offset));
        self.free -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One step of a random history.
    #[derive(Clone, Debug)]
    enum Step {
        Allocate(u64),
        /// Gives back the block of this rank among the living.
        Release(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let bytes = prop_oneof![0..4u64, 0..2000u64, 0..40_000u64];
        let step = prop_oneof![
            3 => bytes.prop_map(Step::Allocate),
            2 => any::<prop::sample::Index>().prop_map(Step::Release),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// The same as a map of units of [`ALIGNMENT`] bytes: slow and obvious.
    struct Model(Vec<bool>);

    impl Model {
        /// Lengths in bytes of the runs of free units, with where they begin.
        fn gaps(&self) -> Vec<(u64, u64)> {
            let mut gaps = Vec::new();
            let mut start = 0;
            for run in self.0.chunk_by(|a, b| a == b) {
                if !run[0] {
                    gaps.push((run.len() as u64 * ALIGNMENT, start * ALIGNMENT));
                }
                start += run.len() as u64;
            }
            gaps
        }

        fn set(&mut self, block: &Block, used: bool) {
            let units = block.offset() / ALIGNMENT..(block.offset() + block.bytes()) / ALIGNMENT;
            for unit in units {
                assert_ne!(self.0[unit as usize], used, "overlap, or freed twice");
                self.0[unit as usize] = used;
            }
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_map_of_units(capacity in 0..300_000u64, steps in steps()) {
            let mut allocator = SubAllocator::new(capacity);
            let mut model = Model(vec![false; (capacity / ALIGNMENT) as usize]);
            let mut living = Vec::new();
            for step in steps {
                match step {
                    Step::Allocate(bytes) => {
                        let gaps = model.gaps();
                        let best = gaps.iter().filter(|gap| gap.0 >= bytes.max(1)).min();
                        match allocator.allocate(bytes) {
                            Ok(block) => {
                                prop_assert_eq!(block.offset() % ALIGNMENT, 0);
                                prop_assert!(block.bytes() >= bytes.max(1));
                                prop_assert!(block.bytes() < bytes.max(1) + ALIGNMENT);
                                prop_assert_eq!(Some(block.offset()), best.map(|gap| gap.1));
                                model.set(&block, true);
                                living.push(block);
                            }
                            Err(error) => {
                                prop_assert_eq!(best, None);
                                let free = gaps.iter().map(|gap| gap.0).sum();
                                let largest = gaps.iter().map(|gap| gap.0).max().unwrap_or(0);
                                prop_assert_eq!(error, Exhausted { asked: bytes, free, largest });
                            }
                        }
                    }
                    Step::Release(index) if !living.is_empty() => {
                        let block = living.swap_remove(index.index(living.len()));
                        model.set(&block, false);
                        allocator.release(block);
                    }
                    Step::Release(_) => {}
                }
                let gaps = model.gaps();
                prop_assert_eq!(allocator.free(), gaps.iter().map(|gap| gap.0).sum::<u64>());
                prop_assert_eq!(allocator.largest(), gaps.iter().map(|g| g.0).max().unwrap_or(0));
            }
            for block in living {
                allocator.release(block);
            }
            prop_assert_eq!(allocator.free(), allocator.capacity());
            prop_assert_eq!(allocator.largest(), allocator.capacity());
        }
    }

    #[test]
    fn refuses_what_no_length_can_hold() {
        let mut allocator = SubAllocator::new(1 << 20);
        let error = allocator.allocate(u64::MAX).unwrap_err();
        assert_eq!(error, Exhausted { asked: u64::MAX, free: 1 << 20, largest: 1 << 20 });
        assert_eq!(allocator.free(), 1 << 20);
    }

    #[test]
    fn says_how_much_is_free_and_how_much_of_it_in_one_piece() {
        let mut allocator = SubAllocator::new(4 * ALIGNMENT);
        let blocks: Vec<_> = (0..4).map(|_| allocator.allocate(1).unwrap()).collect();
        for (nth, block) in blocks.into_iter().enumerate() {
            if nth != 1 {
                allocator.release(block);
            }
        }
        let message = allocator.allocate(3 * ALIGNMENT).unwrap_err().to_string();
        assert_eq!(message, "no room for 768 bytes: 768 are free, the largest gap has 512");
    }
}
