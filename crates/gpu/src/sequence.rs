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
        let (pool, table) = (Arc::clone(self), PageTable::new());
        Ok(Sequence { pool, table, slot, uploaded: 0, follows: None })
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
    /// What it goes on by; none: the likeliest tokens.
    follows: Option<Follows>,
}

/// What is known of the state by which the card chooses a sequence's tokens.
#[derive(Clone, Copy, Debug)]
struct Follows {
    /// Tokens that the state has accepted: those that the sequence holds, and the one to be fed next.
    /// 0, which fits no sequence, if the state is not to be used any more.
    accepted: u64,
    /// Tokens that may still be chosen.
    left: u32,
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
        if self.accepted().is_some_and(|accepted| accepted > len as u64 + 1) {
            self.lose();
        }
    }

    /// Where the card keeps what belongs to it.
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// The card has a state for it from now on, which has accepted so many tokens and will choose
    /// `left` more at most.
    pub(crate) fn follow(&mut self, accepted: u64, left: u32) {
        self.follows = Some(Follows { accepted, left });
    }

    /// Tokens that the card's state of it has accepted; `None` if it has none.
    pub(crate) fn accepted(&self) -> Option<u64> {
        self.follows.map(|follows| follows.accepted)
    }

    /// The card's state has chosen and accepted so many tokens.
    pub(crate) fn accept(&mut self, tokens: u32) {
        if let Some(follows) = &mut self.follows {
            follows.accepted += u64::from(tokens);
            follows.left = follows.left.saturating_sub(tokens);
        }
    }

    /// The card's state is not to be used any more.
    pub(crate) fn lose(&mut self) {
        if let Some(follows) = &mut self.follows {
            follows.accepted = 0;
        }
    }

    /// Passes that it is fed in, of so many.
    pub(crate) fn passes(&self, passes: u32) -> u32 {
        self.follows.map_or(passes, |follows| passes.min(follows.left.max(1)))
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
    fn a_state_is_lost_with_tokens_that_it_has_accepted() {
        let pool = Pool::new(4, 1, 100);
        let mut sequence = pool.begin().unwrap();
        assert_eq!((sequence.accepted(), sequence.passes(9)), (None, 9));
        sequence.grow(10).unwrap();
        sequence.follow(11, 5);
        sequence.accept(3);
        assert_eq!((sequence.accepted(), sequence.passes(9)), (Some(14), 2));
        sequence.grow(14).unwrap();
        sequence.truncate(13);
        assert_eq!(sequence.accepted(), Some(14));
        sequence.truncate(12);
        assert_eq!(sequence.accepted(), Some(0));
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
