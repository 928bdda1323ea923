//! The KV cache of one sequence: f16 or int8, in pages, allocated as the sequence grows.
//!
//! Sequences that begin alike may have the same pages ([`SharedPage`]): whoever writes to one that others
//! have too gets a copy.
//!
//! A page holds [`PAGE_TOKENS`] tokens of every layer and head. Keys lie dimension by dimension,
//! `[kv_head][key_dim][PAGE_TOKENS]`, so that the score loop runs over tokens in vector lanes
//! without horizontal sums; values lie token by token, `[kv_head][PAGE_TOKENS][value_dim]`, so
//! that the weighted sum runs over dimensions. Layers of int8 have scales beside them, of keys and of
//! values `[kv_head][PAGE_TOKENS] f32`: a head's elements are its integers times its token's scale.

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use half::slice::HalfFloatSliceExt;
use m40_program::{KvLayer, KvType};

/// Tokens per page.
pub const PAGE_TOKENS: usize = 64;

/// Where a layer's planes lie among those elements of a page that are of its type, and its scales
/// among those of the page.
#[derive(Clone, Copy, Debug)]
struct LayerPlan {
    shape: KvLayer,
    keys: usize,
    values: usize,
    key_scales: usize,
    value_scales: usize,
}

/// Elements of a page.
#[derive(Clone, Copy, Debug, Default)]
struct PageSize {
    halves: usize,
    bytes: usize,
    scales: usize,
}

#[derive(Clone, Debug)]
struct Page {
    halves: Box<[f16]>,
    bytes: Box<[i8]>,
    scales: Box<[f32]>,
}

/// Elements as they are stored: what a head is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Elements<'a> {
    /// The numbers themselves.
    Halves(&'a [f16]),
    /// Integers, and the scale of each of the page's tokens.
    Scaled(&'a [i8], &'a [f32]),
}

impl Elements<'_> {
    /// Element `index`, which is of the page's token `token`.
    pub(crate) fn number(&self, index: usize, token: usize) -> f64 {
        match self {
            Self::Halves(halves) => halves[index].to_f64(),
            Self::Scaled(bytes, scales) => f64::from(bytes[index]) * f64::from(scales[token]),
        }
    }
}

/// A head as integers in -127..=127, and their scale: with a number that is none, or too large, all
/// of the head is none. The card rounds in the same way (kernels/kv.cuh).
fn quantise(head: &[f32], put: impl FnMut((usize, i8))) -> f32 {
    // Bits of magnitudes are in their order, NaN above all.
    let largest = head.iter().map(|x| x.abs().to_bits()).max().map_or(0.0, f32::from_bits);
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    head.iter().map(|x| (x * inverse).round_ties_even() as i8).enumerate().for_each(put);
    if largest.is_finite() { largest * (1.0 / 127.0) } else { f32::NAN }
}

/// A page full of tokens, for other caches of the same model. It depends on all tokens before its own
/// as well.
#[derive(Clone, Debug)]
pub struct SharedPage(Arc<Page>);

