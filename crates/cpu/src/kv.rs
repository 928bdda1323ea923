//! The KV cache of one sequence: f16, in pages, allocated as the sequence grows.
//!
//! A page holds [`PAGE_TOKENS`] tokens of every layer and head. Keys lie dimension by dimension,
//! `[kv_head][key_dim][PAGE_TOKENS] f16`, so that the score loop runs over tokens in vector lanes
//! without horizontal sums; values lie token by token, `[kv_head][PAGE_TOKENS][value_dim] f16`, so
//! that the weighted sum runs over dimensions.

use half::f16;
use half::slice::HalfFloatSliceExt;
use m40_program::KvLayer;

/// Tokens per page.
pub const PAGE_TOKENS: usize = 64;

/// Where a layer's planes lie in a page, in elements.
#[derive(Clone, Copy, Debug)]
struct LayerPlan {
    shape: KvLayer,
    keys: usize,
    values: usize,
}

/// Keys and values of every token of one sequence.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerPlan>,
    page_elements: usize,
    pages: Vec<Box<[f16]>>,
    len: usize,
    context: usize,
}

impl KvCache {
    /// An empty cache for at most `context` tokens of the given layers.
    pub fn new(layers: &[KvLayer], context: usize) -> Self {
        let mut at = 0;
        let plan = |shape: &KvLayer| {
            let keys = at;
            let values = keys + shape.kv_heads * shape.key_dim * PAGE_TOKENS;
            at = values + shape.kv_heads * shape.value_dim * PAGE_TOKENS;
            LayerPlan { shape: *shape, keys, values }
        };
        let layers = layers.iter().map(plan).collect();
        Self { layers, page_elements: at, pages: vec![], len: 0, context }
    }

    /// Tokens stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is stored.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Most tokens it may hold.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Bytes allocated now.
    pub fn bytes(&self) -> usize {
        self.pages.len() * self.page_elements * size_of::<f16>()
    }

    /// Forgets all tokens from position `len` on; pages no longer needed are freed.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE_TOKENS));
    }

    /// Makes room for `tokens` tokens and counts them as stored: a pass over positions below
    /// `tokens` writes each layer's keys and values before it reads them.
    ///
    /// # Panics
    /// If `tokens` exceeds the context; the caller checks prompts where it can say so.
    pub(crate) fn grow(&mut self, tokens: usize) {
        assert!(tokens <= self.context, "{tokens} tokens in a cache for {}", self.context);
        let pages = tokens.div_ceil(PAGE_TOKENS);
        while self.pages.len() < pages {
            self.pages.push(vec![f16::ZERO; self.page_elements].into_boxed_slice());
        }
        self.len = self.len.max(tokens);
    }

    /// Stores one token. `k`: `[kv_heads, key_dim]`, `v`: `[kv_heads, value_dim]`, both f32.
    pub(crate) fn store(&mut self, layer: usize, position: usize, k: &[f32], v: &[f32]) {
        let plan = self.layers[layer];
        let page = &mut self.pages[position / PAGE_TOKENS];
        let slot = position % PAGE_TOKENS;
        let mut keys = page[plan.keys..plan.values].iter_mut().skip(slot).step_by(PAGE_TOKENS);
        let mut buffer = [f16::ZERO; 64];
        for from in k.chunks(buffer.len()) {
            let halves = &mut buffer[..from.len()];
            halves.convert_from_f32_slice(from);
            halves.iter().zip(keys.by_ref()).for_each(|(half, to)| *to = *half);
        }
        let dim = plan.shape.value_dim;
        for (head, from) in v.chunks_exact(dim).enumerate() {
            let start = plan.values + (head * PAGE_TOKENS + slot) * dim;
            page[start..start + dim].convert_from_f32_slice(from);
        }
    }

    /// Keys of a head in one page: `[key_dim, PAGE_TOKENS] f16`.
    pub(crate) fn keys(&self, layer: usize, page: usize, head: usize) -> &[f16] {
        let plan = &self.layers[layer];
        let len = plan.shape.key_dim * PAGE_TOKENS;
        &self.pages[page][plan.keys + head * len..][..len]
    }

    /// Values of a head in one page: `[PAGE_TOKENS, value_dim] f16`.
    pub(crate) fn values(&self, layer: usize, page: usize, head: usize) -> &[f16] {
        let plan = &self.layers[layer];
        let len = plan.shape.value_dim * PAGE_TOKENS;
        &self.pages[page][plan.values + head * len..][..len]
    }
}
