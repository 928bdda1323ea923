//! Softmax attention of one token over a paged KV cache.
//!
//! The positions a token sees are cut at multiples of [`SPAN`]; each span gives a partial result
//! (maximum, sum, weighted values) and the partials are merged in order. Spans may be computed by
//! different threads, or one after another: the arithmetic, and so the result, is the same.
//!
//! Query heads that share a KV head are taken together, up to [`HEADS`] at a time, so that each key
//! and value is converted from f16 or int8 once for all of them. Scales of int8 are those of tokens:
//! they multiply scores, and the weights of values.
#![expect(unsafe_code, reason = "kernels generic over vector instruction sets")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "chains of vector arithmetic")]

use std::ops::Range;

use half::f16;
use m40_program::{AttentionShape, MAX_HEAD_DIM};

use super::elementwise::soften;
use crate::isa::Isa;
use crate::kv::{Elements, KvCache, PAGE_TOKENS};
use crate::pool::ThreadPool;
use crate::row::Row;
use crate::simd::{Lanes, dispatch, exp};

/// Positions of one partial result.
const SPAN: usize = 4 * PAGE_TOKENS;
/// Query heads computed together.
const HEADS: usize = 4;
/// Floats before the weighted values in a head's partial result: maximum and sum.
const STATE: usize = 2;

/// Positions that a token sees: those up to its own, or all that the cache has.
pub(super) fn seen(shape: &AttentionShape, cache: &KvCache, position: usize) -> Range<usize> {
    let end = if shape.causal { position + 1 } else { cache.len() };
    let start = shape.window.map_or(0, |w| end.saturating_sub(w as usize));
    start..end
}

/// Attention of all rows of a pass over one layer.
pub(crate) struct Attention<'a, 'c> {
    pub(crate) isa: Isa,
    pub(crate) shape: &'a AttentionShape,
    /// `[heads]`, or empty.
    pub(crate) sinks: &'a [f32],
    pub(crate) layer: usize,
    pub(crate) rows: &'a [Row],
    pub(crate) caches: &'a [&'c mut KvCache],
}

impl Attention<'_, '_> {
    /// `q`: `[rows, heads, key_dim]`; `out`: `[rows, heads, value_dim]`; `scratch` is grown as
    /// needed and reused.
    pub(crate) fn run(
        &self,
        pool: &ThreadPool,
        q: &[f32],
        out: &mut [f32],
        scratch: &mut Vec<f32>,
    ) {
        let items = self.rows.len() * self.shape.kv_heads;
        if items >= 4 * pool.threads() || pool.threads() == 1 {
            self.by_item(pool, q, out);
        } else {
            self.by_span(pool, q, out, scratch);
        }
    }

