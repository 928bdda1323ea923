//! Rotary position embedding: frequency tables with every scaling GGUF metadata can ask for.
//!
//! All scalings in use are linear in the position, so each collapses, when the model is loaded, to
//! one angular frequency per rotated pair and one factor on the result. Executors know only that.
//!
//! Sources: RoPE (Su et al. 2021); YaRN (Peng et al. 2023), section 3; the Llama 3.1 and LongRoPE
//! factor tensors as GGUF converters write them (`rope_freqs.weight`, `rope_factors_*.weight`).

use std::fmt;

/// Which two floats of a head make a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(x[2i], x[2i + 1])`: the order llama-family converters permute weights into.
    Interleaved,
    /// `(x[i], x[i + n])` with `n` pairs: the order of GPT-NeoX and Hugging Face models.
    Halves,
}

/// Angles of one rotary embedding: pair `i` at position `p` turns by `p * inv_freq[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// How pairs are laid out in a head.
    pub style: RopeStyle,
    /// Radians per position, one per pair; the first `2 * len` floats of a head are rotated.
    pub inv_freq: Vec<f32>,
    /// Factor on both rotated floats (YaRN's and LongRoPE's attention factor).
    pub magnitude: f32,
}

/// How positions beyond the trained context are brought back into range.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Ratio of the new context to the trained one.
        factor: f32,
    },
    /// Low frequencies interpolated, high ones kept, with a ramp between.
    Yarn {
        /// Ratio of the new context to the original one.
        factor: f32,
        /// Context of the original model, tokens.
        original_context: u32,
        /// Rotations over the original context above which a pair is kept.
        beta_fast: f32,
        /// Rotations below which a pair is interpolated in full.
        beta_slow: f32,
        /// Extra factor on the result.
        attention_factor: f32,
    },
    /// Each pair's frequency divided by its own factor (Llama 3.1, LongRoPE).
    Factors {
        /// One divisor per pair.
        factors: Vec<f32>,
        /// Factor on the result.
        attention_factor: f32,
    },
}

impl RopeTable {
    /// Table for `dims` rotated floats per head (even) and frequency base `base`.
    ///
    /// With [`RopeScaling::Factors`], `factors.len()` must be `dims / 2`; the caller checks it
    /// where it can name the tensor.
    pub fn new(style: RopeStyle, dims: usize, base: f32, scaling: &RopeScaling) -> Self {
        let plain = |i: usize| f64::from(base).powf(-(2.0 * i as f64) / dims as f64);
        let pairs = 0..dims / 2;
        let (inv_freq, magnitude): (Vec<f64>, f32) = match scaling {
            RopeScaling::None => (pairs.map(plain).collect(), 1.0),
            RopeScaling::Linear { factor } => {
                (pairs.map(|i| plain(i) / f64::from(*factor)).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
            } => {
                let ramp = YarnRamp::new(dims, base, *original_context, *beta_fast, *beta_slow);
                let blend = |i: usize| {
                    let keep = ramp.kept(i);
                    plain(i) * (keep + (1.0 - keep) / f64::from(*factor))
                };
                (pairs.map(blend).collect(), attention_factor * (1.0 + 0.1 * factor.ln()))
            }
            RopeScaling::Factors { factors, attention_factor } => {
                (pairs.map(|i| plain(i) / f64::from(factors[i])).collect(), *attention_factor)
            }
        };
        Self { style, inv_freq: inv_freq.into_iter().map(|f| f as f32).collect(), magnitude }
    }
}

/// YaRN's ramp over pair indices, from "kept" (fast pairs) to "interpolated" (slow pairs).
struct YarnRamp {
    low: f64,
    high: f64,
}

impl YarnRamp {
    fn new(dims: usize, base: f32, context: u32, beta_fast: f32, beta_slow: f32) -> Self {
        let pair_turning = |rotations: f32| {
            let wavelengths = f64::from(context) / (f64::from(rotations) * std::f64::consts::TAU);
            dims as f64 * wavelengths.ln() / (2.0 * f64::from(base).ln())
        };
        let last = dims as f64 - 1.0;
        Self {
            low: pair_turning(beta_fast).floor().max(0.0),
            high: pair_turning(beta_slow).ceil().min(last),
        }
    }

    /// Share of the original frequency that pair `i` keeps, 0..=1.
    fn kept(&self, i: usize) -> f64 {
        let ramp = (i as f64 - self.low) / (self.high - self.low).max(0.001);
        1.0 - ramp.clamp(0.0, 1.0)
    }
}

impl fmt::Display for RopeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.inv_freq.first().copied().unwrap_or(0.0);
        let last = self.inv_freq.last().copied().unwrap_or(0.0);
        write!(
            f,
            "{:?} pairs={} inv_freq={first}..{last:e} magnitude={}",
            self.style,
            self.inv_freq.len(),
            self.magnitude
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(a: f32, b: f32) {
        assert!((a - b).abs() <= 1e-6 * b.abs().max(1e-3), "{a} != {b}");
    }

    #[test]
    fn plain_frequencies_are_powers_of_the_base() {
        let table = RopeTable::new(RopeStyle::Halves, 64, 10_000.0, &RopeScaling::None);
        assert_eq!(table.inv_freq.len(), 32);
        close(table.inv_freq[0], 1.0);
        close(table.inv_freq[16], 0.01);
        close(table.inv_freq[31], 10_000f32.powf(-62.0 / 64.0));
    }

    #[test]
    fn linear_scaling_divides_every_frequency() {
        let plain = RopeTable::new(RopeStyle::Halves, 8, 10_000.0, &RopeScaling::None);
        let scaled =
            RopeTable::new(RopeStyle::Halves, 8, 10_000.0, &RopeScaling::Linear { factor: 8.0 });
        for (s, p) in scaled.inv_freq.iter().zip(&plain.inv_freq) {
            close(*s, p / 8.0);
        }
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_interpolates_slow_ones() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 32768,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
        };
        let plain = RopeTable::new(RopeStyle::Halves, 128, 1_000_000.0, &RopeScaling::None);
        let yarn = RopeTable::new(RopeStyle::Halves, 128, 1_000_000.0, &scaling);
        close(yarn.inv_freq[0], plain.inv_freq[0]);
        close(yarn.inv_freq[63], plain.inv_freq[63] / 4.0);
        // The ramp runs over pairs 23..=40 for these figures: ln(32768/(32*tau))/ln(1e6)*64 = 23.6
        // and ln(32768/tau)/ln(1e6)*64 = 39.7.
        close(yarn.inv_freq[23], plain.inv_freq[23]);
        close(yarn.inv_freq[40], plain.inv_freq[40] / 4.0);
        let kept = 1.0 - (30.0 - 23.0) / (40.0 - 23.0);
        close(yarn.inv_freq[30], plain.inv_freq[30] * (kept + (1.0 - kept) / 4.0));
        close(yarn.magnitude, 1.0 + 0.1 * 4f32.ln());
    }

    #[test]
    fn factors_divide_pair_by_pair() {
        let scaling =
            RopeScaling::Factors { factors: vec![1.0, 2.0, 4.0, 8.0], attention_factor: 1.19 };
        let plain = RopeTable::new(RopeStyle::Interleaved, 8, 500_000.0, &RopeScaling::None);
        let table = RopeTable::new(RopeStyle::Interleaved, 8, 500_000.0, &scaling);
        close(table.inv_freq[3], plain.inv_freq[3] / 8.0);
        close(table.magnitude, 1.19);
    }
}
