//! Rows of a matrix, in memory of their own: the unit in which threads share the work.

use std::ops::Range;

use fearless_simd::Simd;

use crate::format::{Format, Group, MOST_GROUPS, Quants, Scales};
use crate::layout::{GROUP, Layout, QUAD, Role, SUPER};
use crate::order::Words;
use crate::packing::{pack_high, pack_low};
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
#[inline(always)]
pub(crate) fn fill<F: Format, S: Simd>(
    simd: S,
    stripe: &mut Stripe<'_>,
    layout: &Layout,
    blocks: &[u8],
) {
    let row_bytes = layout.row_bytes();
    for (quad, blocks) in Quad::all(stripe).zip(blocks.chunks(QUAD * row_bytes)) {
        // Of a row that is not there nothing is written, and its place is zeroed.
        let mut rows = blocks.chunks_exact(row_bytes);
        let rows = [(); QUAD].map(|()| rows.next().unwrap_or_default());
        fill_quad::<F, S>(simd, quad, layout, rows);
    }
}

#[inline(always)]
fn fill_quad<F: Format, S: Simd>(simd: S, quad: Quad<'_>, layout: &Layout, rows: [&[u8]; QUAD]) {
    let shape = F::SHAPE;
    let [quants, high, scales, tops, supers] = quad.planes;
    let per_row = |plane: &[u8]| (plane.len() / QUAD).max(1);
    let (quant_bytes, high_bytes) = (per_row(quants), per_row(high));
    // Rows that are not there keep their zeros.
    let there = rows.iter().take_while(|row| !row.is_empty());
    for (row, part) in there.clone().zip(quants.chunks_exact_mut(quant_bytes)) {
        pack_low(simd, F::LOW, row, F::BYTES, shape.high_bits, part);
    }
    for (row, part) in there.zip(high.chunks_exact_mut(high_bytes)) {
        pack_high(simd, F::HIGH, row, F::BYTES, shape.quants == Quants::Pairs, part);
    }
    match shape.scales {
        Scales::None => {}
        Scales::Byte => spread(rows, F::BYTES, F::GROUPS, F::bytes, scales.as_chunks_mut().0),
        Scales::Twelve => {
            spread(rows, F::BYTES, F::GROUPS, F::bytes, scales.as_chunks_mut().0);
            let mut fours = vec![[0; QUAD]; layout.groups()];
            spread(rows, F::BYTES, F::GROUPS, F::tops, &mut fours);
            // The four rows' top nibbles share 16 bits, row 0 lowest.
            for (out, [a, b, c, d]) in tops.as_chunks_mut().0.iter_mut().zip(fours) {
                *out = [a | b << 4, c | d << 4];
            }
        }
        Scales::Short => {
            let (quads, _) = scales.as_chunks_mut::<2>().0.as_chunks_mut();
            spread(rows, F::BYTES, F::GROUPS, F::shorts, quads);
        }
        Scales::Word => {
            let (quads, _) = scales.as_chunks_mut::<4>().0.as_chunks_mut();
            spread(rows, F::BYTES, F::GROUPS, F::longs, quads);
        }
    }
    // Blocks with a super-scale have all groups that share it.
    match shape.super_bytes {
        2 => {
            let (quads, _) = supers.as_chunks_mut::<2>().0.as_chunks_mut();
            let short = |block: &[u8]| [(F::supers(block) as u16).to_le_bytes(); MOST_GROUPS];
            spread(rows, F::BYTES, 1, short, quads);
        }
        4 => {
            let (quads, _) = supers.as_chunks_mut::<4>().0.as_chunks_mut();
            let long = |block: &[u8]| [F::supers(block).to_le_bytes(); MOST_GROUPS];
            spread(rows, F::BYTES, 1, long, quads);
        }
        _ => {}
    }
}

/// Writes what `of` makes of blocks of `bytes` bytes, the first `count` of it, for four rows: those
/// of a group side by side. The places of rows that are not there keep their zeros.
#[inline(always)]
fn spread<T: Copy>(
    rows: [&[u8]; QUAD],
    bytes: usize,
    count: usize,
    of: impl Fn(&[u8]) -> [T; MOST_GROUPS],
    out: &mut [[T; QUAD]],
) {
    if count == 1 && rows.iter().all(|row| !row.is_empty()) {
        let [a, b, c, d] = rows.map(|row| row.chunks_exact(bytes));
        for ((((a, b), c), d), out) in a.zip(b).zip(c).zip(d).zip(out) {
            *out = [of(a)[0], of(b)[0], of(c)[0], of(d)[0]];
        }
        return;
    }
    for (lane, row) in rows.into_iter().enumerate() {
        for (block, out) in row.chunks_exact(bytes).zip(out.chunks_exact_mut(count)) {
            for (value, out) in of(block).into_iter().zip(out) {
                out[lane] = value;
            }
        }
    }
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
