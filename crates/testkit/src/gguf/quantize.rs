//! Plain quantisers: `f32` to the blocks that `m40_gguf::dequantize` reads.
//!
//! They aim at valid blocks that use the whole range of every field, not at the last bit of
//! accuracy: scales come from the extremes of each group, without a search.

use half::{bf16, f16};
use m40_gguf::TensorType;

/// The 16 levels of `IQ4_NL` and `IQ4_XS`.
const IQ4_LEVELS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// Twice the values of E2M1.
const E2M1_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// Whether [`quantize`] knows the type.
pub const fn quantizes(ty: TensorType) -> bool {
    kernel(ty).is_some()
}

/// Quantises `weights`, a whole number of blocks.
///
/// # Panics
/// When there is no quantiser for the type, or the last block is not whole.
pub fn quantize(ty: TensorType, weights: &[f32]) -> Vec<u8> {
    let Some(kernel) = kernel(ty) else {
        panic!("no quantiser for {ty}");
    };
    assert!(weights.len().is_multiple_of(ty.block_len()), "{} weights of {ty}", weights.len());
    let mut out = Vec::with_capacity(weights.len() / ty.block_len() * ty.block_bytes());
    for block in weights.chunks_exact(ty.block_len()) {
        kernel(block, &mut out);
    }
    assert_eq!(out.len(), out.capacity(), "{ty} blocks have their size");
    out
}

/// Appends one block.
type Kernel = fn(&[f32], &mut Vec<u8>);

const fn kernel(ty: TensorType) -> Option<Kernel> {
    Some(match ty {
        TensorType::F32 => |x, out| out.extend(x[0].to_le_bytes()),
        TensorType::F16 => |x, out| out.extend(f16::from_f32(x[0]).to_le_bytes()),
        TensorType::BF16 => |x, out| out.extend(bf16::from_f32(x[0]).to_le_bytes()),
        TensorType::Q4_0 => |x, out| symmetric(x, 8, out),
        TensorType::Q4_1 => |x, out| with_minimum(x, 15, out),
        TensorType::Q5_0 => |x, out| symmetric(x, 16, out),
        TensorType::Q5_1 => |x, out| with_minimum(x, 31, out),
        TensorType::Q8_0 => q8_0,
        TensorType::IQ4NL => iq4_nl,
        TensorType::MXFP4 => mxfp4,
        TensorType::Q2K => q2_k,
        TensorType::Q3K => q3_k,
        TensorType::Q4K => |x, out| q4_or_5_k(x, 15, out),
        TensorType::Q5K => |x, out| q4_or_5_k(x, 31, out),
        TensorType::Q6K => q6_k,
        TensorType::IQ4XS => iq4_xs,
        _ => return None,
    })
}

/// The element farthest from zero, with its sign.
fn extreme(x: &[f32]) -> f32 {
    x.iter().copied().fold(0.0, |a, b| if b.abs() > a.abs() { b } else { a })
}

fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::MAX, f32::MIN), |(low, high), &v| (low.min(v), high.max(v)))
}

/// `x / scale` rounded into `0..=max` after adding `offset`; the offset alone for a scale of zero.
fn level(x: f32, scale: f32, offset: f32, max: u8) -> u8 {
    let q = if scale == 0.0 { 0.0 } else { x / scale };
    (q + offset).round().clamp(0.0, f32::from(max)) as u8
}

/// The index of the value nearest to `x`.
fn nearest(values: &[f32; 16], x: f32) -> u8 {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if (value - x).abs() < (values[best] - x).abs() {
            best = i;
        }
    }
    best as u8
}

/// Writes an f16 and returns what a reader will see.
fn push_f16(out: &mut Vec<u8>, value: f32) -> f32 {
    let value = f16::from_f32(value);
    out.extend(value.to_le_bytes());
    value.to_f32()
}

/// The value an f16 field will hold.
fn rounded(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}

/// The fifth bits of 32 weights, weight 0 lowest.
fn push_fifth_bits(q: &[u8], out: &mut Vec<u8>) {
    for byte in q.chunks_exact(8) {
        out.push(byte.iter().enumerate().fold(0, |bits, (i, q)| bits | ((q >> 4) << i)));
    }
}

/// Low nibbles: the first half of `q` low, the second half high.
fn push_nibbles(q: &[u8], out: &mut Vec<u8>) {
    let (low, high) = q.split_at(q.len() / 2);
    out.extend(low.iter().zip(high).map(|(l, h)| (l & 15) | ((h & 15) << 4)));
}

/// `Q4_0` (zero at 8) and `Q5_0` (zero at 16).
fn symmetric(x: &[f32], zero: u8, out: &mut Vec<u8>) {
    let scale = push_f16(out, extreme(x) / -f32::from(zero));
    let q: Vec<u8> = x.iter().map(|&x| level(x, scale, f32::from(zero), zero - 1 + zero)).collect();
    if zero == 16 {
        push_fifth_bits(&q, out);
    }
    push_nibbles(&q, out);
}

