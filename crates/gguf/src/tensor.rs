//! The tensor table.

use std::fmt;
use std::ops::Range;

use crate::TensorType;

/// The most dimensions a tensor has.
pub const MAX_DIMS: usize = 4;

/// The dimensions of a tensor, in GGUF's order: the one that varies fastest in memory first.
///
/// A weight matrix that maps `n` inputs to `m` outputs has dims `[n, m]`: `m` rows of `n` weights.
/// Having a `Dims` means: 1 to 4 dimensions, none zero, and their product fits a `usize`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dims {
    /// Sizes; 1 behind the last dimension.
    sizes: [usize; MAX_DIMS],
    count: u8,
}

impl Dims {
    /// Dimensions of these sizes; `None` when there are none or more than four, one is zero, or the
    /// product overflows.
    pub fn new(sizes: &[usize]) -> Option<Self> {
        let mut dims = Self { sizes: [1; MAX_DIMS], count: u8::try_from(sizes.len()).ok()? };
        dims.sizes.get_mut(..sizes.len())?.copy_from_slice(sizes);
        let elements = sizes.iter().try_fold(1usize, |product, &n| product.checked_mul(n))?;
        (!sizes.is_empty() && elements > 0).then_some(dims)
    }

    /// Weights in a row: the fastest dimension.
    pub const fn cols(&self) -> usize {
        self.sizes[0]
    }

    /// Rows: the product of all dimensions but the fastest.
    pub const fn rows(&self) -> usize {
        self.sizes[1] * self.sizes[2] * self.sizes[3]
    }

    /// Weights in all.
    pub const fn elements(&self) -> usize {
        self.cols() * self.rows()
    }

    /// The sizes, fastest first, as many as the file gives.
    pub fn as_slice(&self) -> &[usize] {
        &self.sizes[..usize::from(self.count)]
    }

    /// The size of dimension `index`, 1 behind the last.
    pub fn get(&self, index: usize) -> usize {
        self.sizes.get(index).copied().unwrap_or(1)
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_slice())
    }
}

/// Writes `[640, 256]`, fastest first.
impl fmt::Display for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_slice())
    }
}

/// A tensor's entry in the table of a [`Gguf`](crate::Gguf).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// How the weights are stored.
    pub ty: TensorType,
    /// The shape, fastest dimension first.
    pub dims: Dims,
    pub(crate) shard: u32,
    pub(crate) start: usize,
    pub(crate) size: usize,
}

impl TensorInfo {
    /// Bytes of the tensor's data.
    pub const fn size_bytes(&self) -> usize {
        self.size
    }

    /// The shard that holds the data, from 0.
    pub const fn shard(&self) -> usize {
        self.shard as usize
    }

    /// Where the data lie in their shard's bytes.
    pub const fn range(&self) -> Range<usize> {
        self.start..self.start + self.size
    }
}

/// A tensor with its data.
#[derive(Clone, Copy)]
pub struct Tensor<'a> {
    /// The name.
    pub name: &'a str,
    /// How the weights are stored.
    pub ty: TensorType,
    /// The shape, fastest dimension first.
    pub dims: Dims,
    /// `dims.rows() * ty.row_bytes(dims.cols())` bytes, row after row.
    pub data: &'a [u8],
}

impl fmt::Debug for Tensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {} {}, {} bytes", self.name, self.ty, self.dims, self.data.len())
    }
}
