//! Prints how fast models load, prefill and decode: `make bench`, or
//! `cargo bench --bench throughput -- [--gpu graph|persistent] [--threads N] [--rounds N]
//! [MODEL.gguf ...]`. Without `--gpu` on the CPU.
//!
//! Without models, the two that `make models` fetches. Each figure is the best of several rounds:
//! other work on the machine only ever makes a round slower. The second table has the tokens of all
//! sessions together that generate at a time; its columns are measured in turn, round by round. The third
//! has an answer to a JSON schema, as many tokens without one, and what finding the tokens that may come
//! next takes of that: for the first answer of a schema, whose masks nobody has found before.

#![expect(clippy::print_stdout, reason = "a printed table is its purpose")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use m40_testkit::models;
use m40llm::{
    CancelToken, Completion, Constraint, Decode, Device, Engine, EngineOptions, GenerateParams,
    GpuOptions, Grammar, Model, ModelOptions, SamplingParams, Session,
};
use serde_json::{Value, json};

const DECODE_TOKENS: u32 = 64;
const DEEP: usize = 1024;
/// Sessions at a time.
const SESSIONS: [usize; 5] = [1, 2, 4, 8, 16];

struct Arguments {
    threads: Option<usize>,
    device: Device,
    rounds: usize,
    models: Vec<PathBuf>,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut parsed = Arguments { threads: None, device: Device::Cpu, rounds: 3, models: vec![] };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--gpu" {
            let decode = match arguments.next().as_deref() {
                Some("graph") => Decode::Graph,
                Some("persistent") => Decode::Persistent,
                _ => return Err("--gpu takes graph or persistent".into()),
            };
            parsed.device = Device::Gpu(GpuOptions { decode, ..GpuOptions::default() });
            continue;
        }
        let mut number =
            || arguments.next().ok_or("a number is missing")?.parse().map_err(Box::from);
        match argument.as_str() {
            // cargo bench passes this to every benchmark.
            "--bench" => {}
            "--threads" => parsed.threads = Some(number().map_err(|e: Box<dyn Error>| e)?),
            "--rounds" => parsed.rounds = number().map_err(|e: Box<dyn Error>| e)?,
            path => parsed.models.push(path.into()),
        }
    }
    if parsed.models.is_empty() {
        parsed.models = vec![models::smollm2(), models::gemma3()];
    }
    Ok(parsed)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let (threads, device) = (arguments.threads, arguments.device);
    let engine = Engine::new(EngineOptions { threads, device, ..EngineOptions::default() })?;
    println!("{}; tokens/s, best of {} rounds", engine.device(), arguments.rounds);
    println!();
    println!(
        "| model | load + first token ms | prefill 128 | prefill 512 | decode at 0 | \
         decode at {DEEP} | peak RSS MB | beyond the map MB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for path in &arguments.models {
        println!("{}", row(&engine, path, arguments.rounds)?);
    }
    println!();
    println!("| model | {} |", SESSIONS.map(|n| format!("decode of {n}")).join(" | "));
    println!("|---{}|", "|---".repeat(SESSIONS.len()));
    for path in &arguments.models {
        println!("{}", row_of_sessions(&engine, path, arguments.rounds)?);
    }
    println!();
    println!(
        "| model | any text | with a JSON schema | mask mean us | 99 % below | mean of a step | \
         first grammar ms | another ms |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for path in &arguments.models {
        println!("{}", row_of_schema(&engine, path, arguments.rounds)?);
    }
    Ok(())
}

