//! Sessions that begin alike.

use std::collections::BTreeMap;
use std::thread;

use m40_cpu::Row;
use proptest::prelude::*;

use super::super::prefixes::Prefixes;
use super::*;
use crate::Session;
use crate::tests::{Tiny, generate, greedy};

/// Logits after the last of `tokens`, of which the cache holds some.
fn logits(executor: &mut Executor<Vec<u8>>, cache: &mut KvCache, tokens: &[u32]) -> Vec<f32> {
    let (held, last) = (cache.len(), tokens.len() - 1);
    let row = |(position, &token)| Row {
        token,
        position,
        cache: 0,
        segment: 0,
        logits: position == last,
    };
    let rows: Vec<_> = (held..).zip(&tokens[held..]).map(row).collect();
    executor.forward(&rows, &mut [cache]).to_vec()
}

#[test]
fn who_begins_as_another_did_has_its_whole_pages_but_never_the_last_token() {
    let model = Tiny::new(&TinyModel::new("llama").context(1024).builder()).load();
    let cached = |prompt: &[u32]| {
        let found = generate(&mut model.session(), prompt, &greedy(3));
        (found.completion.cached_tokens, found.ids())
    };
    let base = prompt(200, 1);
    let (none, first) = cached(&base);
    assert_eq!(none, 0);
    assert_eq!(cached(&base), (192, first));
    for (tokens, expected) in [(192, 128), (193, 192), (63, 0), (64, 0), (65, 64)] {
        assert_eq!(cached(&base[..tokens]).0, expected, "{tokens} tokens");
    }
    let mut other = base.clone();
    other[100] += 1;
    assert_eq!(cached(&other).0, 64);
    other[0] += 1;
    assert_eq!(cached(&other).0, 0);
}

#[test]
fn the_next_turn_in_another_session_computes_only_what_is_new() {
    let model = Tiny::new(&TinyModel::new("llama").context(1024).builder()).load();
    let base = prompt(100, 1);
    let said = generate(&mut model.session(), &base, &greedy(60)).ids();
    let turn = [base, said, prompt(30, 2)].concat();
    let found = generate(&mut model.session(), &turn, &greedy(5));
    // Of 159 tokens that were computed, two pages.
    assert_eq!(found.completion.cached_tokens, 128);
    let fresh = Tiny::new(&TinyModel::new("llama").context(1024).builder()).load();
    assert_eq!(found.ids(), generate(&mut fresh.session(), &turn, &greedy(5)).ids());
}

#[test]
fn who_goes_back_into_a_page_that_others_have_disturbs_nobody() {
    let model = Tiny::new(&TinyModel::new("llama").context(1024).builder()).load();
    let base = prompt(130, 1);
    let expected = generate(&mut model.session(), &base, &greedy(5)).ids();
    let mut session = model.session();
    generate(&mut session, &base, &greedy(1));
    let back = [&base[..40], &prompt(50, 9)].concat();
    let found = generate(&mut session, &back, &greedy(5));
    assert_eq!(found.completion.cached_tokens, 40);
    let again = generate(&mut model.session(), &base, &greedy(5));
    assert_eq!((again.completion.cached_tokens, again.ids()), (128, expected));
}

