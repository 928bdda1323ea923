//! Where the KV cache lies: pages of [`PAGE_TOKENS`] tokens.
//!
//! A page number stands for a page of every layer: page `p` of a layer begins `p` pages behind the
//! layer's start, so one table a sequence serves all layers. `kernels/ops.cuh` says what a page
//! holds; whose the pages are [`Pool`](crate::Pool) knows.

use m40_program::KvLayer;

use crate::lower::page_places;
use crate::ops::{PAGE_TOKENS, Place};

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
}
