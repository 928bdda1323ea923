//! `exp` for arguments up to 0, in a shape the compiler can vectorise.
//!
//! A softmax over 262144 logits calls it as many times for every token; the library's scalar
//! function alone would cost more than a small model's whole forward pass on one core.

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has few bits, so that multiplying it by a small integer is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
/// Below this the result is not a normal number; it is 0 here.
const UNDERFLOW: f32 = -87.0;

/// `e^x` for `x <= 0`, within 2 units in the last place; 0 below -87, for -inf and for NaN.
///
/// Range reduction by powers of two and a polynomial on `[-ln2/2, ln2/2]` with the coefficients of
/// Moshier's Cephes library (`expf`).
#[inline(always)]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    let inside = x.clamp(UNDERFLOW, 0.0);
    let shifted = inside * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = inside - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let mantissa = p * r * r + r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let value = mantissa * f32::from_bits(exponent);
    if x >= UNDERFLOW { value } else { 0.0 }
}

/// Sum of `e^((x - max) * scale)` over a block, in eight lanes so that it vectorises.
#[inline]
pub(super) fn sum_exp(block: &[f32], max: f32, scale: f32) -> f64 {
    let mut lanes = [0.0f32; 8];
    let (chunks, rest) = block.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += exp_nonpositive((x - max) * scale);
        }
    }
    let tail: f32 = rest.iter().map(|&x| exp_nonpositive((x - max) * scale)).sum();
    lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + f64::from(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_library_function() {
        for step in 0..870_000 {
            let x = -(step as f32) * 1e-4;
            let (ours, theirs) = (f64::from(exp_nonpositive(x)), f64::from(x).exp());
            assert!((ours - theirs).abs() <= 2.5e-7 * theirs, "{x}: {ours} against {theirs}");
        }
    }

    #[test]
    fn edges_are_exact() {
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-0.0), 1.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_nonpositive(f32::NAN), 0.0);
        assert_eq!(exp_nonpositive(f32::MIN), 0.0);
    }
}
