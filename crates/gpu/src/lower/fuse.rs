//! Steps from ops: a walk through the program that joins what one op of the card does.
//!
//! Norms wait for the product that takes their rows in, sums of a stream and a normed block for the
//! norm after them, per-head norms, rotations and appended keys for their attention. What waits has
//! no memory; reading it in any other way is an error.

use std::collections::HashMap;

use m40_program::{
    Activation, AttentionShape, BufferId, Head, MatrixId, Op, Program, Projection, RopeId, VectorId,
};

use super::store::Store;
use super::uses::Uses;
use super::{
    Attention, Embed, FusedId, Gather, Gating, Input, LowerError, Matvec, Norm, Region, RegionId,
    Rope, Sample, Step, Target, View, chunks,
};
use crate::ops::{
    MAX_NORM_WIDTH, MAX_ROPES, Next, PASS_ROWS, PASSES_AT_ONCE, POOL_FLOATS, SPLIT_HEADER,
    STEP_COLUMNS, weight_type,
};

/// Floats of a vector's last part that weights are padded to: with whole ones, a vector ends where
/// the next begins.
const BIAS_FLOATS: usize = 32;

/// Rows of a matrix whose columns are dealt to blocks: at least, as warps are never without one, and at
/// most for each block, as from two units a warp on rows alone keep warps busy. And steps of its columns,
/// at least: to add them up takes as long as bringing in the activations of some.
const SPLIT_ROWS: usize = 64;
const SPLIT_ROWS_OF_BLOCK: usize = 128;
const SPLIT_STEPS: usize = 8;

/// What a walk makes.
pub(super) struct Fused {
    pub(super) matrices: Vec<Vec<MatrixId>>,
    pub(super) regions: Vec<Region>,
    pub(super) steps: Vec<Step>,
    pub(super) gathers: Vec<Gather>,
    pub(super) logits: View,
    pub(super) chosen: RegionId,
}

/// The sum of a stream and a normed block, which a product is going to make.
#[derive(Clone, Copy)]
struct Sum {
    x: View,
    block: View,
    gain: VectorId,
    eps: f32,
}

/// Normed rows, which a product is going to make.
#[derive(Clone, Copy)]
struct Normed {
    input: Input,
    /// The buffer of the sum that was normed.
    stream: Option<BufferId>,
}

/// What is to be done to the heads of queries or keys.
#[derive(Clone, Copy, Default)]
struct Heads {
    norm: Option<(VectorId, f32)>,
    rope: Option<RopeId>,
}

/// Keys and values of the pass on their way into the cache.
#[derive(Clone, Copy)]
struct Appended {
    layer: u16,
    k: BufferId,
    v: BufferId,
}

struct Fuser<'a> {
    program: &'a Program,
    uses: Uses<'a>,
    store: Store<'a>,
    steps: Vec<Step>,
    gathers: Vec<Gather>,
    matrices: Vec<Vec<MatrixId>>,
    matrix_ids: HashMap<Vec<MatrixId>, FusedId>,
    sums: HashMap<BufferId, Sum>,
    normed: HashMap<BufferId, Normed>,
    heads: HashMap<BufferId, Heads>,
    appended: Option<Appended>,
    /// By width.
    gates: HashMap<usize, RegionId>,
    ropes: Vec<Rope>,
    partials: RegionId,
    arrivals: RegionId,
}

/// Why an op does not become a step.
type Why = String;

