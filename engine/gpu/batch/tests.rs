//! Batches on a stand-in for the card: what it computes anybody can check, its time is counted, and
//! it fails when it is told to.

mod fake;
mod pages;
mod threads;

use std::sync::mpsc::{Receiver, channel};

use m40_cuda::CudaError;
use m40_sched::pace::LEAST_ROWS;

use super::*;
use fake::{Fake, Ran, Told, answer, prompt};

const AHEAD: u32 = 8;

/// A session without a thread.
struct Client {
    job: Option<Box<Job<Fake>>>,
    back: Receiver<Answer<Fake>>,
    tokens: Vec<u32>,
    prompt: usize,
    /// Tokens computed.
    held: usize,
    logits: bool,
}

impl Client {
    fn new(session: u64, tokens: Vec<u32>) -> Self {
        let (sender, back) = channel();
        let mut job = Box::new(Job::new(session, sender));
        job.rank.arrival = session;
        let job = Some(job);
        Self { job, back, prompt: tokens.len(), tokens, held: 0, logits: false }
    }

    fn ask(&mut self, batcher: &mut Batcher<Fake>) {
        batcher.take(self.message());
    }

    fn message(&mut self) -> Message<Fake> {
        let mut job = self.job.take().unwrap();
        job.position = self.held;
        job.text.clone_from(&self.tokens);
        job.wants_logits = self.logits;
        Message::Ask(job)
    }

    /// Takes what has come; says so when that is all.
    fn hear(&mut self) -> Option<Result<(), GenerateError>> {
        loop {
            let mut job = match self.back.try_recv().ok()? {
                Answer::Chosen(chosen) => {
                    self.tokens.push(chosen.token);
                    self.held += 1;
                    continue;
                }
                Answer::Done(job) => job,
            };
            let failure = job.failure.take();
            if failure.is_none() {
                let largest = job.logits.iter().position(|logit| *logit == 1.0);
                self.tokens.extend(largest.map(|token| token as u32));
                self.held += if job.chosen == 0 { job.computed } else { 0 };
            }
            self.job = Some(job);
            return Some(failure.map_or(Ok(()), Err));
        }
    }

    fn said(&self) -> &[u32] {
        &self.tokens[self.prompt..]
    }

    #[track_caller]
    fn check(&self) {
        let expected = answer(&self.tokens[..self.prompt], self.said().len());
        assert_eq!(self.said(), expected, "after {} tokens", self.prompt);
    }
}

fn batcher(told: &Told) -> Batcher<Fake> {
    Batcher::new(Fake::new(told), AHEAD)
}

fn clients(count: u64, tokens: usize) -> Vec<Client> {
    (0..count).map(|i| Client::new(i, prompt(tokens, i as u32))).collect()
}

/// A launch that nobody speaks to.
fn launch(batcher: &mut Batcher<Fake>) {
    batcher.launch(&mut |_| Err(RecvTimeoutError::Timeout));
}

/// One pass, as the model's thread would run it if nobody else came.
fn step(batcher: &mut Batcher<Fake>) {
    loop {
        match batcher.next() {
            Next::Launch => return launch(batcher),
            Next::Slice => return batcher.slice(),
            Next::Wait(_) => batcher.wait_no_more(),
            Next::Nothing => panic!("nobody asks"),
        }
    }
}

/// Everybody asks on at once for `passes` passes.
fn go_on(batcher: &mut Batcher<Fake>, clients: &mut [Client], passes: usize) {
    for _ in 0..passes {
        for client in clients.iter_mut() {
            client.hear().transpose().unwrap();
            if client.job.is_some() {
                client.ask(batcher);
            }
        }
        step(batcher);
    }
    clients.iter_mut().for_each(|client| client.hear().transpose().map(drop).unwrap());
}

