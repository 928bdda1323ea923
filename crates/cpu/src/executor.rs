//! A pass of a program over a batch of rows.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use m40_gguf::{Gguf, TensorType, dequantize};
use m40_program::diff::{Observer, Output as Observed};
use m40_program::{
    Activation, BufferId, Index, MatrixId, MemoryPlan, Op, Program, Projection as Output, RowSet,
    VectorId,
};

use crate::isa::{Isa, UnsupportedIsa};
use crate::kv::KvCache;
use crate::matmul::{Activations, Compute, Forms, Matrix, Projection, project_oracle};
use crate::ops::attention::Attention;
use crate::ops::rope::Angles;
use crate::ops::{elementwise, oracle};
use crate::pool::{ThreadPool, available_threads};
use crate::row::Row;

/// Floats that one thread takes at a time in elementwise work.
const CHUNK_FLOATS: usize = 8192;

/// Which arithmetic a pass uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numerics {
    /// Activations quantised to int8 per block for quantised weights; vectors of the best
    /// instruction set.
    #[default]
    Fast,
    /// Weights dequantised to f32, sums in f64, no vector code: the meaning of each op.
    Oracle,
}

/// How to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutorOptions {
    /// Threads, the caller included; all CPUs the process may use when absent.
    pub threads: Option<usize>,
    /// Which arithmetic.
    pub numerics: Numerics,
    /// Instruction set; the best this CPU has when absent.
    pub isa: Option<Isa>,
}

/// Why a program cannot be run here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// The file does not hold a tensor of the program: they do not belong together.
    #[error("tensor {tensor} of the program is not in the file")]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor is not what the program takes it for: they do not belong together.
    #[error("tensor {tensor} of the program has another type or shape in the file")]
    OtherTensor {
        /// Its name.
        tensor: String,
    },
    /// The CPU lacks the instruction set asked for.
    #[error(transparent)]
    Isa(#[from] UnsupportedIsa),
    /// No kernel multiplies with this type.
    #[error("tensor {tensor} has type {}, which the cpu backend does not run", ty.name())]
    UnsupportedType {
        /// Its name.
        tensor: String,
        /// Its block format.
        ty: TensorType,
    },
}

/// Runs one program over weights in `B`, typically a memory map.
pub struct Executor<B> {
    weights: Weights<B>,
    numerics: Numerics,
    compute: Compute,
    /// Of passes up to the result, and of those that end with the hidden states.
    plans: [Arc<MemoryPlan>; 2],
    /// All buffers, where the plan of the pass puts them.
    arena: Vec<f32>,
    /// Products that something is added to or multiplied with.
    product: Vec<f32>,
    activations: Activations,
    /// One per rope table.
    angles: Vec<Angles>,
    partials: Vec<f32>,
    /// Called after each op.
    step: Box<dyn Fn() + Send + Sync>,
}

impl<B> fmt::Debug for Executor<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model = &self.weights.program.description.name;
        f.debug_struct("Executor").field("model", model).finish_non_exhaustive()
    }
}

/// A program bound to its file.
struct Weights<B> {
    program: Arc<Program>,
    gguf: Arc<Gguf<B>>,
    /// Index of each matrix's tensor in the file.
    tensors: Vec<usize>,
    /// Norm gains and biases as f32.
    vectors: Vec<Vec<f32>>,
    /// Of each op, whether it only concerns rows whose logits are wanted.
    for_logits: Vec<bool>,
}

