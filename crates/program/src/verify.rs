//! The rules every program obeys. Executors rely on them instead of checking again.

use crate::op::{
    AttentionShape, BufferId, Index, MAX_HEAD_DIM, MatrixId, Op, Projection, RopeId, RowSet,
    VectorId,
};
use crate::program::{Head, KvLayer, Program};

/// A rule that a program breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// An op breaks a rule.
    #[error("op {index} ({name}): {rule}")]
    Op {
        /// Position in `ops`.
        index: usize,
        /// Short name of the op.
        name: &'static str,
        /// What is wrong, with the figures.
        rule: String,
    },
    /// A handle outside an op is wrong.
    #[error("program: {0}")]
    Program(String),
}

type Rule = Result<(), String>;

fn require(holds: bool, rule: impl FnOnce() -> String) -> Rule {
    if holds { Ok(()) } else { Err(rule()) }
}

fn above_zero(cap: f32) -> Rule {
    require(cap.is_finite() && cap > 0.0, || format!("cap {cap} is not above 0"))
}

/// Equals no buffer's width when it overflows.
fn product(a: usize, b: usize) -> usize {
    a.saturating_mul(b)
}

/// Checks every rule.
///
/// # Errors
/// The first rule broken: a handle out of range, shapes that do not fit, a buffer that is read
/// before it is written or never written, in-place use where the op does not allow it, attention
/// over a KV layer that this pass has not appended to, hidden states that are not
/// `[logits, embedding]`, or logits that are not `[logits, vocab]`.
pub fn verify(program: &Program) -> Result<(), VerifyError> {
    let mut check = Checker { program, written: vec![false; program.buffers.len()], appended: 0 };
    check.sizes().map_err(VerifyError::Program)?;
    for (index, op) in program.ops.iter().enumerate() {
        check.op(op).map_err(|rule| VerifyError::Op { index, name: op.name(), rule })?;
    }
    check.result().map_err(VerifyError::Program)?;
    Ok(())
}

struct Checker<'a> {
    program: &'a Program,
    written: Vec<bool>,
    /// KV layers appended to so far; they come in order.
    appended: usize,
}

