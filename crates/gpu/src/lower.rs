//! From a [`Program`] to the ops of a decode pass: which ops of the program become one op of the
//! card, where rows of activations lie, and which ops wait for which.
//!
//! It is a pure function, and what it makes names no address: [`Lowered::assemble`] puts in where
//! weights, KV pages and scratch memory lie. Nothing here depends on the rows of a pass, so a row's
//! results do not depend on what else is in its pass.
//!
//! | module | does |
//! |---|---|
//! | `fuse` | walks the program and makes steps of its ops |
//! | `uses` | who reads what an op of the program wrote |
//! | `store` | regions of scratch memory, and which buffer lies where |
//! | `order` | barriers |
//! | `marks` | barriers that need no fence |
//! | `assemble` | steps to words |
//! | `text` | steps to text |

mod assemble;
mod fuse;
mod marks;
mod order;
mod store;
mod text;
mod uses;

use std::ops::Range;

use m40_gguf::TensorType;
use m40_program::{Activation, AttentionShape, MatrixId, Program, RopeId, VectorId};

pub(crate) use assemble::page_places;
pub use assemble::{AssembleError, Places};
pub use marks::Marks;
pub use store::{Memory, Region, RegionId, View};
pub use text::Text;

/// What a program is lowered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Blocks of the grid: one on each multiprocessor.
    pub blocks: u32,
    /// Tokens of the longest context served.
    pub context: u32,
}

/// Why a program does not run on the card.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// No op of the card does what an op of the program does.
    #[error("op {index} ({op}) does not run on the gpu: {why}; run the model on the cpu")]
    Op {
        /// Position in the program.
        index: usize,
        /// Its name.
        op: &'static str,
        /// What is in the way.
        why: String,
    },
    /// Kernels have no code for a type of weights.
    #[error(
        "tensor {tensor} has type {ty}, which the gpu does not run; convert the model to another type"
    )]
    Type {
        /// Its name.
        tensor: String,
        /// Its type.
        ty: TensorType,
    },
    /// Something of the program as a whole.
    #[error("the program does not run on the gpu: {0}; run the model on the cpu")]
    Program(String),
}

/// A program as ops of the card.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// What it was lowered for.
    pub target: Target,
    /// Matrices to be placed: each is those of the program one below the other, in one set of
    /// planes. All have the same type and columns.
    pub matrices: Vec<Vec<MatrixId>>,
    /// Scratch memory.
    pub regions: Vec<Region>,
    /// The ops, in order.
    pub ops: Vec<LoweredOp>,
    /// Where rows whose logits are not wanted could be left out. Decode passes have none.
    pub gathers: Vec<Gather>,
    /// Where the logits are after all of them.
    pub logits: View,
    /// Where the chosen tokens are: `[passes of a launch][pass rows]`
    /// [`Next`](crate::ops::Next).
    pub chosen: RegionId,
}

/// A step and its barriers.
#[derive(Clone, Debug, PartialEq)]
pub struct LoweredOp {
    /// All blocks have ended the ops before when a block begins it.
    pub awaits: bool,
    /// The next op awaits this one.
    pub announces: bool,
    /// Whoever reads what was written up to here sees by marks whether it has arrived.
    pub open: bool,
    /// Last bits of numbers.
    pub marks: Marks,
    /// Blocks of the grid that do it: all of them, but of products that share the card.
    pub blocks: Range<u32>,
    /// What it does.
    pub step: Step,
}

/// From some op on, only rows whose logits are wanted matter of a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    /// The op.
    pub op: usize,
    /// The view.
    pub view: View,
}

/// An index into [`Lowered::matrices`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FusedId(pub usize);

/// An op of the card before places are known.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each is its structure")]
pub enum Step {
    Embed(Embed),
    Matvec(Matvec),
    Attention(Attention),
    Norm(Norm),
    Sample(Sample),
}

/// See [`EmbedOp`](crate::ops::EmbedOp).
#[derive(Clone, Debug, PartialEq)]
pub struct Embed {
    /// `[vocab, width]`.
    pub table: FusedId,
    /// On every number.
    pub scale: f32,
    /// The rows.
    pub out: View,
    /// Of each rotary table of the program, its frequencies and where angles go.
    pub ropes: Vec<Rope>,
}

/// A rotary table's memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// `[pairs] f32`.
    pub inverse_frequencies: RegionId,
    /// Of a head.
    pub pairs: usize,
    /// Factor on cosines and sines.
    pub magnitude: f32,
    /// `[pass rows][pairs] {cos, sin} f32`.
    pub angles: RegionId,
}

