//! Sessions of one model side by side on a device: each says what it says alone.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Instant;

use m40_testkit::models;
use m40llm::{CancelToken, Completion, Decode, FinishReason, GenerateParams, Model, ModelOptions};

use super::real::{TEXT, engine, params};
use super::{Gpu, gpu, say};

/// Tokens of context, and of the KV cache that all sessions share.
const CONTEXT: u32 = 4096;

/// Tokens of a prompt at most: those of a slice of the least size, and the last one. Longer prompts
/// may be cut otherwise beside others, and then differ in the last bits.
pub(super) const PROMPT: usize = 17;

fn load(gpu: &Gpu, decode: Decode) -> Model {
    let options = ModelOptions { context: Some(CONTEXT), ..ModelOptions::default() };
    let model = engine(&gpu.device, 1024, decode).load(&models::smollm2(), &options);
    model.unwrap_or_else(|error| panic!("{error}"))
}

/// Prompts that have little in common, of several lengths.
fn prompts(model: &Model, count: usize) -> Vec<Vec<u32>> {
    let all = model.tokenizer().encode_prompt(TEXT);
    (0..count).map(|i| all.iter().copied().skip(i).take(PROMPT - i % 5).collect()).collect()
}

/// What a session holds after it has generated: its prompt and all tokens but the last.
fn said(model: &Model, prompt: &[u32], params: &GenerateParams) -> Vec<u32> {
    let mut session = model.session();
    let done = session.generate(prompt, params, &CancelToken::new(), &mut |_| {});
    let done = done.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(Some(done.completion_tokens), params.max_tokens);
    session.tokens().to_vec()
}

/// A prompt of so many tokens.
fn long_prompt(model: &Model, tokens: usize) -> Vec<u32> {
    model.tokenizer().encode_prompt(TEXT).into_iter().cycle().take(tokens).collect()
}

#[test]
fn sessions_side_by_side_say_what_each_says_alone() {
    let Some(gpu) = gpu() else { return };
    for decode in [Decode::Graph, Decode::Persistent] {
        let model = load(&gpu, decode);
        for count in [4, 12] {
            let prompts = prompts(&model, count);
            let params = |i: usize| params(48 + 3 * i as u32);
            let alone: Vec<_> =
                prompts.iter().enumerate().map(|(i, p)| said(&model, p, &params(i))).collect();
            thread::scope(|scope| {
                for (i, prompt) in prompts.iter().enumerate() {
                    let (model, alone, params) = (&model, &alone[i], params(i));
                    let what = format!("session {i} of {count}, {decode}");
                    scope.spawn(move || assert_eq!(said(model, prompt, &params), *alone, "{what}"));
                }
            });
        }
    }
}

#[test]
fn sessions_that_the_host_samples_for_and_others_share_passes() {
    let Some(gpu) = gpu() else { return };
    let model = load(&gpu, Decode::Persistent);
    let prompts = prompts(&model, 6);
    let params = |i: usize| {
        let mut params = params(60);
        if !i.is_multiple_of(3) {
            params.sampling.temperature = 0.8;
            params.sampling.seed = Some(i as u64);
        }
        // Those who want these are sampled for on the host, and whoever shares a pass with them.
        params.logprobs = (i % 3 == 1).then_some(2);
        params
    };
    let alone: Vec<_> =
        prompts.iter().enumerate().map(|(i, p)| said(&model, p, &params(i))).collect();
    thread::scope(|scope| {
        for (i, prompt) in prompts.iter().enumerate() {
            let (model, alone, params) = (&model, &alone[i], params(i));
            scope.spawn(move || assert_eq!(said(model, prompt, &params), *alone, "session {i}"));
        }
    });
}

#[test]
fn streams_say_the_same_beside_a_long_prompt() {
    let Some(gpu) = gpu() else { return };
    for decode in [Decode::Graph, Decode::Persistent] {
        let model = load(&gpu, decode);
        let streams = prompts(&model, 4);
        let long = long_prompt(&model, 2048);
        let alone: Vec<_> = streams.iter().map(|p| said(&model, p, &params(200))).collect();
        let long_alone = said(&model, &long, &params(20));
        let beside = thread::scope(|scope| {
            for (prompt, alone) in streams.iter().zip(&alone) {
                let model = &model;
                scope.spawn(move || assert_eq!(said(model, prompt, &params(200)), *alone));
            }
            said(&model, &long, &params(20))
        });
        let same = beside.iter().zip(&long_alone).take_while(|(a, b)| a == b).count();
        say(&format!(
            "{decode}: after a prompt cut into slices {} of 19 tokens are those of large slices",
            same - long.len()
        ));
    }
}

#[test]
fn models_side_by_side_say_what_each_says_alone_and_one_more_is_loaded_meanwhile() {
    let Some(gpu) = gpu() else { return };
    let engine = engine(&gpu.device, 2048, Decode::Persistent);
    let options = ModelOptions { context: Some(CONTEXT), ..ModelOptions::default() };
    let load =
        || engine.load(&models::smollm2(), &options).unwrap_or_else(|error| panic!("{error}"));
    let pair = [load(), load()];
    let prompts = prompts(&pair[0], 4);
    let alone: Vec<_> = prompts.iter().map(|p| said(&pair[0], p, &params(200))).collect();
    let begun = Instant::now();
    thread::scope(|scope| {
        for (i, (prompt, alone)) in prompts.iter().zip(&alone).enumerate() {
            let model = &pair[i % 2];
            scope.spawn(move || assert_eq!(said(model, prompt, &params(200)), *alone, "{i}"));
        }
        // What it allocates waits for kernels that stay, which leave for it.
        let third = load();
        assert_eq!(said(&third, &prompts[0], &params(200)), alone[0]);
        say(&format!("a third model was loaded and has answered after {:?}", begun.elapsed()));
    });
    say(&format!("two models, two sessions each: {:?}", begun.elapsed()));
}

