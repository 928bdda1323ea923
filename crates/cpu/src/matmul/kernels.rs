//! The two ways through a weight matrix, a tile of [`Simd::ROWS`] rows at a time.
//!
//! *Direct*, for one activation row: every group is unpacked into registers and multiplied there.
//! *Tiled*, for more: a [`Tile`] of up to [`TILE_GROUPS`] groups is unpacked once into the L1 cache
//! and multiplied with one panel of activation rows after the other.
//!
//! Both add to a lane's sum the same terms in the same order, one group after the other, so that
//! the result for an activation row is bit for bit the same whatever other rows it comes with.

use super::Matrix;
use super::activations::{Activations, GROUP, Panel};
use super::formats::{FloatFormat, Format, Group, Sink};
use super::output::Output;
use super::rows::Rows;
use super::simd::{Simd, Work};
use std::marker::PhantomData;
use std::ops::Range;

/// Groups of a tile: 16 KiB of weights for 16 rows.
const TILE_GROUPS: usize = 32;

/// Columns of a tile of float weights: 16 KiB for 16 rows.
const TILE_FLOATS: usize = 256;

/// The longest block, times the most rows.
const MAX_TAIL: usize = 210 * 16;

/// How far ahead weights are fetched, beyond the next tile: what is read in one memory latency, and
/// some.
const LOOKAHEAD: usize = 4096;

/// One matrix product: what all its tiles have in common.
pub(super) struct Job<'a> {
    pub(super) weight: Matrix<'a>,
    pub(super) out: Output<'a>,
}

/// Some tiles of a product with quantised weights.
pub(super) struct QuantisedTiles<'a, T> {
    pub(super) job: &'a Job<'a>,
    pub(super) acts: &'a Activations,
    /// Rows `ROWS t..` for every `t`. No two threads may have the same tile of a job at a time.
    pub(super) tiles: Range<usize>,
    pub(super) ahead: &'a mut Ahead,
    pub(super) format: PhantomData<T>,
}

/// Fetches a thread's weights into the L2 cache before they are used.
///
/// A tile is one piece of memory, but is read as a stream for each of its rows, too many for the
/// prefetcher of a CPU. This asks for the lines of the next tile while this one is used, in the
/// order of their addresses.
#[derive(Debug)]
pub(super) struct Ahead {
    /// The weights that are walked through.
    start: *const u8,
    /// Offset from `start` of the next line to ask for.
    next: usize,
    /// Lines before this offset may be asked for by now.
    due: usize,
    /// Lines from this offset on are not this thread's.
    pub(super) end: usize,
}

impl Ahead {
    /// Nothing asked for yet.
    pub(super) fn new() -> Self {
        Self { start: std::ptr::null(), next: 0, due: 0, end: 0 }
    }

    /// Turns to a tile. What was asked for when the tile before it was used counts.
    #[inline(always)]
    fn tile(&mut self, weights: &[u8], tile: &TileRows<'_>) {
        let at = tile.first * tile.stride;
        self.due = at + tile.data.len() + LOOKAHEAD;
        if self.start != weights.as_ptr() || self.next < at || self.next > self.due {
            (self.start, self.next) = (weights.as_ptr(), at);
        }
    }

    /// Asks for as much as is now used.
    #[inline(always)]
    fn advance<S: Simd>(&mut self, s: S, bytes: usize) {
        self.due += bytes;
        let due = self.due.min(self.end);
        while self.next < due {
            s.prefetch(self.start.wrapping_add(self.next));
            self.next += 64;
        }
    }
}

/// The weight rows of one tile.
struct TileRows<'a> {
    /// Of the `count` rows, `stride` bytes each.
    data: &'a [u8],
    stride: usize,
    first: usize,
    count: usize,
}

impl<'a> TileRows<'a> {
    #[inline(always)]
    fn new<S: Simd>(weight: &Matrix<'a>, tile: usize) -> Self {
        let stride = weight.data.len() / weight.rows;
        let first = tile * S::ROWS;
        let count = S::ROWS.min(weight.rows - first);
        let data = &weight.data[first * stride..(first + count) * stride];
        Self { data, stride, first, count }
    }
}

