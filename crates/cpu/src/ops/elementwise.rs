//! Norms, gates, softcaps and sums: one pass over each row.
#![expect(unsafe_code, reason = "kernels generic over vector instruction sets")]
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "chains of vector arithmetic")]

use m40_program::Activation;

use crate::simd::{Lanes, dispatch, exp};

/// Square root of 2/pi, and the cubic coefficient, of the tanh form of GELU.
const GELU_SCALE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

dispatch! {
    /// `out = x / sqrt(mean(x^2) + eps) * weight (+ residual held in out)` for each row of
    /// `weight.len()` floats; `x` and `out`: `[n, width]`.
    fn rms_norm(x: &[f32], weight: &[f32], eps: f32, add: bool, out: &mut [f32]) = rms_norm_kernel
}
dispatch! {
    /// As [`rms_norm`], in place and without a residual.
    fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) = rms_norm_in_place_kernel
}
dispatch! {
    /// `x = (x - mean) / sqrt(variance + eps) * weight + bias` for each row of `weight.len()` floats;
    /// `x`: `[n, width]`, `bias`: `[width]`.
    fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) = layer_norm_kernel
}
dispatch! {
    /// `x = act(x)`, element by element.
    fn activate(activation: Activation, x: &mut [f32]) = activate_kernel
}
dispatch! {
    /// `gate = act(gate) * up`, element by element.
    fn gate(activation: Activation, gate: &mut [f32], up: &[f32]) = gate_kernel
}
dispatch! {
    /// `x = cap * tanh(x / cap)`.
    fn softcap(x: &mut [f32], cap: f32) = softcap_kernel
}

/// `out += x`, row by row for a `bias` of one row's width, or element by element.
pub(crate) fn add(out: &mut [f32], x: &[f32]) {
    for row in out.chunks_exact_mut(x.len()) {
        for (o, x) in row.iter_mut().zip(x) {
            *o += x;
        }
    }
}

/// The sum of squared distances from `center`.
#[inline(always)]
unsafe fn squares<L: Lanes>(x: &[f32], center: f32) -> f32 {
    // SAFETY: the caller vouches for the instruction set; loads stay within `x`.
    unsafe {
        let mut sum = [L::splat(0.0); 4];
        let whole = x.chunks_exact(4 * L::N);
        let mut tail = 0.0f32;
        for v in whole.remainder() {
            tail = (v - center).mul_add(v - center, tail);
        }
        for chunk in whole {
            for (i, s) in sum.iter_mut().enumerate() {
                let v = L::load(chunk.as_ptr().add(i * L::N)).sub(L::splat(center));
                *s = v.fma(v, *s);
            }
        }
        sum[0].add(sum[1]).add(sum[2].add(sum[3])).sum() + tail
    }
}

#[inline(always)]
unsafe fn inverse_rms<L: Lanes>(x: &[f32], eps: f32) -> f32 {
    // SAFETY: the caller vouches for the instruction set.
    let total = unsafe { squares::<L>(x, 0.0) };
    1.0 / (total / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
unsafe fn layer_norm_kernel<L: Lanes>(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let width = weight.len() as f32;
    for x in x.chunks_exact_mut(weight.len()) {
        let center = x.iter().sum::<f32>() / width;
        // SAFETY: the caller vouches for the instruction set.
        let variance = unsafe { squares::<L>(x, center) } / width;
        let scale = 1.0 / (variance + eps).sqrt();
        for ((x, w), b) in x.iter_mut().zip(weight).zip(bias) {
            *x = ((*x - center) * scale).mul_add(*w, *b);
        }
    }
}

#[inline(always)]
unsafe fn activate_kernel<L: Lanes>(activation: Activation, x: &mut [f32]) {
    let whole = x.len() / L::N * L::N;
    let (vectors, tail) = x.split_at_mut(whole);
    for x in vectors.chunks_exact_mut(L::N) {
        // SAFETY: the slice holds N elements; the caller vouches for the instruction set.
        unsafe { activated(activation, L::load(x.as_ptr())).store(x.as_mut_ptr()) }
    }
    for x in tail {
        // SAFETY: `f32` lanes need no instruction set.
        *x = unsafe { activated::<f32>(activation, *x) };
    }
}

#[inline(always)]
unsafe fn rms_norm_kernel<L: Lanes>(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    add: bool,
    out: &mut [f32],
) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        // SAFETY: the caller vouches for the instruction set.
        let scale = unsafe { inverse_rms::<L>(x, eps) };
        let keep = if add { 1.0 } else { 0.0 };
        for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
            let residual = if add { *o } else { 0.0 };
            *o = (x * scale).mul_add(*w, residual * keep);
        }
    }
}

#[inline(always)]
unsafe fn rms_norm_in_place_kernel<L: Lanes>(x: &mut [f32], weight: &[f32], eps: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        // SAFETY: the caller vouches for the instruction set.
        let scale = unsafe { inverse_rms::<L>(x, eps) };
        for (x, w) in x.iter_mut().zip(weight) {
            *x = *x * scale * w;
        }
    }
}

/// `x * sigmoid(y)`.
#[inline(always)]
unsafe fn times_sigmoid<L: Lanes>(x: L, y: L) -> L {
    // SAFETY: the caller vouches for the instruction set; no pointer is used.
    unsafe { x.div(L::splat(1.0).add(exp(L::splat(0.0).sub(y)))) }
}

