//! Requests, answers and events of the control API.
//!
//! Requests refuse unknown fields (a typo must not be ignored); answers accept them (an older
//! `m40ctl` must understand a newer daemon).

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::error::ErrorBody;
use crate::{ApiError, CardStatus, ManifestProblem, PullProgress, RunParams};

/// Longest accepted model name, in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 96;

/// Why a text is not a model name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("a model name cannot be empty")]
    Empty,
    /// More than [`MODEL_NAME_BYTES_MAX`] bytes.
    #[error("the model name is {len} bytes long, the longest is {MODEL_NAME_BYTES_MAX}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A character that is not allowed, or not allowed at the start.
    #[error(
        "the model name {name:?} has {found:?} at byte {at}: \
         use a-z A-Z 0-9 . _ - : and start with a letter or digit"
    )]
    BadCharacter {
        /// The whole name.
        name: String,
        /// The character.
        found: char,
        /// Where it is.
        at: usize,
    },
}

/// Checks a model name: 1 to 96 bytes of `a-z A-Z 0-9 . _ - :`, starting with a letter or digit.
/// Names become file names, so neither `/` nor a leading dot can be in one.
///
/// # Errors
/// [`NameError`] saying which rule the name breaks.
pub fn check_model_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MODEL_NAME_BYTES_MAX {
        return Err(NameError::TooLong { len: name.len() });
    }
    let legal = |at: usize, c: char| {
        c.is_ascii_alphanumeric() || (at > 0 && matches!(c, '.' | '_' | '-' | ':'))
    };
    match name.char_indices().find(|&(at, c)| !legal(at, c)) {
        None => Ok(()),
        Some((at, found)) => Err(NameError::BadCharacter { name: name.to_owned(), found, at }),
    }
}

/// Makes a legal model name of a file name: its stem without a split suffix
/// (`-00001-of-00003`), other characters replaced by `-`.
pub fn model_name_of_file(file_name: &str) -> String {
    let stem = file_name.strip_suffix(".gguf").unwrap_or(file_name);
    let name: String = strip_split_suffix(stem)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-:".contains(c) { c } else { '-' })
        .take(MODEL_NAME_BYTES_MAX)
        .collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() { "model".to_owned() } else { name.to_owned() }
}

fn strip_split_suffix(stem: &str) -> &str {
    let bytes = stem.as_bytes();
    let Some(start) = bytes.len().checked_sub("-00001-of-00003".len()) else { return stem };
    let suffix = &bytes[start..];
    let digits = |range: std::ops::Range<usize>| suffix[range].iter().all(u8::is_ascii_digit);
    let is_split = suffix[0] == b'-' && digits(1..6) && &suffix[6..10] == b"-of-" && digits(10..15);
    if is_split { &stem[..start] } else { stem }
}

/// What a model is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ModelState {
    /// Defined by a manifest; its file is not here yet.
    Remote,
    /// Known, and on disk only.
    Stored,
    /// Asked for, and not in memory before others make room.
    Waiting,
    /// Being loaded.
    Loading,
    /// Answering.
    Ready,
    /// Finishing its work, then gone from memory.
    Unloading,
    /// The last load, or the model's worker, failed; the next request tries again.
    Failed,
}

impl ModelState {
    /// The word for people; the same as on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Remote => "remote",
            Self::Stored => "stored",
            Self::Waiting => "waiting",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Unloading => "unloading",
            Self::Failed => "failed",
        }
    }
}

/// One model, known or loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// The name that requests use.
    pub name: String,
    /// Other names for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The manifest that defines it; absent for a model without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<PathBuf>,
    /// What it is doing.
    pub state: ModelState,
    /// Why it is in [`ModelState::Failed`], or why its file could not be fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// How far its file is on its way here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<PullProgress>,
    /// Size of its files.
    pub size_bytes: u64,
    /// Architecture, as the file calls it, such as `llama`.
    pub architecture: String,
    /// Weight format, such as `Q4_K_M`.
    pub quantization: String,
    /// Number of weights.
    pub parameters: u64,
    /// Where the file came from: a path, or the source that a manifest names.
    pub source: PathBuf,
    /// When it was imported; absent for a file that was loaded in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_at_unix_s: Option<u64>,
    /// What only a loaded model has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded: Option<LoadedModel>,
}

