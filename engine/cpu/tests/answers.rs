//! What is said in shared passes, and by whom when something goes wrong.

use std::collections::BTreeMap;
use std::thread;

use m40_gguf::TensorType;
use proptest::prelude::*;
use proptest::sample::Index;

use super::super::batch::{Batch, Job, Next, compute};
use super::*;
use crate::generate::FinishReason;
use crate::tests::{Tiny, greedy};
use crate::{Model, backend::Runner};

type TinyExecutor = Executor<Vec<u8>>;

/// One turn of a conversation.
#[derive(Clone, Debug)]
struct Turn {
    /// The pass before which it begins.
    from: usize,
    /// Of the tokens that the session holds so many are the start of its prompt.
    kept: Index,
    prompt: usize,
    seed: u32,
    /// Logits after which it ends; with none it is cancelled while it waits for the first ones.
    answer: usize,
}

fn turn() -> impl Strategy<Value = Turn> {
    let sizes = (0..30usize, any::<Index>(), 1..150usize, 0..100u32, 0..12usize);
    sizes.prop_map(|(from, kept, prompt, seed, answer)| Turn { from, kept, prompt, seed, answer })
}

/// A session without a thread.
struct Client {
    /// None while the batch has it.
    job: Option<Job>,
    turns: std::vec::IntoIter<Turn>,
    turn: Option<Turn>,
    /// Prompt and answer.
    tokens: Vec<u32>,
    /// Tokens computed.
    held: usize,
    /// Of the turn.
    logits: Vec<Vec<f32>>,
}

impl Client {
    fn new(session: u64, cache: KvCache, turns: Vec<Turn>) -> Self {
        let job = Some(Job::new(session, cache));
        let (turns, tokens) = (turns.into_iter(), vec![]);
        Self { job, turns, turn: None, tokens, held: 0, logits: vec![] }
    }

    /// Asks for what follows, if it is the time to. Whether there is anything more to come.
    fn ask(&mut self, batch: &mut Batch, pass: usize) -> bool {
        if self.turn.is_none() && self.turns.as_slice().first().is_none_or(|t| t.from > pass) {
            return self.turns.len() > 0;
        }
        let Some(mut job) = self.job.take() else { return true };
        if self.turn.is_none()
            && let Some(turn) = self.turns.next()
        {
            let kept = turn.kept.index(self.held + 1);
            self.tokens.truncate(kept);
            self.tokens.extend(prompt(turn.prompt, turn.seed));
            self.held = kept;
            self.turn = Some(turn);
        }
        job.follow(self.held, &self.tokens[self.held..]);
        batch.ask(job);
        true
    }

    /// Leaves, if it only came to be cancelled.
    fn may_leave(&mut self, batch: &mut Batch, session: u64) {
        if self.turn.as_ref().is_some_and(|turn| turn.answer == 0)
            && let Some(job) = batch.withdraw(session)
        {
            assert!(!job.wants_logits());
            self.job = Some(job);
            self.turn = None;
        }
    }

    /// Takes what a pass had for it.
    fn hear(&mut self, batch: &mut Batch, job: Job, executor: &mut TinyExecutor) {
        assert_eq!(job.failure, None);
        self.held += job.count;
        let done = job.wants_logits().then(|| job.logits.clone());
        let session = job.session;
        self.job = Some(job);
        let (Some(logits), Some(turn)) = (done, &self.turn) else { return };
        let token = likeliest(&logits);
        self.logits.push(logits);
        if self.logits.len() >= turn.answer {
            batch.heard(session);
            self.check(executor);
            (self.turn, self.logits) = (None, vec![]);
        } else {
            self.tokens.push(token);
        }
    }

    /// Its logits are those of its tokens in a cache and passes of their own.
    #[track_caller]
    fn check(&self, executor: &mut TinyExecutor) {
        let mut job = Job::new(0, executor.cache(CONTEXT));
        let first = self.held - (self.logits.len() - 1);
        let mut held = 0;
        for (logits, end) in self.logits.iter().zip(first..) {
            let mut batch = Batch::new(Instant::now());
            job.follow(held, &self.tokens[held..end]);
            batch.ask(job);
            let mut jobs = batch.pass();
            compute(executor, &mut jobs);
            job = jobs.remove(0);
            assert!(job.logits == *logits, "after {end} tokens");
            held = end;
        }
    }
}

fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(token, _)| token as u32)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whoever_joins_and_leaves_each_has_the_bits_it_has_alone(
        turns in prop::collection::vec(prop::collection::vec(turn(), 1..3), 2..9),
        late in prop::collection::vec(0..8u64, 1..40),
        micros in prop::collection::vec(10..50_000u64, 1..20),
    ) {
        let model = TinyModel::new("gemma3").context(CONTEXT as u32).sliding_window(48);
        let model = model.weights(TensorType::Q4K).weights_of("ffn_down", TensorType::Q6K);
        let [mut executor, mut alone] = [&model, &model].map(executor);
        let (mut batch, mut now) = (Batch::new(Instant::now()), Instant::now());
        let mut clients: BTreeMap<u64, Client> = (0..)
            .zip(turns)
            .map(|(i, turns)| (i, Client::new(i, executor.cache(CONTEXT), turns)))
            .collect();
        for pass in 0.. {
            let late = late.get(pass);
            let mut more = false;
            for (session, client) in &mut clients {
                more |= late == Some(session) || client.ask(&mut batch, pass);
                client.may_leave(&mut batch, *session);
            }
            if !more {
                break;
            }
            prop_assert!(pass < 10_000, "nothing comes to an end");
            if let Next::Wait(time) = batch.next(now) {
                now += time;
            }
            let mut jobs = batch.pass();
            if jobs.is_empty() {
                continue;
            }
            compute(&mut executor, &mut jobs);
            let time = Duration::from_micros(micros[pass % micros.len()]);
            now += time;
            batch.ran(&jobs, time, now);
            for job in jobs {
                let client = clients.get_mut(&job.session).expect("one of them asked");
                client.hear(&mut batch, job, &mut alone);
            }
        }
    }
}

#[test]
fn whose_pass_fails_fails_alone_and_can_go_on() {
    let mut executor = executor(&TinyModel::new("llama"));
    let mut batch = Batch::new(Instant::now());
    let ask = |batch: &mut Batch, executor: &TinyExecutor, session: u64, tokens: &[u32]| {
        let mut job = Job::new(session, executor.cache(64));
        job.follow(0, tokens);
        batch.ask(job);
    };
    ask(&mut batch, &executor, 0, &[7]);
    let alone = {
        let mut jobs = batch.pass();
        compute(&mut executor, &mut jobs);
        jobs.remove(0).logits.clone()
    };
    ask(&mut batch, &executor, 1, &[7]);
    ask(&mut batch, &executor, 2, &[u32::MAX]);
    ask(&mut batch, &executor, 3, &[7]);
    let mut jobs = batch.pass();
    compute(&mut executor, &mut jobs);
    for job in [&jobs[0], &jobs[2]] {
        assert!(job.failure.is_none() && job.logits == alone);
    }
    let failure = jobs[1].failure.take();
    assert!(matches!(failure, Some(GenerateError::Pass { .. })), "{failure:?}");

    let mut job = jobs.remove(1);
    job.follow(0, &[7]);
    batch.ask(job);
    let mut jobs = batch.pass();
    compute(&mut executor, &mut jobs);
    assert!(jobs[0].failure.is_none() && jobs[0].logits == alone);
}

fn tiny() -> Model {
    Tiny::new(&TinyModel::new("llama").builder()).load()
}

fn on_cpu(model: &Model) -> &CpuModel {
    match model.runner() {
        Runner::Cpu(model) => model,
        #[cfg(feature = "cuda")]
        other => panic!("{other:?}"),
    }
}

/// Lets others run until so many sessions wait for a pass, or for the end of one.
fn until_asked(model: &CpuModel, sessions: usize) {
    while lock(&model.shared).batch.len() < sessions {
        thread::yield_now();
    }
}

#[test]
fn who_is_cancelled_while_others_compute_has_nothing_computed() {
    let model = tiny();
    let cpu = on_cpu(&model);
    let cancel = CancelToken::new();
    let (first, second) = thread::scope(|scope| {
        let held = lock(&cpu.executor);
        let run = |tokens, cancel: CancelToken| {
            let mut session = model.session();
            let done = session.generate(&prompt(tokens, 1), &greedy(1), &cancel, &mut |_| {});
            (done.unwrap().finish, session.tokens().len())
        };
        let first = scope.spawn(move || run(5, CancelToken::new()));
        while !cpu.is_busy() {
            thread::yield_now();
        }
        let token = cancel.clone();
        let second = scope.spawn(move || run(50, token));
        until_asked(cpu, 1);
        cancel.cancel();
        drop(held);
        (first.join().unwrap(), second.join().unwrap())
    });
    assert_eq!(first, (FinishReason::Length, 5));
    assert_eq!(second, (FinishReason::Cancelled, 0));
}

#[test]
fn who_comes_while_a_pass_runs_is_in_the_next_one_with_all_others() {
    let model = tiny();
    let cpu = on_cpu(&model);
    let answer = |seed: u32| {
        let mut text = String::new();
        let mut session = model.session();
        let prompt = prompt(1 + seed as usize * 9, seed);
        let mut say = |chunk: crate::Chunk| text.push_str(&chunk.text);
        session.generate(&prompt, &greedy(20), &CancelToken::new(), &mut say).unwrap();
        text
    };
    let alone: Vec<_> = (0..8).map(answer).collect();
    let together: Vec<_> = thread::scope(|scope| {
        let held = lock(&cpu.executor);
        let answer = &answer;
        let threads: Vec<_> = (0..8).map(|seed| scope.spawn(move || answer(seed))).collect();
        // One of them waits for the executor.
        until_asked(cpu, 7);
        drop(held);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(together, alone);
}
