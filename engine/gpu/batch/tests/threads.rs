//! Sessions on threads of their own, as the daemon has them.

use std::thread;

use m40_sched::SamplingParams;

use super::super::super::going::Going;
use super::super::super::owner::{Owner, Seat};
use super::fake::{Fake, Told, VOCAB, answer, prompt, sampled};
use super::*;
use crate::backend::{Output, Start};
use crate::generate::{CancelToken, GenerateParams};

const CONTEXT: usize = 4096;

fn owner(told: &Told) -> Owner<Fake> {
    told.set_context(CONTEXT);
    Owner::start(Fake::new(told), AHEAD).unwrap()
}

/// Who chooses tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Card,
    Host,
}

/// What is asked for, with as many tokens as the card is to say without being told anew.
fn params(sampling: SamplingParams, tokens: usize) -> GenerateParams {
    GenerateParams { sampling, max_tokens: Some(tokens as u32), ..GenerateParams::default() }
}

fn greedy(tokens: usize) -> GenerateParams {
    params(SamplingParams::greedy(), tokens)
}

/// Draws, each differently, in which it matters what came before.
fn drawn(seed: u32) -> SamplingParams {
    SamplingParams {
        temperature: 0.7,
        repeat_penalty: 1.3,
        repeat_last_n: 6,
        seed: Some(seed.into()),
        ..SamplingParams::default()
    }
}

/// Has a session say `tokens` tokens after those of `prompt`.
fn generate(
    owner: &Owner<Fake>,
    seat: &mut Seat<Fake>,
    prompt: &[u32],
    tokens: usize,
    (params, by): (&GenerateParams, By),
) -> Result<Vec<u32>, GenerateError> {
    let (seed, cancel) = (fake::seed(&params.sampling), CancelToken::new());
    let start = Start { prompt, params, seed, stops: params.stop_tokens.clone(), cancel: &cancel };
    let going = (by == By::Card).then(|| Going::new(&start, VOCAB as usize, CONTEXT));
    owner.begin(seat, going, params.priority, &cancel);
    let mut sampler = fake::sampler(&params.sampling, prompt);
    let mut all = prompt.to_vec();
    let mut computed = 0;
    let result = loop {
        let take = |output: Output<'_>| match output {
            Output::Nothing | Output::Found => None,
            Output::Chosen { token, .. } => {
                sampler.accept(token);
                Some(token)
            }
            Output::Logits(logits) => {
                assert_eq!(logits.len(), VOCAB as usize);
                Some(fake::choose(&mut sampler, logits))
            }
        };
        match owner.pass(seat, computed, &all[computed..], take) {
            Ok((count, token)) => {
                computed += count;
                all.extend(token);
            }
            Err(error) => break Err(error),
        }
        if all.len() == prompt.len() + tokens {
            break Ok(all.split_off(prompt.len()));
        }
    };
    owner.rest(seat);
    result
}

#[test]
fn many_sessions_on_threads_say_what_each_says_alone() {
    let told = Told::default();
    let owner = owner(&told);
    let (owner_ref, told_ref) = (&owner, &told);
    thread::scope(|scope| {
        for thread in 0..20u32 {
            scope.spawn(move || {
                let mut seat = owner_ref.seat();
                for turn in 0..12u32 {
                    let number = thread * 12 + turn;
                    let by = if number % 5 == 3 { By::Host } else { By::Card };
                    let tokens = 1 + number as usize * 7 % 40;
                    let sampling =
                        if number % 3 == 1 { drawn(number) } else { SamplingParams::greedy() };
                    // Some are told anew on the way, as those beside whom others need logits.
                    let how =
                        (&params(sampling.clone(), tokens.div_ceil(1 + thread as usize % 2)), by);
                    let prompt = prompt(1 + number as usize * 131 % 900, number);
                    let said = generate(owner_ref, &mut seat, &prompt, tokens, how).unwrap();
                    assert_eq!(said, sampled(&sampling, &prompt, tokens), "{number}");
                    match number % 4 {
                        // The next turn of a chat.
                        0 => {
                            let next = [prompt, said, vec![5, 7]].concat();
                            let said = generate(owner_ref, &mut seat, &next, 9, how);
                            assert_eq!(said.unwrap(), sampled(&sampling, &next, 9), "{number}");
                        }
                        // Another session takes its place.
                        1 => seat = owner_ref.seat(),
                        _ => {}
                    }
                }
            });
        }
    });
    let shared = |ran: &Ran| matches!(ran, Ran::Launch { rows: 2.., .. });
    assert!(told_ref.ran().iter().any(shared), "no two sessions ever shared a pass");
    drop(owner);
    assert_eq!((told.free_pages(), told.free_places()), (1 << 16, 64));
}

