//! One pass, op by op, as calls.

use std::collections::HashMap;

use m40_program::{KvLayer, KvType, Program, RopeStyle, VectorId};
use m40_repack::{Layout, Role};

use super::{
    CHOSEN_WORDS, LANES, Prefill, ROW_WORDS, Shape, TILE_COLUMNS, TILE_WORDS, attention_kernel,
    cut, warp_bytes,
};
use crate::call::{ATTENTION, Arg, BufferId, Call, RowsKernel, TILES, Words};
use crate::lower::{
    Attention, Embed, FusedId, Gating, Input, Lowered, Matvec, Norm, RegionId, View, page_places,
};
use crate::ops::weight_type;

/// Threads of a block of most kernels.
const ROW_THREADS: usize = 256;

/// Threads of a block that looks for the largest logit.
const ARGMAX_THREADS: u32 = 512;

/// What is done to heads (kernels/rows.cu).
const HEAD_NORM: u32 = 1;
const HEAD_ROTATE: u32 = 2;
const HEAD_INTERLEAVED: u32 = 4;

/// What becomes of products (kernels/gemm.cuh).
const GEMM_BIAS: u32 = 1;
const GEMM_RESIDUAL: u32 = 2;
const GEMM_SILU: u32 = 4;
const GEMM_GELU: u32 = 8;
const GEMM_SOFTCAP: u32 = 16;
const GEMM_IN_PLACE: u32 = 32;

/// A pass on its way to calls.
pub(super) struct Pass<'a> {
    prefill: &'a Prefill,
    program: &'a Program,
    lowered: &'a Lowered,
    layouts: &'a [Layout],
    shape: Shape,
    /// Rows that still matter.
    m: usize,
    /// Regions whose rows lie elsewhere since some were left out.
    moved: HashMap<RegionId, BufferId>,
    /// What the normed rows were made of.
    normed_from: Option<Input>,
    calls: Vec<Call>,
}

/// Rows in a buffer.
#[derive(Clone, Copy)]
struct Rows {
    buffer: BufferId,
    words: Words,
    stride: usize,
}

impl Rows {
    fn read(self) -> Arg {
        Arg::Read(self.buffer, self.words)
    }

    fn write(self) -> Arg {
        Arg::Write(self.buffer, self.words)
    }

    fn stride(self) -> Arg {
        Arg::U32(self.stride as u32)
    }
}

/// What becomes of a product.
struct Finish {
    flags: u32,
    bias: VectorId,
    other: Option<Rows>,
    softcap: f32,
}

/// What is done to heads of queries or keys.
struct HeadArgs {
    /// Whether anything is.
    any: bool,
    /// ops, gain, eps, angles, pairs
    args: [Arg; 5],
}

/// A vector for kernels that do not read it.
const NO_VECTOR: VectorId = VectorId(0);

impl<'a> Pass<'a> {
    pub(super) fn new(
        prefill: &'a Prefill,
        program: &'a Program,
        lowered: &'a Lowered,
        layouts: &'a [Layout],
        shape: Shape,
    ) -> Self {
        let (moved, normed_from, calls, m) = (HashMap::new(), None, vec![], shape.rows);
        Self { prefill, program, lowered, layouts, shape, m, moved, normed_from, calls }
    }

    pub(super) fn into_calls(self) -> Vec<Call> {
        self.calls
    }

    /// From now on only so many rows, gathered before, matter.
    pub(super) fn keep(&mut self, rows: usize) {
        self.m = rows;
    }

    fn call(&mut self, kernel: RowsKernel, grid: usize, threads: usize, args: Vec<Arg>) {
        let (grid, threads) = (grid as u32, threads as u32);
        self.calls.push(Call { kernel, grid, threads, shared: 0, args });
    }

    fn rows(&self, view: View) -> Rows {
        let stride = self.lowered.region(view.region).stride;
        let buffer = self.moved.get(&view.region).copied();
        let buffer = buffer.unwrap_or_else(|| self.prefill.regions[&view.region]);
        let len = (self.m - 1) * stride + view.width;
        Rows { buffer, words: Words { first: view.first, len }, stride }
    }

    /// The first `len` words of a buffer.
    fn start(buffer: BufferId, len: usize) -> Arg {
        Arg::Read(buffer, Words { first: 0, len })
    }

    fn pass_rows(&self) -> Arg {
        Self::start(self.prefill.rows, ROW_WORDS * self.shape.rows)
    }

