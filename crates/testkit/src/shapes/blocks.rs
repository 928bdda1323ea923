//! Random weights as blocks, made as such: no weight is a float before it is quantised.
//!
//! Bits come first, then each block's scales are put in order. A block's quants use every level;
//! scales differ by a factor of two at most, and their signs or minima are such that weights have a
//! mean of zero: a common offset of all weights would outgrow everything else within a few layers.

use half::f16;
use m40_gguf::TensorType;

use crate::gguf::Noise;

/// Choices for the scales of a block.
const SCALES: usize = 256;
/// Choices for a plain number.
const NUMBERS: usize = 4096;

/// Root mean square of evenly spread levels around their middle: 4, 6 and 8 bits.
const SPREAD_4: f32 = 4.61;
const SPREAD_6: f32 = 18.5;
const SPREAD_8: f32 = 73.9;
/// Middle of the 4-bit levels.
const MIDDLE_4: f32 = 7.5;
/// Integer scales of `Q4_K` lie from 24 to 55, those of `Q6_K` from 64 to 128; root mean squares.
const Q4_K_SCALE: f32 = 40.6;
const Q6_K_SCALE: f32 = 97.8;

/// Makes the data of one tensor.
#[derive(Debug)]
pub(super) struct Filler {
    ty: TensorType,
    /// What takes the place of random bits: scale, and minimum where the type has one.
    scales: Vec<[u16; 2]>,
    /// Plain numbers to choose from.
    numbers: Vec<u16>,
}

impl Filler {
    /// For weights of mean zero and this deviation. `noise` chooses the scales.
    ///
    /// # Panics
    /// For a type that no shape has.
    pub(super) fn new(ty: TensorType, deviation: f32, mut noise: Noise) -> Self {
        let mut filler = Self { ty, scales: Vec::new(), numbers: Vec::new() };
        let spread = match ty {
            TensorType::F16 => {
                // Each with its opposite, so that the mean is exact.
                let half = noise.normals(NUMBERS / 2, deviation);
                let numbers = half.iter().flat_map(|x| [*x, -x]);
                filler.numbers = numbers.map(|x| f16::from_f32(x).to_bits()).collect();
                return filler;
            }
            TensorType::Q4_0 | TensorType::Q4_1 => SPREAD_4,
            TensorType::Q8_0 => SPREAD_8,
            TensorType::Q4K => SPREAD_4 * Q4_K_SCALE,
            TensorType::Q6K => SPREAD_6 * Q6_K_SCALE,
            _ => panic!("no shape has weights of {ty}"),
        };
        let mut uniform = |low: f32, high: f32| {
            low + (high - low) * (noise.bits() >> 40) as f32 / (1u64 << 24) as f32
        };
        let scale = deviation / spread;
        filler.scales = (0..SCALES)
            .map(|_| {
                let d = f16::from_f32(scale * uniform(0.7, 1.28));
                let minimum = match ty {
                    TensorType::Q4_1 => -d.to_f32() * (MIDDLE_4 + uniform(-1.0, 1.0)),
                    _ => d.to_f32() * MIDDLE_4,
                };
                [d.to_bits(), f16::from_f32(minimum).to_bits()]
            })
            .collect();
        filler
    }

    /// Fills `out`, a whole number of blocks, with what `noise` says.
    pub(super) fn fill(&self, noise: &mut Noise, out: &mut [u8]) {
        let (words, rest) = out.as_chunks_mut();
        words.iter_mut().for_each(|word| *word = noise.bits().to_le_bytes());
        rest.iter_mut().for_each(|byte| *byte = noise.bits() as u8);
        match self.ty {
            TensorType::Q4_0 => self.each(out, |block: &mut [u8; 18]| self.signed_scale(block, 0)),
            TensorType::Q4_1 => self.each(out, |block: &mut [u8; 20]| self.scale_pair(block)),
            TensorType::Q8_0 => self.each(out, |block: &mut [u8; 34]| {
                self.signed_scale(block, 0);
                // Quantisers never use the level that has no opposite.
                let quants = block[2..].iter_mut();
                quants.for_each(|q| *q = q.cast_signed().max(-127).cast_unsigned());
            }),
            TensorType::Q4K => self.each(out, |block: &mut [u8; 144]| {
                self.scale_pair(block);
                q4_k_scales(block);
            }),
            TensorType::Q6K => self.each(out, |block: &mut [u8; 210]| {
                self.signed_scale(block, 208);
                // From -128 to -65 and from 64 to 127: bit 6 is not what bit 7 is.
                block[192..208].iter_mut().for_each(|s| *s = (*s & 0xbf) | (!*s >> 1 & 0x40));
            }),
            _ => self.each(out, |number: &mut [u8; 2]| {
                let choice = usize::from(u16::from_le_bytes(*number)) % NUMBERS;
                *number = self.numbers[choice].to_le_bytes();
            }),
        }
    }

