//! The real models on a device: what they say is what the oracle of the CPU says, however passes
//! are launched and whoever else is in them.
//!
//! The device's own tokens are fed to the oracle. A step at which both have the same past and choose
//! alike is followed by one at which both have the same past, so if they never part here they would
//! not have parted with each choosing for itself.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use m40_cuda::{Arena, Device};
use m40_gguf::Gguf;
use m40_gpu::Sequence;
use m40_gpu::executor::{Executor, ExecutorOptions, Launches, PassError, Plan, Row};
use m40_gpu::ops::PAGE_TOKENS;
use m40_gpu::weights::Loader;
use m40_program::{BuildOptions, Program, build};
use m40_testkit::models;
use m40_tokenizer::{Special, Tokenizer};
use m40llm::{
    CancelToken, Decode, Engine, FinishReason, GenerateError, GenerateParams, GpuOptions,
    LoadError, Model, ModelOptions, Numerics, SamplingParams,
};

use super::sessions::PROMPT;
use super::{gpu, say};

const CONTEXT: u32 = 1024;
const TOKENS: usize = 256;

/// Sequences of a batch.
const BATCH: usize = 8;

/// How far the oracle may prefer another token than the device chose.
const DECIDED: f32 = 0.01;

/// How far logits may be apart from the oracle's on average.
const MEAN_MAX: f64 = 0.01;

pub(super) const TEXT: &str = "The lighthouse keeper wrote in his diary every evening. Today the sea was calm, \
    and three ships passed before noon. The first of them";

/// A model file, and a prompt for it.
struct Real {
    name: String,
    gguf: Arc<Gguf<Vec<u8>>>,
    program: Arc<Program>,
    prompt: Vec<u32>,
    tokenizer: Tokenizer,
}

impl Real {
    fn new(path: &Path) -> Self {
        let gguf =
            Gguf::parse(std::fs::read(path).expect("the file is there")).expect("a valid file");
        let program =
            build(&gguf, BuildOptions { context: Some(CONTEXT), ..BuildOptions::default() })
                .expect("a known architecture");
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a known vocabulary");
        let prompt = tokenizer.encode_prompt(TEXT);
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self { name, gguf: gguf.into(), program: program.into(), prompt, tokenizer }
    }