    fn group(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// Query heads of an item: a row's heads that share one KV head. `[group, key_dim]`.
    fn queries<'q>(&self, q: &'q [f32], item: usize) -> &'q [f32] {
        let len = self.group() * self.shape.key_dim;
        &q[item * len..(item + 1) * len]
    }

    /// Sinks of an item's heads from the `first` on; or none.
    fn sinks(&self, item: usize, first: usize) -> &[f32] {
        let of_item = item % self.shape.kv_heads * self.group();
        self.sinks.get(of_item + first..).unwrap_or_default()
    }

    fn row(&self, item: usize) -> &Row {
        &self.rows[item / self.shape.kv_heads]
    }

    fn keys(&self, item: usize, span: Range<usize>) -> KeyRange<'_> {
        let kv_head = item % self.shape.kv_heads;
        KeyRange { cache: self.caches[self.row(item).cache], layer: self.layer, kv_head, span }
    }

    /// Positions that a row sees.
    fn seen(&self, row: &Row) -> Range<usize> {
        seen(self.shape, self.caches[row.cache], row.position)
    }

    /// The spans of `seen`, in order.
    fn spans(seen: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        (seen.start / SPAN..seen.end.div_ceil(SPAN))
            .map(move |s| (s * SPAN).max(seen.start)..((s + 1) * SPAN).min(seen.end))
    }

    /// Prefill: many rows, each thread takes whole items.
    fn by_item(&self, pool: &ThreadPool, q: &[f32], out: &mut [f32]) {
        let (key_dim, value_dim) = (self.shape.key_dim, self.shape.value_dim);
        pool.for_each_chunk(out, self.group() * value_dim, |item, out| {
            let mut buffer = [0.0; HEADS * (STATE + MAX_HEAD_DIM)];
            let queries = self.queries(q, item).chunks(HEADS * key_dim);
            for (block, (q, out)) in queries.zip(out.chunks_mut(HEADS * value_dim)).enumerate() {
                let heads = q.len() / key_dim;
                let partial = &mut buffer[..heads * (STATE + value_dim)];
                let mut merge = Merge::new(out, value_dim);
                for span in Self::spans(self.seen(self.row(item))) {
                    span_partial(self.isa, self.shape, &self.keys(item, span), q, partial);
                    merge.add(partial);
                }
                merge.finish(self.sinks(item, block * HEADS));
            }
        });
    }

    /// Decode: few rows, so the spans of an item go to different threads.
    fn by_span(&self, pool: &ThreadPool, q: &[f32], out: &mut [f32], scratch: &mut Vec<f32>) {
        let (key_dim, value_dim) = (self.shape.key_dim, self.shape.value_dim);
        let items = self.rows.len() * self.shape.kv_heads;
        let head = STATE + value_dim;
        let partial_len = self.group() * head;
        let spans = |row: &Row| Self::spans(self.seen(row));
        let spans_max = self.rows.iter().map(|row| spans(row).count()).max().unwrap_or(0);
        scratch.resize(items * spans_max * partial_len, 0.0);

        pool.for_each_chunk(scratch, partial_len, |index, partial| {
            let (item, span) = (index / spans_max, index % spans_max);
            let Some(span) = spans(self.row(item)).nth(span) else { return };
            let keys = self.keys(item, span);
            let queries = self.queries(q, item).chunks(HEADS * key_dim);
            for (q, partial) in queries.zip(partial.chunks_mut(HEADS * head)) {
                span_partial(self.isa, self.shape, &keys, q, partial);
            }
        });
        let outs = out.chunks_exact_mut(self.group() * value_dim);
        for ((item, out), partials) in
            outs.enumerate().zip(scratch.chunks_exact(spans_max * partial_len))
        {
            let spans = spans(self.row(item)).count();
            for (block, out) in out.chunks_mut(HEADS * value_dim).enumerate() {
                let len = out.len() / value_dim * head;
                let mut merge = Merge::new(out, value_dim);
                for partial in partials.chunks_exact(partial_len).take(spans) {
                    merge.add(&partial[block * HEADS * head..][..len]);
                }
                merge.finish(self.sinks(item, block * HEADS));
            }
        }
    }
}

/// Folds partial results of consecutive spans into the output of up to [`HEADS`] heads.
struct Merge<'a> {
    out: &'a mut [f32],
    value_dim: usize,
    max: [f32; HEADS],
    sum: [f32; HEADS],
}

impl<'a> Merge<'a> {
    fn new(out: &'a mut [f32], value_dim: usize) -> Self {
        out.fill(0.0);
        Self { out, value_dim, max: [f32::NEG_INFINITY; HEADS], sum: [0.0; HEADS] }
    }

    fn add(&mut self, partial: &[f32]) {
        let heads = self.out.chunks_exact_mut(self.value_dim);
        let partials = partial.chunks_exact(STATE + self.value_dim);
        for (h, (out, partial)) in heads.zip(partials).enumerate() {
            let max = self.max[h].max(partial[0]);
            let (old, new) = ((self.max[h] - max).exp(), (partial[0] - max).exp());
            self.max[h] = max;
            self.sum[h] = self.sum[h] * old + partial[1] * new;
            for (o, p) in out.iter_mut().zip(&partial[STATE..]) {
                *o = *o * old + p * new;
            }
        }
    }

    /// `sinks`: of the heads, or none.
    fn finish(self, sinks: &[f32]) {
        let heads =
            self.out.chunks_exact_mut(self.value_dim).zip(self.max.into_iter().zip(self.sum));
        for (h, (out, (max, sum))) in heads.enumerate() {
            // A sink far above all scores makes the sum infinite, and the output 0.
            let sink = sinks.get(h).map_or(0.0, |sink| (sink - max).exp());
            let inverse = 1.0 / (sum + sink);
            out.iter_mut().for_each(|o| *o *= inverse);
        }
    }
}