impl<B: AsRef<[u8]>> Weights<B> {
    fn bind(program: Arc<Program>, gguf: Arc<Gguf<B>>) -> Result<Self, PrepareError> {
        let index = |tensor: &String| {
            let found = gguf.tensors().iter().position(|info| info.name == *tensor);
            found.ok_or_else(|| PrepareError::MissingTensor { tensor: tensor.clone() })
        };
        let mut tensors = Vec::with_capacity(program.matrices.len());
        for m in &program.matrices {
            if !Matrix::supported(m.ty) {
                let (tensor, ty) = (m.tensor.clone(), m.ty);
                return Err(PrepareError::UnsupportedType { tensor, ty });
            }
            let at = index(&m.tensor)?;
            let info = &gguf.tensors()[at];
            let fits = within(m.first_row, m.rows, info.dims.rows());
            if !fits || (info.ty, info.dims.cols()) != (m.ty, m.cols) {
                return Err(PrepareError::OtherTensor { tensor: m.tensor.clone() });
            }
            tensors.push(at);
        }
        let mut vectors = Vec::with_capacity(program.vectors.len());
        for v in &program.vectors {
            let info = &gguf.tensors()[index(&v.tensor)?];
            if info.dims.rows() != 1 || !within(v.first, v.len, info.dims.cols()) {
                return Err(PrepareError::OtherTensor { tensor: v.tensor.clone() });
            }
            let mut all = vec![0.0; info.dims.cols()];
            dequantize(info.ty, gguf.tensor_data(info), &mut all).map_err(|_| {
                PrepareError::UnsupportedType { tensor: v.tensor.clone(), ty: info.ty }
            })?;
            vectors.push(all[v.first..v.first + v.len].to_vec());
        }
        let is_logits = |id: &BufferId| program.buffer(*id).rows == RowSet::Logits;
        let for_logits = program.ops.iter().map(|op| op.writes().iter().any(is_logits)).collect();
        Ok(Self { program, gguf, tensors, vectors, for_logits })
    }

    fn matrix(&self, id: MatrixId) -> Matrix<'_> {
        let m = self.program.matrix(id);
        let info = &self.gguf.tensors()[self.tensors[id.0 as usize]];
        let row = m.cols / m.ty.block_len() * m.ty.block_bytes();
        let data = &self.gguf.tensor_data(info)[m.first_row * row..(m.first_row + m.rows) * row];
        Matrix { ty: m.ty, rows: m.rows, cols: m.cols, data }
    }

    fn vector(&self, id: VectorId) -> &[f32] {
        &self.vectors[id.0 as usize]
    }
}

/// Whether `len` elements from `first` lie within `total`.
fn within(first: usize, len: usize, total: usize) -> bool {
    first.checked_add(len).is_some_and(|end| end <= total)
}

/// Where a pass ends; index of its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Result,
    Hidden,
}

/// Rows and caches of the running pass.
struct Pass<'a, 'c> {
    rows: &'a [Row],
    logit_rows: usize,
    caches: &'a mut [&'c mut KvCache],
    plan: Arc<MemoryPlan>,
}

impl<B: AsRef<[u8]>> Executor<B> {
    /// Binds a program to the file it was built from.
    ///
    /// # Errors
    /// [`PrepareError`] when the file does not hold what the program names.
    pub fn new(
        program: Arc<Program>,
        gguf: Arc<Gguf<B>>,
        options: ExecutorOptions,
    ) -> Result<Self, PrepareError> {
        let threads = options.threads.unwrap_or_else(available_threads);
        let isa = options.isa.unwrap_or_else(Isa::detect);
        let compute = Compute::new(ThreadPool::new(threads), isa)?;
        let angles = program.ropes.iter().map(|_| Angles::default()).collect();
        let weights = Weights::bind(program, gguf)?;
        Ok(Self {
            plans: [
                MemoryPlan::new(&weights.program, 1, 1).into(),
                MemoryPlan::to_hidden(&weights.program, 1, 1).into(),
            ],
            weights,
            numerics: options.numerics,
            compute,
            arena: vec![],
            product: vec![],
            activations: Activations::new(),
            angles,
            partials: vec![],
            step: Box::new(|| {}),
        })
    }

    /// Has each pass call `step` after each op, so that somebody sees it get on.
    pub fn on_step(&mut self, step: impl Fn() + Send + Sync + 'static) {
        self.step = Box::new(step);
    }

    /// Threads a pass runs on.
    pub fn threads(&self) -> usize {
        self.compute.pool().threads()
    }

    /// Instruction set of the fast paths.
    pub fn isa(&self) -> Isa {
        self.compute.isa()
    }

    /// The program it runs.
    pub fn program(&self) -> &Program {
        &self.weights.program
    }

    /// An empty cache for one sequence of at most `context` tokens.
    pub fn cache(&self, context: usize) -> KvCache {
        KvCache::new(&self.weights.program.kv, context)
    }

