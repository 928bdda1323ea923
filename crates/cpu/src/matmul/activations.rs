//! The right-hand sides of matrix products, prepared once for all matrices that share them.

use super::Compute;
use super::simd::{Simd, Work};
use m40_gguf::TensorType;

/// Columns that share a scale.
pub(super) const GROUP: usize = 32;

/// In which form weights want the activations they are multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    /// As int8: what every quantised weight type takes.
    pub quantised: bool,
    /// As f32: what F32, F16 and BF16 weights and the oracle take.
    pub float: bool,
}

impl Forms {
    /// What weights of these types need.
    pub fn of(types: impl IntoIterator<Item = TensorType>) -> Self {
        types.into_iter().fold(Self::default(), |forms, ty| match ty {
            TensorType::F32 | TensorType::F16 | TensorType::BF16 => Self { float: true, ..forms },
            _ => Self { quantised: true, ..forms },
        })
    }
}

/// 32 columns of `P` activation rows: `x = scale * q`, with what formats need of the sums of `q`.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Panel<const P: usize> {
    /// `q[p][h][j]`: columns `16 h + 4 j..` of row `p`, four signed bytes, lowest column first.
    pub(super) q: [[[i32; 4]; 2]; P],
    pub(super) scale: [f32; P],
    /// Minus the sum of the 32 `q`, and of each 16.
    pub(super) neg_sum: [i32; P],
    pub(super) neg_half_sums: [[i32; 2]; P],
    /// `scale` times the sum of the 32 `q`, and of each 16.
    pub(super) scaled_sum: [f32; P],
    pub(super) scaled_half_sums: [[f32; 2]; P],
}

impl<const P: usize> Panel<P> {
    const EMPTY: Self = Self {
        q: [[[0; 4]; 2]; P],
        scale: [0.0; P],
        neg_sum: [0; P],
        neg_half_sums: [[0; 2]; P],
        scaled_sum: [0.0; P],
        scaled_half_sums: [[0.0; 2]; P],
    };

    /// Quantises `x` into row `p`: symmetric, with the scale that takes the largest magnitude to
    /// 127.
    ///
    /// A group with an infinity or a NaN gets the scale NaN, so that it is not lost; one whose
    /// scale's inverse overflows (all magnitudes below about 4e-37) counts as zero.
    #[inline(always)]
    fn set<S: Simd>(&mut self, s: S, p: usize, x: &[f32; GROUP]) {
        let largest = f32::from_bits(s.largest(x));
        let inverse = 127.0 / largest;
        let (scale, factor) = if !largest.is_finite() {
            (f32::NAN, 0.0)
        } else if !inverse.is_finite() {
            (0.0, 0.0)
        } else {
            (largest * (1.0 / 127.0), inverse)
        };
        let (bytes, sums) = s.round(x, factor);
        for (i, quad) in bytes.as_chunks::<4>().0.iter().enumerate() {
            self.q[p][i / 4][i % 4] = i32::from_le_bytes(quad.map(|q| q as u8));
        }
        self.scale[p] = scale;
        self.neg_sum[p] = -(sums[0] + sums[1]);
        self.scaled_sum[p] = scale * (sums[0] + sums[1]) as f32;
        for h in 0..2 {
            self.neg_half_sums[p][h] = -sums[h];
            self.scaled_half_sums[p][h] = scale * sums[h] as f32;
        }
    }
}

/// Activations `[n, cols]` in the forms weights want, for any number of matrices.
///
/// As int8 they are quantised per 32 columns, with an f32 scale, and lie in panels of 8, 4, 2 and 1
/// rows (the bits of `n`), so that a kernel walks one pointer. The buffers are reused from one
/// [`prepare`](Self::prepare) to the next. What is kept of a row does not depend on `n` or on the
/// rows beside it.
#[derive(Debug, Default)]
pub struct Activations {
    n: usize,
    cols: usize,
    forms: Forms,
    eights: Panels<8>,
    fours: Panels<4>,
    twos: Panels<2>,
    ones: Panels<1>,
    /// `[n, cols]`
    floats: Vec<f32>,
}

