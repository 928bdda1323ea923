//! Prints how running streams fare while a prompt is computed:
//! `cargo bench --bench latency -- [--gpu graph|persistent] [--streams N] [--prompt TOKENS]
//! [MODEL.gguf ...]`. Without `--gpu` on the CPU.
//!
//! Streams generate; when each is well under way, a prompt of another session is computed, and then
//! the model is loaded a second time and dropped. The mean time between two pieces of a stream's text is
//! told before and beside the prompt, and the longest one before and beside each of the two.

#![expect(clippy::print_stdout, reason = "a printed table is its purpose")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use m40_testkit::models;
use m40llm::{
    CancelToken, Decode, Device, Engine, EngineOptions, GenerateParams, GpuOptions, Model,
    ModelOptions, SamplingParams,
};

/// Pieces of each stream that are not measured, and pieces that are measured before the prompt.
const SETTLING: usize = 32;
const MEASURED: usize = 128;

struct Arguments {
    device: Device,
    streams: usize,
    prompt: usize,
    models: Vec<PathBuf>,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut parsed = Arguments { device: Device::Cpu, streams: 4, prompt: 2048, models: vec![] };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} takes a value"));
        match argument.as_str() {
            // cargo bench passes this to every benchmark.
            "--bench" => {}
            "--gpu" => {
                let decode = match value()?.as_str() {
                    "graph" => Decode::Graph,
                    "persistent" => Decode::Persistent,
                    _ => return Err("--gpu takes graph or persistent".into()),
                };
                parsed.device = Device::Gpu(GpuOptions { decode, ..GpuOptions::default() });
            }
            "--streams" => parsed.streams = value()?.parse()?,
            "--prompt" => parsed.prompt = value()?.parse()?,
            path => parsed.models.push(path.into()),
        }
    }
    if parsed.models.is_empty() {
        parsed.models = vec![models::smollm2()];
    }
    Ok(parsed)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let Arguments { device, streams, prompt, models } = &arguments;
    let engine = Engine::new(EngineOptions { device: *device, ..EngineOptions::default() })?;
    println!("{}; {streams} streams, a prompt of {prompt} tokens; ms", engine.device());
    println!();
    println!(
        "| model | prompt alone | beside streams | between pieces before | meanwhile | ratio | \
         longest before | meanwhile | beside a load | that took |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for path in models {
        println!("{}", row(&engine, path, *streams, *prompt)?);
    }
    Ok(())
}

/// What threads tell.
enum Event {
    /// A stream has said a piece of text.
    Piece(usize, Instant),
    /// What was beside the streams is done, or one has ended too early.
    End(Result<(), String>),
}

fn row(
    engine: &Engine,
    path: &Path,
    streams: usize,
    prompt: usize,
) -> Result<String, Box<dyn Error>> {
    let model = engine.load(path, &ModelOptions::default())?;
    let begun = Instant::now();
    generate(&model, &tokens(&model, prompt, 0), 1, &CancelToken::new(), &mut || {})?;
    let alone = begun.elapsed();

    let cancel = CancelToken::new();
    let (sender, events) = channel();
    let measured = thread::scope(|scope| {
        for stream in 0..streams {
            let (model, cancel, sender) = (&model, &cancel, sender.clone());
            scope.spawn(move || run_stream(model, stream, cancel, &sender));
        }
        let mut pieces = vec![vec![]; streams];
        let settled = until(&events, &mut pieces, |pieces| pieces.len() >= SETTLING);
        let from = Instant::now();
        let before = settled.and_then(|()| {
            until(&events, &mut pieces, |pieces| pieces.len() >= SETTLING + MEASURED)
        });
        let asked = Instant::now();
        let (beside, sender) = (&model, sender);
        let of_prompt = sender.clone();
        scope.spawn(move || {
            let tokens = tokens(beside, prompt, streams + 1);
            let done = generate(beside, &tokens, 1, &CancelToken::new(), &mut || {});
            // Nobody listens only after a failure.
            let _ = of_prompt.send(Event::End(done));
        });
        let done = before.and_then(|()| until(&events, &mut pieces, |_| false));
        let answered = Instant::now();
        scope.spawn(move || {
            let done = engine.load(path, &ModelOptions::default()).map(drop);
            let _ = sender.send(Event::End(done.map_err(|error| error.to_string())));
        });
        let done = done.and_then(|()| until(&events, &mut pieces, |_| false));
        let dropped = Instant::now();
        cancel.cancel();
        done.map(|()| {
            let windows = [(from, asked), (asked, answered), (answered, dropped)];
            (windows.map(|window| between(&pieces, window)), answered - asked, dropped - answered)
        })
    });
    let ([before, meanwhile, loading], beside, load) = measured?;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    Ok(format!(
        "| {name} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} |",
        ms(alone),
        ms(beside),
        ms(before.mean),
        ms(meanwhile.mean),
        ms(meanwhile.mean) / ms(before.mean),
        ms(before.longest),
        ms(meanwhile.longest),
        ms(loading.longest),
        ms(load),
    ))
}

