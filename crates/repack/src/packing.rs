//! Blocks of a row to words in the order of `order`, many groups at a time.
//!
//! Nibbles and bytes go through vectors. Of what is left each step is a loop over arrays of fixed length, which
//! compilers turn into vector instructions; one loop that does all of it per group they do not. A function is kept
//! out of its callers (`vectorize`) where its loop would otherwise be taken apart, and those that take a whole row
//! into them, so that a loop knows the size of a block. The arrays fit in a first-level cache. All is compiled for
//! each of the instruction sets of `fearless_simd`, which is why functions that take `simd` are inlined.

use bytemuck::cast;
use fearless_simd::prelude::*;
use fearless_simd::{Simd, u8x16, u8x32, u16x16, u32x8, u64x2};

/// Groups that are packed at a time: 1024 columns.
const GROUPS: usize = 32;

/// Bytes of 32 groups of 32 nibbles.
const BYTES: usize = 16 * GROUPS;

/// Where a type's blocks have the weights, or their low bits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Low {
    /// From byte `at` on, 32 nibbles in 16 bytes for each group: the low nibbles are the first 16.
    Halves { at: usize },
    /// As `Halves`, for weights that select from a table.
    Selectors { at: usize },
    /// As `Selectors`, eight groups a block.
    EightSelectors { at: usize },
    /// From byte `at` on, each 32 bytes have a group in the low nibbles, the next in the high ones.
    Twos { at: usize },
    /// From byte `at` on, each 64 bytes have two groups in the low nibbles, two in the high ones.
    Fours { at: usize },
    /// From byte `at` on, each 32 bytes have four groups in fields of two bits, lowest first.
    Pairs { at: usize },
    /// From byte `at` on, signed bytes.
    Bytes { at: usize },
}

/// Where a type's blocks have high bits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum High {
    None,
    /// From byte `at` on, 32 bits of the one group, first column lowest.
    Mask {
        at: usize,
    },
    /// In the 32 bytes from `at` on, a bit for each of eight groups, first group lowest.
    Bits {
        at: usize,
    },
    /// From byte `at` on, each 32 bytes have two bits for each of four groups, lowest first.
    Fields {
        at: usize,
    },
}

/// Packs the low bits of a row of blocks of `bytes` bytes. `row` is the row's part of the plane;
/// `high_bits` are those of a weight in another plane, at most 2.
#[inline(always)]
pub(crate) fn pack_low<S: Simd>(
    simd: S,
    low: Low,
    blocks: &[u8],
    bytes: usize,
    high_bits: usize,
    row: &mut [u8],
) {
    match high_bits {
        0 => pack::<S, 1>(simd, low, blocks, bytes, row),
        1 => pack::<S, 2>(simd, low, blocks, bytes, row),
        _ => pack::<S, 3>(simd, low, blocks, bytes, row),
    }
}

/// The same, with words turned by so many bits, but for those that select.
#[inline(always)]
fn pack<S: Simd, const TURNS: u32>(simd: S, low: Low, blocks: &[u8], bytes: usize, row: &mut [u8]) {
    match low {
        Low::Halves { at } => halves::<S, Turned<TURNS>>(simd, blocks, bytes, at, row),
        Low::Selectors { at } => halves::<S, Selectors>(simd, blocks, bytes, at, row),
        Low::EightSelectors { at } => {
            for (block, row) in blocks.chunks_exact(bytes).zip(row.chunks_exact_mut(128)) {
                halves::<S, Selectors>(simd, &block[at..][..128], 16, 0, row);
            }
        }
        Low::Twos { at } => runs::<S, Turned<TURNS>, 1, 4>(simd, blocks, bytes, at, row),
        Low::Fours { at } => runs::<S, Turned<TURNS>, 2, 2>(simd, blocks, bytes, at, row),
        Low::Pairs { at } => {
            pairs(simd, blocks, bytes, at, row);
            turn::<S, TURNS>(simd, row);
        }
        Low::Bytes { at } => unsigned(simd, blocks, bytes, at, row),
    }
}

/// Packs the high bits of a row of blocks. `pairs` says that the low bits are two a weight.
#[inline(always)]
pub(crate) fn pack_high<S: Simd>(
    simd: S,
    high: High,
    blocks: &[u8],
    bytes: usize,
    pairs: bool,
    row: &mut [u8],
) {
    match high {
        High::None => {}
        High::Mask { at } => masks(blocks, bytes, at, row),
        High::Bits { at } if pairs => bits_above_pairs(simd, blocks, bytes, at, row),
        High::Bits { at } => bits(simd, blocks, bytes, at, row),
        High::Fields { at } => fields(simd, blocks, bytes, at, row),
    }
}