/// The part of [`ModelEntry`] that exists while a model is loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadedModel {
    /// Most tokens of prompt and answer together.
    pub context_tokens: u32,
    /// Tokens of context that running requests have in use, prompts and answers.
    #[serde(default)]
    pub context_tokens_used: u64,
    /// Bytes of weights in use.
    pub weight_bytes: u64,
    /// How keys and values are kept; empty from a daemon that does not say.
    #[serde(default)]
    pub kv_type: String,
    /// Cache bytes that a token of context takes.
    pub kv_bytes_per_token: u64,
    /// Bytes of memory that it holds, weights and all.
    #[serde(default)]
    pub memory_bytes: u64,
    /// How long loading took.
    pub load_ms: u64,
    /// Requests waiting or running.
    pub jobs: u64,
    /// Requests running.
    #[serde(default)]
    pub running: u64,
    /// Requests waiting.
    #[serde(default)]
    pub waiting: u64,
    /// Requests answered since the load.
    pub jobs_done: u64,
    /// Seconds until it leaves memory if nobody asks for it; absent where it stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_in_s: Option<u64>,
    /// What was computed since the load.
    #[serde(default)]
    pub work: ModelWork,
}

/// What a loaded model has done. All figures grow, so two answers and the time between them give
/// rates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelWork {
    /// Prompt tokens computed. They count when the first token of their answer is there.
    pub prompt_tokens: u64,
    /// Prompt tokens that were still in the cache and not computed again. They count when their
    /// answer is.
    pub cached_tokens: u64,
    /// Tokens made.
    pub completion_tokens: u64,
    /// How long at least one request was running.
    pub busy_ms: u64,
}

impl ModelWork {
    /// Tokens made per second in which there was something to do; `None` before any.
    pub fn completion_tokens_per_s(&self) -> Option<f64> {
        (self.completion_tokens > 0 && self.busy_ms > 0)
            .then(|| self.completion_tokens as f64 * 1000.0 / self.busy_ms as f64)
    }
}

/// Answer to `GET /models`, sorted by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelList {
    /// The models.
    pub models: Vec<ModelEntry>,
}

/// Answer to `GET /status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Seconds since it became ready.
    pub uptime_s: u64,
    /// What computes, such as `cpu, 2 threads, avx2`.
    pub device: String,
    /// Where HTTP is served: the bound address, with the real port when `:0` was configured.
    pub http_address: String,
    /// Whether that takes TLS.
    #[serde(default)]
    pub tls: bool,
    /// Path of the control socket.
    pub control_socket: PathBuf,
    /// The configuration file in use; absent when the defaults are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<PathBuf>,
    /// Where models are kept.
    pub state_dir: PathBuf,
    /// The folder of the manifests.
    #[serde(default)]
    pub manifests_dir: PathBuf,
    /// What is wrong with manifests.
    #[serde(default)]
    pub manifest_problems: Vec<ManifestProblem>,
    /// The card that the daemon looks after; absent where there is none, or nothing can be asked of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<CardStatus>,
    /// Whether the daemon is finishing its work before it exits.
    pub stopping: bool,
    /// The models that are not merely stored, sorted by name.
    pub models: Vec<ModelEntry>,
}

/// Body of `POST /models/load`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// What to load.
    pub model: ModelRef,
}

/// How a caller names a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelRef {
    /// By its name.
    Name(String),
    /// A GGUF file used in place, by absolute path.
    File(PathBuf),
}

/// Body of `POST /models/unload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnloadRequest {
    /// Name of the model.
    pub model: String,
    /// End running and queued answers now instead of finishing them first.
    #[serde(default)]
    pub force: bool,
}

/// Body of `POST /run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// What to run; loaded when it is not.
    pub model: ModelRef,
    /// The conversation so far, the question last.
    pub messages: Vec<RunMessage>,
    /// How to answer.
    #[serde(default)]
    pub params: RunParams,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunMessage {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// One line of the answer to `POST /run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// The model is in memory and the question is queued.
    Loaded {
        /// Name of the model.
        model: String,
    },
    /// More of the answer.
    Text {
        /// The piece.
        text: String,
    },
    /// The answer is complete; the last line.
    Done {
        /// Figures of the run.
        stats: RunStats,
    },
    /// The run failed; the last line.
    Error {
        /// Why.
        error: ApiError,
    },
}