#[test]
fn sessions_share_passes() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut four = clients(4, 1);
    go_on(&mut batcher, &mut four, 3);
    let ran = |passes| Ran::Launch { rows: 4, passes, logits: false };
    assert_eq!(told.ran(), [ran(AHEAD), ran(AHEAD), ran(AHEAD)]);
    for client in &four {
        assert_eq!(client.said().len(), 24);
        client.check();
    }
}

#[test]
fn more_sessions_than_a_pass_has_rows_take_turns() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut all = clients(12, 1);
    go_on(&mut batcher, &mut all, 30);
    assert!(told.ran().iter().all(|ran| matches!(ran, Ran::Launch { rows: 8, .. })));
    let said: Vec<_> = all.iter().map(|client| client.said().len()).collect();
    let (least, most) = (said.iter().min().unwrap(), said.iter().max().unwrap());
    assert!(most - least <= AHEAD as usize, "{said:?}");
    all.iter().for_each(Client::check);
}

#[test]
fn wide_passes_take_all_who_wait_and_those_who_want_logits_beside_few() {
    let told = Told::default();
    told.set_wide_rows(64);
    let mut batcher = batcher(&told);
    let mut all = clients(20, 1);
    go_on(&mut batcher, &mut all, 3);
    let ran = |rows, passes, logits| Ran::Launch { rows, passes, logits };
    assert_eq!(told.ran()[1..], [ran(20, AHEAD, false); 2]);
    all[3].logits = true;
    go_on(&mut batcher, &mut all, 1);
    assert_eq!(told.ran()[3], ran(8, 1, true));
    // Then the others, once they no longer wait for those eight.
    step(&mut batcher);
    assert_eq!(told.ran()[4], ran(12, AHEAD, false));
    all.iter_mut().for_each(|client| client.hear().transpose().map(drop).unwrap());
    all.iter().for_each(Client::check);
}

#[test]
fn a_pass_waits_for_those_of_the_last_one_until_they_come_rest_or_take_too_long() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut three = clients(3, 1);
    go_on(&mut batcher, &mut three, 1);
    assert_eq!(batcher.next(), Next::Nothing);
    three[0].ask(&mut batcher);
    assert!(matches!(batcher.next(), Next::Wait(time) if !time.is_zero()));
    three[1].ask(&mut batcher);
    assert!(matches!(batcher.next(), Next::Wait(_)));
    batcher.take(Message::Rest(2));
    assert_eq!(batcher.next(), Next::Launch);
    launch(&mut batcher);
    assert_eq!(told.ran()[1], Ran::Launch { rows: 2, passes: AHEAD, logits: false });

    three[2].ask(&mut batcher);
    told.pass_time(batcher.pace.patience());
    assert_eq!(batcher.next(), Next::Wait(Duration::ZERO));
    batcher.wait_no_more();
    assert_eq!(batcher.next(), Next::Launch);
    launch(&mut batcher);
    assert_eq!(told.ran()[2], Ran::Launch { rows: 1, passes: AHEAD, logits: false });
    three.iter_mut().for_each(|client| client.hear().unwrap().unwrap());
    three.iter().for_each(Client::check);
}

#[test]
fn where_somebody_needs_logits_all_get_them_in_one_pass() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut three = clients(3, 1);
    three[1].logits = true;
    go_on(&mut batcher, &mut three, 5);
    let expected = Ran::Launch { rows: 3, passes: 1, logits: true };
    assert!(told.ran().iter().all(|ran| *ran == expected), "{:?}", told.ran());
    three.iter().for_each(Client::check);
}

#[test]
fn a_prompt_alone_is_computed_in_large_slices_and_its_last_token_as_a_row() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut one = clients(1, 1200);
    go_on(&mut batcher, &mut one, 4);
    let slices = [512, 512, 175].map(|rows| Ran::Slice { rows });
    assert_eq!(told.ran()[..3], slices);
    assert_eq!(told.ran()[3], Ran::Launch { rows: 1, passes: AHEAD, logits: false });
    one[0].check();
}

