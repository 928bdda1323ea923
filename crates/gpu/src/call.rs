//! Kernels for passes of many rows (kernels/rows.cu, gemm.cu, sample.cu), and calls of them as data.

use m40_cuda::{ElementType, Param, Signature};
use m40_program::{KvType, VectorId};

use crate::lower::FusedId;

/// Index of a buffer of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BufferId(pub usize);

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg {
    /// The whole arena.
    Arena,
    /// These words of a buffer, which are read.
    Read(BufferId, Words),
    /// These words of a buffer, which are written, and may be read.
    Write(BufferId, Words),
    /// The planes of a matrix.
    Matrix(FusedId),
    /// A vector of the program, f32.
    Vector(VectorId),
    /// The pages of a KV layer, which are read.
    Cache(u16),
    /// The pages of a KV layer, which are written.
    CacheMut(u16),
    /// The words by which the host ends sequences.
    Cancels,
    /// A number.
    U32(u32),
    /// A number.
    U64(u64),
    /// A number.
    F32(f32),
}

/// Words of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words {
    /// The first.
    pub first: usize,
    /// How many.
    pub len: usize,
}

/// A launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The kernel.
    pub kernel: RowsKernel,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Arguments, as [`RowsKernel::signature`] has them.
    pub args: Vec<Arg>,
}

/// A kernel for many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowsKernel {
    /// Embeddings from a table of this [`weight_type`](crate::ops::weight_type).
    Embed(u32),
    /// Chosen rows of a buffer.
    Gather,
    /// An RMS norm of rows.
    RmsNorm,
    /// Cosines and sines.
    Angles,
    /// Norms and rotations of heads.
    Heads,
    /// Keys and values into a cache of this type.
    KvAppend(KvType),
    /// Attention over a cache of this type, by index into [`ATTENTION`].
    Attention(KvType, usize),
    /// The same of single rows, by index into [`SINGLE_ATTENTION`].
    SingleAttention(KvType, usize),
    /// Products with a matrix of this [`weight_type`](crate::ops::weight_type), by index into
    /// [`TILES`].
    Gemm(u32, usize),
    /// The sum of partial products.
    GemmSum,
    /// The sum of partial products, and its RMS norm.
    SumNorm,
    /// The sums of partial products of a gate and what it gates.
    SumGate,
    /// The sum of partial products of queries, keys and values, and what becomes of them.
    SumHeads,
    /// What becomes of rows.
    Choose,
}

/// Rows of a GEMM's tile, most first.
pub const TILES: [usize; 4] = [128, 64, 32, 16];

/// Rows of the largest tile whose launches may take two matrices.
pub const PAIR_TILE: usize = 32;

/// An attention kernel.
#[derive(Clone, Copy, Debug)]
pub struct AttentionKernel {
    /// The longest value head.
    pub value_dim: usize,
    /// Queries of a warp.
    pub queries: usize,
    /// Threads of a block, at most.
    pub threads: usize,
}

/// Attention kernels, shortest heads first.
pub const ATTENTION: [AttentionKernel; 5] = [
    AttentionKernel { value_dim: 64, queries: 8, threads: 256 },
    AttentionKernel { value_dim: 128, queries: 8, threads: 256 },
    AttentionKernel { value_dim: 256, queries: 8, threads: 128 },
    AttentionKernel { value_dim: 512, queries: 4, threads: 128 },
    AttentionKernel { value_dim: 1024, queries: 2, threads: 128 },
];

/// Those for single rows, of a multiple of 32 floats a key and no more heads a KV head than queries.
/// What comes of them is the same.
pub const SINGLE_ATTENTION: [AttentionKernel; 2] = [
    AttentionKernel { value_dim: 64, queries: 4, threads: 256 },
    AttentionKernel { value_dim: 128, queries: 4, threads: 256 },
];

const BYTES: Param = Param::Read(ElementType::U8);
const READ: Param = Param::Read(ElementType::U32);
const WRITE: Param = Param::Write(ElementType::U32);
const U32: Param = Param::Scalar(ElementType::U32);
const U64: Param = Param::Scalar(ElementType::U64);
const F32: Param = Param::Scalar(ElementType::F32);

/// weights, high, scales, tops, supers, vocab, cols, rows, scale, out, out_stride
const EMBED_PARAMS: &[Param] = &[BYTES, U64, U64, U64, U64, U32, U32, READ, F32, WRITE, U32];