/// Keys and values of one head over one span.
pub(crate) struct KeyRange<'a> {
    cache: &'a KvCache,
    layer: usize,
    kv_head: usize,
    /// Not empty, within one multiple of [`SPAN`].
    span: Range<usize>,
}

impl KeyRange<'_> {
    fn pages(&self) -> Range<usize> {
        self.span.start / PAGE_TOKENS..self.span.end.div_ceil(PAGE_TOKENS)
    }

    fn keys(&self, page: usize) -> Elements<'_> {
        self.cache.keys(self.layer, page, self.kv_head)
    }

    fn values(&self, page: usize) -> Elements<'_> {
        self.cache.values(self.layer, page, self.kv_head)
    }

    /// Positions of the span in a page, relative to the page.
    fn within(&self, page: usize) -> Range<usize> {
        let first = page * PAGE_TOKENS;
        self.span.start.max(first) - first..self.span.end.min(first + PAGE_TOKENS) - first
    }
}

dispatch! {
    /// Partial result of up to [`HEADS`] heads over one span. `q`: `[heads, key_dim]`;
    /// `partial`: `[heads, STATE + value_dim]`, written whole.
    fn span_partial(
        shape: &AttentionShape,
        keys: &KeyRange<'_>,
        q: &[f32],
        partial: &mut [f32],
    ) = span_partial_kernel
}

#[inline(always)]
unsafe fn span_partial_kernel<L: Lanes>(
    shape: &AttentionShape,
    keys: &KeyRange<'_>,
    q: &[f32],
    partial: &mut [f32],
) {
    // SAFETY: the caller vouches for the instruction set.
    unsafe {
        match q.len() / shape.key_dim {
            1 => heads_partial::<L, 1, 4>(shape, keys, q, partial),
            2 => heads_partial::<L, 2, 4>(shape, keys, q, partial),
            3 => heads_partial::<L, 3, 2>(shape, keys, q, partial),
            _ => heads_partial::<L, HEADS, 2>(shape, keys, q, partial),
        }
    }
}

/// `H` heads, `B` vectors of tokens (or of value elements) at a time.
#[inline(always)]
unsafe fn heads_partial<L: Lanes, const H: usize, const B: usize>(
    shape: &AttentionShape,
    keys: &KeyRange<'_>,
    q: &[f32],
    partial: &mut [f32],
) {
    let base = keys.pages().start;
    let mut scores = [[0.0f32; SPAN]; H];
    for page in keys.pages() {
        let at = (page - base) * PAGE_TOKENS;
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            match keys.keys(page) {
                Elements::Halves(keys) => {
                    page_scores::<L, f16, H, B>(shape, keys, &[], q, &mut scores, at);
                }
                Elements::Scaled(keys, scales) => {
                    page_scores::<L, i8, H, B>(shape, keys, scales, q, &mut scores, at);
                }
            }
        }
    }
    let seen = keys.span.start - base * PAGE_TOKENS..keys.span.end - base * PAGE_TOKENS;
    let head = STATE + shape.value_dim;
    for (h, scores) in scores.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the instruction set.
        let (max, sum) =
            unsafe { soften_and_exponentiate::<L>(shape.softcap, scores, seen.clone()) };
        partial[h * head] = max;
        partial[h * head + 1] = sum;
    }
    for page in keys.pages() {
        let Elements::Scaled(_, scales) = keys.values(page) else { continue };
        let (at, within) = ((page - base) * PAGE_TOKENS, keys.within(page));
        for scores in &mut scores {
            let weights = &mut scores[at..][within.clone()];
            weights.iter_mut().zip(&scales[within.clone()]).for_each(|(w, scale)| *w *= scale);
        }
    }
    let mut d = 0;
    // SAFETY: the caller vouches for the instruction set; `f32` lanes need none.
    unsafe {
        while d + B * L::N <= shape.value_dim {
            weigh_values::<L, H, B>(shape, keys, &scores, d, partial);
            d += B * L::N;
        }
        while d + L::N <= shape.value_dim {
            weigh_values::<L, H, 1>(shape, keys, &scores, d, partial);
            d += L::N;
        }
        while d < shape.value_dim {
            weigh_values::<f32, H, 1>(shape, keys, &scores, d, partial);
            d += 1;
        }
    }
}

