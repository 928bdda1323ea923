//! Log-probabilities of tokens, in the shape of chat completions.

use std::borrow::Cow;

use m40llm::TokenLogprob;
use serde::Serialize;

/// What stands for a probability of nothing, which JSON has no number for; OpenAI's.
const LOGPROB_MIN: f32 = -9999.0;

/// A token that was chosen, and those that it was chosen from.
#[derive(Debug, Serialize)]
pub(super) struct Logprob<'a> {
    #[serde(flatten)]
    chosen: Candidate<'a>,
    top_logprobs: Vec<Candidate<'a>>,
}

#[derive(Debug, Serialize)]
struct Candidate<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    /// A token may be a part of a character.
    bytes: &'a [u8],
}

impl<'a> Logprob<'a> {
    pub(super) fn all(tokens: &'a [TokenLogprob]) -> Vec<Self> {
        tokens.iter().map(Self::of).collect()
    }

    fn of(token: &'a TokenLogprob) -> Self {
        let top = token.top.iter().map(|(_, bytes, logprob)| Candidate::new(bytes, *logprob));
        Self { chosen: Candidate::new(&token.bytes, token.logprob), top_logprobs: top.collect() }
    }
}

impl<'a> Candidate<'a> {
    fn new(bytes: &'a [u8], logprob: f32) -> Self {
        Self { token: String::from_utf8_lossy(bytes), logprob: finite(logprob), bytes }
    }
}

/// A log-probability as a number that JSON has.
pub(super) fn finite(logprob: f32) -> f32 {
    logprob.max(LOGPROB_MIN)
}