/// Where blocks of an unfinished tile are padded: one with fewer rows than a vector has lanes, or
/// float rows that end inside 16 bytes. Empty until there is one.
#[derive(Default)]
struct Tail(Vec<u8>);

impl Tail {
    /// The `bytes` bytes at `at` of each row, `len` of them when the rows end before that; missing
    /// bytes and rows are zero.
    #[inline(never)]
    fn copy(&mut self, tile: &TileRows<'_>, at: usize, bytes: usize, len: usize) {
        self.0.clear();
        self.0.resize(MAX_TAIL, 0);
        for row in 0..tile.count {
            let from = row * tile.stride + at;
            self.0[row * bytes..row * bytes + len].copy_from_slice(&tile.data[from..from + len]);
        }
    }

    /// The block of `bytes` bytes at `at` of `S::ROWS` rows.
    #[inline(always)]
    fn block<'a, S: Simd>(&'a mut self, tile: &TileRows<'a>, at: usize, bytes: usize) -> Rows<'a> {
        let len = bytes.min(tile.stride - at);
        let (data, stride, at) = if tile.count == S::ROWS && len == bytes {
            (tile.data, tile.stride, at)
        } else {
            self.copy(tile, at, bytes, len);
            (&self.0[..], bytes, 0)
        };
        Rows::new(data, stride, S::ROWS, at, bytes)
    }
}

/// Adds one group's products with `P` activation rows to `sums`.
#[inline(always)]
fn multiply<S: Simd, T: Format, const P: usize>(
    s: S,
    w: &Group<S>,
    acts: &Panel<P>,
    sums: &mut [S::Float; P],
) {
    for p in 0..P {
        let scale = s.splat_float(acts.scale[p]);
        if T::HALVES {
            for h in 0..2 {
                let start = s.unbias(acts.neg_half_sums[p][h], T::BIAS);
                let dot = s.dot4(start, w.quads[h], acts.q[p][h], T::MAX);
                sums[p] = s.fma(s.to_float(dot), s.mul(w.scales[h], scale), sums[p]);
                if T::MINS {
                    let sum = s.splat_float(acts.scaled_half_sums[p][h]);
                    sums[p] = s.fma(w.mins[h], sum, sums[p]);
                }
            }
        } else {
            let start = s.unbias(acts.neg_sum[p], T::BIAS);
            let dot = s.dot4(start, w.quads[0], acts.q[p][0], T::MAX);
            let dot = s.dot4(dot, w.quads[1], acts.q[p][1], T::MAX);
            sums[p] = s.fma(s.to_float(dot), s.mul(w.scales[0], scale), sums[p]);
            if T::MINS {
                let sum = s.splat_float(acts.scaled_sum[p]);
                sums[p] = s.fma(w.mins[0], sum, sums[p]);
            }
        }
    }
}

/// Multiplies groups with one activation row as they come.
struct Direct<'a, S: Simd, T> {
    acts: std::slice::Iter<'a, Panel<1>>,
    sum: [S::Float; 1],
    ahead: &'a mut Ahead,
    format: PhantomData<T>,
}

impl<S: Simd, T: Format> Sink<S> for Direct<'_, S, T> {
    #[inline(always)]
    fn group(&mut self, s: S, group: Group<S>) {
        self.ahead.advance(s, T::BYTES * S::ROWS / T::GROUPS);
        if let Some(acts) = self.acts.next() {
            multiply::<S, T, 1>(s, &group, acts, &mut self.sum);
        }
    }
}

/// Unpacked weights of up to [`TILE_GROUPS`] groups.
struct Tile<S: Simd> {
    groups: [Group<S>; TILE_GROUPS],
}

/// Writes groups to a tile as they come.
struct Store<'a, S: Simd, T> {
    groups: std::slice::IterMut<'a, Group<S>>,
    ahead: &'a mut Ahead,
    format: PhantomData<T>,
}

impl<S: Simd, T: Format> Sink<S> for Store<'_, S, T> {
    #[inline(always)]
    fn group(&mut self, s: S, group: Group<S>) {
        self.ahead.advance(s, T::BYTES * S::ROWS / T::GROUPS);
        if let Some(slot) = self.groups.next() {
            slot.quads = group.quads;
            slot.scales[0] = group.scales[0];
            if T::HALVES {
                slot.scales[1] = group.scales[1];
            }
            if T::MINS {
                slot.mins = group.mins;
            }
        }
    }
}

