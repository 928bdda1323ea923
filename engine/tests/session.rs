//! Sessions: what they keep, how they are cancelled, and that they do not disturb each other.

use std::thread;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn a_shared_prefix_is_not_computed_again_and_changes_nothing() {
    let model = tiny();
    let fresh = |prompt: &[u32]| generate(&mut model.session(), prompt, &greedy(12)).ids();
    let mut session = model.session();
    let base = prompt(70, 0);

    let first = generate(&mut session, &base, &greedy(12));
    assert_eq!(first.completion.cached_tokens, 0);
    assert_eq!(first.ids(), fresh(&base));
    // The last token was chosen, but not fed.
    assert_eq!(session.tokens(), [base.clone(), first.ids()[..11].to_vec()].concat());
    assert!(session.kv_bytes() > 0);

    // The next turn of a conversation: everything before is held.
    let turn = [base.clone(), first.ids(), prompt(5, 1)].concat();
    let second = generate(&mut session, &turn, &greedy(12));
    assert_eq!(second.completion.cached_tokens, 70 + 11);
    assert_eq!(second.completion.prompt_tokens, 70 + 12 + 5);
    assert_eq!(second.ids(), fresh(&turn));

    // The same again: all but the last token, whose logits are needed.
    let third = generate(&mut session, &turn, &greedy(12));
    assert_eq!(third.completion.cached_tokens as usize, turn.len() - 1);
    assert_eq!(third.ids(), second.ids());

    // An edit in the middle, and a prompt that is a prefix of what is held.
    let mut edited = turn.clone();
    edited[40] += 1;
    for prompt in [&edited, &edited[..20]] {
        let found = generate(&mut session, prompt, &greedy(12));
        assert_eq!(found.completion.cached_tokens as usize, prompt.len().min(41) - 1);
        assert_eq!(found.ids(), fresh(prompt));
    }

    let other = prompt(8, 5);
    assert_ne!(other[0], base[0]);
    let found = generate(&mut session, &other, &greedy(12));
    assert_eq!((found.completion.cached_tokens, found.ids()), (0, fresh(&other)));
    let mut small = model.session();
    generate(&mut small, &other, &greedy(12));
    assert_eq!(session.kv_bytes(), small.kv_bytes(), "what is forgotten is freed");
}

#[test]
fn what_runs_in_a_share_of_the_time_says_the_same() {
    let engine = engine();
    let file = Tiny::new(&TinyModel::new("llama").builder());
    let model = engine.load(&file.path, &ModelOptions::default()).unwrap();
    let prompt = prompt(70, 0);
    let whole = generate(&mut model.session(), &prompt, &greedy(12)).ids();
    assert_eq!((engine.duty().share(), engine.duty().paused()), (1.0, Duration::ZERO));
    engine.duty().set(0.2);
    let slowed = generate(&mut model.session(), &prompt[1..], &greedy(12));
    let paused = engine.duty().paused();
    assert!(paused > Duration::ZERO);
    engine.duty().set(1.0);
    let fast = generate(&mut model.session(), &prompt[1..], &greedy(12));
    assert_eq!(slowed.ids(), fast.ids());
    assert_eq!(generate(&mut model.session(), &prompt, &greedy(12)).ids(), whole);
    // What was still to wait when the share was raised counts, and nothing after.
    let settled = engine.duty().paused();
    generate(&mut model.session(), &prompt, &greedy(12));
    assert_eq!(engine.duty().paused(), settled);
}

#[test]
fn windows_and_prefixes_go_together() {
    let file = TinyModel::new("gemma3").layers(6).context(512).sliding_window(24);
    let model = Tiny::new(&file.builder()).load();
    let base = prompt(150, 0);
    let mut session = model.session();
    generate(&mut session, &base, &greedy(4));
    let turn = [&base[..100], &prompt(60, 1)].concat();
    let found = generate(&mut session, &turn, &greedy(20));
    assert_eq!(found.completion.cached_tokens, 100);
    assert_eq!(found.ids(), generate(&mut model.session(), &turn, &greedy(20)).ids());
}

#[test]
fn a_generation_cancelled_before_it_starts_computes_nothing() {
    let model = tiny();
    let mut session = model.session();
    let cancel = CancelToken::new();
    cancel.cancel();
    assert!(cancel.is_cancelled());
    let found = session
        .generate(&prompt(5, 0), &greedy(5), &cancel, &mut |chunk| panic!("{chunk:?}"))
        .unwrap();
    assert_eq!((found.finish, found.completion_tokens), (FinishReason::Cancelled, 0));
    assert!(session.tokens().is_empty());
}

