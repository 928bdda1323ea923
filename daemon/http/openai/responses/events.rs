//! A response as events, each with a name and a number.

use std::mem;

use m40_reply::Piece;
use m40llm::{Completion, TokenLogprob};
use serde::Serialize;
use serde_json::{Value, json};

use super::super::logprobs::Logprob;
use super::super::sse::{Frames, Shape};
use super::item::{Body, Item};
use super::object::{Reply, Status};
use crate::generation::{Call, Delta};
use crate::http::error::HttpError;

/// A response on its way.
#[derive(Debug)]
pub(super) struct Events {
    reply: Reply,
    /// The number of the next event.
    sequence: u64,
    /// The items so far.
    output: Vec<Item>,
    /// Whether the last of them is still being written.
    open: bool,
    /// Of tokens whose text is still to come.
    logprobs: Vec<TokenLogprob>,
    reasoning_tokens: u32,
}

#[derive(Serialize)]
struct Numbered<T> {
    #[serde(rename = "type")]
    name: &'static str,
    sequence_number: u64,
    #[serde(flatten)]
    event: T,
}

/// More of the text of an item.
#[derive(Serialize)]
struct More<'a> {
    item_id: &'a str,
    output_index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary_index: Option<u32>,
    delta: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<Logprob<'a>>>,
}

impl Events {
    pub(super) fn new(reply: Reply) -> Self {
        Self {
            reply,
            sequence: 0,
            output: vec![],
            open: false,
            logprobs: vec![],
            reasoning_tokens: 0,
        }
    }

    fn send(&mut self, name: &'static str, event: impl Serialize, frames: &mut Frames) {
        send(&mut self.sequence, name, event, frames);
    }

    fn send_state(&mut self, name: &'static str, status: &Status, frames: &mut Frames) {
        let response = self.reply.object(status, &self.output);
        self.send(name, json!({"response": response}), frames);
    }

    fn piece(&mut self, piece: Piece, frames: &mut Frames) {
        match piece {
            Piece::Content(text) => {
                if !matches!(self.open_body(), Some(Body::Message { .. })) {
                    self.open_item(Item::message(String::new(), vec![]), frames);
                }
                self.more(&text, frames);
            }
            Piece::Reasoning(text) => {
                self.logprobs.clear();
                if !matches!(self.open_body(), Some(Body::Reasoning(_))) {
                    self.open_item(Item::reasoning(String::new()), frames);
                }
                self.more(&text, frames);
            }
            Piece::Call { name } => {
                self.logprobs.clear();
                self.open_item(Item::call(Call { name, arguments: String::new() }), frames);
            }
            Piece::Arguments(text) => {
                self.logprobs.clear();
                self.more(&text, frames);
            }
            Piece::CallEnd => self.close(frames),
        }
    }

    fn open_body(&self) -> Option<&Body> {
        self.output.last().filter(|_| self.open).map(|item| &item.body)
    }

    /// Begins an item, after the one before is complete.
    fn open_item(&mut self, item: Item, frames: &mut Frames) {
        self.close(frames);
        let added = json!({"output_index": self.output.len(), "item": item.begun()});
        self.send("response.output_item.added", added, frames);
        if let Some((kind, _)) = part_names(&item.body) {
            let event = self.about_part(&item, self.output.len(), json!({"part": item.part()}));
            self.send(kind, event, frames);
        }
        self.output.push(item);
        self.open = true;
    }

    /// More of the item that is being written.
    fn more(&mut self, text: &str, frames: &mut Frames) {
        let output_index = self.output.len().saturating_sub(1);
        let Some(item) = self.output.last_mut().filter(|_| self.open) else { return };
        let taken = mem::take(&mut self.logprobs);
        let (name, content_index, summary_index, logprobs) = match &mut item.body {
            Body::Message { text: whole, logprobs } => {
                whole.push_str(text);
                let from = logprobs.len();
                logprobs.extend(taken);
                let logprobs = Some(Logprob::all(&logprobs[from..]));
                ("response.output_text.delta", Some(0), None, logprobs)
            }
            Body::Reasoning(whole) => {
                whole.push_str(text);
                ("response.reasoning_summary_text.delta", None, Some(0), None)
            }
            Body::Call { call, .. } => {
                call.arguments.push_str(text);
                ("response.function_call_arguments.delta", None, None, None)
            }
        };
        let item_id = &item.id;
        let event =
            More { item_id, output_index, content_index, summary_index, delta: text, logprobs };
        send(&mut self.sequence, name, event, frames);
    }