/// `Q4_1` (levels to 15) and `Q5_1` (to 31).
fn with_minimum(x: &[f32], max: u8, out: &mut Vec<u8>) {
    let (low, high) = range(x);
    let scale = push_f16(out, (high - low) / f32::from(max));
    let low = push_f16(out, low);
    let q: Vec<u8> = x.iter().map(|&x| level(x - low, scale, 0.0, max)).collect();
    if max == 31 {
        push_fifth_bits(&q, out);
    }
    push_nibbles(&q, out);
}

fn q8_0(x: &[f32], out: &mut Vec<u8>) {
    let scale = push_f16(out, extreme(x).abs() / 127.0);
    out.extend(x.iter().map(|&x| level(x, scale, 128.0, 255).wrapping_sub(128)));
}

fn iq4_nl(x: &[f32], out: &mut Vec<u8>) {
    let scale = push_f16(out, extreme(x) / -127.0);
    let q: Vec<u8> = x.iter().map(|&x| nearest(&IQ4_LEVELS, ratio(x, scale))).collect();
    push_nibbles(&q, out);
}

fn ratio(x: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { x / scale }
}

fn mxfp4(x: &[f32], out: &mut Vec<u8>) {
    let extreme = extreme(x).abs();
    // The smallest power of two that reaches the extreme with the largest level, 12.
    let scale_of = |e: u8| 2.0f32.powi(i32::from(e) - 128);
    let e = (2..=254).find(|&e| scale_of(e) * 12.0 >= extreme).unwrap_or(254);
    out.push(e);
    let q: Vec<u8> = x.iter().map(|&x| nearest(&E2M1_DOUBLED, x / scale_of(e))).collect();
    push_nibbles(&q, out);
}

/// Scale and (positive) minimum of each group, for levels `0..=max`.
fn group_ranges(x: &[f32], group: usize, max: u8) -> (Vec<f32>, Vec<f32>) {
    x.chunks_exact(group)
        .map(|x| {
            let (low, high) = range(x);
            let low = low.min(0.0);
            ((high.max(0.0) - low) / f32::from(max), -low)
        })
        .unzip()
}

/// Integer scales `0..=max` for positive values, and the f16 factor that goes with them.
fn integer_scales(values: &[f32], max: u8) -> (f32, Vec<u8>) {
    let factor = rounded(extreme(values) / f32::from(max));
    (factor, values.iter().map(|&v| level(v, factor, 0.0, max)).collect())
}

/// Integer scales around `zero`, up to `zero - 1 + zero`, for values of any sign.
fn signed_scales(values: &[f32], zero: u8) -> (f32, Vec<u8>) {
    let factor = rounded(extreme(values) / -f32::from(zero));
    (factor, values.iter().map(|&v| level(v, factor, f32::from(zero), zero - 1 + zero)).collect())
}

/// Packs 2-bit levels: in each 128 weights, weight `32 * k + i` in bits `2 * k` of byte `i`.
fn push_pairs(q: &[u8], out: &mut Vec<u8>) {
    for half in q.chunks_exact(128) {
        out.extend((0..32).map(|i| (0..4).fold(0, |b, k| b | ((half[32 * k + i] & 3) << (2 * k)))));
    }
}

fn q2_k(x: &[f32], out: &mut Vec<u8>) {
    let (scales, minima) = group_ranges(x, 16, 3);
    let (d, scales) = integer_scales(&scales, 15);
    let (dmin, minima) = integer_scales(&minima, 15);
    out.extend(scales.iter().zip(&minima).map(|(s, m)| s | (m << 4)));
    let q: Vec<u8> = x
        .iter()
        .enumerate()
        .map(|(i, &x)| {
            let (scale, min) = (d * f32::from(scales[i / 16]), dmin * f32::from(minima[i / 16]));
            level(x + min, scale, 0.0, 3)
        })
        .collect();
    push_pairs(&q, out);
    push_f16(out, d);
    push_f16(out, dmin);
}

fn q3_k(x: &[f32], out: &mut Vec<u8>) {
    let scales: Vec<f32> = x.chunks_exact(16).map(|x| extreme(x) / -4.0).collect();
    let (d, scales) = signed_scales(&scales, 32);
    let scale = |group: usize| d * (f32::from(scales[group]) - 32.0);
    let q: Vec<u8> = x.iter().enumerate().map(|(i, &x)| level(x, scale(i / 16), 4.0, 7)).collect();
    out.extend((0..32).map(|i| (0..8).fold(0, |bits, k| bits | ((q[32 * k + i] >> 2) << k))));
    push_pairs(&q, out);
    out.extend((0..8).map(|i| (scales[i] & 15) | ((scales[8 + i] & 15) << 4)));
    out.extend(
        (0..4).map(|i| (0..4).fold(0, |bits, k| bits | ((scales[4 * k + i] >> 4) << (2 * k)))),
    );
    push_f16(out, d);
}

