//! How each quantised type stores its weights: one [`Format`] per type.
//!
//! All give the same thing, 32 columns of `ROWS` rows at a time: unsigned 8-bit weights, one or two
//! scales and perhaps minimums. The layouts are ggml's; `m40_gguf::dequantize` says the same thing
//! one weight at a time.

use super::rows::Rows;
use super::simd::Simd;

/// 32 columns of `ROWS` rows. Weight (row, column) is `scale * (q - BIAS) + min`, with the scale
/// and minimum of the column's half (those of half 0 for all 32 when the format has no halves).
#[derive(Clone, Copy)]
pub(super) struct Group<S: Simd> {
    /// `quads[h][j]`: columns `16 h + 4 j..16 h + 4 j + 4`.
    pub(super) quads: [[S::Int; 4]; 2],
    pub(super) scales: [S::Float; 2],
    pub(super) mins: [S::Float; 2],
}

/// Takes the groups of a row in column order.
pub(super) trait Sink<S: Simd> {
    fn group(&mut self, s: S, group: Group<S>);
}

/// A quantised type.
pub(super) trait Format: 'static {
    /// Columns of a block, in groups of 32.
    const GROUPS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// What is added to weights to make them unsigned.
    const BIAS: u32 = 0;
    /// The largest weight, bias included.
    const MAX: u32;
    /// Each 16 columns have their own scale (and minimum).
    const HALVES: bool = false;
    /// Weights have minimums.
    const MINS: bool = false;

    /// Hands the groups of one block of each row to `sink`.
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>);
}

/// A group with one scale and no minimum.
#[inline(always)]
fn scaled<S: Simd>(s: S, quads: [[S::Int; 4]; 2], scale: S::Float) -> Group<S> {
    let zero = s.splat_float(0.0);
    Group { quads, scales: [scale; 2], mins: [zero; 2] }
}

/// A group with one scale and one minimum.
#[inline(always)]
fn shifted<S: Simd>(s: S, quads: [[S::Int; 4]; 2], scale: S::Float, min: S::Float) -> Group<S> {
    Group { mins: [min; 2], ..scaled(s, quads, scale) }
}

/// The 16 low nibbles, then the 16 high ones, of 16 bytes.
#[inline(always)]
fn nibbles<S: Simd>(s: S, bytes: [S::Int; 4]) -> [[S::Int; 4]; 2] {
    [fields(s, bytes, 0, 0x0f), fields(s, bytes, 4, 0x0f)]
}

/// The bits `mask << shift` of every byte, moved to the bottom.
#[inline(always)]
fn fields<S: Simd>(s: S, bytes: [S::Int; 4], shift: u32, mask: u8) -> [S::Int; 4] {
    let mask = s.splat(u32::from(mask) * 0x0101_0101);
    let mut out = bytes;
    for byte in &mut out {
        *byte = s.and(if shift == 0 { *byte } else { s.shr(*byte, shift) }, mask);
    }
    out
}

/// The bit `bit` of every byte, moved to `to`.
#[inline(always)]
fn one_bit<S: Simd>(s: S, bytes: [S::Int; 4], bit: u32, to: u32) -> [S::Int; 4] {
    let mask = s.splat(0x0101_0101 << to);
    let mut out = bytes;
    for byte in &mut out {
        *byte = s.and(move_bits(s, *byte, bit, to), mask);
    }
    out
}

/// Every lane shifted so that bit `from` becomes bit `to`.
#[inline(always)]
fn move_bits<S: Simd>(s: S, a: S::Int, from: u32, to: u32) -> S::Int {
    match from.cmp(&to) {
        std::cmp::Ordering::Less => s.shl(a, to - from),
        std::cmp::Ordering::Equal => a,
        std::cmp::Ordering::Greater => s.shr(a, from - to),
    }
}

#[inline(always)]
fn or4<S: Simd>(s: S, a: [S::Int; 4], b: [S::Int; 4]) -> [S::Int; 4] {
    let mut out = a;
    for j in 0..4 {
        out[j] = s.or(a[j], b[j]);
    }
    out
}

#[inline(always)]
fn xor4<S: Simd>(s: S, a: [S::Int; 4], bits: u32) -> [S::Int; 4] {
    let bits = s.splat(bits);
    let mut out = a;
    for a in &mut out {
        *a = s.xor(*a, bits);
    }
    out
}

#[inline(always)]
fn lookup4<S: Simd>(s: S, table: &[u8; 16], index: [S::Int; 4]) -> [S::Int; 4] {
    let mut out = index;
    for index in &mut out {
        *index = s.lookup(table, *index);
    }
    out
}