    /// Completes the item that is being written.
    fn close(&mut self, frames: &mut Frames) {
        if !mem::take(&mut self.open) {
            return;
        }
        let output_index = self.output.len().saturating_sub(1);
        let Some(mut item) = self.output.pop() else { return };
        if let Body::Message { logprobs, .. } = &mut item.body {
            logprobs.append(&mut self.logprobs);
        }
        let (name, said) = match &item.body {
            Body::Message { text, logprobs } => {
                let said = json!({"text": text, "logprobs": Logprob::all(logprobs)});
                ("response.output_text.done", said)
            }
            Body::Reasoning(text) => {
                ("response.reasoning_summary_text.done", json!({"text": text}))
            }
            Body::Call { call, .. } => {
                let said = json!({"name": call.name, "arguments": call.arguments});
                ("response.function_call_arguments.done", said)
            }
        };
        self.send(name, self.about_part(&item, output_index, said), frames);
        if let Some((_, kind)) = part_names(&item.body) {
            let event = self.about_part(&item, output_index, json!({"part": item.part()}));
            self.send(kind, event, frames);
        }
        let done = json!({"output_index": output_index, "item": item.done()});
        self.send("response.output_item.done", done, frames);
        self.output.push(item);
    }

    /// This of an item, with its place.
    fn about_part(&self, item: &Item, output_index: usize, more: Value) -> Value {
        let mut event = json!({"item_id": item.id, "output_index": output_index});
        match item.body {
            Body::Message { .. } => event["content_index"] = json!(0),
            Body::Reasoning(_) => event["summary_index"] = json!(0),
            Body::Call { .. } => {}
        }
        if let (Value::Object(event), Value::Object(more)) = (&mut event, more) {
            event.extend(more);
        }
        event
    }
}

fn send(sequence: &mut u64, name: &'static str, event: impl Serialize, frames: &mut Frames) {
    frames.named(name, &Numbered { name, sequence_number: *sequence, event });
    *sequence += 1;
}

/// The events that say that the part of an item begins and is complete, where it has one.
fn part_names(body: &Body) -> Option<(&'static str, &'static str)> {
    match body {
        Body::Message { .. } => Some(("response.content_part.added", "response.content_part.done")),
        Body::Reasoning(_) => {
            Some(("response.reasoning_summary_part.added", "response.reasoning_summary_part.done"))
        }
        Body::Call { .. } => None,
    }
}

impl Shape for Events {
    fn begin(&mut self, frames: &mut Frames) {
        self.send_state("response.created", &Status::InProgress, frames);
        self.send_state("response.in_progress", &Status::InProgress, frames);
    }

    fn delta(&mut self, _: usize, delta: Delta, frames: &mut Frames) {
        self.reasoning_tokens += delta.reasoning_tokens();
        self.logprobs.extend(delta.logprobs);
        delta.pieces.into_iter().for_each(|piece| self.piece(piece, frames));
    }

    fn done(&mut self, _: usize, completion: Completion, frames: &mut Frames) {
        self.close(frames);
        if self.output.is_empty() {
            self.open_item(Item::message(String::new(), vec![]), frames);
            self.close(frames);
        }
        let status = Status::ended(&completion, self.reasoning_tokens);
        let name = match status.name() {
            "incomplete" => "response.incomplete",
            _ => "response.completed",
        };
        self.send_state(name, &status, frames);
    }

    fn end(&mut self, _: &mut Frames) {}

    fn failed(&mut self, error: &HttpError, frames: &mut Frames) {
        let error = &error.body()["error"];
        let code = error["code"].as_str().unwrap_or("server_error");
        let status = Status::Failed(json!({"code": code, "message": error["message"]}));
        self.send_state("response.failed", &status, frames);
    }
}

