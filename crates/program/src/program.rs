//! [`Program`]: ops, the buffers and weights they name, and a text form made for diffs.

use std::fmt;

use m40_gguf::TensorType;

use crate::op::{BufferId, MatrixId, Op, RopeId, RowSet, VectorId};
use crate::rope::RopeTable;

/// An activation: `[rows, width] f32`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// For people: appears in text forms and reports.
    pub name: &'static str,
    /// Floats per row.
    pub width: usize,
    /// Which tokens have a row.
    pub rows: RowSet,
}

/// A weight matrix: consecutive rows of one tensor of the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Matrix {
    /// Tensor name in the file.
    pub tensor: String,
    /// Block format.
    pub ty: TensorType,
    /// First row of the tensor that belongs to this matrix (a fused QKV tensor holds three).
    pub first_row: usize,
    /// Outputs.
    pub rows: usize,
    /// Inputs; whole blocks of `ty`.
    pub cols: usize,
}

impl Matrix {
    /// Bytes of the matrix in its block format.
    pub fn bytes(&self) -> u64 {
        let row = self.cols / self.ty.block_len() * self.ty.block_bytes();
        self.rows as u64 * row as u64
    }
}

/// A norm gain, bias or attention sinks, used as f32 whatever its type in the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Vector {
    /// Tensor name in the file.
    pub tensor: String,
    /// First element of the tensor that belongs to this vector.
    pub first: usize,
    /// Elements.
    pub len: usize,
}

/// How the KV cache keeps the elements of a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Each as f16.
    #[default]
    F16,
    /// Each as an integer in -127..=127, and an f32 scale for a token's key, and one for its value, of
    /// a head: the largest magnitude / 127.
    Int8,
}

