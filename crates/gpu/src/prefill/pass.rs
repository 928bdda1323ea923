//! One pass, op by op, as calls.

use std::collections::HashMap;

use m40_program::{KvLayer, KvType, Program, RopeStyle, VectorId};
use m40_repack::{Layout, Role};

use super::{
    Hidden, LANES, Prefill, ROW_WORDS, Shape, Slots, TILE_COLUMNS, TILE_WORDS, attention_kernel,
    cut, single_attention_kernel, warp_bytes,
};
use crate::call::{
    ATTENTION, Arg, BufferId, Call, PAIR_TILE, RowsKernel, SINGLE_ATTENTION, TILES, Words,
};
use crate::lower::{
    Attention, Embed, FusedId, Gating, Input, Lowered, Matvec, Norm, RegionId, Step, View,
    page_places,
};
use crate::ops::{Next, PASSES_AT_ONCE, weight_type};

/// Threads of a block of most kernels.
const ROW_THREADS: usize = 256;

/// Threads of a block that adds up and norms a row, at most: there are as many blocks as rows, each with
/// much to read.
const NORM_THREADS: usize = 512;

/// Threads of a block that adds up: few, so that small sums have blocks for all multiprocessors.
const SUM_THREADS: usize = 64;

/// Threads of a block that chooses a token.
const CHOOSE_THREADS: usize = 512;

/// What is done to heads (kernels/rows.cu).
const HEAD_NORM: u32 = 1;
const HEAD_ROTATE: u32 = 2;
const HEAD_INTERLEAVED: u32 = 4;
const HEAD_NORM_KEYS: u32 = 8;
const HEAD_BIAS: u32 = 16;

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
    /// What sequences go on by, if the pass chooses their tokens.
    slots: Option<Slots>,
    /// Rows that still matter.
    m: usize,
    /// Regions whose rows lie elsewhere since some were left out.
    moved: HashMap<RegionId, BufferId>,
    /// What the normed rows were made of.
    normed_from: Option<Input>,
    /// Partial products of the last product that are not added up yet: what comes next may do that.
    pending: Option<Sum>,
    calls: Vec<Call>,
}

/// Partial products that are to be added up.
#[derive(Clone, Copy)]
struct Sum {
    partials: Words,
    splits: usize,
    /// Of the matrix.
    rows: usize,
    y: Rows,
    finish: Finish,
}

/// Rows in a buffer.
#[derive(Clone, Copy, PartialEq)]
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
#[derive(Clone, Copy)]
struct Finish {
    flags: u32,
    bias: VectorId,
    other: Option<Rows>,
    softcap: f32,
}

/// What is done to heads of queries or keys.
struct Treatment {
    ops: u32,
    gain: Option<VectorId>,
    /// eps, angles, pairs
    rest: [Arg; 3],
}

impl Treatment {
    /// As kernels take it.
    fn args(self) -> impl Iterator<Item = Arg> {
        let gain = Arg::Vector(self.gain.unwrap_or(NO_VECTOR));
        [Arg::U32(self.ops), gain].into_iter().chain(self.rest)
    }
}

/// A vector for kernels that do not read it.
const NO_VECTOR: VectorId = VectorId(0);

/// Nothing becomes of a product.
const PLAIN: Finish = Finish { flags: 0, bias: NO_VECTOR, other: None, softcap: 0.0 };

impl<'a> Pass<'a> {
    pub(super) fn new(
        prefill: &'a Prefill,
        program: &'a Program,
        lowered: &'a Lowered,
        layouts: &'a [Layout],
        shape: Shape,
        slots: Option<Slots>,
    ) -> Self {
        let (moved, calls, m) = (HashMap::new(), vec![], shape.rows);
        let (normed_from, pending) = (None, None);
        Self {
            prefill,
            program,
            lowered,
            layouts,
            shape,
            slots,
            m,
            moved,
            normed_from,
            pending,
            calls,
        }
    }

    pub(super) fn into_calls(mut self) -> Vec<Call> {
        self.add_up();
        self.calls
    }

    /// From now on only so many rows, gathered before, matter.
    pub(super) fn keep(&mut self, rows: usize) {
        self.m = rows;
    }

    pub(super) fn step(&mut self, step: &Step) {
        match step {
            Step::Embed(embed) => self.embed(embed),
            Step::Matvec(matvec) => self.matvec(matvec),
            Step::Attention(attention) => self.attention(attention),
            Step::Norm(norm) => self.norm_op(norm),
            // Of a prompt the host has the logits.
            Step::Sample(_) => self.slots.into_iter().for_each(|slots| self.choose(slots)),
        }
    }