    /// Runs the program over `rows` and returns its result, `[logit_rows, vocab] f32` logits, of the rows
    /// that want them, in order. Keys and values are stored in `caches`; rows of one sequence must
    /// follow each other by position, each cache already holding all positions before. A text whose
    /// tokens see those after them must be in one pass as a whole.
    ///
    /// # Panics
    /// If a token is outside the vocabulary, a position outside its cache's context, or a cache
    /// index outside `caches`; sessions check what comes from users.
    pub fn forward(&mut self, rows: &[Row], caches: &mut [&mut KvCache]) -> &mut [f32] {
        self.run(rows, caches, End::Result, None)
    }

    /// As [`forward`](Self::forward), but ends before the program's head, with the hidden states of the
    /// rows that want them: `[logit_rows, embedding] f32`.
    pub fn hidden(&mut self, rows: &[Row], caches: &mut [&mut KvCache]) -> &mut [f32] {
        self.run(rows, caches, End::Hidden, None)
    }

    /// As [`forward`](Self::forward), showing each op's outputs as soon as they are computed. A pass
    /// that the observer ends has no logits, and no keys and values of layers that it did not reach.
    pub fn forward_observed(
        &mut self,
        rows: &[Row],
        caches: &mut [&mut KvCache],
        observe: &mut Observer<'_>,
    ) -> &mut [f32] {
        self.run(rows, caches, End::Result, Some(observe))
    }

    fn run(
        &mut self,
        rows: &[Row],
        caches: &mut [&mut KvCache],
        end: End,
        mut observe: Option<&mut Observer<'_>>,
    ) -> &mut [f32] {
        if rows.is_empty() {
            return &mut [];
        }
        let logit_rows = rows.iter().filter(|row| row.logits).count();
        let plan = self.reserve(rows.len(), logit_rows, end);
        for row in rows {
            caches[row.cache].grow(row.position + 1);
        }
        let program = Arc::clone(&self.weights.program);
        for (angles, table) in self.angles.iter_mut().zip(&program.ropes) {
            let positions = rows.iter().map(|row| row.position as u32);
            angles.fill(table, positions);
        }
        let mut pass = Pass { rows, logit_rows, caches, plan };
        let (ops, result) = match end {
            End::Result => (&*program.ops, program.result()),
            End::Hidden => (program.ops_to_hidden(), program.hidden),
        };
        for (index, op) in ops.iter().enumerate() {
            if logit_rows == 0 && self.weights.for_logits[index] {
                continue;
            }
            self.op(op, &mut pass);
            (self.step)();
            if let Some(observe) = &mut observe {
                for buffer in op.writes() {
                    let values = &self.arena[self.range(buffer, &pass)];
                    if observe(Observed { op: index, buffer, values }).is_break() {
                        return &mut [];
                    }
                }
            }
        }
        let result = self.range(result, &pass);
        &mut self.arena[result]
    }

    /// The plan of the pass, for which the arena is made large enough; it never shrinks.
    fn reserve(&mut self, rows: usize, logit_rows: usize, end: End) -> Arc<MemoryPlan> {
        let plan = &mut self.plans[end as usize];
        if rows > plan.rows || logit_rows > plan.logit_rows {
            let (rows, logit_rows) = (rows.max(plan.rows), logit_rows.max(plan.logit_rows));
            let program = &self.weights.program;
            *plan = Arc::new(match end {
                End::Result => MemoryPlan::new(program, rows, logit_rows),
                End::Hidden => MemoryPlan::to_hidden(program, rows, logit_rows),
            });
        }
        if plan.floats > self.arena.len() {
            self.arena = vec![0.0; plan.floats];
        }
        Arc::clone(plan)
    }

    /// Where a buffer's rows of this pass lie in the arena.
    fn range(&self, id: BufferId, pass: &Pass<'_, '_>) -> Range<usize> {
        let buffer = self.weights.program.buffer(id);
        let rows = match buffer.rows {
            RowSet::All => pass.rows.len(),
            RowSet::Logits => pass.logit_rows,
        };
        let start = pass.plan.offset(id);
        start..start + rows * buffer.width
    }