/// What a matvec multiplies with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Input {
    /// The rows as they are.
    Plain(View),
    /// The rows, normed.
    RmsNorm {
        /// The rows.
        x: View,
        /// Of the norm.
        gain: VectorId,
        /// Of the norm.
        eps: f32,
    },
    /// The rows with another block's normed output added, which becomes the stream, normed.
    AddRmsNorm {
        /// The stream before.
        x: View,
        /// What is added.
        block: View,
        /// Of the block's norm.
        block_gain: VectorId,
        /// Of the block's norm.
        block_eps: f32,
        /// The stream after; `None` when another op stores it.
        stream: Option<View>,
        /// Of the norm.
        gain: VectorId,
        /// Of the norm.
        eps: f32,
    },
}

/// What multiplies a matvec's results, or makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// `y = act(x W^T) * (x U^T)`.
    Up(FusedId, Activation),
    /// `y = act(gate) * (x W^T)`.
    By(View, Activation),
}

/// See [`MatvecOp`](crate::ops::MatvecOp).
#[derive(Clone, Debug, PartialEq)]
pub struct Matvec {
    /// W.
    pub weights: FusedId,
    /// Type of W.
    pub ty: TensorType,
    /// Rows of W.
    pub rows: usize,
    /// Columns of W.
    pub cols: usize,
    /// What it is multiplied with.
    pub input: Input,
    /// Whether the results are gated.
    pub gating: Option<Gating>,
    /// Biases of the parts of W: one for each of its matrices, or none.
    pub biases: Vec<VectorId>,
    /// Added.
    pub residual: Option<View>,
    /// The results.
    pub y: View,
    /// Bound of the results.
    pub softcap: Option<f32>,
    /// The largest result of each block.
    pub maxima: Option<RegionId>,
    /// Sums of parts of the columns, where kernels of many rows deal those to blocks.
    pub sums: Option<RegionId>,
}

/// See [`AttentionOp`](crate::ops::AttentionOp).
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// KV layer.
    pub layer: u16,
    /// Geometry and scoring rule.
    pub shape: AttentionShape,
    /// Scores that have no value, one for each query head.
    pub sinks: Option<VectorId>,
    /// Queries, before norm and rotation.
    pub q: View,
    /// Keys, before norm and rotation.
    pub k: View,
    /// Values.
    pub v: View,
    /// Gain of the queries' norm.
    pub q_gain: Option<VectorId>,
    /// Gain of the keys' norm.
    pub k_gain: Option<VectorId>,
    /// Of both norms.
    pub norm_eps: f32,
    /// The rotation of both.
    pub rope: Option<RopeId>,
    /// Where the angles are.
    pub angles: Option<RegionId>,
    /// Partial results of chunks.
    pub partials: RegionId,
    /// Blocks that have left partial results.
    pub arrivals: RegionId,
    /// The results.
    pub out: View,
}

/// See [`NormOp`](crate::ops::NormOp).
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// The rows.
    pub x: View,
    /// Of the norm.
    pub gain: VectorId,
    /// Of the norm.
    pub eps: f32,
    /// Added.
    pub residual: Option<View>,
    /// The results.
    pub out: View,
}

/// See [`SampleOp`](crate::ops::SampleOp).
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Complete logits.
    pub logits: View,
    /// The largest of each block.
    pub maxima: RegionId,
    /// What is chosen.
    pub chosen: RegionId,
}

/// Lowers a program.
///
/// # Errors
/// [`LowerError`], naming the op or the tensor: the card runs what the architectures of
/// `m40_program` are made of, and nothing is run that is only partly understood.
pub fn lower(program: &Program, target: Target) -> Result<Lowered, LowerError> {
    let fused = fuse::fuse(program, target)?;
    let mut ops = order::order(fused.steps, target.blocks);
    marks::mark(&mut ops);
    Ok(Lowered {
        target,
        matrices: fused.matrices,
        regions: fused.regions,
        ops,
        gathers: fused.gathers,
        logits: fused.logits,
        chosen: fused.chosen,
    })
}

impl Lowered {
    /// The region behind a handle.
    pub fn region(&self, id: RegionId) -> &Region {
        &self.regions[id.0]
    }

    /// Bytes of scratch memory, each region at a multiple of 128 bytes.
    pub fn scratch_bytes(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.offset + region.padded_bytes())
    }

    /// What scratch memory holds before the first pass: constants, and zeros.
    pub fn scratch_image(&self) -> Vec<u8> {
        let bytes = usize::try_from(self.scratch_bytes()).expect("scratch memory is addressable");
        let mut image = vec![0; bytes];
        for region in &self.regions {
            let start = usize::try_from(region.offset).expect("within scratch memory");
            let words = image[start..].as_chunks_mut::<4>().0;
            for (word, value) in words.iter_mut().zip(&region.contents) {
                *word = value.to_le_bytes();
            }
        }
        image
    }

    /// Chunks of the longest context.
    pub fn chunks(&self) -> u32 {
        chunks(self.target.context)
    }
}

/// Chunks of a context of so many tokens.
fn chunks(context: u32) -> u32 {
    context.max(1).div_ceil(crate::ops::CHUNK_TOKENS as u32)
}
