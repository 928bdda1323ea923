//! Which pages of a KV cache belong to which sequences, and which of them begin alike.
//!
//! ```text
//!           reserve               written until it is full            nobody reads it
//!   Free ─────────────▶ Private ───────────────────────────▶ Full ◀──────────────────▶ Full, idle
//!    ▲                     │                                        begin finds it         │
//!    └──── given back ─────┴─────────────────── least recently used ───────────────────────┘
//! ```
//!
//! A page holds the keys and values of [`page_tokens`](Pages::page_tokens) tokens that follow each
//! other, and these depend on all tokens before. So a *full* page is named by its tokens and the page
//! before it, and whoever begins with the same tokens reads the same page. It is found by a hash of
//! both, and then compared: a hash that two pages share costs time and nothing else.
//!
//! * A page is written by one sequence or by none. Only the last pages of a sequence, which are not
//!   full, are its own; as soon as one is full nobody writes it any more.
//! * A sequence that fills a page as another has before reads that one from then on, and its own is
//!   free ([`Replaced`]). So there is one page for each beginning, and whoever reads a page reads
//!   the one before it too.
//! * Pages that nobody reads stay for whoever may begin like this, until there is need for them: the
//!   last of a beginning goes first.
//! * When pages run out a sequence may take those of weaker ones, which are to be computed again
//!   ([`Preempted`]). Who is weaker than whom never changes, so the strongest always gets on.
//!
//! Numbers are all there is here; whoever computes has the pages themselves, and copies and writes them
//! as it is told.

mod prefix;
#[cfg(test)]
mod tests;

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use thiserror::Error;

use prefix::{Hash, Prefixes};

/// A sequence, by the number that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceId(u64);

/// How strong a sequence is: the greater the stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Sequences of less priority give their pages first.
    pub priority: i64,
    /// Of these the one that arrived last, by a number that grows. A sequence that had to give its
    /// pages keeps the number when it begins again.
    pub arrival: u64,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> Ordering {
        self.priority.cmp(&other.priority).then_with(|| other.arrival.cmp(&self.arrival))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The pages of one model.
#[derive(Clone, Debug)]
pub struct Pages {
    page_tokens: usize,
    quota: usize,
    pages: Vec<Page>,
    /// Numbers of free pages.
    free: BTreeSet<u32>,
    prefixes: Prefixes,
    sequences: BTreeMap<SequenceId, Sequence>,
    begun: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Free,
    /// The sequence may write it.
    Private(SequenceId),
    /// So many sequences read it.
    Full(u32),
}

#[derive(Clone, Debug)]
struct Sequence {
    rank: Rank,
    /// Those whose keys and values are in its pages.
    tokens: Vec<u32>,
    /// Full ones for as many tokens as fill them, then its own.
    pages: Vec<u32>,
}

/// A page table has another page: it holds the same, and the one before is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// Its place in the page table.
    pub index: usize,
    /// The page that is there now.
    pub page: u32,
}

/// A sequence that had to give its pages, and is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preempted {
    /// Which.
    pub sequence: SequenceId,
    /// How strong it was.
    pub rank: Rank,
    /// What it held: to begin again with.
    pub tokens: Vec<u32>,
}

/// A sequence that goes on like another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The new one.
    pub sequence: SequenceId,
    /// The page whose content is to be copied, and to which, before either sequence is written.
    pub copy: Option<(u32, u32)>,
}

/// What cannot be done. Everything is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PagesError {
    /// Fewer pages can be had than are needed.
    #[error("the KV cache has {available} pages to give of {quota}, and {needed} more are needed")]
    OutOfPages {
        /// Pages that the sequence needs beyond those it has.
        needed: usize,
        /// Pages that it could have.
        available: usize,
        /// Pages there may be.
        quota: usize,
    },
    /// There is no such sequence.
    #[error("the sequence {} has ended", .0.0)]
    NoSequence(SequenceId),
    /// More was written than there is room for.
    #[error("{tokens} tokens were written where there is room for {room}")]
    NoRoom {
        /// Tokens written.
        tokens: usize,
        /// Tokens for which room was reserved.
        room: usize,
    },
}

impl Pages {
    /// Of pages of `page_tokens` tokens, with numbers below `capacity`; all of them may be used.
    pub fn new(page_tokens: NonZeroUsize, capacity: u32) -> Self {
        Self::with_hash(page_tokens, capacity, prefix::fnv)
    }