/// Scaled query-key products for the tokens of one page: `scores[h][at..at + PAGE_TOKENS]`. `scales`:
/// of the tokens, or none.
#[inline(always)]
unsafe fn page_scores<L: Lanes, E: Element, const H: usize, const B: usize>(
    shape: &AttentionShape,
    keys: &[E],
    scales: &[f32],
    q: &[f32],
    scores: &mut [[f32; SPAN]; H],
    at: usize,
) {
    const { assert!(PAGE_TOKENS.is_multiple_of(B * L::N)) };
    assert!(keys.len() == shape.key_dim * PAGE_TOKENS && q.len() == H * shape.key_dim);
    assert!(at + PAGE_TOKENS <= SPAN && (scales.is_empty() || scales.len() == PAGE_TOKENS));
    for block in (0..PAGE_TOKENS).step_by(B * L::N) {
        // SAFETY: loads stay within `keys`, `scales` and `q`, stores within a page of `scores`, whose lengths
        // are asserted above; the caller vouches for the instruction set.
        unsafe {
            let mut sums = [[L::splat(0.0); B]; H];
            for d in 0..shape.key_dim {
                let row = keys.as_ptr().add(d * PAGE_TOKENS + block);
                let mut k = [L::splat(0.0); B];
                for (b, k) in k.iter_mut().enumerate() {
                    *k = E::load::<L>(row.add(b * L::N));
                }
                for (h, sums) in sums.iter_mut().enumerate() {
                    let q = L::splat(*q.get_unchecked(h * shape.key_dim + d));
                    for (sum, k) in sums.iter_mut().zip(k) {
                        *sum = k.fma(q, *sum);
                    }
                }
            }
            for (scores, sums) in scores.iter_mut().zip(sums) {
                let to = scores.as_mut_ptr().add(at + block);
                for (b, sum) in sums.into_iter().enumerate() {
                    let mut score = sum.mul(L::splat(shape.scale));
                    if !scales.is_empty() {
                        score = score.mul(L::load(scales.as_ptr().add(block + b * L::N)));
                    }
                    score.store(to.add(b * L::N));
                }
            }
        }
    }
}

/// Turns scores into `e^(score - max)`, 0 outside `seen`; returns the maximum and the sum.
#[inline(always)]
unsafe fn soften_and_exponentiate<L: Lanes>(
    softcap: Option<f32>,
    scores: &mut [f32; SPAN],
    seen: Range<usize>,
) -> (f32, f32) {
    // SAFETY: every vector lies within `scores`, whose length is a multiple of N; the caller
    // vouches for the instruction set.
    unsafe {
        let vectors = 0..seen.end.div_ceil(L::N);
        let pointer = scores.as_mut_ptr();
        if let Some(cap) = softcap {
            for i in vectors.clone() {
                soften(L::load(pointer.add(i * L::N)), cap).store(pointer.add(i * L::N));
            }
        }
        scores[..seen.start].fill(f32::NEG_INFINITY);
        scores[seen.end..].fill(f32::NEG_INFINITY);
        let pointer = scores.as_mut_ptr();
        let mut max = L::splat(f32::NEG_INFINITY);
        for i in vectors.clone() {
            max = max.max(L::load(pointer.add(i * L::N)));
        }
        let max = max.maximum();
        for i in vectors.clone() {
            let shifted = L::load(pointer.add(i * L::N)).sub(L::splat(max));
            exp(shifted).store(pointer.add(i * L::N));
        }
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        let pointer = scores.as_ptr();
        let mut sum = L::splat(0.0);
        for i in vectors {
            sum = sum.add(L::load(pointer.add(i * L::N)));
        }
        (max, sum.sum())
    }
}

/// An element as it is stored, and as a vector of floats.
trait Element: Copy {
    /// # Safety
    /// As [`Lanes::load_f16`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's.
        unsafe { L::load_f16(from) }
    }
}

impl Element for i8 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's.
        unsafe { L::load_i8(from) }
    }
}

