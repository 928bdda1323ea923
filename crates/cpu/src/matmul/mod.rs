//! Matrix products with quantised weights: what decides the speed of the CPU backend.
//!
//! Weights stay in GGUF blocks. Activations are quantised to int8 once per 32 columns
//! ([`Activations`]); products of the two are summed exactly in integers over 32 (or 16) columns
//! and then scaled and added in f32, one group after the other. A vector lane is a weight row, so
//! there are no sums across lanes, and the result for one activation row is bit for bit the same
//! whatever rows, matrices and threads it is computed with.
//!
//! | file | holds |
//! |---|---|
//! | `simd` | the vector operations; `portable`, `avx2`, `avx512` implement them |
//! | `formats` | one unpacking routine per weight type |
//! | `kernels` | the two drivers all types share: direct (one row) and tiled (more) |
//! | `oracle` | the plain twin |
#![expect(clippy::needless_range_loop, reason = "loops that walk several arrays in step")]

/// Evaluates a call of an intrinsic that touches registers only.
#[cfg(target_arch = "x86_64")]
macro_rules! on_registers {
    ($call:expr) => {{
        // SAFETY: the method's `self` proves that the CPU has the instruction.
        unsafe { $call }
    }};
}

mod activations;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics, and loads the bounds of which `Rows` has checked")]
mod avx2;
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "intrinsics, and loads the bounds of which `Rows` has checked")]
mod avx512;
mod formats;
#[expect(unsafe_code, reason = "takes parts of `output`, and says why they are disjoint")]
mod kernels;
mod oracle;
#[expect(unsafe_code, reason = "the one place where threads share a mutable result")]
mod output;
mod portable;
mod rows;
mod shares;
mod simd;

pub use activations::{Activations, Forms};
pub use oracle::project_oracle;

use crate::isa::{Isa, UnsupportedIsa};
use crate::pool::ThreadPool;
use formats::{FloatFormat, Format};
use kernels::{Ahead, FloatTiles, Job, QuantisedTiles};

use m40_gguf::TensorType;
use output::Output;
use portable::Portable;
use shares::Shares;
use simd::{Simd, Work};
use std::array::from_fn;
use std::marker::PhantomData;
use std::ops::Range;

/// A weight matrix in GGUF block layout: `rows` rows of `cols` weights each, row-major. `data` may
/// be aligned in any way, and nothing past its end is read.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// How weights are stored.
    pub ty: TensorType,
    /// Outputs.
    pub rows: usize,
    /// Inputs: whole blocks of `ty`.
    pub cols: usize,
    /// `rows * ty.row_bytes(cols)` bytes.
    pub data: &'a [u8],
}

impl Matrix<'_> {
    /// Whether products with weights of this type are implemented.
    pub const fn supported(ty: TensorType) -> bool {
        use TensorType as T;
        matches!(
            ty,
            T::F32
                | T::F16
                | T::BF16
                | T::Q4_0
                | T::Q4_1
                | T::Q5_0
                | T::Q5_1
                | T::Q8_0
                | T::Q2K
                | T::Q3K
                | T::Q4K
                | T::Q5K
                | T::Q6K
                | T::IQ4NL
                | T::IQ4XS
                | T::MXFP4
        )
    }

    /// Panics when the fields do not belong together, or to activations of `cols` columns.
    fn check(&self, cols: usize) {
        assert_eq!(self.cols, cols, "the matrix has other columns than the activations");
        assert!(Self::supported(self.ty), "no products with weights of type {}", self.ty);
        let row_bytes = self.ty.row_bytes(self.cols);
        assert!(
            row_bytes.and_then(|bytes| bytes.checked_mul(self.rows)) == Some(self.data.len()),
            "a {} matrix [{}, {}] of {} bytes",
            self.ty,
            self.rows,
            self.cols,
            self.data.len(),
        );
    }
}