/// `N` bytes of a block, from `at` on.
#[inline(always)]
pub(crate) fn bytes_at<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    *block[at..].first_chunk().expect("blocks have their format's size")
}

/// `N` bytes of each block, from `at` on.
#[inline(always)]
fn gather<const N: usize>(blocks: &[u8], bytes: usize, at: usize, out: &mut [[u8; N]]) {
    for (block, out) in blocks.chunks_exact(bytes).zip(out) {
        *out = bytes_at(block, at);
    }
}

/// Each word turned to lower bits.
#[inline(always)]
fn turned<S: Simd, const TURNS: u32>(bytes: u8x32<S>) -> u8x32<S> {
    let words: u32x8<S> = bytes.bitcast();
    ((words >> TURNS) | (words << (32 - TURNS))).bitcast()
}

/// How nibbles are joined. A trait, as functions that are arguments are not always inlined.
trait Nibbles {
    /// Of each 16 bytes: of pairs of bytes the low nibbles as a byte, then the high ones.
    fn pack<S: Simd>(simd: S, bytes: u8x32<S>) -> u8x32<S>;
}

/// The first column's highest, in words that are turned by so many bits.
struct Turned<const TURNS: u32>;

impl<const TURNS: u32> Nibbles for Turned<TURNS> {
    #[inline(always)]
    fn pack<S: Simd>(simd: S, bytes: u8x32<S>) -> u8x32<S> {
        const OTHER: [u8; 16] = [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14];
        turned::<S, TURNS>(Selectors::pack(simd, reordered(simd, bytes, OTHER)))
    }
}

/// The first column's lowest, in words as they are.
struct Selectors;

impl Nibbles for Selectors {
    #[inline(always)]
    fn pack<S: Simd>(simd: S, bytes: u8x32<S>) -> u8x32<S> {
        const EVEN_THEN_ODD: [u8; 16] = [0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15];
        // A pair's two inner nibbles change places.
        let pairs: u16x16<S> = bytes.bitcast();
        let pairs = (pairs & 0xf00f) | ((pairs & 0x00f0) << 4) | ((pairs >> 4) & 0x00f0);
        reordered(simd, pairs.bitcast(), EVEN_THEN_ODD)
    }
}

/// Each 16 bytes in the order of `from`.
#[inline(always)]
fn reordered<S: Simd>(simd: S, bytes: u8x32<S>, from: [u8; 16]) -> u8x32<S> {
    let from = u8x16::simd_from(simd, from);
    simd.swizzle_dyn_within_blocks_u8x32(bytes, from.combine(from))
}

/// 16 bytes of a block, from `at` on.
#[inline(always)]
fn source<S: Simd>(simd: S, block: &[u8], at: usize) -> u8x16<S> {
    u8x16::simd_from(simd, bytes_at::<16>(block, at))
}

/// Nibbles of blocks that have 16 bytes of them: of each block what `N` makes of the low ones, then of
/// the high ones.
#[inline(always)]
fn halves<S: Simd, N: Nibbles>(simd: S, blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    let pairs = blocks.chunks_exact(2 * bytes);
    let last = pairs.remainder();
    let (rows, last_row) = row.as_chunks_mut::<32>();
    for (pair, out) in pairs.zip(rows) {
        let [first, second] = [source(simd, pair, at), source(simd, pair, bytes + at)];
        *out = N::pack(simd, first.combine(second)).into();
    }
    if !last.is_empty() {
        let last = source(simd, last, at);
        let (packed, _) = N::pack(simd, last.combine(last)).split();
        packed.store_slice(last_row);
    }
}

