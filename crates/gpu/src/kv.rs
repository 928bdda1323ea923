//! The KV cache: pages of [`PAGE_TOKENS`] tokens, given to sequences as they grow.
//!
//! A page number stands for a page of every layer: page `p` of a layer begins `p` pages behind the
//! layer's start, so one table a sequence serves all layers. `kernels/ops.cuh` says what a page
//! holds.

use m40_program::KvLayer;

use crate::lower::page_places;
use crate::ops::{PAGE_TOKENS, Place};

/// Fewer pages are free than asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the KV cache has {free} free pages of {capacity}, and {needed} more are needed")]
pub struct OutOfPages {
    /// Pages that a sequence needs beyond those it has.
    pub needed: usize,
    /// Pages that nobody has.
    pub free: usize,
    /// All pages.
    pub capacity: usize,
}

/// How the pages of a program's layers lie in one stretch of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvPlan {
    /// Places from the start of the stretch to each layer's page 0.
    layers: Vec<u32>,
    page_bytes: u64,
    pages: usize,
}

impl KvPlan {
    /// Bytes that a page takes over all layers.
    pub fn page_bytes(layers: &[KvLayer]) -> u64 {
        layers.iter().map(|layer| u64::from(page_places(layer)) * Place::BYTES).sum()
    }

    /// As many pages as `bytes` bytes hold, but no more than `most`; also none. Offsets stay below
    /// what places can name.
    pub fn new(layers: &[KvLayer], bytes: u64, most: usize) -> Self {
        let page_bytes = Self::page_bytes(layers);
        let nameable = u64::from(u32::MAX) * Place::BYTES;
        let pages = bytes.min(nameable).checked_div(page_bytes).unwrap_or(0);
        let pages = usize::try_from(pages).unwrap_or(usize::MAX).min(most);
        let mut start = 0;
        let layers = layers.iter().map(|layer| {
            let at = start;
            start += page_places(layer) * pages as u32;
            at
        });
        Self { layers: layers.collect(), page_bytes, pages }
    }

    /// Pages of each layer.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Tokens that all pages hold.
    pub fn tokens(&self) -> usize {
        self.pages * PAGE_TOKENS
    }

    /// Bytes of the stretch.
    pub fn bytes(&self) -> u64 {
        self.page_bytes * self.pages as u64
    }

    /// Each layer's page 0, with the stretch at `start`.
    pub fn caches(&self, start: Place) -> Vec<Place> {
        self.layers.iter().map(|layer| Place(start.0 + layer)).collect()
    }
}

/// The pages that nobody has.
#[derive(Debug)]
pub struct PagePool {
    /// Page numbers, the next to be given out last.
    free: Vec<u32>,
    capacity: usize,
}

/// The pages of one sequence, in order. They are given back with
/// [`PagePool::release`]; dropping them loses them.
#[derive(Debug, Default)]
#[must_use = "its pages are to be released"]
pub struct PageTable {
    pages: Vec<u32>,
    tokens: usize,
}

impl PagePool {
    /// A pool of the pages `0..pages`, all free.
    pub fn new(pages: usize) -> Self {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        Self { free: (0..pages).rev().collect(), capacity: pages as usize }
    }

    /// All pages.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Pages that nobody has.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Makes room for `tokens` tokens in a sequence that may have fewer.
    ///
    /// # Errors
    /// [`OutOfPages`]; the sequence is as before.
    pub fn grow(&mut self, table: &mut PageTable, tokens: usize) -> Result<(), OutOfPages> {
        let needed = tokens.div_ceil(PAGE_TOKENS).saturating_sub(table.pages.len());
        let (free, capacity) = (self.free.len(), self.capacity);
        let kept = free.checked_sub(needed).ok_or(OutOfPages { needed, free, capacity })?;
        table.pages.extend(self.free.drain(kept..).rev());
        table.tokens = table.tokens.max(tokens);
        Ok(())
    }