/// Byte `k` of every lane, as unsigned number.
#[inline(always)]
fn byte<S: Simd>(s: S, a: S::Int, k: u32) -> S::Float {
    s.to_float(s.and(s.shr(a, 8 * k), s.splat(0xff)))
}

/// Byte `k` of every lane, as signed number.
#[inline(always)]
fn signed_byte<S: Simd>(s: S, a: S::Int, k: u32) -> S::Float {
    s.to_float(s.sar(s.shl(a, 24 - 8 * k), 24))
}

/// The f16 in the high half of every lane.
#[inline(always)]
fn high_f16<S: Simd>(s: S, a: S::Int) -> S::Float {
    s.f16(s.shr(a, 16))
}

#[inline(always)]
fn neg<S: Simd>(s: S, a: S::Float) -> S::Float {
    s.mul(a, s.splat_float(-1.0))
}

/// f16 scale; 32 nibbles.
pub(super) struct Q4_0;
impl Format for Q4_0 {
    const GROUPS: usize = 1;
    const BYTES: usize = 18;
    const BIAS: u32 = 8;
    const MAX: u32 = 15;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let scale = s.f16(s.dwords(rows, 0));
        sink.group(s, scaled(s, nibbles(s, s.quads(rows, 2)), scale));
    }
}

/// f16 scale, f16 minimum; 32 nibbles.
pub(super) struct Q4_1;
impl Format for Q4_1 {
    const GROUPS: usize = 1;
    const BYTES: usize = 20;
    const MAX: u32 = 15;
    const MINS: bool = true;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let both = s.dwords(rows, 0);
        let quads = nibbles(s, s.quads(rows, 4));
        sink.group(s, shifted(s, quads, s.f16(both), high_f16(s, both)));
    }
}

/// Nibbles with their fifth bits, which are one u32 per block.
#[inline(always)]
fn five_bits<S: Simd>(s: S, low: [S::Int; 4], fifth: S::Int) -> [[S::Int; 4]; 2] {
    let mut quads = nibbles(s, low);
    for h in 0..2 {
        for j in 0..4 {
            quads[h][j] = s.or(quads[h][j], s.fifth_bits(fifth, (4 * h + j) as u32));
        }
    }
    quads
}

/// f16 scale; 32 fifth bits; 32 nibbles.
pub(super) struct Q5_0;
impl Format for Q5_0 {
    const GROUPS: usize = 1;
    const BYTES: usize = 22;
    const BIAS: u32 = 16;
    const MAX: u32 = 31;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let scale = s.f16(s.dwords(rows, 0));
        let quads = five_bits(s, s.quads(rows, 6), s.dwords(rows, 2));
        sink.group(s, scaled(s, quads, scale));
    }
}

/// f16 scale, f16 minimum; 32 fifth bits; 32 nibbles.
pub(super) struct Q5_1;
impl Format for Q5_1 {
    const GROUPS: usize = 1;
    const BYTES: usize = 24;
    const MAX: u32 = 31;
    const MINS: bool = true;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let both = s.dwords(rows, 0);
        let quads = five_bits(s, s.quads(rows, 8), s.dwords(rows, 4));
        sink.group(s, shifted(s, quads, s.f16(both), high_f16(s, both)));
    }
}

/// f16 scale; 32 signed bytes.
pub(super) struct Q8_0;
impl Format for Q8_0 {
    const GROUPS: usize = 1;
    const BYTES: usize = 34;
    const BIAS: u32 = 128;
    const MAX: u32 = 255;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let scale = s.f16(s.dwords(rows, 0));
        let low = xor4(s, s.quads(rows, 2), 0x8080_8080);
        let high = xor4(s, s.quads(rows, 18), 0x8080_8080);
        sink.group(s, scaled(s, [low, high], scale));
    }
}

/// 16 pairs of nibbles (scale, minimum), one per 16 columns; 256 two-bit weights; f16 factors of
/// the scales and of the minimums.
pub(super) struct Q2K;
impl Format for Q2K {
    const GROUPS: usize = 8;
    const BYTES: usize = 84;
    const MAX: u32 = 3;
    const HALVES: bool = true;
    const MINS: bool = true;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let factors = s.dwords(rows, 80);
        let (d, dmin) = (s.f16(factors), neg(s, high_f16(s, factors)));
        let packed = s.quads(rows, 0);
        let scales = fields(s, packed, 0, 0x0f);
        let mins = fields(s, packed, 4, 0x0f);
        for half in 0..2 {
            let low = s.quads(rows, 16 + 32 * half);
            let high = s.quads(rows, 32 + 32 * half);
            for i in 0..4 {
                let shift = 2 * i as u32;
                let (lane, k) = (2 * half + i / 2, 2 * (i % 2) as u32);
                sink.group(
                    s,
                    Group {
                        quads: [fields(s, low, shift, 3), fields(s, high, shift, 3)],
                        scales: two_bytes(s, scales[lane], k, d),
                        mins: two_bytes(s, mins[lane], k, dmin),
                    },
                );
            }
        }
    }
}