    /// On the device, with room for a batch of whole contexts.
    fn on(&self, device: &Device, arena: &Arena, launches: Launches) -> Executor {
        let options = ExecutorOptions { context: CONTEXT, sequences: BATCH as u32, launches };
        let multiprocessors = device.info().multiprocessors;
        let plan = Plan::new(Arc::clone(&self.program), options, multiprocessors);
        let plan = plan.expect("ops of the card");
        let kv_bytes = plan.kv_bytes(CONTEXT as usize) * BATCH as u64;
        let mut loader = Loader::new(device, 4).expect("pinned memory");
        let on = &mut |_| ControlFlow::Continue(());
        Executor::load(
            plan,
            &self.gguf,
            arena,
            kv_bytes,
            &mut loader,
            &mut m40llm::kernel_builder(),
            on,
        )
        .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The oracle's logits after each token from `first` on.
    fn oracle(&self, tokens: &[u32], first: usize) -> Vec<Vec<f32>> {
        // So that logits of a large vocabulary never take much memory twice.
        const ROWS: usize = 64;
        let options = m40_cpu::ExecutorOptions { numerics: Numerics::Oracle, ..Default::default() };
        let (program, gguf) = (Arc::clone(&self.program), Arc::clone(&self.gguf));
        let oracle = m40_cpu::Executor::new(program, gguf, options);
        let mut oracle = oracle.expect("a file of this program");
        let mut cache = oracle.cache(CONTEXT as usize);
        let mut all = vec![];
        for (chunk, start) in tokens.chunks(ROWS).zip((0..).step_by(ROWS)) {
            let row = |(position, &token)| {
                let logits = position >= first;
                m40_cpu::Row { token, position, cache: 0, segment: 0, logits }
            };
            let rows: Vec<_> = (start..).zip(chunk).map(row).collect();
            let wanted = rows.iter().filter(|row| row.logits).count();
            let logits = oracle.forward(&rows, &mut [&mut cache]);
            all.extend(logits.chunks_exact(self.vocab()).take(wanted).map(<[f32]>::to_vec));
        }
        all
    }

    fn vocab(&self) -> usize {
        self.program.description.vocab
    }
}

fn rows(tokens: &[u32], first: usize, logits: bool) -> Vec<Row> {
    let row = |(position, &token)| Row { token, position, sequence: 0, logits };
    (first..).zip(tokens).map(row).collect()
}

#[track_caller]
fn ran<T>(pass: Result<T, PassError>) -> T {
    pass.unwrap_or_else(|error| panic!("{error}"))
}

/// The likeliest tokens after a prompt, each chosen on the device.
fn greedy(executor: &mut Executor, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut sequence = executor.begin().expect("a free place");
    let (last, before) = prompt.split_last().expect("some tokens");
    ran(executor.forward(&rows(before, 0, false), &mut [&mut sequence]));
    let mut next = *last;
    let mut chosen = vec![];
    for position in before.len()..before.len() + tokens {
        let row = Row { token: next, position, sequence: 0, logits: false };
        let found = ran(executor.choose(&[row], &mut [&mut sequence], 1));
        assert!(found[0].probability > 0.0 && found[0].probability <= 1.0, "{found:?}");
        next = found[0].token;
        chosen.push(next);
    }
    chosen
}

/// The logits after the last token of the prompt and after each that follows.
fn forced(executor: &mut Executor, prompt: &[u32], tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut sequence = executor.begin().expect("a free place");
    let (last, before) = prompt.split_last().expect("some tokens");
    ran(executor.forward(&rows(before, 0, false), &mut [&mut sequence]));
    let fed = [&[*last], tokens].concat();
    step_by_step(executor, &mut sequence, &fed)
}

/// The logits after each token, one to a pass.
fn step_by_step(executor: &mut Executor, sequence: &mut Sequence, tokens: &[u32]) -> Vec<Vec<f32>> {
    let logits = |token: &u32| {
        let rows = rows(&[*token], sequence.len(), true);
        ran(executor.forward(&rows, &mut [&mut *sequence])).to_vec()
    };
    tokens.iter().map(logits).collect()
}

fn largest(logits: &[f32]) -> u32 {
    let largest = (0..).zip(logits).reduce(|a, b| if b.1 > a.1 { b } else { a });
    largest.expect("some logits").0
}

/// Says how far logits are from the oracle's, and asserts that it is not far.
#[track_caller]
fn check_logits(what: &str, found: &[Vec<f32>], oracle: &[Vec<f32>]) {
    assert_eq!(found.len(), oracle.len(), "{what}");
    let pairs = found.iter().flatten().zip(oracle.iter().flatten());
    let (mut most, mut sum, mut count) = (0.0f64, 0.0, 0u64);
    for (a, b) in pairs {
        let apart = f64::from((a - b).abs());
        // Also where one of them is not a number.
        assert!(apart.is_finite(), "{what}: {a} and {b}");
        most = most.max(apart);
        sum += apart;
        count += 1;
    }
    let mean = sum / count as f64;
    say(&format!("{what}: {count} logits are {mean:.6} from the oracle's, {most:.5} at most"));
    assert!(mean < MEAN_MAX, "{what}: {mean}");
}

#[track_caller]
fn check_same_bits(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
        let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
        let first = found.iter().zip(expected).position(differ);
        assert_eq!((first, found.len()), (None, expected.len()), "{what}, step {step}");
    }
}

