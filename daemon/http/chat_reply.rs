//! The shapes of OpenAI's chat completions, whole and in chunks.

use std::mem;

use m40_reply::Piece;
use m40llm::{Completion, FinishReason, TokenLogprob};
use serde_json::{Value, json};

use crate::generation::{self, Delta, Whole};

const FINGERPRINT: &str = concat!("m40d-", env!("CARGO_PKG_VERSION"));

/// What all parts of one reply share.
#[derive(Debug)]
pub(super) struct Reply {
    pub id: String,
    pub created: u64,
    pub model: String,
    /// Whether log-probabilities were asked for.
    pub logprobs: bool,
    /// Whether a chunk with the usage was asked for.
    pub include_usage: bool,
}

impl Reply {
    /// The reply to a request without `stream`.
    pub(super) fn whole(&self, answer: &Whole) -> Value {
        json!({
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [{
                "index": 0,
                "message": {"role": "assistant", "content": answer.content, "refusal": null},
                "logprobs": self.logprobs_value(&answer.logprobs),
                "finish_reason": finish_reason(answer.completion.finish),
            }],
            "usage": usage(&answer.completion),
            "timings": timings(&answer.completion),
        })
    }

    /// Says who speaks.
    pub(super) fn first_chunk(&self) -> Value {
        self.chunk_with(json!({"role": "assistant", "content": ""}), Value::Null, Value::Null)
    }

    /// More of the answer.
    pub(super) fn chunks(&self, delta: &Delta) -> Vec<Value> {
        let mut logprobs = self.logprobs_value(&delta.logprobs);
        let content = delta.pieces.iter().filter_map(|piece| match piece {
            Piece::Content(text) => Some(text),
            _ => None,
        });
        let mut chunk =
            |text| self.chunk_with(json!({"content": text}), mem::take(&mut logprobs), Value::Null);
        content.map(|text| chunk(text)).collect()
    }

    /// Says how the answer ended.
    pub(super) fn last_chunk(&self, completion: &Completion) -> Value {
        let finish = json!(finish_reason(completion.finish));
        let mut chunk = self.chunk_with(json!({}), Value::Null, finish);
        chunk["timings"] = timings(completion);
        chunk
    }

    /// The figures, when they were asked for.
    pub(super) fn usage_chunk(&self, completion: &Completion) -> Option<Value> {
        self.include_usage.then(|| {
            let mut chunk = self.chunk_with(Value::Null, Value::Null, Value::Null);
            chunk["choices"] = json!([]);
            chunk["usage"] = usage(completion);
            chunk
        })
    }

    fn chunk_with(&self, delta: Value, logprobs: Value, finish_reason: Value) -> Value {
        let mut chunk = json!({
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [{
                "index": 0,
                "delta": delta,
                "logprobs": logprobs,
                "finish_reason": finish_reason,
            }],
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn logprobs_value(&self, tokens: &[TokenLogprob]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let content: Vec<Value> = tokens.iter().map(token_value).collect();
        json!({"content": content, "refusal": null})
    }
}

fn token_value(token: &TokenLogprob) -> Value {
    let alternative = |bytes: &[u8], logprob: f32| json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes});
    let top: Vec<Value> =
        token.top.iter().map(|(_, bytes, logprob)| alternative(bytes, *logprob)).collect();
    let mut value = alternative(&token.bytes, token.logprob);
    value["top_logprobs"] = Value::Array(top);
    value
}

fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Length | FinishReason::Deadline => "length",
        // OpenAI has no word for a cancelled answer, which nobody is left to read.
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}

/// OpenAI's counts.
pub(super) fn usage(completion: &Completion) -> Value {
    json!({
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": completion.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
    })
}

/// llama.cpp's figures, which dashboards read.
pub(super) fn timings(completion: &Completion) -> Value {
    let stats = generation::stats(completion);
    json!({
        "cache_n": completion.cached_tokens,
        "prompt_n": completion.prompt_tokens.saturating_sub(completion.cached_tokens),
        "prompt_ms": stats.prompt_ms,
        "prompt_per_second": stats.prompt_tokens_per_s(),
        "predicted_n": completion.completion_tokens,
        "predicted_ms": stats.decode_ms,
        "predicted_per_second": stats.decode_tokens_per_s(),
    })
}