#[test]
fn sessions_at_a_time_share_what_is_computed_meanwhile() {
    let file = TinyModel::new("llama").context(2048).builder();
    let prompts: Vec<_> = (0..8).map(|i| [prompt(700, 1), prompt(20 + i, 2)].concat()).collect();
    let alone: Vec<_> = prompts
        .iter()
        .map(|prompt| generate(&mut Tiny::new(&file).load().session(), prompt, &greedy(9)).ids())
        .collect();
    let model = Tiny::new(&file).load();
    let together: Vec<_> = thread::scope(|scope| {
        let answer = |prompt| generate(&mut model.session(), prompt, &greedy(9)).ids();
        let threads: Vec<_> =
            prompts.iter().map(|prompt| scope.spawn(move || answer(prompt))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn what_is_kept_makes_way_for_a_session_that_grows() {
    let model = Tiny::new(&TinyModel::new("llama").builder()).load();
    let cached = |session: &mut Session, prompt: &[u32]| {
        generate(session, prompt, &greedy(3)).completion.cached_tokens
    };
    let [first, other] = [1, 2].map(|seed| prompt(200, seed));
    let mut session = model.session();
    assert_eq!(cached(&mut session, &first), 0);
    assert_eq!(cached(&mut model.session(), &first), 192);
    drop(session);
    assert_eq!(cached(&mut model.session(), &first), 192, "kept while nobody has it");
    // A context has 256 tokens, four pages; without a session there may be as many.
    assert_eq!(cached(&mut model.session(), &other), 0);
    assert_eq!(cached(&mut model.session(), &first), 0);
}

/// What one of several sessions does.
#[derive(Clone, Debug)]
enum Step {
    /// Continues a text that begins with `pages` pages like those of others that have `start`.
    Say {
        start: u32,
        pages: usize,
        len: usize,
    },
    Ends,
    /// Is measured in.
    Lends,
}

fn step() -> impl Strategy<Value = Step> {
    let say = (0..2u32, 0..5usize, 1..60usize);
    prop_oneof![
        6 => say.prop_map(|(start, pages, len)| Step::Say { start, pages, len }),
        2 => Just(Step::Ends),
        1 => Just(Step::Lends),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn there_are_never_more_pages_than_sessions_were_given(
        steps in prop::collection::vec((0..3u64, 0..1000u32, step()), 1..30),
    ) {
        const PAGES: usize = 5;
        let mut executor = executor(&TinyModel::new("llama").layers(1).context(CONTEXT as u32));
        let mut prefixes = Prefixes::new(PAGES * PAGE_TOKENS);
        let mut caches = BTreeMap::<u64, KvCache>::new();
        for (session, end, step) in steps {
            let cache = caches.entry(session).or_insert_with(|| {
                prefixes.open(session);
                executor.cache(PAGES * PAGE_TOKENS)
            });
            cache.truncate(0);
            match step {
                Step::Say { start, pages, len } => {
                    let text = [prompt(PAGE_TOKENS * pages, start), prompt(len, 10 + end)].concat();
                    let held = prefixes.find(session, cache, 0, &text);
                    prefixes.reserve(session, cache, held..text.len());
                    let pages = cache.pages();
                    logits(&mut executor, cache, &text);
                    prop_assert_eq!(cache.pages(), pages, "a pass takes no memory");
                    prefixes.keep(cache, &text);
                }
                Step::Ends => {
                    caches.remove(&session);
                    prefixes.close(session);
                }
                Step::Lends => {
                    prefixes.lend(session);
                    let others: usize = caches.values().map(KvCache::pages).sum();
                    prop_assert!(others + PAGES + prefixes.alone() <= prefixes.given());
                    prefixes.open(session);
                }
            }
            let taken = caches.values().map(KvCache::pages).sum::<usize>() + prefixes.alone();
            prop_assert!(taken <= prefixes.given(), "{} of {}", taken, prefixes.given());
            prop_assert_eq!(prefixes.given(), caches.len().max(1) * PAGES);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn what_is_found_has_the_bits_of_the_same_tokens_and_the_latest_text_is_found(
        capacity in 0..9usize,
        texts in prop::collection::vec((0..3u32, 0..3u32, 0..4usize, 1..200usize), 1..10),
    ) {
        let mut executor = executor(&TinyModel::new("llama").layers(1).context(CONTEXT as u32));
        let mut prefixes = Prefixes::with_capacity(1 << 20, capacity);
        for (start, end, pages, len) in texts {
            let text = [prompt(PAGE_TOKENS * pages, start), prompt(len, 10 + end)].concat();
            let [mut cache, mut fresh] = [0, 1].map(|_| executor.cache(CONTEXT));
            let held = prefixes.find(0, &mut cache, 0, &text);
            prop_assert_eq!(held, cache.len());
            prop_assert!(held < text.len() && held.is_multiple_of(PAGE_TOKENS));
            let found = logits(&mut executor, &mut cache, &text);
            prop_assert!(found == logits(&mut executor, &mut fresh, &text), "{} held", held);

            prefixes.keep(&cache, &text);
            let longer = [&text[..], &[7]].concat();
            let again = prefixes.find(0, &mut executor.cache(CONTEXT), 0, &longer);
            let kept = (text.len() / PAGE_TOKENS).min(capacity);
            prop_assert_eq!(again, kept * PAGE_TOKENS);
        }
    }
}
