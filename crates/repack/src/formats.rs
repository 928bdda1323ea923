//! Every type's blocks as groups, and what groups are worth.
//!
//! The block layouts are ggml's; `m40_gguf::dequantize` documents them one weight at a time.

use fearless_simd::{Level, dispatch};
use half::f16;
use m40_gguf::TensorType;

use crate::format::{Format, Group, MOST_GROUPS, Quants, Scales, Shape};
use crate::layout::Layout;
use crate::packing::{High, Low, bytes_at};
use crate::stripe::{self, Stripe};

/// Calls `$run::<F>($args)` with the [`Format`] of a quantised type.
macro_rules! with_format {
    ($ty:expr, $format:ident => $run:expr, else $other:expr) => {
        match $ty {
            TensorType::Q4_0 => {
                type $format = Q4_0;
                $run
            }
            TensorType::Q4_1 => {
                type $format = Q4_1;
                $run
            }
            TensorType::Q5_0 => {
                type $format = Q5_0;
                $run
            }
            TensorType::Q5_1 => {
                type $format = Q5_1;
                $run
            }
            TensorType::Q8_0 => {
                type $format = Q8_0;
                $run
            }
            TensorType::Q2K => {
                type $format = Q2K;
                $run
            }
            TensorType::Q3K => {
                type $format = Q3K;
                $run
            }
            TensorType::Q4K => {
                type $format = Q4K;
                $run
            }
            TensorType::Q5K => {
                type $format = Q5K;
                $run
            }
            TensorType::Q6K => {
                type $format = Q6K;
                $run
            }
            TensorType::IQ4NL => {
                type $format = Iq4Nl;
                $run
            }
            TensorType::IQ4XS => {
                type $format = Iq4Xs;
                $run
            }
            TensorType::MXFP4 => {
                type $format = Mxfp4;
                $run
            }
            _ => $other,
        }
    };
}

const fn shape(quants: Quants, high_bits: usize, scales: Scales, super_bytes: usize) -> Shape {
    Shape { quants, high_bits, scales, super_bytes }
}

/// The planes of a type; `None` when the GPU has no layout for it.
pub(crate) const fn shape_of(ty: TensorType) -> Option<Shape> {
    Some(match ty {
        TensorType::F32 => shape(Quants::Numbers(4), 0, Scales::None, 0),
        TensorType::F16 | TensorType::BF16 => shape(Quants::Numbers(2), 0, Scales::None, 0),
        _ => with_format!(ty, F => F::SHAPE, else return None),
    })
}

/// Fills a stripe with rows of blocks, whose length was checked.
pub(crate) fn fill(layout: &Layout, stripe: &mut Stripe<'_>, blocks: &[u8]) {
    fill_at(Level::new(), layout, stripe, blocks);
}

/// The same with the instructions of `level`.
fn fill_at(level: Level, layout: &Layout, stripe: &mut Stripe<'_>, blocks: &[u8]) {
    with_format!(
        layout.ty(),
        F => dispatch!(level, simd => stripe::fill::<F, _>(simd, stripe, layout, blocks)),
        else stripe::fill_numbers(stripe, layout, blocks)
    );
}

/// The weights of planes, whose length was checked.
pub(crate) fn unpack(layout: &Layout, planes: &[u8]) -> Vec<f32> {
    with_format!(
        layout.ty(),
        F => stripe::unpack::<F>(layout, planes),
        else unpack_numbers(layout, planes)
    )
}

fn unpack_numbers(layout: &Layout, planes: &[u8]) -> Vec<f32> {
    let bytes = stripe::numbers(layout, planes);
    let mut out = vec![0.0; layout.rows() * layout.cols()];
    m40_gguf::dequantize(layout.ty(), &bytes, &mut out)
        .expect("types without scales are stored as in the file");
    out
}

fn half_at(block: &[u8], at: usize) -> u32 {
    u32::from(u16::from_le_bytes([block[at], block[at + 1]]))
}