pub(super) fn fuse(program: &Program, target: Target) -> Result<Fused, LowerError> {
    check(program)?;
    let mut store = Store::new(program);
    let ropes = program.ropes.iter().enumerate().map(|(i, rope)| {
        let pairs = rope.inv_freq.len();
        let name = format!("inverse_frequencies[{i}]");
        Rope {
            inverse_frequencies: store.constants(name, rope.inv_freq.clone()),
            pairs,
            magnitude: rope.magnitude,
            angles: store.region(format!("angles[{i}]"), 2 * pairs, PASS_ROWS),
        }
    });
    let ropes = ropes.collect();
    let chunks = chunks(target.context) as usize;
    let shapes = || {
        program.ops.iter().filter_map(|op| match op {
            Op::Attention { shape, .. } => Some(shape),
            _ => None,
        })
    };
    let floats = shapes().map(|s| s.heads * chunks * (s.value_dim + 4)).max().unwrap_or(0);
    let kv_heads = shapes().map(|s| s.kv_heads).max().unwrap_or(0);
    let mut fuser = Fuser {
        program,
        uses: Uses::new(program),
        partials: store.region("partials".into(), floats, PASS_ROWS),
        arrivals: store.region("arrivals".into(), kv_heads, PASS_ROWS),
        store,
        steps: vec![],
        gathers: vec![],
        matrices: vec![],
        matrix_ids: HashMap::new(),
        sums: HashMap::new(),
        normed: HashMap::new(),
        heads: HashMap::new(),
        appended: None,
        gates: HashMap::new(),
        ropes,
    };
    for (index, op) in program.ops.iter().enumerate() {
        let named = |why| LowerError::Op { index, op: op.name(), why };
        fuser.op(index, op).map_err(named)?;
    }
    fuser.finish(target).map_err(LowerError::Program)
}

/// What holds for a program as a whole.
fn check(program: &Program) -> Result<(), LowerError> {
    for matrix in &program.matrices {
        if weight_type(matrix.ty).is_none() {
            return Err(LowerError::Type { tensor: matrix.tensor.clone(), ty: matrix.ty });
        }
        if !matrix.cols.is_multiple_of(8) {
            let why = format!("{} has {} columns, no multiple of 8", matrix.tensor, matrix.cols);
            return Err(LowerError::Program(why));
        }
    }
    let tables = program.ropes.len();
    if tables > MAX_ROPES {
        let why = format!("it has {tables} rotary tables, more than {MAX_ROPES}");
        return Err(LowerError::Program(why));
    }
    for (layer, kv) in program.kv.iter().enumerate() {
        if !kv.key_dim.is_multiple_of(8) || !kv.value_dim.is_multiple_of(8) {
            let why = format!(
                "heads of layer {layer} have {} and {} floats, not multiples of 8",
                kv.key_dim, kv.value_dim
            );
            return Err(LowerError::Program(why));
        }
    }
    Ok(())
}