/// weights, high, scales, tops, supers, rows, cols, x, x_stride, m, y, y_stride, bias, other,
/// flags, softcap, partials, splits, second
const GEMM_PARAMS: &[Param] = &[
    BYTES, U64, U64, U64, U64, U32, U32, READ, U32, U32, WRITE, U32, BYTES, READ, U32, F32, WRITE,
    U32, BYTES,
];

/// arena, rows, tiles, tile_count, q, q_stride, cache, page_places, heads, kv_heads, key_dim,
/// value_dim, scale, softcap, window, sinks, has_sinks, out, out_stride
const ATTENTION_PARAMS: &[Param] = &[
    Param::Arena,
    READ,
    READ,
    U32,
    READ,
    U32,
    BYTES,
    U32,
    U32,
    U32,
    U32,
    U32,
    F32,
    F32,
    U32,
    BYTES,
    U32,
    WRITE,
    U32,
];

/// x, x_stride, index, cols, out, out_stride
static GATHER: Signature =
    Signature { name: "rows_gather", params: &[READ, U32, READ, U32, WRITE, U32] };

/// x, x_stride, gain, eps, cols, residual, residual_stride, add, out, out_stride
static RMS_NORM: Signature = Signature {
    name: "rows_rms_norm",
    params: &[READ, U32, BYTES, F32, U32, READ, U32, U32, WRITE, U32],
};

/// rows, count, inverse_frequencies, pairs, magnitude, angles
static ANGLES: Signature =
    Signature { name: "rows_angles", params: &[READ, U32, READ, U32, F32, WRITE] };

/// x, x_stride, count, heads, dim, ops, gain, eps, angles, pairs
static HEADS: Signature = Signature {
    name: "rows_heads",
    params: &[WRITE, U32, U32, U32, U32, U32, BYTES, F32, READ, U32],
};

/// arena, rows, count, k, k_stride, v, v_stride, kv_heads, key_dim, value_dim, ops, gain, eps,
/// angles, pairs, cache, page_places
static KV_APPEND: Signature = Signature {
    name: "rows_kv_append",
    params: &[
        Param::Arena,
        READ,
        U32,
        READ,
        U32,
        READ,
        U32,
        U32,
        U32,
        U32,
        U32,
        BYTES,
        F32,
        READ,
        U32,
        Param::Write(ElementType::U8),
        U32,
    ],
};

/// arena, rows, count, k, k_stride, v, v_stride, kv_heads, key_dim, value_dim, cache, page_places
static KV_APPEND_INT8: Signature = Signature {
    name: "rows_kv_append_int8",
    params: &[
        Param::Arena,
        READ,
        U32,
        READ,
        U32,
        READ,
        U32,
        U32,
        U32,
        U32,
        Param::Write(ElementType::U8),
        U32,
    ],
};

/// partials, splits, rows, m, y, y_stride, bias, other, flags, softcap
static GEMM_SUM: Signature = Signature {
    name: "gemm_sum",
    params: &[READ, U32, U32, U32, WRITE, U32, BYTES, READ, U32, F32],
};

/// partials, splits, cols, m, y, y_stride, bias, other, flags, gain, eps, out, out_stride
static SUM_NORM: Signature = Signature {
    name: "rows_sum_norm",
    params: &[READ, U32, U32, U32, WRITE, U32, BYTES, READ, U32, BYTES, F32, WRITE, U32],
};

/// partials, splits, rows, m, y, y_stride, flags
static SUM_GATE: Signature =
    Signature { name: "rows_sum_gate", params: &[READ, U32, U32, U32, WRITE, U32, U32] };

/// arena, rows, count, partials, splits, width, bias, q, q_stride, heads, kv_heads, key_dim,
/// value_dim, ops, q_gain, k_gain, eps, angles, pairs, cache, page_places
static SUM_HEADS: Signature = Signature {
    name: "rows_sum_heads",
    params: &[
        Param::Arena,
        READ,
        U32,
        READ,
        U32,
        U32,
        BYTES,
        WRITE,
        U32,
        U32,
        U32,
        U32,
        U32,
        U32,
        BYTES,
        BYTES,
        F32,
        READ,
        U32,
        Param::Write(ElementType::U8),
        U32,
    ],
};

/// arena, rows, ran, logits, vocab, stride, choices, endings, cancels, nexts
static CHOOSE: Signature = Signature {
    name: "rows_choose",
    params: &[Param::Arena, WRITE, WRITE, WRITE, U32, U32, U32, U32, Param::Mailbox, WRITE],
};

