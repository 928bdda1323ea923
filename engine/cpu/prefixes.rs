//! Pages of the KV cache that are kept for whoever begins with the same tokens.
//!
//! Sessions have their pages themselves. Here is who may have them too: each page that has become full is
//! kept, and of those that no session has any more the ones that nobody asked for longest go first. A page's
//! bits do not depend on who computed it, so this shows in nothing but time.
//!
//! A session has been given memory for a whole context, and takes it page by page. What sessions have been
//! given and do not have yet is what pages are kept in: a session that grows, and one that ends, take it
//! back. So all pages together are never more than those that sessions may have, or that one may have where
//! there is none, which is what a model is said to take.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::Range;

use m40_cpu::kv::PAGE_TOKENS;
use m40_cpu::{KvCache, SharedPage};
use m40_sched::Pages;
use m40_sched::pages::Rank;

use super::SIDE_BY_SIDE;

/// Pages that are kept at most, however much memory there is: 4 million tokens.
const KEPT_PAGES: usize = 1 << 16;

/// Nobody has pages here for longer than a call, so none is taken from anybody.
const RANK: Rank = Rank { priority: 0, arrival: 0 };

/// Pages of one model.
#[derive(Debug)]
pub(super) struct Prefixes {
    pages: Pages,
    /// By their number in `pages`.
    kept: Vec<Option<SharedPage>>,
    /// Pages of each session, or more; by its number.
    sessions: BTreeMap<u64, usize>,
    /// Pages that a session may have.
    session_pages: usize,
}

impl Prefixes {
    /// For sessions of up to `context` tokens.
    pub(super) fn new(context: usize) -> Self {
        let session_pages = context.div_ceil(PAGE_TOKENS);
        let capacity = session_pages.saturating_mul(SIDE_BY_SIDE).min(KEPT_PAGES);
        Self::with_capacity(session_pages, capacity)
    }

    /// Keeps up to `capacity` pages, however many there may be.
    pub(super) fn with_capacity(session_pages: usize, capacity: usize) -> Self {
        let page_tokens = const { NonZeroUsize::new(PAGE_TOKENS).expect("a page has tokens") };
        Self {
            pages: Pages::new(page_tokens, capacity as u32),
            kept: vec![None; capacity],
            sessions: BTreeMap::new(),
            session_pages,
        }
    }

    /// There is a session, which has no pages yet.
    pub(super) fn open(&mut self, session: u64) {
        self.sessions.insert(session, 0);
    }

    /// A session is no more, nor has it pages.
    pub(super) fn close(&mut self, session: u64) {
        self.sessions.remove(&session);
        self.make_way(0);
    }

    /// A session, which has no pages now, may take all that it was given for something else, until it is
    /// [open](Self::open) again.
    pub(super) fn lend(&mut self, session: u64) {
        self.sessions.insert(session, self.session_pages);
        self.make_way(0);
    }

    /// Has `cache`, which holds the first `held` of `tokens`, hold more of them, if others have
    /// computed them; never the last. Returns how many it holds.
    pub(super) fn find(
        &mut self,
        session: u64,
        cache: &mut KvCache,
        held: usize,
        tokens: &[u32],
    ) -> usize {
        let (sequence, cached) = self.pages.begin(RANK, tokens);
        if cached > held {
            for page in &self.pages.table(sequence)[held / PAGE_TOKENS..] {
                let page = self.kept[*page as usize].clone();
                cache.adopt(page.expect("a full page is kept"));
            }
        }
        self.pages.end(sequence);
        self.sessions.insert(session, cache.pages());
        self.make_way(0);
        held.max(cached)
    }

    /// Takes the memory for tokens at these positions of a session's cache.
    pub(super) fn reserve(&mut self, session: u64, cache: &mut KvCache, positions: Range<usize>) {
        self.sessions.insert(session, cache.pages());
        self.make_way(cache.lacking(positions.clone()));
        cache.reserve(positions);
        self.sessions.insert(session, cache.pages());
    }

    /// Keeps the full pages of a cache that holds `tokens`.
    pub(super) fn keep(&mut self, cache: &KvCache, tokens: &[u32]) {
        let full = &tokens[..tokens.len() / PAGE_TOKENS * PAGE_TOKENS];
        let (sequence, cached) = self.pages.begin(RANK, full);
        let new = &full[cached..];
        // The end of a text for which there is no room at all is not kept.
        let room = new.len().min(self.pages.available() * PAGE_TOKENS);
        let written = self
            .pages
            .reserve(sequence, room)
            .and_then(|()| self.pages.written(sequence, &new[..room]));
        if written.is_ok() {
            let added = self.pages.table(sequence).iter().enumerate().skip(cached / PAGE_TOKENS);
            added.for_each(|(index, page)| self.kept[*page as usize] = cache.share(index));
        }
        self.pages.end(sequence);
    }

    /// Gives up pages that are kept until there is room for all that sessions have, and so many more.
    fn make_way(&mut self, more: usize) {
        let needed = self.sessions.values().sum::<usize>() + more;
        let room = self.given().saturating_sub(needed);
        let mut alone = self.alone();
        while alone > room
            && let Some(page) = self.pages.give_up()
        {
            let page = self.kept[page as usize].take();
            alone -= usize::from(page.is_some_and(|page| page.is_alone()));
        }
    }

    /// Pages that there may be.
    pub(super) fn given(&self) -> usize {
        self.sessions.len().max(1).saturating_mul(self.session_pages)
    }

    /// Pages that are kept and that no session has.
    pub(super) fn alone(&self) -> usize {
        self.kept.iter().flatten().filter(|page| page.is_alone()).count()
    }
}