    pub(super) fn gather(&mut self, view: View) {
        let from = self.rows(view);
        let (buffer, stride) = (self.prefill.gathered[&view.region], from.stride);
        let len = (self.shape.wanted - 1) * stride + view.width;
        let to = Rows { buffer, words: Words { first: view.first, len }, stride };
        let index = Self::start(self.prefill.index, self.shape.wanted);
        let width = Arg::U32(view.width as u32);
        let args = vec![from.read(), from.stride(), index, width, to.write(), to.stride()];
        self.call(RowsKernel::Gather, self.shape.wanted, ROW_THREADS, args);
        self.moved.insert(view.region, buffer);
    }

    fn planes(&self, id: FusedId) -> (u32, Vec<Arg>) {
        let layout = &self.layouts[id.0];
        let ty = weight_type(layout.ty()).expect("types were checked when the program was lowered");
        let planes = [Role::High, Role::Scales, Role::ScaleTops, Role::Supers];
        let offsets = planes.map(|role| Arg::U64(layout.plane(role).offset as u64));
        (ty, [Arg::Matrix(id)].into_iter().chain(offsets).collect())
    }

    pub(super) fn embed(&mut self, embed: &Embed) {
        let (ty, mut args) = self.planes(embed.table);
        let layout = &self.layouts[embed.table.0];
        let out = self.rows(embed.out);
        args.extend([
            Arg::U32(layout.rows() as u32),
            Arg::U32(layout.cols() as u32),
            self.pass_rows(),
            Arg::F32(embed.scale),
            out.write(),
            out.stride(),
        ]);
        let threads = layout.groups().next_multiple_of(LANES).min(ROW_THREADS);
        self.call(RowsKernel::Embed(ty), self.m, threads, args);
        for rope in &embed.ropes {
            let len = self.m * 2 * rope.pairs;
            let angles = self.prefill.regions[&rope.angles];
            let args = vec![
                self.pass_rows(),
                Arg::U32(self.m as u32),
                Self::start(self.prefill.regions[&rope.inverse_frequencies], rope.pairs),
                Arg::U32(rope.pairs as u32),
                Arg::F32(rope.magnitude),
                Arg::Write(angles, Words { first: 0, len }),
            ];
            let grid = (self.m * rope.pairs).div_ceil(ROW_THREADS);
            self.call(RowsKernel::Angles, grid, ROW_THREADS, args);
        }
    }

    /// `out = x * gain / rms(x) [+ residual]`, `out` another buffer than the others.
    fn norm(&mut self, x: Rows, gain: VectorId, eps: f32, residual: Option<Rows>, out: Rows) {
        let cols = self.program.vector(gain).len as u32;
        let base = residual.unwrap_or(x);
        let args = vec![
            x.read(),
            x.stride(),
            Arg::Vector(gain),
            Arg::F32(eps),
            Arg::U32(cols),
            base.read(),
            base.stride(),
            Arg::U32(u32::from(residual.is_some())),
            out.write(),
            out.stride(),
        ];
        self.call(RowsKernel::RmsNorm, self.m, ROW_THREADS, args);
    }

    /// A norm that no product takes in. What would be normed in place goes elsewhere, and is there
    /// from then on.
    pub(super) fn norm_op(&mut self, norm: &Norm) {
        let (x, mut out) = (self.rows(norm.x), self.rows(norm.out));
        let residual = norm.residual.map(|view| self.rows(view));
        if out.buffer == x.buffer || residual.is_some_and(|from| from.buffer == out.buffer) {
            let region = norm.out.region;
            let spare = self.prefill.spares[&region];
            out.buffer = if out.buffer == spare { self.prefill.regions[&region] } else { spare };
            self.moved.insert(region, out.buffer);
        }
        self.norm(x, norm.gain, norm.eps, residual, out);
    }

    /// What a product multiplies with, normed if it is to be.
    fn input(&mut self, input: Input, cols: usize) -> Rows {
        let stride = cols.next_multiple_of(4);
        let words = Words { first: 0, len: (self.m - 1) * stride + cols };
        let normed = Rows { buffer: self.prefill.normed, words, stride };
        let again = self.normed_from == Some(input.without_stream());
        match input {
            Input::Plain(x) => return self.rows(x),
            _ if again => return normed,
            Input::RmsNorm { x, gain, eps } => {
                let x = self.rows(x);
                self.norm(x, gain, eps, None, normed);
            }
            Input::AddRmsNorm { x, block, block_gain, block_eps, stream, gain, eps } => {
                let stream = stream.expect("the first product of rows stores their sum");
                let (x, block, stream) = (self.rows(x), self.rows(block), self.rows(stream));
                self.norm(block, block_gain, block_eps, Some(x), stream);
                self.norm(stream, gain, eps, None, normed);
            }
        }
        self.normed_from = Some(input.without_stream());
        normed
    }

