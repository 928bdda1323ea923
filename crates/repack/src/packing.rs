//! Blocks of a row to words in the order of `order`, many groups at a time.
//!
//! Each step is a loop over arrays of fixed length, which compilers turn into vector instructions;
//! one loop that does all of it per group they do not. A function is kept out of its callers where
//! its loop would otherwise be taken apart. The arrays fit in a first-level cache.

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
pub(crate) fn pack_low(low: Low, blocks: &[u8], bytes: usize, high_bits: usize, row: &mut [u8]) {
    match low {
        Low::Halves { at } => nibbles::<16, 8>(split, blocks, bytes, at, row),
        Low::Selectors { at } => {
            return nibbles::<16, 8>(split_selectors, blocks, bytes, at, row);
        }
        Low::EightSelectors { at } => {
            return nibbles::<128, 8>(split_selectors, blocks, bytes, at, row);
        }
        Low::Twos { at } => nibbles::<128, 16>(split, blocks, bytes, at, row),
        Low::Fours { at } => nibbles::<128, 32>(split, blocks, bytes, at, row),
        Low::Pairs { at } => pairs(blocks, bytes, at, row),
        Low::Bytes { at } => {
            let (first, second) = row.split_at_mut(row.len() / 2);
            gather::<16>(blocks, bytes, at, first.as_chunks_mut().0);
            gather::<16>(blocks, bytes, at + 16, second.as_chunks_mut().0);
            // As unsigned bytes.
            return turn::<1, 0x8080_8080>(row);
        }
    }
    match high_bits {
        0 => turn::<1, 0>(row),
        1 => turn::<2, 0>(row),
        _ => turn::<3, 0>(row),
    }
}

/// Packs the high bits of a row of blocks. `pairs` says that the low bits are two a weight.
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

/// Nibbles of blocks with `N` bytes of them, split by `split` into low and high ones, of which `M`
/// bytes follow each other in turn.
fn nibbles<const N: usize, const M: usize>(
    split: fn(&[u8; BYTES], &mut [u8; BYTES / 2], &mut [u8; BYTES / 2]),
    blocks: &[u8],
    bytes: usize,
    at: usize,
    row: &mut [u8],
) {
    let (mut source, mut low, mut high) = ([0; BYTES], [0; BYTES / 2], [0; BYTES / 2]);
    for (blocks, row) in blocks.chunks(BYTES / N * bytes).zip(row.chunks_mut(BYTES)) {
        gather::<N>(blocks, bytes, at, source.as_chunks_mut().0);
        split(&source, &mut low, &mut high);
        let (out, _) = row.as_chunks_mut::<M>();
        let (out, _) = out.as_chunks_mut::<2>();
        let halves = low.as_chunks::<M>().0.iter().zip(high.as_chunks::<M>().0);
        for ([first, second], (low, high)) in out.iter_mut().zip(halves) {
            (*first, *second) = (*low, *high);
        }
    }
}

/// Bytes of two low nibbles, and of two high ones, the first column's highest.
#[inline(never)]
fn split(source: &[u8; BYTES], low: &mut [u8; BYTES / 2], high: &mut [u8; BYTES / 2]) {
    for ((two, low), high) in source.as_chunks().0.iter().zip(low).zip(high) {
        let short = u16::from_le_bytes(*two);
        *low = (short << 4 | (short >> 8 & 0x0f)) as u8;
        *high = (short & 0xf0 | short >> 12) as u8;
    }
}

/// As [`split`], the first column's lowest.
#[inline(never)]
fn split_selectors(source: &[u8; BYTES], low: &mut [u8; BYTES / 2], high: &mut [u8; BYTES / 2]) {
    for ((two, low), high) in source.as_chunks().0.iter().zip(low).zip(high) {
        let short = u16::from_le_bytes(*two);
        *low = (short & 0x0f | (short >> 4 & 0xf0)) as u8;
        *high = ((short >> 4 & 0x0f) | (short >> 8 & 0xf0)) as u8;
    }
}

/// Changes the bits `FLIPS` of each word, then rotates it to lower bits.
#[inline(never)]
fn turn<const TURNS: u32, const FLIPS: u32>(row: &mut [u8]) {
    for word in row.as_chunks_mut().0 {
        *word = (u32::from_le_bytes(*word) ^ FLIPS).rotate_right(TURNS).to_le_bytes();
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