impl Checker<'_> {
    /// Nothing is empty, and no head is larger than executors have room for.
    fn sizes(&self) -> Rule {
        for b in &self.program.buffers {
            require(b.width > 0, || format!("buffer {} has no width", b.name))?;
        }
        for m in &self.program.matrices {
            require(m.rows > 0 && m.cols > 0, || format!("matrix {} is empty", m.tensor))?;
        }
        for (i, kv) in self.program.kv.iter().enumerate() {
            let dims = 1..=MAX_HEAD_DIM;
            let fits = dims.contains(&kv.key_dim) && dims.contains(&kv.value_dim);
            require(fits && kv.kv_heads > 0, || format!("KV layer {i} is {kv:?}"))?;
        }
        Ok(())
    }

    fn result(&self) -> Rule {
        let p = self.program;
        let hidden = self.shape(p.hidden)?;
        require(hidden == (p.description.embedding, RowSet::Logits), || {
            format!("hidden states are {hidden:?}, not [Logits, {}]", p.description.embedding)
        })?;
        let (width, rows) = self.shape(p.result())?;
        let unwritten = p.buffers.iter().zip(&self.written).find(|(_, written)| !**written);
        unwritten.map_or(Ok(()), |(b, _)| Err(format!("{} is never written", b.name)))?;
        let fits = !matches!(p.head, Head::Logits(_)) || width == p.description.vocab;
        require(fits && rows == RowSet::Logits, || {
            format!("the result is [{rows:?}, {width}], the vocabulary has {}", p.description.vocab)
        })?;
        require(self.appended == p.kv.len(), || {
            format!("{} of {} KV layers are appended to", self.appended, p.kv.len())
        })
    }

    fn shape(&self, id: BufferId) -> Result<(usize, RowSet), String> {
        let buffer = self.program.buffers.get(usize::from(id.0));
        buffer.map(|b| (b.width, b.rows)).ok_or_else(|| format!("no buffer {}", id.0))
    }

    fn read(&self, id: BufferId) -> Result<(usize, RowSet), String> {
        let shape = self.shape(id)?;
        require(self.written[usize::from(id.0)], || {
            format!("{} is read before it is written", self.program.buffer(id).name)
        })?;
        Ok(shape)
    }

    /// Marks `id` written and requires its shape.
    fn write(&mut self, id: BufferId, width: usize, rows: RowSet) -> Rule {
        let found = self.shape(id)?;
        require(found == (width, rows), || {
            let name = self.program.buffer(id).name;
            format!("{name} is [{:?}, {}], not [{rows:?}, {width}]", found.1, found.0)
        })?;
        self.written[usize::from(id.0)] = true;
        Ok(())
    }

    fn matrix(&self, id: MatrixId) -> Result<(usize, usize), String> {
        let matrix = self.program.matrices.get(id.0 as usize);
        matrix.map(|m| (m.rows, m.cols)).ok_or_else(|| format!("no matrix {}", id.0))
    }

    fn vector(&self, id: VectorId, len: usize) -> Rule {
        let vector =
            self.program.vectors.get(id.0 as usize).ok_or_else(|| format!("no vector {}", id.0))?;
        require(vector.len == len, || {
            format!("{} has {} elements, not {len}", vector.tensor, vector.len)
        })
    }

    fn kv(&self, layer: u16) -> Result<KvLayer, String> {
        let found = self.program.kv.get(usize::from(layer));
        found.copied().ok_or_else(|| format!("no KV layer {layer}"))
    }

    fn residual(&self, id: Option<BufferId>, width: usize, rows: RowSet) -> Rule {
        let Some(id) = id else { return Ok(()) };
        let found = self.read(id)?;
        require(found == (width, rows), || {
            format!("residual {} is not [{rows:?}, {width}]", self.program.buffer(id).name)
        })
    }

    fn heads(&self, width: usize, heads: usize) -> Result<usize, String> {
        require(heads > 0 && width.is_multiple_of(heads), || {
            format!("{width} floats do not divide into {heads} heads")
        })?;
        Ok(width / heads)
    }

    fn project(&mut self, x: BufferId, outputs: &[(MatrixId, BufferId)]) -> Rule {
        let (width, rows) = self.read(x)?;
        for &(weight, out) in outputs {
            let (out_width, cols) = self.matrix(weight)?;
            require(cols == width, || {
                format!("weight has {cols} columns, the input {width} floats")
            })?;
            require(out != x, || "the output is the input".into())?;
            self.write(out, out_width, rows)?;
        }
        Ok(())
    }

    /// Biases and residuals of a projection, and that its outputs do not meet: they may be computed
    /// in any order, or at once.
    fn outputs(&self, outputs: &[Projection], rows: RowSet) -> Rule {
        require(!outputs.is_empty(), || "no outputs".into())?;
        for (i, p) in outputs.iter().enumerate() {
            let (width, _) = self.matrix(p.weight)?;
            p.bias.map_or(Ok(()), |b| self.vector(b, width))?;
            self.residual(p.residual, width, rows)?;
            for (_, other) in outputs.iter().enumerate().filter(|(j, _)| *j != i) {
                require(p.out != other.out, || "two outputs are the same buffer".into())?;
                require(p.residual != Some(other.out), || {
                    "the residual of one output is another output".into()
                })?;
            }
        }
        Ok(())
    }

    fn rope(&self, x: BufferId, heads: usize, table: RopeId) -> Rule {
        let (width, rows) = self.read(x)?;
        let dim = self.heads(width, heads)?;
        let rope = self.program.ropes.get(usize::from(table.0));
        let rope = rope.ok_or_else(|| format!("no rope table {}", table.0))?;
        require(rows == RowSet::All, || "rope needs the positions of all rows".into())?;
        require(2 * rope.inv_freq.len() <= dim, || {
            format!("{} pairs do not fit a head of {dim}", rope.inv_freq.len())
        })
    }

    fn attention(
        &mut self,
        layer: u16,
        [q, out]: [BufferId; 2],
        s: &AttentionShape,
        sinks: Option<VectorId>,
    ) -> Rule {
        let kv = self.kv(layer)?;
        let (width, rows) = self.read(q)?;
        require(usize::from(layer) < self.appended, || {
            format!("KV layer {layer} is read before it is appended to")
        })?;
        require(rows == RowSet::All && q != out, || "attention needs all rows".into())?;
        require(
            (s.kv_heads, s.key_dim, s.value_dim) == (kv.kv_heads, kv.key_dim, kv.value_dim),
            || format!("shape {s:?} does not fit KV layer {kv:?}"),
        )?;
        require(
            s.heads.is_multiple_of(s.kv_heads) && product(s.heads, s.key_dim) == width,
            || format!("{} heads of {} do not make {width} floats", s.heads, s.key_dim),
        )?;
        require(s.window != Some(0), || "a window of 0 tokens sees nothing".into())?;
        require(s.causal || s.window.is_none(), || {
            "there is no window for those who see the whole text".into()
        })?;
        s.softcap.map_or(Ok(()), above_zero)?;
        sinks.map_or(Ok(()), |sinks| self.vector(sinks, s.heads))?;
        self.write(out, product(s.heads, s.value_dim), RowSet::All)
    }

    fn op(&mut self, op: &Op) -> Rule {
        match op {
            Op::Embed { table, out, .. } => {
                let (vocab, width) = self.matrix(*table)?;
                require(vocab == self.program.description.vocab, || {
                    format!("{vocab} embeddings for a vocabulary of another size")
                })?;
                self.write(*out, width, RowSet::All)
            }
            Op::AddRow { table, index, x } => {
                let (count, cols) = self.matrix(*table)?;
                let (width, rows) = self.read(*x)?;
                require(cols == width && rows == RowSet::All, || {
                    format!("rows of {cols} floats are added to [{rows:?}, {width}]")
                })?;
                let context = self.program.description.context as usize;
                require(*index != Index::Position || count >= context, || {
                    format!("there are {count} positions for a context of {context}")
                })
            }
            Op::Gather { x, out } => {
                let (width, rows) = self.read(*x)?;
                require(rows == RowSet::All, || "gather takes all rows".into())?;
                self.write(*out, width, RowSet::Logits)
            }
            Op::RmsNorm { x, weight, residual, out, .. } => {
                let (width, rows) = self.read(*x)?;
                self.vector(*weight, width)?;
                require(out != x || residual.is_none(), || {
                    "in place there is no room for a residual".into()
                })?;
                self.residual(*residual, width, rows)?;
                self.write(*out, width, rows)
            }
            Op::LayerNorm { x, weight, bias, .. } => {
                let (width, _) = self.read(*x)?;
                self.vector(*weight, width)?;
                self.vector(*bias, width)
            }
            Op::Activate { x, .. } => self.read(*x).map(|_| ()),
            Op::Project { x, outputs } => {
                let (_, rows) = self.read(*x)?;
                self.outputs(outputs, rows)?;
                let pairs: Vec<_> = outputs.iter().map(|p| (p.weight, p.out)).collect();
                self.project(*x, &pairs)
            }
            Op::GatedProject { x, gate, up, out, .. } => {
                self.project(*x, &[(*gate, *out), (*up, *out)])
            }
            Op::HeadNorm { x, heads, weight, .. } => {
                let (width, _) = self.read(*x)?;
                let dim = self.heads(width, *heads)?;
                self.vector(*weight, dim)
            }
            Op::Rope { x, heads, table } => self.rope(*x, *heads, *table),
            Op::KvAppend { layer, k, v } => {
                let kv = self.kv(*layer)?;
                require(usize::from(*layer) == self.appended, || {
                    format!("KV layer {layer} is appended to out of order")
                })?;
                let rows = RowSet::All;
                let expected = [kv.key_dim, kv.value_dim].map(|d| (product(kv.kv_heads, d), rows));
                let found = [self.read(*k)?, self.read(*v)?];
                require(expected == found, || format!("k, v are {found:?}, not {expected:?}"))?;
                self.appended += 1;
                Ok(())
            }
            Op::Attention { layer, q, out, shape, sinks } => {
                self.attention(*layer, [*q, *out], shape, *sinks)
            }
            Op::Softcap { x, cap } => {
                above_zero(*cap)?;
                self.read(*x).map(|_| ())
            }
        }
    }
}