fn check_model(path: &Path) {
    let Some(gpu) = gpu() else { return };
    let real = Real::new(path);
    let arena = Arena::new(&gpu.device, 2 << 30).expect("2 GiB");
    let name = &real.name;

    let mut launched = real.on(&gpu.device, &arena, Launches::Recorded);
    let begun = Instant::now();
    let tokens = greedy(&mut launched, &real.prompt, TOKENS);
    let rate = TOKENS as f64 / begun.elapsed().as_secs_f64();
    say(&format!("{name}: {rate:.0} tokens/s, a token to a call, a launch to an op"));
    say(&format!("{name}: {:?}", real.tokenizer.decode(&tokens[..40], false)));
    let (_, fed) = tokens.split_last().expect("some tokens");
    let logits = forced(&mut launched, &real.prompt, fed);
    for (step, (logits, token)) in logits.iter().zip(&tokens).enumerate() {
        assert_eq!(largest(logits), *token, "{name}: not the largest logit at step {step}");
    }

    let all = [&real.prompt, fed].concat();
    let oracle = real.oracle(&all, real.prompt.len() - 1);
    let mut parted = 0;
    for (step, (logits, token)) in oracle.iter().zip(&tokens).enumerate() {
        let best = largest(logits);
        let lead = logits[best as usize] - logits[*token as usize];
        assert!(lead < DECIDED, "{name}: {best} leads {token} by {lead} at step {step}");
        parted += usize::from(best != *token);
    }
    say(&format!("{name}: {parted} of {TOKENS} tokens are not the oracle's, all undecided"));
    check_logits(name, &logits, &oracle);

    let mut whole = real.on(&gpu.device, &arena, Launches::Whole);
    let begun = Instant::now();
    assert_eq!(greedy(&mut whole, &real.prompt, TOKENS), tokens, "{name}: one launch a pass");
    let rate = TOKENS as f64 / begun.elapsed().as_secs_f64();
    say(&format!("{name}: {rate:.0} tokens/s, a token to a call, one launch"));
    let bits = forced(&mut whole, &real.prompt, fed);
    check_same_bits(&format!("{name}: one launch a pass"), &bits, &logits);
    check_many_passes(&real, &mut whole, &tokens);
    check_many_passes(&real, &mut launched, &tokens);
    drop(whole);

    check_prompts(&real, &mut launched);
    drop(launched);
    for launches in [Launches::Recorded, Launches::Whole] {
        check_batch(&real, &mut real.on(&gpu.device, &arena, launches));
    }
    assert_eq!(arena.usage().free, arena.usage().capacity, "{name}: memory is left behind");
}

/// Passes that feed themselves choose what single ones do.
fn check_many_passes(real: &Real, executor: &mut Executor, tokens: &[u32]) {
    let mut sequence = executor.begin().expect("a free place");
    let (last, before) = real.prompt.split_last().expect("some tokens");
    ran(executor.forward(&rows(before, 0, false), &mut [&mut sequence]));
    let row = Row { token: *last, position: before.len(), sequence: 0, logits: false };
    let begun = Instant::now();
    let chosen = ran(executor.choose(&[row], &mut [&mut sequence], TOKENS as u32));
    let rate = TOKENS as f64 / begun.elapsed().as_secs_f64();
    say(&format!("{}: {rate:.0} tokens/s, {TOKENS} tokens to a call", real.name));
    let chosen: Vec<_> = chosen.iter().map(|chosen| chosen.token).collect();
    assert_eq!(chosen, tokens[..TOKENS]);
    assert_eq!(sequence.len(), before.len() + TOKENS);
}

/// A prompt in one call, one in several, and one a token at a time have logits as the oracle's.
fn check_prompts(real: &Real, executor: &mut Executor) {
    let long: Vec<u32> = real.prompt.iter().copied().cycle().take(700).collect();
    let oracle = real.oracle(&long, long.len() - 1);
    for call in [long.len(), 300, 1] {
        let mut sequence = executor.begin().expect("a free place");
        let mut logits = vec![];
        let begun = Instant::now();
        for part in long.chunks(call) {
            let mut rows = rows(part, sequence.len(), false);
            rows.last_mut().expect("some rows").logits = sequence.len() + part.len() == long.len();
            logits = ran(executor.forward(&rows, &mut [&mut sequence])).to_vec();
        }
        let rate = long.len() as f64 / begun.elapsed().as_secs_f64();
        let name = &real.name;
        say(&format!("{name}: a prompt, {call} tokens to a call: {rate:.0} tokens/s"));
        check_logits(&format!("{name}: prompt of {call} to a call"), &[logits], &oracle);
    }
}

