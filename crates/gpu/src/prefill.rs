//! Passes of many rows: prompts, and *wide passes*, of one row of each of more sequences than a decode
//! pass has rows. The ops of decode passes, each as some launches of kernels that read weights once for
//! all rows.
//!
//! [`Prefill::calls`] and [`Prefill::wide_calls`] are pure functions of a pass's shape. The executor
//! turns its buffers and calls into memory and launches.

mod pass;

use std::collections::HashMap;
use std::ops::Range;

use m40_program::{AttentionShape, Program};
use m40_repack::Layout;

use self::pass::Pass;
use crate::call::{ATTENTION, AttentionKernel, BufferId, Call, SINGLE_ATTENTION, TILES};
use crate::lower::{Gating, Input, LowerError, Lowered, RegionId, Step};
use crate::ops::{Next, PASSES_AT_ONCE, Place};

/// Rows whose logits come out of one pass, at most; and rows of a wide pass.
pub const LOGIT_ROWS: usize = 64;

/// Bytes of shared memory that a block may have.
const SHARED_BYTES: usize = 48 << 10;

/// Lanes of a warp.
const LANES: usize = 32;

/// Rows of a matrix in a GEMM's tile.
const TILE_COLUMNS: usize = 128;

/// Blocks of each of [`TILES`] that an SM runs at once.
const TILE_BLOCKS: [usize; 4] = [2, 4, 6, 12];

/// Groups of columns that a block of each takes at a time.
const TILE_GROUPS: [usize; 4] = [2, 1, 2, 1];

/// Parts that the columns of a product of more than [`LOGIT_ROWS`] rows are cut into, at most.
const MAX_SPLITS: usize = 8;

/// Groups of columns of such a part, at least: fewer are not worth adding up.
const MIN_SPLIT_GROUPS: usize = 16;

/// Warp schedulers of an SM.
const SCHEDULERS: usize = 4;

/// What products of fewer rows are cut by, in cycles: those in which a warp issues for a group of columns
/// in each tile, and those in which it waits; those of a launch that adds up parts; and bytes of parts that
/// an SM writes or reads in one. With these 14336x4096 is cut as was measured to be best.
const GROUP_SLOTS: [usize; 4] = [2700, 2700, 2700, 3800];
const GROUP_WAITS: usize = 800;
const SUM_CYCLES: usize = 4000;
const SUM_BYTES: usize = 12;

/// Words of a row of a pass, and of a tile.
const ROW_WORDS: usize = 4;
const TILE_WORDS: usize = 2;

/// Places of what sequences go on by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots {
    /// `[slots]` [`Choice::state`](crate::Choice::state).
    pub choices: Place,
    /// `[slots]` [`Ending`](crate::ops::Ending).
    pub endings: Place,
}

/// Memory for a pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// For people.
    pub name: String,
    /// Words.
    pub words: usize,
    /// What it holds for ever; empty where passes write.
    pub contents: Vec<f32>,
}

/// What a pass is made of, apart from its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub rows: usize,
    /// Rows whose logits are wanted, at most [`LOGIT_ROWS`].
    pub wanted: usize,
    /// Tiles of rows: see [`Prefill::tiles`].
    pub tiles: usize,
    /// Rows of the largest tile.
    pub tallest: usize,
}

/// Where the hidden states of a pass's rows lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The memory.
    pub buffer: BufferId,
    /// Word at which the first row begins.
    pub first: usize,
    /// Words from one row to the next.
    pub stride: usize,
    /// Floats of a row.
    pub width: usize,
}

impl Hidden {
    /// The words of so many rows.
    pub fn words(&self, rows: Range<usize>) -> Range<usize> {
        let start = |row| self.first + row * self.stride;
        start(rows.start)..start(rows.end.max(1) - 1) + self.width
    }
}

