//! Full pages that conversations have left, for those that begin with the same tokens.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};

use m40_sched::Pages;
use m40_sched::pages::Rank;

use super::{KvCache, PAGE_TOKENS, Page};

/// Of all who come and go at once.
const RANK: Rank = Rank { priority: 0, arrival: 0 };

/// What conversations with one model have computed, in full pages: those used last, up to a number.
///
/// A cache shares its pages with those that are kept, and with other caches, until it writes them.
#[derive(Debug)]
pub struct PrefixCache {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Which pages are kept. Sequences are there only while pages are looked up or brought.
    pages: Pages,
    /// By number.
    memory: Vec<Option<Arc<Page>>>,
}

impl PrefixCache {
    /// Of at most so many pages of [`PAGE_TOKENS`] tokens.
    pub fn new(pages: u32) -> Self {
        let page_tokens = NonZeroUsize::new(PAGE_TOKENS).expect("a page has tokens");
        let memory = vec![None; pages as usize];
        Self { state: Mutex::new(State { pages: Pages::new(page_tokens, pages), memory }) }
    }

    /// Keeps the full pages of a cache that holds `tokens`, if need be instead of those that nobody has
    /// used for the longest time.
    pub fn keep(&self, cache: &KvCache, tokens: &[u32]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { pages, memory } = &mut *state;
        let full = (cache.len().min(tokens.len()) / PAGE_TOKENS).min(pages.quota());
        let tokens = &tokens[..full * PAGE_TOKENS];
        let (id, found) = pages.begin(RANK, tokens);
        let room = pages.reserve(id, tokens.len() - found);
        if room.and_then(|()| pages.written(id, &tokens[found..])).is_ok() {
            for (number, page) in pages.table(id).iter().zip(&cache.pages) {
                memory[*number as usize] = Some(Arc::clone(page));
            }
        }
        pages.end(id);
    }

    /// Has a cache that holds the first of `tokens` hold all of them that were kept, but never the last.
    /// Returns how many it holds.
    pub fn resume(&self, cache: &mut KvCache, tokens: &[u32]) -> usize {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { pages, memory } = &mut *state;
        let (id, found) = pages.begin(RANK, tokens);
        if found > cache.len() && found <= cache.context() {
            let page = |number: &u32| memory[*number as usize].clone();
            cache.pages = pages.table(id).iter().filter_map(page).collect();
            cache.len = cache.pages.len() * PAGE_TOKENS;
        }
        pages.end(id);
        cache.len()
    }
}

#[cfg(test)]
mod tests {
    use m40_program::{KvLayer, KvType};
    use proptest::prelude::*;

    use super::*;

    const LAYER: KvLayer = KvLayer { kv_heads: 1, key_dim: 2, value_dim: 1, ty: KvType::F16 };

    fn cache() -> KvCache {
        KvCache::new(&[LAYER], 1000)
    }

    /// Has a cache hold `tokens`: each key says its token, and how many were before.
    fn compute(cache: &mut KvCache, tokens: &[u32]) {
        let held = cache.len();
        cache.grow(tokens.len());
        for (position, &token) in tokens.iter().enumerate().skip(held) {
            cache.store(0, position, &[token as f32, position as f32], &[1.0]);
        }
    }

    #[track_caller]
    fn check(cache: &KvCache, tokens: &[u32]) {
        for (position, &token) in tokens[..cache.len()].iter().enumerate() {
            let keys = cache.keys(0, position / PAGE_TOKENS, 0);
            let slot = position % PAGE_TOKENS;
            let found = [0, PAGE_TOKENS].map(|dim| keys.number(dim + slot, slot));
            assert_eq!(found, [f64::from(token), position as f64]);
        }
    }

    fn text(count: usize, seed: u32) -> Vec<u32> {
        (0..count as u32).map(|i| i * 7 % 100 + seed).collect()
    }

    #[test]
    fn who_begins_alike_has_the_pages_of_whoever_was_there_before() {
        let kept = PrefixCache::new(10);
        let (mut first, tokens) = (cache(), text(200, 0));
        compute(&mut first, &tokens);
        kept.keep(&first, &tokens);
        drop(first);
        let mut second = cache();
        assert_eq!(kept.resume(&mut second, &tokens[..192]), 128, "never the last token");
        assert_eq!(kept.resume(&mut second, &tokens), 192);
        check(&second, &tokens);
        // It goes on by itself, and what it holds is not looked up again.
        compute(&mut second, &tokens);
        assert_eq!(kept.resume(&mut second, &[&tokens[..], &[1]].concat()), 200);
        assert_eq!(kept.resume(&mut cache(), &text(200, 1)), 0);
        // More than it may hold it does not take.
        assert_eq!(kept.resume(&mut KvCache::new(&[LAYER], 100), &tokens), 0);
    }

    #[test]
    fn who_writes_what_others_read_writes_its_own() {
        let kept = PrefixCache::new(10);
        let (mut first, tokens) = (cache(), text(130, 0));
        compute(&mut first, &tokens);
        kept.keep(&first, &tokens);
        let mut second = cache();
        kept.resume(&mut second, &tokens);
        let other = [&tokens[..70], &text(60, 3)].concat();
        second.truncate(70);
        compute(&mut second, &other);
        check(&second, &other);
        check(&first, &tokens);
        let mut third = cache();
        assert_eq!(kept.resume(&mut third, &tokens), 128);
        check(&third, &tokens);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn what_is_found_is_what_was_computed_however_few_pages_are_kept(
            chats in prop::collection::vec((0u32..3, 1usize..400, 0usize..400, 0u32..3), 1..20),
            pages in 0u32..8,
        ) {
            let kept = PrefixCache::new(pages);
            for (begin, at, more, end) in chats {
                let tokens = [text(at, begin), text(more + 1, 10 + end)].concat();
                let mut cache = cache();
                let found = kept.resume(&mut cache, &tokens);
                prop_assert!(found < tokens.len() && found.is_multiple_of(PAGE_TOKENS));
                check(&cache, &tokens);
                compute(&mut cache, &tokens);
                check(&cache, &tokens);
                kept.keep(&cache, &tokens);
                let again = kept.resume(&mut super::tests::cache(), &tokens);
                let most = (pages as usize * PAGE_TOKENS).min(tokens.len() - 1);
                prop_assert_eq!(again, most / PAGE_TOKENS * PAGE_TOKENS);
            }
        }
    }
}