/// Bytes `k` and `k + 1` of every lane, times `factor`.
#[inline(always)]
fn two_bytes<S: Simd>(s: S, a: S::Int, k: u32, factor: S::Float) -> [S::Float; 2] {
    [s.mul(byte(s, a, k), factor), s.mul(byte(s, a, k + 1), factor)]
}

/// The same for signed bytes.
#[inline(always)]
fn two_signed_bytes<S: Simd>(s: S, a: S::Int, k: u32, factor: S::Float) -> [S::Float; 2] {
    [s.mul(signed_byte(s, a, k), factor), s.mul(signed_byte(s, a, k + 1), factor)]
}

/// Third bits of 256 weights, the low two bits of 256 weights, sixteen 6-bit scales (one per 16
/// columns, less 32), the f16 factor of the scales.
pub(super) struct Q3K;
impl Format for Q3K {
    const GROUPS: usize = 8;
    const BYTES: usize = 110;
    const BIAS: u32 = 4;
    const MAX: u32 = 7;
    const HALVES: bool = true;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let d = high_f16(s, s.dwords(rows, 106));
        let scales = q3k_scales(s, rows);
        let third = [s.quads(rows, 0), s.quads(rows, 16)];
        for half in 0..2 {
            let low = s.quads(rows, 32 + 32 * half);
            let high = s.quads(rows, 48 + 32 * half);
            for i in 0..4 {
                let (shift, bit) = (2 * i as u32, (4 * half + i) as u32);
                let (lane, k) = (2 * half + i / 2, 2 * (i % 2) as u32);
                let low = or4(s, fields(s, low, shift, 3), one_bit(s, third[0], bit, 2));
                let high = or4(s, fields(s, high, shift, 3), one_bit(s, third[1], bit, 2));
                let scales = two_signed_bytes(s, scales[lane], k, d);
                let mins = [s.splat_float(0.0); 2];
                sink.group(s, Group { quads: [low, high], scales, mins });
            }
        }
    }
}

/// The 16 scales as signed bytes. Their low nibbles are the nibbles of the first 8 bytes; their
/// high two bits are in the last 4, scale `i`'s at bit `2 (i / 4)` of byte `i % 4`.
#[inline(always)]
fn q3k_scales<S: Simd>(s: S, rows: &Rows<'_>) -> [S::Int; 4] {
    let low = [s.dwords(rows, 96), s.dwords(rows, 100)];
    let high = s.dwords(rows, 104);
    let two = s.splat(0x0303_0303);
    let mut out = [high; 4];
    for i in 0..4 {
        let nibble = s.and(s.shr(low[i % 2], 4 * (i / 2) as u32), s.splat(0x0f0f_0f0f));
        let top = s.shl(s.and(s.shr(high, 2 * i as u32), two), 4);
        // Six bits less 32 as signed byte: bit 5 flipped, then copied to the two bits above.
        let raw = s.xor(s.or(nibble, top), s.splat(0x2020_2020));
        let sign = s.and(raw, s.splat(0x2020_2020));
        out[i] = s.or(raw, s.or(s.shl(sign, 1), s.shl(sign, 2)));
    }
    out
}

/// The eight 6-bit scales and the eight 6-bit minimums of Q4_K and Q5_K, as bytes.
#[inline(always)]
fn six_bit_pairs<S: Simd>(s: S, packed: [S::Int; 3]) -> ([S::Int; 2], [S::Int; 2]) {
    let (six, four, two) = (s.splat(0x3f3f_3f3f), s.splat(0x0f0f_0f0f), s.splat(0x3030_3030));
    let [scales, mins, both] = packed;
    let top_scales = s.and(s.shr(scales, 2), two);
    let top_mins = s.and(s.shr(mins, 2), two);
    (
        [s.and(scales, six), s.or(s.and(both, four), top_scales)],
        [s.and(mins, six), s.or(s.and(s.shr(both, 4), four), top_mins)],
    )
}

