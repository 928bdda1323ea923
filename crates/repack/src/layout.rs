//! Where the planes of a matrix lie.

use m40_gguf::TensorType;

use crate::format::Shape;
use crate::stripe::Stripe;
use crate::{RepackError, formats};

/// Planes start at multiples of this many bytes: a cache line, so that a warp's loads of 512 bytes
/// touch no more lines than they must.
const PLANE_ALIGNMENT: usize = 128;

/// Columns of a group.
pub(crate) const GROUP: usize = 32;

/// Columns that share a super-scale.
pub(crate) const SUPER: usize = 256;

/// Rows of a quad.
pub(crate) const QUAD: usize = 4;

/// What a plane holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Weights, or their low bits.
    Quants,
    /// High bits of weights.
    High,
    /// Scales (and minimums) of groups.
    Scales,
    /// High four bits of 12-bit scales.
    ScaleTops,
    /// Scales of scales.
    Supers,
}

impl Role {
    /// All roles, in the order in which their planes lie.
    pub const ALL: [Self; 5] =
        [Self::Quants, Self::High, Self::Scales, Self::ScaleTops, Self::Supers];
}

/// A plane of a [`Layout`]: one stretch of bytes for each quad, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// First byte, counted from the start of the matrix.
    pub offset: usize,
    /// Bytes of a quad; 0 when the type has no such plane.
    ///
    /// So the rows `4 q..` of a matrix start at `offset + q * quad_bytes`. A slab of rows can be
    /// repacked by itself, with the layout of a matrix of that many rows, and copied there plane by
    /// plane.
    pub quad_bytes: usize,
}

/// The planes of a matrix of `rows` by `cols` weights of one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    ty: TensorType,
    rows: usize,
    cols: usize,
    planes: [Plane; Role::ALL.len()],
    bytes: usize,
}

impl Layout {
    /// The layout of a matrix: a function of these three values alone.
    ///
    /// # Errors
    /// [`RepackError::Unsupported`], [`RepackError::Empty`], [`RepackError::PartialBlock`] or
    /// [`RepackError::TooLarge`].
    pub fn of(ty: TensorType, rows: usize, cols: usize) -> Result<Self, RepackError> {
        let shape = formats::shape_of(ty).ok_or(RepackError::Unsupported { ty })?;
        if rows == 0 || cols == 0 {
            return Err(RepackError::Empty { rows, cols });
        }
        if !cols.is_multiple_of(ty.block_len()) {
            return Err(RepackError::PartialBlock { ty, cols });
        }
        let (planes, bytes) =
            place(&shape, rows, cols).ok_or(RepackError::TooLarge { ty, rows, cols })?;
        Ok(Self { ty, rows, cols, planes, bytes })
    }

    /// The weights' type.
    pub const fn ty(&self) -> TensorType {
        self.ty
    }

    /// Rows of the matrix, padding not counted.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix, padding not counted.
    pub const fn cols(&self) -> usize {
        self.cols
    }

    /// Quads of rows; the last may be padded with rows of zeros.
    pub const fn quads(&self) -> usize {
        self.rows.div_ceil(QUAD)
    }

    /// Groups of a row; the last may be padded with zeros, for types without blocks.
    pub const fn groups(&self) -> usize {
        self.cols.div_ceil(GROUP)
    }

    /// Bytes of all planes.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The plane of a role; without bytes when the type has none.
    pub const fn plane(&self, role: Role) -> Plane {
        self.planes[role as usize]
    }

    /// Splits memory for the planes ([`bytes`](Self::bytes) long) into parts of `rows` rows, rounded
    /// up to quads, which threads can fill at the same time. Bytes between planes are zeroed.
    ///
    /// # Errors
    /// [`RepackError::PlaneBytes`] when `planes` has another length.
    pub fn stripes<'a>(
        &self,
        planes: &'a mut [u8],
        rows: usize,
    ) -> Result<Vec<Stripe<'a>>, RepackError> {
        self.check_planes(planes.len())?;
        Ok(Stripe::cut(self, planes, rows.div_ceil(QUAD).max(1)))
    }

    pub(crate) const fn check_planes(&self, given: usize) -> Result<(), RepackError> {
        if given != self.bytes {
            return Err(RepackError::PlaneBytes { expected: self.bytes, given });
        }
        Ok(())
    }

    /// Whether `blocks` has the length of `rows` rows of blocks.
    pub(crate) fn check_blocks(&self, rows: usize, blocks: &[u8]) -> Result<(), RepackError> {
        let expected = rows * self.row_bytes();
        if blocks.len() != expected {
            return Err(RepackError::BlockBytes { rows, expected, given: blocks.len() });
        }
        Ok(())
    }

    /// Bytes of a row of blocks.
    pub(crate) fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.cols).expect("checked by `of`")
    }
}

/// The planes and their total size; `None` when that, or the size of the blocks, overflows.
fn place(shape: &Shape, rows: usize, cols: usize) -> Option<([Plane; Role::ALL.len()], usize)> {
    // No layout is larger than this, so the sums below cannot overflow.
    rows.checked_next_multiple_of(QUAD)?
        .checked_mul(cols.checked_next_multiple_of(SUPER)?)?
        .checked_mul(8)?
        .checked_add(Role::ALL.len() * PLANE_ALIGNMENT)?;
    let (groups, supers) = (cols.div_ceil(GROUP), cols.div_ceil(SUPER));
    let mut end = 0;
    let planes = Role::ALL.map(|role| {
        let offset = usize::next_multiple_of(end, PLANE_ALIGNMENT);
        let quad_bytes = shape.group_bytes(role) * groups + shape.super_bytes(role) * supers;
        if quad_bytes > 0 {
            end = offset + quad_bytes * rows.div_ceil(QUAD);
        }
        Plane { offset, quad_bytes }
    });
    Some((planes, end))
}
