//! The vector operations in plain Rust: eight lanes, and what the compiler makes of them.

use super::rows::Rows;
use super::simd::{Simd, Work};
use half::f16;
use std::array::from_fn;

/// Needs nothing of the CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

type Int = [u32; 8];
type Float = [f32; 8];

/// Applies `f` to every byte of `a`, with the byte's index in its lane.
#[inline(always)]
fn bytes(a: Int, f: impl Fn(usize, u8) -> u8) -> Int {
    a.map(|lane| {
        let bytes = lane.to_le_bytes();
        u32::from_le_bytes(from_fn(|k| f(k, bytes[k])))
    })
}

impl Simd for Portable {
    type Int = Int;
    type Float = Float;
    const ROWS: usize = 8;

    #[inline(always)]
    fn vectorize<W: Work>(self, work: W) -> W::Output {
        work.run(self)
    }

    #[inline(always)]
    fn quads(self, rows: &Rows<'_>, at: usize) -> [Int; 4] {
        from_fn(|j| self.dwords(rows, at + 4 * j))
    }
    #[inline(always)]
    fn dwords(self, rows: &Rows<'_>, at: usize) -> Int {
        from_fn(|r| u32::from_le_bytes(rows.bytes(r, at)))
    }
    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}

    #[inline(always)]
    fn splat(self, value: u32) -> Int {
        [value; 8]
    }
    #[inline(always)]
    fn and(self, a: Int, b: Int) -> Int {
        from_fn(|r| a[r] & b[r])
    }
    #[inline(always)]
    fn or(self, a: Int, b: Int) -> Int {
        from_fn(|r| a[r] | b[r])
    }
    #[inline(always)]
    fn xor(self, a: Int, b: Int) -> Int {
        from_fn(|r| a[r] ^ b[r])
    }
    #[inline(always)]
    fn sub(self, a: Int, b: Int) -> Int {
        from_fn(|r| a[r].wrapping_sub(b[r]))
    }
    #[inline(always)]
    fn max(self, a: Int, b: Int) -> Int {
        from_fn(|r| (a[r] as i32).max(b[r] as i32) as u32)
    }
    #[inline(always)]
    fn shl(self, a: Int, bits: u32) -> Int {
        a.map(|lane| lane << bits)
    }
    #[inline(always)]
    fn shr(self, a: Int, bits: u32) -> Int {
        a.map(|lane| lane >> bits)
    }
    #[inline(always)]
    fn sar(self, a: Int, bits: u32) -> Int {
        a.map(|lane| (lane as i32 >> bits) as u32)
    }
    #[inline(always)]
    fn lookup(self, table: &[u8; 16], index: Int) -> Int {
        bytes(index, |_, byte| table[usize::from(byte & 15)])
    }
    #[inline(always)]
    fn fifth_bits(self, bits: Int, j: u32) -> Int {
        // The multiplication puts copies of the four bits at 7-bit distances, so that bit k of the
        // nibble meets bit 0 of byte k.
        bits.map(|lane| (((lane >> (4 * j)) & 0xf).wrapping_mul(0x0020_4081) & 0x0101_0101) << 4)
    }

    #[inline(always)]
    fn unbias(self, neg_sum: i32, bias: u32) -> Int {
        [(neg_sum * bias as i32) as u32; 8]
    }
    #[inline(always)]
    fn dot4(self, acc: Int, w: [Int; 4], a: [i32; 4], _max: u32) -> Int {
        from_fn(|r| {
            let mut sum = acc[r] as i32;
            for j in 0..4 {
                let (w, a) = (w[j][r].to_le_bytes(), a[j].to_le_bytes());
                for k in 0..4 {
                    sum += i32::from(w[k]) * i32::from(a[k] as i8);
                }
            }
            sum as u32
        })
    }

    #[inline(always)]
    fn to_float(self, a: Int) -> Float {
        a.map(|lane| lane as i32 as f32)
    }
    #[inline(always)]
    fn as_float(self, a: Int) -> Float {
        a.map(f32::from_bits)
    }
    #[inline(always)]
    fn f16(self, a: Int) -> Float {
        a.map(|lane| f16::from_bits(lane as u16).to_f32_const())
    }
    #[inline(always)]
    fn splat_float(self, value: f32) -> Float {
        [value; 8]
    }
    #[inline(always)]
    fn add_float(self, a: Float, b: Float) -> Float {
        from_fn(|r| a[r] + b[r])
    }
    #[inline(always)]
    fn mul(self, a: Float, b: Float) -> Float {
        from_fn(|r| a[r] * b[r])
    }
    #[inline(always)]
    fn fma(self, a: Float, b: Float, c: Float) -> Float {
        // Not `mul_add`: without the instruction that is a call into the maths library.
        from_fn(|r| a[r] * b[r] + c[r])
    }

    #[inline(always)]
    fn largest(self, x: &[f32; 32]) -> u32 {
        x.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff))
    }
    #[inline(always)]
    fn round(self, x: &[f32; 32], factor: f32) -> ([i8; 32], [i32; 2]) {
        // Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the sum.
        const MAGIC: f32 = 12_582_912.0;
        let bytes = x.map(|x| ((x * factor + MAGIC).to_bits() as i32) as i8);
        let sum = |half: &[i8]| half.iter().map(|&byte| i32::from(byte)).sum();
        (bytes, [sum(&bytes[..16]), sum(&bytes[16..])])
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> Float {
        from_fn(|r| from[r])
    }
    #[inline(always)]
    fn store(self, a: Float, to: &mut [f32]) {
        to[..8].copy_from_slice(&a);
    }
}