/// What Q4_K and Q5_K begin with: f16 factors of scales and minimums, then both in 6 bits.
struct KHeader<S: Simd> {
    d: S::Float,
    dmin: S::Float,
    scales: [S::Int; 2],
    mins: [S::Int; 2],
}

impl<S: Simd> KHeader<S> {
    #[inline(always)]
    fn new(s: S, rows: &Rows<'_>) -> Self {
        let [factors, a, b, c] = s.quads(rows, 0);
        let (scales, mins) = six_bit_pairs(s, [a, b, c]);
        Self { d: s.f16(factors), dmin: neg(s, high_f16(s, factors)), scales, mins }
    }

    /// Group `g` with these weights.
    #[inline(always)]
    fn group(&self, s: S, g: usize, quads: [[S::Int; 4]; 2]) -> Group<S> {
        let k = (g % 4) as u32;
        let scale = s.mul(byte(s, self.scales[g / 4], k), self.d);
        let min = s.mul(byte(s, self.mins[g / 4], k), self.dmin);
        shifted(s, quads, scale, min)
    }
}

/// Header; 256 nibbles: 32 bytes have the nibbles of two groups.
pub(super) struct Q4K;
impl Format for Q4K {
    const GROUPS: usize = 8;
    const BYTES: usize = 144;
    const MAX: u32 = 15;
    const MINS: bool = true;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let header = KHeader::new(s, rows);
        for pair in 0..4 {
            let a = nibbles(s, s.quads(rows, 16 + 32 * pair));
            let b = nibbles(s, s.quads(rows, 32 + 32 * pair));
            sink.group(s, header.group(s, 2 * pair, [a[0], b[0]]));
            sink.group(s, header.group(s, 2 * pair + 1, [a[1], b[1]]));
        }
    }
}

/// Header; 32 bytes with one fifth bit for each group; 256 nibbles as in Q4_K.
pub(super) struct Q5K;
impl Format for Q5K {
    const GROUPS: usize = 8;
    const BYTES: usize = 176;
    const MAX: u32 = 31;
    const MINS: bool = true;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let header = KHeader::new(s, rows);
        let fifth = [s.quads(rows, 16), s.quads(rows, 32)];
        for pair in 0..4 {
            let a = nibbles(s, s.quads(rows, 48 + 32 * pair));
            let b = nibbles(s, s.quads(rows, 64 + 32 * pair));
            for i in 0..2 {
                let g = 2 * pair + i;
                let low = or4(s, a[i], one_bit(s, fifth[0], g as u32, 4));
                let high = or4(s, b[i], one_bit(s, fifth[1], g as u32, 4));
                sink.group(s, header.group(s, g, [low, high]));
            }
        }
    }
}

/// Low nibbles of 256 weights, their high two bits, sixteen 8-bit scales (one per 16 columns), the
/// f16 factor of the scales. Each half of the block has 64 bytes of nibbles (low ones: its first 64
/// columns, high ones: its last 64) and 32 bytes of high bits (two for each of its 4 groups).
pub(super) struct Q6K;
impl Format for Q6K {
    const GROUPS: usize = 8;
    const BYTES: usize = 210;
    const BIAS: u32 = 32;
    const MAX: u32 = 63;
    const HALVES: bool = true;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let d = high_f16(s, s.dwords(rows, 206));
        let scales = s.quads(rows, 192);
        for half in 0..2 {
            let top = [s.quads(rows, 128 + 32 * half), s.quads(rows, 144 + 32 * half)];
            for i in 0..4 {
                let at = 64 * half + 32 * (i % 2);
                let (lane, k) = (2 * half + i / 2, 2 * (i % 2) as u32);
                let shift = 4 * (i / 2) as u32;
                let low = fields(s, s.quads(rows, at), shift, 0x0f);
                let high = fields(s, s.quads(rows, at + 16), shift, 0x0f);
                let quads = [
                    or4(s, low, two_bits(s, top[0], 2 * i as u32)),
                    or4(s, high, two_bits(s, top[1], 2 * i as u32)),
                ];
                let scales = two_signed_bytes(s, scales[lane], k, d);
                sink.group(s, Group { quads, scales, mins: [s.splat_float(0.0); 2] });
            }
        }
    }
}

/// Bits `bit` and `bit + 1` of every byte, moved to bits 4 and 5.
#[inline(always)]
fn two_bits<S: Simd>(s: S, bytes: [S::Int; 4], bit: u32) -> [S::Int; 4] {
    let mask = s.splat(0x3030_3030);
    let mut out = bytes;
    for byte in &mut out {
        *byte = s.and(move_bits(s, *byte, bit, 4), mask);
    }
    out
}

