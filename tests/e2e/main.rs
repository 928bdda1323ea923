//! The real `m40d` and `m40ctl`, over real sockets.
//!
//! Every test has its own daemon in its own folder on its own port; see `m40_testkit::daemon`.

mod access;
mod activation;
mod anthropic;
mod bench;
mod card;
mod chat;
mod completion;
mod concurrency;
mod config;
mod doctor;
mod embeddings;
mod errors;
mod generate;
mod guard;
mod hostile;
mod lifecycle;
mod llamacpp;
mod logs;
mod manifests;
mod metrics;
mod models;
mod ollama;
mod openai;
mod openapi;
mod pulls;
mod real;
mod residency;
mod restarts;
mod sources;
mod stored;
mod terminal;
mod tls;
mod tools;
mod watchdog;

use std::path::{Path, PathBuf};
use std::process::Output;

use m40_testkit::daemon::{Builder, Daemon};
use m40_testkit::gguf::TinyModel;
use serde_json::Value;

const M40CTL: &str = env!("CARGO_BIN_EXE_m40ctl");

/// Tokens of context of [`endless`].
const ENDLESS_CONTEXT: u32 = 60_000;

/// A daemon that is not started yet.
fn builder() -> Builder {
    Builder::new(env!("CARGO_BIN_EXE_m40d"))
}

/// What a command of `m40ctl` did.
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    fn from(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().expect("no signal ends m40ctl");
        Self { code, out: text(&output.stdout), err: text(&output.stderr) }
    }

    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, 0, "stderr: {}", self.err);
        self
    }

    /// It must have failed with this code and one line that says all of this.
    #[track_caller]
    fn fails(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "stderr: {}", self.err);
        check_one_line(&self.err, says);
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {:?}", self.out))
    }
}

#[track_caller]
fn check_one_line(text: &str, says: &[&str]) {
    assert_eq!(text.trim_end().lines().count(), 1, "not one line: {text:?}");
    for part in says {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

fn ctl(daemon: &Daemon, arguments: &[&str]) -> Done {
    Done::from(&daemon.ctl(M40CTL, arguments).output().expect("m40ctl must run"))
}

/// Writes a tiny model and returns its path.
fn tiny(dir: &Path, file: &str) -> PathBuf {
    write(dir, file, &TinyModel::new("llama").build())
}

fn write(dir: &Path, file: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(file);
    std::fs::write(&path, bytes).expect("the folder of a test");
    path
}

fn path_str(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// A daemon with the model `tiny` loaded.
fn with_tiny() -> Daemon {
    load(builder(), &TinyModel::new("llama"))
}

/// A daemon with the model `tiny` loaded, whose answers go on for many seconds when they are
/// asked for with `"ignore_eos": true`.
fn endless(builder: Builder) -> Daemon {
    let sections = format!("[models]\ncontext_tokens_max = {ENDLESS_CONTEXT}");
    load(builder.config(&sections), &TinyModel::new("llama").context(ENDLESS_CONTEXT))
}

fn load(builder: Builder, model: &TinyModel) -> Daemon {
    let path = write(builder.dir(), "tiny.gguf", &model.build());
    let daemon = builder.start();
    ctl(&daemon, &["load", path_str(&path)]).ok();
    daemon
}

/// Waits until no request waits or runs: who asked may know before its place is given back.
fn wait_until_idle(daemon: &Daemon) {
    let queue = || ctl(daemon, &["queue", "--json"]).ok().json();
    while queue()["requests"].as_array().is_none_or(|requests| !requests.is_empty()) {}
}

/// The daemon must still answer.
#[track_caller]
fn check_healthy(daemon: &mut Daemon) {
    assert!(daemon.is_running(), "m40d ended");
    let health = daemon.get("/health");
    assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("ok")));
}
