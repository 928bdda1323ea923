//! Pages of the KV cache that are kept for whoever begins with the same tokens.
//!
//! Sessions have their pages themselves. Here is who may have them too: each page that has become full is
//! kept, until there are more than there is memory for, and then those that nobody asked for longest go
//! first. A page's bits do not depend on who computed it, so this shows in nothing but time.

use std::num::NonZeroUsize;

use m40_cpu::kv::PAGE_TOKENS;
use m40_cpu::{KvCache, SharedPage};
use m40_sched::Pages;
use m40_sched::pages::Rank;

/// Memory of pages that are kept, bytes, at most; those that sessions have too are counted.
const KEPT_BYTES: usize = 256 << 20;

/// Pages that are kept at most, where they are that small: 4 million tokens.
const KEPT_PAGES: usize = 1 << 16;

/// Nobody has pages here for longer than a call, so none is taken from anybody.
const RANK: Rank = Rank { priority: 0, arrival: 0 };

/// Pages of one model.
#[derive(Debug)]
pub(super) struct Prefixes {
    pages: Pages,
    /// By their number in `pages`.
    kept: Vec<Option<SharedPage>>,
}

impl Prefixes {
    /// For pages of the size that this cache has.
    pub(super) fn new(cache: &KvCache) -> Self {
        let capacity = KEPT_BYTES.checked_div(cache.page_bytes()).unwrap_or(0);
        Self::with_capacity(capacity.min(KEPT_PAGES) as u32)
    }

    pub(super) fn with_capacity(capacity: u32) -> Self {
        let page_tokens = const { NonZeroUsize::new(PAGE_TOKENS).expect("a page has tokens") };
        Self { pages: Pages::new(page_tokens, capacity), kept: vec![None; capacity as usize] }
    }

    /// Has `cache`, which holds the first `held` of `tokens`, hold more of them, if others have
    /// computed them; never the last. Returns how many it holds.
    pub(super) fn find(&mut self, cache: &mut KvCache, held: usize, tokens: &[u32]) -> usize {
        let (sequence, cached) = self.pages.begin(RANK, tokens);
        if cached > held {
            for page in &self.pages.table(sequence)[held / PAGE_TOKENS..] {
                let page = self.kept[*page as usize].clone();
                cache.adopt(page.expect("a full page is kept"));
            }
        }
        self.pages.end(sequence);
        held.max(cached)
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
}
