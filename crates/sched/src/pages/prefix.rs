//! Full pages by what they hold: their tokens, and all tokens before.

use std::collections::{BTreeMap, BTreeSet};

/// A hash of a page's tokens and of the hash of the page before it.
pub(super) type Hash = fn(u64, &[u32]) -> u64;

/// FNV-1a by whole tokens: pages with equal hashes are compared, so it need not be a strong one.
pub(super) fn fnv(before: u64, tokens: &[u32]) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let mix = |hash: u64, token: &u32| (hash ^ u64::from(*token)).wrapping_mul(PRIME);
    tokens.iter().fold(before ^ OFFSET, mix)
}

/// Full pages, and which of them nobody reads.
#[derive(Clone, Debug)]
pub(super) struct Prefixes {
    hash: Hash,
    /// By number.
    pages: BTreeMap<u32, Content>,
    by_hash: BTreeSet<(u64, u32)>,
    /// Those that nobody reads, by when that began.
    idle: BTreeMap<u64, u32>,
    /// How often a page became idle so far.
    rests: u64,
}

#[derive(Clone, Debug)]
struct Content {
    hash: u64,
    before: Option<u32>,
    tokens: Box<[u32]>,
    /// Its place among those that nobody reads.
    idle_since: Option<u64>,
}

impl Prefixes {
    pub(super) fn new(hash: Hash) -> Self {
        let (pages, by_hash, idle) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Self { hash, pages, by_hash, idle, rests: 0 }
    }

    /// The page that holds `tokens` behind the page `before`, or behind nothing.
    pub(super) fn find(&self, before: Option<u32>, tokens: &[u32]) -> Option<u32> {
        let hash = self.hash_of(before, tokens);
        let same = |page: &u32| {
            let content = &self.pages[page];
            content.before == before && *content.tokens == *tokens
        };
        let candidates = self.by_hash.range((hash, 0)..=(hash, u32::MAX));
        candidates.map(|(_, page)| *page).find(same)
    }

    /// A page that is read holds this from now on; none did.
    pub(super) fn insert(&mut self, page: u32, before: Option<u32>, tokens: &[u32]) {
        let hash = self.hash_of(before, tokens);
        self.by_hash.insert((hash, page));
        self.pages.insert(page, Content { hash, before, tokens: tokens.into(), idle_since: None });
    }

    /// Somebody reads a page.
    pub(super) fn wake(&mut self, page: u32) {
        let since = self.pages.get_mut(&page).and_then(|content| content.idle_since.take());
        if let Some(since) = since {
            self.idle.remove(&since);
        }
    }

    /// Nobody reads a page any more.
    pub(super) fn rest(&mut self, page: u32) {
        self.rests += 1;
        if let Some(content) = self.pages.get_mut(&page) {
            content.idle_since = Some(self.rests);
            self.idle.insert(self.rests, page);
        }
    }

    /// Pages that nobody reads.
    pub(super) fn idle(&self) -> usize {
        self.idle.len()
    }

    /// Forgets the page that nobody has read for the longest time. None that is known is behind it:
    /// whoever read that one read this one too, and left it later.
    pub(super) fn drop_oldest(&mut self) -> Option<u32> {
        let (_, page) = self.idle.pop_first()?;
        let content = self.pages.remove(&page)?;
        self.by_hash.remove(&(content.hash, page));
        Some(page)
    }

    fn hash_of(&self, before: Option<u32>, tokens: &[u32]) -> u64 {
        let before = before.and_then(|page| self.pages.get(&page));
        (self.hash)(before.map_or(0, |content| content.hash), tokens)
    }
}
