//! Who has which pages: what is found of others, and who waits when there are none left.

use proptest::prelude::*;

use super::*;

#[test]
fn when_pages_run_out_the_youngest_waits_and_is_computed_again() {
    let told = Told::default();
    told.set_pages(3 + 2);
    let mut batcher = Batcher::new(Fake::new(&told), 5);
    let mut three = clients(3, 1);
    go_on(&mut batcher, &mut three, 6);
    // No page is left for five tokens more of each, but none is needed for two.
    go_on(&mut batcher, &mut three, 2);
    assert!(three.iter().all(|client| client.held == PAGE_TOKENS));
    go_on(&mut batcher, &mut three, 1);
    let said = |clients: &[Client]| clients.iter().map(|c| c.said().len()).collect::<Vec<_>>();
    assert_eq!(said(&three), [33, 33, 32]);
    assert_eq!(told.ran().last(), Some(&Ran::Launch { rows: 2, passes: 1, logits: false }));
    // The others go on, also where that takes its pages.
    while three[0].held < 2 * PAGE_TOKENS + 3 {
        go_on(&mut batcher, &mut three, 1);
    }
    assert_eq!(said(&three)[2], 32);
    assert_eq!(told.free_pages(), 0);

    // They leave, one after the other.
    while three.len() > 1 {
        while three[0].job.is_none() {
            go_on(&mut batcher, &mut three, 1);
        }
        drop(three.remove(0));
    }
    go_on(&mut batcher, &mut three, 4);
    assert!(three[0].said().len() > 40, "{}", three[0].said().len());
    three[0].check();
}

#[test]
fn who_has_less_priority_gives_its_pages_to_a_prompt_of_more() {
    let told = Told::default();
    told.set_pages(10);
    let mut batcher = batcher(&told);
    let mut two = clients(1, 40);
    two[0].job.as_mut().unwrap().rank.priority = -1;
    go_on(&mut batcher, &mut two, 3);
    let before = two[0].said().len();
    assert!(before > 0);
    two.push(Client::new(1, prompt(9 * PAGE_TOKENS - 10, 2)));
    while two[1].said().is_empty() {
        go_on(&mut batcher, &mut two, 1);
    }
    assert!(two[0].said().len() <= before + AHEAD as usize, "it has no room beside the prompt");
    drop(two.pop());
    batcher.take(Message::Rest(1));
    let before = two[0].said().len();
    go_on(&mut batcher, &mut two, 4);
    assert!(two[0].said().len() > before + AHEAD as usize);
    two.iter().for_each(Client::check);
}

#[test]
fn a_strong_prompt_takes_its_room_before_weaker_ones_have_what_is_left() {
    let told = Told::default();
    told.set_pages(10);
    let mut batcher = batcher(&told);
    let mut all = clients(1, 200);
    all.extend([(1, 40), (2, 280)].map(|(i, tokens)| Client::new(i, prompt(tokens, i as u32))));
    for client in &mut all[..2] {
        client.job.as_mut().unwrap().rank.priority = -1;
    }
    go_on(&mut batcher, &mut all[..1], 2);
    all.iter_mut().for_each(|client| client.ask(&mut batcher));
    assert_eq!(batcher.next(), Next::Slice);
    batcher.slice();
    assert_eq!((all[1].hear(), all[2].hear()), (None, Some(Ok(()))));
    assert!(all[2].held > 0 && told.free_pages() < 2);
}

