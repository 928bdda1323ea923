//! Types with super-blocks of 256 weights: small integer scales per group, and an f16 scale for
//! those scales.

use super::f16_at;
use super::simple::IQ4_LEVELS;

/// 16 bytes (4-bit scale, 4-bit minimum) per 16 weights, 64 bytes of 2-bit weights, scale f16,
/// minimum scale f16: `(d * scale) * q - dmin * min`.
///
/// Each 32 bytes hold 128 weights: weight `32 * k + i` in bits `2 * k` of byte `i`.
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (group, weights) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(block[group] & 0x0f);
        let min = dmin * f32::from(block[group] >> 4);
        let (byte, shift) = two_bit_group(group);
        for (weight, bits) in weights.iter_mut().zip(&block[16 + byte..]) {
            *weight = scale * f32::from((bits >> shift) & 3) - min;
        }
    }
}

/// First byte and shift of the 2-bit parts of 16-weight group `group`.
fn two_bit_group(group: usize) -> (usize, usize) {
    (group / 8 * 32 + group % 2 * 16, group % 8 / 2 * 2)
}

/// 32 bytes of high bits (bit `k` of byte `i` is weight `32 * k + i`), 64 bytes of 2-bit weights as
/// in `Q2_K`, 12 bytes of 6-bit scales per 16 weights, scale f16: `(d * (scale - 32)) * (q - 4)`.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_at(block, 108);
    for (group, weights) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * (i32::from(q3_k_scale(block, group)) - 32) as f32;
        let (byte, shift) = two_bit_group(group);
        let (high_byte, high_shift) = (group % 2 * 16, group / 2);
        let bits = block[32 + byte..].iter().zip(&block[high_byte..]);
        for (weight, (low, high)) in weights.iter_mut().zip(bits) {
            let q = ((low >> shift) & 3) | (((high >> high_shift) & 1) << 2);
            *weight = scale * (i32::from(q) - 4) as f32;
        }
    }
}

/// Low four bits: nibbles of bytes 0 to 7, low nibbles first. High two: bytes 8 to 11, four groups
/// in each step of two bits.
fn q3_k_scale(block: &[u8; 110], group: usize) -> u8 {
    let low = (block[96 + group % 8] >> (group / 8 * 4)) & 0x0f;
    let high = (block[104 + group % 4] >> (group / 4 * 2)) & 3;
    low | (high << 4)
}

/// scale f16, minimum scale f16, 12 bytes of 6-bit scales and minima per 32 weights, 128 bytes of
/// nibbles: `(d * scale) * q - dmin * min`.
///
/// Each 32 bytes hold 64 weights: `i` in the low and `32 + i` in the high nibble of byte `i`.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (group, weights) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], group);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let (byte, shift) = (16 + group / 2 * 32, group % 2 * 4);
        for (weight, bits) in weights.iter_mut().zip(&block[byte..]) {
            *weight = scale * f32::from((bits >> shift) & 0x0f) - min;
        }
    }
}

/// As `Q4_K`, with 32 bytes of fifth bits after the scales: bit `k` of byte `i` is weight
/// `32 * k + i`.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (group, weights) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], group);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let (byte, shift) = (48 + group / 2 * 32, group % 2 * 4);
        let bits = block[byte..].iter().zip(&block[16..48]);
        for (weight, (low, high)) in weights.iter_mut().zip(bits) {
            let q = ((low >> shift) & 0x0f) | (((high >> group) & 1) << 4);
            *weight = scale * f32::from(q) - min;
        }
    }
}

/// The 6-bit scale and minimum of group 0 to 7 of `Q4_K` and `Q5_K`.
///
/// Bytes 0 to 3 are the scales and 4 to 7 the minima of the first four groups; bytes 8 to 11 are
/// the low nibbles of the scale and minimum of the last four, whose high two bits are on top of
/// the first eight bytes.
fn scale_and_min(packed: &[u8], group: usize) -> (u8, u8) {
    let i = group % 4;
    if group < 4 {
        return (packed[i] & 0x3f, packed[4 + i] & 0x3f);
    }
    let scale = (packed[8 + i] & 0x0f) | ((packed[i] >> 2) & 0x30);
    let min = (packed[8 + i] >> 4) | ((packed[4 + i] >> 2) & 0x30);
    (scale, min)
}

/// 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales per 16 weights, scale
/// f16: `(d * scale) * (q - 32)`.
///
/// Each half of 128 weights has 64 bytes of nibbles (weight `i` below 64 low, the others high) and
/// 32 bytes of pairs (weight `32 * k + i` in bits `2 * k` of byte `i`).
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_at(block, 208);
    for (group, weights) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(block[192 + group].cast_signed());
        let low_byte = group / 8 * 64 + group % 4 * 16;
        let low_shift = group % 8 / 4 * 4;
        let (high_byte, high_shift) = two_bit_group(group);
        let bits = block[low_byte..].iter().zip(&block[128 + high_byte..]);
        for (weight, (low, high)) in weights.iter_mut().zip(bits) {
            let q = ((low >> low_shift) & 0x0f) | (((high >> high_shift) & 3) << 4);
            *weight = scale * (i32::from(q) - 32) as f32;
        }
    }
}

/// scale f16, 16 bits of high scale pairs, 4 bytes of low scale nibbles per 32 weights, 128 bytes
/// of nibbles: `(d * (scale - 32)) * level[q]`.
///
/// Each 16 bytes hold 32 weights, as in `IQ4_NL`.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (group, weights) in out.chunks_exact_mut(32).enumerate() {
        let low = (block[4 + group / 2] >> (group % 2 * 4)) & 0x0f;
        let scale = i32::from(low) | (i32::from(high >> (2 * group)) & 3) << 4;
        let scale = d * (scale - 32) as f32;
        for (i, weight) in weights.iter_mut().enumerate() {
            let q = (block[8 + group * 16 + i % 16] >> (i / 16 * 4)) & 0x0f;
            *weight = scale * f32::from(IQ4_LEVELS[usize::from(q)]);
        }
    }
}