    /// Forgets a sequence's tokens from position `tokens` on; pages that hold none of the others are
    /// free again.
    pub fn truncate(&mut self, table: &mut PageTable, tokens: usize) {
        table.tokens = table.tokens.min(tokens);
        let kept = table.tokens.div_ceil(PAGE_TOKENS);
        self.free.extend(table.pages.drain(kept..).rev());
    }

    /// Takes all pages of a sequence back.
    pub fn release(&mut self, mut table: PageTable) {
        self.truncate(&mut table, 0);
    }
}

impl PageTable {
    /// A sequence without tokens.
    pub fn new() -> Self {
        Self::default()
    }

    /// The page numbers, as kernels read them.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// Tokens there is room for, and no more were asked for.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use m40_program::KvType;

    use super::*;

    const LAYERS: [KvLayer; 2] = [
        KvLayer { kv_heads: 2, key_dim: 64, value_dim: 64, ty: KvType::F16 },
        KvLayer { kv_heads: 1, key_dim: 8, value_dim: 16, ty: KvType::Int8 },
    ];

    #[test]
    fn pages_of_layers_lie_one_layer_behind_the_other() {
        let page = (2 * 32 * 2 * 128, 32 * (24 + 2 * 4));
        assert_eq!(KvPlan::page_bytes(&LAYERS), page.0 + page.1);
        let plan = KvPlan::new(&LAYERS, 10 * (page.0 + page.1) + 5, 1000);
        assert_eq!((plan.pages(), plan.tokens()), (10, 320));
        assert_eq!(plan.bytes(), 10 * (page.0 + page.1));
        let second = 100 + 10 * page.0 / 16;
        assert_eq!(plan.caches(Place(100)), [Place(100), Place(second as u32)]);
        assert_eq!(KvPlan::new(&LAYERS, plan.bytes(), 3).pages(), 3);
        assert_eq!(KvPlan::new(&LAYERS, 10, 3).pages(), 0);
        assert_eq!(KvPlan::new(&[], 10, 3).pages(), 0, "without layers there are no pages");
    }

    #[test]
    fn a_sequence_has_a_page_for_every_32_tokens() {
        let mut pool = PagePool::new(5);
        let mut table = PageTable::new();
        for (tokens, pages) in [(1, 1), (32, 1), (33, 2), (20, 2), (97, 4)] {
            pool.grow(&mut table, tokens).unwrap();
            assert_eq!(table.pages().len(), pages, "{tokens} tokens");
        }
        assert_eq!((table.pages(), table.tokens()), (&[0, 1, 2, 3][..], 97));
        pool.truncate(&mut table, 64);
        assert_eq!((table.pages(), table.tokens(), pool.free()), (&[0, 1][..], 64, 3));
        pool.release(table);
        assert_eq!((pool.free(), pool.capacity()), (5, 5));
    }

    #[test]
    fn sequences_never_share_a_page() {
        let mut pool = PagePool::new(64);
        let mut tables: Vec<_> = (0..4).map(|_| PageTable::new()).collect();
        let mut step = 1usize;
        for _ in 0..500 {
            step = step * 1103515245 % 2147483647;
            let table = &mut tables[step % 4];
            let tokens = step / 4 % 600;
            if pool.grow(table, tokens).is_err() || step.is_multiple_of(7) {
                pool.truncate(table, tokens / 2);
            }
            let mut all: Vec<_> = tables.iter().flat_map(PageTable::pages).copied().collect();
            let held = all.len();
            all.sort_unstable();
            all.dedup();
            assert_eq!((all.len(), held + pool.free()), (held, 64));
        }
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut pool = PagePool::new(3);
        let mut table = PageTable::new();
        pool.grow(&mut table, 40).unwrap();
        let error = pool.grow(&mut table, 200).unwrap_err();
        assert_eq!(error, OutOfPages { needed: 5, free: 1, capacity: 3 });
        assert_eq!((table.pages().len(), table.tokens(), pool.free()), (2, 40, 1));
        pool.release(table);
    }
}