#[cfg(test)]
mod tests {
    use super::super::object::Asked;
    use super::*;
    use m40llm::{FinishReason, SamplingParams};
    use std::time::Duration;

    fn events() -> Events {
        let request = serde_json::from_value(json!({"input": "a"})).unwrap();
        Events::new(Reply::new("m", Asked::new(&request, &SamplingParams::default())))
    }

    fn run(finish: FinishReason, pieces: Vec<Piece>) -> Vec<(String, Value)> {
        let (mut events, mut frames) = (events(), Frames::default());
        events.begin(&mut frames);
        for piece in pieces {
            events.delta(
                0,
                Delta { pieces: vec![piece], tokens: 1, ..Delta::default() },
                &mut frames,
            );
        }
        let completion = Completion {
            finish,
            stopped_by: None,
            prompt_tokens: 3,
            cached_tokens: 1,
            completion_tokens: 4,
            tokens: vec![],
            prompt_time: Duration::ZERO,
            decode_time: Duration::ZERO,
        };
        events.done(0, completion, &mut frames);
        frames.shown()
    }

    #[test]
    fn each_item_is_added_written_and_done_and_the_response_has_them_all() {
        let text = |text: &str| text.to_owned();
        let events = run(
            FinishReason::Stop,
            vec![
                Piece::Reasoning(text("h")),
                Piece::Reasoning(text("m")),
                Piece::Content(text("wait")),
                Piece::Call { name: text("f") },
                Piece::Arguments(text("{")),
                Piece::Arguments(text("}")),
                Piece::CallEnd,
                Piece::Call { name: text("g") },
                Piece::CallEnd,
            ],
        );
        let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
        let want = [
            "created",
            "in_progress",
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ];
        assert_eq!(names, want.map(|name| format!("response.{name}")));
        for (at, (name, event)) in events.iter().enumerate() {
            assert_eq!((&event["type"], &event["sequence_number"]), (&json!(name), &json!(at)));
        }
        let response = &events.last().unwrap().1["response"];
        assert_eq!(response["status"], "completed");
        assert_eq!(response["usage"]["output_tokens_details"]["reasoning_tokens"], 2);
        let output = response["output"].as_array().unwrap();
        assert_eq!(output[0]["summary"][0]["text"], "hm");
        assert_eq!(output[1]["content"][0]["text"], "wait");
        assert_eq!((&output[2]["name"], &output[2]["arguments"]), (&json!("f"), &json!("{}")));
        let done: Vec<&Value> = events
            .iter()
            .filter(|(name, _)| name == "response.output_item.done")
            .map(|(_, event)| &event["item"])
            .collect();
        assert_eq!(done, output.iter().collect::<Vec<_>>());
    }

    #[test]
    fn an_answer_that_was_cut_off_is_incomplete_and_an_empty_one_is_a_message() {
        let events = run(FinishReason::Length, vec![]);
        let (name, last) = events.last().unwrap();
        assert_eq!(name, "response.incomplete");
        let response = &last["response"];
        assert_eq!(response["incomplete_details"]["reason"], "max_output_tokens");
        assert_eq!(response["output"][0]["content"][0]["text"], "");
    }

    #[test]
    fn log_probabilities_stay_with_the_text_even_when_that_comes_later() {
        let token = |n: u8| TokenLogprob { id: 1, bytes: vec![n], logprob: -1.0, top: vec![] };
        let (mut events, mut frames) = (events(), Frames::default());
        let delta = |pieces, n| Delta { pieces, logprobs: vec![token(n)], ..Delta::default() };
        events.delta(0, delta(vec![], b'a'), &mut frames);
        events.delta(0, delta(vec![Piece::Content("ab".into())], b'b'), &mut frames);
        let (name, event) = frames.shown().pop().unwrap();
        assert_eq!(name, "response.output_text.delta");
        assert_eq!(event["logprobs"].as_array().map(Vec::len), Some(2));
    }
}
