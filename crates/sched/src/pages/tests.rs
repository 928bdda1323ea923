//! Pages by example, and against a memory in which every place says which tokens it is for.

use proptest::prelude::*;

use super::*;

const SIZE: usize = 4;

fn pages(capacity: u32) -> Pages {
    Pages::new(NonZeroUsize::new(SIZE).expect("it is above 0"), capacity)
}

fn rank(priority: i64, arrival: u64) -> Rank {
    Rank { priority, arrival }
}

/// A sequence that holds `tokens`.
fn sequence(pages: &mut Pages, rank: Rank, tokens: &[u32]) -> SequenceId {
    let (id, cached) = pages.begin(rank, tokens);
    pages.reserve(id, tokens.len() - cached).expect("there are pages");
    pages.written(id, &tokens[cached..]).expect("room was reserved");
    id
}

fn numbers(count: u32) -> Vec<u32> {
    (0..count).collect()
}

#[test]
fn the_second_turn_of_a_chat_finds_the_first_one() {
    let mut pages = pages(10);
    let first = sequence(&mut pages, rank(0, 0), &numbers(11));
    pages.end(first);
    assert_eq!((pages.held(), pages.kept()), (0, 2), "the last page was not full");
    let longer = numbers(20);
    assert_eq!(pages.cached(&longer), 8);
    let (second, cached) = pages.begin(rank(0, 1), &longer);
    assert_eq!((cached, pages.table(second), pages.kept()), (8, &[0, 1][..], 0));
    assert_eq!(pages.tokens(second), &longer[..8]);
}

#[test]
fn the_last_token_is_always_left_to_compute() {
    let mut pages = pages(10);
    let tokens = numbers(8);
    sequence(&mut pages, rank(0, 0), &tokens);
    assert_eq!(pages.cached(&tokens), 4);
    assert_eq!(pages.cached(&numbers(9)), 8);
    assert_eq!((pages.cached(&[]), pages.cached(&[0])), (0, 0));
}

#[test]
fn two_that_compute_the_same_at_a_time_end_up_with_one_page() {
    let mut pages = pages(10);
    let tokens = numbers(6);
    let (a, _) = pages.begin(rank(0, 0), &tokens);
    let (b, cached) = pages.begin(rank(0, 1), &tokens);
    assert_eq!(cached, 0);
    pages.reserve(a, 6).unwrap();
    pages.reserve(b, 6).unwrap();
    assert_eq!((pages.table(a), pages.table(b)), (&[0, 1][..], &[2, 3][..]));
    assert_eq!(pages.written(a, &tokens), Ok(vec![]));
    assert_eq!(pages.written(b, &tokens), Ok(vec![Replaced { index: 0, page: 0 }]));
    assert_eq!((pages.table(b), pages.held()), (&[0, 3][..], 3));
    assert_eq!(
        [0, 1, 2, 3].map(|page| pages.writer(page)),
        [None, Some(a), None, Some(b)],
        "nobody writes what both read"
    );
}

#[test]
fn a_fork_shares_full_pages_and_copies_the_last() {
    let mut pages = pages(3);
    let origin = sequence(&mut pages, rank(0, 0), &numbers(6));
    let fork = pages.fork(origin, rank(0, 1)).unwrap();
    assert_eq!(fork.copy, Some((1, 2)));
    assert_eq!((pages.table(fork.sequence), pages.held()), (&[0, 2][..], 3));
    assert_eq!(pages.tokens(fork.sequence), numbers(6));
    let full = PagesError::OutOfPages { needed: 1, available: 0, quota: 3 };
    assert_eq!(pages.fork(origin, rank(0, 2)), Err(full));
    pages.truncate(fork.sequence, 4).unwrap();
    let whole = pages.fork(fork.sequence, rank(0, 2)).unwrap();
    assert_eq!((whole.copy, pages.table(whole.sequence)), (None, &[0][..]));
}

#[test]
fn what_is_cut_inside_a_full_page_is_cut_before_it() {
    let mut pages = pages(10);
    let id = sequence(&mut pages, rank(0, 0), &numbers(11));
    assert_eq!(pages.truncate(id, 10), Ok(10), "its own page may be written again");
    assert_eq!(pages.truncate(id, 7), Ok(4));
    assert_eq!((pages.table(id), pages.kept()), (&[0][..], 1));
    assert_eq!(pages.truncate(id, 100), Ok(4));
    assert_eq!(pages.cached(&numbers(9)), 8, "others may still begin so");
}