impl<T: Format> Work for QuantisedTiles<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut tail = Tail::default();
        if self.acts.n() == 1 {
            for tile in self.tiles.clone() {
                self.direct(s, tile, &mut tail);
            }
        } else {
            let zero = s.splat_float(0.0);
            let empty = Group { quads: [[s.splat(0); 4]; 2], scales: [zero; 2], mins: [zero; 2] };
            let mut unpacked = Tile { groups: [empty; TILE_GROUPS] };
            for tile in self.tiles.clone() {
                self.tiled(s, tile, &mut unpacked, &mut tail);
            }
        }
    }
}

impl<T: Format> QuantisedTiles<'_, T> {
    #[inline(always)]
    fn direct<S: Simd>(&mut self, s: S, tile: usize, tail: &mut Tail) {
        let rows = TileRows::new::<S>(&self.job.weight, tile);
        self.ahead.tile(self.job.weight.data, &rows);
        let mut sink = Direct::<S, T> {
            acts: self.acts.ones().iter(),
            sum: [s.splat_float(0.0)],
            ahead: self.ahead,
            format: PhantomData,
        };
        for at in (0..rows.stride).step_by(T::BYTES) {
            T::unpack(s, &tail.block::<S>(&rows, at, T::BYTES), &mut sink);
        }
        let sum = sink.sum[0];
        store(s, sum, self.part(&rows, 0));
    }

    #[inline(always)]
    fn tiled<S: Simd>(&mut self, s: S, tile: usize, unpacked: &mut Tile<S>, tail: &mut Tail) {
        let rows = TileRows::new::<S>(&self.job.weight, tile);
        self.ahead.tile(self.job.weight.data, &rows);
        let groups = self.acts.cols() / GROUP;
        for from in (0..groups).step_by(TILE_GROUPS) {
            let range = from..groups.min(from + TILE_GROUPS);
            let mut sink = Store::<S, T> {
                groups: unpacked.groups[..range.len()].iter_mut(),
                ahead: self.ahead,
                format: PhantomData,
            };
            for block in range.start / T::GROUPS..range.end / T::GROUPS {
                let at = block * T::BYTES;
                T::unpack(s, &tail.block::<S>(&rows, at, T::BYTES), &mut sink);
            }
            let weights = &unpacked.groups[..range.len()];
            let acts = self.acts;
            let n = acts.n();
            self.panels::<S, 8>(s, &rows, weights, acts.eights(), &range, 0);
            self.panels::<S, 4>(s, &rows, weights, acts.fours(), &range, n & !7);
            self.panels::<S, 2>(s, &rows, weights, acts.twos(), &range, n & !3);
            self.panels::<S, 1>(s, &rows, weights, acts.ones(), &range, n & !1);
        }
    }

    /// Adds the products of unpacked groups `range` with panels whose first activation row is
    /// `first` to the result; group 0 starts it.
    #[inline(always)]
    fn panels<S: Simd, const P: usize>(
        &self,
        s: S,
        rows: &TileRows<'_>,
        weights: &[Group<S>],
        panels: &[Panel<P>],
        range: &Range<usize>,
        first: usize,
    ) {
        let groups = self.acts.cols() / GROUP;
        for (index, panel) in panels.chunks_exact(groups).enumerate() {
            let first = first + index * P;
            let mut sums = [s.splat_float(0.0); P];
            if range.start > 0 {
                for p in 0..P {
                    sums[p] = load(s, self.part(rows, first + p));
                }
            }
            for (w, acts) in weights.iter().zip(&panel[range.clone()]) {
                multiply::<S, T, P>(s, w, acts, &mut sums);
            }
            for p in 0..P {
                store(s, sums[p], self.part(rows, first + p));
            }
        }
    }

    /// This tile's part of result row `i`.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "of the result, which the tile owns")]
    fn part(&self, rows: &TileRows<'_>, i: usize) -> &mut [f32] {
        // SAFETY: no other thread has this tile, and this one lets go of a part before the next.
        unsafe { self.job.out.part(i, rows.first, rows.count) }
    }
}