/// Nibbles of blocks that have `RUNS` runs of `V` times 32 bytes of them: of each run what `N` makes of all low
/// nibbles, then of the high ones.
#[inline(always)]
fn runs<S: Simd, N: Nibbles, const V: usize, const RUNS: usize>(
    simd: S,
    blocks: &[u8],
    bytes: usize,
    at: usize,
    row: &mut [u8],
) {
    let (out, _) = row.as_chunks_mut::<16>();
    for (block, out) in blocks.chunks_exact(bytes).zip(out.chunks_exact_mut(2 * V * RUNS)) {
        let (source, _) = block[at..].as_chunks::<32>();
        for (source, out) in source.chunks_exact(V).zip(out.chunks_exact_mut(2 * V)) {
            let (lows, highs) = out.split_at_mut(V);
            for ((source, low), high) in source.iter().zip(lows).zip(highs) {
                let (first, second) = N::pack(simd, u8x32::<S>::simd_from(simd, *source)).split();
                let (first, second): (u64x2<S>, u64x2<S>) = (first.bitcast(), second.bitcast());
                *low = first.zip_low(second).to_bytes().into();
                *high = first.zip_high(second).to_bytes().into();
            }
        }
    }
}

/// 32 signed bytes of each block as unsigned ones, in words that are turned by a bit: the first 16 in
/// the first half of a row.
#[inline(always)]
fn unsigned<S: Simd>(simd: S, blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    let (first, second) = row.split_at_mut(row.len() / 2);
    let (first, second) = (first.as_chunks_mut::<16>().0, second.as_chunks_mut::<16>().0);
    let halves = first.iter_mut().zip(second);
    for (block, (first, second)) in blocks.chunks_exact(bytes).zip(halves) {
        let signed = u8x32::simd_from(simd, bytes_at::<32>(block, at));
        [*first, *second] = cast(<[u8; 32]>::from(turned::<S, 1>(signed ^ 0x80)));
    }
}

/// Rotates each word to lower bits.
#[inline(always)]
fn turn<S: Simd, const TURNS: u32>(simd: S, row: &mut [u8]) {
    simd.vectorize(
        #[inline(always)]
        || {
            for word in row.as_chunks_mut().0 {
                *word = u32::from_le_bytes(*word).rotate_right(TURNS).to_le_bytes();
            }
        },
    );
}

/// Two-bit fields of 64 bytes a block: 8 bytes for each of eight groups.
#[inline(always)]
fn pairs<S: Simd>(simd: S, blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    const BLOCKS: usize = GROUPS / 8;
    let mut source = [0; 64 * BLOCKS];
    let mut out = [0; 16 * BLOCKS];
    for (blocks, row) in blocks.chunks(BLOCKS * bytes).zip(row.chunks_mut(8 * GROUPS)) {
        gather::<64>(blocks, bytes, at, source.as_chunks_mut().0);
        let (row, _) = row.as_chunks_mut::<8>();
        for nth in 0..4 {
            fours::<S, 3, 2, { 64 * BLOCKS }, { 16 * BLOCKS }>(simd, &source, 2 * nth, &mut out);
            for (row, out) in row.iter_mut().skip(nth).step_by(4).zip(out.as_chunks().0) {
                *row = *out;
            }
        }
    }
}

/// Bytes of four two-bit numbers, the first column's highest: of each byte the bits `MASK << shift`,
/// moved down and then up so that they end at bit `UP`.
#[inline(always)]
fn fours<S: Simd, const MASK: u16, const UP: u32, const N: usize, const M: usize>(
    simd: S,
    source: &[u8; N],
    shift: usize,
    out: &mut [u8; M],
) {
    simd.vectorize(
        #[inline(always)]
        || {
            let mut nibbles = [0; BYTES / 4];
            for (two, nibble) in source.as_chunks().0.iter().zip(&mut nibbles) {
                let both = u16::from_le_bytes(*two) >> shift & (MASK | MASK << 8);
                *nibble = ((both << 2 | both >> 8) << (2 - UP)) as u8;
            }
            for (two, out) in nibbles.as_chunks().0.iter().zip(out) {
                let both = u16::from_le_bytes(*two);
                *out = (both << 4 | both >> 8) as u8;
            }
        },
    );
}

/// Where the bits of 8 columns are in a word before it is rotated: the first column's at bit 7, the
/// next at bit 3 of the first byte, and so on.
const SPREAD: [u32; 256] = {
    let mut table = [0; 256];
    let mut mask = 0;
    while mask < 256 {
        let mut column = 0;
        while column < 8 {
            let bit = column / 2 * 8 + 7 - column % 2 * 4;
            table[mask] |= ((mask >> column & 1) as u32) << bit;
            column += 1;
        }
        mask += 1;
    }
    table
};

/// Four words' high bits, one a weight, joined.
#[inline(always)]
fn joined([a, b, c, d]: [u32; 4]) -> u32 {
    a.rotate_right(1) | b.rotate_right(2) | c.rotate_right(3) | d.rotate_right(4)
}

