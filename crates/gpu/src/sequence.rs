//! A sequence's part of the KV cache, and who has which.
//!
//! Sequences that begin with the same tokens read the same pages ([`Pages`]). A page counts as holding
//! tokens once they have been computed, which whoever computes says ([`Sequence::computed`]).

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use m40_sched::Pages;
use m40_sched::pages::{PagesError, Rank, SequenceId};

use crate::ops::PAGE_TOKENS;

/// Of what shares no pages: nobody takes them from it.
const STRONGEST: Rank = Rank { priority: i64::MAX, arrival: 0 };

/// Why there is no further sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {most} sequences that the gpu keeps are in use")]
pub struct TooManySequences {
    /// Sequences there may be at a time.
    pub most: usize,
}

/// Pages and slots of one model.
#[derive(Debug)]
pub struct Pool {
    state: Mutex<State>,
    /// Tokens that a sequence may have.
    context: usize,
    slots: usize,
}

#[derive(Debug)]
struct State {
    pages: Pages,
    /// Slots that nobody has, the next to be given out last.
    slots: Vec<u32>,
    /// A token that no text has, and no sequence was given yet.
    unheard: u32,
}

impl Pool {
    /// Pages `0..pages` and slots `0..slots`, for sequences of at most `context` tokens.
    pub fn new(pages: usize, slots: usize, context: usize) -> Arc<Self> {
        let page_tokens = NonZeroUsize::new(PAGE_TOKENS).expect("a page has tokens");
        let pages = Pages::new(page_tokens, u32::try_from(pages).unwrap_or(u32::MAX));
        let free = (0..slots as u32).rev().collect();
        let state = State { pages, slots: free, unheard: u32::MAX };
        Arc::new(Self { state: Mutex::new(state), context, slots })
    }

    /// Pages that no sequence has, of all. Some of them hold what sequences before have computed.
    pub fn pages(&self) -> (usize, usize) {
        let state = self.state();
        (state.pages.available(), state.pages.quota())
    }

    /// An empty sequence that shares no pages with others, ever.
    ///
    /// # Errors
    /// [`TooManySequences`].
    pub fn begin(self: &Arc<Self>) -> Result<Sequence, TooManySequences> {
        let unheard = {
            let mut state = self.state();
            state.unheard = state.unheard.wrapping_sub(1);
            state.unheard
        };
        self.add(STRONGEST, &[], Some(unheard))
    }

    /// A sequence that will hold `tokens`, as strong as `rank`. It holds as many of them from the start
    /// as sequences before have left in whole pages, but never the last.
    ///
    /// # Errors
    /// [`TooManySequences`].
    pub fn begin_with(
        self: &Arc<Self>,
        rank: Rank,
        tokens: &[u32],
    ) -> Result<Sequence, TooManySequences> {
        self.add(rank, tokens, None)
    }

    fn add(
        self: &Arc<Self>,
        rank: Rank,
        tokens: &[u32],
        alone: Option<u32>,
    ) -> Result<Sequence, TooManySequences> {
        let mut state = self.state();
        let slot = state.slots.pop().ok_or(TooManySequences { most: self.slots })?;
        let (id, _) = state.pages.begin(rank, tokens);
        drop(state);
        let pool = Arc::clone(self);
        Ok(Sequence { pool, id, rank, alone, slot, uploaded: 0, follows: None })
    }