fn row_of_sessions(engine: &Engine, path: &Path, rounds: usize) -> Result<String, Box<dyn Error>> {
    let model = engine.load(path, &ModelOptions::default())?;
    let mut best = SESSIONS.map(|_| 0.0);
    for _ in 0..rounds {
        for (best, sessions) in best.iter_mut().zip(SESSIONS) {
            *best = f64::max(*best, rate_of_all(&model, sessions)?);
        }
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let cell = |rate| format!("{rate:.1} ({:.2})", rate / best[0]);
    Ok(format!("| {name} | {} |", best.map(cell).join(" | ")))
}

/// Tokens/s of so many sessions at a time, all together. Each has its first token when the time
/// begins.
fn rate_of_all(model: &Model, sessions: usize) -> Result<f64, Box<dyn Error>> {
    let ready = Barrier::new(sessions + 1);
    let (ended, time) = thread::scope(|scope| {
        let start = |number: usize| {
            let ready = &ready;
            scope.spawn(move || {
                let mut session = model.session();
                let prompt = tokens(model, 1, number);
                let first = generate(&mut session, &prompt, 1).map_err(|e| e.to_string());
                ready.wait();
                first?;
                generate(&mut session, &prompt, DECODE_TOKENS).map_err(|e| e.to_string())
            })
        };
        let threads: Vec<_> = (0..sessions).map(start).collect();
        ready.wait();
        let begun = Instant::now();
        let ended: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        (ended, begun.elapsed())
    });
    for session in ended {
        session.map_err(|_| "a session panicked")??;
    }
    Ok(per_second(sessions * DECODE_TOKENS as usize, time))
}

fn row(engine: &Engine, path: &Path, rounds: usize) -> Result<String, Box<dyn Error>> {
    // Resets the peak of the resident set to what is resident now.
    fs::write("/proc/self/clear_refs", "5")?;
    let start = Instant::now();
    let model = engine.load(path, &ModelOptions::default())?;
    generate(&mut model.session(), &tokens(&model, 1, 0), 1)?;
    let first = start.elapsed();

    let prefill = |n| {
        let mut prompts = 0..;
        best(rounds, || prefill_rate(&model, &tokens(&model, n, n + prompts.next().unwrap_or(0))))
    };
    let decode = |depth| best(rounds, || decode_rate(&model, depth));
    let rates = [prefill(128)?, prefill(512)?, decode(1)?, decode(DEEP)?];
    let [p128, p512, d0, deep] = rates.map(|rate| format!("{rate:.1}"));
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(format!(
        "| {name} | {:.0} | {p128} | {p512} | {d0} | {deep} | {:.0} | {:.0} |",
        first.as_secs_f64() * 1e3,
        status_mb("VmHWM:")?,
        status_mb("RssAnon:")?,
    ))
}

fn best(
    rounds: usize,
    mut rate: impl FnMut() -> Result<f64, Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    (0..rounds).try_fold(0.0, |best, _| rate().map(|rate| f64::max(best, rate)))
}

/// What answers to the benchmark's schema are: a list of people, long enough to measure.
fn schema() -> Value {
    let text = json!({"type": "string", "minLength": 3, "maxLength": 40});
    let person = json!({
        "type": "object",
        "properties": {
            "name": text,
            "email": {"type": "string", "pattern": "^[a-z]{3,12}@[a-z]{3,12}\\.(com|org)$"},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "role": {"enum": ["admin", "editor", "reader"]},
            "tags": {"type": "array", "items": text, "minItems": 2, "maxItems": 4},
        },
        "required": ["name", "email", "age", "role", "tags"],
        "additionalProperties": false,
    });
    json!({"type": "array", "items": person, "minItems": 3, "maxItems": 3})
}

fn row_of_schema(engine: &Engine, path: &Path, rounds: usize) -> Result<String, Box<dyn Error>> {
    let model = engine.load(path, &ModelOptions::default())?;
    let grammar = Grammar::JsonSchema(schema());
    let compile = || -> Result<_, Box<dyn Error>> {
        let begun = Instant::now();
        let constraint = model.grammar(&grammar)?;
        Ok((constraint, begun.elapsed()))
    };
    let (_, first) = compile()?;
    let prompt = model.tokenizer().encode_prompt("Three people of our team, as JSON: ");
    let (mut free, mut held, mut masks, mut again) = (0.0, 0.0, vec![], Duration::MAX);
    for _ in 0..rounds {
        let (constraint, time) = compile()?;
        again = again.min(time);
        let params = GenerateParams {
            sampling: SamplingParams::greedy(),
            max_tokens: Some(1000),
            logprobs: Some(0),
            constraint: Some(constraint),
            ..GenerateParams::default()
        };
        let mut ids = vec![];
        let done =
            model.session().generate(&prompt, &params, &CancelToken::default(), &mut |chunk| {
                ids.extend(chunk.logprobs.iter().map(|token| token.id));
            })?;
        let tokens = done.completion_tokens as usize - 1;
        held = f64::max(held, per_second(tokens, done.decode_time));
        let done = generate(&mut model.session(), &prompt, tokens as u32 + 1)?;
        free = f64::max(free, per_second(tokens, done.decode_time));
        masks.extend(mask_times(&model, &compile()?.0, &ids)?);
    }
    masks.sort_unstable();
    let mean = masks.iter().sum::<Duration>().as_secs_f64() / masks.len() as f64;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(format!(
        "| {name} | {free:.1} | {held:.1} ({:.2}) | {:.0} | {:.0} | {:.1} % | {:.0} | {:.1} |",
        held / free,
        mean * 1e6,
        masks[masks.len() * 99 / 100].as_secs_f64() * 1e6,
        mean * free * 100.0,
        first.as_secs_f64() * 1e3,
        again.as_secs_f64() * 1e3,
    ))
}

/// What each token of an answer costs beyond the model and the sampler.
fn mask_times(
    model: &Model,
    constraint: &Constraint,
    ids: &[u32],
) -> Result<Vec<Duration>, Box<dyn Error>> {
    let mut logits = vec![0.0; model.info().vocab as usize];
    let mut progress = constraint.start();
    let step = |id: &u32| {
        logits.fill(0.0);
        let begun = Instant::now();
        progress.mask(&mut logits)?;
        progress.accept(*id)?;
        Ok(begun.elapsed())
    };
    ids.iter().map(step).collect()
}

/// A prompt that no tokenizer made, another for each number: any tokens cost the same, but for those
/// that a session before has computed.
fn tokens(model: &Model, n: usize, number: usize) -> Vec<u32> {
    let vocab = model.info().vocab.min(40_000);
    (0..n as u32).map(|i| (i * 7919 + 131 * number as u32) % vocab).collect()
}

fn generate(
    session: &mut Session,
    prompt: &[u32],
    max_tokens: u32,
) -> Result<Completion, Box<dyn Error>> {
    let params = GenerateParams {
        sampling: SamplingParams::greedy(),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..GenerateParams::default()
    };
    Ok(session.generate(prompt, &params, &CancelToken::default(), &mut |_| {})?)
}

fn prefill_rate(model: &Model, prompt: &[u32]) -> Result<f64, Box<dyn Error>> {
    let done = generate(&mut model.session(), prompt, 1)?;
    Ok(per_second(prompt.len(), done.prompt_time))
}

fn decode_rate(model: &Model, depth: usize) -> Result<f64, Box<dyn Error>> {
    let done = generate(&mut model.session(), &tokens(model, depth, 0), DECODE_TOKENS + 1)?;
    Ok(per_second(DECODE_TOKENS as usize, done.decode_time))
}

fn per_second(n: usize, time: Duration) -> f64 {
    n as f64 / time.as_secs_f64()
}

/// A size of `/proc/self/status`.
fn status_mb(field: &str) -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).ok_or("no such field")?;
    let kib: f64 = line.split_whitespace().next().ok_or("no figure")?.parse()?;
    Ok(kib * 1024.0 / 1e6)
}