/// Weighted sum of value elements `d..d + B * N` over the span, into each head's partial result.
#[inline(always)]
unsafe fn weigh_values<L: Lanes, const H: usize, const B: usize>(
    shape: &AttentionShape,
    keys: &KeyRange<'_>,
    weights: &[[f32; SPAN]; H],
    d: usize,
    partial: &mut [f32],
) {
    let dim = shape.value_dim;
    assert!(d + B * L::N <= dim && partial.len() == H * (STATE + dim));
    // SAFETY: stores stay within `partial`, whose length is asserted; the caller vouches for the
    // instruction set.
    unsafe {
        let mut sums = [[L::splat(0.0); B]; H];
        for page in keys.pages() {
            let at = (page - keys.pages().start) * PAGE_TOKENS;
            let tokens = keys.within(page);
            match keys.values(page) {
                Elements::Halves(values) => {
                    page_values::<L, f16, H, B>(values, dim, d, tokens, weights, at, &mut sums);
                }
                Elements::Scaled(values, _) => {
                    page_values::<L, i8, H, B>(values, dim, d, tokens, weights, at, &mut sums);
                }
            }
        }
        for (h, sums) in sums.into_iter().enumerate() {
            let to = partial.as_mut_ptr().add(h * (STATE + dim) + STATE + d);
            for (b, sum) in sums.into_iter().enumerate() {
                sum.store(to.add(b * L::N));
            }
        }
    }
}