impl Fuser<'_> {
    fn op(&mut self, index: usize, op: &Op) -> Result<(), Why> {
        match op {
            Op::Embed { table, scale, out } => self.embed(*table, *scale, *out),
            Op::Gather { x, out } => self.gather(index, *x, *out),
            Op::RmsNorm { x, weight, eps, residual, out } => {
                self.rms_norm(index, *x, *weight, *eps, *residual, *out)
            }
            Op::Project { x, outputs } => self.project(*x, outputs),
            Op::GatedProject { x, gate, up, activation, out } => {
                self.gated_project(*x, [*gate, *up], *activation, *out)
            }
            Op::HeadNorm { x, weight, eps, .. } => {
                self.read_buffer(*x)?;
                let heads = self.heads.entry(*x).or_default();
                if heads.norm.is_some() || heads.rope.is_some() {
                    return Err("heads are normed once, before they are rotated".into());
                }
                heads.norm = Some((*weight, *eps));
                Ok(())
            }
            Op::Rope { x, table, .. } => {
                self.read_buffer(*x)?;
                let heads = self.heads.entry(*x).or_default();
                if heads.rope.replace(*table).is_some() {
                    return Err("heads are rotated once".into());
                }
                Ok(())
            }
            Op::KvAppend { layer, k, v } => {
                let appended = Appended { layer: *layer, k: *k, v: *v };
                if self.appended.replace(appended).is_some() {
                    return Err("the keys appended before were not attended to".into());
                }
                Ok(())
            }
            Op::Attention { layer, q, out, shape, sinks } => {
                self.attention(*layer, [*q, *out], shape, *sinks)
            }
            Op::Softcap { x, cap } => self.softcap(*x, *cap),
            Op::AddRow { .. } | Op::LayerNorm { .. } | Op::Activate { .. } => {
                Err("no kernel does that".into())
            }
        }
    }

    /// Where a buffer lies, whatever is still to be done to its heads.
    fn read_buffer(&self, buffer: BufferId) -> Result<View, Why> {
        let name = self.program.buffer(buffer).name;
        if self.sums.contains_key(&buffer) || self.normed.contains_key(&buffer) {
            return Err(format!("{name} is only made inside a product"));
        }
        self.store.view(buffer).ok_or_else(|| format!("{name} has gone to another buffer"))
    }

    /// Where a buffer's finished rows lie.
    fn read(&self, buffer: BufferId) -> Result<View, Why> {
        if self.heads.contains_key(&buffer) {
            let name = self.program.buffer(buffer).name;
            return Err(format!("heads of {name} are only normed and rotated inside attention"));
        }
        self.read_buffer(buffer)
    }

    /// Places for new values of these buffers; see [`Store::write`].
    fn write(&mut self, buffers: &[BufferId], keep: &[View]) -> Result<Vec<View>, Why> {
        for buffer in buffers {
            if self.appended.is_some_and(|a| a.k == *buffer || a.v == *buffer) {
                let name = self.program.buffer(*buffer).name;
                return Err(format!("{name} is written between its append and attention"));
            }
            self.heads.remove(buffer);
            self.sums.remove(buffer);
            self.normed.remove(buffer);
        }
        Ok(self.store.write(buffers, keep))
    }

    fn write_one(&mut self, buffer: BufferId, keep: &[View]) -> Result<View, Why> {
        Ok(self.write(&[buffer], keep)?[0])
    }

    fn fused(&mut self, parts: Vec<MatrixId>) -> FusedId {
        let next = FusedId(self.matrices.len());
        let id = *self.matrix_ids.entry(parts.clone()).or_insert(next);
        if id == next {
            self.matrices.push(parts);
        }
        id
    }

    fn embed(&mut self, table: MatrixId, scale: f32, out: BufferId) -> Result<(), Why> {
        let table = self.fused(vec![table]);
        let out = self.write_one(out, &[])?;
        let ropes = self.ropes.clone();
        self.steps.push(Step::Embed(Embed { table, scale, out, ropes }));
        Ok(())
    }

    fn gather(&mut self, index: usize, x: BufferId, out: BufferId) -> Result<(), Why> {
        let view = self.read(x)?;
        if let Some(reader) = self.uses.readers(index, x).first() {
            return Err(format!("op {reader} reads the rows after some of them were gathered"));
        }
        self.gathers.push(Gather { op: self.steps.len(), view });
        self.store.hand_over(x, out).ok_or_else(|| "its rows lie nowhere".into())
    }

    fn rms_norm(
        &mut self,
        index: usize,
        x: BufferId,
        gain: VectorId,
        eps: f32,
        residual: Option<BufferId>,
        out: BufferId,
    ) -> Result<(), Why> {
        let width = self.program.vector(gain).len;
        if width > MAX_NORM_WIDTH {
            return Err(format!("it norms {width} floats, more than {MAX_NORM_WIDTH}"));
        }
        if let Some(stream) = residual
            && self.uses.norm_of_sum(index).is_some()
        {
            let sum = Sum { x: self.read(stream)?, block: self.read(x)?, gain, eps };
            self.sums.insert(out, sum);
            return Ok(());
        }
        if self.uses.product_of_norm(index).is_some() {
            let (input, stream) = match self.sums.get(&x) {
                Some(sum) => {
                    let Sum { x, block, gain: block_gain, eps: block_eps } = *sum;
                    let stream = None;
                    (Input::AddRmsNorm { x, block, block_gain, block_eps, stream, gain, eps }, true)
                }
                None => (Input::RmsNorm { x: self.read(x)?, gain, eps }, false),
            };
            let stream = stream.then_some(x);
            self.normed.insert(out, Normed { input, stream });
            return Ok(());
        }
        let from = self.read(x)?;
        let residual_view = residual.map(|r| self.read(r)).transpose()?;
        let others = residual_view.filter(|_| residual != Some(out));
        let keep: Vec<_> = [from].into_iter().chain(others).collect();
        let out = self.write_one(out, &keep)?;
        self.steps.push(Step::Norm(Norm { x: from, gain, eps, residual: residual_view, out }));
        Ok(())
    }

    /// What a product of `x` takes in, with memory for the sum that it makes on the way.
    fn input(&mut self, x: BufferId) -> Result<Input, Why> {
        let Some(Normed { mut input, stream: of }) = self.normed.remove(&x) else {
            return Ok(Input::Plain(self.read(x)?));
        };
        if let (Input::AddRmsNorm { x, block, stream, .. }, Some(of)) = (&mut input, of) {
            self.sums.remove(&of);
            *stream = Some(self.write_one(of, &[*x, *block])?);
        }
        Ok(input)
    }

    fn project(&mut self, x: BufferId, outputs: &[Projection]) -> Result<(), Why> {
        let mut input = self.input(x)?;
        let mut keep = input.views();
        let residuals: Vec<_> = outputs
            .iter()
            .map(|output| output.residual.map(|r| self.read(r)).transpose())
            .collect::<Result<_, _>>()?;
        // A result may take the place of its own residual when it is the op's only one: the thread
        // that adds a number is the one that replaces it.
        for (output, view) in outputs.iter().zip(&residuals) {
            if outputs.len() > 1 || output.residual != Some(output.out) {
                keep.extend(*view);
            }
        }
        let buffers: Vec<_> = outputs.iter().map(|output| output.out).collect();
        let views = self.write(&buffers, &keep)?;
        let mut rest = 0;
        while rest < outputs.len() {
            let end = rest + self.joined(&outputs[rest..]);
            let (parts, views) = (&outputs[rest..end], &views[rest..end]);
            let width = views.iter().map(|view| view.width).sum();
            let matrix = self.program.matrix(parts[0].weight);
            let weights = self.fused(parts.iter().map(|part| part.weight).collect());
            self.steps.push(Step::Matvec(Matvec {
                weights,
                ty: matrix.ty,
                rows: width,
                cols: matrix.cols,
                input,
                gating: None,
                biases: parts.iter().filter_map(|part| part.bias).collect(),
                residual: residuals[rest],
                y: View { width, ..views[0] },
                softcap: None,
                maxima: None,
                sums: None,
            }));
            input = input.without_stream();
            rest = end;
        }
        Ok(())
    }

    /// How many of these outputs, from the first on, one op makes: of matrices of one type, whole
    /// quads of rows but for the last, without residuals, and with biases that lie one behind the
    /// other or none.
    fn joined(&self, outputs: &[Projection]) -> usize {
        let like = |a: &Projection, b: &Projection| {
            let [m, n] = [a, b].map(|p| self.program.matrix(p.weight));
            let biases = match (a.bias, b.bias) {
                (None, None) => true,
                (Some(VectorId(a)), Some(VectorId(b))) => {
                    b == a + 1 && m.rows.is_multiple_of(BIAS_FLOATS)
                }
                _ => false,
            };
            m.ty == n.ty
                && m.cols == n.cols
                && m.rows.is_multiple_of(4)
                && biases
                && a.residual.is_none()
                && b.residual.is_none()
        };
        1 + outputs.windows(2).take_while(|pair| like(&pair[0], &pair[1])).count()
    }

    fn gated_project(
        &mut self,
        x: BufferId,
        [gate, up]: [MatrixId; 2],
        activation: Activation,
        out: BufferId,
    ) -> Result<(), Why> {
        let input = self.input(x)?;
        let y = self.write_one(out, &input.views())?;
        let (ids, [g, u]) = ([gate, up], [gate, up].map(|id| self.program.matrix(id)));
        let weights = ids.map(|id| self.fused(vec![id]));
        let matvec = |weights, matrix: &m40_program::Matrix, input, gating, y| {
            let (ty, rows, cols) = (matrix.ty, matrix.rows, matrix.cols);
            let (biases, residual, softcap) = (vec![], None, None);
            let matvec = Matvec {
                weights,
                ty,
                rows,
                cols,
                input,
                gating,
                biases,
                residual,
                y,
                softcap,
                maxima: None,
                sums: None,
            };
            Step::Matvec(matvec)
        };
        if g.ty == u.ty {
            let gating = Some(Gating::Up(weights[1], activation));
            self.steps.push(matvec(weights[0], g, input, gating, y));
            return Ok(());
        }
        let width = g.rows;
        let region = *self.gates.entry(width).or_insert_with(|| {
            self.store.region("gate".into(), width.next_multiple_of(4), PASS_ROWS)
        });
        let gated = View { region, first: 0, width };
        self.steps.push(matvec(weights[0], g, input, None, gated));
        let gating = Some(Gating::By(gated, activation));
        self.steps.push(matvec(weights[1], u, input.without_stream(), gating, y));
        Ok(())
    }

    fn attention(
        &mut self,
        layer: u16,
        [q, out]: [BufferId; 2],
        shape: &AttentionShape,
        sinks: Option<VectorId>,
    ) -> Result<(), Why> {
        let appended = self.appended.take().filter(|appended| appended.layer == layer);
        let Some(Appended { k, v, .. }) = appended else {
            return Err("its keys are not those appended last".into());
        };
        if !shape.causal {
            return Err("it lets tokens see those after them".into());
        }
        let (key_dim, value_dim, floats) = (shape.key_dim, shape.value_dim, pool_floats(shape));
        if floats > POOL_FLOATS {
            return Err(format!(
                "heads of {key_dim} and {value_dim} floats take {floats} floats of shared memory, and \
                 a block has {POOL_FLOATS}"
            ));
        }
        let views = [self.read_buffer(q)?, self.read_buffer(k)?, self.read(v)?];
        let [of_q, of_k] = [q, k].map(|b| self.heads.get(&b).copied().unwrap_or_default());
        if of_q.rope != of_k.rope {
            return Err("queries and keys are rotated differently".into());
        }
        let norm_eps = match (of_q.norm, of_k.norm) {
            (Some((_, a)), Some((_, b))) if a != b => {
                return Err("norms of queries and keys differ in eps".into());
            }
            (a, b) => a.or(b).map_or(0.0, |(_, eps)| eps),
        };
        let rope = of_q.rope;
        let out = self.write_one(out, &views)?;
        let [q, k, v] = views;
        self.steps.push(Step::Attention(Attention {
            layer,
            shape: *shape,
            sinks,
            q,
            k,
            v,
            q_gain: of_q.norm.map(|(gain, _)| gain),
            k_gain: of_k.norm.map(|(gain, _)| gain),
            norm_eps,
            rope,
            angles: rope.map(|id| self.ropes[usize::from(id.0)].angles),
            partials: self.partials,
            arrivals: self.arrivals,
            out,
        }));
        Ok(())
    }

    fn softcap(&mut self, x: BufferId, cap: f32) -> Result<(), Why> {
        let view = self.read(x)?;
        match self.steps.last_mut() {
            Some(Step::Matvec(matvec)) if matvec.y == view && matvec.softcap.is_none() => {
                matvec.softcap = Some(cap);
                Ok(())
            }
            _ => Err("it does not follow the product that makes its input".into()),
        }
    }

    /// Memory for the sums of products whose columns are dealt to blocks.
    fn split(&mut self, target: Target) {
        let floats = self.steps.iter().filter_map(|step| match step {
            Step::Matvec(matvec) => split_floats(matvec, target),
            _ => None,
        });
        let Some(floats) = floats.max() else { return };
        let sums = self.store.region("sums".into(), floats, 1);
        for step in &mut self.steps {
            if let Step::Matvec(matvec) = step {
                matvec.sums = split_floats(matvec, target).map(|_| sums);
            }
        }
    }

    /// The largest logits of each block, and the choice among them.
    fn finish(mut self, target: Target) -> Result<Fused, Why> {
        if let Some(Appended { layer, .. }) = self.appended {
            return Err(format!("keys of layer {layer} are appended and not attended to"));
        }
        let Head::Logits(logits) = self.program.head else {
            return Err("it makes no logits".into());
        };
        let logits = self.read(logits)?;
        let maxima = self.store.region("maxima".into(), 2 * target.blocks as usize, PASS_ROWS);
        let chosen = self.store.region("chosen".into(), Next::WORDS, PASSES_AT_ONCE * PASS_ROWS);
        match self.steps.last_mut() {
            Some(Step::Matvec(matvec)) if matvec.y == logits => matvec.maxima = Some(maxima),
            _ => return Err("its logits are not made by its last product".into()),
        }
        self.steps.push(Step::Sample(Sample { logits, maxima, chosen }));
        self.split(target);
        let (matrices, gathers, steps) = (self.matrices, self.gathers, self.steps);
        let regions = self.store.into_regions();
        Ok(Fused { matrices, regions, steps, gathers, logits, chosen })
    }
}