    fn with_hash(page_tokens: NonZeroUsize, capacity: u32, hash: Hash) -> Self {
        Self {
            page_tokens: page_tokens.get(),
            quota: capacity as usize,
            pages: vec![Page::Free; capacity as usize],
            free: (0..capacity).collect(),
            prefixes: Prefixes::new(hash),
            sequences: BTreeMap::new(),
            begun: 0,
        }
    }

    /// Tokens of a page.
    pub fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    /// Pages that may be used at a time: what the ledger has given to the model.
    pub fn quota(&self) -> usize {
        self.quota
    }

    /// Pages that sequences have.
    pub fn held(&self) -> usize {
        self.used() - self.kept()
    }

    /// Pages that no sequence has, and that are kept for those that may begin alike.
    pub fn kept(&self) -> usize {
        self.prefixes.idle()
    }

    /// Pages that could be had without taking any from a sequence.
    pub fn available(&self) -> usize {
        self.quota.saturating_sub(self.held())
    }

    /// How many of `tokens` a sequence that begins with them would find.
    pub fn cached(&self, tokens: &[u32]) -> usize {
        self.find(tokens).len() * self.page_tokens
    }

    /// A sequence that will hold `tokens`. It has what others computed of them; returns how many that
    /// are, never all: what follows the last one is to be computed.
    pub fn begin(&mut self, rank: Rank, tokens: &[u32]) -> (SequenceId, usize) {
        let pages = self.find(tokens);
        pages.iter().for_each(|page| self.read(*page));
        let cached = pages.len() * self.page_tokens;
        let sequence = Sequence { rank, tokens: tokens[..cached].to_vec(), pages };
        (self.add(sequence), cached)
    }

    /// Makes room for `more` tokens after those that a sequence holds.
    ///
    /// # Errors
    /// [`PagesError::OutOfPages`] if only other sequences have the pages for it,
    /// [`PagesError::NoSequence`].
    pub fn reserve(&mut self, id: SequenceId, more: usize) -> Result<(), PagesError> {
        let needed = self.needed(id, more)?;
        let (available, quota) = (self.available(), self.quota);
        if needed > available {
            return Err(PagesError::OutOfPages { needed, available, quota });
        }
        for _ in 0..needed {
            let page = self.take(id);
            let sequence = self.sequences.get_mut(&id);
            sequence.expect("its need was asked for").pages.push(page);
        }
        Ok(())
    }

    /// As [`reserve`](Self::reserve), but takes the pages of weaker sequences if need be: of the
    /// weakest first, and of none if that is not enough.
    ///
    /// # Errors
    /// [`PagesError::OutOfPages`] if stronger sequences have the pages for it, or nobody,
    /// [`PagesError::NoSequence`].
    pub fn reserve_from_weaker(
        &mut self,
        id: SequenceId,
        more: usize,
    ) -> Result<Vec<Preempted>, PagesError> {
        let needed = self.needed(id, more)?;
        let weaker = self.weaker(id);
        let available = self.available() + self.only_read_by(&weaker);
        if needed > available {
            return Err(PagesError::OutOfPages { needed, available, quota: self.quota });
        }
        let mut preempted = vec![];
        let mut weaker = weaker.into_iter();
        while needed > self.available()
            && let Some(weakest) = weaker.next()
        {
            preempted.extend(self.preempt(weakest));
        }
        self.reserve(id, more)?;
        Ok(preempted)
    }

    /// Whether [`reserve_from_weaker`](Self::reserve_from_weaker) would find enough pages.
    pub fn has_room(&self, id: SequenceId, more: usize) -> bool {
        self.needed(id, more).is_ok_and(|needed| {
            let beyond = needed.saturating_sub(self.available());
            beyond == 0 || beyond <= self.only_read_by(&self.weaker(id))
        })
    }

    /// Keys and values of `tokens` are in the pages of a sequence, behind what it held. Its page table
    /// may have other pages from now on.
    ///
    /// # Errors
    /// [`PagesError::NoRoom`], [`PagesError::NoSequence`].
    pub fn written(&mut self, id: SequenceId, tokens: &[u32]) -> Result<Vec<Replaced>, PagesError> {
        let size = self.page_tokens;
        let sequence = self.sequences.get_mut(&id).ok_or(PagesError::NoSequence(id))?;
        let before = sequence.tokens.len();
        let room = sequence.pages.len() * size - before;
        if tokens.len() > room {
            return Err(PagesError::NoRoom { tokens: tokens.len(), room });
        }
        sequence.tokens.extend_from_slice(tokens);
        let full = before / size..sequence.tokens.len() / size;
        Ok(full.filter_map(|index| self.fill(id, index)).collect())
    }

