//! Rows of a matrix, in memory of their own: the unit in which threads share the work.

use std::ops::Range;

use crate::columns::Sixteen;
use crate::format::{Format, Group, Quants, Scales, Shape};
use crate::layout::{GROUP, Layout, QUAD, Role, SUPER};
use crate::order::Words;
use crate::{RepackError, formats};

/// Groups that share a super-scale.
const GROUPS_PER_SUPER: usize = SUPER / GROUP;

/// The planes of some consecutive rows, mutable.
#[derive(Debug)]
pub struct Stripe<'a> {
    layout: Layout,
    rows: Range<usize>,
    planes: [&'a mut [u8]; Role::ALL.len()],
}

impl<'a> Stripe<'a> {
    /// Cuts memory of the layout's size into stripes of `quads` quads.
    pub(crate) fn cut(layout: &Layout, mut memory: &'a mut [u8], quads: usize) -> Vec<Self> {
        let mut at = 0;
        let mut planes = Role::ALL.map(|role| {
            let plane = layout.plane(role);
            let bytes = plane.quad_bytes * layout.quads();
            if bytes == 0 {
                return Default::default();
            }
            let (before, rest) = std::mem::take(&mut memory).split_at_mut(plane.offset - at);
            before.fill(0);
            let (plane_memory, rest) = rest.split_at_mut(bytes);
            (memory, at) = (rest, plane.offset + bytes);
            plane_memory
        });
        let mut stripes = Vec::with_capacity(layout.quads().div_ceil(quads));
        for first in (0..layout.quads()).step_by(quads) {
            let end = (first + quads).min(layout.quads());
            let mut role = Role::ALL.iter();
            let planes = planes.each_mut().map(|plane| {
                let role = *role.next().expect("as many planes as roles");
                let bytes = layout.plane(role).quad_bytes * (end - first);
                let (head, rest) = std::mem::take(plane).split_at_mut(bytes);
                *plane = rest;
                head
            });
            let rows = first * QUAD..(end * QUAD).min(layout.rows());
            stripes.push(Self { layout: *layout, rows, planes });
        }
        stripes
    }

    /// The rows of the matrix that this stripe holds.
    pub fn rows(&self) -> Range<usize> {
        self.rows.clone()
    }

    /// Writes the stripe: `blocks` are the GGUF blocks of [`rows`](Self::rows). All bytes are
    /// written, padding rows as zeros.
    ///
    /// # Errors
    /// [`RepackError::BlockBytes`] when `blocks` has another length; nothing is written then.
    pub fn fill(mut self, blocks: &[u8]) -> Result<(), RepackError> {
        let layout = self.layout;
        layout.check_blocks(self.rows.len(), blocks)?;
        if !self.rows.len().is_multiple_of(QUAD) {
            self.planes.iter_mut().for_each(|plane| plane.fill(0));
        }
        formats::fill(&layout, &mut self, blocks);
        Ok(())
    }
}

/// Bytes `at..at + N` of a plane.
#[inline(always)]
fn field<const N: usize>(plane: &mut [u8], at: usize) -> &mut [u8; N] {
    plane[at..].first_chunk_mut().expect("planes have their layout's size")
}

/// Where the fields of a group lie in the planes of a stripe.
struct Address {
    row: usize,
    group: usize,
    groups: usize,
    /// Of the group of this row in planes ordered by row.
    by_row: usize,
    /// Of the group of this row in planes ordered by quad.
    by_quad: usize,
    /// Of the group of all four rows.
    of_quad: usize,
    /// Of the super-group of this row, in planes ordered by quad.
    supers: usize,
}

impl Address {
    #[inline(always)]
    fn of(layout: &Layout, row: usize, group: usize) -> Self {
        let groups = layout.groups();
        let (quad, lane) = (row / QUAD, row % QUAD);
        let of_quad = quad * groups + group;
        let supers = quad * layout.cols().div_ceil(SUPER) + group / GROUPS_PER_SUPER;
        Self {
            row,
            group,
            groups,
            by_row: row * groups + group,
            by_quad: of_quad * QUAD + lane,
            of_quad,
            supers: supers * QUAD + lane,
        }
    }

    /// Of the 16-byte part `part` of a group of `parts`: all first parts of a row come first.
    #[inline(always)]
    const fn part(&self, part: usize, parts: usize) -> usize {
        ((self.row * parts + part) * self.groups + self.group) * 16
    }
}

/// The planes of a quad of rows.
struct Quad<'a> {
    planes: [&'a mut [u8]; Role::ALL.len()],
}

impl<'a> Quad<'a> {
    /// All quads of a stripe.
    fn all(stripe: &'a mut Stripe<'_>) -> impl Iterator<Item = Self> {
        let layout = stripe.layout;
        let mut rests = stripe.planes.each_mut().map(|plane| &mut **plane);
        let quads = stripe.rows.len().div_ceil(QUAD);
        (0..quads).map(move |_| {
            let mut roles = Role::ALL.iter();
            let planes = rests.each_mut().map(|rest| {
                let role = *roles.next().expect("as many planes as roles");
                let (quad, others) =
                    std::mem::take(rest).split_at_mut(layout.plane(role).quad_bytes);
                *rest = others;
                quad
            });
            Self { planes }
        })
    }
}