    fn op(&mut self, op: &Op, pass: &mut Pass<'_, '_>) {
        match op {
            Op::Embed { table, scale, out } => self.embed(*table, *scale, *out, pass),
            Op::AddRow { table, index, x } => self.add_row(*table, *index, *x, pass),
            Op::Gather { x, out } => self.gather(*x, *out, pass),
            Op::RmsNorm { x, weight, eps, residual, out } => {
                self.rms_norm(*x, *weight, *eps, *residual, *out, pass);
            }
            Op::LayerNorm { x, weight, bias, eps } => {
                let range = self.range(*x, pass);
                let (weight, bias) = (self.weights.vector(*weight), self.weights.vector(*bias));
                let (isa, numerics) = (self.compute.isa(), self.numerics);
                let len = rows_per_chunk(weight.len()) * weight.len();
                self.compute.pool().for_each_chunk(&mut self.arena[range], len, |_, x| {
                    match numerics {
                        Numerics::Fast => elementwise::layer_norm(isa, x, weight, bias, *eps),
                        Numerics::Oracle => oracle::layer_norm(x, weight, bias, *eps),
                    }
                });
            }
            Op::Activate { x, activation } => {
                let (range, isa, numerics) =
                    (self.range(*x, pass), self.compute.isa(), self.numerics);
                self.compute.pool().for_each_chunk(&mut self.arena[range], CHUNK_FLOATS, |_, x| {
                    match numerics {
                        Numerics::Fast => elementwise::activate(isa, *activation, x),
                        Numerics::Oracle => oracle::activate(*activation, x),
                    }
                });
            }
            Op::Project { x, outputs } => self.project(*x, outputs, pass),
            Op::GatedProject { x, gate, up, activation, out } => {
                self.gated_project(*x, [*gate, *up], *activation, *out, pass);
            }
            Op::HeadNorm { x, weight, eps, .. } => self.head_norm(*x, *weight, *eps, pass),
            Op::Rope { x, heads, table } => {
                let range = self.range(*x, pass);
                let width = self.weights.program.buffer(*x).width;
                let (angles, table) =
                    (&self.angles[usize::from(table.0)], self.weights.program.rope(*table));
                let rows = rows_per_chunk(width);
                self.compute.pool().for_each_chunk(&mut self.arena[range], rows * width, |i, x| {
                    angles.rotate(table, x, *heads, i * rows, width);
                });
            }
            Op::KvAppend { layer, k, v } => self.kv_append(usize::from(*layer), *k, *v, pass),
            Op::Attention { layer, q, out, shape, sinks } => {
                let sinks = sinks.map_or(&[][..], |sinks| self.weights.vector(sinks));
                let ranges = [self.range(*q, pass), self.range(*out, pass)];
                let [q, out] = disjoint(&mut self.arena, ranges);
                if self.numerics == Numerics::Oracle {
                    let rows = q
                        .chunks_exact(shape.heads * shape.key_dim)
                        .zip(out.chunks_exact_mut(shape.heads * shape.value_dim));
                    for (row, (q, out)) in pass.rows.iter().zip(rows) {
                        let kv = (&*pass.caches[row.cache], usize::from(*layer));
                        oracle::attention(shape, sinks, kv, row.position, q, out);
                    }
                    return;
                }
                let attention = Attention {
                    isa: self.compute.isa(),
                    shape,
                    sinks,
                    layer: usize::from(*layer),
                    rows: pass.rows,
                    caches: pass.caches,
                };
                attention.run(self.compute.pool(), q, out, &mut self.partials);
            }
            Op::Softcap { x, cap } => {
                let (range, isa, numerics) =
                    (self.range(*x, pass), self.compute.isa(), self.numerics);
                self.compute.pool().for_each_chunk(&mut self.arena[range], CHUNK_FLOATS, |_, x| {
                    match numerics {
                        Numerics::Fast => elementwise::softcap(isa, x, *cap),
                        Numerics::Oracle => oracle::softcap(x, *cap),
                    }
                });
            }
        }
    }

    fn embed(&mut self, table: MatrixId, scale: f32, out: BufferId, pass: &Pass<'_, '_>) {
        let range = self.range(out, pass);
        let table = self.weights.matrix(table);
        let row_bytes = table.data.len() / table.rows;
        let rows = rows_per_chunk(table.cols).min(16);
        let len = rows * table.cols;
        self.compute.pool().for_each_chunk(&mut self.arena[range], len, |i, out| {
            for (row, out) in pass.rows[i * rows..].iter().zip(out.chunks_exact_mut(table.cols)) {
                let blocks = &table.data[row.token as usize * row_bytes..][..row_bytes];
                dequantize(table.ty, blocks, out).expect("supported types dequantise whole rows");
                out.iter_mut().for_each(|x| *x *= scale);
            }
        });
    }