fn word_at(block: &[u8], at: usize) -> u32 {
    half_at(block, at) | half_at(block, at + 2) << 16
}

/// The float whose f16 bits are the low half of `bits`.
fn float(bits: u32) -> f32 {
    f16::from_bits(bits as u16).to_f32()
}

/// The scales of a block with one group.
#[inline(always)]
fn single<T: Copy + Default>(scales: T) -> [T; MOST_GROUPS] {
    let mut all = [T::default(); MOST_GROUPS];
    all[0] = scales;
    all
}

/// Scales of 16 bits, one after another.
#[inline(always)]
fn eight(block: &[u8], at: usize) -> [[u8; 2]; MOST_GROUPS] {
    *bytes_at::<16>(block, at).as_chunks().0.first_chunk().expect("16 bytes are 8 pairs")
}

/// The bytes of two words, in order.
#[inline(always)]
fn joined([low, high]: [u32; 2]) -> [u8; MOST_GROUPS] {
    (u64::from(low) | u64::from(high) << 32).to_le_bytes()
}

/// `weight(q, half)` for each column; the half is 0 for the first 16 columns.
fn each(group: &Group, weight: impl Fn(u8, usize) -> f32) -> [f32; 32] {
    std::array::from_fn(|i| weight(group.q[i], i / 16))
}

struct Q4_0;
impl Format for Q4_0 {
    const BYTES: usize = 18;
    const GROUPS: usize = 1;
    const SHAPE: Shape = shape(Quants::Nibbles, 0, Scales::Short, 0);
    const LOW: Low = Low::Halves { at: 2 };

    #[inline(always)]
    fn shorts(block: &[u8]) -> [[u8; 2]; MOST_GROUPS] {
        single(bytes_at(block, 0))
    }

    fn weights(group: &Group) -> [f32; 32] {
        let scale = float(group.scales);
        each(group, |q, _| scale * (i32::from(q) - 8) as f32)
    }
}

struct Q4_1;
impl Format for Q4_1 {
    const BYTES: usize = 20;
    const GROUPS: usize = 1;
    const SHAPE: Shape = shape(Quants::Nibbles, 0, Scales::Word, 0);
    const LOW: Low = Low::Halves { at: 4 };

    #[inline(always)]
    fn longs(block: &[u8]) -> [[u8; 4]; MOST_GROUPS] {
        single(bytes_at(block, 0))
    }

    fn weights(group: &Group) -> [f32; 32] {
        let (scale, min) = (float(group.scales), float(group.scales >> 16));
        each(group, |q, _| scale * f32::from(q) + min)
    }
}

struct Q5_0;
impl Format for Q5_0 {
    const BYTES: usize = 22;
    const GROUPS: usize = 1;
    const SHAPE: Shape = shape(Quants::Nibbles, 1, Scales::Short, 0);
    const LOW: Low = Low::Halves { at: 6 };
    const HIGH: High = High::Mask { at: 2 };

    #[inline(always)]
    fn shorts(block: &[u8]) -> [[u8; 2]; MOST_GROUPS] {
        single(bytes_at(block, 0))
    }

    fn weights(group: &Group) -> [f32; 32] {
        let scale = float(group.scales);
        each(group, |q, _| scale * (i32::from(q) - 16) as f32)
    }
}

struct Q5_1;
impl Format for Q5_1 {
    const BYTES: usize = 24;
    const GROUPS: usize = 1;
    const SHAPE: Shape = shape(Quants::Nibbles, 1, Scales::Word, 0);
    const LOW: Low = Low::Halves { at: 8 };
    const HIGH: High = High::Mask { at: 4 };

    #[inline(always)]
    fn longs(block: &[u8]) -> [[u8; 4]; MOST_GROUPS] {
        single(bytes_at(block, 0))
    }

    fn weights(group: &Group) -> [f32; 32] {
        Q4_1::weights(group)
    }
}