macro_rules! attentions {
    ($kv:literal) => {
        [
            Signature { name: concat!("rows_attention_d64", $kv), params: ATTENTION_PARAMS },
            Signature { name: concat!("rows_attention_d128", $kv), params: ATTENTION_PARAMS },
            Signature { name: concat!("rows_attention_d256", $kv), params: ATTENTION_PARAMS },
            Signature { name: concat!("rows_attention_d512", $kv), params: ATTENTION_PARAMS },
            Signature { name: concat!("rows_attention_d1024", $kv), params: ATTENTION_PARAMS },
        ]
    };
}

static ATTENTIONS: [Signature; 5] = attentions!("");
static INT8_ATTENTIONS: [Signature; 5] = attentions!("_int8");

static SINGLE_ATTENTIONS: [Signature; 2] = [
    Signature { name: "rows_attention_single_d64", params: ATTENTION_PARAMS },
    Signature { name: "rows_attention_single_d128", params: ATTENTION_PARAMS },
];
static INT8_SINGLE_ATTENTIONS: [Signature; 2] = [
    Signature { name: "rows_attention_single_d64_int8", params: ATTENTION_PARAMS },
    Signature { name: "rows_attention_single_d128_int8", params: ATTENTION_PARAMS },
];

macro_rules! by_type {
    ($($ty:literal)+) => {
        static EMBEDS: [Signature; 16] = [
            $(Signature { name: concat!("rows_embed_", $ty), params: EMBED_PARAMS },)+
        ];
        static GEMMS: [[Signature; 4]; 16] = [
            $([
                Signature { name: concat!("gemm_", $ty, "_m128"), params: GEMM_PARAMS },
                Signature { name: concat!("gemm_", $ty, "_m64"), params: GEMM_PARAMS },
                Signature { name: concat!("gemm_", $ty, "_m32"), params: GEMM_PARAMS },
                Signature { name: concat!("gemm_", $ty, "_m16"), params: GEMM_PARAMS },
            ],)+
        ];
    };
}

by_type! {
    "f32" "f16" "bf16" "q4_0" "q4_1" "q5_0" "q5_1" "q8_0"
    "q2_k" "q3_k" "q4_k" "q5_k" "q6_k" "iq4_nl" "iq4_xs" "mxfp4"
}

impl RowsKernel {
    /// Its name and parameters.
    pub fn signature(self) -> &'static Signature {
        match self {
            Self::Embed(ty) => &EMBEDS[ty as usize],
            Self::Gather => &GATHER,
            Self::RmsNorm => &RMS_NORM,
            Self::Angles => &ANGLES,
            Self::Heads => &HEADS,
            Self::KvAppend(KvType::F16) => &KV_APPEND,
            Self::KvAppend(KvType::Int8) => &KV_APPEND_INT8,
            Self::Attention(KvType::F16, index) => &ATTENTIONS[index],
            Self::Attention(KvType::Int8, index) => &INT8_ATTENTIONS[index],
            Self::SingleAttention(KvType::F16, index) => &SINGLE_ATTENTIONS[index],
            Self::SingleAttention(KvType::Int8, index) => &INT8_SINGLE_ATTENTIONS[index],
            Self::Gemm(ty, tile) => &GEMMS[ty as usize][tile],
            Self::GemmSum => &GEMM_SUM,
            Self::SumNorm => &SUM_NORM,
            Self::SumGate => &SUM_GATE,
            Self::SumHeads => &SUM_HEADS,
            Self::Choose => &CHOOSE,
        }
    }
}

#[cfg(test)]
mod tests {
    use m40_gguf::TensorType;

    use super::*;
    use crate::ops::weight_type;

    #[test]
    fn kernels_are_named_after_types_and_tiles() {
        for ty in TensorType::ALL {
            let Some(number) = weight_type(*ty) else { continue };
            let name = ty.name().to_lowercase();
            let embed = RowsKernel::Embed(number).signature().name;
            assert_eq!(embed, format!("rows_embed_{name}"));
            for (i, tile) in TILES.iter().enumerate() {
                let gemm = RowsKernel::Gemm(number, i).signature().name;
                assert_eq!(gemm, format!("gemm_{name}_m{tile}"));
            }
        }
        for (ty, suffix) in [(KvType::F16, ""), (KvType::Int8, "_int8")] {
            for (i, kernel) in ATTENTION.iter().enumerate() {
                let name = RowsKernel::Attention(ty, i).signature().name;
                assert_eq!(name, format!("rows_attention_d{}{suffix}", kernel.value_dim));
            }
            for (i, kernel) in SINGLE_ATTENTION.iter().enumerate() {
                let name = RowsKernel::SingleAttention(ty, i).signature().name;
                assert_eq!(name, format!("rows_attention_single_d{}{suffix}", kernel.value_dim));
            }
        }
    }
}