impl KvType {
    /// Every type.
    pub const ALL: [Self; 2] = [Self::F16, Self::Int8];

    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }

    /// Bytes of a token's key or value of a head.
    pub const fn head_bytes(self, dim: usize) -> usize {
        match self {
            Self::F16 => 2 * dim,
            Self::Int8 => dim + size_of::<f32>(),
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What one layer keeps per token in the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayer {
    /// Heads stored.
    pub kv_heads: usize,
    /// Elements per key head.
    pub key_dim: usize,
    /// Elements per value head.
    pub value_dim: usize,
    /// How they are kept.
    pub ty: KvType,
}

impl KvLayer {
    /// Bytes per token, keys and values together.
    pub fn bytes_per_token(&self) -> usize {
        self.kv_heads * (self.ty.head_bytes(self.key_dim) + self.ty.head_bytes(self.value_dim))
    }
}

/// How a text's vector is made of what the layers make of its tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// What is made of the first token.
    Cls,
    /// What is made of the last token.
    Last,
    /// What the classifier says of the first token: how well the two texts of a pair fit.
    Rank,
}

impl Pooling {
    /// As users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
            Self::Rank => "rank",
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a program makes of the hidden states; complete after the last op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// `[logits, vocab]`: what may come next.
    Logits(BufferId),
    /// `[logits, classes]`: what a cross-encoder thinks of a pair of texts.
    Classes(BufferId),
    /// Nothing: the hidden states are the result.
    None,
}

/// What the file says of the model, for reports and limits.
#[derive(Clone, Debug, PartialEq)]
pub struct Description {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`, or empty.
    pub name: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub embedding: usize,
    /// Tokens of the vocabulary: width of the logits, if there are any.
    pub vocab: usize,
    /// Tokens of context the model was trained for.
    pub context: u32,
    /// How the file says that a text's vector is made, if it does.
    pub pooling: Option<Pooling>,
}

/// A model as a flat list of ops. Having one from [`build`](crate::build) means that it passed
/// [`verify`](crate::verify::verify).
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// What the file says of the model.
    pub description: Description,
    /// Activations.
    pub buffers: Vec<Buffer>,
    /// Weights that are multiplied with.
    pub matrices: Vec<Matrix>,
    /// Norm gains, biases and attention sinks.
    pub vectors: Vec<Vector>,
    /// Rotary frequency tables.
    pub ropes: Vec<RopeTable>,
    /// KV cache layers.
    pub kv: Vec<KvLayer>,
    /// Executed in order for every pass.
    pub ops: Vec<Op>,
    /// `[logits, embedding]`: what the layers made of a token, after the last norm.
    pub hidden: BufferId,
    /// What is made of that.
    pub head: Head,
}

impl Program {
    /// The buffer behind a handle.
    pub fn buffer(&self, id: BufferId) -> &Buffer {
        &self.buffers[usize::from(id.0)]
    }

    /// The matrix behind a handle.
    pub fn matrix(&self, id: MatrixId) -> &Matrix {
        &self.matrices[id.0 as usize]
    }

    /// The vector behind a handle.
    pub fn vector(&self, id: VectorId) -> &Vector {
        &self.vectors[id.0 as usize]
    }

    /// The frequency table behind a handle.
    pub fn rope(&self, id: RopeId) -> &RopeTable {
        &self.ropes[usize::from(id.0)]
    }

    /// What is complete after the last op.
    pub fn result(&self) -> BufferId {
        match self.head {
            Head::Logits(result) | Head::Classes(result) => result,
            Head::None => self.hidden,
        }
    }

    /// The ops after which the hidden states are complete: all but those of the head.
    pub fn ops_to_hidden(&self) -> &[Op] {
        let last = self.ops.iter().rposition(|op| op.writes().contains(&self.hidden));
        &self.ops[..last.map_or(self.ops.len(), |last| last + 1)]
    }

    /// Whether no token sees those after it. Else a whole text must be in one pass.
    pub fn is_causal(&self) -> bool {
        self.ops.iter().all(|op| !matches!(op, Op::Attention { shape, .. } if !shape.causal))
    }

    /// Bytes of weights a backend must hold, each matrix counted once.
    pub fn weight_bytes(&self) -> u64 {
        let matrices: u64 = self.matrices.iter().map(Matrix::bytes).sum();
        let vectors: u64 = self.vectors.iter().map(|v| v.len as u64 * 4).sum();
        matrices + vectors
    }

    /// Bytes of KV cache per token of context, over all layers.
    pub fn kv_bytes_per_token(&self) -> usize {
        self.kv.iter().map(KvLayer::bytes_per_token).sum()
    }
}

/// An op as a line of the program's text form.
struct OpText<'a>(&'a Program, &'a Op);

impl fmt::Display for OpText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.write_op(f, self.1)
    }
}

struct MatrixText<'a>(&'a Matrix);

impl fmt::Display for MatrixText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let m = self.0;
        write!(f, "{}", m.tensor)?;
        if m.first_row > 0 {
            write!(f, "+{}", m.first_row)?;
        }
        write!(f, "[{}x{} {}]", m.rows, m.cols, m.ty.name())
    }
}

impl Program {
    /// An op in words, as in the program's text form.
    pub fn text_of<'a>(&'a self, op: &'a Op) -> impl fmt::Display + 'a {
        OpText(self, op)
    }

    fn write_op(&self, f: &mut fmt::Formatter<'_>, op: &Op) -> fmt::Result {
        let buffer = |id: &BufferId| self.buffer(*id).name;
        let matrix = |id: &MatrixId| MatrixText(self.matrix(*id));
        let vector = |id: &VectorId| self.vector(*id).tensor.as_str();
        match op {
            Op::Embed { table, scale, out } => {
                write!(f, "{} = embed {} * {scale}", buffer(out), matrix(table))
            }
            Op::AddRow { table, index, x } => {
                write!(f, "{x} = {x} + {index:?} of {}", matrix(table), x = buffer(x))
            }
            Op::Gather { x, out } => write!(f, "{} = gather {}", buffer(out), buffer(x)),
            Op::RmsNorm { x, weight, eps, residual, out } => {
                write!(
                    f,
                    "{} = rms-norm {} {} eps={eps:e}",
                    buffer(out),
                    buffer(x),
                    vector(weight)
                )?;
                residual.iter().try_for_each(|r| write!(f, " + {}", buffer(r)))
            }
            Op::Project { x, outputs } => {
                for (i, p) in outputs.iter().enumerate() {
                    let separator = if i > 0 { "; " } else { "" };
                    write!(
                        f,
                        "{separator}{} = {} * {}",
                        buffer(&p.out),
                        buffer(x),
                        matrix(&p.weight)
                    )?;
                    p.bias.iter().try_for_each(|b| write!(f, " + {}", vector(b)))?;
                    p.residual.iter().try_for_each(|r| write!(f, " + {}", buffer(r)))?;
                }
                Ok(())
            }
            Op::GatedProject { x, gate, up, activation, out } => write!(
                f,
                "{} = {activation:?}({x} * {}) . {x} * {}",
                buffer(out),
                matrix(gate),
                matrix(up),
                x = buffer(x),
            ),
            Op::LayerNorm { x, weight, bias, eps } => {
                write!(
                    f,
                    "{} = layer-norm {} {} eps={eps:e}",
                    buffer(x),
                    vector(weight),
                    vector(bias)
                )
            }
            Op::Activate { x, activation } => write!(f, "{x} = {activation:?}({x})", x = buffer(x)),
            Op::HeadNorm { x, heads, weight, eps } => {
                write!(f, "{} = head-norm x{heads} {} eps={eps:e}", buffer(x), vector(weight))
            }
            Op::Rope { x, heads, table } => {
                write!(f, "{} = rope x{heads} table={}", buffer(x), table.0)
            }
            Op::KvAppend { layer, k, v } => {
                write!(f, "kv[{layer}] <- {}, {}", buffer(k), buffer(v))?;
                match self.kv[usize::from(*layer)].ty {
                    KvType::F16 => Ok(()),
                    ty => write!(f, " as {ty}"),
                }
            }
            Op::Attention { layer, q, out, shape, sinks } => {
                write!(
                    f,
                    "{} = attention {} kv[{layer}] {}/{} heads of {}/{} scale={}",
                    buffer(out),
                    buffer(q),
                    shape.heads,
                    shape.kv_heads,
                    shape.key_dim,
                    shape.value_dim,
                    shape.scale,
                )?;
                shape.window.iter().try_for_each(|w| write!(f, " window={w}"))?;
                shape.softcap.iter().try_for_each(|c| write!(f, " softcap={c}"))?;
                if !shape.causal {
                    write!(f, " both ways")?;
                }
                sinks.iter().try_for_each(|s| write!(f, " sinks={}", vector(s)))
            }
            Op::Softcap { x, cap } => write!(f, "{} = softcap {cap}", buffer(x)),
        }
    }
}

/// One line per buffer, table and op, in order: two programs differ where their lines do.
impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let d = &self.description;
        writeln!(
            f,
            "program {} layers={} embedding={} vocab={} context={}",
            d.architecture, d.layers, d.embedding, d.vocab, d.context
        )?;
        for b in &self.buffers {
            writeln!(f, "buffer {} [{:?}, {}]", b.name, b.rows, b.width)?;
        }
        for (i, r) in self.ropes.iter().enumerate() {
            writeln!(f, "rope {i} {r}")?;
        }
        for (i, op) in self.ops.iter().enumerate() {
            write!(f, "{i:4} ")?;
            self.write_op(f, op)?;
            writeln!(f)?;
        }
        writeln!(f, "result {}", self.buffer(self.result()).name)
    }
}
