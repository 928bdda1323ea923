//! The fields about sampling, stopping and urgency that every generating route takes.
//!
//! Field names are OpenAI's where it has one, and else those that most servers share. `null`
//! means absent, and so does what is not here: clients send many fields that do not matter.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use m40_manifest::Definition;
use m40_sched::Class;
use m40_sched::sampler::SamplingParams;
use m40llm::GenerateParams;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::body::{self, BodyLimits};
use super::error::HttpError;
use crate::models::Urgency;

/// Most stop strings of one request.
const STOPS_MAX: usize = 16;
/// Longest stop string.
const STOP_BYTES_MAX: usize = 1024;
/// Most alternatives per token, as OpenAI has it.
const TOP_LOGPROBS_MAX: u32 = 20;
/// Most biased tokens of one request.
const BIASES_MAX: usize = 4096;
/// Longest time that a request may give itself, in seconds: a day.
const DEADLINE_S_MAX: f64 = 86_400.0;

/// Reads a body as a route's own fields and these.
pub(super) async fn read<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limits: BodyLimits,
) -> Result<(T, Fields), HttpError> {
    let bytes = body::read(headers, body, limits).await?;
    Ok((body::parse(&bytes)?, body::parse(&bytes)?))
}

/// What a request says of sampling, stopping and urgency.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Fields {
    temperature: Option<f32>,
    top_p: Option<f32>,
    /// 0 and negative mean off.
    top_k: Option<i64>,
    min_p: Option<f32>,
    typical_p: Option<f32>,
    #[serde(alias = "repetition_penalty")]
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<u32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    /// Negative means random, as some clients send it.
    seed: Option<i64>,
    logit_bias: Option<BTreeMap<String, f32>>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    max_output_tokens: Option<u32>,
    stop: Option<Stop>,
    logprobs: Option<Logprobs>,
    top_logprobs: Option<u32>,
    ignore_eos: Option<bool>,
    urgency: Option<UrgencyName>,
    /// Seconds after which the request is to be over, whether it waits or runs.
    deadline_s: Option<f64>,
}

/// Whether log-probabilities are wanted, or of how many of the likeliest tokens, as older APIs ask.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged, expecting = "expected true, false or a number")]
enum Logprobs {
    Whether(bool),
    Top(u32),
}

/// How urgent a request is beside others.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UrgencyName {
    Interactive,
    Agent,
    Batch,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
enum Stop {
    One(String),
    Many(Vec<String>),
}

impl Fields {
    /// What the engine is asked for; a model's definition says what the request leaves out.
    pub(super) fn params(
        self,
        definition: Option<&Definition>,
    ) -> Result<GenerateParams, HttpError> {
        let defaults = definition.map(|definition| definition.sampling.params());
        let max_tokens = self.max_completion_tokens.or(self.max_output_tokens).or(self.max_tokens);
        if max_tokens == Some(0) {
            return Err(HttpError::bad_param("max_tokens", "must be at least 1"));
        }
        Ok(GenerateParams {
            logprobs: self.logprobs()?,
            max_tokens,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            sampling: self.sampling(defaults.unwrap_or_default())?,
            stop: stops(self.stop)?,
            ..GenerateParams::default()
        })
    }

    /// For routes that have another word for it: whether log-probabilities are wanted.
    pub(super) fn set_logprobs(&mut self, wanted: bool) {
        self.logprobs = Some(Logprobs::Whether(wanted));
        self.top_logprobs = self.top_logprobs.filter(|_| wanted);
    }

    /// How the request is to be treated beside others.
    pub(super) fn urgency(&self) -> Result<Urgency, HttpError> {
        let class = match self.urgency {
            None | Some(UrgencyName::Interactive) => Class::Interactive,
            Some(UrgencyName::Agent) => Class::Agent,
            Some(UrgencyName::Batch) => Class::Batch,
        };
        let time = |seconds: f64| {
            let legal = seconds > 0.0 && seconds <= DEADLINE_S_MAX;
            legal.then(|| Duration::from_secs_f64(seconds)).ok_or_else(|| {
                let message = format!("is {seconds}, it may be above 0 and at most 86400");
                HttpError::bad_param("deadline_s", message)
            })
        };
        Ok(Urgency { class, time: self.deadline_s.map(time).transpose()? })
    }

    fn logprobs(&self) -> Result<Option<u32>, HttpError> {
        let top = self.top_logprobs.unwrap_or(0);
        if top > TOP_LOGPROBS_MAX {
            let message = format!("is {top}, the most is {TOP_LOGPROBS_MAX}");
            return Err(HttpError::bad_param("top_logprobs", message));
        }
        match self.logprobs {
            Some(Logprobs::Whether(true)) => Ok(Some(top)),
            Some(Logprobs::Top(top)) if top <= TOP_LOGPROBS_MAX => Ok(Some(top)),
            Some(Logprobs::Top(top)) => {
                let message = format!("is {top}, the most is {TOP_LOGPROBS_MAX}");
                Err(HttpError::bad_param("logprobs", message))
            }
            _ if top > 0 => Err(HttpError::bad_param("top_logprobs", "needs \"logprobs\": true")),
            _ => Ok(None),
        }
    }