    fn add_row(&mut self, table: MatrixId, index: Index, x: BufferId, pass: &Pass<'_, '_>) {
        let range = self.range(x, pass);
        let table = self.weights.matrix(table);
        let row_bytes = table.data.len() / table.rows;
        let mut added = vec![0.0; table.cols];
        for (row, x) in pass.rows.iter().zip(self.arena[range].chunks_exact_mut(table.cols)) {
            let at = match index {
                Index::Position => row.position,
                Index::Segment => usize::from(row.segment).min(table.rows - 1),
            };
            let blocks = &table.data[at * row_bytes..][..row_bytes];
            dequantize(table.ty, blocks, &mut added)
                .expect("supported types dequantise whole rows");
            elementwise::add(x, &added);
        }
    }

    fn gather(&mut self, x: BufferId, out: BufferId, pass: &Pass<'_, '_>) {
        let width = self.weights.program.buffer(x).width;
        let ranges = [self.range(x, pass), self.range(out, pass)];
        let [x, out] = disjoint(&mut self.arena, ranges);
        let wanted = x.chunks_exact(width).zip(pass.rows).filter(|(_, row)| row.logits);
        for (out, (x, _)) in out.chunks_exact_mut(width).zip(wanted) {
            out.copy_from_slice(x);
        }
    }

    fn rms_norm(
        &mut self,
        x: BufferId,
        weight: VectorId,
        eps: f32,
        residual: Option<BufferId>,
        out: BufferId,
        pass: &Pass<'_, '_>,
    ) {
        if x == out {
            return self.head_norm(x, weight, eps, pass);
        }
        let ranges = [self.range(x, pass), self.range(out, pass)];
        if let Some(residual) = residual.filter(|r| *r != out) {
            let from = self.range(residual, pass);
            self.arena.copy_within(from, ranges[1].start);
        }
        let [x, out] = disjoint(&mut self.arena, ranges);
        let (weight, isa, numerics) =
            (self.weights.vector(weight), self.compute.isa(), self.numerics);
        let len = rows_per_chunk(weight.len()) * weight.len();
        self.compute.pool().for_each_chunk(out, len, |i, out| {
            let x = &x[i * len..][..out.len()];
            match numerics {
                Numerics::Fast => {
                    elementwise::rms_norm(isa, x, weight, eps, residual.is_some(), out);
                }
                Numerics::Oracle => oracle::rms_norm(x, weight, eps, residual.is_some(), out),
            }
        });
    }

    /// RMS norm in place of every `weight.len()` floats.
    fn head_norm(&mut self, x: BufferId, weight: VectorId, eps: f32, pass: &Pass<'_, '_>) {
        let range = self.range(x, pass);
        let (weight, isa, numerics) =
            (self.weights.vector(weight), self.compute.isa(), self.numerics);
        let len = rows_per_chunk(weight.len()) * weight.len();
        self.compute.pool().for_each_chunk(&mut self.arena[range], len, |_, x| match numerics {
            Numerics::Fast => elementwise::rms_norm_in_place(isa, x, weight, eps),
            Numerics::Oracle => {
                let plain = x.to_vec();
                oracle::rms_norm(&plain, weight, eps, false, x);
            }
        });
    }

    fn kv_append(&mut self, layer: usize, k: BufferId, v: BufferId, pass: &mut Pass<'_, '_>) {
        let program = &self.weights.program;
        let (k_width, v_width) = (program.buffer(k).width, program.buffer(v).width);
        let k = self.arena[self.range(k, pass)].chunks_exact(k_width);
        let v = self.arena[self.range(v, pass)].chunks_exact(v_width);
        for ((row, k), v) in pass.rows.iter().zip(k).zip(v) {
            pass.caches[row.cache].store(layer, row.position, k, v);
        }
    }

    fn project(&mut self, x: BufferId, outputs: &[Output], pass: &Pass<'_, '_>) {
        self.activate(x, outputs.iter().map(|o| o.weight), pass);
        if outputs.iter().any(|o| o.residual.is_some()) {
            outputs.iter().for_each(|output| self.project_and_add(output, pass));
            return;
        }
        for outputs in outputs.chunks(3) {
            match outputs {
                [a, b, c] => self.project_into([a, b, c], pass),
                [a, b] => self.project_into([a, b], pass),
                _ => outputs.iter().for_each(|a| self.project_into([a], pass)),
            }
        }
    }