#[test]
fn a_pass_that_has_to_wait_comes_later_and_messages_are_heard_meanwhile() {
    let told = Told::default();
    let owner = owner(&told);
    let prompt = prompt(300, 1);
    told.set_pauses(20);
    let mut seat = owner.seat();
    let how = (&greedy(9), By::Card);
    let said = generate(&owner, &mut seat, &prompt, 9, how).unwrap();
    assert_eq!((said, told.pauses()), (answer(&prompt, 9), 0));

    // So long that it would not end while the test runs.
    told.set_pauses(u32::MAX);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| generate(&owner, &mut seat, &prompt, 3, how));
        while told.pauses() == u32::MAX {
            thread::yield_now();
        }
        assert!(owner.lend(|_| Ok(true)).unwrap().wait().unwrap());
        told.set_pauses(0);
        assert_eq!(waiting.join().unwrap().unwrap(), answer(&prompt, 3));
    });
}

#[test]
fn the_context_ends_at_its_last_token() {
    let told = Told::default();
    let owner = owner(&told);
    let prompt = prompt(CONTEXT - 3, 1);
    let mut seat = owner.seat();
    let said = generate(&owner, &mut seat, &prompt, 4, (&greedy(4), By::Card)).unwrap();
    assert_eq!(said, answer(&prompt, 4));
    let ran = told.ran();
    let passes = ran.iter().map(|ran| match ran {
        Ran::Launch { passes, .. } => *passes,
        Ran::Slice { .. } => 0,
    });
    assert_eq!(passes.sum::<u32>(), 4, "no pass went beyond it");
}

#[test]
fn sessions_that_need_more_pages_than_there_are_say_what_each_says_alone() {
    let told = Told::default();
    told.set_pages(19);
    let owner = owner(&told);
    thread::scope(|scope| {
        for thread in 0..8u32 {
            let owner = &owner;
            scope.spawn(move || {
                let mut seat = owner.seat();
                for turn in 0..10 {
                    let seed = 10 * thread + turn;
                    let by = if seed % 5 == 3 { By::Host } else { By::Card };
                    let sampling =
                        if seed % 3 == 1 { drawn(seed) } else { SamplingParams::greedy() };
                    let priority = i64::from(thread % 3);
                    let params = GenerateParams { priority, ..params(sampling.clone(), 60) };
                    // Half of them begin alike.
                    let prompt = [prompt(50, seed % 2 * seed), prompt(30, seed)].concat();
                    let said = generate(owner, &mut seat, &prompt, 60, (&params, by)).unwrap();
                    assert_eq!(said, sampled(&sampling, &prompt, 60), "{seed}");
                }
            });
        }
    });
    assert_eq!(told.free_pages(), 19);
    let prompt = prompt(500, 1);
    let said = generate(&owner, &mut owner.seat(), &prompt, 60, (&greedy(60), By::Card));
    assert_eq!(said.unwrap(), answer(&prompt, 60));
}

#[test]
fn a_lost_card_is_told_to_everybody() {
    let told = Told::default();
    let owner = owner(&told);
    let lost = CudaError::DeviceLost {
        call: m40_cuda::Call::cuStreamSynchronize,
        code: 719,
        name: "LAUNCH_FAILED".into(),
    };
    let endless = |seed| {
        let prompt = prompt(30, seed);
        generate(
            &owner,
            &mut owner.seat(),
            &prompt,
            CONTEXT - 30,
            (&greedy(CONTEXT - 30), By::Card),
        )
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..6).map(|seed| scope.spawn(move || endless(seed))).collect();
        while told.ran().len() < 20 {
            thread::yield_now();
        }
        // As often as passes will be tried.
        (0..6).for_each(|_| told.fail(lost.clone().into()));
        for thread in running {
            let error = thread.join().unwrap().unwrap_err();
            assert_eq!(error, GenerateError::Gpu(GpuError::Cuda(lost.clone())));
        }
    });
}

