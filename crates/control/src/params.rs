//! How an answer is to be made, as people set it.

use serde::{Deserialize, Serialize};

/// What a request says of sampling and stopping. What is absent is as the model's manifest says, or
/// else as the daemon has it; the daemon checks the ranges.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunParams {
    /// Most tokens to answer with; by default what the context leaves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Randomness: 0 always takes the likeliest token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Keep the likeliest tokens until their probability reaches this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keep tokens at least this times as likely as the likeliest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Locally typical sampling; 1 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical_p: Option<f32>,
    /// Makes tokens that were there before less likely; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f32>,
    /// How many of the latest tokens the three penalties look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat_last_n: Option<u32>,
    /// Taken once from each token that was there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Taken from a token for each time that it was there before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Makes a random answer repeatable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Texts that end the answer, besides those of the manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
    /// Go on past the end of the answer, for measurements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
}

impl RunParams {
    /// The names of the parameters, as a request has them.
    pub const NAMES: [&'static str; 13] = [
        "max_tokens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "repeat_penalty",
        "repeat_last_n",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stop",
        "ignore_eos",
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_parameter_and_no_other_is() {
        for name in RunParams::NAMES {
            let null = format!("{{\"{name}\": null}}");
            assert_eq!(serde_json::from_str::<RunParams>(&null).unwrap(), RunParams::default());
        }
        let error = serde_json::from_str::<RunParams>(r#"{"heat": 1}"#).unwrap_err().to_string();
        assert_eq!(error.matches('`').count() / 2, 1 + RunParams::NAMES.len(), "{error}");
    }

    #[test]
    fn what_is_not_set_is_not_sent() {
        let params = RunParams { top_k: Some(40), ..RunParams::default() };
        assert_eq!(serde_json::to_string(&params).unwrap(), r#"{"top_k":40}"#);
    }
}