/// The sixteen weights of the IQ4 types, plus 128.
const IQ4: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

/// f16 scale; 32 nibbles that index [`IQ4`].
pub(super) struct IQ4NL;
impl Format for IQ4NL {
    const GROUPS: usize = 1;
    const BYTES: usize = 18;
    const BIAS: u32 = 128;
    const MAX: u32 = 255;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let scale = s.f16(s.dwords(rows, 0));
        let [low, high] = nibbles(s, s.quads(rows, 2));
        let quads = [lookup4(s, &IQ4, low), lookup4(s, &IQ4, high)];
        sink.group(s, scaled(s, quads, scale));
    }
}

/// f16 factor of the scales; the high two bits of the eight 6-bit scales (less 32) and their low
/// nibbles; 256 nibbles that index [`IQ4`].
pub(super) struct IQ4XS;
impl Format for IQ4XS {
    const GROUPS: usize = 8;
    const BYTES: usize = 136;
    const BIAS: u32 = 128;
    const MAX: u32 = 255;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        let first = s.dwords(rows, 0);
        let low_scales = s.dwords(rows, 4);
        let d = s.f16(first);
        for g in 0..8 {
            let top = s.and(s.shr(first, 16 + 2 * g as u32), s.splat(3));
            let low = s.and(s.shr(low_scales, 4 * g as u32), s.splat(0x0f));
            let scale = s.sub(s.or(low, s.shl(top, 4)), s.splat(32));
            let [low, high] = nibbles(s, s.quads(rows, 8 + 16 * g));
            let quads = [lookup4(s, &IQ4, low), lookup4(s, &IQ4, high)];
            sink.group(s, scaled(s, quads, s.mul(s.to_float(scale), d)));
        }
    }
}

/// The sixteen weights of MXFP4 (twice the E2M1 values), plus 16.
const E2M1: [u8; 16] = [16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4];

/// An exponent byte; 32 nibbles that index [`E2M1`].
pub(super) struct Mxfp4;
impl Format for Mxfp4 {
    const GROUPS: usize = 1;
    const BYTES: usize = 17;
    const BIAS: u32 = 16;
    const MAX: u32 = 31;

    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>, sink: &mut impl Sink<S>) {
        // Half of 2^(e - 127): exponent field e - 1; the two subnormals, e = 0 and 1, from shifts.
        let e = s.and(s.dwords(rows, 0), s.splat(0xff));
        let normal = s.shl(s.sub(e, s.splat(1)), 23);
        let above_0 = s.shr(s.sub(s.splat(0), e), 31);
        let subnormal = s.max(s.splat(0x0020_0000), s.shl(above_0, 22));
        let scale = s.as_float(s.max(normal, subnormal));
        let [low, high] = nibbles(s, s.quads(rows, 1));
        let quads = [lookup4(s, &E2M1, low), lookup4(s, &E2M1, high)];
        sink.group(s, scaled(s, quads, scale));
    }
}

/// A type whose weights are used as f32: 16 bytes of a row at a time.
pub(super) trait FloatFormat: 'static {
    /// Bytes of a weight: 2 or 4.
    const BYTES: usize;
    /// The weights in the first 16 bytes of each row, column by column: `16 / BYTES` of them, the
    /// rest of the array is not used.
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>) -> [S::Float; 8];
}

pub(super) struct F32;
impl FloatFormat for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>) -> [S::Float; 8] {
        let quads = s.quads(rows, 0);
        let mut out = [s.splat_float(0.0); 8];
        for j in 0..4 {
            out[j] = s.as_float(quads[j]);
        }
        out
    }
}

pub(super) struct F16;
impl FloatFormat for F16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>) -> [S::Float; 8] {
        let quads = s.quads(rows, 0);
        let mut out = [s.splat_float(0.0); 8];
        for j in 0..4 {
            out[2 * j] = s.f16(quads[j]);
            out[2 * j + 1] = high_f16(s, quads[j]);
        }
        out
    }
}

pub(super) struct BF16;
impl FloatFormat for BF16 {
    const BYTES: usize = 2;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, rows: &Rows<'_>) -> [S::Float; 8] {
        let quads = s.quads(rows, 0);
        let mut out = [s.splat_float(0.0); 8];
        for j in 0..4 {
            out[2 * j] = s.as_float(s.shl(quads[j], 16));
            out[2 * j + 1] = s.as_float(s.and(quads[j], s.splat(0xffff_0000)));
        }
        out
    }
}