#[test]
fn slices_and_passes_take_turns_and_so_do_prompts() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut all = clients(2, 1);
    go_on(&mut batcher, &mut all, 2);
    all.extend([2, 3].map(|i| Client::new(i, prompt(300, i as u32))));
    let before = told.ran().len();
    go_on(&mut batcher, &mut all, 8);
    let ran = told.ran();
    assert_eq!(ran.len() - before, 8);
    assert!(ran[before..].chunks(2).all(|pair| matches!(pair, [Ran::Slice { .. }, _])));
    // Both go on, the one that came first ahead by a slice at most.
    let held = [2, 3].map(|i: usize| all[i].held);
    assert!(held[0] > 0 && held[1] > 0, "{held:?}");
    go_on(&mut batcher, &mut all, 60);
    all.iter().for_each(Client::check);
    assert!(all[3].said().len() > 1);
}

/// What streams say in a second of the card's time, over many passes.
fn speed(batcher: &mut Batcher<Fake>, clients: &mut [Client], told: &Told) -> f64 {
    let said = |clients: &[Client]| clients[..4].iter().map(|c| c.said().len()).sum::<usize>();
    let (before, begun) = (said(clients), told.time());
    go_on(batcher, clients, 180);
    (said(clients) - before) as f64 / (told.time() - begun).as_secs_f64()
}

#[track_caller]
fn check_speed(times: [u64; 3], ahead: u32, logits: bool) {
    let told = Told::with_times(times.map(Duration::from_micros));
    let mut batcher = Batcher::new(Fake::new(&told), ahead);
    let mut all = clients(4, 1);
    all[0].logits = logits;
    go_on(&mut batcher, &mut all, 4);
    let alone = speed(&mut batcher, &mut all, &told);
    all.push(Client::new(4, prompt(200_000, 9)));
    // The pace is found on the way.
    go_on(&mut batcher, &mut all, 60);
    let before = (all[4].held, told.time());
    let beside = speed(&mut batcher, &mut all, &told);
    assert!(beside >= 0.48 * alone, "{beside} beside a prompt, {alone} alone");
    // And the prompt has what is left, if a slice can be as short.
    assert!(beside <= 0.8 * alone, "{beside} beside a prompt, {alone} alone");
    assert!(all[4].held >= before.0 + LEAST_ROWS && told.time() > before.1);
}

#[test]
fn streams_keep_half_their_speed_beside_a_prompt() {
    // A fast card with a small model and with a large one, and a slow card.
    for times in [[700, 1500, 10], [4_000, 2_000, 200], [35_000, 20_000, 2_500]] {
        check_speed(times, AHEAD, false);
        // Of which each launch is one pass.
        check_speed(times, 1, false);
        check_speed(times, AHEAD, true);
    }
}

#[test]
fn whose_context_is_full_hurts_nobody_else() {
    let told = Told::default();
    told.set_context(60);
    let mut batcher = batcher(&told);
    let mut three = clients(2, 1);
    three.push(Client::new(2, prompt(59, 2)));
    while three[2].said().len() < 2 {
        go_on(&mut batcher, &mut three, 1);
    }
    three.iter_mut().for_each(|client| client.ask(&mut batcher));
    step(&mut batcher);
    let heard: Vec<_> = three.iter_mut().map(|client| client.hear().unwrap()).collect();
    assert_eq!(heard[..2], [Ok(()), Ok(())]);
    let Err(GenerateError::Pass { reason }) = &heard[2] else { panic!("{heard:?}") };
    assert!(reason.contains("context of 60 tokens"), "{reason}");
    three.iter().for_each(Client::check);
}