/// Eight sequences of different tokens have the same logits together as each alone.
fn check_batch(real: &Real, executor: &mut Executor) {
    const STEPS: usize = 40;
    let tokens = |number: usize| -> Vec<u32> {
        real.prompt.iter().copied().cycle().skip(5 * number).take(STEPS).collect()
    };
    let alone: Vec<_> = (0..BATCH)
        .map(|number| {
            let mut sequence = executor.begin().expect("a free place");
            step_by_step(executor, &mut sequence, &tokens(number))
        })
        .collect();
    let mut sequences: Vec<_> =
        (0..BATCH).map(|_| executor.begin().expect("a free place")).collect();
    let mut sequences: Vec<_> = sequences.iter_mut().collect();
    let mut together = vec![vec![]; BATCH];
    for step in 0..STEPS {
        let row = |sequence| Row {
            token: tokens(sequence)[step],
            position: step,
            sequence,
            logits: true,
        };
        let rows: Vec<_> = (0..BATCH).map(row).collect();
        let logits = ran(executor.forward(&rows, &mut sequences));
        for (together, logits) in together.iter_mut().zip(logits.chunks_exact(real.vocab())) {
            together.push(logits.to_vec());
        }
    }
    for (number, (together, alone)) in together.iter().zip(&alone).enumerate() {
        check_same_bits(&format!("{}: row {number} of {BATCH}", real.name), together, alone);
    }
}

#[test]
fn smollm2_says_what_the_oracle_says() {
    check_model(&models::smollm2());
}

#[test]
fn gemma3_says_what_the_oracle_says() {
    check_model(&models::gemma3());
}

pub(super) fn params(max_tokens: u32) -> GenerateParams {
    GenerateParams {
        sampling: SamplingParams::greedy(),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..GenerateParams::default()
    }
}

pub(super) fn generate(model: &Model, prompt: &[u32], params: &GenerateParams) -> String {
    let mut text = String::new();
    let on_chunk = &mut |chunk: m40llm::Chunk| text.push_str(&chunk.text);
    model
        .session()
        .generate(prompt, params, &CancelToken::new(), on_chunk)
        .expect("valid parameters");
    text
}

pub(super) fn engine(device: &Device, mib: u64, decode: Decode) -> Engine {
    let options = GpuOptions { vram_bytes: Some(mib << 20), decode };
    Engine::on_device(device.clone(), options, None).expect("memory for models")
}

#[test]
fn a_session_on_the_gpu_keeps_prefixes_and_can_be_cancelled() {
    let Some(gpu) = gpu() else { return };
    let options = ModelOptions { context: Some(CONTEXT), ..ModelOptions::default() };
    let load = |decode| {
        let engine = engine(&gpu.device, 1024, decode);
        assert!(engine.device().starts_with("cuda, "), "{}", engine.device());
        engine.load(&models::smollm2(), &options).unwrap()
    };
    let [model, persistent] = [Decode::Graph, Decode::Persistent].map(load);
    let prompt = model.tokenizer().encode_prompt(TEXT);
    let whole = generate(&model, &prompt, &params(64));
    say(&whole);
    assert_eq!(generate(&persistent, &prompt, &params(64)), whole);
    drop(persistent);

    // The host chooses where log-probabilities are wanted, and chooses the same.
    let told = GenerateParams { logprobs: Some(3), ..params(64) };
    assert_eq!(generate(&model, &prompt, &told), whole);
    let drawn = GenerateParams {
        sampling: SamplingParams { seed: Some(7), temperature: 0.8, ..SamplingParams::default() },
        ..params(64)
    };
    assert_eq!(generate(&model, &prompt, &drawn), generate(&model, &prompt, &drawn));

    let mut session = model.session();
    let mut first = String::new();
    let cancel = CancelToken::new();
    let mut on_chunk = |chunk: m40llm::Chunk| {
        first.push_str(&chunk.text);
        cancel.cancel();
    };
    let done = session.generate(&prompt, &params(64), &cancel, &mut on_chunk).unwrap();
    assert_eq!(done.finish, FinishReason::Cancelled);
    assert!(done.completion_tokens < 64 && whole.starts_with(&first), "{first:?}");
    assert_eq!(session.kv_bytes(), 0, "between answers it holds nothing");

    // What it has computed is used again, in whole pages.
    let held = session.tokens().to_vec();
    let more = model.tokenizer().encode(" The captain", Special::default());
    let turn = [held.clone(), more].concat();
    let mut text = String::new();
    let on_chunk = &mut |chunk: m40llm::Chunk| text.push_str(&chunk.text);
    let done = session.generate(&turn, &params(16), &CancelToken::new(), on_chunk).unwrap();
    assert_eq!(done.cached_tokens as usize, held.len() / PAGE_TOKENS * PAGE_TOKENS);
    assert_eq!(text, generate(&model, &turn, &params(16)));
}