    /// Makes room in each sequence for all tokens up to the position beside it, or in none.
    ///
    /// # Errors
    /// [`PagesError::OutOfPages`] if other sequences have the pages for it.
    pub fn grow(&self, sequences: &mut [&mut Sequence], ends: &[usize]) -> Result<(), PagesError> {
        let mut state = self.state();
        let pages = &mut state.pages;
        let mut needed = 0;
        for (sequence, end) in sequences.iter_mut().zip(ends) {
            sequence.revive(pages);
            needed += end.div_ceil(PAGE_TOKENS).saturating_sub(pages.table(sequence.id).len());
        }
        let (available, quota) = (pages.available(), pages.quota());
        if needed > available {
            return Err(PagesError::OutOfPages { needed, available, quota });
        }
        sequences.iter().zip(ends).try_for_each(|(sequence, end)| {
            let more = end.saturating_sub(pages.tokens(sequence.id).len());
            pages.reserve(sequence.id, more)
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys and values of one sequence on the card. Its slot goes back when it is dropped, and its
/// pages: those that are full are kept for sequences that begin alike, as long as nobody needs them.
///
/// Another sequence may take its pages ([`reserve`](Self::reserve)), wherever it is: then it holds
/// nothing until it [`resume`](Self::resume)s.
pub struct Sequence {
    pool: Arc<Pool>,
    id: SequenceId,
    rank: Rank,
    /// What stands for its tokens if it shares no pages.
    alone: Option<u32>,
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
        self.pool.state().pages.tokens(self.id).len()
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens that it may hold.
    pub fn context(&self) -> usize {
        self.pool.context
    }

    /// Pages held, of [`PAGE_TOKENS`] tokens each.
    pub fn pages(&self) -> usize {
        self.pool.state().pages.table(self.id).len()
    }

    /// The numbers of its pages, as kernels read them.
    pub fn table(&self) -> Vec<u32> {
        self.pool.state().pages.table(self.id).to_vec()
    }

    /// Forgets all tokens from position `len` on, and the room beyond; pages no longer needed are free
    /// for others. Returns how many tokens are left: a full page goes as a whole.
    pub fn truncate(&mut self, len: usize) -> usize {
        let mut state = self.pool.state();
        // Without its pages it holds nothing.
        let left = state.pages.truncate(self.id, len).unwrap_or(0);
        self.uploaded = self.uploaded.min(state.pages.table(self.id).len());
        drop(state);
        if self.accepted().is_some_and(|accepted| accepted > len as u64 + 1) {
            self.lose();
        }
        left
    }

    /// Takes over what others have computed of `tokens`, which are those that it holds, or held before
    /// its pages were taken, and at least one more. Returns how many tokens it holds.
    pub fn resume(&mut self, tokens: &[u32]) -> usize {
        let mut state = self.pool.state();
        let pages = &mut state.pages;
        let held = pages.tokens(self.id).len();
        let is_there = pages.contains(self.id);
        // In between it has a page that it writes itself.
        let found = held.is_multiple_of(PAGE_TOKENS) && pages.cached(tokens) > held;
        if !is_there || found {
            // What it leaves it finds again.
            pages.end(self.id);
            (self.id, _) = pages.begin(self.rank, tokens);
            self.uploaded = 0;
        }
        pages.tokens(self.id).len()
    }

    /// Makes room for all tokens up to position `end`, if need be with the pages of weaker sequences.
    /// Says whether there were any that gave theirs.
    ///
    /// # Errors
    /// [`PagesError::OutOfPages`] if stronger sequences have the pages for it, or nobody.
    pub fn reserve(&mut self, end: usize) -> Result<bool, PagesError> {
        let pool = Arc::clone(&self.pool);
        let mut state = pool.state();
        self.revive(&mut state.pages);
        let more = end.saturating_sub(state.pages.tokens(self.id).len());
        let preempted = state.pages.reserve_from_weaker(self.id, more)?;
        Ok(!preempted.is_empty())
    }

    /// Whether there is room for all tokens up to position `end` without taking any from others.
    pub fn fits(&self, end: usize) -> bool {
        let state = self.pool.state();
        let needed = end.div_ceil(PAGE_TOKENS).saturating_sub(state.pages.table(self.id).len());
        needed <= state.pages.available()
    }

    /// Whether there could be, as [`reserve`](Self::reserve) makes it.
    pub fn has_room(&self, end: usize) -> bool {
        let state = self.pool.state();
        let more = end.saturating_sub(state.pages.tokens(self.id).len());
        state.pages.has_room(self.id, more)
    }

    /// Keys and values of these tokens are in its pages, behind what it held.
    ///
    /// # Errors
    /// [`PagesError::NoRoom`] unless there was room for them, [`PagesError::NoSequence`].
    pub fn computed(&mut self, tokens: &[u32]) -> Result<(), PagesError> {
        let mut state = self.pool.state();
        let replaced = match self.alone {
            None => state.pages.written(self.id, tokens)?,
            Some(unheard) => state.pages.written(self.id, &vec![unheard; tokens.len()])?,
        };
        let first = replaced.iter().map(|replaced| replaced.index).min();
        self.uploaded = first.map_or(self.uploaded, |first| first.min(self.uploaded));
        Ok(())
    }

    /// If its pages were taken it begins anew, without any.
    fn revive(&mut self, pages: &mut Pages) {
        if !pages.contains(self.id) {
            (self.id, _) = pages.begin(self.rank, &[]);
            self.uploaded = 0;
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

    /// Whether it shares no pages.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone.is_some()
    }

    /// The entries of the page table that the card does not have, and the first one's number; it
    /// has them from now on.
    pub(crate) fn take_news(&mut self) -> (usize, Vec<u32>) {
        let state = self.pool.state();
        let table = state.pages.table(self.id);
        let first = std::mem::replace(&mut self.uploaded, table.len());
        (first, table[first..].to_vec())
    }
}

impl fmt::Debug for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Sequence");
        out.field("slot", &self.slot).field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.pages.end(self.id);
        state.slots.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(arrival: u64) -> Rank {
        Rank { priority: 0, arrival }
    }

    fn text(count: u32) -> Vec<u32> {
        (0..count).collect()
    }

    /// Has a sequence hold `tokens`.
    fn compute(sequence: &mut Sequence, tokens: &[u32]) {
        let (pool, from) = (Arc::clone(&sequence.pool), sequence.len());
        pool.grow(&mut [&mut *sequence], &[tokens.len()]).expect("there are pages");
        sequence.computed(&tokens[from..]).expect("there is room");
    }

    #[test]
    fn slots_and_pages_come_back() {
        let pool = Pool::new(4, 2, 100);
        let mut a = pool.begin().unwrap();
        let b = pool.begin().unwrap();
        assert_eq!(pool.begin().unwrap_err(), TooManySequences { most: 2 });
        compute(&mut a, &text(70));
        assert_eq!((a.len(), a.pages(), pool.pages()), (70, 3, (1, 4)));
        drop(b);
        let b = pool.begin().unwrap();
        assert_ne!(a.slot(), b.slot());
        drop(a);
        assert_eq!(pool.pages(), (4, 4));
    }

    #[test]
    fn a_sequence_has_a_page_for_every_32_tokens_and_what_does_not_fit_changes_nothing() {
        let pool = Pool::new(3, 2, 1000);
        let (mut a, mut b) = (pool.begin().unwrap(), pool.begin().unwrap());
        for (tokens, pages) in [(1, 1), (32, 1), (33, 2)] {
            compute(&mut a, &text(tokens));
            assert_eq!((a.len(), a.pages()), (tokens as usize, pages));
        }
        let full = pool.grow(&mut [&mut b, &mut a], &[32, 65]).unwrap_err();
        assert_eq!(full, PagesError::OutOfPages { needed: 2, available: 1, quota: 3 });
        assert_eq!((a.pages(), b.pages(), pool.pages()), (2, 0, (1, 3)));
        pool.grow(&mut [&mut b, &mut a], &[32, 64]).unwrap();
        assert_eq!((a.len(), a.pages(), b.pages()), (33, 2, 1));
    }

    #[test]
    fn who_begins_alike_reads_the_same_pages_unless_it_shares_none() {
        let pool = Pool::new(20, 4, 1000);
        let mut first = pool.begin_with(rank(1), &text(70)).unwrap();
        assert_eq!(first.len(), 0);
        compute(&mut first, &text(70));
        let second = pool.begin_with(rank(2), &text(90)).unwrap();
        assert_eq!((second.len(), &second.table()[..]), (64, &first.table()[..2]));
        // It goes on where the other one was before it ended.
        drop((first, second));
        assert_eq!(pool.pages(), (20, 20));
        assert_eq!(pool.begin_with(rank(3), &text(65)).unwrap().len(), 64);

        let mut alone = pool.begin().unwrap();
        let before = pool.pages().0;
        compute(&mut alone, &text(70));
        assert_eq!((alone.len(), pool.pages().0), (70, before - 3));
        let other = [&[7], &text(70)[..]].concat();
        let mut alone = pool.begin().unwrap();
        compute(&mut alone, &other);
        drop(alone);
        assert_eq!(pool.begin_with(rank(4), &other).unwrap().len(), 0);
    }

    #[test]
    fn two_that_compute_the_same_at_a_time_find_what_the_other_has() {
        let pool = Pool::new(20, 2, 1000);
        let [mut a, mut b] =
            [1, 2].map(|arrival| pool.begin_with(rank(arrival), &text(90)).unwrap());
        compute(&mut a, &text(64));
        compute(&mut b, &text(20));
        assert_eq!(b.resume(&text(90)), 20, "it has a page of its own");
        compute(&mut b, &text(32));
        assert_eq!(b.table(), a.table()[..1]);
        // The card has to hear of that.
        b.take_news();
        assert_eq!((b.resume(&text(90)), b.take_news()), (64, (0, a.table())));
        assert_eq!((b.resume(&text(90)), b.take_news()), (64, (2, vec![])));
    }

    #[test]
    fn whose_pages_were_taken_begins_again_with_what_is_left_of_them() {
        let pool = Pool::new(4, 2, 1000);
        let mut weak = pool.begin_with(rank(2), &text(70)).unwrap();
        compute(&mut weak, &text(70));
        weak.follow(71, 9);
        let mut strong = pool.begin_with(rank(1), &[500]).unwrap();
        assert_eq!(strong.reserve(30), Ok(false));
        assert!(strong.has_room(60) && !weak.has_room(100));
        assert_eq!(strong.reserve(60), Ok(true));
        assert_eq!((weak.len(), weak.pages(), pool.pages()), (0, 0, (2, 4)));
        assert_eq!((weak.truncate(70), weak.resume(&text(71))), (0, 64));
        let full = PagesError::OutOfPages { needed: 1, available: 0, quota: 4 };
        assert_eq!((weak.has_room(70), weak.reserve(70)), (false, Err(full)));
        drop(strong);
        weak.reserve(70).unwrap();
        compute(&mut weak, &text(70));
        // What it goes on by was never in a page.
        assert_eq!((weak.take_news().0, weak.accepted()), (0, Some(71)));
        // One that held nothing yet has room again as soon as it asks.
        let mut other = pool.begin_with(rank(3), &text(9)).unwrap();
        other.reserve(9).unwrap();
        assert_eq!(weak.reserve(128), Ok(true));
        weak.truncate(70);
        compute(&mut other, &text(9));
        assert_eq!(other.len(), 9);
    }

    #[test]
    fn a_state_is_lost_with_tokens_that_it_has_accepted() {
        let pool = Pool::new(4, 1, 100);
        let mut sequence = pool.begin().unwrap();
        assert_eq!((sequence.accepted(), sequence.passes(9)), (None, 9));
        compute(&mut sequence, &text(10));
        sequence.follow(11, 5);
        sequence.accept(3);
        assert_eq!((sequence.accepted(), sequence.passes(9)), (Some(14), 2));
        compute(&mut sequence, &text(14));
        sequence.truncate(13);
        assert_eq!(sequence.accepted(), Some(14));
        sequence.truncate(12);
        assert_eq!(sequence.accepted(), Some(0));
    }

    #[test]
    fn the_card_is_told_of_each_page_once_and_again_after_truncation() {
        let pool = Pool::new(9, 1, 300);
        let mut sequence = pool.begin().unwrap();
        compute(&mut sequence, &text(40));
        assert_eq!(sequence.take_news(), (0, vec![0, 1]));
        assert_eq!(sequence.take_news(), (2, vec![]));
        compute(&mut sequence, &text(65));
        assert_eq!(sequence.take_news(), (2, vec![2]));
        assert_eq!(sequence.truncate(50), 32, "a full page goes as a whole");
        assert_eq!((sequence.len(), pool.pages()), (32, (8, 9)));
        compute(&mut sequence, &text(40));
        assert_eq!(sequence.take_news().0, 1);
    }
}