fn run_stream(model: &Model, stream: usize, cancel: &CancelToken, events: &Sender<Event>) {
    let tell = |event| {
        // Nobody listens only after a failure.
        let _ = events.send(event);
    };
    let prompt = tokens(model, 16, stream);
    let done = generate(model, &prompt, u32::MAX, cancel, &mut || {
        tell(Event::Piece(stream, Instant::now()));
    });
    if !cancel.is_cancelled() {
        let ended = || "a stream ended before the prompt: a larger context is needed".to_owned();
        tell(Event::End(done.and_then(|()| Err(ended()))));
    }
}

/// Collects pieces until each stream has enough of them, or until the end.
fn until(
    events: &Receiver<Event>,
    pieces: &mut [Vec<Instant>],
    enough: impl Fn(&Vec<Instant>) -> bool,
) -> Result<(), String> {
    while !pieces.iter().all(&enough) {
        match events.recv() {
            Ok(Event::Piece(stream, at)) => pieces[stream].push(at),
            Ok(Event::End(done)) => return done,
            Err(_) => return Err("all streams have ended".into()),
        }
    }
    Ok(())
}

/// Times between pieces of a stream.
struct Between {
    mean: Duration,
    longest: Duration,
}

/// Of the pieces in a window, over all streams. Where a stream says nothing in it, the window is the
/// time between two of its pieces.
fn between(pieces: &[Vec<Instant>], (from, to): (Instant, Instant)) -> Between {
    let mut count = 0;
    let mut longest = Duration::ZERO;
    for pieces in pieces {
        let inside = pieces.iter().copied().filter(|at| (from..to).contains(at));
        let ends: Vec<_> = [from].into_iter().chain(inside).chain([to]).collect();
        count += (ends.len() - 2).max(1) as u32;
        let gaps = ends.windows(2).map(|pair| pair[1] - pair[0]);
        longest = longest.max(gaps.max().unwrap_or_default());
    }
    Between { mean: (to - from) * pieces.len() as u32 / count, longest }
}

/// Tokens that no tokenizer made, others for each number: any tokens cost the same.
fn tokens(model: &Model, count: usize, number: usize) -> Vec<u32> {
    let vocab = model.info().vocab.min(40_000);
    (0..count as u32).map(|i| (i * 7919 + 131 * number as u32) % vocab).collect()
}

fn generate(
    model: &Model,
    prompt: &[u32],
    max_tokens: u32,
    cancel: &CancelToken,
    on_piece: &mut dyn FnMut(),
) -> Result<(), String> {
    let params = GenerateParams {
        sampling: SamplingParams::greedy(),
        max_tokens: Some(max_tokens),
        ignore_eos: true,
        ..GenerateParams::default()
    };
    let done = model.session().generate(prompt, &params, cancel, &mut |_| on_piece());
    done.map(drop).map_err(|error| error.to_string())
}
