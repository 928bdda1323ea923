//! The ops of a program and the handles they use.
//!
//! Every activation is a buffer `[rows, width] f32`, row-major: one row per token of the pass, or
//! per token whose logits are wanted ([`RowSet`]). An op names buffers and weights by index; shapes
//! live in the [`Program`](crate::Program) and are checked by [`verify`](crate::verify).

/// Largest head of a KV layer, in floats: executors keep a head's sums in memory of this size.
pub const MAX_HEAD_DIM: usize = 1024;

/// Index of a [`Buffer`](crate::Buffer).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u16);

/// Index of a [`Matrix`](crate::Matrix): a weight that is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MatrixId(pub u32);

/// Index of a [`Vector`](crate::Vector): a norm gain, a bias, or the sinks of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VectorId(pub u32);

/// Index of a [`RopeTable`](crate::RopeTable).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RopeId(pub u8);

/// Which tokens of a pass have a row in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowSet {
    /// Every token of the pass.
    All,
    /// Only tokens whose logits, or hidden states, are wanted.
    Logits,
}

/// Which row of a table a token has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Index {
    /// That of its position in the text.
    Position,
    /// That of its segment; the last one where there are fewer.
    Segment,
}

/// The nonlinearity of a feed-forward block, or of its gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x * sigmoid(x)` (SwiGLU).
    Silu,
    /// The tanh form of GELU, `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (GeGLU).
    GeluTanh,
}

/// One output of a [`Op::Project`]: `out = x * weight^T (+ bias) (+ residual)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Projection {
    /// `[rows, cols]`, `cols` = width of `x`, `rows` = width of `out`.
    pub weight: MatrixId,
    /// Added to every row; length `rows`.
    pub bias: Option<VectorId>,
    /// Added element by element; may be `out` itself, but no other output of the op.
    pub residual: Option<BufferId>,
    /// Where the result goes.
    pub out: BufferId,
}

/// Geometry and scoring rule of an attention op.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key/value heads; `heads / kv_heads` query heads share each.
    pub kv_heads: usize,
    /// Floats per query and key head.
    pub key_dim: usize,
    /// Floats per value head.
    pub value_dim: usize,
    /// Multiplies each query-key product.
    pub scale: f32,
    /// A token sees itself and the `window - 1` before it; all before it when `None`.
    pub window: Option<u32>,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Whether a token sees none after it. Else it sees the whole text, which must be in one pass.
    pub causal: bool,
}

