//! Every type's blocks as groups, and what groups are worth.
//!
//! The block layouts are ggml's; `m40_gguf::dequantize` documents them one weight at a time.

use half::f16;
use m40_gguf::TensorType;

use crate::columns::Sixteen;
use crate::format::{Format, Group, Quants, Scales, Shape};
use crate::layout::Layout;
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
    with_format!(
        layout.ty(),
        F => stripe::fill::<F>(stripe, layout, blocks),
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

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> u32 {
    u32::from(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[inline(always)]
fn word_at(block: &[u8], at: usize) -> u32 {
    half_at(block, at) | half_at(block, at + 2) << 16
}

/// The float whose f16 bits are the low half of `bits`.
fn float(bits: u32) -> f32 {
    f16::from_bits(bits as u16).to_f32()
}

/// 32 nibbles in 16 bytes: weight `i` in the low, weight `16 + i` in the high one of byte `i`.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [Sixteen; 2] {
    let bytes = Sixteen::first(bytes);
    [bytes.field(0, 0x0f), bytes.field(4, 0x0f)]
}

/// `q[i]` with bit `i` of `mask` as its bit 4.
#[inline(always)]
fn with_fifth_bits(q: [Sixteen; 2], mask: u32) -> [Sixteen; 2] {
    [q[0].or(Sixteen::bits(mask as u16).shl(4)), q[1].or(Sixteen::bits((mask >> 16) as u16).shl(4))]
}

/// The bits `mask << shift` of 32 bytes.
#[inline(always)]
fn fields(bytes: &[u8], shift: usize, mask: u8) -> [Sixteen; 2] {
    [bytes, &bytes[16..]].map(|bytes| Sixteen::first(bytes).field(shift, mask))
}

/// `low`, with `high` moved up by `bits`. It has few enough bits to stay in its byte.
#[inline(always)]
fn joined(low: [Sixteen; 2], high: [Sixteen; 2], bits: usize) -> [Sixteen; 2] {
    [low[0].or(high[0].shl(bits)), low[1].or(high[1].shl(bits))]
}

/// `weight(q, half)` for each column; the half is 0 for the first 16 columns.
fn each(group: &Group, weight: impl Fn(u8, usize) -> f32) -> [f32; 32] {
    let q = group.columns();
    std::array::from_fn(|i| weight(q[i], i / 16))
}

struct Q4_0;
impl Format for Q4_0 {
    const BYTES: usize = 18;
    const GROUPS: usize = 1;
    const SHAPE: Shape = shape(Quants::Nibbles, 0, Scales::Short, 0);

    #[inline(always)]
    fn read(block: &[u8], _group: usize) -> Group {
        Group { q: nibbles(&block[2..]), scales: half_at(block, 0), supers: 0 }
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

    #[inline(always)]
    fn read(block: &[u8], _group: usize) -> Group {
        Group { q: nibbles(&block[4..]), scales: word_at(block, 0), supers: 0 }
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

    #[inline(always)]
    fn read(block: &[u8], _group: usize) -> Group {
        let q = with_fifth_bits(nibbles(&block[6..]), word_at(block, 2));
        Group { q, scales: half_at(block, 0), supers: 0 }
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

    #[inline(always)]
    fn read(block: &[u8], _group: usize) -> Group {
        let q = with_fifth_bits(nibbles(&block[8..]), word_at(block, 4));
        Group { q, scales: word_at(block, 0), supers: 0 }
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

    #[inline(always)]
    fn read(block: &[u8], _group: usize) -> Group {
        let sign = Sixteen::splat(0x80);
        let q = [&block[2..], &block[18..]].map(|half| Sixteen::first(half).xor(sign));
        Group { q, scales: half_at(block, 0), supers: 0 }
    }

    fn weights(group: &Group) -> [f32; 32] {
        let scale = float(group.scales);
        each(group, |q, _| (i32::from(q) - 128) as f32 * scale)
    }
}

/// The two-bit fields of a group in 64 bytes.
#[inline(always)]
fn pairs(bytes: &[u8], group: usize) -> [Sixteen; 2] {
    fields(&bytes[group / 4 * 32..], 2 * (group % 4), 3)
}

struct Q2K;
impl Format for Q2K {
    const BYTES: usize = 84;
    const GROUPS: usize = 8;
    const SHAPE: Shape = shape(Quants::Pairs, 0, Scales::Short, 4);

    #[inline(always)]
    fn read(block: &[u8], group: usize) -> Group {
        let scales = half_at(block, 2 * group);
        Group { q: pairs(&block[16..], group), scales, supers: word_at(block, 80) }
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

/// The 6-bit scale of 16 columns.
#[inline(always)]
fn q3_k_scale(packed: &[u8], index: usize) -> u32 {
    let low = (packed[index % 8] >> (index / 8 * 4)) & 0x0f;
    let high = (packed[8 + index % 4] >> (index / 4 * 2)) & 3;
    u32::from(low | high << 4)
}

/// Scales: those of the two halves, 6 bits each.
struct Q3K;
impl Format for Q3K {
    const BYTES: usize = 110;
    const GROUPS: usize = 8;
    const SHAPE: Shape = shape(Quants::Pairs, 1, Scales::Twelve, 2);

    #[inline(always)]
    fn read(block: &[u8], group: usize) -> Group {
        let scale = |half| q3_k_scale(&block[96..108], 2 * group + half);
        Group {
            q: joined(pairs(&block[32..], group), fields(block, group, 1), 2),
            scales: scale(0) | scale(1) << 6,
            supers: half_at(block, 108),
        }
    }

    fn weights(group: &Group) -> [f32; 32] {
        let d = float(group.supers);
        each(group, |q, half| {
            let scale = (group.scales >> (6 * half)) & 0x3f;
            d * (scale.cast_signed() - 32) as f32 * (i32::from(q) - 4) as f32
        })
    }
}

/// Scale, and minimum 6 bits above, of a group of `Q4_K` and `Q5_K`.
#[inline(always)]
fn scale_and_min(packed: &[u8], group: usize) -> u32 {
    let i = group % 4;
    let (scale, min) = if group < 4 {
        (packed[i] & 0x3f, packed[4 + i] & 0x3f)
    } else {
        let high = |byte: u8| byte >> 6 << 4;
        (packed[8 + i] & 0x0f | high(packed[i]), packed[8 + i] >> 4 | high(packed[4 + i]))
    };
    u32::from(scale) | u32::from(min) << 6
}

/// Scales: scale, then minimum, 6 bits each.
struct Q4K;
impl Format for Q4K {
    const BYTES: usize = 144;
    const GROUPS: usize = 8;
    const SHAPE: Shape = shape(Quants::Nibbles, 0, Scales::Twelve, 4);

    #[inline(always)]
    fn read(block: &[u8], group: usize) -> Group {
        Group {
            q: fields(&block[16 + group / 2 * 32..], group % 2 * 4, 0x0f),
            scales: scale_and_min(&block[4..16], group),
            supers: word_at(block, 0),
        }
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

    #[inline(always)]
    fn read(block: &[u8], group: usize) -> Group {
        let low = fields(&block[48 + group / 2 * 32..], group % 2 * 4, 0x0f);
        Group {
            q: joined(low, fields(&block[16..], group, 1), 4),
            scales: scale_and_min(&block[4..16], group),
            supers: word_at(block, 0),
        }
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

    #[inline(always)]
    fn read(block: &[u8], group: usize) -> Group {
        let low = fields(&block[group / 4 * 64 + group % 2 * 32..], group % 4 / 2 * 4, 0x0f);
        Group {
            q: joined(low, pairs(&block[128..], group), 4),
            scales: half_at(block, 192 + 2 * group),
            supers: half_at(block, 208),
        }
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

    #[inline(always)]
    fn read(block: &[u8], group: usize) -> Group {
        Q4_0::read(block, group)
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

    #[inline(always)]
    fn read(block: &[u8], group: usize) -> Group {
        let low = u32::from(block[4 + group / 2] >> (group % 2 * 4)) & 0x0f;
        let high = half_at(block, 2) >> (2 * group) & 3;
        Group {
            q: nibbles(&block[8 + group * 16..]),
            scales: low | high << 4,
            supers: half_at(block, 0),
        }
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

    #[inline(always)]
    fn read(block: &[u8], _group: usize) -> Group {
        Group { q: nibbles(&block[1..]), scales: u32::from(block[0]), supers: 0 }
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