    fn sampling(&self, defaults: SamplingParams) -> Result<SamplingParams, HttpError> {
        let top_k = self.top_k.map(|k| u32::try_from(k.max(0)).unwrap_or(u32::MAX));
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(defaults.temperature),
            top_k: top_k.unwrap_or(defaults.top_k),
            top_p: self.top_p.unwrap_or(defaults.top_p),
            min_p: self.min_p.unwrap_or(defaults.min_p),
            typical_p: self.typical_p.unwrap_or(defaults.typical_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(defaults.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(defaults.repeat_last_n),
            presence_penalty: self.presence_penalty.unwrap_or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(defaults.frequency_penalty),
            seed: self.seed.map_or(defaults.seed, |seed| u64::try_from(seed).ok()),
            logit_bias: biases(self.logit_bias.as_ref())?,
        };
        params.validate()?;
        Ok(params)
    }
}

fn biases(biases: Option<&BTreeMap<String, f32>>) -> Result<Vec<(u32, f32)>, HttpError> {
    let Some(biases) = biases else { return Ok(Vec::new()) };
    if biases.len() > BIASES_MAX {
        let message = format!("has {} tokens, the most is {BIASES_MAX}", biases.len());
        return Err(HttpError::bad_param("logit_bias", message));
    }
    let parse = |(token, bias): (&String, &f32)| match token.parse() {
        Ok(token) => Ok((token, *bias)),
        Err(_) => {
            Err(HttpError::bad_param("logit_bias", format!("{token:?} is not a token's number")))
        }
    };
    biases.iter().map(parse).collect()
}

fn stops(stop: Option<Stop>) -> Result<Vec<String>, HttpError> {
    let stops = match stop {
        None => Vec::new(),
        Some(Stop::One(one)) => vec![one],
        Some(Stop::Many(many)) => many,
    };
    check_stops(&stops).map_err(|message| HttpError::bad_param("stop", message))?;
    Ok(stops)
}

/// Says what is wrong with the stop strings of a request.
pub(crate) fn check_stops(stops: &[String]) -> Result<(), String> {
    if stops.len() > STOPS_MAX {
        return Err(format!("has {} strings, the most is {STOPS_MAX}", stops.len()));
    }
    match stops.iter().find(|stop| !(1..=STOP_BYTES_MAX).contains(&stop.len())) {
        Some(bad) => {
            Err(format!("a string of {} bytes, legal is 1 to {STOP_BYTES_MAX}", bad.len()))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(json: &str) -> Result<GenerateParams, String> {
        let fields: Fields = serde_json::from_str(json).unwrap();
        fields.params(None).map_err(|error| error.body()["error"]["param"].to_string())
    }

    #[test]
    fn absent_null_and_unknown_fields_mean_the_defaults() {
        let defaults = params("{}").unwrap();
        assert_eq!(defaults.max_tokens, None);
        assert_eq!(defaults.logprobs, None);
        let nulls = params(r#"{"temperature":null,"stop":null,"user":"x","n":1}"#).unwrap();
        assert_eq!(nulls.sampling, defaults.sampling);
    }

    #[test]
    fn fields_reach_the_engine() {
        let got = params(
            r#"{"temperature":0.5,"top_k":-1,"top_p":0.9,"min_p":0.1,"repetition_penalty":1.5,
                "seed":-1,"stop":["a","b"],"max_tokens":9,"max_completion_tokens":7,
                "logprobs":true,"top_logprobs":3,"logit_bias":{"12":-100,"7":1.5}}"#,
        )
        .unwrap();
        assert_eq!(got.max_tokens, Some(7));
        assert_eq!(got.logprobs, Some(3));
        assert_eq!(got.stop, ["a", "b"]);
        assert_eq!(got.sampling.top_k, 0);
        assert_eq!(got.sampling.seed, None);
        assert_eq!(got.sampling.repeat_penalty, 1.5);
        assert_eq!(got.sampling.logit_bias, [(12, -100.0), (7, 1.5)]);
        assert_eq!(params(r#"{"stop":"x","seed":5}"#).unwrap().sampling.seed, Some(5));
        assert_eq!(params(r#"{"logprobs":2}"#).unwrap().logprobs, Some(2));
        let got = params(r#"{"max_output_tokens":3,"max_tokens":9}"#).unwrap();
        assert_eq!(got.max_tokens, Some(3));
    }

    #[test]
    fn a_bad_value_is_refused_by_name() {
        for (json, param) in [
            (r#"{"max_tokens":0}"#, "max_tokens"),
            (r#"{"top_logprobs":3}"#, "top_logprobs"),
            (r#"{"logprobs":true,"top_logprobs":21}"#, "top_logprobs"),
            (r#"{"logprobs":21}"#, "logprobs"),
            (r#"{"stop":""}"#, "stop"),
            (r#"{"logit_bias":{"x":1}}"#, "logit_bias"),
            (r#"{"temperature":-1}"#, "temperature"),
            (r#"{"top_p":1.5}"#, "top_p"),
        ] {
            assert_eq!(params(json).unwrap_err(), format!("{param:?}"), "{json}");
        }
    }
}