#[test]
fn pages_that_nobody_reads_go_when_needed_the_end_of_the_oldest_first() {
    let mut pages = pages(4);
    for start in [0, 100] {
        let tokens: Vec<_> = (start..start + 8).collect();
        let id = sequence(&mut pages, rank(0, 0), &tokens);
        pages.end(id);
    }
    assert_eq!((pages.kept(), pages.available()), (4, 4));
    let new = pages.begin(rank(0, 1), &[7]).0;
    pages.reserve(new, 1).unwrap();
    let found = |pages: &Pages, start| pages.cached(&(start..start + 9).collect::<Vec<_>>());
    assert_eq!((found(&pages, 0), found(&pages, 100)), (4, 8));
    pages.reserve(new, 5).unwrap();
    assert_eq!((found(&pages, 0), found(&pages, 100)), (0, 8));
}

#[test]
fn when_pages_run_out_the_least_priority_gives_first_then_the_youngest() {
    let mut pages = pages(6);
    let [old, young, low] =
        [(0, 1, 0), (0, 2, 100), (-1, 0, 200)].map(|(priority, arrival, start)| {
            let tokens: Vec<_> = (start..start + 7).collect();
            sequence(&mut pages, rank(priority, arrival), &tokens)
        });
    assert!(matches!(pages.reserve(old, 2), Err(PagesError::OutOfPages { available: 0, .. })));
    let preempted = pages.reserve_from_weaker(old, 2).unwrap();
    assert_eq!(preempted.iter().map(|p| p.sequence).collect::<Vec<_>>(), [low]);
    assert_eq!(preempted[0].tokens, (200..207).collect::<Vec<_>>());
    assert_eq!(pages.cached(&preempted[0].tokens), 4, "it need not compute all of it again");
    let refused = pages.reserve_from_weaker(young, 10).unwrap_err();
    assert_eq!(refused, PagesError::OutOfPages { needed: 3, available: 1, quota: 6 });
    assert_eq!(pages.table(old).len(), 3, "the stronger one has lost nothing");
    let preempted = pages.reserve_from_weaker(old, 13).unwrap();
    assert_eq!(preempted.iter().map(|p| p.sequence).collect::<Vec<_>>(), [young]);
    assert_eq!(pages.tokens(young), []);
    assert_eq!((pages.contains(young), pages.contains(old)), (false, true));
    let alone = pages.reserve_from_weaker(old, 100).unwrap_err();
    assert!(matches!(alone, PagesError::OutOfPages { quota: 6, .. }), "it never fits");
}

#[test]
fn nobody_gives_pages_where_that_would_not_be_enough() {
    let mut pages = pages(4);
    let strong = sequence(&mut pages, rank(1, 0), &numbers(4));
    let weak = sequence(&mut pages, rank(0, 1), &numbers(6));
    assert_eq!(pages.held(), 2);
    assert!(pages.reserve_from_weaker(strong, 13).is_err(), "one page is its own, and 4 more");
    assert_eq!(pages.tokens(weak).len(), 6);
    assert_eq!(pages.reserve_from_weaker(strong, 12).unwrap().len(), 1);
}

#[test]
fn a_smaller_quota_takes_what_is_kept_first_and_then_from_the_weakest() {
    let mut pages = pages(6);
    let strong = sequence(&mut pages, rank(1, 0), &numbers(8));
    let weak = sequence(&mut pages, rank(0, 0), &(100..106).collect::<Vec<_>>());
    let ended = sequence(&mut pages, rank(0, 0), &(200..208).collect::<Vec<_>>());
    pages.end(ended);
    assert_eq!(pages.set_quota(4), []);
    assert_eq!((pages.held(), pages.kept()), (4, 0));
    let preempted = pages.set_quota(3);
    assert_eq!(preempted.iter().map(|p| p.sequence).collect::<Vec<_>>(), [weak]);
    assert_eq!((pages.held(), pages.kept(), pages.quota()), (2, 1, 3));
    assert_eq!(pages.set_quota(99), []);
    assert_eq!((pages.quota(), pages.tokens(strong).len()), (6, 8));
    assert_eq!(pages.set_quota(0).len(), 1);
    assert_eq!((pages.held(), pages.kept()), (0, 0));
}