/// One matrix of several that are multiplied with the same activations.
#[derive(Debug)]
pub struct Projection<'a> {
    /// The weights.
    pub weight: Matrix<'a>,
    /// `[n, weight.rows]`, row-major: `out[i][r]` becomes the dot product of weight row `r` and
    /// activation row `i`.
    pub out: &'a mut [f32],
}

/// Threads and an instruction set: what products are computed with.
#[derive(Debug)]
pub struct Compute {
    pool: ThreadPool,
    level: Level,
}

/// An instruction set this CPU is known to have.
#[derive(Clone, Copy, Debug)]
enum Level {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

/// Matrices that are multiplied in one parallel region; more are done in several.
const MAX_SHARED: usize = 8;

/// Products smaller than this (bytes of weights times activation rows) are not worth a region.
const MIN_PARALLEL: usize = 16 << 10;

impl Compute {
    /// Threads that use `isa`, [`Isa::detect`]ed or, in a test, a lower one.
    ///
    /// # Errors
    /// When this CPU does not have the instructions.
    pub fn new(pool: ThreadPool, isa: Isa) -> Result<Self, UnsupportedIsa> {
        let unsupported = || UnsupportedIsa { wanted: isa, best: Isa::detect() };
        let level = Level::new(isa).ok_or_else(unsupported)?;
        Ok(Self { pool, level })
    }

    /// The threads.
    pub fn pool(&self) -> &ThreadPool {
        &self.pool
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        match self.level {
            Level::Portable(_) => Isa::Scalar,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => Isa::Avx2,
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => Isa::Avx512Vnni,
        }
    }

