//! Attention over the pages of several sequences.

use m40_program::KvType;
use m40_testkit::gguf::Noise;

use crate::cache::Cache;
use crate::emulator::{Launch, floats, run};
use crate::{close, gathered, row_words, spread};

/// Kernels, smallest first: name, the largest value_dim, queries of a warp, the most threads.
const KERNELS: [(&str, usize, usize, usize); 5] = [
    ("d64", 64, 8, 256),
    ("d128", 128, 8, 256),
    ("d256", 256, 8, 128),
    ("d512", 512, 4, 128),
    ("d1024", 1024, 2, 128),
];
/// Those for single rows: name, the largest value_dim.
const SINGLE: [(&str, usize); 2] = [("single_d64", 64), ("single_d128", 128)];
const SINGLE_QUERIES: usize = 4;
const SHARED_BYTES: usize = 48 << 10;

#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    scale: f32,
    softcap: f32,
    window: usize,
    kv: KvType,
    sinks: bool,
}

impl Shape {
    fn new(heads: usize, kv_heads: usize, key_dim: usize, value_dim: usize) -> Self {
        let scale = 1.0 / (key_dim as f32).sqrt();
        let (softcap, window, kv, sinks) = (0.0, 0, KvType::F16, false);
        Self { heads, kv_heads, key_dim, value_dim, scale, softcap, window, kv, sinks }
    }

    fn first_seen(&self, position: usize) -> usize {
        if self.window == 0 { 0 } else { (position + 1).saturating_sub(self.window) }
    }
}

/// Rows of one sequence: the sequence, the first position, how many.
type Tile = (usize, usize, usize);

struct Case {
    shape: Shape,
    tiles: Vec<Tile>,
    cache: Cache,
    q: Vec<f32>,
    sinks: Vec<f32>,
    /// At most so many warps a block.
    warps: usize,
}

impl Case {
    fn new(seed: u64, shape: Shape, tiles: &[Tile], warps: usize) -> Self {
        let mut noise = Noise::new(seed);
        let mut sequences = vec![];
        for &(sequence, first, count) in tiles {
            if sequences.len() <= sequence {
                sequences.resize(sequence + 1, (usize::MAX, 1));
            }
            let (given_up, tokens): &mut (usize, usize) = &mut sequences[sequence];
            *given_up = (*given_up).min(shape.first_seen(first));
            *tokens = (*tokens).max(first + count);
        }
        sequences.iter_mut().for_each(|(given_up, tokens)| *given_up = (*given_up).min(*tokens));
        let dims = (shape.kv_heads, shape.key_dim, shape.value_dim);
        let mut cache = Cache::new(&mut noise, shape.kv, dims, &sequences);
        for (sequence, &(given_up, tokens)) in sequences.iter().enumerate() {
            // Tokens of a page that is still there were stored, seen or not.
            for position in given_up / 32 * 32..tokens {
                for head in 0..shape.kv_heads {
                    let at = (sequence, position);
                    cache.put(false, at, head, &noise.normals(shape.key_dim, 1.0));
                    cache.put(true, at, head, &noise.normals(shape.value_dim, 1.0));
                }
            }
        }
        let rows: usize = tiles.iter().map(|tile| tile.2).sum();
        let q = noise.normals(rows * shape.heads * shape.key_dim, 1.0);
        let sinks = noise.normals(shape.heads, 2.0);
        Self { shape, tiles: tiles.to_vec(), cache, q, sinks, warps }
    }

    fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        self.tiles.iter().flat_map(|&(sequence, first, count)| {
            (first..first + count).map(move |p| (sequence, p))
        })
    }

    fn launch(&self) -> Launch {
        let kernel = KERNELS.iter().find(|kernel| self.shape.value_dim <= kernel.1);
        let (name, _, queries, _) = *kernel.expect("no value is longer");
        self.launch_of(name, queries)
    }

    /// By a kernel for single rows.
    fn launch_single(&self) -> Launch {
        let kernel = SINGLE.iter().find(|kernel| self.shape.value_dim <= kernel.1);
        self.launch_of(kernel.expect("no value is longer").0, SINGLE_QUERIES)
    }

    fn launch_of(&self, name: &str, queries: usize) -> Launch {
        let Shape { heads, kv_heads, key_dim, value_dim, scale, softcap, window, kv, sinks } =
            self.shape;
        let kernel = KERNELS.iter().find(|kernel| value_dim <= kernel.1);
        let (_, _, most, threads) = *kernel.expect("no value is longer");
        let query_bytes = 4 * (key_dim + 64).max(value_dim + 2);
        // As many as the kernel for any rows has: they decide in which order sums are made.
        let warps = self.warps.min(threads / 32).min(SHARED_BYTES / (most * query_bytes));
        let warp_bytes = queries * query_bytes;
        let tallest = self.tiles.iter().map(|tile| tile.2).max().expect("there is a tile");
        let blocks = (tallest * (heads / kv_heads)).div_ceil(queries).div_ceil(warps);
        let mut first_row = 0;
        let mut tiles = vec![];
        for &(_, _, count) in &self.tiles {
            tiles.extend([first_row as u32, count as u32]);
            first_row += count;
        }
        let rows: Vec<_> = self.rows().map(|(s, p)| self.cache.row(s, p)).collect();
        let (q_width, out_width) = (heads * key_dim, heads * value_dim);
        let grid = self.tiles.len() * kv_heads * blocks;
        let suffix = if kv == KvType::Int8 { "_int8" } else { "" };
        let name = format!("rows_attention_{name}{suffix}");
        Launch::new(name, grid, 32 * warps as u32, warps * warp_bytes)
            .read_words(&self.cache.arena)
            .read_words(&row_words(&rows))
            .read_words(&tiles)
            .number(self.tiles.len())
            .read_floats(&spread(&self.q, q_width, q_width + 1))
            .number(q_width + 1)
            .read(&self.cache.bytes)
            .number(self.cache.page_places)
            .number(heads)
            .number(kv_heads)
            .number(key_dim)
            .number(value_dim)
            .float(scale)
            .float(softcap)
            .number(window)
            .read_floats(if sinks { &self.sinks } else { &[f32::NAN] })
            .number(usize::from(sinks))
            .write_floats(&vec![f32::NAN; rows.len() * (out_width + 3)])
            .number(out_width + 3)
    }

    fn expected(&self) -> Vec<f64> {
        let Shape { heads, kv_heads, key_dim, value_dim, scale, softcap, .. } = self.shape;
        let mut out = vec![];
        for ((sequence, position), q) in self.rows().zip(self.q.chunks(heads * key_dim)) {
            let seen = self.shape.first_seen(position)..position + 1;
            for (head, q) in q.chunks(key_dim).enumerate() {
                let kv_head = head / (heads / kv_heads);
                let score = |token: usize| {
                    let key = self.cache.get(false, (sequence, token), kv_head);
                    let products = q.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(k));
                    let score = products.sum::<f64>() * f64::from(scale);
                    let cap = f64::from(softcap);
                    if softcap == 0.0 { score } else { cap * (score / cap).tanh() }
                };
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let sink =
                    if self.shape.sinks { self.sinks[head].into() } else { f64::NEG_INFINITY };
                let max = scores.iter().copied().fold(sink, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total = weights.iter().sum::<f64>() + (sink - max).exp();
                let mut sums = vec![0.0; value_dim];
                for (token, weight) in seen.clone().zip(&weights) {
                    let values = self.cache.get(true, (sequence, token), kv_head);
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum += weight / total * f64::from(value);
                    }
                }
                out.extend(sums);
            }
        }
        out
    }
}

#[track_caller]
fn check(test: &str, cases: &[Case]) {
    let launches: Vec<Launch> = cases.iter().map(Case::launch).collect();
    let Some(outputs) = run(test, &launches) else { return };
    for (case, output) in cases.iter().zip(&outputs) {
        let width = case.shape.heads * case.shape.value_dim;
        let found = gathered(&floats(&output[0]), width, width + 3);
        let what = format!("{:?}, {:?}, {} warps", case.shape, case.tiles, case.warps);
        close(&what, &found, &case.expected(), 3e-6);
    }
}

#[test]
fn attention_agrees_with_f64_for_heads_of_every_shape() {
    let shapes = [
        (1, 1, 8, 8),
        (4, 1, 64, 64),
        (9, 3, 64, 40),
        (7, 1, 128, 128),
        (8, 2, 80, 96),
        (3, 3, 192, 128),
        (2, 1, 256, 256),
        (3, 1, 96, 136),
        (5, 1, 512, 512),
        (3, 1, 576, 264),
        (3, 1, 1024, 1024),
    ];
    let mut cases = vec![];
    for (i, (heads, kv_heads, key_dim, value_dim)) in shapes.into_iter().enumerate() {
        for (softcap, window) in [(0.0, 0), (2.0, 33)] {
            let shape = Shape::new(heads, kv_heads, key_dim, value_dim);
            let shape = Shape { softcap, window, ..shape };
            let tiles = [vec![(0, 70, 3)], vec![(0, 0, 2), (1, 63, 1)]][(i + window) % 2].clone();
            cases.push(Case::new(i as u64, shape, &tiles, 2 + i % 3));
            let sinks = i % 2 == 0;
            let int8 = Shape { kv: KvType::Int8, sinks, ..shape };
            cases.push(Case::new(i as u64, int8, &tiles, 2 + i % 3));
        }
    }
    check("attention-shapes", &cases);
}

