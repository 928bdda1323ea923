//! Sessions on threads of their own, as the daemon has them.

use std::thread;

use super::super::super::owner::{Owner, Seat};
use super::fake::{Fake, Told, VOCAB, answer, prompt};
use super::*;
use crate::backend::{Output, Want};

const CONTEXT: usize = 4096;

fn owner(told: &Told) -> Owner<Fake> {
    told.set_context(CONTEXT);
    Owner::start(Fake::new(told), CONTEXT, AHEAD).unwrap()
}

/// Has a session say `tokens` tokens after those of `prompt`, of which it holds the first `held`.
fn generate(
    owner: &Owner<Fake>,
    seat: &mut Seat<Fake>,
    prompt: &[u32],
    held: usize,
    tokens: usize,
    want: Want,
) -> Result<Vec<u32>, GenerateError> {
    seat.truncate(held);
    let mut all = prompt.to_vec();
    let mut computed = held;
    let result = loop {
        let take = |output: Output<'_>| match output {
            Output::Nothing => None,
            Output::Chosen { token, .. } => Some(token),
            Output::Logits(logits) => {
                assert_eq!(logits.len(), VOCAB as usize);
                logits.iter().position(|logit| *logit == 1.0).map(|token| token as u32)
            }
        };
        match owner.pass(seat, computed, &all[computed..], want, take) {
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
                    let want = if number % 5 == 3 { Want::Logits } else { Want::Likeliest };
                    let tokens = 1 + number as usize * 7 % 40;
                    let prompt = prompt(1 + number as usize * 131 % 900, number);
                    let said = generate(owner_ref, &mut seat, &prompt, 0, tokens, want).unwrap();
                    assert_eq!(said, answer(&prompt, tokens), "{number}");
                    match number % 4 {
                        // Part of what it holds is used again, as in the next turn of a chat.
                        0 => {
                            let held = (prompt.len() + tokens).div_ceil(2);
                            let next = [prompt, said, vec![5, 7]].concat();
                            let said = generate(owner_ref, &mut seat, &next, held, 9, want);
                            assert_eq!(said.unwrap(), answer(&next, 9), "{number}");
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
    assert_eq!((told.free_pages(), told.free_places()), (1 << 20, 64));
}

#[test]
fn the_context_ends_at_its_last_token() {
    let told = Told::default();
    let owner = owner(&told);
    let prompt = prompt(CONTEXT - 3, 1);
    let mut seat = owner.seat();
    let said = generate(&owner, &mut seat, &prompt, 0, 4, Want::Likeliest).unwrap();
    assert_eq!(said, answer(&prompt, 4));
    assert_eq!(told.free_pages(), (1 << 20) - CONTEXT / PAGE_TOKENS, "no pass went beyond it");
}

#[test]
fn sessions_that_find_the_cache_full_do_not_disturb_those_that_do_not() {
    let told = Told::default();
    told.set_pages(19);
    let owner = owner(&told);
    let outcome = |seed: u32| {
        let prompt = prompt(80, seed);
        let mut seat = owner.seat();
        let said = generate(&owner, &mut seat, &prompt, 0, 60, Want::Likeliest);
        match said {
            Ok(said) => assert_eq!(said, answer(&prompt, 60)),
            Err(GenerateError::CacheFull { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    };
    thread::scope(|scope| {
        for seed in 0..8 {
            let outcome = &outcome;
            scope.spawn(move || (0..10).for_each(|turn| outcome(10 * seed + turn)));
        }
    });
    assert_eq!(told.free_pages(), 19);
    let prompt = prompt(500, 1);
    let said = generate(&owner, &mut owner.seat(), &prompt, 0, 60, Want::Likeliest);
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
        generate(&owner, &mut owner.seat(), &prompt, 0, CONTEXT - 30, Want::Likeliest)
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
        let first = generate(&owner, &mut seat, &prompt, 0, CONTEXT - 30, Want::Likeliest);
        (first, generate(&owner, &mut seat, &prompt, 0, 1, Want::Likeliest))
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
    assert_eq!((told.free_pages(), told.free_places()), (1 << 20, 64));
}