/// `Q4_K` (levels to 15) and `Q5_K` (to 31).
fn q4_or_5_k(x: &[f32], max: u8, out: &mut Vec<u8>) {
    let (scales, minima) = group_ranges(x, 32, max);
    let (d, s) = integer_scales(&scales, 63);
    let (dmin, m) = integer_scales(&minima, 63);
    push_f16(out, d);
    push_f16(out, dmin);
    out.extend((0..4).map(|i| s[i] | ((s[4 + i] >> 4) << 6)));
    out.extend((0..4).map(|i| m[i] | ((m[4 + i] >> 4) << 6)));
    out.extend((0..4).map(|i| (s[4 + i] & 15) | ((m[4 + i] & 15) << 4)));
    let q: Vec<u8> = x
        .iter()
        .enumerate()
        .map(|(i, &x)| level(x + dmin * f32::from(m[i / 32]), d * f32::from(s[i / 32]), 0.0, max))
        .collect();
    if max == 31 {
        out.extend((0..32).map(|i| (0..8).fold(0, |bits, k| bits | ((q[32 * k + i] >> 4) << k))));
    }
    q.chunks_exact(64).for_each(|q| push_nibbles(q, out));
}

fn q6_k(x: &[f32], out: &mut Vec<u8>) {
    let scales: Vec<f32> = x.chunks_exact(16).map(|x| extreme(x) / -32.0).collect();
    let (d, scales) = signed_scales(&scales, 128);
    let scale = |group: usize| d * (f32::from(scales[group]) - 128.0);
    let q: Vec<u8> =
        x.iter().enumerate().map(|(i, &x)| level(x, scale(i / 16), 32.0, 63)).collect();
    q.chunks_exact(128).for_each(|q| push_nibbles(q, out));
    push_pairs(&q.iter().map(|q| q >> 4).collect::<Vec<_>>(), out);
    out.extend(scales.iter().map(|scale| scale.wrapping_sub(128)));
    push_f16(out, d);
}

fn iq4_xs(x: &[f32], out: &mut Vec<u8>) {
    let scales: Vec<f32> = x.chunks_exact(32).map(|x| extreme(x) / -127.0).collect();
    let (d, scales) = signed_scales(&scales, 32);
    push_f16(out, d);
    let high = (0..8).fold(0u16, |bits, i| bits | (u16::from(scales[i] >> 4) << (2 * i)));
    out.extend(high.to_le_bytes());
    out.extend(scales.as_chunks().0.iter().map(|[a, b]| (a & 15) | ((b & 15) << 4)));
    for (x, &scale) in x.chunks_exact(32).zip(&scales) {
        let scale = d * (f32::from(scale) - 32.0);
        let q: Vec<u8> = x.iter().map(|&x| nearest(&IQ4_LEVELS, ratio(x, scale))).collect();
        push_nibbles(&q, out);
    }
}

#[cfg(test)]
mod tests {
    use m40_gguf::dequantize;

    use super::*;
    use crate::gguf::Noise;

    /// Root-mean-square error over a bell of deviation 1, measured and rounded up.
    const ERRORS: [(TensorType, f32); 16] = [
        (TensorType::F32, 0.0),
        (TensorType::F16, 3e-4),
        (TensorType::BF16, 3e-3),
        (TensorType::Q8_0, 7e-3),
        (TensorType::Q6K, 2e-2),
        (TensorType::Q5_0, 5e-2),
        (TensorType::Q5_1, 5e-2),
        (TensorType::Q5K, 5e-2),
        (TensorType::Q4_0, 0.1),
        (TensorType::Q4_1, 0.1),
        (TensorType::Q4K, 0.1),
        (TensorType::IQ4NL, 0.1),
        (TensorType::IQ4XS, 0.1),
        (TensorType::MXFP4, 0.15),
        (TensorType::Q3K, 0.2),
        (TensorType::Q2K, 0.4),
    ];

    #[test]
    fn dequantised_weights_are_near_the_originals() {
        for (ty, bound) in ERRORS {
            let weights = Noise::new(7).normals(4096, 1.0);
            let mut back = vec![0.0; weights.len()];
            dequantize(ty, &quantize(ty, &weights), &mut back).unwrap();
            let sum: f32 = weights.iter().zip(&back).map(|(a, b)| (a - b) * (a - b)).sum();
            let error = (sum / weights.len() as f32).sqrt();
            assert!(error <= bound, "{ty}: error {error}, expected at most {bound}");
        }
    }

    #[test]
    fn zeros_stay_zero() {
        for (ty, _) in ERRORS {
            let mut back = vec![1.0; 256];
            dequantize(ty, &quantize(ty, &[0.0; 256]), &mut back).unwrap();
            assert!(back.iter().all(|&x| x == 0.0), "{ty}: {back:?}");
        }
    }

    #[test]
    fn every_dequantisable_type_has_a_quantiser() {
        for &ty in TensorType::ALL {
            assert_eq!(quantizes(ty), m40_gguf::is_dequantizable(ty), "{ty}");
        }
    }
}