    /// Prepares the input of products with `weights`.
    fn activate(
        &mut self,
        x: BufferId,
        weights: impl Iterator<Item = MatrixId>,
        pass: &Pass<'_, '_>,
    ) {
        let program = &self.weights.program;
        let forms = match self.numerics {
            Numerics::Fast => Forms::of(weights.map(|id| program.matrix(id).ty)),
            Numerics::Oracle => Forms { quantised: false, float: true },
        };
        let width = program.buffer(x).width;
        let x = &self.arena[self.range(x, pass)];
        self.activations.prepare(&self.compute, x, x.len() / width, width, forms);
    }

    /// Products straight into their buffers.
    fn project_into<const N: usize>(&mut self, outputs: [&Output; N], pass: &Pass<'_, '_>) {
        let ranges = outputs.map(|o| self.range(o.out, pass));
        let mut outs = disjoint(&mut self.arena, ranges).into_iter();
        let mut projections = outputs.map(|o| Projection {
            weight: self.weights.matrix(o.weight),
            out: outs.next().expect("one buffer per output"),
        });
        multiply(self.numerics, &self.compute, &self.activations, &mut projections);
        for (projection, output) in projections.iter_mut().zip(outputs) {
            if let Some(bias) = output.bias {
                elementwise::add(projection.out, self.weights.vector(bias));
            }
        }
    }

    /// A product added to its residual, or to nothing.
    fn project_and_add(&mut self, output: &Output, pass: &Pass<'_, '_>) {
        let range = self.range(output.out, pass);
        match output.residual.map(|residual| self.range(residual, pass)) {
            Some(residual) if residual == range => {}
            Some(residual) => self.arena.copy_within(residual, range.start),
            None => self.arena[range.clone()].fill(0.0),
        }
        self.product.resize(range.len(), 0.0);
        let weight = self.weights.matrix(output.weight);
        let mut projections = [Projection { weight, out: &mut self.product }];
        multiply(self.numerics, &self.compute, &self.activations, &mut projections);
        let out = &mut self.arena[range];
        elementwise::add(out, &self.product);
        if let Some(bias) = output.bias {
            elementwise::add(out, self.weights.vector(bias));
        }
    }

    fn gated_project(
        &mut self,
        x: BufferId,
        weights: [MatrixId; 2],
        activation: Activation,
        out: BufferId,
        pass: &Pass<'_, '_>,
    ) {
        self.activate(x, weights.into_iter(), pass);
        let range = self.range(out, pass);
        self.product.resize(range.len(), 0.0);
        let [gate, up] = weights.map(|id| self.weights.matrix(id));
        let out = &mut self.arena[range];
        let mut projections =
            [Projection { weight: gate, out }, Projection { weight: up, out: &mut self.product }];
        multiply(self.numerics, &self.compute, &self.activations, &mut projections);
        let [gate, up] = projections.map(|p| p.out);
        let (isa, numerics) = (self.compute.isa(), self.numerics);
        self.compute.pool().for_each_chunk(gate, CHUNK_FLOATS, |i, gate| {
            let up = &up[i * CHUNK_FLOATS..][..gate.len()];
            match numerics {
                Numerics::Fast => elementwise::gate(isa, activation, gate, up),
                Numerics::Oracle => oracle::gate(activation, gate, up),
            }
        });
    }
}

fn multiply(
    numerics: Numerics,
    compute: &Compute,
    activations: &Activations,
    projections: &mut [Projection<'_>],
) {
    match numerics {
        Numerics::Fast => compute.project(activations, projections),
        Numerics::Oracle => project_oracle(compute.pool(), activations, projections),
    }
}

/// Whole rows that make up about [`CHUNK_FLOATS`].
fn rows_per_chunk(width: usize) -> usize {
    (CHUNK_FLOATS / width).max(1)
}

/// Buffers that live at the same time never overlap: the plan is checked by its own tests.
fn disjoint<const N: usize>(arena: &mut [f32], ranges: [Range<usize>; N]) -> [&mut [f32]; N] {
    arena.get_disjoint_mut(ranges).expect("live buffers do not overlap")
}
