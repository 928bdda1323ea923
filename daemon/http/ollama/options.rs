//! `options`: sampling and length by Ollama's names.

use m40_sched::sampler::SamplingParams;
use m40llm::GenerateParams;
use serde_json::{Map, Value};
use tracing::debug;

use super::HttpError;
use crate::http::params::check_stops;

/// What Ollama loads a model with. Here that is for the manifest to say.
const OF_LOADING: [&str; 14] = [
    "num_keep",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "use_mlock",
    "num_thread",
    "numa",
    "low_vram",
    "f16_kv",
    "vocab_only",
    "logits_all",
    "draft_num_predict",
    "shift",
];
/// Longest part of an unknown name that is logged.
const NAME_CHARS_LOGGED: usize = 40;

/// What the options of a request come to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    pub sampling: SamplingParams,
    pub max_tokens: Option<u32>,
    pub stop: Vec<String>,
    /// Most tokens of prompt and answer together.
    pub context_max: Option<u32>,
}

impl Options {
    /// Reads them; `defaults` is what they leave out.
    pub(super) fn read(
        options: &Map<String, Value>,
        defaults: SamplingParams,
    ) -> Result<Self, HttpError> {
        let mut read = Self { sampling: defaults, ..Self::default() };
        for (name, value) in options.iter().filter(|(_, value)| !value.is_null()) {
            read.take(name, value)?;
        }
        read.sampling.validate()?;
        check_stops(&read.stop).map_err(|why| HttpError::bad_request(format!("stop: {why}")))?;
        Ok(read)
    }

    /// The same for the engine.
    pub(super) fn params(self) -> GenerateParams {
        let Self { sampling, max_tokens, stop, .. } = self;
        GenerateParams { sampling, max_tokens, stop, ..GenerateParams::default() }
    }

    fn take(&mut self, name: &str, value: &Value) -> Result<(), HttpError> {
        let sampling = &mut self.sampling;
        match name {
            "temperature" => sampling.temperature = real(name, value)?,
            "top_p" => sampling.top_p = real(name, value)?,
            "min_p" => sampling.min_p = real(name, value)?,
            "typical_p" => sampling.typical_p = real(name, value)?,
            "repeat_penalty" => sampling.repeat_penalty = real(name, value)?,
            "presence_penalty" => sampling.presence_penalty = real(name, value)?,
            "frequency_penalty" => sampling.frequency_penalty = real(name, value)?,
            "top_k" => sampling.top_k = count(whole(name, value)?.max(0)),
            "repeat_last_n" => {
                let tokens = whole(name, value)?;
                sampling.repeat_last_n = if tokens < 0 { u32::MAX } else { count(tokens) };
            }
            "seed" => sampling.seed = u64::try_from(whole(name, value)?).ok(),
            // -1 is without end and -2 until the context is full, which is the same here.
            "num_predict" => self.max_tokens = above_zero(whole(name, value)?),
            "num_ctx" => self.context_max = above_zero(whole(name, value)?),
            "stop" => self.stop = stops(value)?,
            _ if OF_LOADING.contains(&name) => {}
            _ => {
                let option: String = name.chars().take(NAME_CHARS_LOGGED).collect();
                debug!(?option, "an unknown option is ignored");
            }
        }
        Ok(())
    }
}

fn real(name: &str, value: &Value) -> Result<f32, HttpError> {
    value.as_f64().map(|value| value as f32).ok_or_else(|| wrong_type(name, "float32"))
}

/// Clients in languages that know one kind of number send whole ones as `4096.0`.
fn whole(name: &str, value: &Value) -> Result<i64, HttpError> {
    let rounded = || value.as_f64().filter(|value| value.fract() == 0.0).map(|value| value as i64);
    value.as_i64().or_else(rounded).ok_or_else(|| wrong_type(name, "integer"))
}

fn count(value: i64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn above_zero(value: i64) -> Option<u32> {
    (value > 0).then(|| count(value))
}

fn stops(value: &Value) -> Result<Vec<String>, HttpError> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let all = match value {
        Value::Array(all) => all.iter().map(text).collect::<Option<Vec<_>>>(),
        one => text(one).map(|one| vec![one]),
    };
    all.ok_or_else(|| wrong_type("stop", "array of strings"))
}

/// In Ollama's words.
fn wrong_type(name: &str, kind: &str) -> HttpError {
    HttpError::bad_request(format!("option {name:?} must be of type {kind}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(options: Value) -> Result<Options, String> {
        let options = options.as_object().unwrap().clone();
        let read = Options::read(&options, SamplingParams::default());
        read.map_err(|error| error.body()["error"]["message"].as_str().unwrap().to_owned())
    }

    #[test]
    fn options_reach_the_engine_by_their_names_in_ollama() {
        let read = read(json!({"temperature": 0, "top_k": -1, "seed": 7, "num_predict": 12,
            "num_ctx": 4096.0, "stop": ["a", "b"], "repeat_last_n": -1, "num_gpu": 99,
            "mirostat": 2, "top_p": null}));
        let defaults = SamplingParams::default();
        let want = Options {
            sampling: SamplingParams {
                temperature: 0.0,
                top_k: 0,
                seed: Some(7),
                repeat_last_n: u32::MAX,
                ..defaults
            },
            max_tokens: Some(12),
            stop: vec!["a".to_owned(), "b".to_owned()],
            context_max: Some(4096),
        };
        assert_eq!(read, Ok(want));
    }

    #[test]
    fn what_says_nothing_leaves_the_defaults() {
        let options = json!({"seed": -1, "num_predict": -2, "num_ctx": 0});
        assert_eq!(read(options), Ok(Options::default()));
    }

    #[test]
    fn a_wrong_option_is_refused_by_name() {
        for (options, says) in [
            (json!({"temperature": "hot"}), "option \"temperature\" must be of type float32"),
            (json!({"num_ctx": 1.5}), "option \"num_ctx\" must be of type integer"),
            (json!({"stop": 7}), "option \"stop\" must be of type array of strings"),
            (json!({"stop": [""]}), "stop: "),
            (json!({"temperature": -1}), "temperature is -1"),
        ] {
            let error = read(options).unwrap_err();
            assert!(error.starts_with(says), "{error}");
        }
    }
}