    pub(super) fn matvec(&mut self, op: &Matvec) {
        let x = self.input(op.input, op.cols);
        let y = self.rows(op.y);
        let plain = Finish { flags: 0, bias: NO_VECTOR, other: None, softcap: 0.0 };
        let activation = |activation| match activation {
            m40_program::Activation::Silu => GEMM_SILU,
            m40_program::Activation::GeluTanh => GEMM_GELU,
        };
        let mut finish = plain;
        let mut weights = op.weights;
        match op.gating {
            None => {}
            Some(Gating::By(gate, how)) => {
                finish.flags |= activation(how);
                finish.other = Some(self.rows(gate));
            }
            Some(Gating::Up(up, how)) => {
                let plain = Finish { flags: 0, bias: NO_VECTOR, other: None, softcap: 0.0 };
                self.gemm(op.weights, x, y, &plain);
                weights = up;
                finish.flags |= activation(how) | GEMM_IN_PLACE;
            }
        }
        if let Some(bias) = op.biases.first() {
            finish.flags |= GEMM_BIAS;
            finish.bias = *bias;
        }
        if let Some(residual) = op.residual {
            finish.flags |= GEMM_RESIDUAL;
            if residual == op.y {
                finish.flags |= GEMM_IN_PLACE;
            } else {
                finish.other = Some(self.rows(residual));
            }
        }
        if let Some(cap) = op.softcap {
            finish.flags |= GEMM_SOFTCAP;
            finish.softcap = cap;
        }
        self.gemm(weights, x, y, &finish);
        // What was normed may have changed.
        let changed = |view: View| view.region == op.y.region;
        if self.normed_from.is_some_and(|input| input.views().into_iter().any(changed)) {
            self.normed_from = None;
        }
    }

    fn gemm(&mut self, weights: FusedId, x: Rows, y: Rows, finish: &Finish) {
        let layout = &self.layouts[weights.0];
        let (rows, cols) = (layout.rows(), layout.cols());
        let (tile, splits) = cut(self.m, rows, cols, self.prefill.multiprocessors);
        let (ty, mut args) = self.planes(weights);
        let other = finish.other.unwrap_or(x);
        let partials = Words {
            first: 0,
            len: if splits > 1 { splits * self.m * rows.next_multiple_of(4) } else { 1 },
        };
        let flags = if splits > 1 { 0 } else { finish.flags };
        args.extend([
            Arg::U32(rows as u32),
            Arg::U32(cols as u32),
            x.read(),
            x.stride(),
            Arg::U32(self.m as u32),
            y.write(),
            y.stride(),
            Arg::Vector(finish.bias),
            other.read(),
            Arg::U32(flags),
            Arg::F32(finish.softcap),
            Arg::Write(self.prefill.partials, partials),
            Arg::U32(splits as u32),
        ]);
        let blocks = self.m.div_ceil(TILES[tile]) * rows.div_ceil(TILE_COLUMNS);
        self.call(RowsKernel::Gemm(ty, tile), blocks * splits, 2 * TILES[tile], args);
        if splits > 1 {
            let args = vec![
                Arg::Read(self.prefill.partials, partials),
                Arg::U32(splits as u32),
                Arg::U32(rows as u32),
                Arg::U32(self.m as u32),
                y.write(),
                y.stride(),
                Arg::Vector(finish.bias),
                other.read(),
                Arg::U32(finish.flags),
                Arg::F32(finish.softcap),
            ];
            let quads = self.m * rows.div_ceil(4);
            let grid = quads.div_ceil(ROW_THREADS).min(8 * self.prefill.multiprocessors);
            self.call(RowsKernel::GemmSum, grid, ROW_THREADS, args);
        }
    }

    /// Norms and rotations of the heads of some rows, and their angles, as kernels take them.
    fn heads(&self, op: &Attention, gain: Option<VectorId>) -> HeadArgs {
        let style = op.rope.map(|id| self.program.rope(id));
        let pairs = style.map_or(0, |rope| rope.inv_freq.len());
        let interleaved = style.is_some_and(|rope| rope.style == RopeStyle::Interleaved);
        let norm = if gain.is_some() { HEAD_NORM } else { 0 };
        let rotate = if op.rope.is_some() { HEAD_ROTATE } else { 0 };
        // Kernels that rotate nothing read no angles.
        let angles = match op.angles {
            Some(region) => Self::start(self.prefill.regions[&region], self.m * 2 * pairs),
            None => self.pass_rows(),
        };
        let ops = norm | rotate | if interleaved { HEAD_INTERLEAVED } else { 0 };
        let args = [
            Arg::U32(ops),
            Arg::Vector(gain.unwrap_or(NO_VECTOR)),
            Arg::F32(op.norm_eps),
            angles,
            Arg::U32(pairs as u32),
        ];
        HeadArgs { any: norm | rotate != 0, args }
    }