    /// Another sequence that holds the same as this one, as strong as `rank`.
    ///
    /// # Errors
    /// [`PagesError::OutOfPages`] if there is no page for its own last tokens,
    /// [`PagesError::NoSequence`].
    pub fn fork(&mut self, id: SequenceId, rank: Rank) -> Result<Fork, PagesError> {
        let origin = self.sequences.get(&id).ok_or(PagesError::NoSequence(id))?;
        let full = origin.tokens.len() / self.page_tokens;
        let partial = origin.pages.get(full).copied();
        let partial = partial.filter(|_| !origin.tokens.len().is_multiple_of(self.page_tokens));
        if partial.is_some() && self.available() == 0 {
            return Err(PagesError::OutOfPages { needed: 1, available: 0, quota: self.quota });
        }
        let (tokens, pages) = (origin.tokens.clone(), origin.pages[..full].to_vec());
        pages.iter().for_each(|page| self.read(*page));
        let sequence = self.add(Sequence { rank, tokens, pages });
        let Some(from) = partial else { return Ok(Fork { sequence, copy: None }) };
        let to = self.take(sequence);
        if let Some(forked) = self.sequences.get_mut(&sequence) {
            forked.pages.push(to);
        }
        Ok(Fork { sequence, copy: Some((from, to)) })
    }

    /// Forgets what a sequence holds from position `len` on, and its room beyond. Returns how many
    /// tokens are left: fewer than `len` where that is inside a full page, which nobody may write.
    ///
    /// # Errors
    /// [`PagesError::NoSequence`].
    pub fn truncate(&mut self, id: SequenceId, len: usize) -> Result<usize, PagesError> {
        let size = self.page_tokens;
        let sequence = self.sequences.get_mut(&id).ok_or(PagesError::NoSequence(id))?;
        let full = sequence.tokens.len() / size;
        let len = len.min(sequence.tokens.len());
        let left = if len / size < full { len / size * size } else { len };
        sequence.tokens.truncate(left);
        let dropped = sequence.pages.split_off(left.div_ceil(size));
        self.leave(&dropped);
        Ok(left)
    }

    /// A sequence is no more. What it filled is kept as long as there is no need for it.
    pub fn end(&mut self, id: SequenceId) {
        if let Some(sequence) = self.sequences.remove(&id) {
            self.leave(&sequence.pages);
        }
    }

    /// Changes how many pages may be used. If that is fewer than there are sequences for, the weakest
    /// ones give theirs.
    pub fn set_quota(&mut self, quota: usize) -> Vec<Preempted> {
        self.quota = quota.min(self.pages.len());
        let mut weakest = self.weakest_first().into_iter();
        let mut preempted = vec![];
        while self.held() > self.quota
            && let Some(weakest) = weakest.next()
        {
            preempted.extend(self.preempt(weakest));
        }
        while self.used() > self.quota {
            self.drop_oldest();
        }
        preempted
    }

    /// Frees the page that nobody has read for the longest time, and says which; `None` if none is kept.
    pub fn give_up(&mut self) -> Option<u32> {
        let page = self.prefixes.drop_oldest()?;
        self.release(page);
        Some(page)
    }

    /// Whether there is such a sequence: it has neither ended nor had to give its pages.
    pub fn contains(&self, id: SequenceId) -> bool {
        self.sequences.contains_key(&id)
    }

