//! Reference dequantisation: blocks to `f32`, the plain way.
//!
//! The layouts and the order of the arithmetic are those of the Python package `gguf` 0.19
//! (`gguf/quants.py`), which follows ggml's C; results are equal bit for bit, which
//! `tests/vectors.rs` shows. Every product and sum is rounded to `f32`, never fused.
//!
//! | types | block | layout |
//! |---|---|---|
//! | `F32` `F16` `BF16` | 1 weight | the value |
//! | `Q4_0` `Q4_1` `Q5_0` `Q5_1` `Q8_0` `IQ4_NL` `MXFP4` | 32 weights | [`simple`] |
//! | `Q2_K` `Q3_K` `Q4_K` `Q5_K` `Q6_K` `IQ4_XS` | 256 weights | [`super_blocks`] |

mod simple;
mod super_blocks;

use crate::TensorType;

/// Why blocks were not dequantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DequantizeError {
    /// No dequantisation for this type here.
    #[error("tensor type {ty} cannot be dequantised")]
    Unsupported {
        /// The type.
        ty: TensorType,
    },
    /// The bytes are not whole blocks.
    #[error("{bytes} bytes are no whole number of {ty} blocks of {} bytes", ty.block_bytes())]
    PartialBlock {
        /// The type.
        ty: TensorType,
        /// Bytes given.
        bytes: usize,
    },
    /// The output has another number of weights than the blocks.
    #[error("the blocks hold {expected} weights, the output {given}")]
    OutputLength {
        /// Weights in the blocks.
        expected: usize,
        /// Length of the output.
        given: usize,
    },
}

/// Whether [`dequantize`] knows the type.
pub const fn is_dequantizable(ty: TensorType) -> bool {
    kernel(ty).is_some()
}

/// Dequantises whole blocks, bit for bit as the Python package `gguf` does.
///
/// `blocks` is `n * ty.block_bytes()` bytes, `out` is `n * ty.block_len()` weights, for any `n`.
///
/// # Errors
/// [`DequantizeError`] when the type has no dequantisation here (see [`is_dequantizable`]) or the
/// lengths do not agree; `out` is untouched then.
pub fn dequantize(ty: TensorType, blocks: &[u8], out: &mut [f32]) -> Result<(), DequantizeError> {
    let kernel = kernel(ty).ok_or(DequantizeError::Unsupported { ty })?;
    if !blocks.len().is_multiple_of(ty.block_bytes()) {
        return Err(DequantizeError::PartialBlock { ty, bytes: blocks.len() });
    }
    let expected = (blocks.len() / ty.block_bytes()).saturating_mul(ty.block_len());
    if expected != out.len() {
        return Err(DequantizeError::OutputLength { expected, given: out.len() });
    }
    kernel(blocks, out);
    Ok(())
}

/// Dequantises blocks whose lengths were checked.
type Kernel = fn(&[u8], &mut [f32]);

const fn kernel(ty: TensorType) -> Option<Kernel> {
    Some(match ty {
        TensorType::F32 => |blocks, out| each(blocks, out, |b, o| *o = [f32::from_le_bytes(*b)]),
        TensorType::F16 => |blocks, out| each(blocks, out, |b, o| *o = [f16(*b)]),
        TensorType::BF16 => |blocks, out| each(blocks, out, |b, o| *o = [bf16(*b)]),
        TensorType::Q4_0 => |blocks, out| each(blocks, out, simple::q4_0),
        TensorType::Q4_1 => |blocks, out| each(blocks, out, simple::q4_1),
        TensorType::Q5_0 => |blocks, out| each(blocks, out, simple::q5_0),
        TensorType::Q5_1 => |blocks, out| each(blocks, out, simple::q5_1),
        TensorType::Q8_0 => |blocks, out| each(blocks, out, simple::q8_0),
        TensorType::IQ4NL => |blocks, out| each(blocks, out, simple::iq4_nl),
        TensorType::MXFP4 => |blocks, out| each(blocks, out, simple::mxfp4),
        TensorType::Q2K => |blocks, out| each(blocks, out, super_blocks::q2_k),
        TensorType::Q3K => |blocks, out| each(blocks, out, super_blocks::q3_k),
        TensorType::Q4K => |blocks, out| each(blocks, out, super_blocks::q4_k),
        TensorType::Q5K => |blocks, out| each(blocks, out, super_blocks::q5_k),
        TensorType::Q6K => |blocks, out| each(blocks, out, super_blocks::q6_k),
        TensorType::IQ4XS => |blocks, out| each(blocks, out, super_blocks::iq4_xs),
        _ => return None,
    })
}

/// Applies `block` to each block of `B` bytes and its `N` weights.
fn each<const B: usize, const N: usize>(
    blocks: &[u8],
    out: &mut [f32],
    block: impl Fn(&[u8; B], &mut [f32; N]),
) {
    let (blocks, _) = blocks.as_chunks::<B>();
    let (out, _) = out.as_chunks_mut::<N>();
    for (bytes, weights) in blocks.iter().zip(out) {
        block(bytes, weights);
    }
}

fn f16(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

fn bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// The f16 at byte `at` of a block.
fn f16_at<const B: usize>(block: &[u8; B], at: usize) -> f32 {
    f16([block[at], block[at + 1]])
}
