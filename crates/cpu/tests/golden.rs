//! Real models against two outside opinions, for eight prompts and 48 greedy tokens each:
//!
//! * `tests/data/golden/*.f32.json`: the same model in plain f32 arithmetic (numpy; its recipe lies
//!   beside it). The oracle must agree closely, and the fast path about as closely as 8-bit
//!   activations allow.
//! * `tests/data/golden/*.json`: llama.cpp, with its own rounding of activations.
//!
//! Every golden token is fed whatever the model would have chosen, so that one near-tie does not
//! hide all that follows.
//!
//! Why the bounds of the fast path are what they are: any rounding of activations to 8 bits moves
//! the log-probabilities of models this small by tenths. llama.cpp itself is, by the same measure,
//! 0.0575 (mean) and 0.464 (worst) away from plain arithmetic on SmolLM2, and 0.0779 and 0.839 on
//! Gemma 3; with flash attention on instead of off, or with tokens in one batch instead of one by
//! one, it departs from its own SmolLM2 golden by up to 0.41 and 0.37. So the bounds are on the
//! mean and the worst difference and on how decided a choice must be before another one counts as
//! wrong, each about 1.5 times what was measured when they were set; and one test compares our
//! distance from plain arithmetic with llama.cpp's.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]
#![expect(clippy::print_stderr, reason = "the distances found are worth seeing")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use m40_cpu::{Executor, ExecutorOptions, Isa, Numerics, Row};
use m40_gguf::Gguf;
use m40_program::{BuildOptions, build};
use m40_testkit::models;
use serde_json::Value;

/// Greedy tokens of every prompt.
const STEPS: usize = 48;

/// What an outside opinion says of one prompt and its greedy tokens.
struct Golden {
    prompt: Vec<u32>,
    ids: Vec<u32>,
    /// Log-probability of each of `ids`.
    logprobs: Vec<f32>,
    /// Of the first steps: id and log-probability, likeliest first.
    top: Vec<Vec<(u32, f32)>>,
}

impl Golden {
    /// Everything known of a step; the chosen token comes last.
    fn known(&self, step: usize) -> impl Iterator<Item = (u32, f32)> {
        let top = self.top.get(step).into_iter().flatten().copied();
        top.chain([(self.ids[step], self.logprobs[step])])
    }

    /// How far ahead of `other` the golden choice of a step was: as far as can be told from the five
    /// likeliest tokens of early steps, and from the mass left over later.
    fn lead(&self, step: usize, other: u32) -> f32 {
        let chosen = self.logprobs[step];
        match self.top.get(step) {
            Some(top) => {
                let last = top.last().map_or(f32::NEG_INFINITY, |(_, l)| *l);
                chosen - top.iter().find(|(id, _)| *id == other).map_or(last, |(_, l)| *l)
            }
            // Another token has at most the probability that the chosen one leaves.
            None => (chosen - (-chosen.exp_m1()).ln()).max(0.0),
        }
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn goldens(name: &str) -> Vec<Golden> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/golden");
    let text = std::fs::read_to_string(root.join(name)).unwrap();
    let file: Value = serde_json::from_str(&text).unwrap();
    let float = |v: &Value| v.as_f64().unwrap() as f32;
    let pair = |p: &Value| (p[0].as_u64().unwrap() as u32, float(&p[1]));
    let pairs = |step: &Value| step.as_array().unwrap().iter().map(pair).collect();
    let case = |case: &Value| Golden {
        prompt: ids(&case["prompt_ids"]),
        ids: ids(&case["ids"]),
        logprobs: case["chosen_logprob"].as_array().unwrap().iter().map(float).collect(),
        top: case["top5_logprobs_first8"].as_array().unwrap().iter().map(pairs).collect(),
    };
    file["greedy"].as_array().unwrap().iter().map(case).collect()
}

/// A real model and the two opinions on it.
struct Subject {
    plain: Vec<Golden>,
    llama_cpp: Vec<Golden>,
    path: PathBuf,
}

impl Subject {
    fn new(name: &str, path: PathBuf) -> Self {
        let plain = goldens(&format!("{name}.f32.json"));
        let llama_cpp = goldens(&format!("{name}.json"));
        for (a, b) in plain.iter().zip(&llama_cpp) {
            assert_eq!((&a.prompt, &a.ids), (&b.prompt, &b.ids), "both opinions are on one text");
        }
        Self { plain, llama_cpp, path }
    }