    /// A sequence's pages in the order of its tokens; those for which it has room come last. Empty if
    /// there is no such sequence.
    pub fn table(&self, id: SequenceId) -> &[u32] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.pages)
    }

    /// What a sequence holds. Empty if there is no such sequence.
    pub fn tokens(&self, id: SequenceId) -> &[u32] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.tokens)
    }

    /// The one sequence that may write a page.
    pub fn writer(&self, page: u32) -> Option<SequenceId> {
        match self.pages.get(page as usize) {
            Some(Page::Private(sequence)) => Some(*sequence),
            _ => None,
        }
    }

    fn used(&self) -> usize {
        self.pages.len() - self.free.len()
    }

    fn add(&mut self, sequence: Sequence) -> SequenceId {
        self.begun += 1;
        let id = SequenceId(self.begun);
        self.sequences.insert(id, sequence);
        id
    }

    /// Full pages that hold the beginning of `tokens`, but not the last token.
    fn find(&self, tokens: &[u32]) -> Vec<u32> {
        let before_last = tokens.len().saturating_sub(1);
        let mut found: Vec<u32> = vec![];
        for chunk in tokens[..before_last].chunks_exact(self.page_tokens) {
            match self.prefixes.find(found.last().copied(), chunk) {
                Some(page) => found.push(page),
                None => break,
            }
        }
        found
    }

    /// Pages that a sequence lacks for `more` tokens.
    fn needed(&self, id: SequenceId, more: usize) -> Result<usize, PagesError> {
        let sequence = self.sequences.get(&id).ok_or(PagesError::NoSequence(id))?;
        let pages = sequence.tokens.len().saturating_add(more).div_ceil(self.page_tokens);
        Ok(pages.saturating_sub(sequence.pages.len()))
    }

    /// A page for a sequence to write, of those that are available.
    fn take(&mut self, id: SequenceId) -> u32 {
        if self.used() >= self.quota {
            self.drop_oldest();
        }
        let page = self.free.pop_first().expect("fewer are used than there are");
        self.pages[page as usize] = Page::Private(id);
        page
    }

    fn drop_oldest(&mut self) {
        self.give_up().expect("some that are used are held by nobody");
    }

    fn release(&mut self, page: u32) {
        self.pages[page as usize] = Page::Free;
        self.free.insert(page);
    }

    /// One sequence more reads a full page.
    fn read(&mut self, page: u32) {
        if let Page::Full(readers) = &mut self.pages[page as usize] {
            *readers += 1;
            self.prefixes.wake(page);
        }
    }

    /// A sequence no longer has these pages, the last of it. Later ones become idle first, and are
    /// the first to go: a page is of no use without those before it.
    fn leave(&mut self, pages: &[u32]) {
        for &page in pages.iter().rev() {
            match &mut self.pages[page as usize] {
                Page::Full(1) => {
                    self.pages[page as usize] = Page::Full(0);
                    self.prefixes.rest(page);
                }
                Page::Full(readers) => *readers -= 1,
                Page::Private(_) => self.release(page),
                Page::Free => {}
            }
        }
    }

    /// A page of a sequence has become full. Says if another one holds the same, and takes its place.
    fn fill(&mut self, id: SequenceId, index: usize) -> Option<Replaced> {
        let size = self.page_tokens;
        let sequence = self.sequences.get_mut(&id)?;
        let own = sequence.pages[index];
        let before = index.checked_sub(1).map(|before| sequence.pages[before]);
        let tokens = &sequence.tokens[index * size..][..size];
        let Some(page) = self.prefixes.find(before, tokens) else {
            self.prefixes.insert(own, before, tokens);
            self.pages[own as usize] = Page::Full(1);
            return None;
        };
        sequence.pages[index] = page;
        self.release(own);
        self.read(page);
        Some(Replaced { index, page })
    }

    fn preempt(&mut self, sequence: SequenceId) -> Option<Preempted> {
        let Sequence { rank, tokens, pages } = self.sequences.remove(&sequence)?;
        self.leave(&pages);
        Some(Preempted { sequence, rank, tokens })
    }

    fn weakest_first(&self) -> Vec<SequenceId> {
        let mut all: Vec<_> = self.sequences.iter().collect();
        all.sort_by_key(|(id, sequence)| (sequence.rank, Reverse(**id)));
        all.into_iter().map(|(id, _)| *id).collect()
    }

    /// All that are weaker than this one, the weakest first.
    fn weaker(&self, id: SequenceId) -> Vec<SequenceId> {
        self.weakest_first().into_iter().take_while(|weak| *weak != id).collect()
    }

    /// Pages that nobody would have without these sequences.
    fn only_read_by(&self, sequences: &[SequenceId]) -> usize {
        let mut readers = BTreeMap::<u32, u32>::new();
        for page in sequences.iter().flat_map(|id| self.table(*id)) {
            *readers.entry(*page).or_default() += 1;
        }
        let alone = |(page, of_these): (&u32, &u32)| match self.pages[*page as usize] {
            Page::Full(readers) => readers == *of_these,
            Page::Private(_) => true,
            Page::Free => false,
        };
        readers.iter().filter(|entry| alone(*entry)).count()
    }
}
