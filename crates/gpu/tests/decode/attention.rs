//! Attention of a decode pass, at sizes that tiny models do not reach, against f64.

use m40_gpu::ops::{
    AWAIT, AttentionOp, CHUNK_TOKENS, Op, PAGE_TOKENS, PASS_ROWS, Place, Row, kv_type,
};

use m40_program::KvType;

use crate::bench::{Bench, normed};
use crate::half::{from_half, half};

#[derive(Clone, Copy, Debug)]
struct Heads {
    heads: usize,
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    window: usize,
    softcap: f32,
    kv: KvType,
    sinks: bool,
    norms: bool,
    /// Rotated pairs; 0: none.
    pairs: usize,
    interleaved: bool,
}

/// Pages of the cache, full of NaNs where no token was stored.
struct Pages {
    case: Heads,
    page_bytes: usize,
    bytes: Vec<u8>,
}

impl Pages {
    fn new(case: Heads, pages: usize) -> Self {
        let of_heads = [case.key_dim, case.value_dim].map(|dim| case.kv.head_bytes(dim));
        let page_bytes = PAGE_TOKENS * case.kv_heads * of_heads.iter().sum::<usize>();
        Self { case, page_bytes, bytes: vec![0xff; pages * page_bytes] }
    }

    /// Element `d` of a token's key, or value, of a head: its number among those of a page.
    fn element(&self, value: bool, head: usize, token: usize, d: usize) -> usize {
        let Heads { kv_heads, key_dim, value_dim, .. } = self.case;
        if value {
            PAGE_TOKENS * kv_heads * key_dim + (head * PAGE_TOKENS + token) * value_dim + d
        } else {
            ((head * key_dim / 8 + d / 8) * PAGE_TOKENS + token) * 8 + d % 8
        }
    }

    /// The byte of a page where the scale of a token's key, or value, of a head is.
    fn scale(&self, value: bool, head: usize, token: usize) -> usize {
        let Heads { kv_heads, key_dim, value_dim, .. } = self.case;
        let elements = PAGE_TOKENS * kv_heads * (key_dim + value_dim);
        let head = if value { kv_heads + head } else { head };
        elements + (head * PAGE_TOKENS + token) * 4
    }

    /// What a token's key, or value, of a head becomes.
    fn put(&mut self, value: bool, [page, head, token]: [usize; 3], numbers: &[f32]) {
        let largest = numbers.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
        for (d, x) in numbers.iter().enumerate() {
            let element = self.element(value, head, token, d);
            match self.case.kv {
                KvType::F16 => {
                    let at = page * self.page_bytes + 2 * element;
                    self.bytes[at..at + 2].copy_from_slice(&half(*x).to_le_bytes());
                }
                KvType::Int8 => {
                    let number = (x * (127.0 / largest)).round_ties_even() as i32 + 128;
                    self.bytes[page * self.page_bytes + element] = number as u8;
                }
            }
        }
        if self.case.kv == KvType::Int8 {
            let at = page * self.page_bytes + self.scale(value, head, token);
            self.bytes[at..at + 4].copy_from_slice(&(largest * (1.0 / 127.0)).to_le_bytes());
        }
    }

    /// A token's key, or value, of a head, and how far apart neighbouring numbers are at most.
    fn get(&self, value: bool, [page, head, token]: [usize; 3]) -> (Vec<f64>, f64) {
        let dim = if value { self.case.value_dim } else { self.case.key_dim };
        let page = &self.bytes[page * self.page_bytes..][..self.page_bytes];
        let elements = (0..dim).map(|d| self.element(value, head, token, d));
        match self.case.kv {
            KvType::F16 => {
                let number =
                    |at: usize| from_half(u16::from_le_bytes([page[2 * at], page[2 * at + 1]]));
                (elements.map(|at| f64::from(number(at))).collect(), 0.0)
            }
            KvType::Int8 => {
                let at = self.scale(value, head, token);
                let scale = f32::from_le_bytes(page[at..at + 4].try_into().unwrap());
                let scale = f64::from(scale);
                (elements.map(|at| (f64::from(page[at]) - 128.0) * scale).collect(), scale)
            }
        }
    }
}

/// Per-head norm and rotation of a row's heads.
fn treated(row: &[f32], case: &Heads, gain: &[f32], angles: &[f32], eps: f64) -> Vec<f64> {
    let heads = row.chunks_exact(case.key_dim).flat_map(|head| {
        let mut head: Vec<_> = head.iter().map(|x| f64::from(*x)).collect();
        if case.norms {
            head = normed(&head, gain, eps);
        }
        for i in 0..case.pairs {
            let (a, b) = if case.interleaved { (2 * i, 2 * i + 1) } else { (i, i + case.pairs) };
            let (c, s) = (f64::from(angles[2 * i]), f64::from(angles[2 * i + 1]));
            (head[a], head[b]) = (head[a] * c - head[b] * s, head[a] * s + head[b] * c);
        }
        head
    });
    heads.collect()
}