/// Figures of a finished answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStats {
    /// `stop`, `length` or `cancelled`.
    pub finish_reason: String,
    /// Tokens of the rendered prompt.
    pub prompt_tokens: u32,
    /// Of these, how many were still in the cache.
    pub cached_tokens: u32,
    /// Tokens made.
    pub completion_tokens: u32,
    /// Time spent on the prompt.
    pub prompt_ms: f64,
    /// Time spent making tokens.
    pub decode_ms: f64,
}

impl RunStats {
    /// Prompt tokens computed (not cached) per second; `None` when none were.
    pub fn prompt_tokens_per_s(&self) -> Option<f64> {
        per_second(self.prompt_tokens.saturating_sub(self.cached_tokens), self.prompt_ms)
    }

    /// Tokens made per second; `None` when none were.
    pub fn decode_tokens_per_s(&self) -> Option<f64> {
        per_second(self.completion_tokens, self.decode_ms)
    }
}

fn per_second(tokens: u32, ms: f64) -> Option<f64> {
    (tokens > 0 && ms > 0.0).then(|| f64::from(tokens) * 1000.0 / ms)
}

/// Body of `POST /log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRequest {
    /// What to log until the daemon ends: a level, or a list of `target=level`.
    pub filter: String,
}

/// What the daemon logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// What it logs now: a level, or a list of `target=level`.
    pub filter: String,
    /// What it logs from its start on, by its configuration.
    pub configured: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_names_that_are_safe_file_names_only() {
        for good in ["a", "smollm2-135m", "Qwen3:8b", "x_1.2-q4_k_m", &"n".repeat(96)] {
            assert_eq!(check_model_name(good), Ok(()), "{good}");
        }
        for bad in ["..", ".hidden", "a/b", "-rf", "a b", "a\0", "é", "a\n", ":x"] {
            assert!(
                matches!(check_model_name(bad), Err(NameError::BadCharacter { .. })),
                "{bad:?}"
            );
        }
        assert_eq!(check_model_name(""), Err(NameError::Empty));
        assert_eq!(check_model_name(&"n".repeat(97)), Err(NameError::TooLong { len: 97 }));
    }

    #[test]
    fn file_names_become_legal_names() {
        for (file, name) in [
            ("SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"),
            ("big-00002-of-00003.gguf", "big"),
            ("-00002-of-00003.gguf", "model"),
            ("my model (1).gguf", "my-model--1-"),
            ("..gguf", "model"),
            ("é.gguf", "model"),
        ] {
            assert_eq!(model_name_of_file(file), name, "{file}");
        }
        let long = model_name_of_file(&"é".repeat(400));
        check_model_name(&long).unwrap();
        check_model_name(&model_name_of_file(&"x".repeat(400))).unwrap();
    }

    #[test]
    fn requests_refuse_unknown_fields() {
        let typo = r#"{"model": "x", "forced": true}"#;
        assert!(serde_json::from_str::<UnloadRequest>(typo).is_err());
        let file: LoadRequest = serde_json::from_str(r#"{"model": {"file": "/m.gguf"}}"#).unwrap();
        assert_eq!(file.model, ModelRef::File("/m.gguf".into()));
    }

    #[test]
    fn events_are_tagged_lines() {
        let line = serde_json::to_string(&RunEvent::Text { text: "hi\n".into() }).unwrap();
        assert_eq!(line, r#"{"event":"text","text":"hi\n"}"#);
    }

    #[test]
    fn rates_leave_cached_tokens_out() {
        let stats = RunStats {
            finish_reason: "stop".into(),
            prompt_tokens: 30,
            cached_tokens: 10,
            completion_tokens: 0,
            prompt_ms: 100.0,
            decode_ms: 0.0,
        };
        assert_eq!(stats.prompt_tokens_per_s(), Some(200.0));
        assert_eq!(stats.decode_tokens_per_s(), None);
    }
}