/// Writes rows of blocks to a stripe.
pub(crate) fn fill<F: Format>(stripe: &mut Stripe<'_>, layout: &Layout, blocks: &[u8]) {
    let row_bytes = layout.row_bytes();
    for (quad, blocks) in Quad::all(stripe).zip(blocks.chunks(QUAD * row_bytes)) {
        // Of a row that is not there nothing is written, and its place is zeroed.
        let mut rows = blocks.chunks_exact(row_bytes);
        let rows = [(); QUAD].map(|()| rows.next().unwrap_or_default());
        fill_quad::<F>(quad, layout, rows);
    }
}

fn fill_quad<F: Format>(quad: Quad<'_>, layout: &Layout, rows: [&[u8]; QUAD]) {
    let shape = F::SHAPE;
    let [quants, high, scales, tops, supers] = quad.planes;
    let per_row = |plane: &[u8]| (plane.len() / QUAD).max(1);
    let (quant_bytes, high_bytes) = (per_row(quants), per_row(high));
    let mut quants = quants.chunks_exact_mut(quant_bytes);
    let mut high = high.chunks_exact_mut(high_bytes);
    let mut rows = rows.map(|row| Row {
        blocks: row.chunks_exact(F::BYTES),
        quants: quants.next().unwrap_or_default(),
        high: high.next().unwrap_or_default(),
    });
    let groups = layout.groups();
    for first in (0..groups).step_by(F::GROUPS) {
        let mut words = [[0; QUAD]; MOST_GROUPS];
        let mut super_words = [0; QUAD];
        for (lane, row) in rows.iter_mut().enumerate() {
            let Some(block) = row.blocks.next() else { break };
            for (within, words) in words[..F::GROUPS].iter_mut().enumerate() {
                let group = F::read(block, within);
                row.write(&shape, groups, first + within, &group);
                words[lane] = group.scales;
                super_words[lane] = group.supers;
            }
        }
        for (words, at) in words[..F::GROUPS].iter().zip(first..) {
            write_scales(shape.scales, at, *words, scales, tops);
        }
        let at = first / GROUPS_PER_SUPER * QUAD;
        match shape.super_bytes {
            2 => *field(supers, at * 2) = shorts(super_words),
            4 => *field(supers, at * 4) = longs(super_words),
            _ => {}
        }
    }
}

/// The most groups of a block.
const MOST_GROUPS: usize = 8;

/// A row of blocks, and what of the planes is its own.
struct Row<'a> {
    blocks: std::slice::ChunksExact<'a, u8>,
    quants: &'a mut [u8],
    high: &'a mut [u8],
}

impl Row<'_> {
    #[inline(always)]
    fn write(&mut self, shape: &Shape, groups: usize, at: usize, group: &Group) {
        let words = Words::pack(shape, group);
        match shape.quants {
            Quants::Pairs => {
                let [low, high, ..] = words.low[0].words();
                *field(self.quants, at * 8) =
                    (u64::from(low) | u64::from(high) << 32).to_le_bytes();
            }
            Quants::Nibbles | Quants::Selectors => {
                *field(self.quants, at * 16) = words.low[0].bytes();
            }
            Quants::Bytes => {
                *field(self.quants, at * 16) = words.low[0].bytes();
                *field(self.quants, (groups + at) * 16) = words.low[1].bytes();
            }
            Quants::Numbers(_) => unreachable!("numbers have no groups of quants"),
        }
        let [low, top] = words.high;
        match shape.high_bits {
            1 => *field(self.high, at * 4) = low.to_le_bytes(),
            2 => *field(self.high, at * 8) = (u64::from(low) | u64::from(top) << 32).to_le_bytes(),
            _ => {}
        }
    }
}

/// Writes the scales of group `at` of four rows.
#[inline(always)]
fn write_scales(of: Scales, at: usize, words: [u32; QUAD], scales: &mut [u8], tops: &mut [u8]) {
    match of {
        Scales::None => {}
        Scales::Byte => *field(scales, at * 4) = words.map(|word| word as u8),
        Scales::Twelve => {
            *field(scales, at * 4) = words.map(|word| word as u8);
            // The four rows' top nibbles share 16 bits, row 0 lowest.
            let [a, b, c, d] = words.map(|word| (word >> 8) as u16 & 0x0f);
            *field(tops, at * 2) = (a | b << 4 | c << 8 | d << 12).to_le_bytes();
        }
        Scales::Short => *field(scales, at * 8) = shorts(words),
        Scales::Word => *field(scales, at * 16) = longs(words),
    }
}

