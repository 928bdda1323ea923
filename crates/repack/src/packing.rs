//! Blocks of a row to words in the order of `order`, many groups at a time.
//!
//! Nibbles and bytes go through vectors. Of what is left each step is a loop over arrays of fixed length, which
//! compilers turn into vector instructions; one loop that does all of it per group they do not. A function is kept
//! out of its callers where its loop would otherwise be taken apart, and those that take a whole row into them, so
//! that a loop knows the size of a block. The arrays fit in a first-level cache.

use std::array;

use bytemuck::cast;
use wide::{u8x16, u16x8, u32x4};

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
pub(crate) fn pack_low(low: Low, blocks: &[u8], bytes: usize, high_bits: usize, row: &mut [u8]) {
    match high_bits {
        0 => pack::<1>(low, blocks, bytes, row),
        1 => pack::<2>(low, blocks, bytes, row),
        _ => pack::<3>(low, blocks, bytes, row),
    }
}

/// The same, with words turned by so many bits, but for those that select.
#[inline(always)]
fn pack<const TURNS: u32>(low: Low, blocks: &[u8], bytes: usize, row: &mut [u8]) {
    match low {
        Low::Halves { at } => nibbles::<1, 1, TURNS>(split, blocks, bytes, at, row),
        Low::Selectors { at } => nibbles::<1, 1, 0>(split_selectors, blocks, bytes, at, row),
        Low::EightSelectors { at } => nibbles::<1, 8, 0>(split_selectors, blocks, bytes, at, row),
        Low::Twos { at } => nibbles::<2, 4, TURNS>(split, blocks, bytes, at, row),
        Low::Fours { at } => nibbles::<4, 2, TURNS>(split, blocks, bytes, at, row),
        Low::Pairs { at } => {
            pairs(blocks, bytes, at, row);
            turn::<TURNS>(row);
        }
        Low::Bytes { at } => {
            let (first, second) = row.split_at_mut(row.len() / 2);
            unsigned(blocks, bytes, at, first);
            unsigned(blocks, bytes, at + 16, second);
        }
    }
}

/// Packs the high bits of a row of blocks. `pairs` says that the low bits are two a weight.
#[inline(always)]
pub(crate) fn pack_high(high: High, blocks: &[u8], bytes: usize, pairs: bool, row: &mut [u8]) {
    match high {
        High::None => {}
        High::Mask { at } => masks(blocks, bytes, at, row),
        High::Bits { at } if pairs => bits_above_pairs(blocks, bytes, at, row),
        High::Bits { at } => bits(blocks, bytes, at, row),
        High::Fields { at } => fields(blocks, bytes, at, row),
    }
}

/// `N` bytes of each block, from `at` on.
fn gather<const N: usize>(blocks: &[u8], bytes: usize, at: usize, out: &mut [[u8; N]]) {
    for (block, out) in blocks.chunks_exact(bytes).zip(out) {
        *out = *block[at..].first_chunk().expect("blocks have their format's size");
    }
}

/// Pairs of bytes, of which the first is the lower half.
#[inline(always)]
fn shorts(bytes: &[u8; 16]) -> u16x8 {
    let (pairs, _) = bytes.as_chunks();
    u16x8::new(array::from_fn(|i| u16::from_le_bytes(pairs[i])))
}

/// Each word turned to lower bits.
#[inline(always)]
fn turned<const TURNS: u32>(words: u32x4) -> u32x4 {
    if TURNS == 0 { words } else { (words >> TURNS) | (words << (32 - TURNS)) }
}

/// The lower bytes of 16 numbers, which are less than 256, as words that are turned.
#[inline(always)]
fn narrow<const TURNS: u32>(first: u16x8, second: u16x8) -> [u8; 16] {
    let bytes = u8x16::narrow_i16x8(cast(first), cast(second));
    cast(turned::<TURNS>(cast(bytes)))
}