#[test]
fn what_was_not_reserved_cannot_be_written() {
    let mut pages = pages(2);
    let (id, _) = pages.begin(rank(0, 0), &[1]);
    assert_eq!(pages.written(id, &[1]), Err(PagesError::NoRoom { tokens: 1, room: 0 }));
    pages.reserve(id, 1).unwrap();
    assert_eq!(pages.written(id, &[1; 5]), Err(PagesError::NoRoom { tokens: 5, room: 4 }));
    pages.end(id);
    assert_eq!(pages.written(id, &[1]), Err(PagesError::NoSequence(id)));
    assert_eq!(pages.reserve(id, usize::MAX), Err(PagesError::NoSequence(id)));
    let (id, _) = pages.begin(rank(0, 0), &[1]);
    assert!(matches!(pages.reserve(id, usize::MAX), Err(PagesError::OutOfPages { .. })));
}

/// Every place of a page says which tokens its keys and values were computed from.
struct Memory {
    pages: Pages,
    places: Vec<Vec<Vec<u32>>>,
    /// Sequences, and what they are to hold.
    sequences: Vec<(SequenceId, Vec<u32>)>,
    /// All that was ever written, and is to be found as long as nothing is dropped.
    history: Vec<Vec<u32>>,
    size: usize,
}

#[derive(Clone, Debug)]
enum Step {
    Begin(i64, Vec<u32>),
    Write(usize, Vec<u32>),
    Reserve(usize, usize),
    Fork(usize),
    Truncate(usize, usize),
    End(usize),
    Quota(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Few different tokens, so that sequences begin alike.
    let tokens = |most| prop::collection::vec(0u32..2, 1..most);
    let step = prop_oneof![
        4 => (0i64..3, tokens(16)).prop_map(|(priority, tokens)| Step::Begin(priority, tokens)),
        8 => (0usize..9, tokens(9)).prop_map(|(at, tokens)| Step::Write(at, tokens)),
        1 => (0usize..9, 0usize..20).prop_map(|(at, more)| Step::Reserve(at, more)),
        2 => (0usize..9).prop_map(Step::Fork),
        2 => (0usize..9, 0usize..20).prop_map(|(at, len)| Step::Truncate(at, len)),
        3 => (0usize..9).prop_map(Step::End),
        1 => (0usize..30).prop_map(Step::Quota),
    ];
    prop::collection::vec(step, 1..150)
}

impl Memory {
    fn new(size: usize, capacity: u32, hash: Hash) -> Self {
        let tokens = NonZeroUsize::new(size).expect("it is above 0");
        Self {
            pages: Pages::with_hash(tokens, capacity, hash),
            places: vec![vec![vec![]; size]; capacity as usize],
            sequences: vec![],
            history: vec![],
            size,
        }
    }

    fn run(&mut self, step: Step) {
        let count = self.sequences.len();
        let pick = |at: usize| at.checked_rem(count);
        match step {
            Step::Begin(priority, tokens) => self.begin(priority, tokens),
            Step::Write(at, tokens) => {
                if let Some(at) = pick(at) {
                    self.write(at, &tokens);
                }
            }
            Step::Reserve(at, more) => {
                if let Some(at) = pick(at) {
                    let _ = self.pages.reserve(self.sequences[at].0, more);
                }
            }
            Step::Fork(at) => {
                if let Some(at) = pick(at) {
                    self.fork(at);
                }
            }
            Step::Truncate(at, len) => {
                if let Some(at) = pick(at) {
                    let (id, tokens) = &mut self.sequences[at];
                    let left = self.pages.truncate(*id, len).expect("it is there");
                    assert!(
                        left <= len.min(tokens.len()) && left + self.size > len.min(tokens.len())
                    );
                    tokens.truncate(left);
                }
            }
            Step::End(at) => {
                if let Some(at) = pick(at) {
                    self.pages.end(self.sequences.swap_remove(at).0);
                }
            }
            Step::Quota(quota) => {
                let preempted = self.pages.set_quota(quota);
                self.forget(&preempted);
            }
        }
        self.check();
    }

    fn begin(&mut self, priority: i64, tokens: Vec<u32>) {
        let expected = self.pages.cached(&tokens);
        let arrival = self.pages.begun;
        let (id, cached) = self.pages.begin(rank(priority, arrival), &tokens);
        assert_eq!(cached, expected);
        assert!(cached < tokens.len());
        self.sequences.push((id, tokens[..cached].to_vec()));
        self.write(self.sequences.len() - 1, &tokens[cached..]);
    }