    /// Multiplies `acts` with each matrix, the rows of all of them shared out over the threads.
    ///
    /// A result does not depend on the number of threads, nor on the other activation rows and
    /// matrices of the call.
    ///
    /// # Panics
    /// When a matrix or its result does not fit the activations, its type is not
    /// [supported](Matrix::supported), or `acts` was not prepared in the form it needs.
    pub fn project(&self, acts: &Activations, projections: &mut [Projection<'_>]) {
        if acts.n() == 0 {
            return;
        }
        for shared in projections.chunks_mut(MAX_SHARED) {
            self.project_shared(acts, shared);
        }
    }

    fn project_shared(&self, acts: &Activations, projections: &mut [Projection<'_>]) {
        let bytes: usize = projections.iter().map(|p| p.weight.data.len()).sum();
        let mut projections = projections.iter_mut();
        let jobs: [Option<Job<'_>>; MAX_SHARED] =
            from_fn(|_| projections.next().and_then(|p| job(acts, p)));
        let lanes = self.level.rows();
        let total = jobs.iter().flatten().map(|job| job.weight.rows.div_ceil(lanes)).sum();
        let threads = self.pool.threads();
        if threads == 1 || bytes.saturating_mul(acts.n()) < MIN_PARALLEL {
            return self.run_tiles(acts, &jobs, 0..total, total, &mut Ahead::new());
        }
        let work = Shares::new(total, threads);
        self.pool.run(&|thread| {
            let mut ahead = Ahead::new();
            work.take(thread, |piece, end| self.run_tiles(acts, &jobs, piece, end, &mut ahead));
        });
    }

    /// Computes tiles `piece`, counted through all jobs, and expects to go on up to `end`.
    fn run_tiles(
        &self,
        acts: &Activations,
        jobs: &[Option<Job<'_>>],
        piece: Range<usize>,
        end: usize,
        ahead: &mut Ahead,
    ) {
        let lanes = self.level.rows();
        let mut before = 0;
        for job in jobs.iter().flatten() {
            let tiles = job.weight.rows.div_ceil(lanes);
            let [first, last, end] =
                [piece.start, piece.end, end].map(|at| at.clamp(before, before + tiles) - before);
            if first < last {
                let row_bytes = job.weight.data.len() / job.weight.rows;
                ahead.end = job.weight.rows.min(end * lanes) * row_bytes;
                self.level.multiply(job, acts, first..last, ahead);
            }
            before += tiles;
        }
    }
}

/// Checks a projection; `None` when it has no rows.
fn job<'a>(acts: &Activations, projection: &'a mut Projection<'_>) -> Option<Job<'a>> {
    let weight = projection.weight;
    weight.check(acts.cols());
    let needs = Forms::of([weight.ty]);
    let has = acts.forms();
    assert!(
        (has.float || !needs.float) && (has.quantised || !needs.quantised),
        "activations {has:?} for {} weights",
        weight.ty,
    );
    let out = Output::new(projection.out, acts.n(), weight.rows);
    (weight.rows > 0).then_some(Job { weight, out })
}

impl Level {
    /// `None` when this CPU does not have the instructions.
    fn new(isa: Isa) -> Option<Self> {
        match isa {
            Isa::Scalar => Some(Self::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::Avx2::new().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => avx512::Avx512::new().map(Self::Avx512),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512Vnni => None,
        }
    }

    /// Rows of a tile.
    fn rows(self) -> usize {
        match self {
            Self::Portable(_) => Portable::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => avx2::Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => avx512::Avx512::ROWS,
        }
    }

    fn run<W: Work>(self, work: W) -> W::Output {
        match self {
            Self::Portable(s) => s.vectorize(work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(s) => s.vectorize(work),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(s) => s.vectorize(work),
        }
    }

    /// Computes some tiles of one product.
    fn multiply(self, job: &Job<'_>, acts: &Activations, tiles: Range<usize>, ahead: &mut Ahead) {
        use TensorType as T;
        match job.weight.ty {
            T::F32 => self.float::<formats::F32>(job, acts, tiles, ahead),
            T::F16 => self.float::<formats::F16>(job, acts, tiles, ahead),
            T::BF16 => self.float::<formats::BF16>(job, acts, tiles, ahead),
            T::Q4_0 => self.quantised::<formats::Q4_0>(job, acts, tiles, ahead),
            T::Q4_1 => self.quantised::<formats::Q4_1>(job, acts, tiles, ahead),
            T::Q5_0 => self.quantised::<formats::Q5_0>(job, acts, tiles, ahead),
            T::Q5_1 => self.quantised::<formats::Q5_1>(job, acts, tiles, ahead),
            T::Q8_0 => self.quantised::<formats::Q8_0>(job, acts, tiles, ahead),
            T::Q2K => self.quantised::<formats::Q2K>(job, acts, tiles, ahead),
            T::Q3K => self.quantised::<formats::Q3K>(job, acts, tiles, ahead),
            T::Q4K => self.quantised::<formats::Q4K>(job, acts, tiles, ahead),
            T::Q5K => self.quantised::<formats::Q5K>(job, acts, tiles, ahead),
            T::Q6K => self.quantised::<formats::Q6K>(job, acts, tiles, ahead),
            T::IQ4NL => self.quantised::<formats::IQ4NL>(job, acts, tiles, ahead),
            T::IQ4XS => self.quantised::<formats::IQ4XS>(job, acts, tiles, ahead),
            T::MXFP4 => self.quantised::<formats::Mxfp4>(job, acts, tiles, ahead),
            other => unreachable!("{other} passed `Matrix::supported`"),
        }
    }

    fn quantised<T: Format>(
        self,
        job: &Job<'_>,
        acts: &Activations,
        tiles: Range<usize>,
        ahead: &mut Ahead,
    ) {
        self.run(QuantisedTiles::<T> { job, acts, tiles, ahead, format: PhantomData });
    }

    fn float<T: FloatFormat>(
        self,
        job: &Job<'_>,
        acts: &Activations,
        tiles: Range<usize>,
        ahead: &mut Ahead,
    ) {
        self.run(FloatTiles::<T> { job, acts, tiles, ahead, format: PhantomData });
    }
}

#[cfg(test)]
mod tests;