/// Nibbles of blocks that have `N` runs of `V` vectors of 16 bytes: of each run, bytes of two low nibbles
/// of all of it, then bytes of two high ones.
#[inline(always)]
fn nibbles<const V: usize, const N: usize, const TURNS: u32>(
    split: impl Fn(u16x8) -> (u16x8, u16x8),
    blocks: &[u8],
    bytes: usize,
    at: usize,
    row: &mut [u8],
) {
    let (out, _) = row.as_chunks_mut::<16>();
    for (block, out) in blocks.chunks_exact(bytes).zip(out.chunks_exact_mut(V * N)) {
        let (source, _) = block[at..].as_chunks::<16>();
        for (source, out) in source.chunks_exact(V).zip(out.chunks_exact_mut(V)) {
            let halves: [_; V] = array::from_fn(|i| split(shorts(&source[i])));
            if V == 1 {
                out[0] = narrow::<TURNS>(halves[0].0, halves[0].1);
                continue;
            }
            let (low, high) = out.split_at_mut(V / 2);
            for (([a, b], low), high) in halves.as_chunks().0.iter().zip(low).zip(high) {
                *low = narrow::<TURNS>(a.0, b.0);
                *high = narrow::<TURNS>(a.1, b.1);
            }
        }
    }
}

/// Of each pair of bytes its low nibbles, and its high ones, the first column's highest.
#[inline(always)]
fn split(pairs: u16x8) -> (u16x8, u16x8) {
    let of = |mask: u16| u16x8::splat(mask);
    let low = ((pairs << 4_u16) & of(0xf0)) | ((pairs >> 8_u16) & of(0x0f));
    (low, (pairs & of(0xf0)) | (pairs >> 12_u16))
}

/// As [`split`], the first column's lowest.
#[inline(always)]
fn split_selectors(pairs: u16x8) -> (u16x8, u16x8) {
    let of = |mask: u16| u16x8::splat(mask);
    let low = (pairs & of(0x0f)) | ((pairs >> 4_u16) & of(0xf0));
    (low, ((pairs >> 4_u16) & of(0x0f)) | ((pairs >> 8_u16) & of(0xf0)))
}

/// 16 signed bytes of each block as unsigned ones, in words that are turned by a bit.
#[inline(always)]
fn unsigned(blocks: &[u8], bytes: usize, at: usize, out: &mut [u8]) {
    for (block, out) in blocks.chunks_exact(bytes).zip(out.as_chunks_mut::<16>().0) {
        let source: &[u8; 16] = block[at..].first_chunk().expect("blocks have their format's size");
        *out = cast(turned::<1>(cast::<_, u32x4>(*source) ^ u32x4::splat(0x8080_8080)));
    }
}

/// Rotates each word to lower bits.
#[inline(never)]
fn turn<const TURNS: u32>(row: &mut [u8]) {
    for word in row.as_chunks_mut().0 {
        *word = u32::from_le_bytes(*word).rotate_right(TURNS).to_le_bytes();
    }
}

/// Two-bit fields of 64 bytes a block: 8 bytes for each of eight groups.
fn pairs(blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    const BLOCKS: usize = GROUPS / 8;
    let mut source = [0; 64 * BLOCKS];
    let mut out = [0; 16 * BLOCKS];
    for (blocks, row) in blocks.chunks(BLOCKS * bytes).zip(row.chunks_mut(8 * GROUPS)) {
        gather::<64>(blocks, bytes, at, source.as_chunks_mut().0);
        let (row, _) = row.as_chunks_mut::<8>();
        for nth in 0..4 {
            fours::<3, 2, { 64 * BLOCKS }, { 16 * BLOCKS }>(&source, 2 * nth, &mut out);
            for (row, out) in row.iter_mut().skip(nth).step_by(4).zip(out.as_chunks().0) {
                *row = *out;
            }
        }
    }
}

