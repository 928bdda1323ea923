//! The vector operations the kernels are written in, so that each kernel exists once.
//!
//! A vector has [`Simd::ROWS`] lanes of 32 bits, and a lane is a *weight row*: lane `r` of an
//! integer vector holds four consecutive 8-bit weights of row `r` (a *quad*), lane `r` of a float
//! vector something that belongs to row `r`. Sums over columns therefore never cross lanes, and a
//! row's result does not depend on which rows or activations are computed beside it.
//!
//! A value of a type that implements [`Simd`] is proof that this CPU has its instructions: that is
//! what lets the operations be safe functions.

use super::rows::Rows;

/// A computation to be compiled for one instruction set. `run` must be `#[inline(always)]`, and so
/// must everything it calls that takes an `S`: a function left behind would lack the instructions.
pub(super) trait Work {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Vectors of one instruction set. See the module for what a lane is.
pub(super) trait Simd: Copy {
    /// `ROWS` lanes of 32 bits, or of four bytes.
    type Int: Copy;
    /// `ROWS` lanes of f32.
    type Float: Copy;
    /// Lanes of a vector: weight rows of a tile.
    const ROWS: usize;

    /// Runs `work` compiled for this instruction set.
    fn vectorize<W: Work>(self, work: W) -> W::Output;

    /// Bytes `at..at + 16` of every row: result `j` holds bytes `at + 4 j..at + 4 j + 4`.
    fn quads(self, rows: &Rows<'_>, at: usize) -> [Self::Int; 4];
    /// Bytes `at..at + 4` of every row, as little-endian u32.
    fn dwords(self, rows: &Rows<'_>, at: usize) -> Self::Int;
    /// Fetches the cache line at `address` into the L2 cache (the L1 could not hold what is asked
    /// for ahead of its use). Any address will do.
    fn prefetch(self, address: *const u8);

    fn splat(self, value: u32) -> Self::Int;
    fn and(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn or(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn xor(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn sub(self, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Signed maximum.
    fn max(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn shl(self, a: Self::Int, bits: u32) -> Self::Int;
    fn shr(self, a: Self::Int, bits: u32) -> Self::Int;
    /// Shift right that copies the sign.
    fn sar(self, a: Self::Int, bits: u32) -> Self::Int;
    /// Replaces every byte (0 to 15) by `table[byte]`.
    fn lookup(self, table: &[u8; 16], index: Self::Int) -> Self::Int;
    /// Bits `4 j..4 j + 4` of each lane, each moved to bit 4 of its own byte, lowest first.
    fn fifth_bits(self, bits: Self::Int, j: u32) -> Self::Int;

    /// The start value of a chain of [`dot4`](Self::dot4) over weights stored with `bias` added:
    /// `neg_sum` is minus the sum of the chain's activations.
    fn unbias(self, neg_sum: i32, bias: u32) -> Self::Int;
    /// Adds to each lane the products of its 16 weights (unsigned, at most `max`) with 16
    /// activations (signed, -127 to 127, four to an element). Exact. When `max` is above 127 the
    /// weights' bias is 128 and `acc` starts from [`unbias`](Self::unbias).
    fn dot4(self, acc: Self::Int, w: [Self::Int; 4], a: [i32; 4], max: u32) -> Self::Int;

    /// Lanes as signed integers.
    fn to_float(self, a: Self::Int) -> Self::Float;
    /// Lanes as bit patterns.
    fn as_float(self, a: Self::Int) -> Self::Float;
    /// The low 16 bits of every lane, as f16.
    fn f16(self, a: Self::Int) -> Self::Float;
    fn splat_float(self, value: f32) -> Self::Float;
    fn add_float(self, a: Self::Float, b: Self::Float) -> Self::Float;
    fn mul(self, a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a * b + c`, rounded once where the instruction set can.
    fn fma(self, a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;

    /// The largest of the bit patterns without sign: that of the largest magnitude, of an infinity
    /// before any number, of a NaN before that.
    fn largest(self, x: &[f32; 32]) -> u32;
    /// `x * factor`, at most 127 in magnitude, rounded to integers, ties to even: as bytes, and the
    /// sum of each half.
    fn round(self, x: &[f32; 32], factor: f32) -> ([i8; 32], [i32; 2]);

    /// The first `ROWS` floats of `from`.
    fn load(self, from: &[f32]) -> Self::Float;
    /// To the first `ROWS` floats of `to`.
    fn store(self, a: Self::Float, to: &mut [f32]);
}