    fn executor(&self, numerics: Numerics) -> Executor<Vec<u8>> {
        let gguf = Gguf::parse(std::fs::read(&self.path).unwrap()).unwrap();
        let program = build(&gguf, BuildOptions::default()).unwrap();
        let options = ExecutorOptions { numerics, ..ExecutorOptions::default() };
        Executor::new(Arc::new(program), Arc::new(gguf), options).unwrap()
    }

    /// Computes the first `steps` tokens of the first `prompts` prompts.
    fn run(&self, numerics: Numerics, prompts: usize, steps: usize) -> Vec<Vec<Step>> {
        let mut executor = self.executor(numerics);
        let cases = self.plain.iter().zip(&self.llama_cpp).take(prompts);
        let run = cases.map(|(plain, llama_cpp)| {
            let tokens = [&plain.prompt, &plain.ids[..steps - 1]].concat();
            let logits = forward(&mut executor, &tokens, steps);
            let steps = logits.iter().enumerate().map(|(i, logits)| {
                let logprobs = logprobs(logits);
                let wanted = plain.known(i).chain(llama_cpp.known(i));
                let wanted = wanted.map(|(id, _)| (id, logprobs[id as usize])).collect();
                Step { best: best(&logprobs), logprobs: wanted }
            });
            steps.collect()
        });
        run.collect()
    }
}

/// What the executor computed at one step.
struct Step {
    best: u32,
    /// Of the tokens that an opinion names.
    logprobs: HashMap<u32, f32>,
}

/// Logits after each of the last `wanted` tokens, all computed in one pass.
fn forward(executor: &mut Executor<Vec<u8>>, tokens: &[u32], wanted: usize) -> Vec<Vec<f32>> {
    let mut cache = executor.cache(tokens.len());
    let row = |(position, &token): (usize, &u32)| {
        let logits = position + wanted >= tokens.len();
        Row { token, position, cache: 0, segment: 0, logits }
    };
    let rows: Vec<Row> = tokens.iter().enumerate().map(row).collect();
    let vocab = executor.program().description.vocab;
    let logits = executor.forward(&rows, &mut [&mut cache]);
    logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect()
}

fn logprobs(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    logits.iter().map(|l| l - max - sum.ln() as f32).collect()
}

fn best(logprobs: &[f32]) -> u32 {
    let (best, _) = (0u32..)
        .zip(logprobs)
        .fold((0, f32::NEG_INFINITY), |best, (id, l)| if *l > best.1 { (id, *l) } else { best });
    best
}

/// How far log-probabilities are from an opinion.
#[derive(Debug)]
struct Bounds {
    /// Mean over all tokens compared.
    mean: f32,
    /// Worst of all tokens compared.
    worst: f32,
    /// Golden choices that were at least this far ahead must be ours too.
    decided: f32,
}

#[track_caller]
fn check(run: &[Vec<Step>], golden: &[Golden], bounds: &Bounds) {
    let mut differences: Vec<f32> = vec![];
    let mut decided = 0.0f32;
    for (steps, golden) in run.iter().zip(golden) {
        for (i, step) in steps.iter().enumerate() {
            differences.extend(golden.known(i).map(|(id, g)| (step.logprobs[&id] - g).abs()));
            if step.best != golden.ids[i] {
                decided = decided.max(golden.lead(i, step.best));
            }
        }
    }
    assert!(differences.iter().all(|d| d.is_finite()), "some log-probabilities are not numbers");
    let mean = mean(&differences);
    let worst = differences.iter().copied().fold(0.0, f32::max);
    let found = Bounds { mean, worst, decided };
    eprintln!("{found:?} within {bounds:?}");
    assert!(
        mean <= bounds.mean && worst <= bounds.worst && decided <= bounds.decided,
        "{found:?} exceeds {bounds:?}"
    );
}

fn mean(differences: &[f32]) -> f32 {
    differences.iter().sum::<f32>() / differences.len() as f32
}

/// Mean distances from plain arithmetic, ours and llama.cpp's, over the tokens both opinions name.
fn distances(run: &[Vec<Step>], subject: &Subject) -> (f32, f32) {
    let (mut ours, mut theirs) = (vec![], vec![]);
    for ((steps, plain), other) in run.iter().zip(&subject.plain).zip(&subject.llama_cpp) {
        for (i, step) in steps.iter().enumerate() {
            let named: HashMap<u32, f32> = other.known(i).collect();
            for (id, plain) in plain.known(i) {
                if let Some(other) = named.get(&id) {
                    ours.push((step.logprobs[&id] - plain).abs());
                    theirs.push((other - plain).abs());
                }
            }
        }
    }
    (mean(&ours), mean(&theirs))
}

static SMOLLM2: LazyLock<Subject> =
    LazyLock::new(|| Subject::new("smollm2-135m-instruct-q4_1", models::smollm2()));
static GEMMA3: LazyLock<Subject> =
    LazyLock::new(|| Subject::new("gemma3-270m-q4_k_m", models::gemma3()));
static SMOLLM2_FAST: LazyLock<Vec<Vec<Step>>> =
    LazyLock::new(|| SMOLLM2.run(Numerics::Fast, usize::MAX, STEPS));
static GEMMA3_FAST: LazyLock<Vec<Vec<Step>>> =
    LazyLock::new(|| GEMMA3.run(Numerics::Fast, usize::MAX, STEPS));

const ORACLE: Bounds = Bounds { mean: 0.001, worst: 0.01, decided: 0.001 };

#[test]
fn smollm2_oracle_is_plain_arithmetic() {
    check(&SMOLLM2.run(Numerics::Oracle, 3, 8), &SMOLLM2.plain, &ORACLE);
}

#[test]
fn gemma3_oracle_is_plain_arithmetic() {
    check(&GEMMA3.run(Numerics::Oracle, 3, 8), &GEMMA3.plain, &ORACLE);
}

#[test]
fn smollm2_fast_path_is_near_plain_arithmetic() {
    // Activations are rounded to bytes: which of two near tokens wins hangs on the order of sums, and so on the
    // instruction set. In plain Rust those up to 0.03 ahead lost, with AVX2 up to 0.26, at the same mean.
    let decided = if Isa::detect() == Isa::Avx2 { 0.3 } else { 0.07 };
    let bounds = Bounds { mean: 0.085, worst: 0.84, decided };
    check(&SMOLLM2_FAST, &SMOLLM2.plain, &bounds);
}

#[test]
fn gemma3_fast_path_is_near_plain_arithmetic() {
    let bounds = Bounds { mean: 0.082, worst: 1.2, decided: 0.1 };
    check(&GEMMA3_FAST, &GEMMA3.plain, &bounds);
}

#[test]
fn smollm2_fast_path_is_near_llama_cpp() {
    let bounds = Bounds { mean: 0.095, worst: 0.68, decided: 0.33 };
    check(&SMOLLM2_FAST, &SMOLLM2.llama_cpp, &bounds);
}

#[test]
fn gemma3_fast_path_is_near_llama_cpp() {
    let bounds = Bounds { mean: 0.13, worst: 1.0, decided: 0.35 };
    check(&GEMMA3_FAST, &GEMMA3.llama_cpp, &bounds);
}

#[test]
fn fast_paths_are_no_further_from_plain_arithmetic_than_llama_cpp() {
    for (run, subject) in [(&SMOLLM2_FAST, &SMOLLM2), (&GEMMA3_FAST, &GEMMA3)] {
        let (ours, theirs) = distances(run, subject);
        eprintln!("{}: ours {ours}, llama.cpp's {theirs}", subject.path.display());
        assert!(ours <= 1.1 * theirs, "{}: {ours} and {theirs}", subject.path.display());
    }
}

#[test]
fn a_real_model_says_the_same_token_by_token_as_in_one_pass() {
    for subject in [&SMOLLM2, &GEMMA3] {
        let mut executor = subject.executor(Numerics::Fast);
        let golden = &subject.plain[0];
        let tokens = [&golden.prompt, &golden.ids[..8]].concat();
        let together = forward(&mut executor, &tokens, 9);
        let mut cache = executor.cache(tokens.len());
        for (position, &token) in tokens.iter().enumerate() {
            let row = Row { token, position, cache: 0, segment: 0, logits: true };
            let logits = executor.forward(&[row], &mut [&mut cache]);
            if let Some(i) = (position + 9).checked_sub(tokens.len()) {
                assert!(logits == together[i], "{} at {position}", subject.path.display());
            }
        }
    }
}