impl SharedPage {
    /// Whether no cache has it.
    pub fn is_alone(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

/// Keys and values of every token of one sequence.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerPlan>,
    page: PageSize,
    pages: Vec<Arc<Page>>,
    len: usize,
    context: usize,
}

impl KvCache {
    /// An empty cache for at most `context` tokens of the given layers.
    pub fn new(layers: &[KvLayer], context: usize) -> Self {
        let mut page = PageSize::default();
        let plan = |shape: &KvLayer| {
            let of_heads = shape.kv_heads * PAGE_TOKENS;
            let (key_scales, elements) = match shape.ty {
                KvType::F16 => (page.scales, &mut page.halves),
                KvType::Int8 => {
                    page.scales += 2 * of_heads;
                    (page.scales - 2 * of_heads, &mut page.bytes)
                }
            };
            let keys = *elements;
            let values = keys + of_heads * shape.key_dim;
            *elements = values + of_heads * shape.value_dim;
            let value_scales = key_scales + of_heads;
            LayerPlan { shape: *shape, keys, values, key_scales, value_scales }
        };
        let layers = layers.iter().map(plan).collect();
        Self { layers, page, pages: vec![], len: 0, context }
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

    /// Bytes allocated now, those that others have too among them.
    pub fn bytes(&self) -> usize {
        self.pages.len() * self.page_bytes()
    }

    /// Pages allocated now, those that others have too among them.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages that storing tokens at `positions`, which follow those stored, takes: new ones, and copies of
    /// those that others have too.
    pub fn lacking(&self, positions: Range<usize>) -> usize {
        let pages = positions.start / PAGE_TOKENS..positions.end.div_ceil(PAGE_TOKENS);
        let has =
            |page: &usize| self.pages.get(*page).is_some_and(|page| Arc::strong_count(page) == 1);
        pages.filter(|page| !has(page)).count()
    }

    /// Takes the memory for that, so that storing takes none.
    ///
    /// # Panics
    /// If the context has no room for it.
    pub fn reserve(&mut self, positions: Range<usize>) {
        self.allocate(positions.end);
        let written = positions.start / PAGE_TOKENS..positions.end.div_ceil(PAGE_TOKENS);
        for page in &mut self.pages[written] {
            Arc::make_mut(page);
        }
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        let PageSize { halves, bytes, scales } = self.page;
        halves * size_of::<f16>() + bytes + scales * size_of::<f32>()
    }

    /// The page of this index, if all of its tokens are stored.
    pub fn share(&self, index: usize) -> Option<SharedPage> {
        let full = index < self.len / PAGE_TOKENS;
        full.then(|| SharedPage(Arc::clone(&self.pages[index])))
    }

    /// Has the next page from a cache that holds the same tokens up to its end. What is stored of an
    /// unfinished page is forgotten.
    ///
    /// # Panics
    /// If the context has no room for it.
    pub fn adopt(&mut self, page: SharedPage) {
        let whole = self.len / PAGE_TOKENS;
        let len = (whole + 1) * PAGE_TOKENS;
        assert!(len <= self.context, "{len} tokens in a cache for {}", self.context);
        self.pages.truncate(whole);
        self.pages.push(page.0);
        self.len = len;
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
        self.allocate(tokens);
        self.len = self.len.max(tokens);
    }

    fn allocate(&mut self, tokens: usize) {
        assert!(tokens <= self.context, "{tokens} tokens in a cache for {}", self.context);
        let pages = tokens.div_ceil(PAGE_TOKENS);
        while self.pages.len() < pages {
            let PageSize { halves, bytes, scales } = self.page;
            self.pages.push(Arc::new(Page {
                halves: vec![f16::ZERO; halves].into_boxed_slice(),
                bytes: vec![0; bytes].into_boxed_slice(),
                scales: vec![0.0; scales].into_boxed_slice(),
            }));
        }
    }

    /// Stores one token. `k`: `[kv_heads, key_dim]`, `v`: `[kv_heads, value_dim]`, both f32.
    pub(crate) fn store(&mut self, layer: usize, position: usize, k: &[f32], v: &[f32]) {
        let plan = self.layers[layer];
        let page = Arc::make_mut(&mut self.pages[position / PAGE_TOKENS]);
        plan.store(page, position % PAGE_TOKENS, k, v);
    }

    /// Keys of a head in one page: `[key_dim, PAGE_TOKENS]`.
    pub(crate) fn keys(&self, layer: usize, page: usize, head: usize) -> Elements<'_> {
        let plan = &self.layers[layer];
        plan.elements(&self.pages[page], (plan.keys, plan.key_scales), plan.shape.key_dim, head)
    }

    /// Values of a head in one page: `[PAGE_TOKENS, value_dim]`.
    pub(crate) fn values(&self, layer: usize, page: usize, head: usize) -> Elements<'_> {
        let plan = &self.layers[layer];
        plan.elements(
            &self.pages[page],
            (plan.values, plan.value_scales),
            plan.shape.value_dim,
            head,
        )
    }
}

