//! What HTTP costs beside the engine alone: the same answers of a tiny model, from the engine and as
//! streamed chat completions of a daemon.
//!
//!     cargo bench --bench http -- [TOKENS]
//!
//! All answers have as many tokens, and greedy ones of one prompt, so both compute the same, on one thread:
//! as with a GPU the other cores are for HTTP. The time to the first byte is that of a request alone, less
//! the time to the first token that the daemon says the engine took. The best of five rounds of each counts.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use m40_testkit::daemon::{Builder, Daemon};
use m40_testkit::gguf::TinyModel;
use m40llm::{
    CancelToken, Engine, EngineOptions, GenerateParams, Model, ModelOptions, SamplingParams,
    TemplateInput,
};
use serde_json::{Value, json};

const ROUNDS: usize = 5;

/// How often clients look for more of their answers, and what ends those.
const LOOK: Duration = Duration::from_millis(2);
const DONE: &[u8] = b"data: [DONE]";
const CONTEXT: u32 = 4096;
/// Requests whose first bytes are measured.
const FIRST: usize = 50;

fn main() {
    // Cargo adds a flag of its own.
    let mut arguments = std::env::args().skip(1).filter(|argument| !argument.starts_with("--"));
    let tokens = arguments.next().map_or(512, |tokens| tokens.parse().expect("a number of tokens"));
    let sections = format!("[engine]\nthreads = 1\n[models]\ncontext_tokens_max = {CONTEXT}");
    let builder = Builder::new(env!("CARGO_BIN_EXE_m40d")).config(&sections);
    let file = builder.dir().join("tiny.gguf");
    let tiny = TinyModel::new("llama").context(CONTEXT);
    std::fs::write(&file, tiny.build()).expect("a folder to write to");

    println!("a tiny model, answers of {tokens} tokens");
    println!(
        "{:>8} {:>14} {:>14} {:>22}",
        "streams", "engine tok/s", "HTTP tok/s", "HTTP us a token more"
    );
    let engine = Engine::new(EngineOptions { threads: Some(1), ..EngineOptions::default() });
    let engine = engine.expect("the CPU is always there");
    let options = ModelOptions { context: Some(CONTEXT), ..ModelOptions::default() };
    let model = engine.load(&file, &options).expect("a model that was just made");
    let daemon = builder.start();
    let load =
        daemon.ctl(env!("CARGO_BIN_EXE_m40ctl"), &["load", &file.to_string_lossy()]).output();
    assert!(load.expect("m40ctl must run").status.success());
    for streams in [1, 32] {
        // As many as the daemon lets run.
        let at_a_time = streams.min(engine.sessions_side_by_side());
        // In turns, as a machine is not always as fast.
        let rounds = (0..ROUNDS).map(|_| {
            let alone = timed(streams, at_a_time, || generate(&model, tokens));
            (alone, served(&daemon, streams, tokens))
        });
        let (alone, http): (Vec<_>, Vec<_>) = rounds.unzip();
        let [alone, http] = [alone, http].map(|times| times.into_iter().min().unwrap_or_default());
        let all = f64::from(streams * tokens);
        let more_us = (http.as_secs_f64() - alone.as_secs_f64()) / all * 1e6;
        let rate = |time: Duration| all / time.as_secs_f64();
        println!("{streams:>8} {:>14.0} {:>14.0} {more_us:>22.1}", rate(alone), rate(http));
    }
    let mut first: Vec<f64> = (0..FIRST).map(|_| first_byte_ms(&daemon)).collect();
    first.sort_by(f64::total_cmp);
    println!("first byte {:.2} ms after the first token (median of {FIRST})", first[FIRST / 2]);
}

fn messages() -> Value {
    json!([{"role": "user", "content": "hello"}])
}

fn generate(model: &Model, tokens: u32) {
    let text = model.chat_template().render(&TemplateInput::new(&messages()));
    let prompt = model.tokenizer().encode_prompt(&text.expect("a template that renders"));
    let params = GenerateParams {
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        max_tokens: Some(tokens),
        ignore_eos: true,
        ..GenerateParams::default()
    };
    let done = model.session().generate(&prompt, &params, &CancelToken::new(), &mut |_| {});
    assert_eq!(done.expect("an answer").completion_tokens, tokens);
}

fn request(tokens: u32) -> Value {
    json!({"messages": messages(), "max_tokens": tokens, "temperature": 0, "ignore_eos": true, "stream": true})
}

/// How long so many answers take at once. One thread looks at all of them now and then: clients are on other
/// machines, and what they do for a token is not the daemon's.
fn served(daemon: &Daemon, streams: u32, tokens: u32) -> Duration {
    let body = request(tokens).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let started = Instant::now();
    let connect = |_| {
        let mut stream = TcpStream::connect(daemon.http()).expect("the daemon listens");
        stream.write_all(request.as_bytes()).expect("the daemon reads");
        stream.set_nonblocking(true).expect("a socket can do that");
        (stream, vec![])
    };
    let mut open: Vec<(TcpStream, Vec<u8>)> = (0..streams).map(connect).collect();
    while !open.is_empty() {
        #[expect(
            clippy::disallowed_methods,
            reason = "clients that are woken for each token cost more than it"
        )]
        thread::sleep(LOOK);
        open.retain_mut(|(stream, answer)| match stream.read_to_end(answer) {
            Ok(_) => {
                let whole = answer.windows(DONE.len()).any(|part| part == DONE);
                assert!(whole, "{}", String::from_utf8_lossy(answer));
                false
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
                true
            }
        });
    }
    started.elapsed()
}

/// Milliseconds to the first piece of an answer, beyond those to its first token.
fn first_byte_ms(daemon: &Daemon) -> f64 {
    let started = Instant::now();
    let mut stream = daemon.post_stream("/v1/chat/completions", &request(2));
    // The first says who speaks.
    let events = [stream.event(), stream.event()];
    let took = started.elapsed();
    assert!(events[1].as_ref().is_some_and(|event| event.contains("content")), "{events:?}");
    let rest = stream.rest();
    let last = rest.lines().find(|line| line.contains("timings")).expect("a chunk with the times");
    let last: Value = serde_json::from_str(last.trim_start_matches("data: ")).expect("JSON");
    took.as_secs_f64() * 1e3 - last["timings"]["prompt_ms"].as_f64().expect("milliseconds")
}

/// How long so many jobs take, so many at a time.
fn timed(jobs: u32, at_a_time: u32, job: impl Fn() + Sync) -> Duration {
    let begun = AtomicU32::new(0);
    let work = || {
        while begun.fetch_add(1, Ordering::Relaxed) < jobs {
            job();
        }
    };
    let started = Instant::now();
    thread::scope(|scope| (0..at_a_time).for_each(|_| drop(scope.spawn(work))));
    started.elapsed()
}