#[test]
fn a_panic_of_the_thread_ends_all_sessions_with_an_error_and_hangs_nobody() {
    let told = Told::default();
    let owner = owner(&told);
    let endless = |seed| {
        let prompt = prompt(30, seed);
        let mut seat = owner.seat();
        let first =
            generate(&owner, &mut seat, &prompt, CONTEXT - 30, (&greedy(CONTEXT - 30), By::Card));
        (first, generate(&owner, &mut seat, &prompt, 1, (&greedy(1), By::Card)))
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..6).map(|seed| scope.spawn(move || endless(seed))).collect();
        while told.ran().len() < 20 {
            thread::yield_now();
        }
        told.panic();
        for thread in running {
            let (first, second) = thread.join().unwrap();
            for error in [first.unwrap_err(), second.unwrap_err()] {
                assert!(matches!(error, GenerateError::Pass { .. }), "{error}");
            }
        }
    });
    drop(owner);
    assert_eq!((told.free_pages(), told.free_places()), (1 << 16, 64));
}

#[test]
fn sessions_that_draw_share_launches_of_several_passes() {
    let told = Told::default();
    let owner = owner(&told);
    thread::scope(|scope| {
        for seed in 0..6u32 {
            let owner = &owner;
            scope.spawn(move || {
                let (prompt, sampling) = (prompt(20, seed), drawn(seed));
                let how = (&params(sampling.clone(), 200), By::Card);
                let said = generate(owner, &mut owner.seat(), &prompt, 200, how).unwrap();
                assert_eq!(said, sampled(&sampling, &prompt, 200), "{seed}");
            });
        }
    });
    let ran = told.ran();
    assert!(ran.iter().all(|ran| !matches!(ran, Ran::Launch { logits: true, .. })));
    assert!(ran.iter().any(|ran| matches!(ran, Ran::Launch { rows: 2.., passes: AHEAD, .. })));
}

#[test]
fn a_launch_ends_with_the_last_answer_in_it() {
    let told = Told::default();
    let owner = owner(&told);
    let prompt = prompt(5, 3);
    let said = answer(&prompt, 5);
    // By a stop token, and by the number of tokens.
    let stopped = GenerateParams { stop_tokens: vec![said[3]], ..greedy(100) };
    let end = said.iter().position(|token| *token == said[3]).unwrap() + 1;
    for (params, end) in [(stopped, end), (greedy(5), 5)] {
        let before = told.ran().len();
        let found = generate(&owner, &mut owner.seat(), &prompt, end, (&params, By::Card));
        assert_eq!(found.unwrap(), said[..end]);
        let ran = told.ran();
        let passes = ran[before..].iter().map(|ran| match ran {
            Ran::Launch { passes, .. } => *passes,
            Ran::Slice { .. } => 0,
        });
        assert_eq!(passes.sum::<u32>(), end as u32);
    }
}

#[test]
fn who_was_cancelled_ends_in_every_launch_and_can_go_on() {
    let told = Told::default();
    let owner = owner(&told);
    let (prompt, params) = (prompt(1, 1), greedy(100));
    let cancel = CancelToken::new();
    let start = Start { prompt: &prompt, params: &params, seed: 0, stops: vec![], cancel: &cancel };
    let mut seat = owner.seat();
    owner.begin(&mut seat, Some(Going::new(&start, VOCAB as usize, CONTEXT)), 0, &cancel);
    cancel.cancel();
    let mut all = prompt.clone();
    for _ in 0..3 {
        let take = |output: Output<'_>| match output {
            Output::Chosen { token, .. } => token,
            other => panic!("{other:?}"),
        };
        let last = &all[all.len() - 1..];
        let token = owner.pass(&mut seat, all.len() - 1, last, take).unwrap().1;
        all.push(token);
    }
    owner.rest(&mut seat);
    assert_eq!(told.ran(), [Ran::Launch { rows: 1, passes: 1, logits: false }; 3]);
    assert_eq!(all[1..], answer(&prompt, 3));
}

#[test]
fn something_else_is_done_between_passes() {
    let told = Told::default();
    let owner = owner(&told);
    let free = owner.lend(|passes| Ok(passes.pages())).unwrap().wait();
    assert_eq!(free, Ok((1 << 16, 1 << 16)));
}