#[test]
fn what_the_cache_never_holds_is_refused_and_what_it_will_hold_waits() {
    let told = Told::default();
    told.set_pages(10);
    let mut batcher = batcher(&told);
    let mut all = clients(1, 3 * PAGE_TOKENS - 20);
    go_on(&mut batcher, &mut all, 2);
    all.push(Client::new(1, prompt(10 * PAGE_TOKENS + 1, 1)));
    all.push(Client::new(2, prompt(8 * PAGE_TOKENS, 2)));
    all[1..].iter_mut().for_each(|client| client.ask(&mut batcher));
    let full = GenerateError::CacheFull {
        needed: 11 * PAGE_TOKENS as u64,
        free: 7 * PAGE_TOKENS as u64,
        capacity: 10 * PAGE_TOKENS as u64,
    };
    assert_eq!(all[1].hear(), Some(Err(full)));
    all.remove(1);
    assert!(matches!(batcher.next(), Next::Wait(_)), "not a slice");
    batcher.wait_no_more();
    all[0].ask(&mut batcher);
    assert_eq!(batcher.next(), Next::Launch);
    assert_eq!(all[1].hear(), None);
    step(&mut batcher);
    all[0].hear().unwrap().unwrap();
    all[0].check();
    // It does not wait for who wants nothing more, nor does anybody for it.
    drop(all.remove(0));
    batcher.take(Message::Rest(0));
    assert_eq!(batcher.next(), Next::Slice);
    go_on(&mut batcher, &mut all, 3);
    all[0].check();
}

#[test]
fn who_is_cancelled_while_it_waits_for_room_is_answered() {
    let told = Told::default();
    told.set_pages(4);
    let mut batcher = batcher(&told);
    let mut two = clients(2, 2 * PAGE_TOKENS + 5);
    go_on(&mut batcher, &mut two, 3);
    batcher.wait_no_more();
    assert_eq!(batcher.next(), Next::Wait(LOOK));
    assert_eq!((two[1].hear(), two[1].held), (None, 0));
    let cancel = CancelToken::new();
    two[1].job = None;
    batcher.prompts[0].cancel = cancel.clone();
    cancel.cancel();
    assert_eq!(batcher.next(), Next::Nothing);
    assert_eq!((two[1].hear(), two[1].held), (Some(Ok(())), 0));
}

#[test]
fn a_prompt_that_begins_as_another_did_is_computed_from_there_on() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut first = clients(1, 300);
    go_on(&mut batcher, &mut first, 2);
    let chat = first.pop().unwrap();
    chat.check();
    // The next turn, of another session, when the first one is gone.
    let next = [&chat.tokens[..], &[5, 6, 7]].concat();
    let held = chat.held / PAGE_TOKENS * PAGE_TOKENS;
    drop(chat);
    batcher.take(Message::Rest(0));
    let mut second = vec![Client::new(1, next.clone())];
    second[0].ask(&mut batcher);
    let found = second[0].back.try_recv().unwrap();
    let Answer::Done(job) = found else { panic!("{found:?}") };
    assert_eq!((job.computed, job.found, batcher.next()), (held, true, Next::Nothing));
    (second[0].job, second[0].held) = (Some(job), held);
    go_on(&mut batcher, &mut second, 2);
    let ran = told.ran();
    assert_eq!(ran[ran.len() - 2], Ran::Slice { rows: next.len() - 1 - held });
    second[0].check();
}

#[test]
fn prompts_that_begin_alike_at_a_time_are_computed_once() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let text = prompt(1100, 3);
    let with_end = |i: u64| [&text[..], &[i as u32]].concat();
    let mut four: Vec<_> = (0..4).map(|i| Client::new(i, with_end(i))).collect();
    while four.iter().any(|client| client.said().is_empty()) {
        go_on(&mut batcher, &mut four, 1);
    }
    let ran = told.ran();
    let rows = ran.iter().map(|ran| match ran {
        Ran::Slice { rows } => *rows,
        Ran::Launch { .. } => 0,
    });
    assert_eq!(rows.sum::<usize>(), 1100 + 3 * (1100 % PAGE_TOKENS));
    four.iter().for_each(Client::check);
}

