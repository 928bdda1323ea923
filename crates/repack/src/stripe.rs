//! Rows of a matrix, in memory of their own: the unit in which threads share the work.

use std::ops::Range;

use crate::format::{Format, Group, Quants, Scales};
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

/// Writes rows of blocks to a stripe.
pub(crate) fn fill<F: Format>(stripe: &mut Stripe<'_>, layout: &Layout, blocks: &[u8]) {
    for (row, blocks) in blocks.chunks_exact(layout.row_bytes()).enumerate() {
        for (index, block) in blocks.chunks_exact(F::BYTES).enumerate() {
            for within in 0..F::GROUPS {
                let address = Address::of(layout, row, index * F::GROUPS + within);
                write::<F>(stripe, &address, &F::read(block, within));
            }
        }
    }
}

#[inline(always)]
fn write<F: Format>(stripe: &mut Stripe<'_>, address: &Address, group: &Group) {
    let shape = F::SHAPE;
    let [quants, high, scales, tops, supers] = &mut stripe.planes;
    let words = Words::pack(&shape, group);
    match shape.quants {
        Quants::Pairs => {
            *field(quants, address.by_row * 8) = words.low[0].to_le_bytes();
            *field(quants, address.by_row * 8 + 4) = words.low[1].to_le_bytes();
        }
        Quants::Nibbles | Quants::Selectors => {
            put_part(quants, address.by_row * 16, &words.low[..4]);
        }
        Quants::Bytes => {
            put_part(quants, address.part(0, 2), &words.low[..4]);
            put_part(quants, address.part(1, 2), &words.low[4..]);
        }
        Quants::Numbers(_) => unreachable!("numbers have no groups of quants"),
    }
    for (i, word) in words.high[..shape.high_bits].iter().enumerate() {
        *field(high, (address.by_row * shape.high_bits + i) * 4) = word.to_le_bytes();
    }
    let bits = group.scales;
    match shape.scales {
        Scales::None => {}
        Scales::Byte => scales[address.by_quad] = bits as u8,
        Scales::Twelve => {
            scales[address.by_quad] = bits as u8;
            put_top(tops, address, bits >> 8);
        }
        Scales::Short => *field(scales, address.by_quad * 2) = (bits as u16).to_le_bytes(),
        Scales::Word => *field(scales, address.by_quad * 4) = bits.to_le_bytes(),
    }
    match shape.super_bytes {
        2 => *field(supers, address.supers * 2) = (group.supers as u16).to_le_bytes(),
        4 => *field(supers, address.supers * 4) = group.supers.to_le_bytes(),
        _ => {}
    }
}

#[inline(always)]
fn put_part(plane: &mut [u8], at: usize, words: &[u32]) {
    for (i, word) in words.iter().enumerate() {
        *field(plane, at + 4 * i) = word.to_le_bytes();
    }
}

/// The four rows' top nibbles share 16 bits, row 0 lowest.
fn put_top(tops: &mut [u8], address: &Address, nibble: u32) {
    let lane = address.by_quad % QUAD;
    let byte = &mut tops[address.of_quad * 2 + lane / 2];
    let shift = 4 * (lane % 2);
    *byte = *byte & !(0x0f << shift) | (nibble as u8) << shift;
}

/// Writes rows of plain numbers: 16-byte parts, groups padded with zeros.
pub(crate) fn fill_numbers(stripe: &mut Stripe<'_>, layout: &Layout, blocks: &[u8]) {
    let quants = &mut *stripe.planes[Role::Quants as usize];
    let parts = parts_of_numbers(layout);
    for (row, numbers) in blocks.chunks_exact(layout.row_bytes()).enumerate() {
        for group in 0..layout.groups() {
            let address = Address::of(layout, row, group);
            for part in 0..parts {
                let start = (group * parts + part) * 16;
                let bytes = numbers.get(start..).unwrap_or_default();
                let bytes = &bytes[..bytes.len().min(16)];
                let out: &mut [u8; 16] = field(quants, address.part(part, parts));
                out[..bytes.len()].copy_from_slice(bytes);
                out[bytes.len()..].fill(0);
            }
        }
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
        u32::from_le_bytes(*bytes(role, at).first_chunk().expect("planes have their layout's size"))
    };
    let short = |role, at| u32::from(bytes(role, at)[0]) | u32::from(bytes(role, at)[1]) << 8;
    let mut words = Words::default();
    for i in 0..shape.quants.bytes() / 4 {
        words.low[i] = match shape.quants {
            Quants::Bytes => word(Role::Quants, address.part(i / 4, 2) + i % 4 * 4),
            _ => word(Role::Quants, address.by_row * shape.quants.bytes() + 4 * i),
        };
    }
    for i in 0..shape.high_bits {
        words.high[i] = word(Role::High, (address.by_row * shape.high_bits + i) * 4);
    }
    let scales = match shape.scales {
        Scales::None => 0,
        Scales::Byte => u32::from(bytes(Role::Scales, address.by_quad)[0]),
        Scales::Twelve => {
            let tops = short(Role::ScaleTops, address.of_quad * 2);
            let top = tops >> (4 * (address.by_quad % QUAD)) & 0x0f;
            u32::from(bytes(Role::Scales, address.by_quad)[0]) | top << 8
        }
        Scales::Short => short(Role::Scales, address.by_quad * 2),
        Scales::Word => word(Role::Scales, address.by_quad * 4),
    };
    let supers = match shape.super_bytes {
        2 => short(Role::Supers, address.supers * 2),
        4 => word(Role::Supers, address.supers * 4),
        _ => 0,
    };
    Group { q: words.unpack(&shape), scales, supers }
}