/// How a lowered program runs on many rows.
#[derive(Clone, Debug)]
pub struct Prefill {
    /// All memory it takes, by [`BufferId`].
    pub buffers: Vec<Buffer>,
    /// `[rows] {token, position, page table's place, slot}`.
    pub rows: BufferId,
    /// `[tiles] {first row, count}`.
    pub tiles: BufferId,
    /// `[wanted]`: the rows whose logits are wanted.
    pub index: BufferId,
    /// `[rows]`: wide passes since the host wrote the rows.
    pub ran: BufferId,
    /// `[passes][rows]` [`Next`], of wide passes since then, at most [`PASSES_AT_ONCE`].
    pub nexts: BufferId,
    /// `[wanted][stride] f32`, the stride that of the lowered program's logits.
    pub logits: BufferId,
    max_rows: usize,
    tiling: Tiling,
    multiprocessors: usize,
    regions: HashMap<RegionId, BufferId>,
    /// Where gathered rows of a region go.
    gathered: HashMap<RegionId, BufferId>,
    /// Where rows of a region go that are normed in place.
    spares: HashMap<RegionId, BufferId>,
    /// Normed rows on their way into a product.
    normed: BufferId,
    /// Partial sums of products.
    partials: BufferId,
}

/// How rows of a sequence are cut into tiles that attend together.
#[derive(Clone, Copy, Debug)]
struct Tiling {
    /// Rows of a tile, at most.
    most: usize,
    /// Rows whose queries a warp takes at a time: fewer leave lanes without work.
    least: usize,
    /// Blocks of a tile, one for each KV head.
    kv_heads: usize,
}

impl Tiling {
    /// Rows of a tile of `count` rows. Of few rows tiles are small, for all multiprocessors to have one:
    /// the warps of a block then share the tokens that a query sees.
    fn rows(self, count: usize, multiprocessors: usize) -> usize {
        let mut rows = self.most;
        while rows > self.least && count.div_ceil(rows) * self.kv_heads < multiprocessors {
            rows = (rows / 2).max(self.least);
        }
        rows
    }
}

/// The kernel for heads of this size, and the warps of its blocks.
fn attention_kernel(key_dim: usize, value_dim: usize) -> Option<(usize, usize)> {
    let kernel = ATTENTION.iter().position(|kernel| value_dim <= kernel.value_dim)?;
    let bytes = warp_bytes(&ATTENTION[kernel], key_dim, value_dim);
    let warps = (ATTENTION[kernel].threads / LANES).min(SHARED_BYTES / bytes);
    (warps > 0).then_some((kernel, warps))
}

/// The kernel for such heads of single rows, if there is one.
fn single_attention_kernel(shape: &AttentionShape) -> Option<usize> {
    let fits = |kernel: &AttentionKernel| {
        shape.value_dim <= kernel.value_dim && shape.heads / shape.kv_heads <= kernel.queries
    };
    let found = SINGLE_ATTENTION.iter().position(fits);
    found.filter(|_| shape.key_dim.is_multiple_of(32))
}

/// Bytes of shared memory of a warp of an attention kernel.
fn warp_bytes(kernel: &AttentionKernel, key_dim: usize, value_dim: usize) -> usize {
    4 * kernel.queries * (key_dim + 2 * crate::ops::PAGE_TOKENS).max(value_dim + 2)
}