struct Q8_0;
impl Format for Q8_0 {
    const BYTES: usize = 34;
    const GROUPS: usize = 1;
    const SHAPE: Shape = shape(Quants::Bytes, 0, Scales::Short, 0);
    const LOW: Low = Low::Bytes { at: 2 };

    #[inline(always)]
    fn shorts(block: &[u8]) -> [[u8; 2]; MOST_GROUPS] {
        single(bytes_at(block, 0))
    }

    fn weights(group: &Group) -> [f32; 32] {
        let scale = float(group.scales);
        each(group, |q, _| (i32::from(q) - 128) as f32 * scale)
    }
}

struct Q2K;
impl Format for Q2K {
    const BYTES: usize = 84;
    const GROUPS: usize = 8;
    const SHAPE: Shape = shape(Quants::Pairs, 0, Scales::Short, 4);
    const LOW: Low = Low::Pairs { at: 16 };

    #[inline(always)]
    fn shorts(block: &[u8]) -> [[u8; 2]; MOST_GROUPS] {
        eight(block, 0)
    }

    fn supers(block: &[u8]) -> u32 {
        word_at(block, 80)
    }

    fn weights(group: &Group) -> [f32; 32] {
        let (d, dmin) = (float(group.supers), float(group.supers >> 16));
        let byte = |half: usize| (group.scales >> (8 * half)) as u8;
        each(group, |q, half| {
            let (scale, min) =
                (d * f32::from(byte(half) & 0x0f), dmin * f32::from(byte(half) >> 4));
            scale * f32::from(q) - min
        })
    }
}

/// The scales of each group's halves, 6 bits each: low 8 bits and high 4 bits.
#[inline(always)]
fn q3_k_scales(block: &[u8]) -> ([u8; MOST_GROUPS], [u8; MOST_GROUPS]) {
    // Four scales in the bytes of a word.
    let [a, b, top] = [96, 100, 104].map(|at| word_at(block, at));
    let six = |low: u32, top: u32| u64::from(low & 0x0f0f_0f0f | top & 0x3030_3030);
    let eights =
        [six(a, top << 4) | six(b, top << 2) << 32, six(a >> 4, top) | six(b >> 4, top >> 2) << 32];
    // Pairs of scales, then the first byte of each.
    let first = |pairs: u64| {
        let pairs = pairs & 0x00ff_00ff_00ff_00ff;
        let pairs = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
        (pairs | pairs >> 16) as u32
    };
    let low = eights
        .map(|pairs| first(pairs & 0x003f_003f_003f_003f | pairs >> 2 & 0x00c0_00c0_00c0_00c0));
    let high = eights.map(|pairs| first(pairs >> 10 & 0x000f_000f_000f_000f));
    (joined(low), joined(high))
}

/// Scales: those of the two halves, 6 bits each.
struct Q3K;
impl Format for Q3K {
    const BYTES: usize = 110;
    const GROUPS: usize = 8;
    const SHAPE: Shape = shape(Quants::Pairs, 1, Scales::Twelve, 2);
    const LOW: Low = Low::Pairs { at: 32 };
    const HIGH: High = High::Bits { at: 0 };

    #[inline(always)]
    fn bytes(block: &[u8]) -> [u8; MOST_GROUPS] {
        q3_k_scales(block).0
    }

    #[inline(always)]
    fn tops(block: &[u8]) -> [u8; MOST_GROUPS] {
        q3_k_scales(block).1
    }

    fn supers(block: &[u8]) -> u32 {
        half_at(block, 108)
    }

    fn weights(group: &Group) -> [f32; 32] {
        let d = float(group.supers);
        each(group, |q, half| {
            let scale = (group.scales >> (6 * half)) & 0x3f;
            d * (scale.cast_signed() - 32) as f32 * (i32::from(q) - 4) as f32
        })
    }
}