/// Floats of shared memory that attention in a decode pass takes, at most (`AttentionMemory` in
/// kernels/attention.cuh): what 16 parts have found, twice; the row's own key and value; and the queries
/// of up to 8 heads.
fn pool_floats(shape: &AttentionShape) -> usize {
    let AttentionShape { heads, kv_heads, key_dim, value_dim, .. } = *shape;
    let (found, own) = (32 * value_dim.min(128), key_dim + value_dim);
    64 + found.max(own) + own.div_ceil(2) + 8 + (heads / kv_heads).min(8) * key_dim
}

/// Floats of the sums of a matrix that is dealt to blocks by columns, with what lies before them, if
/// it is to be.
fn split_floats(matvec: &Matvec, target: Target) -> Option<usize> {
    let gated = matches!(matvec.gating, Some(Gating::Up(..)));
    let rows = if gated { 2 * matvec.rows } else { matvec.rows };
    let steps = matvec.cols.div_ceil(STEP_COLUMNS);
    let few = (SPLIT_ROWS..=SPLIT_ROWS_OF_BLOCK * target.blocks as usize).contains(&rows);
    let floats = SPLIT_HEADER + rows * steps * PASS_ROWS;
    (few && steps >= SPLIT_STEPS && matvec.rows.is_multiple_of(8)).then_some(floats)
}

impl Input {
    /// What it reads, and what it writes on the way.
    pub(crate) fn views(&self) -> Vec<View> {
        match *self {
            Self::Plain(x) | Self::RmsNorm { x, .. } => vec![x],
            Self::AddRmsNorm { x, block, stream, .. } => {
                [x, block].into_iter().chain(stream).collect()
            }
        }
    }

    /// The same for another op, which does not store the sum.
    pub(crate) fn without_stream(mut self) -> Self {
        if let Self::AddRmsNorm { stream, .. } = &mut self {
            *stream = None;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_attention_has_no_shared_memory_for_are_told_from_others() {
        let floats = |group: usize, dim| {
            let shape = AttentionShape {
                heads: 2 * group,
                kv_heads: 2,
                key_dim: dim,
                value_dim: dim,
                scale: 1.0,
                softcap: None,
                window: None,
                causal: true,
            };
            pool_floats(&shape)
        };
        assert_eq!(floats(1, 64), 64 + 32 * 64 + 64 + 8 + 64);
        assert!(floats(16, 256) <= POOL_FLOATS && floats(4, 512) <= POOL_FLOATS);
        assert!(floats(8, 1024) > POOL_FLOATS);
    }
}
