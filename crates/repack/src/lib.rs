//! Turns the blocks of a GGUF tensor into planes: the form in which GPU kernels read weights.
//!
//! A ggml block mixes scales and weights in 17 to 210 bytes, so that a GPU's threads could only
//! read it in pieces of two bytes. Here each kind of content lies in a plane of its own, in
//! naturally aligned words, and weights in an order that a kernel turns into floats without
//! conversion instructions. It stays the same information: [`unpack`] gives back every weight bit
//! for bit, and a matrix grows by less than 2 %.
//!
//! Terms: a *group* is 32 consecutive columns of one row, which one GPU thread handles at a time; a
//! *quad* is 4 consecutive rows. The layouts, and why they are so, are tabled in
//! `kernels/README.md`.
//!
//! Never touches a driver, and has no `unsafe` code.
//!
//! ```
//! use m40_gguf::TensorType;
//! use m40_repack::{Layout, repack, unpack};
//!
//! let layout = Layout::of(TensorType::Q8_0, 5, 64)?;
//! let blocks = vec![0; 5 * 2 * 34];
//! let mut planes = vec![0; layout.bytes()];
//! repack(&layout, &blocks, &mut planes)?;
//! assert_eq!(unpack(&layout, &planes)?, [0.0; 5 * 64]);
//! # Ok::<(), m40_repack::RepackError>(())
//! ```
#![forbid(unsafe_code)]

mod format;
mod formats;
mod layout;
mod order;
mod packing;
mod stripe;

use m40_gguf::TensorType;

pub use layout::{Layout, Plane, Role};
pub use stripe::Stripe;

/// Why weights could not be brought into planes or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RepackError {
    /// The GPU has no layout for this type.
    #[error("tensor type {ty} has no GPU layout; convert the model to a supported type")]
    Unsupported {
        /// The type.
        ty: TensorType,
    },
    /// Rows are not whole blocks.
    #[error("rows of {cols} weights are no whole number of {ty} blocks of {}", ty.block_len())]
    PartialBlock {
        /// The type.
        ty: TensorType,
        /// Weights in a row.
        cols: usize,
    },
    /// No row, or no column.
    #[error("a matrix of {rows} rows and {cols} columns has no weights")]
    Empty {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
    },
    /// The size does not fit in an address.
    #[error("{rows} rows of {cols} {ty} weights exceed the address space")]
    TooLarge {
        /// The type.
        ty: TensorType,
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
    },
    /// The blocks given are not those of the rows.
    #[error("{rows} rows of blocks are {expected} bytes, {given} were given")]
    BlockBytes {
        /// Rows to fill.
        rows: usize,
        /// Bytes of their blocks.
        expected: usize,
        /// Bytes given.
        given: usize,
    },
    /// The memory given for planes has another size than the layout.
    #[error("the planes are {expected} bytes, {given} were given")]
    PlaneBytes {
        /// [`Layout::bytes`].
        expected: usize,
        /// Bytes given.
        given: usize,
    },
}

/// Whether a GPU layout exists for the type.
pub const fn is_supported(ty: TensorType) -> bool {
    formats::shape_of(ty).is_some()
}

/// Writes the planes of a whole matrix.
///
/// `blocks` is the tensor's data, `layout.rows()` rows of GGUF blocks; all of `planes`
/// ([`Layout::bytes`] long) is written, padding included. To split the work over threads, use
/// [`Layout::stripes`].
///
/// # Errors
/// [`RepackError::BlockBytes`] or [`RepackError::PlaneBytes`] when a length is not the layout's.
pub fn repack(layout: &Layout, blocks: &[u8], planes: &mut [u8]) -> Result<(), RepackError> {
    layout.check_blocks(layout.rows(), blocks)?;
    for stripe in layout.stripes(planes, layout.rows())? {
        stripe.fill(blocks)?;
    }
    Ok(())
}

/// The weights in planes, row by row: `rows * cols` numbers.
///
/// A reference for tests and diagnosis: equal bit for bit to [`m40_gguf::dequantize`] of the blocks
/// that were repacked.
///
/// # Errors
/// [`RepackError::PlaneBytes`] when `planes` has not the layout's size.
pub fn unpack(layout: &Layout, planes: &[u8]) -> Result<Vec<f32>, RepackError> {
    layout.check_planes(planes.len())?;
    Ok(formats::unpack(layout, planes))
}