/// Scale, and minimum 6 bits above, of each group of a block of `Q4_K` or `Q5_K`: low 8 bits and
/// high 4 bits.
#[inline(always)]
fn scales_and_mins(block: &[u8]) -> ([u8; MOST_GROUPS], [u8; MOST_GROUPS]) {
    // Four groups in the bytes of a word each: 6 bits, and above them 2 of four other groups.
    let [a, b, c] = [4, 8, 12].map(|at| word_at(block, at));
    let six = |word: u32| word & 0x3f3f_3f3f;
    let four = |word: u32, top: u32| word & 0x0f0f_0f0f | top >> 2 & 0x3030_3030;
    let (scales, mins) = ([six(a), four(c, a)], [six(b), four(c >> 4, b)]);
    let low = std::array::from_fn(|i| scales[i] | (mins[i] & 0x0303_0303) << 6);
    (joined(low), joined(mins.map(|mins| mins >> 2 & 0x0f0f_0f0f)))
}

/// Scales: scale, then minimum, 6 bits each.
struct Q4K;
impl Format for Q4K {
    const BYTES: usize = 144;
    const GROUPS: usize = 8;
    const SHAPE: Shape = shape(Quants::Nibbles, 0, Scales::Twelve, 4);
    const LOW: Low = Low::Twos { at: 16 };

    #[inline(always)]
    fn bytes(block: &[u8]) -> [u8; MOST_GROUPS] {
        scales_and_mins(block).0
    }

    #[inline(always)]
    fn tops(block: &[u8]) -> [u8; MOST_GROUPS] {
        scales_and_mins(block).1
    }

    fn supers(block: &[u8]) -> u32 {
        word_at(block, 0)
    }

    fn weights(group: &Group) -> [f32; 32] {
        let (d, dmin) = (float(group.supers), float(group.supers >> 16));
        let scale = d * (group.scales & 0x3f) as f32;
        let min = dmin * (group.scales >> 6) as f32;
        each(group, |q, _| scale * f32::from(q) - min)
    }
}

struct Q5K;
impl Format for Q5K {
    const BYTES: usize = 176;
    const GROUPS: usize = 8;
    const SHAPE: Shape = shape(Quants::Nibbles, 1, Scales::Twelve, 4);
    const LOW: Low = Low::Twos { at: 48 };
    const HIGH: High = High::Bits { at: 16 };

    #[inline(always)]
    fn bytes(block: &[u8]) -> [u8; MOST_GROUPS] {
        scales_and_mins(block).0
    }

    #[inline(always)]
    fn tops(block: &[u8]) -> [u8; MOST_GROUPS] {
        scales_and_mins(block).1
    }

    fn supers(block: &[u8]) -> u32 {
        word_at(block, 0)
    }

    fn weights(group: &Group) -> [f32; 32] {
        Q4K::weights(group)
    }
}

struct Q6K;
impl Format for Q6K {
    const BYTES: usize = 210;
    const GROUPS: usize = 8;
    const SHAPE: Shape = shape(Quants::Nibbles, 2, Scales::Short, 2);
    const LOW: Low = Low::Fours { at: 0 };
    const HIGH: High = High::Fields { at: 128 };

    #[inline(always)]
    fn shorts(block: &[u8]) -> [[u8; 2]; MOST_GROUPS] {
        eight(block, 192)
    }

    fn supers(block: &[u8]) -> u32 {
        half_at(block, 208)
    }

    fn weights(group: &Group) -> [f32; 32] {
        let d = float(group.supers);
        each(group, |q, half| {
            let scale = (group.scales >> (8 * half)) as u8;
            d * f32::from(scale.cast_signed()) * (i32::from(q) - 32) as f32
        })
    }
}

/// The 16 levels of `IQ4_NL` and `IQ4_XS`.
const IQ4_LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of the FP4 format E2M1, sign in bit 3.
const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

fn leveled(group: &Group, scale: f32, levels: [i8; 16]) -> [f32; 32] {
    each(group, |q, _| scale * f32::from(levels[usize::from(q & 15)]))
}

