//! The object that a response is.

use m40_sched::sampler::SamplingParams;
use m40llm::{Completion, FinishReason};
use serde_json::{Map, Value, json};

use super::super::figures::Usage;
use super::Request;
use super::item::Item;
use crate::generation::Whole;
use crate::http::{request_id, unix_s};

/// What of a request its response repeats.
#[derive(Debug)]
pub(super) struct Asked(Map<String, Value>);

impl Asked {
    pub(super) fn new(request: &Request, sampling: &SamplingParams) -> Self {
        let effort = request.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_ref());
        let text = json!({"format": {"type": "text"}});
        let asked = [
            ("instructions", json!(request.instructions)),
            ("max_output_tokens", json!(request.max_output_tokens)),
            ("metadata", json!(request.metadata.clone().unwrap_or_default())),
            ("parallel_tool_calls", json!(request.parallel_tool_calls.unwrap_or(true))),
            ("reasoning", json!({"effort": effort, "summary": null})),
            ("temperature", json!(sampling.temperature)),
            ("text", request.text.clone().unwrap_or(text)),
            ("tool_choice", request.tool_choice.clone().unwrap_or_else(|| json!("auto"))),
            ("tools", json!(request.tools.as_deref().unwrap_or_default())),
            ("top_p", json!(sampling.top_p)),
        ];
        Self(asked.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }
}

/// How far a response is.
#[derive(Debug)]
pub(super) enum Status {
    InProgress,
    /// It has ended, with these counts.
    Ended(FinishReason, Usage),
    /// Why it has failed: OpenAI's error.
    Failed(Value),
}

impl Status {
    pub(super) fn ended(completion: &Completion, reasoning_tokens: u32) -> Self {
        Self::Ended(completion.finish, Usage::of(completion, reasoning_tokens))
    }

    /// OpenAI's word for it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Ended(FinishReason::Length | FinishReason::Deadline, _) => "incomplete",
            Self::Ended(FinishReason::Stop | FinishReason::Cancelled, _) => "completed",
            Self::Failed(_) => "failed",
        }
    }
}

/// What all states of one response share.
#[derive(Debug)]
pub(super) struct Reply {
    id: String,
    created_at: u64,
    model: String,
    asked: Asked,
}

impl Reply {
    pub(super) fn new(model: &str, asked: Asked) -> Self {
        let model = model.to_owned();
        Self { id: request_id::fresh("resp_"), created_at: unix_s(), model, asked }
    }

    /// The reply to a request without `stream`.
    pub(super) fn whole(&self, answer: Whole) -> Value {
        let status = Status::ended(&answer.completion, answer.reasoning_tokens);
        self.object(&status, &Item::all(answer))
    }

    /// The response in this state, with the items that are complete.
    pub(super) fn object(&self, status: &Status, output: &[Item]) -> Value {
        let (usage, error) = match status {
            Status::InProgress => (None, None),
            Status::Ended(_, usage) => (Some(usage.for_responses()), None),
            Status::Failed(error) => (None, Some(error)),
        };
        let name = status.name();
        let incomplete = (name == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        let completed_at = (name == "completed").then(unix_s);
        let mut object = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "completed_at": completed_at,
            "status": name,
            "background": false,
            "error": error,
            "incomplete_details": incomplete,
            "model": self.model,
            "output": output.iter().map(Item::done).collect::<Vec<_>>(),
            "previous_response_id": null,
            "store": false,
            "truncation": "disabled",
            "usage": usage,
            "user": null,
        });
        if let Value::Object(object) = &mut object {
            object.extend(self.asked.0.clone());
        }
        object
    }
}