impl Prefill {
    /// For passes of at most `rows` rows.
    ///
    /// # Errors
    /// [`LowerError`] when an op has no kernels for many rows.
    pub fn new(lowered: &Lowered, rows: usize) -> Result<Self, LowerError> {
        let mut buffers: Vec<Buffer> = vec![];
        let mut add = |name: &str, words: usize, contents: Vec<f32>| {
            let (name, words) = (name.to_owned(), words.max(1));
            buffers.push(Buffer { name, words, contents });
            BufferId(buffers.len() - 1)
        };
        // Without a gather all rows have logits.
        let rows = if lowered.gathers.is_empty() { rows.min(LOGIT_ROWS) } else { rows };
        let mut regions = HashMap::new();
        for (index, region) in lowered.regions.iter().enumerate() {
            let id = RegionId(index);
            let count = if !region.contents.is_empty() {
                1
            } else if id == lowered.logits.region {
                LOGIT_ROWS
            } else if is_of_rows(lowered, id) {
                rows
            } else {
                continue;
            };
            let words = count * region.stride;
            regions.insert(id, add(&region.name, words, region.contents.clone()));
        }
        let mut gathered = HashMap::new();
        for gather in &lowered.gathers {
            let region = lowered.region(gather.view.region);
            let name = format!("{} of logits", region.name);
            let words = LOGIT_ROWS * region.stride;
            gathered.entry(gather.view.region).or_insert_with(|| add(&name, words, vec![]));
        }
        let mut spares = HashMap::new();
        for (index, op) in lowered.ops.iter().enumerate() {
            let Step::Norm(norm) = &op.step else { continue };
            let region = lowered.region(norm.out.region);
            let in_place = [Some(norm.x), norm.residual]
                .into_iter()
                .flatten()
                .any(|from| from.region == norm.out.region);
            if in_place && norm.out.width.next_multiple_of(4) < region.stride {
                let why = "it norms some columns of a buffer in place".into();
                return Err(LowerError::Op { index, op: "rms-norm", why });
            }
            if in_place {
                let name = format!("{} normed", region.name);
                let words = rows * region.stride;
                spares.entry(norm.out.region).or_insert_with(|| add(&name, words, vec![]));
            }
        }
        let logits = regions[&lowered.logits.region];
        let mut normed = 0;
        let mut tiling = Tiling { most: rows.max(1), least: rows.max(1), kv_heads: usize::MAX };
        let multiprocessors = lowered.target.blocks as usize;
        let mut partials = 0;
        for (index, op) in lowered.ops.iter().enumerate() {
            match &op.step {
                Step::Matvec(matvec) => {
                    normed = normed.max(matvec.cols.next_multiple_of(4));
                    let columns = matvec.rows.next_multiple_of(4);
                    let products =
                        if matches!(matvec.gating, Some(Gating::Up(..))) { 2 } else { 1 };
                    for m in (1..=rows.div_ceil(16)).map(|tiles| rows.min(16 * tiles)) {
                        let (_, splits) = cut(m, matvec.rows, matvec.cols, multiprocessors);
                        partials = partials.max(if splits > 1 {
                            products * splits * m * columns
                        } else {
                            0
                        });
                    }
                }
                Step::Attention(attention) => {
                    let shape = attention.shape;
                    let found = attention_kernel(shape.key_dim, shape.value_dim);
                    let (kernel, warps) = found.ok_or_else(|| LowerError::Op {
                        index,
                        op: "attention",
                        why: format!("heads of {} floats are too long", shape.value_dim),
                    })?;
                    let group = shape.heads / shape.kv_heads;
                    let of_warp = ATTENTION[kernel].queries;
                    tiling.most = tiling.most.min((warps * of_warp / group).max(1));
                    tiling.least = tiling.least.min((of_warp / group).max(1));
                    tiling.kv_heads = tiling.kv_heads.min(shape.kv_heads);
                }
                _ => {}
            }
        }
        let normed = add("normed", rows * normed, vec![]);
        let partials = add("partial products", partials, vec![]);
        let pass = [
            add("rows", ROW_WORDS * rows, vec![]),
            add("tiles", TILE_WORDS * rows, vec![]),
            add("index", LOGIT_ROWS, vec![]),
            add("ran", LOGIT_ROWS, vec![]),
            add("nexts", PASSES_AT_ONCE * LOGIT_ROWS * Next::WORDS, vec![]),
        ];
        let [rows_buffer, tiles, index, ran, nexts] = pass;
        Ok(Self {
            buffers,
            rows: rows_buffer,
            tiles,
            index,
            ran,
            nexts,
            logits,
            max_rows: rows,
            tiling,
            multiprocessors,
            regions,
            gathered,
            spares,
            normed,
            partials,
        })
    }

    /// Rows of a pass, at most.
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Rows of a wide pass, at most.
    pub fn wide_rows(&self) -> usize {
        self.max_rows.min(LOGIT_ROWS)
    }

    /// Cuts a pass whose sequences have `counts` rows each, one behind the other, into tiles of rows
    /// that attend together: the first row and the number of each.
    pub fn tiles(&self, counts: &[usize]) -> Vec<[u32; TILE_WORDS]> {
        let mut tiles = vec![];
        let mut first = 0;
        for count in counts {
            // Of nearly the same size, so that no block has much less to do than the others.
            let parts = count.div_ceil(self.tiling.rows(*count, self.multiprocessors)).max(1);
            for part in 0..parts {
                let (start, end) = (count * part / parts, count * (part + 1) / parts);
                tiles.push([(first + start) as u32, (end - start) as u32]);
            }
            first += count;
        }
        tiles
    }