#[inline(always)]
unsafe fn activated<L: Lanes>(activation: Activation, x: L) -> L {
    // SAFETY: the caller vouches for the instruction set; no pointer is used.
    unsafe {
        match activation {
            Activation::Silu => times_sigmoid(x, x),
            // 0.5 (1 + tanh(u)) = sigmoid(2u)
            Activation::GeluTanh => {
                let cubic = x.mul(x).mul(L::splat(GELU_CUBIC)).fma(x, x);
                times_sigmoid(x, cubic.mul(L::splat(2.0 * GELU_SCALE)))
            }
        }
    }
}

/// Runs `f` over `x` in place, whole vectors first, then the tail lane by lane.
#[inline(always)]
unsafe fn map<L: Lanes>(
    x: &mut [f32],
    y: &[f32],
    f: impl Fn(L, L) -> L,
    tail: impl Fn(f32, f32) -> f32,
) {
    let whole = x.len() / L::N * L::N;
    for i in (0..whole).step_by(L::N) {
        let (x, y) = (&mut x[i..i + L::N], &y[i..i + L::N]);
        // SAFETY: both slices hold N elements; the caller vouches for the instruction set.
        unsafe { f(L::load(x.as_ptr()), L::load(y.as_ptr())).store(x.as_mut_ptr()) }
    }
    for (x, y) in x[whole..].iter_mut().zip(&y[whole..]) {
        *x = tail(*x, *y);
    }
}

#[inline(always)]
unsafe fn gate_kernel<L: Lanes>(activation: Activation, gate: &mut [f32], up: &[f32]) {
    // SAFETY: the caller vouches for the instruction set; `f32` lanes need none.
    unsafe {
        map::<L>(
            gate,
            up,
            |g, u| activated(activation, g).mul(u),
            |g, u| activated::<f32>(activation, g) * u,
        );
    }
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(super) unsafe fn soften<L: Lanes>(x: L, cap: f32) -> L {
    // SAFETY: the caller vouches for the instruction set; no pointer is used.
    unsafe {
        // tanh(u) = 1 - 2 / (e^(2u) + 1)
        let e = exp(x.mul(L::splat(2.0 / cap)));
        let two = L::splat(2.0).div(e.add(L::splat(1.0)));
        L::splat(1.0).sub(two).mul(L::splat(cap))
    }
}

#[inline(always)]
unsafe fn softcap_kernel<L: Lanes>(x: &mut [f32], cap: f32) {
    let whole = x.len() / L::N * L::N;
    let (vectors, tail) = x.split_at_mut(whole);
    for x in vectors.chunks_exact_mut(L::N) {
        // SAFETY: the slice holds N elements; the caller vouches for the instruction set.
        unsafe { soften(L::load(x.as_ptr()), cap).store(x.as_mut_ptr()) }
    }
    for x in tail {
        // SAFETY: `f32` lanes need no instruction set.
        *x = unsafe { soften::<f32>(*x, cap) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::ops::oracle;

    fn floats(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).max(1);
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state as f32 / u32::MAX as f32 - 0.5) * 20.0
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    #[track_caller]
    fn close(found: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(found.len(), expected.len());
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!((f - e).abs() <= tolerance * (1.0 + e.abs()), "[{i}]: {f} != {e}");
        }
    }

    #[test]
    fn every_instruction_set_matches_the_oracle_on_odd_widths() {
        for isa in Isa::available() {
            for width in [1, 3, 16, 63, 64, 65, 130, 576] {
                let (x, w, r) = (floats(3 * width, 1), floats(width, 2), floats(3 * width, 3));
                for add in [false, true] {
                    let (mut out, mut expected) = (r.clone(), r.clone());
                    rms_norm(isa, &x, &w, 1e-5, add, &mut out);
                    oracle::rms_norm(&x, &w, 1e-5, add, &mut expected);
                    close(&out, &expected, 1e-5);
                }
                let mut out = x.clone();
                rms_norm_in_place(isa, &mut out, &w, 1e-5);
                let mut expected = x.clone();
                oracle::rms_norm(&x, &w, 1e-5, false, &mut expected);
                close(&out, &expected, 1e-5);
                let (mut out, mut expected) = (x.clone(), x.clone());
                layer_norm(isa, &mut out, &w, &r[..width], 1e-5);
                oracle::layer_norm(&mut expected, &w, &r[..width], 1e-5);
                close(&out, &expected, 5e-5);
                for activation in [Activation::Silu, Activation::GeluTanh] {
                    let (mut out, mut expected) = (x.clone(), x.clone());
                    activate(isa, activation, &mut out);
                    oracle::activate(activation, &mut expected);
                    close(&out, &expected, 2e-5);
                    let (mut out, mut expected) = (x.clone(), x.clone());
                    gate(isa, activation, &mut out, &r);
                    oracle::gate(activation, &mut expected, &r);
                    close(&out, &expected, 2e-5);
                }
                let (mut out, mut expected) = (x.clone(), x.clone());
                softcap(isa, &mut out, 3.0);
                oracle::softcap(&mut expected, 3.0);
                close(&out, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn extreme_inputs_stay_finite() {
        let extremes = [-3e38, -1e4, -90.0, -0.0, 0.0, 90.0, 1e4, 3e38, 1e-40];
        for isa in Isa::available() {
            let mut x = extremes.to_vec();
            softcap(isa, &mut x, 30.0);
            assert!(x.iter().all(|v| v.abs() <= 30.0), "{isa:?}: {x:?}");
            let mut x = extremes.to_vec();
            gate(isa, Activation::Silu, &mut x, &[1.0; 9]);
            assert!(x.iter().all(|v| v.is_finite()), "{isa:?}: {x:?}");
        }
    }
}