#[test]
fn a_failure_of_the_card_reaches_all_of_a_pass_as_what_it_is() {
    let lost = CudaError::DeviceLost {
        call: m40_cuda::Call::cuStreamSynchronize,
        code: 719,
        name: "LAUNCH_FAILED".into(),
    };
    let failures: [(PassError, GpuError); 2] =
        [(PassError::Stuck, GpuError::Stuck), (lost.clone().into(), GpuError::Cuda(lost))];
    for (failure, expected) in failures {
        let told = Told::default();
        let mut batcher = batcher(&told);
        let mut three = clients(3, 1);
        go_on(&mut batcher, &mut three, 2);
        three.iter_mut().for_each(|client| client.ask(&mut batcher));
        told.fail(failure);
        step(&mut batcher);
        for client in &mut three {
            assert_eq!(client.hear(), Some(Err(GenerateError::Gpu(expected.clone()))));
        }
        // None of them is waited for; whoever asks again is served.
        three[0].ask(&mut batcher);
        assert_eq!(batcher.next(), Next::Launch);
    }
}

#[test]
fn what_was_chosen_before_a_failure_has_been_heard() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut two = clients(2, 1);
    two.iter_mut().for_each(|client| client.ask(&mut batcher));
    told.fail_after(3, PassError::Stuck);
    step(&mut batcher);
    for client in &mut two {
        assert_eq!(client.hear(), Some(Err(GenerateError::Gpu(GpuError::Stuck))));
        assert_eq!(client.said().len(), 3);
        client.check();
    }
    assert_eq!(batcher.next(), Next::Nothing);
}

#[test]
fn one_session_too_many_is_told_at_once_and_a_place_is_free_again_when_one_is_dropped() {
    let told = Told::default();
    told.set_places(2);
    let mut batcher = batcher(&told);
    let mut three = clients(3, 1);
    three.iter_mut().for_each(|client| client.ask(&mut batcher));
    assert_eq!(three[2].hear(), Some(Err(GenerateError::TooManySessions { most: 2 })));
    step(&mut batcher);
    assert_eq!(told.ran(), [Ran::Launch { rows: 2, passes: AHEAD, logits: false }]);
    three[1].hear();
    three.remove(1);
    three[1].ask(&mut batcher);
    assert_eq!(three[1].hear(), None);
    step(&mut batcher);
    assert_eq!(three[1].hear(), Some(Ok(())));
}

/// A launch during which a session says this after so many passes, and how many it has.
fn interrupted(
    batcher: &mut Batcher<Fake>,
    told: &Told,
    after: u32,
    message: Message<Fake>,
) -> u32 {
    let (mut looks, mut message) = (0, Some(message));
    assert_eq!(batcher.next(), Next::Launch);
    batcher.launch(&mut |_| {
        looks += 1;
        let says = if looks == after { message.take() } else { None };
        says.ok_or(RecvTimeoutError::Timeout)
    });
    assert!(message.is_none(), "there were fewer passes");
    match told.ran().last() {
        Some(Ran::Launch { passes, .. }) => *passes,
        ran => panic!("{ran:?}"),
    }
}

#[test]
fn a_launch_ends_with_the_pass_that_runs_when_somebody_asks_for_something_else() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut all = clients(3, 1);
    all[0].ask(&mut batcher);
    // Another session joins.
    let ask = all[1].message();
    assert_eq!(interrupted(&mut batcher, &told, 3, ask), 3);
    assert_eq!(all[0].hear(), Some(Ok(())));
    assert_eq!(all[0].said().len(), 3);
    all[0].ask(&mut batcher);
    // A prompt waits.
    let long = Client::new(7, prompt(200, 9)).message();
    assert_eq!(interrupted(&mut batcher, &told, 2, long), 2);
    assert_eq!(told.ran()[1], Ran::Launch { rows: 2, passes: 2, logits: false });
    assert_eq!(batcher.next(), Next::Slice);
    all[..2].iter_mut().for_each(|client| client.hear().unwrap().unwrap());
    batcher.slice();
    // Something else is to be done.
    all[..2].iter_mut().for_each(|client| client.ask(&mut batcher));
    let (sender, done) = channel();
    let task = Task(Box::new(move |_: &mut Fake| sender.send(()).unwrap()));
    assert_eq!(interrupted(&mut batcher, &told, 1, Message::Do(task)), 1);
    done.try_recv().unwrap();
    all[..2].iter_mut().for_each(|client| client.hear().unwrap().unwrap());
    all.iter().for_each(Client::check);
}

