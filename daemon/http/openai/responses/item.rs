//! An item of a response's output.

use m40llm::TokenLogprob;
use serde_json::{Value, json};

use super::super::logprobs::Logprob;
use crate::generation::{Call, Whole};
use crate::http::request_id;

/// An item, as far as it is written.
#[derive(Debug)]
pub(super) struct Item {
    pub id: String,
    pub body: Body,
}

/// What an item is.
#[derive(Debug)]
pub(super) enum Body {
    /// Shown as a summary of itself: that is what clients read.
    Reasoning(String),
    Message {
        text: String,
        logprobs: Vec<TokenLogprob>,
    },
    Call {
        id: String,
        call: Call,
    },
}

impl Item {
    pub(super) fn reasoning(text: String) -> Self {
        Self { id: request_id::fresh("rs_"), body: Body::Reasoning(text) }
    }

    pub(super) fn message(text: String, logprobs: Vec<TokenLogprob>) -> Self {
        Self { id: request_id::fresh("msg_"), body: Body::Message { text, logprobs } }
    }

    pub(super) fn call(call: Call) -> Self {
        let body = Body::Call { id: request_id::fresh("call_"), call };
        Self { id: request_id::fresh("fc_"), body }
    }

    /// The items of a whole answer.
    pub(super) fn all(answer: Whole) -> Vec<Self> {
        let Whole { content, reasoning, calls, logprobs, .. } = answer;
        let said = !content.is_empty() || calls.is_empty();
        let reasoning = (!reasoning.is_empty()).then(|| Self::reasoning(reasoning));
        let message = said.then(|| Self::message(content, logprobs));
        reasoning.into_iter().chain(message).chain(calls.into_iter().map(Self::call)).collect()
    }

    /// The item when it is complete.
    pub(super) fn done(&self) -> Value {
        self.shown("completed", json!([self.part()]))
    }

    /// The item when it begins.
    pub(super) fn begun(&self) -> Value {
        self.shown("in_progress", json!([]))
    }

    /// The one part of an item that has parts.
    pub(super) fn part(&self) -> Value {
        match &self.body {
            Body::Reasoning(text) => json!({"type": "summary_text", "text": text}),
            Body::Message { text, logprobs } => json!({
                "type": "output_text",
                "text": text,
                "annotations": [],
                "logprobs": Logprob::all(logprobs),
            }),
            Body::Call { .. } => Value::Null,
        }
    }

    fn shown(&self, status: &str, parts: Value) -> Value {
        let id = &self.id;
        match &self.body {
            Body::Reasoning(_) => {
                json!({"type": "reasoning", "id": id, "status": status, "summary": parts})
            }
            Body::Message { .. } => json!({
                "type": "message",
                "id": id,
                "status": status,
                "role": "assistant",
                "content": parts,
            }),
            Body::Call { id: call_id, call } => json!({
                "type": "function_call",
                "id": id,
                "status": status,
                "call_id": call_id,
                "name": call.name,
                "arguments": call.arguments,
            }),
        }
    }
}