#[inline(always)]
fn shorts(words: [u32; QUAD]) -> [u8; 8] {
    let [a, b, c, d] = words.map(|word| u64::from(word as u16));
    (a | b << 16 | c << 32 | d << 48).to_le_bytes()
}

#[inline(always)]
fn longs(words: [u32; QUAD]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u128::from);
    (a | b << 32 | c << 64 | d << 96).to_le_bytes()
}

/// Writes rows of plain numbers: 16-byte parts, groups padded with zeros.
pub(crate) fn fill_numbers(stripe: &mut Stripe<'_>, layout: &Layout, blocks: &[u8]) {
    let (parts, groups) = (parts_of_numbers(layout), layout.groups());
    let quants = &mut *stripe.planes[Role::Quants as usize];
    let (quants, _) = quants.as_chunks_mut::<16>();
    let rows = blocks.chunks_exact(layout.row_bytes());
    for (row, numbers) in quants.chunks_exact_mut(parts * groups).zip(rows) {
        let (whole, rest) = numbers.as_chunks::<16>();
        for (part, row) in row.chunks_exact_mut(groups).enumerate() {
            for (to, from) in row.iter_mut().zip(whole.chunks_exact(parts)) {
                *to = from[part];
            }
        }
        // The last group, if the row does not fill it.
        let end = whole.len() / parts * parts * 16;
        if end < numbers.len() {
            let mut last = numbers[end..].iter();
            for part in 0..parts {
                row[part * groups + groups - 1] =
                    [(); 16].map(|()| last.next().copied().unwrap_or_default());
            }
        }
        debug_assert!(rest.len() < 16);
    }
}

/// The numbers of planes as the file has them.
pub(crate) fn numbers(layout: &Layout, planes: &[u8]) -> Vec<u8> {
    let parts = parts_of_numbers(layout);
    let mut out = Vec::with_capacity(layout.rows() * layout.row_bytes());
    for row in 0..layout.rows() {
        let end = out.len() + layout.row_bytes();
        for group in 0..layout.groups() {
            let address = Address::of(layout, row, group);
            for part in 0..parts {
                out.extend_from_slice(&planes[address.part(part, parts)..][..16]);
            }
        }
        out.truncate(end);
    }
    out
}

/// 16-byte parts of a group of plain numbers.
const fn parts_of_numbers(layout: &Layout) -> usize {
    GROUP * layout.ty().block_bytes() / 16
}

/// The weights of planes of a quantised type.
pub(crate) fn unpack<F: Format>(layout: &Layout, planes: &[u8]) -> Vec<f32> {
    let mut out = Vec::with_capacity(layout.rows() * layout.cols());
    for row in 0..layout.rows() {
        for group in 0..layout.groups() {
            let address = Address::of(layout, row, group);
            out.extend(F::weights(&read::<F>(layout, planes, &address)));
        }
    }
    out
}

fn read<F: Format>(layout: &Layout, planes: &[u8], address: &Address) -> Group {
    let shape = F::SHAPE;
    let bytes = |role, at: usize| &planes[layout.plane(role).offset + at..];
    let word = |role, at| {
        let word = bytes(role, at).first_chunk().expect("planes have their layout's size");
        u64::from(u32::from_le_bytes(*word))
    };
    let short = |role, at| u32::from(bytes(role, at)[0]) | u32::from(bytes(role, at)[1]) << 8;
    let sixteen = |at| Sixteen::first(bytes(Role::Quants, at));
    let pair =
        |at| Sixteen::of_longs([word(Role::Quants, at) | word(Role::Quants, at + 4) << 32, 0]);
    let low = match shape.quants {
        Quants::Pairs => [pair(address.by_row * 8), Sixteen::splat(0)],
        Quants::Bytes => [sixteen(address.part(0, 2)), sixteen(address.part(1, 2))],
        _ => [sixteen(address.by_row * 16), Sixteen::splat(0)],
    };
    let mut high = [0; 2];
    for (i, high) in high[..shape.high_bits].iter_mut().enumerate() {
        *high = word(Role::High, (address.by_row * shape.high_bits + i) * 4) as u32;
    }
    let words = Words { low, high };
    let scales = match shape.scales {
        Scales::None => 0,
        Scales::Byte => u32::from(bytes(Role::Scales, address.by_quad)[0]),
        Scales::Twelve => {
            let tops = short(Role::ScaleTops, address.of_quad * 2);
            let top = tops >> (4 * (address.by_quad % QUAD)) & 0x0f;
            u32::from(bytes(Role::Scales, address.by_quad)[0]) | top << 8
        }
        Scales::Short => short(Role::Scales, address.by_quad * 2),
        Scales::Word => word(Role::Scales, address.by_quad * 4) as u32,
    };
    let supers = match shape.super_bytes {
        2 => short(Role::Supers, address.supers * 2),
        4 => word(Role::Supers, address.supers * 4) as u32,
        _ => 0,
    };
    Group { q: words.unpack(&shape), scales, supers }
}