/// Weighted sum of value elements `d..d + B * N` over `tokens` of a page, whose weights are from `at`
/// on.
#[inline(always)]
unsafe fn page_values<L: Lanes, E: Element, const H: usize, const B: usize>(
    values: &[E],
    dim: usize,
    d: usize,
    tokens: Range<usize>,
    weights: &[[f32; SPAN]; H],
    at: usize,
    sums: &mut [[L; B]; H],
) {
    assert!(values.len() == PAGE_TOKENS * dim && d + B * L::N <= dim);
    assert!(tokens.end <= PAGE_TOKENS && at + tokens.end <= SPAN);
    for t in tokens {
        // SAFETY: loads stay within a page's values and weights, whose lengths are asserted; the
        // caller vouches for the instruction set.
        unsafe {
            let row = values.as_ptr().add(t * dim + d);
            let mut v = [L::splat(0.0); B];
            for (b, v) in v.iter_mut().enumerate() {
                *v = E::load::<L>(row.add(b * L::N));
            }
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let w = L::splat(*weights.get_unchecked(at + t));
                for (sum, v) in sums.iter_mut().zip(v) {
                    *sum = v.fma(w, *sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use m40_program::{KvLayer, KvType};

    use super::*;
    use crate::ops::oracle;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() * 2.0).collect()
    }

    /// A cache of two layers, the second filled with `tokens` tokens.
    fn cache(shape: &AttentionShape, ty: KvType, tokens: usize) -> KvCache {
        let (kv_heads, key_dim, value_dim) = (shape.kv_heads, shape.key_dim, shape.value_dim);
        let layer = KvLayer { kv_heads, key_dim, value_dim, ty };
        let mut cache = KvCache::new(&[layer, layer], tokens);
        cache.grow(tokens);
        for t in 0..tokens {
            let k = wave(kv_heads * key_dim, 0.01 * (t + 1) as f32);
            let v = wave(kv_heads * value_dim, 0.017 * (t + 3) as f32);
            cache.store(1, t, &k, &v);
        }
        cache
    }

    fn attend(
        threads: usize,
        isa: Isa,
        (shape, sinks): (&AttentionShape, &[f32]),
        cache: &mut KvCache,
        positions: &[usize],
    ) -> Vec<f32> {
        let row =
            |&position: &usize| Row { token: 0, position, cache: 0, segment: 0, logits: false };
        let rows: Vec<Row> = positions.iter().map(row).collect();
        let q: Vec<f32> = positions
            .iter()
            .flat_map(|p| wave(shape.heads * shape.key_dim, 0.1 + *p as f32 * 1e-4))
            .collect();
        let mut out = vec![f32::NAN; positions.len() * shape.heads * shape.value_dim];
        let attention = Attention { isa, shape, sinks, layer: 1, rows: &rows, caches: &[cache] };
        attention.run(&ThreadPool::new(threads), &q, &mut out, &mut vec![]);
        out
    }

    #[test]
    fn every_instruction_set_matches_the_oracle() {
        let shapes =
            [(1, 1, 64, 64), (9, 3, 64, 64), (4, 1, 256, 256), (12, 2, 20, 36), (2, 2, 7, 5)];
        for (heads, kv_heads, key_dim, value_dim) in shapes {
            for (window, softcap) in [(None, None), (Some(100), Some(5.0)), (Some(1), None)] {
                let scale = 1.0 / (key_dim as f32).sqrt();
                let shape = AttentionShape {
                    heads,
                    kv_heads,
                    key_dim,
                    value_dim,
                    scale,
                    window,
                    softcap,
                    causal: true,
                };
                for ty in KvType::ALL {
                    agrees_with_the_oracle(&shape, ty, &[]);
                    agrees_with_the_oracle(&shape, ty, &wave(heads, 1.3));
                }
            }
        }
    }

    fn agrees_with_the_oracle(shape: &AttentionShape, ty: KvType, sinks: &[f32]) {
        let mut cache = cache(shape, ty, 700);
        for position in [0, 1, 63, 64, 255, 256, 699] {
            let mut expected = vec![0.0; shape.heads * shape.value_dim];
            let q = wave(shape.heads * shape.key_dim, 0.1 + position as f32 * 1e-4);
            oracle::attention(shape, sinks, (&cache, 1), position, &q, &mut expected);
            for isa in Isa::available() {
                let found = attend(2, isa, (shape, sinks), &mut cache, &[position]);
                for (f, e) in found.iter().zip(&expected) {
                    let error = (f - e).abs();
                    assert!(error < 2e-5, "{isa} {ty} {shape:?} {sinks:?} at {position}: {f} {e}");
                }
            }
        }
    }

    #[test]
    fn sinks_take_their_share_of_the_weights() {
        let (heads, kv_heads, key_dim, value_dim) = (5, 1, 8, 8);
        let (scale, window, softcap) = (1.0, None, None);
        let shape = AttentionShape {
            heads,
            kv_heads,
            key_dim,
            value_dim,
            scale,
            window,
            softcap,
            causal: true,
        };
        let mut cache = cache(&shape, KvType::F16, 1);
        let mut alone = |sinks: &[f32]| attend(1, Isa::Scalar, (&shape, sinks), &mut cache, &[0]);
        let plain = alone(&[]);
        // One token: its weight is e^s / (e^s + e^sink).
        let q = wave(heads * key_dim, 0.1);
        let k: Vec<f32> = wave(key_dim, 0.01).iter().map(|k| f16::from_f32(*k).to_f32()).collect();
        let sinks = [0.5, -3.0, 200.0, -200.0, 4.0];
        let found = alone(&sinks);
        for (h, sink) in sinks.into_iter().enumerate() {
            let score: f32 = q[h * 8..][..8].iter().zip(&k).map(|(q, k)| q * k).sum();
            let weight = 1.0 / (1.0 + (sink - score).exp());
            for (found, plain) in found[h * 8..][..8].iter().zip(&plain[h * 8..]) {
                assert!((found - weight * plain).abs() < 1e-5, "{sink}: {found}, {plain}");
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_in_a_batch_and_on_any_number_of_threads() {
        let shape = AttentionShape {
            heads: 6,
            kv_heads: 2,
            key_dim: 32,
            value_dim: 32,
            scale: 0.2,
            window: None,
            softcap: None,
            causal: true,
        };
        let mut cache = cache(&shape, KvType::Int8, 600);
        let sinks = wave(shape.heads, 0.7);
        let positions: Vec<usize> = (0..600).step_by(37).collect();
        let width = shape.heads * shape.value_dim;
        for isa in Isa::available() {
            let batch = attend(1, isa, (&shape, &sinks), &mut cache, &positions);
            for (row, position) in batch.chunks_exact(width).zip(&positions) {
                for threads in [1, 2, 3] {
                    let alone = attend(threads, isa, (&shape, &sinks), &mut cache, &[*position]);
                    assert_eq!(row, alone);
                }
            }
        }
    }
}