fn check_attention(seed: u64, case: Heads, positions: &[usize]) {
    const EPS: f32 = 1e-6;
    let Some(mut bench) = Bench::new(seed, 3) else { return };
    let Heads { heads, kv_heads, key_dim, value_dim, window, softcap, norms, pairs, .. } = case;
    let batch = positions.len();
    let (q_width, k_width, v_width) = (heads * key_dim, kv_heads * key_dim, kv_heads * value_dim);
    let (q, q_place) = bench.rows(batch, q_width, q_width + 4);
    let (k, k_place) = bench.rows(batch, k_width, k_width + 8);
    let (v, v_place) = bench.rows(batch, v_width, v_width + 12);
    let (q_gain, q_gain_place) = bench.vector(key_dim);
    let (k_gain, k_gain_place) = bench.vector(key_dim);
    let (sinks, sinks_place) = bench.vector(heads);
    let angles: Vec<f32> = (0..batch * pairs)
        .flat_map(|i| {
            let (sin, cos) = (i as f32).sin_cos();
            [cos, sin]
        })
        .collect();
    let angles_place = bench.place(&angles);

    // Pages of all sequences, in no order.
    let page_counts: Vec<_> = positions.iter().map(|p| p / PAGE_TOKENS + 1).collect();
    let total: usize = page_counts.iter().sum();
    let mut cache = Pages::new(case, total);
    let step = [7, 11, 13].into_iter().find(|step| !total.is_multiple_of(*step)).unwrap();
    let number = |page: usize| (page * step + 3) % total;
    let mut first_page = 0;
    let mut rows = vec![];
    let mut starts = vec![];
    for (&position, &pages) in positions.iter().zip(&page_counts) {
        for token in 0..position {
            let page = number(first_page + token / PAGE_TOKENS);
            for head in 0..kv_heads {
                let at = [page, head, token % PAGE_TOKENS];
                cache.put(false, at, &bench.noise.normals(key_dim, 1.0));
                cache.put(true, at, &bench.noise.normals(value_dim, 1.0));
            }
        }
        let table: Vec<_> = (first_page..first_page + pages).map(|p| number(p) as u32).collect();
        let pages_place = bench.card.allocate(4 * pages);
        bench.card.write_words(pages_place, &table);
        rows.push(Row { token: 0, position: position as u32, pages: pages_place, slot: 0 });
        starts.push(first_page);
        first_page += pages;
    }
    let cache_place = bench.card.allocate(cache.bytes.len());
    bench.card.write(cache_place, &cache.bytes);
    let chunks = positions.iter().max().unwrap() / CHUNK_TOKENS + 1;
    let partials = bench.card.allocate(4 * PASS_ROWS * heads * chunks * (value_dim + 4));
    let arrivals = bench.card.allocate(4 * PASS_ROWS * kv_heads);
    bench.card.write_words(arrivals, &vec![0; PASS_ROWS * kv_heads]);
    let out_stride = heads * value_dim + 4;
    let out = bench.card.allocate(4 * batch * out_stride);
    let some = |wanted: bool, place: Place| if wanted { place } else { Place::NOWHERE };
    let scale = 1.0 / (key_dim as f32).sqrt();
    let op = AttentionOp {
        kind: Op::ATTENTION,
        flags: AWAIT,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        key_dim: key_dim as u32,
        value_dim: value_dim as u32,
        q: q_place,
        k: k_place,
        v: v_place,
        q_stride: q_width as u32 + 4,
        k_stride: k_width as u32 + 8,
        v_stride: v_width as u32 + 12,
        q_gain: some(norms, q_gain_place),
        k_gain: some(norms, k_gain_place),
        norm_eps: EPS,
        angles: some(pairs > 0, angles_place),
        pairs: pairs as u32,
        interleaved: case.interleaved.into(),
        cache: cache_place,
        page_places: (cache.page_bytes / 16) as u32,
        kv_type: kv_type(case.kv),
        scale,
        softcap,
        sinks: some(case.sinks, sinks_place),
        window: window as u32,
        partials,
        chunks: chunks as u32,
        arrivals,
        out,
        out_stride: out_stride as u32,
    };
    bench.run(&Op::Attention(op), &rows);
    let found = bench.read(out, batch, heads * value_dim, out_stride);
    let counts = bench.card.read_words(arrivals, PASS_ROWS * kv_heads);
    assert!(counts.iter().all(|count| *count == 0), "{case:?}: arrivals {counts:?}");
    let words = bench.card.read_words(cache_place, cache.bytes.len() / 4);
    cache.bytes = words.into_iter().flat_map(u32::to_le_bytes).collect();

    for (b, (&position, start)) in positions.iter().zip(starts).enumerate() {
        let angles = &angles[2 * b * pairs..][..2 * pairs];
        let queries = treated(&q[b * q_width..][..q_width], &case, &q_gain, angles, EPS.into());
        let keys = treated(&k[b * k_width..][..k_width], &case, &k_gain, angles, EPS.into());
        // The row's own key and value, as the cache has them now.
        let of = |head: usize, token: usize| {
            [number(start + token / PAGE_TOKENS), head, token % PAGE_TOKENS]
        };
        let values = &v[b * v_width..][..v_width];
        for head in 0..kv_heads {
            let (stored, step) = cache.get(false, of(head, position));
            for (stored, key) in stored.iter().zip(&keys[head * key_dim..]) {
                let bound = 2e-3 * key.abs().max(0.1) + 0.501 * step;
                assert!((stored - key).abs() < bound, "{case:?}: key of {head}");
            }
            let mut expected = Pages::new(case, 1);
            let own = [0, head, position % PAGE_TOKENS];
            expected.put(true, own, &values[head * value_dim..][..value_dim]);
            let stored = cache.get(true, of(head, position));
            assert_eq!(stored, expected.get(true, own), "{case:?}: value of {head}");
        }
        let first = if window == 0 { 0 } else { (position + 1).saturating_sub(window) };
        for head in 0..heads {
            let kv_head = head * kv_heads / heads;
            let scores: Vec<f64> = (first..=position)
                .map(|token| {
                    let (key, _) = cache.get(false, of(kv_head, token));
                    let query = &queries[head * key_dim..][..key_dim];
                    let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                    let score = dot * f64::from(scale);
                    let cap = f64::from(softcap);
                    if cap > 0.0 { cap * (score / cap).tanh() } else { score }
                })
                .collect();
            let sink = if case.sinks { f64::from(sinks[head]) } else { f64::NEG_INFINITY };
            let largest = scores.iter().copied().fold(sink, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum = weights.iter().sum::<f64>() + (sink - largest).exp();
            let values = (first..=position).map(|token| cache.get(true, of(kv_head, token)).0);
            let values: Vec<_> = values.collect();
            for d in 0..value_dim {
                let terms = values.iter().zip(&weights).map(|(value, w)| w * value[d]);
                let expected = terms.sum::<f64>() / sum;
                let got = found[(b * heads + head) * value_dim + d];
                let error = (f64::from(got) - expected).abs();
                assert!(
                    error < 1e-3,
                    "{case:?}, {position}: out {head}, {d} is {got}, not {expected}"
                );
            }
        }
    }
    bench.card.end();
}

/// Contexts of none, one and several chunks, with and without windows; more queries of a KV head
/// than a block takes at once; long, short and uneven heads.
#[test]
fn attention_over_long_contexts_agrees_with_plain_arithmetic() {
    let plain = Heads {
        heads: 4,
        kv_heads: 2,
        key_dim: 64,
        value_dim: 64,
        window: 0,
        softcap: 0.0,
        kv: KvType::F16,
        sinks: false,
        norms: false,
        pairs: 32,
        interleaved: true,
    };
    let cases: [(Heads, &[usize]); 6] = [
        (plain, &[0, 255, 256, 700]),
        (Heads { heads: 12, kv_heads: 1, norms: true, interleaved: false, ..plain }, &[300, 31]),
        (Heads { key_dim: 256, value_dim: 256, window: 40, pairs: 128, ..plain }, &[530, 20]),
        (
            Heads { heads: 2, kv_heads: 2, key_dim: 128, value_dim: 128, softcap: 5.0, ..plain },
            &[290],
        ),
        (Heads { key_dim: 80, value_dim: 80, pairs: 16, window: 257, ..plain }, &[256, 600, 32]),
        (
            Heads { heads: 9, kv_heads: 3, key_dim: 24, value_dim: 40, pairs: 0, ..plain },
            &[64, 1, 513],
        ),
    ];
    for (seed, (case, positions)) in (200..).zip(cases) {
        let sinks = seed % 2 == 1;
        check_attention(seed, case, positions);
        check_attention(seed, Heads { kv: KvType::Int8, sinks, ..case }, positions);
    }
    // Keys much longer than values; and sinks over f16.
    let long = Heads { key_dim: 320, value_dim: 8, pairs: 0, kv: KvType::Int8, ..plain };
    check_attention(210, long, &[40, 33]);
    check_attention(211, Heads { sinks: true, ..plain }, &[0, 300, 20]);
}