    fn each<const BYTES: usize>(&self, out: &mut [u8], finish: impl Fn(&mut [u8; BYTES])) {
        let (blocks, rest) = out.as_chunks_mut();
        assert!(rest.is_empty() && BYTES == self.ty.block_bytes(), "blocks of {}", self.ty);
        blocks.iter_mut().for_each(finish);
    }

    /// The scale at `at`, of any sign.
    fn signed_scale(&self, block: &mut [u8], at: usize) {
        let sign = u16::from(block[at + 1] & 0x80) << 8;
        let [d, _] = self.scales[usize::from(block[at])];
        block[at..at + 2].copy_from_slice(&(d | sign).to_le_bytes());
    }

    /// The scale and the minimum that a block begins with.
    fn scale_pair(&self, block: &mut [u8]) {
        let [d, minimum] = self.scales[usize::from(block[0])];
        block[..2].copy_from_slice(&d.to_le_bytes());
        block[2..4].copy_from_slice(&minimum.to_le_bytes());
    }
}

/// The 12 bytes of scales and minima: a minimum is its scale, give or take 7.
fn q4_k_scales(block: &mut [u8; 144]) {
    let mut scales = [0; 8];
    let mut minima = [0; 8];
    for i in 0..8 {
        let (a, b) = (block[4 + i], block[4 + (i + 5) % 12]);
        scales[i] = 24 + (a & 31);
        minima[i] = scales[i] + (a >> 5) + (b >> 5) - 7;
    }
    let (low, high) = block[4..16].split_at_mut(8);
    for i in 0..4 {
        low[i] = scales[i] | (scales[4 + i] >> 4 << 6);
        low[4 + i] = minima[i] | (minima[4 + i] >> 4 << 6);
        high[i] = (scales[4 + i] & 15) | (minima[4 + i] << 4);
    }
}

#[cfg(test)]
mod tests {
    use m40_gguf::dequantize;

    use super::*;

    const TYPES: [TensorType; 6] = [
        TensorType::F16,
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q8_0,
        TensorType::Q4K,
        TensorType::Q6K,
    ];
    const WEIGHTS: usize = 1 << 18;

    fn data(ty: TensorType, seed: u64) -> Vec<u8> {
        let mut out = vec![0; ty.row_bytes(WEIGHTS).unwrap()];
        Filler::new(ty, 0.02, Noise::new(1)).fill(&mut Noise::new(seed), &mut out);
        out
    }

    #[test]
    fn weights_have_the_deviation_asked_for_and_no_mean() {
        for ty in TYPES {
            let mut weights = vec![0.0; WEIGHTS];
            dequantize(ty, &data(ty, 2), &mut weights).unwrap();
            let mean = weights.iter().sum::<f32>() / WEIGHTS as f32;
            let square = weights.iter().map(|w| w * w).sum::<f32>() / WEIGHTS as f32;
            assert!((square.sqrt() / 0.02 - 1.0).abs() < 0.05, "{ty}: {}", square.sqrt());
            assert!((mean / 0.02).abs() < 0.012, "{ty}: mean {mean}");
        }
    }

    #[test]
    fn every_bit_of_quants_and_of_integer_scales_is_used() {
        for ty in TYPES {
            let data = data(ty, 3);
            let bytes = ty.block_bytes();
            for at in 0..bytes {
                let each = || data[at..].iter().step_by(bytes);
                let seen = (each().fold(0, |or, b| or | b), each().fold(255, |and, b| and & b));
                // The exponents of f16 fields hardly differ.
                let is_f16 = match ty {
                    TensorType::F16 => true,
                    TensorType::Q4_0 | TensorType::Q8_0 => at < 2,
                    TensorType::Q4_1 | TensorType::Q4K => at < 4,
                    _ => at >= 208,
                };
                assert!(is_f16 || seen == (255, 0), "{ty}, byte {at}: {seen:?}");
            }
        }
    }

    #[test]
    fn data_depend_on_the_seed() {
        for ty in TYPES {
            assert_eq!(data(ty, 4), data(ty, 4));
            assert_ne!(data(ty, 4), data(ty, 5));
        }
    }
}
