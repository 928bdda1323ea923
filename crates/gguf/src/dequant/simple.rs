//! Types with blocks of 32 weights and one scale.
//!
//! All 4-bit types store weight `i` (0 to 15) in the low and weight `16 + i` in the high nibble of
//! byte `i`.

use super::f16_at;

/// The 16 levels of `IQ4_NL` and `IQ4_XS`.
pub(super) const IQ4_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of the FP4 format E2M1 (OCP Microscaling Formats 1.0), sign in bit 3.
const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The nibble of weight `i` in 16 bytes that start at `at`.
fn nibble<const B: usize>(block: &[u8; B], at: usize, i: usize) -> u8 {
    (block[at + i % 16] >> (4 * (i / 16))) & 0x0f
}

/// Bit 4 of weight `i`, from a 32-bit mask that starts at `at`.
fn fifth_bit<const B: usize>(block: &[u8; B], at: usize, i: usize) -> u8 {
    ((block[at + i / 8] >> (i % 8)) & 1) << 4
}

/// scale f16, 16 bytes of nibbles: `scale * (q - 8)`
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for (i, weight) in out.iter_mut().enumerate() {
        *weight = scale * (i32::from(nibble(block, 2, i)) - 8) as f32;
    }
}

/// scale f16, minimum f16, 16 bytes of nibbles: `scale * q + min`
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, min) = (f16_at(block, 0), f16_at(block, 2));
    for (i, weight) in out.iter_mut().enumerate() {
        *weight = scale * f32::from(nibble(block, 4, i)) + min;
    }
}

/// scale f16, 32 high bits, 16 bytes of nibbles: `scale * (q - 16)`
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for (i, weight) in out.iter_mut().enumerate() {
        let q = nibble(block, 6, i) | fifth_bit(block, 2, i);
        *weight = scale * (i32::from(q) - 16) as f32;
    }
}

/// scale f16, minimum f16, 32 high bits, 16 bytes of nibbles: `scale * q + min`
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, min) = (f16_at(block, 0), f16_at(block, 2));
    for (i, weight) in out.iter_mut().enumerate() {
        let q = nibble(block, 8, i) | fifth_bit(block, 4, i);
        *weight = scale * f32::from(q) + min;
    }
}

/// scale f16, 32 signed bytes: `q * scale`
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for (weight, &q) in out.iter_mut().zip(&block[2..]) {
        *weight = f32::from(q.cast_signed()) * scale;
    }
}

/// scale f16, 16 bytes of nibbles: `scale * level[q]`
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for (i, weight) in out.iter_mut().enumerate() {
        *weight = scale * f32::from(IQ4_LEVELS[usize::from(nibble(block, 2, i))]);
    }
}

/// scale E8M0, 16 bytes of nibbles: `2^(e - 128) * doubled value[q]`
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let scale = half_e8m0(block[0]);
    for (i, weight) in out.iter_mut().enumerate() {
        *weight = scale * f32::from(E2M1_DOUBLED[usize::from(nibble(block, 1, i))]);
    }
}

/// Half of an E8M0 scale, `2^(e - 128)`; the two smallest are subnormal.
fn half_e8m0(e: u8) -> f32 {
    f32::from_bits(match e {
        0 | 1 => 0x0020_0000 << e,
        _ => u32::from(e - 1) << 23,
    })
}