/// Stores as many lanes as `to` has floats.
#[inline(always)]
fn store<S: Simd>(s: S, a: S::Float, to: &mut [f32]) {
    if to.len() == S::ROWS {
        s.store(a, to);
    } else {
        let mut all = [0.0; 16];
        s.store(a, &mut all);
        to.copy_from_slice(&all[..to.len()]);
    }
}

/// Loads as many lanes as `from` has floats.
#[inline(always)]
fn load<S: Simd>(s: S, from: &[f32]) -> S::Float {
    if from.len() == S::ROWS {
        s.load(from)
    } else {
        let mut all = [0.0; 16];
        all[..from.len()].copy_from_slice(from);
        s.load(&all)
    }
}

/// Some tiles of a product with float weights.
pub(super) struct FloatTiles<'a, T> {
    pub(super) job: &'a Job<'a>,
    pub(super) acts: &'a Activations,
    /// As in [`QuantisedTiles`].
    pub(super) tiles: Range<usize>,
    pub(super) ahead: &'a mut Ahead,
    pub(super) format: PhantomData<T>,
}

impl<T: FloatFormat> Work for FloatTiles<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let mut tail = Tail::default();
        let mut unpacked = [s.splat_float(0.0); TILE_FLOATS];
        for tile in self.tiles.clone() {
            self.tile(s, tile, &mut unpacked, &mut tail);
        }
    }
}

impl<T: FloatFormat> FloatTiles<'_, T> {
    #[inline(always)]
    fn tile<S: Simd>(
        &mut self,
        s: S,
        tile: usize,
        unpacked: &mut [S::Float; TILE_FLOATS],
        tail: &mut Tail,
    ) {
        let rows = TileRows::new::<S>(&self.job.weight, tile);
        self.ahead.tile(self.job.weight.data, &rows);
        let per_chunk = 16 / T::BYTES;
        for from in (0..self.acts.cols()).step_by(TILE_FLOATS) {
            let range = from..self.acts.cols().min(from + TILE_FLOATS);
            for col in range.clone().step_by(per_chunk) {
                let at = col * T::BYTES;
                self.ahead.advance(s, 16 * S::ROWS);
                let weights = T::unpack(s, &tail.block::<S>(&rows, at, 16));
                let to = col - from;
                unpacked[to..to + per_chunk].copy_from_slice(&weights[..per_chunk]);
            }
            let weights = &unpacked[..range.len()];
            let fours = self.acts.n() / 4;
            for index in 0..fours {
                self.rows::<S, 4>(s, &rows, weights, &range, 4 * index);
            }
            for i in 4 * fours..self.acts.n() {
                self.rows::<S, 1>(s, &rows, weights, &range, i);
            }
        }
    }

    /// Adds the products of unpacked columns `range` with activation rows `first..first + P` to
    /// the result. Even and odd columns are summed apart: two chains hide the latency.
    #[inline(always)]
    fn rows<S: Simd, const P: usize>(
        &self,
        s: S,
        rows: &TileRows<'_>,
        weights: &[S::Float],
        range: &Range<usize>,
        first: usize,
    ) {
        let mut x = [&[0.0_f32][..]; P];
        for p in 0..P {
            x[p] = &self.acts.row(first + p)[range.clone()][..weights.len()];
        }
        let mut sums = [[s.splat_float(0.0); 2]; P];
        let (pairs, last) = weights.as_chunks::<2>();
        for (i, w) in pairs.iter().enumerate() {
            for p in 0..P {
                for k in 0..2 {
                    sums[p][k] = s.fma(w[k], s.splat_float(x[p][2 * i + k]), sums[p][k]);
                }
            }
        }
        for (&w, i) in last.iter().zip(2 * pairs.len()..) {
            for p in 0..P {
                sums[p][0] = s.fma(w, s.splat_float(x[p][i]), sums[p][0]);
            }
        }
        for p in 0..P {
            // SAFETY: no other thread has this tile, and the part is gone before the next.
            let part = unsafe { self.job.out.part(first + p, rows.first, rows.count) };
            let mut sum = s.add_float(sums[p][0], sums[p][1]);
            if range.start > 0 {
                sum = s.add_float(load(s, part), sum);
            }
            store(s, sum, part);
        }
    }
}