    fn write(&mut self, at: usize, tokens: &[u32]) {
        let (id, before) = self.sequences[at].clone();
        let has_room = self.pages.has_room(id, tokens.len());
        let reserved = self.pages.reserve_from_weaker(id, tokens.len());
        assert_eq!(has_room, reserved.is_ok());
        let Ok(preempted) = reserved else { return };
        assert!(preempted.iter().all(|preempted| preempted.sequence != id));
        self.forget(&preempted);
        let all = [before.as_slice(), tokens].concat();
        let table = self.pages.table(id).to_vec();
        for position in before.len()..all.len() {
            let page = table[position / self.size];
            assert_eq!(self.pages.writer(page), Some(id), "it writes what it alone has");
            self.places[page as usize][position % self.size] = all[..=position].to_vec();
        }
        for Replaced { index, page } in self.pages.written(id, tokens).expect("there is room") {
            assert_eq!(self.pages.table(id)[index], page);
        }
        self.history.push(all.clone());
        let sequence = self.sequences.iter_mut().find(|(other, _)| *other == id);
        sequence.expect("it was not preempted for itself").1 = all;
    }

    fn fork(&mut self, at: usize) {
        let (id, tokens) = self.sequences[at].clone();
        let arrival = self.pages.begun;
        let Ok(fork) = self.pages.fork(id, rank(1, arrival)) else { return };
        if let Some((from, to)) = fork.copy {
            assert_eq!(self.pages.writer(to), Some(fork.sequence));
            self.places[to as usize] = self.places[from as usize].clone();
        }
        self.sequences.push((fork.sequence, tokens));
    }

    fn forget(&mut self, preempted: &[Preempted]) {
        for gone in preempted {
            let at = self.sequences.iter().position(|(id, _)| *id == gone.sequence);
            let (_, tokens) = self.sequences.swap_remove(at.expect("it was there"));
            assert_eq!(tokens, gone.tokens);
        }
    }

    /// What must be true at all times.
    fn check(&self) {
        let pages = &self.pages;
        let mut owners = std::collections::BTreeMap::<u32, Vec<SequenceId>>::new();
        for (id, tokens) in &self.sequences {
            assert_eq!(pages.tokens(*id), tokens);
            let table = pages.table(*id);
            table.iter().for_each(|page| owners.entry(*page).or_default().push(*id));
            for position in 0..tokens.len() {
                let place = &self.places[table[position / self.size] as usize];
                assert_eq!(place[position % self.size], tokens[..=position], "its keys and values");
            }
        }
        for (page, owners) in &owners {
            match pages.pages[*page as usize] {
                Page::Private(owner) => assert_eq!(owners[..], [owner]),
                Page::Full(readers) => assert_eq!(owners.len(), readers as usize),
                Page::Free => panic!("page {page} is in a table, and free"),
            }
        }
        assert_eq!(pages.held(), owners.len());
        assert!(pages.held() + pages.kept() <= pages.quota());
        assert_eq!(pages.held() + pages.kept() + pages.free.len(), pages.pages.len());
    }

    /// How many tokens of these could be found if nothing was ever dropped.
    fn ever_written(&self, tokens: &[u32]) -> usize {
        let common =
            |other: &Vec<u32>| tokens.iter().zip(other).take_while(|(a, b)| a == b).count();
        let longest = self.history.iter().map(common).max().unwrap_or(0);
        longest.min(tokens.len().saturating_sub(1)) / self.size * self.size
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn everybody_reads_what_was_computed_for_the_same_tokens(
        steps in steps(), size in 1usize..4, capacity in 1u32..30,
    ) {
        let mut memory = Memory::new(size, capacity, prefix::fnv);
        steps.into_iter().for_each(|step| memory.run(step));
        for tokens in memory.history.clone() {
            prop_assert!(memory.pages.cached(&tokens) <= memory.ever_written(&tokens));
        }
        for (id, _) in std::mem::take(&mut memory.sequences) {
            memory.pages.end(id);
        }
        prop_assert_eq!(memory.pages.held(), 0);
    }

    #[test]
    fn pages_with_equal_hashes_are_never_taken_for_each_other(steps in steps(), size in 1usize..4) {
        let mut memory = Memory::new(size, 30, |before, tokens| (before + tokens.len() as u64) % 2);
        steps.into_iter().for_each(|step| memory.run(step));
    }

    #[test]
    fn with_pages_for_all_everything_that_was_written_is_found(steps in steps(), size in 1usize..4) {
        let mut memory = Memory::new(size, 10_000, prefix::fnv);
        for step in steps.into_iter().filter(|step| !matches!(step, Step::Quota(_))) {
            if let Step::Begin(_, tokens) = &step {
                prop_assert_eq!(memory.pages.cached(tokens), memory.ever_written(tokens));
            }
            memory.run(step);
        }
    }
}