#[test]
fn tiles_of_any_rows_at_any_positions_see_their_own_sequence_up_to_themselves() {
    let mut cases = vec![];
    let passes: [&[Tile]; 7] = [
        &[(0, 0, 1)],
        &[(0, 31, 1), (1, 32, 1), (2, 33, 1), (3, 95, 1), (4, 96, 1), (5, 200, 1)],
        &[(0, 0, 8), (0, 8, 8), (0, 16, 5), (0, 90, 8)],
        &[(0, 50, 20)],
        &[(0, 30, 3), (1, 0, 7), (2, 127, 2)],
        &[(1, 300, 1), (0, 5, 9)],
        &[(0, 61, 6)],
    ];
    for (i, tiles) in passes.into_iter().enumerate() {
        for (k, (window, warps)) in [(0, 4), (1, 3), (64, 2), (31, 5)].into_iter().enumerate() {
            let (heads, kv_heads) = [(4, 1), (3, 3), (6, 2), (17, 1)][(i + k) % 4];
            let kv = KvType::ALL[(i + k) % 2];
            let shape = Shape { window, kv, sinks: k < 2, ..Shape::new(heads, kv_heads, 8, 24) };
            cases.push(Case::new(100 + i as u64, shape, tiles, warps));
        }
    }
    check("attention-tiles", &cases);
}

#[test]
fn scores_that_rise_and_that_are_huge_stay_exact() {
    let mut cases = vec![];
    for (scale, softcap) in [(3.0, 0.0), (40.0, 0.0), (1e-6, 0.0), (40.0, 30.0), (-5.0, 0.0)] {
        for warps in [1, 4] {
            let shape = Shape { scale, softcap, ..Shape::new(2, 1, 32, 32) };
            let mut case = Case::new(7, shape, &[(0, 250, 4)], warps);
            // Later keys weigh more and more: the maximum rises from page to page.
            for position in 0..254 {
                let mut key = case.cache.get(false, (0, position), 0);
                key.iter_mut().for_each(|x| *x *= position as f32 / 60.0 / 4.0);
                case.cache.put(false, (0, position), 0, &key);
            }
            cases.push(case);
        }
    }
    // Scores of hundreds amplify the rounding of their products.
    let launches: Vec<Launch> = cases.iter().map(Case::launch).collect();
    let Some(outputs) = run("attention-scores", &launches) else { return };
    for (case, output) in cases.iter().zip(&outputs) {
        let width = case.shape.heads * case.shape.value_dim;
        let found = gathered(&floats(&output[0]), width, width + 3);
        let tolerance = 3e-6 * f64::from(case.shape.scale.abs()).max(1.0) * 4.0;
        close(&format!("{:?}", case.shape), &found, &case.expected(), tolerance);
    }
}

#[test]
fn kernels_for_single_rows_agree_with_those_for_any_to_the_bit() {
    let mut cases = vec![];
    let shapes = [(4, 1, 64, 64), (9, 3, 64, 40), (3, 3, 96, 128), (8, 2, 128, 128), (2, 1, 32, 8)];
    for (i, (heads, kv_heads, key_dim, value_dim)) in shapes.into_iter().enumerate() {
        for (k, (softcap, window)) in [(0.0, 0), (2.0, 33), (0.0, 70)].into_iter().enumerate() {
            let kv = KvType::ALL[(i + k) % 2];
            let shape = Shape::new(heads, kv_heads, key_dim, value_dim);
            let shape = Shape { softcap, window, kv, sinks: k > 0, ..shape };
            let positions = [0, 31, 32, 47, 48, 63, 64, 131, 600];
            let tiles: Vec<_> = positions.into_iter().enumerate().map(|(s, p)| (s, p, 1)).collect();
            cases.push(Case::new(200 + i as u64, shape, &tiles, 8 - 3 * k));
        }
    }
    let launches = cases.iter().flat_map(|case| [case.launch(), case.launch_single()]);
    let launches: Vec<_> = launches.collect();
    let Some(outputs) = run("attention-single", &launches) else { return };
    for (case, outputs) in cases.iter().zip(outputs.chunks_exact(2)) {
        assert_eq!(outputs[0], outputs[1], "{:?}, {} warps", case.shape, case.warps);
    }
    check("attention-of-single-rows", &cases);
}