#[inline(always)]
fn masks(blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    for (block, out) in blocks.chunks_exact(bytes).zip(row.as_chunks_mut().0) {
        *out = joined(bytes_at::<4>(block, at).map(|byte| SPREAD[usize::from(byte)])).to_le_bytes();
    }
}

#[inline(always)]
fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks();
    [words[0], words[1], words[2], words[3]].map(u32::from_le_bytes)
}

/// A bit for each of eight groups in 32 bytes a block.
#[inline(always)]
fn bits<S: Simd>(simd: S, blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    const BLOCKS: usize = GROUPS / 8;
    let (mut source, mut out) = ([0; 32 * BLOCKS], [0; 16 * BLOCKS]);
    for (blocks, row) in blocks.chunks(BLOCKS * bytes).zip(row.chunks_mut(4 * GROUPS)) {
        gather::<32>(blocks, bytes, at, source.as_chunks_mut().0);
        let (row, _) = row.as_chunks_mut();
        for nth in 0..8 {
            twos::<S, 1, { 32 * BLOCKS }, { 16 * BLOCKS }>(simd, &source, nth, &mut out);
            for (row, out) in row.iter_mut().skip(nth).step_by(8).zip(out.as_chunks().0) {
                *row = joined(words(out)).to_le_bytes();
            }
        }
    }
}

/// As [`bits`], above low bits of which there are two a weight.
#[inline(always)]
fn bits_above_pairs<S: Simd>(simd: S, blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    const BLOCKS: usize = GROUPS / 8;
    let (mut source, mut out) = ([0; 32 * BLOCKS], [0; 8 * BLOCKS]);
    for (blocks, row) in blocks.chunks(BLOCKS * bytes).zip(row.chunks_mut(4 * GROUPS)) {
        gather::<32>(blocks, bytes, at, source.as_chunks_mut().0);
        let (row, _) = row.as_chunks_mut();
        for nth in 0..8 {
            fours::<S, 1, 1, { 32 * BLOCKS }, { 8 * BLOCKS }>(simd, &source, nth, &mut out);
            for (row, out) in row.iter_mut().skip(nth).step_by(8).zip(out.as_chunks::<8>().0) {
                let [a, b, ..] = out.as_chunks().0 else { continue };
                let [a, b] = [*a, *b].map(u32::from_le_bytes);
                *row = (a.rotate_right(1) | b.rotate_right(2)).to_le_bytes();
            }
        }
    }
}

/// Two bits for each of four groups in each 32 of 64 bytes a block.
#[inline(always)]
fn fields<S: Simd>(simd: S, blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    const BLOCKS: usize = GROUPS / 8;
    let (mut source, mut out) = ([0; 64 * BLOCKS], [0; 32 * BLOCKS]);
    for (blocks, row) in blocks.chunks(BLOCKS * bytes).zip(row.chunks_mut(8 * GROUPS)) {
        gather::<64>(blocks, bytes, at, source.as_chunks_mut().0);
        let (row, _) = row.as_chunks_mut();
        for nth in 0..4 {
            twos::<S, 2, { 64 * BLOCKS }, { 32 * BLOCKS }>(simd, &source, 2 * nth, &mut out);
            for (row, out) in row.iter_mut().skip(nth).step_by(4).zip(out.as_chunks().0) {
                let [a, b, c, d] = words(out);
                let low = a.rotate_right(1) | b.rotate_right(3);
                let high = c.rotate_right(1) | d.rotate_right(3);
                *row = (u64::from(low) | u64::from(high) << 32).to_le_bytes();
            }
        }
    }
}

/// Bytes of two nibbles, the first column's highest, whose upper bits are `WIDTH` bits of each byte
/// from bit `shift` on.
#[inline(always)]
fn twos<S: Simd, const WIDTH: u32, const N: usize, const M: usize>(
    simd: S,
    source: &[u8; N],
    shift: usize,
    out: &mut [u8; M],
) {
    let mask = (1 << WIDTH) - 1;
    simd.vectorize(
        #[inline(always)]
        || {
            for (two, out) in source.as_chunks().0.iter().zip(out) {
                let both = u16::from_le_bytes(*two) >> shift & (mask | mask << 8);
                *out = (both << (8 - WIDTH) | both >> (4 + WIDTH)) as u8;
            }
        },
    );
}
