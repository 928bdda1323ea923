//! Scratch memory of a pass: regions, and which buffer of the program lies where.

use std::collections::HashMap;
use std::ops::Range;

use m40_program::{BufferId, Program};

use crate::ops::PASS_ROWS;

/// Bytes that every region begins at a multiple of: a cache line.
const REGION_ALIGNMENT: u64 = 128;

/// Floats that rows and their parts begin at multiples of: 16 bytes, a place.
const PART_FLOATS: usize = 4;

/// Index of a [`Region`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegionId(pub usize);

/// A stretch of scratch memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// For people: the buffers it holds.
    pub name: String,
    /// Words of a row, or of everything where there are no rows.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// Bytes from the start of scratch memory.
    pub offset: u64,
    /// What it holds for ever; empty where passes write.
    pub contents: Vec<f32>,
}

impl Region {
    /// Bytes, the padding to the next region included.
    pub fn padded_bytes(&self) -> u64 {
        (self.stride as u64 * self.rows as u64 * 4).next_multiple_of(REGION_ALIGNMENT)
    }
}

/// A buffer: columns of a region's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// The region.
    pub region: RegionId,
    /// First column, a multiple of 4.
    pub first: usize,
    /// Columns.
    pub width: usize,
}

impl View {
    /// The columns.
    pub fn columns(&self) -> Range<usize> {
        self.first..self.first + self.width
    }
}

/// What an op may wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Columns of a region.
    Region(RegionId, Range<usize>),
    /// The KV pages of a layer.
    Cache(u16),
    /// What sampling keeps.
    Choices,
}

impl Memory {
    /// Whether something is in both.
    pub fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Region(a, x), Self::Region(b, y)) => {
                a == b && x.start < y.end && y.start < x.end
            }
            _ => self == other,
        }
    }
}

impl From<View> for Memory {
    fn from(view: View) -> Self {
        Self::Region(view.region, view.columns())
    }
}

/// Where buffers lie at one point of a walk through the program.
#[derive(Debug)]
pub(super) struct Store<'a> {
    program: &'a Program,
    regions: Vec<Region>,
    /// Regions made for the same buffers, first to last.
    made: HashMap<Vec<BufferId>, Vec<RegionId>>,
    /// Of each buffer, where its present value lies.
    views: HashMap<BufferId, View>,
    /// Of gathered buffers, the one whose memory they took over.
    origins: HashMap<BufferId, BufferId>,
}

impl<'a> Store<'a> {
    pub(super) fn new(program: &'a Program) -> Self {
        Self {
            program,
            regions: vec![],
            made: HashMap::new(),
            views: HashMap::new(),
            origins: HashMap::new(),
        }
    }

    pub(super) fn into_regions(self) -> Vec<Region> {
        self.regions
    }

    /// Memory for `rows` rows of `stride` words.
    pub(super) fn region(&mut self, name: String, stride: usize, rows: usize) -> RegionId {
        let offset = self.regions.last().map_or(0, |last| last.offset + last.padded_bytes());
        self.regions.push(Region { name, stride, rows, offset, contents: vec![] });
        RegionId(self.regions.len() - 1)
    }

    /// Memory that holds these numbers for ever.
    pub(super) fn constants(&mut self, name: String, contents: Vec<f32>) -> RegionId {
        let id = self.region(name, contents.len(), 1);
        self.regions[id.0].contents = contents;
        id
    }

    /// Where a buffer's value lies.
    pub(super) fn view(&self, buffer: BufferId) -> Option<View> {
        self.views.get(&buffer).copied()
    }

    /// Gives the rows of `x` to `out`, which is the same memory from now on: in a decode pass every
    /// row wants its logits.
    pub(super) fn hand_over(&mut self, x: BufferId, out: BufferId) -> Option<()> {
        let view = self.views.remove(&x)?;
        self.views.insert(out, view);
        self.origins.insert(out, self.origin(x));
        Some(())
    }

    fn origin(&self, buffer: BufferId) -> BufferId {
        self.origins.get(&buffer).copied().unwrap_or(buffer)
    }

    /// Places for new values of these buffers, side by side, where nothing of `keep` lies: it is
    /// read by threads other than those that write.
    pub(super) fn write(&mut self, buffers: &[BufferId], keep: &[View]) -> Vec<View> {
        let key: Vec<_> = buffers.iter().map(|b| self.origin(*b)).collect();
        let taken = |id: RegionId| {
            let of_others =
                |(b, view): (&BufferId, &View)| view.region == id && !buffers.contains(b);
            keep.iter().any(|view| view.region == id) || self.views.iter().any(of_others)
        };
        // Where the value was before, if it can stay there.
        let before = self.views.get(&buffers[0]).map(|view| view.region);
        let mut candidates = self.made.get(&key).cloned().unwrap_or_default();
        candidates.sort_by_key(|id| (Some(*id) != before, id.0));
        let free = candidates.iter().copied().find(|id| !taken(*id));
        let widths: Vec<_> = buffers.iter().map(|b| self.program.buffer(*b).width).collect();
        let region = free.unwrap_or_else(|| {
            let names: Vec<_> = key.iter().map(|b| self.program.buffer(*b).name).collect();
            let name = names.join("|") + &"'".repeat(candidates.len());
            let stride = widths.iter().map(|w| w.next_multiple_of(PART_FLOATS)).sum();
            let id = self.region(name, stride, PASS_ROWS);
            self.made.entry(key).or_default().push(id);
            id
        });
        let mut first = 0;
        let views = widths.into_iter().map(|width| {
            let view = View { region, first, width };
            first += width.next_multiple_of(PART_FLOATS);
            view
        });
        let views: Vec<_> = views.collect();
        self.views.extend(buffers.iter().copied().zip(views.iter().copied()));
        views
    }
}
