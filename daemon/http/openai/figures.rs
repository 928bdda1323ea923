//! The figures of answers: OpenAI's counts and llama.cpp's times.

use m40llm::{Completion, FinishReason};
use serde::Serialize;

use crate::generation;

/// OpenAI's counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(in crate::http) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
    completion_tokens_details: CompletionDetails,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct CompletionDetails {
    reasoning_tokens: u32,
}

impl Usage {
    /// The counts of one answer, of whose tokens so many were reasoning.
    pub(in crate::http) fn of(completion: &Completion, reasoning_tokens: u32) -> Self {
        let mut usage = Self::default();
        usage.add(completion, reasoning_tokens, true);
        usage
    }

    /// Counts one more answer; its prompt unless that was counted with another answer to it.
    pub(super) fn add(&mut self, completion: &Completion, reasoning_tokens: u32, prompt: bool) {
        if prompt {
            self.prompt_tokens += completion.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += completion.cached_tokens;
        }
        self.completion_tokens += completion.completion_tokens;
        self.completion_tokens_details.reasoning_tokens += reasoning_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }

    /// The same in the words of `/v1/responses`.
    pub(super) fn for_responses(&self) -> ResponsesUsage {
        ResponsesUsage {
            input_tokens: self.prompt_tokens,
            input_tokens_details: self.prompt_tokens_details,
            output_tokens: self.completion_tokens,
            output_tokens_details: self.completion_tokens_details,
            total_tokens: self.total_tokens,
        }
    }
}

/// The counts of `/v1/responses`.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct ResponsesUsage {
    input_tokens: u32,
    input_tokens_details: PromptDetails,
    output_tokens: u32,
    output_tokens_details: CompletionDetails,
    total_tokens: u32,
}

/// llama.cpp's figures, which dashboards read.
#[derive(Debug, Clone, Copy, Serialize)]
pub(in crate::http) struct Timings {
    cache_n: u32,
    prompt_n: u32,
    prompt_ms: f64,
    prompt_per_second: Option<f64>,
    predicted_n: u32,
    predicted_ms: f64,
    predicted_per_second: Option<f64>,
}

impl Timings {
    pub(in crate::http) fn of(completion: &Completion) -> Self {
        let stats = generation::stats(completion);
        Self {
            cache_n: completion.cached_tokens,
            prompt_n: completion.prompt_tokens.saturating_sub(completion.cached_tokens),
            prompt_ms: stats.prompt_ms,
            prompt_per_second: stats.prompt_tokens_per_s(),
            predicted_n: completion.completion_tokens,
            predicted_ms: stats.decode_ms,
            predicted_per_second: stats.decode_tokens_per_s(),
        }
    }
}

/// OpenAI's word for how an answer ended that is nothing but text.
pub(super) const fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Length | FinishReason::Deadline => "length",
        // OpenAI has no word for a cancelled answer, which nobody is left to read.
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_prompt_counts_once_for_all_of_its_answers() {
        let completion = |tokens| Completion {
            finish: FinishReason::Stop,
            stopped_by: None,
            prompt_tokens: 5,
            cached_tokens: 4,
            completion_tokens: tokens,
            tokens: vec![],
            prompt_time: std::time::Duration::ZERO,
            decode_time: std::time::Duration::ZERO,
        };
        let mut usage = Usage::of(&completion(7), 3);
        usage.add(&completion(2), 1, false);
        let want = json!({
            "prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 4},
        });
        assert_eq!(json!(usage), want);
        let responses = json!(usage.for_responses());
        assert_eq!(
            (&responses["input_tokens"], &responses["total_tokens"]),
            (&json!(5), &json!(14))
        );
    }
}