struct Iq4Nl;
impl Format for Iq4Nl {
    const BYTES: usize = 18;
    const GROUPS: usize = 1;
    const SHAPE: Shape = shape(Quants::Selectors, 0, Scales::Short, 0);
    const LOW: Low = Low::Selectors { at: 2 };

    #[inline(always)]
    fn shorts(block: &[u8]) -> [[u8; 2]; MOST_GROUPS] {
        single(bytes_at(block, 0))
    }

    fn weights(group: &Group) -> [f32; 32] {
        leveled(group, float(group.scales), IQ4_LEVELS)
    }
}

/// Scales: 6 bits, in a byte.
struct Iq4Xs;
impl Format for Iq4Xs {
    const BYTES: usize = 136;
    const GROUPS: usize = 8;
    const SHAPE: Shape = shape(Quants::Selectors, 0, Scales::Byte, 2);
    const LOW: Low = Low::EightSelectors { at: 8 };

    #[inline(always)]
    fn bytes(block: &[u8]) -> [u8; MOST_GROUPS] {
        let (low, high) = (word_at(block, 4), half_at(block, 2));
        std::array::from_fn(|group| {
            (low >> (4 * group) & 0x0f) as u8 | (high >> (2 * group) << 4) as u8 & 0x30
        })
    }

    fn supers(block: &[u8]) -> u32 {
        half_at(block, 0)
    }

    fn weights(group: &Group) -> [f32; 32] {
        let scale = float(group.supers) * (group.scales.cast_signed() - 32) as f32;
        leveled(group, scale, IQ4_LEVELS)
    }
}

/// Scales: the exponent byte.
struct Mxfp4;
impl Format for Mxfp4 {
    const BYTES: usize = 17;
    const GROUPS: usize = 1;
    const SHAPE: Shape = shape(Quants::Selectors, 0, Scales::Byte, 0);
    const LOW: Low = Low::Selectors { at: 1 };

    #[inline(always)]
    fn bytes(block: &[u8]) -> [u8; MOST_GROUPS] {
        single(block[0])
    }

    fn weights(group: &Group) -> [f32; 32] {
        // 2^(e - 128): half the scale, as the levels are doubled. The two smallest are subnormal.
        let scale = f32::from_bits(match group.scales {
            e @ (0 | 1) => 0x0020_0000 << e,
            e => (e - 1) << 23,
        });
        leveled(group, scale, E2M1_DOUBLED)
    }
}

#[cfg(test)]
mod tests {
    use m40_testkit::gguf::Noise;

    use super::*;

    /// The planes of rows that a stripe holds, one quad of which is not whole.
    fn planes(level: Level, layout: &Layout, blocks: &[u8]) -> Vec<u8> {
        let mut planes = vec![0; layout.bytes()];
        let mut stripes = layout.stripes(&mut planes, layout.rows()).unwrap();
        fill_at(level, layout, &mut stripes[0], blocks);
        planes
    }

    #[test]
    fn every_instruction_set_makes_the_same_planes() {
        let best = Level::new();
        let levels = [
            best.as_sse2().map(Level::Sse2),
            best.as_sse4_2().map(Level::Sse4_2),
            best.as_avx2().map(Level::Avx2),
        ];
        for ty in TensorType::ALL.iter().copied().filter(|&ty| shape_of(ty).is_some()) {
            // Three blocks of 256 and of 32: a number that vectors of two do not divide.
            for cols in [768, 96] {
                let Ok(layout) = Layout::of(ty, 6, cols) else { continue };
                let mut noise = Noise::new(3);
                let bytes = 6 * layout.row_bytes();
                let blocks: Vec<u8> = (0..bytes).map(|_| noise.bits() as u8).collect();
                let expected = planes(best, &layout, &blocks);
                assert!(expected.iter().any(|&byte| byte != 0));
                for level in levels.into_iter().flatten() {
                    assert_eq!(planes(level, &layout, &blocks), expected, "{ty} at {level:?}");
                }
            }
        }
    }
}