#[test]
fn each_token_is_there_before_the_next_pass_ends() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut all = clients(2, 1);
    all.iter_mut().for_each(|client| client.ask(&mut batcher));
    let mut passes = 0;
    batcher.launch(&mut |_| {
        for client in &mut all {
            assert_eq!((client.hear(), client.said().len()), (None, passes));
        }
        passes += 1;
        Err(RecvTimeoutError::Timeout)
    });
    assert_eq!(passes, AHEAD as usize);
}

#[test]
fn who_has_enough_ends_a_launch_that_it_has_a_row_in_and_no_other() {
    let told = Told::default();
    let mut batcher = batcher(&told);
    let mut two = clients(2, 1);
    two.iter_mut().for_each(|client| client.ask(&mut batcher));
    assert_eq!(interrupted(&mut batcher, &told, 3, Message::Rest(9)), AHEAD);
    two.iter_mut().for_each(|client| client.hear().unwrap().unwrap());
    two.iter_mut().for_each(|client| client.ask(&mut batcher));
    assert_eq!(interrupted(&mut batcher, &told, 3, Message::Rest(1)), 3);
    two.iter_mut().for_each(|client| client.hear().unwrap().unwrap());
    // It is not waited for.
    two[0].ask(&mut batcher);
    assert_eq!(batcher.next(), Next::Launch);
    two.iter().for_each(Client::check);
}

#[test]
fn who_finds_no_row_waits_for_a_turn_and_a_prompt_for_the_passes_before_its_slice() {
    let told = Told::default();
    let mut batcher = Batcher::new(Fake::new(&told), 64);
    let mut nine = clients(9, 1);
    nine[..8].iter_mut().for_each(|client| client.ask(&mut batcher));
    let ask = nine[8].message();
    assert_eq!(interrupted(&mut batcher, &told, 2, ask), PASSES_OF_TURN);
    nine.iter_mut().for_each(|client| client.hear().transpose().map(drop).unwrap());
    go_on(&mut batcher, &mut nine, 1);
    nine.iter().for_each(Client::check);

    // Of a prompt whose slices are under way the next one may come at any time.
    let told = Told::with_times([700, 1500, 10].map(Duration::from_micros));
    let mut batcher = Batcher::new(Fake::new(&told), 64);
    let mut two = clients(1, 1);
    go_on(&mut batcher, &mut two, 1);
    two.push(Client::new(1, prompt(3000, 1)));
    two.iter_mut().for_each(|client| client.ask(&mut batcher));
    assert_eq!(batcher.next(), Next::Slice);
    batcher.slice();
    two[1].hear().unwrap().unwrap();
    let ask = two[1].message();
    assert!(interrupted(&mut batcher, &told, 1, ask) > 1);
    assert_eq!(batcher.next(), Next::Slice);
}

#[test]
fn launches_are_short_while_more_sessions_wait_than_they_have_rows() {
    let told = Told::default();
    let mut batcher = Batcher::new(Fake::new(&told), 64);
    let mut all = clients(9, 1);
    go_on(&mut batcher, &mut all, 2);
    let short = Ran::Launch { rows: 8, passes: PASSES_OF_TURN, logits: false };
    assert_eq!(told.ran(), [short, short]);
    drop(all.pop());
    batcher.take(Message::Rest(8));
    go_on(&mut batcher, &mut all, 2);
    assert_eq!(told.ran().last(), Some(&Ran::Launch { rows: 8, passes: 64, logits: false }));
}