    fn call(&mut self, kernel: RowsKernel, grid: usize, threads: usize, args: Vec<Arg>) {
        self.call_with(kernel, grid, threads, 0, args);
    }

    /// With so many bytes of shared memory for each block.
    fn call_with(
        &mut self,
        kernel: RowsKernel,
        grid: usize,
        threads: usize,
        shared: usize,
        args: Vec<Arg>,
    ) {
        self.add_up();
        let [grid, threads, shared] = [grid, threads, shared].map(|number| number as u32);
        self.calls.push(Call { kernel, grid, threads, shared, args });
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

    fn embed(&mut self, embed: &Embed) {
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
        let cols = self.program.vector(gain).len;
        let sum = match residual {
            None => self.take_sum(x, cols, GEMM_BIAS | GEMM_RESIDUAL | GEMM_IN_PLACE),
            Some(_) => None,
        };
        if let Some(sum) = sum {
            let mut args = self.sum_args(&sum);
            args.extend([Arg::Vector(gain), Arg::F32(eps), out.write(), out.stride()]);
            let threads = cols.div_ceil(4).next_multiple_of(LANES).min(NORM_THREADS);
            return self.call(RowsKernel::SumNorm, self.m, threads, args);
        }
        let base = residual.unwrap_or(x);
        let args = vec![
            x.read(),
            x.stride(),
            Arg::Vector(gain),
            Arg::F32(eps),
            Arg::U32(cols as u32),
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
    fn norm_op(&mut self, norm: &Norm) {
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

    /// What a product would be of, without the product.
    pub(super) fn hidden(&mut self, op: &Matvec) -> Hidden {
        let Rows { buffer, words, stride } = self.input(op.input, op.cols);
        Hidden { buffer, first: words.first, stride, width: op.cols }
    }

    fn matvec(&mut self, op: &Matvec) {
        let x = self.input(op.input, op.cols);
        let y = self.rows(op.y);
        let activation = |activation| match activation {
            m40_program::Activation::Silu => GEMM_SILU,
            m40_program::Activation::GeluTanh => GEMM_GELU,
        };
        let mut finish = PLAIN;
        let mut weights = op.weights;
        match op.gating {
            None => {}
            Some(Gating::By(gate, how)) => {
                finish.flags |= activation(how);
                finish.other = Some(self.rows(gate));
            }
            Some(Gating::Up(up, how)) if self.gated(op, up, x, y, activation(how)) => return,
            Some(Gating::Up(up, how)) => {
                self.gemm(op.weights, x, y, PLAIN);
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
        self.gemm(weights, x, y, finish);
        self.changed(op.y);
    }

    /// What was normed may be of rows that have changed.
    fn changed(&mut self, y: View) {
        let changed = |view: View| view.region == y.region;
        if self.normed_from.is_some_and(|input| input.views().into_iter().any(changed)) {
            self.normed_from = None;
        }
    }

    /// `y = act(x W^T) * (x U^T)`, if both products have partial ones and nothing else becomes of them:
    /// these are added up together.
    fn gated(&mut self, op: &Matvec, up: FusedId, x: Rows, y: Rows, activation: u32) -> bool {
        let splits = self.cut(up).1;
        let plain = op.biases.is_empty() && op.residual.is_none() && op.softcap.is_none();
        if !plain || splits == 1 || splits != self.cut(op.weights).1 {
            return false;
        }
        let partials = self.pair([op.weights, up], x, y);
        let rows = op.rows;
        let args = vec![
            Arg::Read(self.prefill.partials, partials),
            Arg::U32(splits as u32),
            Arg::U32(rows as u32),
            Arg::U32(self.m as u32),
            y.write(),
            y.stride(),
            Arg::U32(activation),
        ];
        self.call(RowsKernel::SumGate, self.sum_blocks(rows), SUM_THREADS, args);
        self.changed(op.y);
        true
    }

    fn cut(&self, weights: FusedId) -> (usize, usize) {
        let layout = &self.layouts[weights.0];
        cut(self.m, layout.rows(), layout.cols(), self.prefill.multiprocessors)
    }

    /// Partial products of two matrices, cut alike: in one launch, if one can take both.
    fn pair(&mut self, matrices: [FusedId; 2], x: Rows, y: Rows) -> Words {
        let [first, second] = matrices;
        let (tile, _) = self.cut(first);
        if TILES[tile] <= PAIR_TILE && self.layouts[first.0] == self.layouts[second.0] {
            return self.product(&matrices, x, y, PLAIN, 0);
        }
        let before = self.product(&[first], x, y, PLAIN, 0).len;
        let after = self.product(&[second], x, y, PLAIN, before);
        Words { first: 0, len: before + after.len }
    }

    fn gemm(&mut self, weights: FusedId, x: Rows, y: Rows, finish: Finish) {
        let partials = self.product(&[weights], x, y, finish, 0);
        let (splits, rows) = (self.cut(weights).1, self.layouts[weights.0].rows());
        if splits > 1 {
            self.pending = Some(Sum { partials, splits, rows, y, finish });
        }
    }

    /// A product, or its partial ones from the buffer's word `first` on; or those of two matrices with the
    /// same layout.
    fn product(
        &mut self,
        matrices: &[FusedId],
        x: Rows,
        y: Rows,
        finish: Finish,
        first: usize,
    ) -> Words {
        let (weights, second) = (matrices[0], matrices[matrices.len() - 1]);
        let layout = &self.layouts[weights.0];
        let (rows, cols) = (layout.rows(), layout.cols());
        let (tile, splits) = self.cut(weights);
        let (ty, mut args) = self.planes(weights);
        let other = finish.other.unwrap_or(x);
        let shares = matrices.len() * splits;
        let len = if splits > 1 { shares * self.m * rows.next_multiple_of(4) } else { 1 };
        let partials = Words { first, len };
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
            Arg::Matrix(second),
        ]);
        let blocks = self.m.div_ceil(TILES[tile]) * rows.div_ceil(TILE_COLUMNS);
        self.call(RowsKernel::Gemm(ty, tile), blocks * shares, 2 * TILES[tile], args);
        partials
    }

    /// Adds up partial products, if nothing that follows does.
    fn add_up(&mut self) {
        let Some(sum) = self.pending.take() else { return };
        let mut args = self.sum_args(&sum);
        args.push(Arg::F32(sum.finish.softcap));
        let grid = self.sum_blocks(sum.rows);
        self.call(RowsKernel::GemmSum, grid, SUM_THREADS, args);
    }

    /// What kernels that add up partial products take first.
    fn sum_args(&self, sum: &Sum) -> Vec<Arg> {
        let partials = Arg::Read(self.prefill.partials, sum.partials);
        vec![
            partials,
            Arg::U32(sum.splits as u32),
            Arg::U32(sum.rows as u32),
            Arg::U32(self.m as u32),
            sum.y.write(),
            sum.y.stride(),
            Arg::Vector(sum.finish.bias),
            sum.finish.other.map_or(partials, Rows::read),
            Arg::U32(sum.finish.flags),
        ]
    }

    /// Blocks with a thread for each quad of a sum, or as many as are of use.
    fn sum_blocks(&self, rows: usize) -> usize {
        let quads = self.m * rows.div_ceil(4);
        quads.div_ceil(SUM_THREADS).min(16 * self.prefill.multiprocessors)
    }

    /// The pending sum, if it is of these rows, and nothing is done to it but what is in `flags`.
    fn take_sum(&mut self, y: Rows, width: usize, flags: u32) -> Option<Sum> {
        self.pending
            .take_if(|sum| sum.y == y && sum.rows == width && sum.finish.flags & !flags == 0)
    }

    /// Norms and rotations of heads, and keys and values into the cache.
    fn heads(&mut self, op: &Attention) {
        let [q, k, v] = [op.q, op.k, op.v].map(|view| self.rows(view));
        let layer = self.program.kv[usize::from(op.layer)];
        // A scale is known only when all of a head is.
        if layer.ty == KvType::F16
            && let Some(sum) = self.take_heads(op)
        {
            return self.sum_heads(op, &sum, q);
        }
        let treatment = self.treatment(op, op.q_gain);
        self.treat_heads(q, op.shape.heads, op.shape.key_dim, treatment);
        self.append(op, layer, k, v);
    }

    /// All of that, of partial products of queries, keys and values.
    fn sum_heads(&mut self, op: &Attention, sum: &Sum, q: Rows) {
        let shape = &op.shape;
        let Treatment { ops, gain, rest } = self.treatment(op, op.q_gain);
        let keys = if op.k_gain.is_some() { HEAD_NORM_KEYS } else { 0 };
        let bias = if sum.finish.flags & GEMM_BIAS != 0 { HEAD_BIAS } else { 0 };
        let mut args = vec![
            Arg::Arena,
            self.pass_rows(),
            Arg::U32(self.m as u32),
            Arg::Read(self.prefill.partials, sum.partials),
            Arg::U32(sum.splits as u32),
            Arg::U32(sum.rows.next_multiple_of(4) as u32),
            Arg::Vector(sum.finish.bias),
            q.write(),
            q.stride(),
        ];
        let numbers = [shape.heads, shape.kv_heads, shape.key_dim, shape.value_dim];
        args.extend(numbers.map(|number| Arg::U32(number as u32)));
        args.push(Arg::U32(ops | keys | bias));
        args.extend([gain, op.k_gain].map(|gain| Arg::Vector(gain.unwrap_or(NO_VECTOR))));
        args.extend(rest);
        args.extend([Arg::CacheMut(op.layer), self.page(op)]);
        let warps = SUM_THREADS / LANES;
        let grid = (self.m * (shape.heads + 2 * shape.kv_heads)).div_ceil(warps);
        let bytes = 4 * warps * shape.key_dim.max(shape.value_dim);
        self.call_with(RowsKernel::SumHeads, grid, SUM_THREADS, bytes, args);
    }

    /// What is done to the heads of some rows.
    fn treatment(&self, op: &Attention, gain: Option<VectorId>) -> Treatment {
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
        Treatment { ops, gain, rest: [Arg::F32(op.norm_eps), angles, Arg::U32(pairs as u32)] }
    }

    /// Norms and rotations in place.
    fn treat_heads(&mut self, x: Rows, heads: usize, dim: usize, treatment: Treatment) {
        if treatment.ops & (HEAD_NORM | HEAD_ROTATE) == 0 {
            return;
        }
        let numbers = [self.m, heads, dim].map(|number| Arg::U32(number as u32));
        let args = [x.write(), x.stride()].into_iter().chain(numbers).chain(treatment.args());
        let grid = (self.m * heads).div_ceil(ROW_THREADS / LANES);
        self.call(RowsKernel::Heads, grid, ROW_THREADS, args.collect());
    }

    /// Keys, with norms and rotations, and values into the cache.
    fn append(&mut self, op: &Attention, layer: KvLayer, k: Rows, v: Rows) {
        let KvLayer { kv_heads, key_dim, value_dim, ty } = layer;
        let treatment = self.treatment(op, op.k_gain);
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
            KvType::F16 => args.extend(treatment.args()),
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

    /// The pending sum, if it is of queries, keys and values, one behind the other.
    fn take_heads(&mut self, op: &Attention) -> Option<Sum> {
        let (q, k, v) = (op.q, op.k, op.v);
        let follow = k.region == q.region
            && v.region == q.region
            && k.first == q.first + q.width
            && v.first == k.first + k.width;
        let all = self.rows(View { width: q.width + k.width + v.width, ..q });
        if follow { self.take_sum(all, q.width + k.width + v.width, GEMM_BIAS) } else { None }
    }

    fn attention(&mut self, op: &Attention) {
        self.heads(op);
        let shape = &op.shape;
        let [q, out] = [op.q, op.out].map(|view| self.rows(view));
        let (index, warps) = attention_kernel(shape.key_dim, shape.value_dim)
            .expect("heads were checked when memory was planned");
        let ty = self.program.kv[usize::from(op.layer)].ty;
        // The warps are the same: they decide in which order sums are made.
        let single = self.slots.and_then(|_| single_attention_kernel(shape));
        let (name, kernel) = match single {
            Some(index) => (RowsKernel::SingleAttention(ty, index), &SINGLE_ATTENTION[index]),
            None => (RowsKernel::Attention(ty, index), &ATTENTION[index]),
        };
        let queries = self.shape.tallest * (shape.heads / shape.kv_heads);
        let blocks = queries.div_ceil(kernel.queries).div_ceil(warps);
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
        let bytes = warps * warp_bytes(kernel, shape.key_dim, shape.value_dim);
        self.call_with(name, grid, LANES * warps, bytes, args);
    }

    fn choose(&mut self, slots: Slots) {
        let logits = self.rows(self.lowered.logits);
        let nexts = PASSES_AT_ONCE * self.m * Next::WORDS;
        let start = |buffer, len| Arg::Write(buffer, Words { first: 0, len });
        let args = vec![
            Arg::Arena,
            start(self.prefill.rows, ROW_WORDS * self.m),
            start(self.prefill.ran, self.m),
            logits.write(),
            Arg::U32(self.lowered.logits.width as u32),
            logits.stride(),
            Arg::U32(slots.choices.0),
            Arg::U32(slots.endings.0),
            Arg::Cancels,
            start(self.prefill.nexts, nexts),
        ];
        self.call(RowsKernel::Choose, self.m, CHOOSE_THREADS, args);
    }
}
