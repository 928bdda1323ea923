//! Prints how fast models load, prefill and decode: `make bench`, or
//! `cargo bench --bench throughput -- [--gpu graph|persistent] [--threads N] [--rounds N]
//! [MODEL.gguf ...]`. Without `--gpu` on the CPU.
//!
//! Without models, the two that `make models` fetches. Each figure is the best of several rounds:
//! other work on the machine only ever makes a round slower. The second table has the tokens of all
//! sessions together that generate at a time; its columns are measured in turn, round by round.

#![expect(clippy::print_stdout, reason = "a printed table is its purpose")]

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use m40_testkit::models;
use m40llm::{
    CancelToken, Completion, Decode, Device, Engine, EngineOptions, GenerateParams, GpuOptions,
    Model, ModelOptions, SamplingParams, Session,
};

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
