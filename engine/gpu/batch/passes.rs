//! What the batcher knows of an executor.

use std::fmt;
use std::time::{Duration, Instant};

use m40_gpu::TooManySequences;
use m40_gpu::continuation::Continuation;
use m40_gpu::executor::{Attend, PassError, Row};
use m40_sched::pages::{PagesError, Rank};

use crate::generate::Cancel;

/// What computes passes: the executor, or what stands in for it in tests.
pub(crate) trait Passes: Send + 'static {
    /// Keys and values of one session.
    type Sequence: fmt::Debug + Send;
    /// Ends what a sequence goes on by.
    type Canceller: Cancel + 'static;

    /// Pages of the KV cache that nobody has, and all.
    fn pages(&self) -> (usize, usize);

    /// As [`Executor::begin_with`](m40_gpu::executor::Executor::begin_with).
    fn begin(&mut self, rank: Rank, text: &[u32]) -> Result<Self::Sequence, TooManySequences>;

    /// Tokens that a sequence holds.
    fn len(sequence: &Self::Sequence) -> usize;

    /// As [`Sequence::truncate`](m40_gpu::Sequence::truncate).
    fn truncate(sequence: &mut Self::Sequence, len: usize);

    /// As [`Sequence::resume`](m40_gpu::Sequence::resume).
    fn resume(sequence: &mut Self::Sequence, text: &[u32]) -> usize;

    /// As [`Sequence::reserve`](m40_gpu::Sequence::reserve).
    fn reserve(sequence: &mut Self::Sequence, end: usize) -> Result<bool, PagesError>;

    /// As [`Sequence::fits`](m40_gpu::Sequence::fits).
    fn fits(sequence: &Self::Sequence, end: usize) -> bool;

    /// As [`Sequence::has_room`](m40_gpu::Sequence::has_room).
    fn has_room(sequence: &Self::Sequence, end: usize) -> bool;

    /// As [`Executor::forward`](m40_gpu::executor::Executor::forward).
    fn forward(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Self::Sequence],
    ) -> Result<&mut [f32], PassError>;

    /// As [`Executor::continue_with`](m40_gpu::executor::Executor::continue_with).
    fn continue_with(
        &mut self,
        sequence: &mut Self::Sequence,
        continuation: &Continuation,
    ) -> Result<Self::Canceller, PassError>;

    /// As [`Executor::rows_at_once`](m40_gpu::executor::Executor::rows_at_once).
    fn rows_at_once(&self, waiting: usize) -> usize;

    /// As [`Executor::choose_attended`](m40_gpu::executor::Executor::choose_attended); who attends
    /// hears of all that is chosen.
    fn choose(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Self::Sequence],
        passes: u32,
        attend: &mut dyn Attend,
    ) -> Result<(), PassError>;

    /// Nothing is to be computed: the card goes to whoever wants it. The result says when to ask
    /// again, unless nothing of the card is held any more.
    fn idle(&mut self) -> Option<Duration>;

    /// How long the next pass is to wait at least before this is asked again, so that the card gets no
    /// hotter; `None` when it may begin, and does.
    fn pause(&mut self) -> Option<Duration>;

    /// The time.
    fn now(&self) -> Instant;
}