#[test]
fn sessions_share_a_model_and_its_cache() {
    let Some(gpu) = gpu() else { return };
    let engine = engine(&gpu.device, 1024, Decode::Graph);
    let options = ModelOptions { context: Some(256), ..ModelOptions::default() };
    let model = engine.load(&models::smollm2(), &options).unwrap();
    let mut prompt = model.tokenizer().encode_prompt(TEXT);
    prompt.truncate(PROMPT);
    let alone = generate(&model, &prompt, &params(32));
    thread::scope(|scope| {
        let together: Vec<_> =
            (0..3).map(|_| scope.spawn(|| generate(&model, &prompt, &params(32)))).collect();
        for thread in together {
            assert_eq!(thread.join().unwrap(), alone);
        }
    });

    // What a prompt needs beyond the whole cache is refused.
    let long: Vec<u32> = prompt.iter().copied().cycle().take(256).collect();
    let refused = model.session().generate(&long, &params(1), &CancelToken::new(), &mut |_| {});
    assert!(matches!(refused, Err(GenerateError::PromptTooLong { .. })), "{refused:?}");
    assert_eq!(generate(&model, &prompt, &params(32)), alone);
}

#[test]
fn two_models_generate_at_once_however_they_are_launched() {
    let Some(gpu) = gpu() else { return };
    for decode in [Decode::Graph, Decode::Persistent] {
        let engine = engine(&gpu.device, 1024, decode);
        let options = ModelOptions { context: Some(256), ..ModelOptions::default() };
        let two = [(); 2].map(|()| engine.load(&models::smollm2(), &options).unwrap());
        let prompt = two[0].tokenizer().encode_prompt(TEXT);
        let alone = generate(&two[0], &prompt, &params(100));
        thread::scope(|scope| {
            let both =
                two.each_ref().map(|model| scope.spawn(|| generate(model, &prompt, &params(100))));
            for thread in both {
                assert_eq!(thread.join().unwrap(), alone, "{decode}");
            }
        });
    }
}

#[test]
fn a_model_that_does_not_fit_beside_others_says_what_would() {
    let Some(gpu) = gpu() else { return };
    let engine = engine(&gpu.device, 250, Decode::Graph);
    let with = |context| {
        let options = ModelOptions { context: Some(context), ..ModelOptions::default() };
        engine.load(&models::smollm2(), &options)
    };
    let first = with(512).unwrap();
    let refused = with(8192).unwrap_err();
    say(&refused.to_string());
    let LoadError::NoRoom { memory, .. } = refused else { panic!("{refused}") };
    assert!(!memory.fits() && memory.free < memory.capacity && memory.capacity == 250 << 20);
    // It is not loaded to be looked at.
    let info = engine.inspect(&models::smollm2(), &ModelOptions::default()).unwrap();
    assert_eq!(info.context, 8192);
    drop(first);
    let alone = memory.context_in(memory.capacity).expect("some context fits an empty card");
    let second = with(alone).unwrap();
    assert_eq!(second.info().context, alone);
}