    /// The launches of a pass. `layouts` are those of the lowered program's matrices.
    pub fn calls(
        &self,
        program: &Program,
        lowered: &Lowered,
        layouts: &[Layout],
        shape: Shape,
    ) -> Vec<Call> {
        let mut pass = Pass::new(self, program, lowered, layouts, shape, None);
        for (index, op) in lowered.ops.iter().enumerate() {
            let mut gathers = lowered.gathers.iter().filter(|gather| gather.op == index).peekable();
            if gathers.peek().is_some() {
                if shape.wanted == 0 {
                    // Keys and values are in the cache: nobody asks for more.
                    return pass.into_calls();
                }
                gathers.for_each(|gather| pass.gather(gather.view));
                pass.keep(shape.wanted);
            }
            pass.step(&op.step);
        }
        pass.into_calls()
    }

    /// The launches of a pass that ends before the product of the logits, for all of its rows, and
    /// where that leaves what the product would be of: `[rows, width] f32`, the hidden states.
    pub fn hidden_calls(
        &self,
        program: &Program,
        lowered: &Lowered,
        layouts: &[Layout],
        shape: Shape,
    ) -> (Vec<Call>, Hidden) {
        let mut pass = Pass::new(self, program, lowered, layouts, shape, None);
        for op in &lowered.ops {
            if let Step::Matvec(head) = &op.step
                && head.y == lowered.logits
            {
                let hidden = pass.hidden(head);
                return (pass.into_calls(), hidden);
            }
            pass.step(&op.step);
        }
        unreachable!("a lowered program has logits")
    }

    /// The launches of a wide pass over `rows` rows, which are tiles of one row each, in order. It
    /// chooses a token for each, and leaves the rows as the next pass has them.
    pub fn wide_calls(
        &self,
        program: &Program,
        lowered: &Lowered,
        layouts: &[Layout],
        rows: usize,
        slots: Slots,
    ) -> Vec<Call> {
        let shape = Shape { rows, wanted: rows, tiles: rows, tallest: 1 };
        let mut pass = Pass::new(self, program, lowered, layouts, shape, Some(slots));
        lowered.ops.iter().for_each(|op| pass.step(&op.step));
        pass.into_calls()
    }
}

/// Whether a region has a row for each row of a pass that some op reads or writes as a view, or as
/// angles.
fn is_of_rows(lowered: &Lowered, id: RegionId) -> bool {
    lowered.ops.iter().any(|op| match &op.step {
        Step::Embed(embed) => {
            embed.out.region == id || embed.ropes.iter().any(|rope| rope.angles == id)
        }
        Step::Matvec(matvec) => {
            let gate = match matvec.gating {
                Some(Gating::By(gate, _)) => Some(gate.region),
                _ => None,
            };
            let stream = match matvec.input {
                Input::AddRmsNorm { stream, .. } => stream.map(|view| view.region),
                _ => None,
            };
            matvec.y.region == id || gate == Some(id) || stream == Some(id)
        }
        Step::Attention(attention) => attention.out.region == id,
        Step::Norm(norm) => norm.out.region == id,
        Step::Sample(_) => false,
    })
}

/// The largest of [`TILES`] that has no half of its rows without work, an index.
fn tile_of(m: usize) -> usize {
    TILES.iter().position(|tile| m > tile / 2).unwrap_or(TILES.len() - 1)
}

/// Rows of the tile for `m` rows.
pub(crate) fn tile_for(m: usize) -> usize {
    TILES[tile_of(m)]
}

/// The tile for `m` rows, and the parts that columns are cut into so that all SMs have work.
fn cut(m: usize, rows: usize, cols: usize, multiprocessors: usize) -> (usize, usize) {
    let tile = tile_of(m);
    if m > LOGIT_ROWS {
        let blocks = m.div_ceil(TILES[tile]) * rows.div_ceil(TILE_COLUMNS);
        let useful = cols.div_ceil(32) / MIN_SPLIT_GROUPS;
        let fitting = multiprocessors * TILE_BLOCKS[tile] / blocks;
        return (tile, fitting.min(useful).clamp(1, MAX_SPLITS));
    }
    // A smaller tile unpacks weights more often, but makes more blocks of a small matrix.
    let tiles = tile..TILES.len().min(tile + 2);
    let best = tiles.map(|tile| cut_tile(tile, m, rows, cols, multiprocessors)).min();
    let (_, tile, splits) = best.expect("the range has a tile");
    (tile, splits)
}

