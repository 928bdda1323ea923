//! Single ops of a decode pass, at sizes that tiny models do not reach, against f64.

use m40_gguf::{TensorType, dequantize};
use m40_gpu::ops::{
    AWAIT, AttentionOp, CHUNK_TOKENS, MatvecOp, OP_WORDS, Op, PAGE_TOKENS, PASS_ROWS, Place, Row,
    weight_type,
};
use m40_repack::{Layout, Role, repack};
use m40_testkit::gguf::{Noise, quantize};

use crate::card::{Card, Launch};
use crate::half::{from_half, half};
use crate::passes::emulation;

/// Bytes of a case's memory.
const ARENA: usize = 24 << 20;

/// A card with one op on it.
struct Bench {
    card: Card,
    noise: Noise,
    blocks: u32,
}

impl Bench {
    fn new(seed: u64, blocks: u32) -> Option<Self> {
        let card = Card::start(&emulation()?, ARENA);
        Some(Self { card, noise: Noise::new(seed), blocks })
    }

    fn place(&mut self, values: &[f32]) -> Place {
        let words: Vec<_> = values.iter().map(|x| x.to_bits()).collect();
        let place = self.card.allocate(4 * words.len());
        self.card.write_words(place, &words);
        place
    }

    /// `rows` rows of `width` numbers, `stride` apart: the numbers, and where they are.
    fn rows(&mut self, rows: usize, width: usize, stride: usize) -> (Vec<f32>, Place) {
        let values = self.noise.normals(rows * width, 1.0);
        let mut spread = vec![f32::NAN; (rows - 1) * stride + width];
        for (row, values) in values.chunks_exact(width).enumerate() {
            spread[row * stride..row * stride + width].copy_from_slice(values);
        }
        let place = self.place(&spread);
        (values, place)
    }

    /// A vector of the weights, which are padded with zeros to whole lines.
    fn vector(&mut self, len: usize) -> (Vec<f32>, Place) {
        let values = self.noise.normals(len, 1.0);
        let mut padded = values.clone();
        padded.resize(len.next_multiple_of(32), 0.0);
        let place = self.place(&padded);
        (values, place)
    }

    fn run(&mut self, op: &Op, rows: &[Row]) {
        let ops = self.card.allocate(4 * OP_WORDS);
        self.card.write_words(ops, &op.words());
        let pass = self.card.allocate(4 * (4 + 4 * PASS_ROWS));
        let mut words = vec![rows.len() as u32, 0, 0, 0];
        rows.iter().for_each(|row| words.extend(row.words()));
        self.card.write_words(pass, &words);
        let nowhere = Place(0);
        self.card.run(&Launch {
            rows: rows.len().next_power_of_two(),
            blocks: self.blocks,
            ops,
            first: 0,
            last: 1,
            pass,
            passes: 1,
            barrier: nowhere,
            chosen: nowhere,
        });
    }

    /// `rows` rows of `width` numbers, `stride` apart.
    fn read(&mut self, place: Place, rows: usize, width: usize, stride: usize) -> Vec<f32> {
        let all = self.card.read_floats(place, (rows - 1) * stride + width);
        all.chunks(stride).flat_map(|row| row[..width].to_vec()).collect()
    }
}

/// What a matvec does besides multiplying.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Extra {
    Nothing,
    Norm,
    AddNorm,
    Gated,
    GatedBy,
    BiasResidualSoftcap,
}

#[derive(Clone, Copy, Debug)]
struct Product {
    ty: TensorType,
    rows: usize,
    cols: usize,
    batch: usize,
    split: u32,
    start: u32,
    extra: Extra,
}

fn product(
    ty: TensorType,
    [rows, cols, batch]: [usize; 3],
    [split, start]: [u32; 2],
    extra: Extra,
) -> Product {
    Product { ty, rows, cols, batch, split, start, extra }
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `x * gain / rms(x)`, row by row.
fn normed(x: &[f64], gain: &[f32], eps: f64) -> Vec<f64> {
    let rows = x.chunks_exact(gain.len()).flat_map(|row| {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + eps).sqrt();
        row.iter().zip(gain).map(move |(v, g)| v * scale * f64::from(*g)).collect::<Vec<_>>()
    });
    rows.collect()
}