/// Panels of `P` rows, `[count][cols / 32]`, in a buffer that never shrinks.
#[derive(Debug, Default)]
struct Panels<const P: usize> {
    buffer: Vec<Panel<P>>,
    used: usize,
}

impl<const P: usize> Panels<P> {
    /// Quantises the first `count * P` rows of `rest`, and takes them off it.
    fn fill(&mut self, compute: &Compute, rest: &mut &[f32], count: usize, cols: usize) {
        let groups = cols / GROUP;
        self.used = count * groups;
        if self.buffer.len() < self.used {
            self.buffer.resize(self.used, Panel::EMPTY);
        }
        let (x, after) = rest.split_at(count * P * cols);
        *rest = after;
        let one = |index: usize, panel: &mut [Panel<P>]| {
            let x = &x[index * P * cols..(index + 1) * P * cols];
            compute.level.run(FillPanel { x, panel });
        };
        compute.pool.for_each_chunk(&mut self.buffer[..self.used], groups.max(1), one);
    }
}

/// Quantises the rows of one panel.
struct FillPanel<'a, const P: usize> {
    /// `[P, cols]`
    x: &'a [f32],
    panel: &'a mut [Panel<P>],
}

impl<const P: usize> Work for FillPanel<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let cols = self.panel.len() * GROUP;
        for p in 0..P {
            let row = self.x[p * cols..(p + 1) * cols].as_chunks::<GROUP>().0;
            for (group, x) in self.panel.iter_mut().zip(row) {
                group.set(s, p, x);
            }
        }
    }
}

impl Activations {
    /// No activations yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `x`, `[n, cols]` row-major, in the given forms.
    ///
    /// # Panics
    /// When `x` is not `n * cols` long, or when the quantised form is wanted and `cols` is not a
    /// multiple of 32 (the columns of a quantised matrix always are).
    pub fn prepare(&mut self, compute: &Compute, x: &[f32], n: usize, cols: usize, forms: Forms) {
        assert_eq!(x.len(), n * cols, "activations are [{n}, {cols}]");
        (self.n, self.cols, self.forms) = (n, cols, forms);
        self.floats.clear();
        if forms.float {
            self.floats.extend_from_slice(x);
        }
        if forms.quantised {
            assert_eq!(cols % GROUP, 0, "{cols} columns are not whole groups of {GROUP}");
            let mut rest = x;
            self.eights.fill(compute, &mut rest, n / 8, cols);
            self.fours.fill(compute, &mut rest, n / 4 % 2, cols);
            self.twos.fill(compute, &mut rest, n / 2 % 2, cols);
            self.ones.fill(compute, &mut rest, n % 2, cols);
        }
    }

    /// Number of rows.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns of each row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The forms the activations are in.
    pub fn forms(&self) -> Forms {
        self.forms
    }

    /// The panels of the first `n & !7` rows, `[n / 8][cols / 32]`.
    pub(super) fn eights(&self) -> &[Panel<8>] {
        &self.eights.buffer[..self.eights.used]
    }

    /// The panel of the four rows from `n & !7`, `[cols / 32]`, or nothing.
    pub(super) fn fours(&self) -> &[Panel<4>] {
        &self.fours.buffer[..self.fours.used]
    }

    /// The panel of the two rows from `n & !3`, `[cols / 32]`, or nothing.
    pub(super) fn twos(&self) -> &[Panel<2>] {
        &self.twos.buffer[..self.twos.used]
    }

    /// The panel of the row `n - 1`, `[cols / 32]`, or nothing.
    pub(super) fn ones(&self) -> &[Panel<1>] {
        &self.ones.buffer[..self.ones.used]
    }

    /// Row `i` as f32.
    ///
    /// # Panics
    /// When the activations were not prepared as f32, or have no such row.
    #[inline]
    pub fn row(&self, i: usize) -> &[f32] {
        &self.floats[i * self.cols..(i + 1) * self.cols]
    }
}