#[test]
fn what_comes_too_late_is_not_computed_and_what_takes_too_long_ends() {
    let model = TinyModel::new("llama").layers(1).context(1 << 20).builder();
    let model = Tiny::new(&model).load();
    let mut session = model.session();
    let late = CancelToken::with_deadline(Instant::now());
    let found = session.generate(&prompt(5, 0), &greedy(5), &late, &mut |_| {}).unwrap();
    assert_eq!((found.finish, found.completion_tokens), (FinishReason::Deadline, 0));
    assert!(session.tokens().is_empty());

    // It would go on for minutes.
    let soon = CancelToken::with_deadline(Instant::now() + Duration::from_millis(50));
    let found = session.generate(&prompt(5, 0), &greedy(1 << 19), &soon, &mut |_| {}).unwrap();
    assert_eq!(found.finish, FinishReason::Deadline);
    soon.cancel();
    let found = session.generate(&prompt(5, 0), &greedy(5), &soon, &mut |_| {}).unwrap();
    assert_eq!(found.finish, FinishReason::Cancelled, "somebody asked");

    let long_after = CancelToken::with_deadline(Instant::now() + Duration::from_secs(3600));
    let found = session.generate(&prompt(5, 0), &greedy(5), &long_after, &mut |_| {}).unwrap();
    assert_eq!((found.finish, found.completion_tokens), (FinishReason::Length, 5));
}

#[test]
fn a_cancelled_prompt_goes_on_where_it_was_left() {
    let model = TinyModel::new("llama").layers(1).context(8192).sliding_window(16).builder();
    let model = Tiny::new(&model).load();
    let long = prompt(8000, 0);
    let cancel = CancelToken::new();
    let mut session = model.session();
    let completion = thread::scope(|scope| {
        let generating =
            scope.spawn(|| session.generate(&long, &greedy(3), &cancel, &mut |_| {}).unwrap());
        // A pass holds the lock: once it is taken, the first of sixteen passes has begun.
        while !model.runner().is_busy() {
            thread::yield_now();
        }
        cancel.cancel();
        generating.join().unwrap()
    });
    assert_eq!((completion.finish, completion.completion_tokens), (FinishReason::Cancelled, 0));
    let held = session.tokens().len();
    assert!(held > 0 && held < long.len() && held.is_multiple_of(512), "{held} tokens held");

    let short = &long[..held + 10];
    let found = generate(&mut session, short, &greedy(5));
    assert_eq!(found.completion.cached_tokens as usize, held);
    assert_eq!(found.ids(), generate(&mut model.session(), short, &greedy(5)).ids());
}

#[test]
fn a_cancelled_answer_ends_with_the_token_before() {
    let model = tiny();
    let whole = generate(&mut model.session(), &prompt(5, 1), &greedy(20)).ids();
    let mut session = model.session();
    let cancel = CancelToken::new();
    let mut ids = vec![];
    let found = session
        .generate(&prompt(5, 1), &greedy(20), &cancel, &mut |chunk| {
            ids.extend(chunk.logprobs.iter().map(|token| token.id));
            if ids.len() == 7 {
                cancel.clone().cancel();
            }
        })
        .unwrap();
    assert_eq!((found.finish, found.completion_tokens), (FinishReason::Cancelled, 7));
    assert_eq!(ids, whole[..7]);
    // The session is as usable as before.
    let found = generate(&mut session, &prompt(5, 1), &greedy(20));
    assert_eq!((found.completion.cached_tokens, found.ids()), (4, whole));
}

#[test]
fn sessions_on_several_threads_give_what_each_gives_alone() {
    let model = tiny();
    let params = |seed| {
        let mut params = greedy(40);
        params.sampling = SamplingParams { seed: Some(seed), ..SamplingParams::default() };
        params
    };
    let one = |seed: u64| {
        let prompt = prompt(20 + 7 * seed as usize, seed as u32);
        let found = generate(&mut model.session(), &prompt, &params(seed));
        (found.text.clone(), found.ids())
    };
    let seeds = [0, 1, 2, 3, 4, 5, 6, 7];
    let alone = seeds.map(one);
    let together = thread::scope(|scope| {
        let running = seeds.map(|seed| scope.spawn(move || one(seed)));
        running.map(|thread| thread.join().unwrap())
    });
    assert_eq!(alone, together);
}

#[test]
fn a_session_outlives_the_other_handles_of_its_model() {
    let model = tiny();
    let expected = generate(&mut model.session(), &prompt(5, 2), &greedy(5)).ids();
    let mut session = model.clone().session();
    drop(model);
    assert_eq!(generate(&mut session, &prompt(5, 2), &greedy(5)).ids(), expected);
}

#[test]
fn an_answer_is_in_hand_until_it_ends() {
    let file = Tiny::new(&TinyModel::new("llama").builder());
    let engine = engine();
    let model = engine.load(&file.path, &ModelOptions::default()).unwrap();
    assert_eq!(engine.stalled(), None);
    let mut in_hand = vec![];
    let params = greedy(3);
    let mut see = |_| in_hand.push(engine.stalled().is_some());
    model.session().generate(&prompt(4, 1), &params, &CancelToken::new(), &mut see).unwrap();
    assert!(in_hand.len() >= 3 && in_hand.iter().all(|in_hand| *in_hand), "{in_hand:?}");
    assert_eq!(engine.stalled(), None);
}