/// The cycles that a product of a few rows takes in such a tile, the tile, and the parts to cut it into.
fn cut_tile(
    tile: usize,
    m: usize,
    rows: usize,
    cols: usize,
    multiprocessors: usize,
) -> (usize, usize, usize) {
    let blocks = m.div_ceil(TILES[tile]) * rows.div_ceil(TILE_COLUMNS);
    let sum_bytes = 8 * m.next_multiple_of(TILES[tile]) * rows;
    let steps = cols.div_ceil(32).div_ceil(TILE_GROUPS[tile]);
    let cycles = |splits: usize| {
        let warps = (blocks * splits).div_ceil(multiprocessors) * (2 * TILES[tile] / LANES);
        let slots = GROUP_SLOTS[tile] * warps.max(SCHEDULERS) / SCHEDULERS;
        let product = steps.div_ceil(splits) * TILE_GROUPS[tile] * (slots + GROUP_WAITS);
        let sum = SUM_CYCLES + splits * sum_bytes / (SUM_BYTES * multiprocessors);
        product + if splits > 1 { sum } else { 0 }
    };
    let fitting = (multiprocessors * TILE_BLOCKS[tile] / blocks).min(steps).max(1);
    let cuts = (1..=fitting).map(|splits| (cycles(splits), tile, splits));
    cuts.min().expect("there is one part at least")
}

#[cfg(test)]
mod tests {
    use m40_gguf::Gguf;
    use m40_program::{BuildOptions, build};
    use m40_testkit::gguf::TinyModel;

    use super::*;
    use crate::lower::{Target, lower};

    /// The kernels of a wide pass of 32 rows.
    fn wide(layers: usize) -> Vec<&'static str> {
        let model = TinyModel::new("llama").layers(layers);
        let program = build(&Gguf::parse(model.build()).unwrap(), BuildOptions::default()).unwrap();
        let lowered = lower(&program, Target { blocks: 24, context: 100 }).unwrap();
        let layouts = crate::weights::layouts(&program, &lowered.matrices).unwrap();
        let prefill = Prefill::new(&lowered, 100).unwrap();
        let slots = Slots { choices: Place(0), endings: Place(0) };
        let calls = prefill.wide_calls(&program, &lowered, &layouts, 32, slots);
        calls.iter().map(|call| call.kernel.signature().name).collect()
    }

    #[test]
    fn a_layer_of_a_wide_pass_is_few_launches() {
        let (one, two) = (wide(1), wide(2));
        let layer = two[3..3 + two.len() - one.len()].iter();
        let (products, others): (Vec<&str>, Vec<_>) =
            layer.partition(|name| name.starts_with("gemm_"));
        assert_eq!(products.len(), 4, "{two:?}");
        let expected = [
            "rows_sum_heads",
            "rows_attention_single_d64",
            "rows_sum_norm",
            "rows_sum_gate",
            "rows_sum_norm",
        ];
        assert_eq!(others, expected);
        assert_eq!(two.last(), Some(&"rows_choose"));
    }

    #[test]
    fn tiles_of_few_rows_are_small_so_that_all_multiprocessors_have_one() {
        // 3 heads of each of 3 KV heads, and 4 of each of 8.
        let small = Tiling { most: 21, least: 2, kv_heads: 3 };
        let large = Tiling { most: 16, least: 2, kv_heads: 8 };
        let rows = |tiling: Tiling, multiprocessors| {
            [1, 16, 128, 512].map(|count| tiling.rows(count, multiprocessors))
        };
        assert_eq!(rows(small, 132), [2, 2, 2, 10]);
        assert_eq!(rows(small, 24), [2, 2, 10, 21]);
        assert_eq!(rows(large, 132), [2, 2, 4, 16]);
        assert_eq!(rows(large, 24), [2, 4, 16, 16]);
    }

    #[test]
    fn columns_are_cut_so_that_all_multiprocessors_have_work() {
        // As measured to be best.
        assert_eq!(cut(32, 14336, 4096, 132), (2, 7));
        assert_eq!(cut(32, 960, 576, 132), (3, 18));
        assert_eq!(cut(17, 960, 576, 132), cut(32, 960, 576, 132));
        assert_eq!(cut(32, 128_256, 4096, 24), (2, 1));
        assert_eq!(cut(512, 4096, 4096, 132), (0, 2));
    }
}
