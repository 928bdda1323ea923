//! Attention of a decode pass, at sizes that tiny models do not reach, against f64.

use m40_gpu::ops::{AWAIT, AttentionOp, CHUNK_TOKENS, Op, PAGE_TOKENS, PASS_ROWS, Place, Row};

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
    norms: bool,
    /// Rotated pairs; 0: none.
    pairs: usize,
    interleaved: bool,
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
    let angles: Vec<f32> = (0..batch * pairs)
        .flat_map(|i| {
            let (sin, cos) = (i as f32).sin_cos();
            [cos, sin]
        })
        .collect();
    let angles_place = bench.place(&angles);

    // Pages of all sequences, in no order, full of NaNs where no token was stored.
    let page_halves = PAGE_TOKENS * kv_heads * (key_dim + value_dim);
    let page_counts: Vec<_> = positions.iter().map(|p| p / PAGE_TOKENS + 1).collect();
    let total: usize = page_counts.iter().sum();
    let mut cache = vec![0xffff_u16; total * page_halves];
    let step = [7, 11, 13].into_iter().find(|step| !total.is_multiple_of(*step)).unwrap();
    let number = |page: usize| (page * step + 3) % total;
    let key_at = |page: usize, head: usize, token: usize, d: usize| {
        number(page) * page_halves
            + ((head * key_dim / 8 + d / 8) * PAGE_TOKENS + token) * 8
            + d % 8
    };
    let value_at = |page: usize, head: usize, token: usize, d: usize| {
        let values = number(page) * page_halves + PAGE_TOKENS * k_width;
        values + (head * PAGE_TOKENS + token) * value_dim + d
    };
    let mut first_page = 0;
    let mut rows = vec![];
    let mut starts = vec![];
    for (&position, &pages) in positions.iter().zip(&page_counts) {
        for token in 0..position {
            let page = first_page + token / PAGE_TOKENS;
            for head in 0..kv_heads {
                for d in 0..key_dim {
                    cache[key_at(page, head, token % PAGE_TOKENS, d)] = half(bench.noise.normal());
                }
                for d in 0..value_dim {
                    cache[value_at(page, head, token % PAGE_TOKENS, d)] =
                        half(bench.noise.normal());
                }
            }
        }
        let table: Vec<_> = (first_page..first_page + pages).map(|p| number(p) as u32).collect();
        let pages_place = bench.card.allocate(4 * pages);
        bench.card.write_words(pages_place, &table);
        rows.push(Row { token: 0, position: position as u32, pages: pages_place, slot: 0 });
        starts.push(first_page);
        first_page += pages;
    }
    let cache_place = bench.card.allocate(2 * cache.len());
    let bytes: Vec<u8> = cache.iter().flat_map(|bits| bits.to_le_bytes()).collect();
    bench.card.write(cache_place, &bytes);
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
        page_places: (2 * page_halves / 16) as u32,
        scale,
        softcap,
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
    let halves: Vec<u16> = bench
        .card
        .read_words(cache_place, cache.len() / 2)
        .into_iter()
        .flat_map(|word| [word as u16, (word >> 16) as u16])
        .collect();

    for (b, (&position, start)) in positions.iter().zip(starts).enumerate() {
        let angles = &angles[2 * b * pairs..][..2 * pairs];
        let queries = treated(&q[b * q_width..][..q_width], &case, &q_gain, angles, EPS.into());
        let keys = treated(&k[b * k_width..][..k_width], &case, &k_gain, angles, EPS.into());
        // The row's own key and value, as the cache has them now.
        let (page, token) = (start + position / PAGE_TOKENS, position % PAGE_TOKENS);
        for (i, key) in keys.iter().enumerate() {
            let stored = from_half(halves[key_at(page, i / key_dim, token, i % key_dim)]);
            assert!(
                (f64::from(stored) - key).abs() < 2e-3 * key.abs().max(0.1),
                "{case:?}: key {i}"
            );
        }
        for (i, value) in v[b * v_width..][..v_width].iter().enumerate() {
            let stored = halves[value_at(page, i / value_dim, token, i % value_dim)];
            assert_eq!(stored, half(*value), "{case:?}: value {i}");
        }
        let first = if window == 0 { 0 } else { (position + 1).saturating_sub(window) };
        for head in 0..heads {
            let kv_head = head * kv_heads / heads;
            let at = |token: usize| (start + token / PAGE_TOKENS, token % PAGE_TOKENS);
            let scores: Vec<f64> = (first..=position)
                .map(|token| {
                    let (page, token) = at(token);
                    let key = |d| from_half(halves[key_at(page, kv_head, token, d)]);
                    let dot: f64 =
                        (0..key_dim).map(|d| queries[head * key_dim + d] * f64::from(key(d))).sum();
                    let score = dot * f64::from(scale);
                    let cap = f64::from(softcap);
                    if cap > 0.0 { cap * (score / cap).tanh() } else { score }
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..value_dim {
                let value = |token: usize| {
                    let (page, token) = at(token);
                    f64::from(from_half(halves[value_at(page, kv_head, token, d)]))
                };
                let terms = (first..=position).zip(&weights).map(|(token, w)| w * value(token));
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
        check_attention(seed, case, positions);
    }
}