/// Bytes of four two-bit numbers, the first column's highest: of each byte the bits `MASK << shift`,
/// moved down and then up so that they end at bit `UP`.
#[inline(never)]
fn fours<const MASK: u16, const UP: u32, const N: usize, const M: usize>(
    source: &[u8; N],
    shift: usize,
    out: &mut [u8; M],
) {
    let mut nibbles = [0; BYTES / 4];
    for (two, nibble) in source.as_chunks().0.iter().zip(&mut nibbles) {
        let both = u16::from_le_bytes(*two) >> shift & (MASK | MASK << 8);
        *nibble = ((both << 2 | both >> 8) << (2 - UP)) as u8;
    }
    for (two, out) in nibbles.as_chunks().0.iter().zip(out) {
        let both = u16::from_le_bytes(*two);
        *out = (both << 4 | both >> 8) as u8;
    }
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

fn masks(blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    for (block, out) in blocks.chunks_exact(bytes).zip(row.as_chunks_mut().0) {
        let mask: &[u8; 4] = block[at..].first_chunk().expect("blocks have their format's size");
        *out = joined(mask.map(|byte| SPREAD[usize::from(byte)])).to_le_bytes();
    }
}

#[inline(always)]
fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks();
    [words[0], words[1], words[2], words[3]].map(u32::from_le_bytes)
}

/// A bit for each of eight groups in 32 bytes a block.
fn bits(blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    const BLOCKS: usize = GROUPS / 8;
    let (mut source, mut out) = ([0; 32 * BLOCKS], [0; 16 * BLOCKS]);
    for (blocks, row) in blocks.chunks(BLOCKS * bytes).zip(row.chunks_mut(4 * GROUPS)) {
        gather::<32>(blocks, bytes, at, source.as_chunks_mut().0);
        let (row, _) = row.as_chunks_mut();
        for nth in 0..8 {
            twos::<1, { 32 * BLOCKS }, { 16 * BLOCKS }>(&source, nth, &mut out);
            for (row, out) in row.iter_mut().skip(nth).step_by(8).zip(out.as_chunks().0) {
                *row = joined(words(out)).to_le_bytes();
            }
        }
    }
}

/// As [`bits`], above low bits of which there are two a weight.
fn bits_above_pairs(blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    const BLOCKS: usize = GROUPS / 8;
    let (mut source, mut out) = ([0; 32 * BLOCKS], [0; 8 * BLOCKS]);
    for (blocks, row) in blocks.chunks(BLOCKS * bytes).zip(row.chunks_mut(4 * GROUPS)) {
        gather::<32>(blocks, bytes, at, source.as_chunks_mut().0);
        let (row, _) = row.as_chunks_mut();
        for nth in 0..8 {
            fours::<1, 1, { 32 * BLOCKS }, { 8 * BLOCKS }>(&source, nth, &mut out);
            for (row, out) in row.iter_mut().skip(nth).step_by(8).zip(out.as_chunks::<8>().0) {
                let [a, b, ..] = out.as_chunks().0 else { continue };
                let [a, b] = [*a, *b].map(u32::from_le_bytes);
                *row = (a.rotate_right(1) | b.rotate_right(2)).to_le_bytes();
            }
        }
    }
}

/// Two bits for each of four groups in each 32 of 64 bytes a block.
fn fields(blocks: &[u8], bytes: usize, at: usize, row: &mut [u8]) {
    const BLOCKS: usize = GROUPS / 8;
    let (mut source, mut out) = ([0; 64 * BLOCKS], [0; 32 * BLOCKS]);
    for (blocks, row) in blocks.chunks(BLOCKS * bytes).zip(row.chunks_mut(8 * GROUPS)) {
        gather::<64>(blocks, bytes, at, source.as_chunks_mut().0);
        let (row, _) = row.as_chunks_mut();
        for nth in 0..4 {
            twos::<2, { 64 * BLOCKS }, { 32 * BLOCKS }>(&source, 2 * nth, &mut out);
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
#[inline(never)]
fn twos<const WIDTH: u32, const N: usize, const M: usize>(
    source: &[u8; N],
    shift: usize,
    out: &mut [u8; M],
) {
    let mask = (1 << WIDTH) - 1;
    for (two, out) in source.as_chunks().0.iter().zip(out) {
        let both = u16::from_le_bytes(*two) >> shift & (mask | mask << 8);
        *out = (both << (8 - WIDTH) | both >> (4 + WIDTH)) as u8;
    }
}