impl LayerPlan {
    /// Elements of a head, of `dim` for each token; `first`: of all heads, and of their scales.
    fn elements<'a>(
        &self,
        page: &'a Page,
        first: (usize, usize),
        dim: usize,
        head: usize,
    ) -> Elements<'a> {
        let (elements, scales) = first;
        let (start, len) = (elements + head * dim * PAGE_TOKENS, dim * PAGE_TOKENS);
        match self.shape.ty {
            KvType::F16 => Elements::Halves(&page.halves[start..start + len]),
            KvType::Int8 => {
                let scales = &page.scales[scales + head * PAGE_TOKENS..][..PAGE_TOKENS];
                Elements::Scaled(&page.bytes[start..start + len], scales)
            }
        }
    }

    /// Stores a page's token `slot`.
    fn store(&self, page: &mut Page, slot: usize, k: &[f32], v: &[f32]) {
        let KvLayer { key_dim, value_dim, ty, .. } = self.shape;
        for (head, (k, v)) in k.chunks_exact(key_dim).zip(v.chunks_exact(value_dim)).enumerate() {
            let keys = self.keys + head * key_dim * PAGE_TOKENS + slot;
            let values = self.values + (head * PAGE_TOKENS + slot) * value_dim;
            match ty {
                KvType::F16 => {
                    let mut keys = page.halves[keys..].iter_mut().step_by(PAGE_TOKENS);
                    let mut buffer = [f16::ZERO; 64];
                    for from in k.chunks(buffer.len()) {
                        let halves = &mut buffer[..from.len()];
                        halves.convert_from_f32_slice(from);
                        halves.iter().zip(keys.by_ref()).for_each(|(half, to)| *to = *half);
                    }
                    page.halves[values..values + value_dim].convert_from_f32_slice(v);
                }
                KvType::Int8 => {
                    let scale = head * PAGE_TOKENS + slot;
                    page.scales[self.key_scales + scale] =
                        quantise(k, |(d, x)| page.bytes[keys + d * PAGE_TOKENS] = x);
                    page.scales[self.value_scales + scale] =
                        quantise(v, |(d, x)| page.bytes[values + d] = x);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head's integers, and their scale.
    fn quantised(head: &[f32]) -> (Vec<i8>, f32) {
        let mut found = vec![0; head.len()];
        let scale = quantise(head, |(d, x)| found[d] = x);
        (found, scale)
    }

    #[test]
    fn int8_is_off_by_half_a_step_of_the_largest_at_most() {
        let head: Vec<f32> = (0..99).map(|i| (i as f32 * 0.7).sin() * 3e-5 * i as f32).collect();
        let (found, scale) = quantised(&head);
        let largest = head.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        assert!((scale * 127.0 / largest - 1.0).abs() < 1e-6);
        for (x, i) in head.iter().zip(found) {
            assert!((x - f32::from(i) * scale).abs() < 0.5001 * scale, "{x} became {i}");
        }
        assert_eq!(quantised(&[-2.54, 2.54, 0.0, 0.03]).0, [-127, 127, 0, 2]);
        assert_eq!(quantised(&[0.0, -0.0]), (vec![0, 0], 0.0));
    }

    #[test]
    fn what_is_no_number_is_none_in_int8_either() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (found, scale) = quantised(&[1.0, bad, -3.0]);
            assert!((f32::from(found[0]) * scale).is_nan(), "{bad}: {found:?} * {scale}");
        }
    }

    #[test]
    fn a_page_that_two_have_is_copied_for_the_one_who_writes() {
        let layer = KvLayer { kv_heads: 1, key_dim: 2, value_dim: 2, ty: KvType::F16 };
        let [mut one, mut other] = [0, 1].map(|_| KvCache::new(&[layer], 200));
        one.grow(70);
        (0..70).for_each(|t| one.store(0, t, &[1.0, t as f32], &[2.0, 3.0]));
        assert!(one.share(1).is_none(), "a page is shared when it is full");
        other.grow(5);
        other.adopt(one.share(0).unwrap());
        assert_eq!((other.len(), other.bytes()), (64, one.page_bytes()));
        let key = |cache: &KvCache| cache.keys(0, 0, 0).number(PAGE_TOKENS + 9, 9);
        other.truncate(9);
        other.grow(10);
        other.store(0, 9, &[1.0, 77.0], &[2.0, 3.0]);
        assert_eq!((key(&one), key(&other)), (9.0, 77.0));
        assert_eq!(other.keys(0, 0, 0).number(PAGE_TOKENS + 8, 8), 8.0);
    }

    #[test]
    fn what_storing_takes_is_known_before_and_taken_at_once() {
        let layer = KvLayer { kv_heads: 1, key_dim: 2, value_dim: 2, ty: KvType::F16 };
        let [mut one, mut other] = [0, 1].map(|_| KvCache::new(&[layer], 200));
        assert_eq!((one.lacking(0..64), one.lacking(0..65)), (1, 2));
        one.reserve(0..65);
        assert_eq!((one.pages(), one.len(), one.lacking(0..128)), (2, 0, 0));
        one.grow(65);
        let page = one.share(0).unwrap();
        other.adopt(page.clone());
        assert!(!page.is_alone());
        assert_eq!((other.lacking(64..65), other.lacking(63..65)), (1, 2), "a copy of the first");
        other.truncate(9);
        other.reserve(9..10);
        assert_eq!((other.pages(), other.lacking(9..64)), (1, 0));
        one.truncate(0);
        assert!(page.is_alone());
    }

    #[test]
    fn layers_of_both_types_share_pages() {
        let layer = |ty| KvLayer { kv_heads: 2, key_dim: 3, value_dim: 5, ty };
        let mut cache = KvCache::new(&KvType::ALL.map(layer), 100);
        cache.grow(70);
        assert_eq!(cache.bytes(), 2 * PAGE_TOKENS * (2 * 2 * 8 + 2 * (8 + 2 * 4)));
        let [k, v] = [6, 10].map(|n| (1..=n).map(|i| i as f32).collect::<Vec<_>>());
        (0..2).for_each(|l| (0..70).for_each(|t| cache.store(l, t, &k, &v)));
        for (layer, steps) in [(0, 0.0), (1, 0.5 / 127.0)] {
            for (d, head) in [(0, 0), (2, 1)] {
                let key = cache.keys(layer, 1, head).number(d * PAGE_TOKENS + 5, 5);
                let (want, largest) = (f64::from(k[3 * head + d]), f64::from(k[3 * head + 2]));
                assert!((key - want).abs() <= steps * largest, "{layer}: {key}");
                let value = cache.values(layer, 0, head).number(63 * 5 + d, 63);
                let (want, largest) = (f64::from(v[5 * head + d]), f64::from(v[5 * head + 4]));
                assert!((value - want).abs() <= steps * largest, "{layer}: {value}");
            }
        }
    }
}