#[test]
fn slices_end_where_pages_do_and_large_ones_where_those_of_all_prompts_do() {
    assert_eq!([0, 32, 512].map(|begin| slice_rows(begin, PROMPT_ROWS)), [512, 480, 512]);
    assert_eq!([0, 32, 500].map(|begin| slice_rows(begin, 100)), [96, 96, 12]);
    assert_eq!([0, 16, 40].map(|begin| slice_rows(begin, 16)), [16, 16, 16]);
    assert_eq!([40, 60].map(|begin| slice_rows(begin, 40)), [24, 36]);
}

/// What happens to sessions.
#[derive(Clone, Debug)]
enum Step {
    /// One begins, with a text like that of others: so many tokens, and one that tells it apart.
    Begin { tokens: usize, end: u32, priority: i64 },
    /// All who can ask do, and there is a pass.
    Pass,
    /// One is gone, whether or not it waits for something.
    Leave(usize),
    /// One goes on with the next turn of its chat, as a new one.
    Turn(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let begin = (1usize..150, 0u32..2, -1i64..2);
    let step = prop_oneof![
        3 => begin.prop_map(|(tokens, end, priority)| Step::Begin { tokens, end, priority }),
        12 => Just(Step::Pass),
        1 => (0usize..9).prop_map(Step::Leave),
        1 => (0usize..9).prop_map(Step::Turn),
    ];
    prop::collection::vec(step, 1..120)
}

/// Sessions of a model with few pages.
struct Sessions {
    batcher: Batcher<Fake>,
    clients: Vec<Client>,
    begun: u64,
}

impl Sessions {
    fn run(&mut self, step: Step) {
        match step {
            Step::Begin { tokens, end, priority } => {
                let text = [prompt(tokens, 0), vec![end]].concat();
                self.begin(text, priority);
            }
            Step::Pass => self.pass(),
            Step::Leave(at) => drop(self.take(at)),
            Step::Turn(at) => {
                if let Some(client) = self.take(at) {
                    self.begin([client.tokens, vec![3]].concat(), 0);
                }
            }
        }
    }

    fn begin(&mut self, text: Vec<u32>, priority: i64) {
        if self.clients.len() < 9 {
            self.begun += 1;
            let mut client = Client::new(self.begun, text);
            client.job.as_mut().expect("it has not asked").rank.priority = priority;
            self.clients.push(client);
        }
    }

    fn take(&mut self, at: usize) -> Option<Client> {
        let at = at.checked_rem(self.clients.len())?;
        Some(self.clients.swap_remove(at))
    }

    fn pass(&mut self) {
        // Who has found something asks again at once.
        for _ in 0..4 {
            self.clients.iter_mut().for_each(Sessions::hear);
            self.clients.retain(|client| client.tokens.len() < 300);
            for client in &mut self.clients {
                if client.job.is_some() {
                    client.ask(&mut self.batcher);
                }
            }
            match self.batcher.next() {
                Next::Launch => return launch(&mut self.batcher),
                Next::Slice => return self.batcher.slice(),
                Next::Wait(_) => self.batcher.wait_no_more(),
                Next::Nothing => {}
            }
        }
        assert!(self.clients.is_empty(), "nobody gets on");
    }

    fn hear(client: &mut Client) {
        client.hear().transpose().expect("nothing fails");
        client.check();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn whatever_is_shared_taken_and_computed_again_everybody_says_what_it_says_alone(
        steps in steps(), pages in 12usize..40,
    ) {
        let told = Told::default();
        told.set_pages(pages);
        let batcher = batcher(&told);
        let mut sessions = Sessions { batcher, clients: vec![], begun: 0 };
        steps.into_iter().for_each(|step| sessions.run(step));
        // All who are left come to an end.
        while !sessions.clients.is_empty() {
            let left = sessions.clients.len();
            (0..500).for_each(|_| sessions.pass());
            prop_assert!(sessions.clients.len() < left, "somebody waits for ever");
        }
        drop(sessions);
        prop_assert_eq!((told.free_pages(), told.free_places()), (pages, 64));
    }
}