/// One step of a program.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `out[i] = table[token[i]] * scale`.
    Embed {
        /// `[vocab, width]`.
        table: MatrixId,
        /// Factor applied after dequantisation.
        scale: f32,
        /// `[all, width]`.
        out: BufferId,
    },
    /// `x[i] += table[index of i]`, in place.
    AddRow {
        /// `[rows, width]`; of positions at least as many as the model's context.
        table: MatrixId,
        /// Which row it is.
        index: Index,
        /// `[all, width]`.
        x: BufferId,
    },
    /// Keeps only the rows whose logits are wanted.
    Gather {
        /// `[all, width]`.
        x: BufferId,
        /// `[logits, width]`.
        out: BufferId,
    },
    /// `out = x / sqrt(mean(x^2) + eps) * weight (+ residual)`, row by row.
    RmsNorm {
        /// Input rows.
        x: BufferId,
        /// Gain, one float per column.
        weight: VectorId,
        /// Added to the mean square.
        eps: f32,
        /// Added after the norm; may be `out` itself.
        residual: Option<BufferId>,
        /// Output rows; may be `x` itself if there is no residual.
        out: BufferId,
    },
    /// `x = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias`, row by row, in place.
    LayerNorm {
        /// Any buffer.
        x: BufferId,
        /// Gain, one float per column.
        weight: VectorId,
        /// One float per column.
        bias: VectorId,
        /// Added to the variance.
        eps: f32,
    },
    /// One or more matrix products of the same input.
    Project {
        /// Input rows.
        x: BufferId,
        /// What is computed from them.
        outputs: Vec<Projection>,
    },
    /// `out = act(x * gate^T) * (x * up^T)`.
    GatedProject {
        /// Input rows.
        x: BufferId,
        /// `[hidden, width]`.
        gate: MatrixId,
        /// `[hidden, width]`.
        up: MatrixId,
        /// Nonlinearity of the gate.
        activation: Activation,
        /// `[.., hidden]`.
        out: BufferId,
    },
    /// `x = act(x)`, in place.
    Activate {
        /// Any buffer.
        x: BufferId,
        /// The nonlinearity.
        activation: Activation,
    },
    /// RMS norm of every head of a row by itself, in place (qk-norm).
    HeadNorm {
        /// `[.., heads * dim]`.
        x: BufferId,
        /// Heads per row.
        heads: usize,
        /// Gain, one float per element of a head, shared by the heads.
        weight: VectorId,
        /// Added to the mean square.
        eps: f32,
    },
    /// Rotary position embedding of every head, in place.
    Rope {
        /// `[all, heads * dim]`.
        x: BufferId,
        /// Heads per row.
        heads: usize,
        /// Frequencies; rotates the first `2 * inv_freq.len()` floats of a head.
        table: RopeId,
    },
    /// Stores keys and values of every row at its position in the KV cache.
    KvAppend {
        /// KV layer.
        layer: u16,
        /// `[all, kv_heads * key_dim]`.
        k: BufferId,
        /// `[all, kv_heads * value_dim]`.
        v: BufferId,
    },
    /// Softmax attention of each row over the KV cache up to its own position, or over all of it.
    Attention {
        /// KV layer, appended to before.
        layer: u16,
        /// `[all, heads * key_dim]`.
        q: BufferId,
        /// `[all, heads * value_dim]`.
        out: BufferId,
        /// Geometry and scoring rule.
        shape: AttentionShape,
        /// A learned score for each query head that takes part in its softmax and has no value, so
        /// that the weights of tokens sum up to less than 1: `out = sum(e^s_i v_i) / (sum(e^s_i) +
        /// e^sink)`. Neither scaled nor capped.
        sinks: Option<VectorId>,
    },
    /// `x = cap * tanh(x / cap)`, in place (final logits).
    Softcap {
        /// Any buffer.
        x: BufferId,
        /// Bound of the result.
        cap: f32,
    },
}

impl Op {
    /// Short name, as in the text form and in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::AddRow { .. } => "add-row",
            Self::Gather { .. } => "gather",
            Self::RmsNorm { .. } => "rms-norm",
            Self::LayerNorm { .. } => "layer-norm",
            Self::Project { .. } => "project",
            Self::GatedProject { .. } => "gated-project",
            Self::Activate { .. } => "activate",
            Self::HeadNorm { .. } => "head-norm",
            Self::Rope { .. } => "rope",
            Self::KvAppend { .. } => "kv-append",
            Self::Attention { .. } => "attention",
            Self::Softcap { .. } => "softcap",
        }
    }

    /// Buffers this op reads, including those it updates in place.
    pub fn reads(&self) -> Vec<BufferId> {
        match self {
            Self::Embed { .. } => vec![],
            Self::Gather { x, .. }
            | Self::GatedProject { x, .. }
            | Self::AddRow { x, .. }
            | Self::LayerNorm { x, .. }
            | Self::Activate { x, .. }
            | Self::HeadNorm { x, .. }
            | Self::Rope { x, .. }
            | Self::Softcap { x, .. } => vec![*x],
            Self::RmsNorm { x, residual, .. } => std::iter::once(*x).chain(*residual).collect(),
            Self::Project { x, outputs } => {
                std::iter::once(*x).chain(outputs.iter().filter_map(|p| p.residual)).collect()
            }
            Self::KvAppend { k, v, .. } => vec![*k, *v],
            Self::Attention { q, .. } => vec![*q],
        }
    }

    /// Buffers this op writes, including those it updates in place.
    pub fn writes(&self) -> Vec<BufferId> {
        match self {
            Self::Embed { out, .. }
            | Self::Gather { out, .. }
            | Self::RmsNorm { out, .. }
            | Self::GatedProject { out, .. }
            | Self::Attention { out, .. } => vec![*out],
            Self::Project { outputs, .. } => outputs.iter().map(|p| p.out).collect(),
            Self::AddRow { x, .. }
            | Self::LayerNorm { x, .. }
            | Self::Activate { x, .. }
            | Self::HeadNorm { x, .. }
            | Self::Rope { x, .. }
            | Self::Softcap { x, .. } => vec![*x],
            Self::KvAppend { .. } => vec![],
        }
    }
}