fn check_product(seed: u64, case: Product) {
    const EPS: f32 = 1e-5;
    const CAP: f32 = 3.0;
    const SOFT: f64 = 3.0;
    let Some(mut bench) = Bench::new(seed, 3) else { return };
    let Product { ty, rows, cols, batch, split, start, extra } = case;
    let layout = Layout::of(ty, rows, cols).unwrap();
    let mut matrix = || {
        let deviation = 1.0 / (cols as f32).sqrt();
        let data = quantize(ty, &bench.noise.normals(rows * cols, deviation));
        let mut planes = vec![0; layout.bytes()];
        repack(&layout, &data, &mut planes).unwrap();
        let place = bench.card.allocate(planes.len());
        bench.card.write(place, &planes);
        let mut weights = vec![0.0; rows * cols];
        dequantize(ty, &data, &mut weights).unwrap();
        (weights, place)
    };
    let ((w, weights), (u, up)) = (matrix(), matrix());
    let stride = cols.next_multiple_of(4) + 8;
    let (x, x_place) = bench.rows(batch, cols, stride);
    let (block, block_place) = bench.rows(batch, cols, stride);
    let (gain, gain_place) = bench.vector(cols);
    let (block_gain, block_gain_place) = bench.vector(cols);
    let (gate, gate_place) = bench.rows(batch, rows, rows + 4);
    let (bias, bias_place) = bench.vector(rows);
    let (residual, y) = bench.rows(batch, rows, rows + 1);
    let stream = bench.card.allocate(4 * batch * stride);
    let maxima = bench.card.allocate(8 * PASS_ROWS * bench.blocks as usize);

    let some = |wanted: bool, place: Place| if wanted { place } else { Place::NOWHERE };
    let is = |other: Extra| extra == other;
    let plane = |role| (layout.plane(role).offset / 16) as u32;
    let op = MatvecOp {
        kind: Op::MATVEC,
        flags: AWAIT,
        r#type: weight_type(ty).unwrap(),
        rows: rows as u32,
        cols: cols as u32,
        weights,
        up: some(is(Extra::Gated), up),
        high: plane(Role::High),
        scales: plane(Role::Scales),
        tops: plane(Role::ScaleTops),
        supers: plane(Role::Supers),
        split,
        start,
        prologue: match extra {
            Extra::Norm => 1,
            Extra::AddNorm => 2,
            _ => 0,
        },
        x: x_place,
        x_stride: stride as u32,
        gain: gain_place,
        block: block_place,
        block_gain: block_gain_place,
        stream,
        eps: EPS,
        block_eps: EPS,
        activation: u32::from(is(Extra::Gated) || is(Extra::GatedBy)),
        bias: some(is(Extra::BiasResidualSoftcap), bias_place),
        residual: some(is(Extra::BiasResidualSoftcap), y),
        residual_stride: rows as u32 + 1,
        y,
        y_stride: rows as u32 + 1,
        softcap: if is(Extra::BiasResidualSoftcap) { CAP } else { 0.0 },
        maxima,
        gate: some(is(Extra::GatedBy), gate_place),
        gate_stride: rows as u32 + 4,
    };
    let row = Row { token: 0, position: 0, pages: Place(0), slot: 0 };
    bench.run(&Op::Matvec(op), &vec![row; batch]);

    let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
    let mut input = wide(&x);
    if is(Extra::AddNorm) {
        let added = normed(&wide(&block), &block_gain, EPS.into());
        input.iter_mut().zip(added).for_each(|(x, added)| *x += added);
        let stored = bench.read(stream, batch, cols, stride);
        for (i, (stored, expected)) in stored.iter().zip(&input).enumerate() {
            assert!((f64::from(*stored) - expected).abs() < 1e-5, "{case:?}: stream[{i}]");
        }
    }
    if is(Extra::Norm) || is(Extra::AddNorm) {
        input = normed(&input, &gain, EPS.into());
    }
    let found = bench.read(y, batch, rows, rows + 1);
    for b in 0..batch {
        let mut largest = (f32::NEG_INFINITY, u32::MAX);
        for r in 0..rows {
            let dot = |w: &[f32]| {
                let terms = w[r * cols..].iter().zip(&input[b * cols..][..cols]);
                terms.map(|(w, x)| f64::from(*w) * x).sum::<f64>()
            };
            let mut expected = dot(&w);
            match extra {
                Extra::Gated => expected = silu(expected) * dot(&u),
                Extra::GatedBy => expected *= silu(gate[b * rows + r].into()),
                Extra::BiasResidualSoftcap => {
                    expected += f64::from(bias[r]) + f64::from(residual[b * rows + r]);
                    expected = SOFT * (expected / SOFT).tanh();
                }
                _ => {}
            }
            let got = found[b * rows + r];
            let error = (f64::from(got) - expected).abs();
            assert!(error < 1e-3, "{case:?}: y[{b}][{r}] is {got}, not {expected}");
            if got > largest.0 {
                largest = (got, r as u32);
            }
        }
        let blocks = bench.blocks as usize;
        let at = Place(maxima.0 + (8 * b * blocks / 16) as u32);
        let skipped = 8 * b * blocks % 16 / 4;
        let words = bench.card.read_words(at, skipped + 2 * blocks);
        let parts = words[skipped..].chunks_exact(2);
        let best = parts.map(|part| (f32::from_bits(part[0]), part[1]));
        let best = best.fold((f32::NEG_INFINITY, u32::MAX), |best, part| {
            if part.0 > best.0 || (part.0 == best.0 && part.1 < best.1) { part } else { best }
        });
        assert_eq!(best, largest, "{case:?}: largest of row {b}");
    }
    bench.card.end();
}

/// Every split, rows that fill no quad and no unit, columns that fill no group,
/// no step and more than shared memory, every batch.
#[test]
fn products_of_any_size_agree_with_plain_arithmetic() {
    use Extra::*;
    use TensorType::*;
    let cases = [
        product(Q4_0, [1, 32, 1], [1, 0], Nothing),
        product(Q4K, [37, 2048, 1], [8, 1], Norm),
        product(Q6K, [21, 2304, 8], [4, 2], AddNorm),
        product(Q8_0, [130, 1120, 3], [2, 0], Gated),
        product(Q5_1, [50, 9728, 1], [8, 2], BiasResidualSoftcap),
        product(Q3K, [66, 768, 2], [2, 1], GatedBy),
        product(F32, [9, 1000, 2], [4, 0], Norm),
        product(F16, [12, 296, 5], [1, 2], AddNorm),
        product(BF16, [70, 520, 4], [2, 1], BiasResidualSoftcap),
        product(Q2K, [290, 512, 1], [2, 0], Gated),
        product(IQ4XS, [5, 10240, 2], [8, 1], AddNorm),
        product(MXFP4, [33, 1056, 7], [4, 0], GatedBy),
        product(Q5K, [19, 4096, 8], [8, 1], Norm),
        product(IQ4NL, [200, 96, 2], [1, 2], Nothing),
        product(Q4_1, [40, 2080, 6], [2, 0], Gated),
        product(Q5_0, [48, 64, 8], [1, 1], AddNorm),
    ];
    for (seed, case) in (100..).zip(cases) {
        check_product(seed, case);
    }
}

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