#[test]
fn who_is_cancelled_leaves_the_others_as_they_were() {
    let Some(gpu) = gpu() else { return };
    let model = load(&gpu, Decode::Persistent);
    let streams = prompts(&model, 3);
    let alone: Vec<_> = streams.iter().map(|p| said(&model, p, &params(300))).collect();
    thread::scope(|scope| {
        for (prompt, alone) in streams.iter().zip(&alone) {
            let model = &model;
            scope.spawn(move || assert_eq!(said(model, prompt, &params(300)), *alone));
        }
        for i in 0..5 {
            let cancel = CancelToken::new();
            let mut pieces = 0;
            let mut on_chunk = |_| {
                pieces += 1;
                if pieces == 3 + i {
                    cancel.cancel();
                }
            };
            let done = model.session().generate(&streams[0], &params(300), &cancel, &mut on_chunk);
            assert_eq!(done.unwrap().finish, FinishReason::Cancelled);
        }
    });
}

/// Answers a prompt in a session of its own: what it holds then, and how it went.
fn answer(model: &Model, prompt: &[u32], tokens: u32) -> (Vec<u32>, Completion) {
    let mut session = model.session();
    let done = session.generate(prompt, &params(tokens), &CancelToken::new(), &mut |_| {});
    (session.tokens().to_vec(), done.unwrap_or_else(|error| panic!("{error}")))
}

#[test]
fn a_prompt_that_begins_as_one_of_another_session_is_computed_from_there_on() {
    let Some(gpu) = gpu() else { return };
    for decode in [Decode::Graph, Decode::Persistent] {
        let model = load(&gpu, decode);
        let long = long_prompt(&model, 700);
        let (held, first) = answer(&model, &long, 40);
        assert_eq!((first.cached_tokens, held.len()), (0, 739));
        // The next turn of the chat, in another session, and the same beside a second one.
        let turn = [&held[..], &prompts(&model, 1)[0]].concat();
        let (text, second) = answer(&model, &turn, 40);
        assert_eq!(second.cached_tokens, 739 / 32 * 32);
        let times = [first.prompt_time, second.prompt_time];
        say(&format!("{decode}: 700 tokens took {:?}, the next turn {:?}", times[0], times[1]));
        let again = thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| answer(&model, &turn, 40)));
            both.map(|thread| thread.join().unwrap_or_else(|_| panic!("it panicked")))
        });
        for (other, done) in again {
            assert_eq!(done.cached_tokens as usize, (turn.len() - 1) / 32 * 32);
            let same = other.iter().zip(&text).take_while(|(a, b)| a == b).count();
            say(&format!("{decode}: {} of 39 tokens are the same", same - turn.len()));
        }
        // A model that has nothing says the same, but for sums that slices cut otherwise.
        let (alone, done) = answer(&load(&gpu, decode), &turn, 40);
        assert_eq!(done.cached_tokens, 0);
        let same = alone.iter().zip(&text).take_while(|(a, b)| a == b).count();
        say(&format!("{decode}: {} of 39 tokens are those without pages", same - turn.len()));
        assert!(same > turn.len());
    }
}

#[test]
fn sessions_that_need_more_pages_than_there_are_take_turns() {
    let Some(gpu) = gpu() else { return };
    let options = ModelOptions { context: Some(256), ..ModelOptions::default() };
    for decode in [Decode::Graph, Decode::Persistent] {
        let model = engine(&gpu.device, 1024, decode).load(&models::smollm2(), &options);
        let model = model.unwrap_or_else(|error| panic!("{error}"));
        // Each needs seven of eight pages.
        let prompts = prompts(&model, 5);
        let alone: Vec<_> = prompts.iter().map(|p| said(&model, p, &params(200))).collect();
        let (sender, begun) = channel();
        let texts: Vec<_> = thread::scope(|scope| {
            let one = |i: usize| {
                let (model, prompts, begun) = (&model, &prompts, sender.clone());
                scope.spawn(move || {
                    let mut session = model.session();
                    // Only the first is waited for.
                    let on_chunk = &mut |_| begun.send(()).unwrap_or(());
                    let cancel = CancelToken::new();
                    let done = session.generate(&prompts[i], &params(200), &cancel, on_chunk);
                    let done = done.unwrap_or_else(|error| panic!("{error}"));
                    assert_eq!(done.completion_tokens, 200);
                    session.tokens().to_vec()
                })
            };
            let oldest = one(0);
            begun.recv().unwrap();
            let others: Vec<_> = (1..5).map(one).collect();
            let all = [oldest].into_iter().chain(others);
            all.map(|thread| thread.join().unwrap_or_else(|_| panic!("it panicked"))).collect()
        });
        assert_eq!(texts[0], alone[0], "nobody takes pages from the oldest");
        for (i, (text, alone)) in texts.iter().zip(&alone).enumerate() {
            let same = text.iter().zip(alone).take_while(|(a, b)| a == b).count();
            let of = text.len() - prompts[i].len();
            say(&format!("{decode}: {} of {of} tokens as alone", same - prompts[i].len()));
        }
    }
}
