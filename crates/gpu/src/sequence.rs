//! A sequence's part of the KV cache.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::kv::{OutOfPages, PagePool, PageTable};

/// Why there is no further sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {most} sequences that the gpu keeps are in use")]
pub struct TooManySequences {
    /// Sequences there may be at a time.
    pub most: usize,
}

/// Pages and slots of one model.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Mutex<State>,
    /// Tokens that a sequence may have.
    context: usize,
    slots: usize,
}

#[derive(Debug)]
struct State {
    pages: PagePool,
    /// Slots that nobody has, the next to be given out last.
    slots: Vec<u32>,
}

impl Pool {
    pub(crate) fn new(pages: usize, slots: usize, context: usize) -> Arc<Self> {
        let free = (0..slots as u32).rev().collect();
        let state = State { pages: PagePool::new(pages), slots: free };
        Arc::new(Self { state: Mutex::new(state), context, slots })
    }

    /// Pages that nobody has, of all.
    pub(crate) fn pages(&self) -> (usize, usize) {
        let state = self.state();
        (state.pages.free(), state.pages.capacity())
    }

    /// An empty sequence.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<Sequence, TooManySequences> {
        let slot = self.state().slots.pop().ok_or(TooManySequences { most: self.slots })?;
        Ok(Sequence { pool: Arc::clone(self), table: PageTable::new(), slot, uploaded: 0 })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys and values of one sequence on the card. Its memory goes back to the model's when
/// dropped.
pub struct Sequence {
    pool: Arc<Pool>,
    table: PageTable,
    slot: u32,
    /// Entries of the page table that the card has.
    uploaded: usize,
}

impl Sequence {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.table.tokens()
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that it may hold.
    pub fn context(&self) -> usize {
        self.pool.context
    }

    /// Pages held, of [`PAGE_TOKENS`](crate::ops::PAGE_TOKENS) tokens each.
    pub fn pages(&self) -> usize {
        self.table.pages().len()
    }

    /// Forgets all tokens from position `len` on; pages no longer needed are free for others.
    pub fn truncate(&mut self, len: usize) {
        self.pool.state().pages.truncate(&mut self.table, len);
        self.uploaded = self.uploaded.min(self.table.pages().len());
    }

    /// Where the card keeps what belongs to it.
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    pub(crate) fn is_of(&self, pool: &Arc<Pool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// Makes room for `tokens` tokens.
    pub(crate) fn grow(&mut self, tokens: usize) -> Result<(), OutOfPages> {
        self.pool.state().pages.grow(&mut self.table, tokens)
    }

    /// The entries of the page table that the card does not have, and the first one's number; it
    /// has them from now on.
    pub(crate) fn take_news(&mut self) -> (usize, &[u32]) {
        let first = std::mem::replace(&mut self.uploaded, self.table.pages().len());
        (first, &self.table.pages()[first..])
    }
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Sequence");
        out.field("slot", &self.slot).field("table", &self.table).finish_non_exhaustive()
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let table = std::mem::take(&mut self.table);
        let mut state = self.pool.state();
        state.pages.release(table);
        state.slots.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_pages_come_back() {
        let pool = Pool::new(4, 2, 100);
        let mut a = pool.begin().unwrap();
        let b = pool.begin().unwrap();
        assert_eq!(pool.begin().unwrap_err(), TooManySequences { most: 2 });
        a.grow(70).unwrap();
        assert_eq!((a.len(), a.pages(), pool.pages()), (70, 3, (1, 4)));
        drop(b);
        let b = pool.begin().unwrap();
        assert_ne!(a.slot(), b.slot());
        drop(a);
        assert_eq!(pool.pages(), (4, 4));
    }

    #[test]
    fn the_card_is_told_of_each_page_once_and_again_after_truncation() {
        let pool = Pool::new(9, 1, 300);
        let mut sequence = pool.begin().unwrap();
        sequence.grow(40).unwrap();
        assert_eq!(sequence.take_news(), (0, &[0, 1][..]));
        assert_eq!(sequence.take_news(), (2, &[][..]));
        sequence.grow(65).unwrap();
        assert_eq!(sequence.take_news(), (2, &[2][..]));
        sequence.truncate(20);
        assert_eq!((sequence.len(), pool.pages()), (20, (8, 9)));
        sequence.grow(40).unwrap();
        assert_eq!(sequence.take_news().0, 1);
    }
}
