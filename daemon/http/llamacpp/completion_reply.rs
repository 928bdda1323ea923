//! The shapes of llama.cpp's completions, whole and in chunks.

use m40_reply::Piece;
use m40llm::{Completion, FinishReason, TokenLogprob};
use serde_json::{Value, json};

use crate::generation::{Delta, Whole};
use crate::http::openai::Timings;

/// What all parts of one reply share.
#[derive(Debug)]
pub(super) struct Reply {
    model: String,
    /// The request's own stop texts, which come first among those of the answer.
    stops: Vec<String>,
    /// Whether probabilities were asked for.
    probs: bool,
}

impl Reply {
    pub(super) fn new(model: String, stops: Vec<String>, probs: bool) -> Self {
        Self { model, stops, probs }
    }

    /// The reply to a request without `stream`.
    pub(super) fn whole(&self, answer: &Whole) -> Value {
        self.end(&answer.content, &answer.logprobs, &answer.completion)
    }

    /// More of the answer, if there is any.
    pub(super) fn chunk(&self, delta: &Delta) -> Option<Value> {
        let text = |piece: &Piece| match piece {
            Piece::Content(text) => text.clone(),
            _ => String::new(),
        };
        let content: String = delta.pieces.iter().map(text).collect();
        if content.is_empty() && delta.logprobs.is_empty() {
            return None;
        }
        let mut chunk = json!({"index": 0, "content": content, "stop": false, "id_slot": -1});
        self.add_probabilities(&mut chunk, &delta.logprobs);
        Some(chunk)
    }

    /// How the answer ended.
    pub(super) fn last(&self, completion: &Completion) -> Value {
        self.end("", &[], completion)
    }

    fn end(&self, content: &str, probs: &[TokenLogprob], completion: &Completion) -> Value {
        let (kind, word) = self.stop(completion);
        let mut end = json!({
            "index": 0,
            "content": content,
            "model": self.model,
            "stop": true,
            "stop_type": kind,
            "stopping_word": word,
            "truncated": false,
            "id_slot": -1,
            "tokens_predicted": completion.completion_tokens,
            "tokens_evaluated": completion.prompt_tokens,
            "tokens_cached": completion.cached_tokens,
            "timings": Timings::of(completion),
        });
        self.add_probabilities(&mut end, probs);
        end
    }

    fn add_probabilities(&self, value: &mut Value, tokens: &[TokenLogprob]) {
        if self.probs && !tokens.is_empty() {
            value["completion_probabilities"] = tokens.iter().map(probability).collect();
        }
    }

    fn stop(&self, completion: &Completion) -> (&'static str, &str) {
        let word = completion.stopped_by.and_then(|stop| self.stops.get(stop));
        match (word, completion.finish) {
            (Some(word), _) => ("word", word),
            (None, FinishReason::Length) => ("limit", ""),
            (None, FinishReason::Stop) => ("eos", ""),
            (None, FinishReason::Cancelled | FinishReason::Deadline) => ("none", ""),
        }
    }
}

fn probability(token: &TokenLogprob) -> Value {
    let one = |id: u32, bytes: &[u8], logprob: f32| {
        let text = String::from_utf8_lossy(bytes);
        json!({"id": id, "token": text, "bytes": bytes, "logprob": logprob})
    };
    let mut value = one(token.id, &token.bytes, token.logprob);
    let top = token.top.iter().map(|(id, bytes, logprob)| one(*id, bytes, *logprob));
    value["top_logprobs"] = top.collect();
    value
}