    /// Norms and rotations in place.
    fn treat_heads(&mut self, x: Rows, heads: usize, dim: usize, treatment: HeadArgs) {
        if !treatment.any {
            return;
        }
        let numbers = [self.m, heads, dim].map(|number| Arg::U32(number as u32));
        let args = [x.write(), x.stride()].into_iter().chain(numbers).chain(treatment.args);
        let grid = (self.m * heads).div_ceil(ROW_THREADS / LANES);
        self.call(RowsKernel::Heads, grid, ROW_THREADS, args.collect());
    }

    /// Keys, with norms and rotations, and values into the cache.
    fn append(&mut self, op: &Attention, k: Rows, v: Rows) {
        let KvLayer { kv_heads, key_dim, value_dim, ty } = self.program.kv[usize::from(op.layer)];
        let treatment = self.heads(op, op.k_gain);
        let mut args = vec![
            Arg::Arena,
            self.pass_rows(),
            Arg::U32(self.m as u32),
            k.read(),
            k.stride(),
            v.read(),
            v.stride(),
        ];
        args.extend([kv_heads, key_dim, value_dim].map(|number| Arg::U32(number as u32)));
        match ty {
            KvType::F16 => args.extend(treatment.args),
            // A scale is known only when all of a key is.
            KvType::Int8 => self.treat_heads(k, kv_heads, key_dim, treatment),
        }
        args.extend([Arg::CacheMut(op.layer), self.page(op)]);
        let grid = (self.m * 2 * kv_heads).div_ceil(ROW_THREADS / LANES);
        self.call(RowsKernel::KvAppend(ty), grid, ROW_THREADS, args);
    }

    fn page(&self, op: &Attention) -> Arg {
        Arg::U32(page_places(&self.program.kv[usize::from(op.layer)]))
    }

    pub(super) fn attention(&mut self, op: &Attention) {
        let shape = &op.shape;
        let [q, k, v, out] = [op.q, op.k, op.v, op.out].map(|view| self.rows(view));
        self.treat_heads(q, shape.heads, shape.key_dim, self.heads(op, op.q_gain));
        self.append(op, k, v);

        let (kernel, warps) = attention_kernel(shape.key_dim, shape.value_dim)
            .expect("heads were checked when memory was planned");
        let queries = self.shape.tallest * (shape.heads / shape.kv_heads);
        let blocks = queries.div_ceil(ATTENTION[kernel].queries).div_ceil(warps);
        let tiles = self.shape.tiles;
        let args = vec![
            Arg::Arena,
            self.pass_rows(),
            Self::start(self.prefill.tiles, TILE_WORDS * tiles),
            Arg::U32(tiles as u32),
            q.read(),
            q.stride(),
            Arg::Cache(op.layer),
            self.page(op),
            Arg::U32(shape.heads as u32),
            Arg::U32(shape.kv_heads as u32),
            Arg::U32(shape.key_dim as u32),
            Arg::U32(shape.value_dim as u32),
            Arg::F32(shape.scale),
            Arg::F32(shape.softcap.unwrap_or(0.0)),
            Arg::U32(shape.window.unwrap_or(0)),
            Arg::Vector(op.sinks.unwrap_or(NO_VECTOR)),
            Arg::U32(u32::from(op.sinks.is_some())),
            out.write(),
            out.stride(),
        ];
        let grid = tiles * shape.kv_heads * blocks;
        let ty = self.program.kv[usize::from(op.layer)].ty;
        self.call(RowsKernel::Attention(ty, kernel), grid, LANES * warps, args);
        let bytes = warps * warp_bytes(kernel, shape.key_dim, shape.value_dim);
        self.calls.last_mut().into_iter().for_each(|call| call.shared = bytes as u32);
    }

    pub(super) fn argmax(&mut self) {
        let logits = self.rows(self.lowered.logits);
        let len = CHOSEN_WORDS * self.m;
        let args = vec![
            logits.read(),
            logits.stride(),
            Arg::U32(self.lowered.logits.width as u32),
            Arg::Write(self.prefill.chosen, Words { first: 0, len }),
        ];
        self.call(RowsKernel::Argmax, self.m, ARGMAX_THREADS as usize, args);
    }
}
