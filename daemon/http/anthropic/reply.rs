//! A message of Anthropic's API, whole or as the events of a stream.

use m40_reply::Piece;
use m40llm::{Completion, FinishReason};
use serde_json::{Value, json};

use crate::generation::{Delta, Whole};
use crate::http::request_id;

/// An event of a stream.
#[derive(Debug, PartialEq)]
pub(super) struct Named {
    pub name: &'static str,
    pub body: Value,
}

/// A message that is being answered.
#[derive(Debug)]
pub(super) struct Message {
    id: String,
    model: String,
    /// The request's own stop texts, which come first among those of the answer.
    stops: Vec<String>,
    /// Whether calls after the first are left out.
    one_call: bool,
    /// What the block that is written holds, if one is.
    open: Option<Kind>,
    /// Blocks that were begun.
    begun: usize,
    calls: usize,
}

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Thinking,
    Text,
    Call,
}

impl Message {
    pub(super) fn new(id: String, model: String, stops: Vec<String>, one_call: bool) -> Self {
        Self { id, model, stops, one_call, open: None, begun: 0, calls: 0 }
    }

    /// The reply to a request without `stream`.
    pub(super) fn whole(mut self, answer: Whole) -> Value {
        let mut content = vec![];
        if !answer.reasoning.is_empty() {
            let thinking = answer.reasoning;
            content.push(json!({"type": "thinking", "thinking": thinking, "signature": ""}));
        }
        if !answer.content.is_empty() {
            content.push(json!({"type": "text", "text": answer.content}));
        }
        for call in answer.calls.into_iter().filter(|_| self.takes_call()) {
            // Arguments are an object unless the answer was cut short in them.
            let input = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
            content.push(tool_use(&call.name, input));
        }
        let completion = &answer.completion;
        let (stop_reason, stop_sequence) = self.stop(completion);
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": usage(completion),
        })
    }

    /// Says who speaks, and how many tokens the prompt has; how many of them were in the cache is said at
    /// the end, when it is known.
    pub(super) fn start(&self, prompt_tokens: usize) -> Named {
        let message = json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
        });
        Named { name: "message_start", body: json!({"type": "message_start", "message": message}) }
    }

    /// More of the answer.
    pub(super) fn delta(&mut self, delta: Delta) -> Vec<Named> {
        let mut events = vec![];
        for piece in delta.pieces {
            self.piece(piece, &mut events);
        }
        events
    }

    /// How the answer ended.
    pub(super) fn end(&mut self, completion: &Completion) -> Vec<Named> {
        let mut events = vec![];
        self.close(&mut events);
        let (stop_reason, stop_sequence) = self.stop(completion);
        let body = json!({
            "type": "message_delta",
            "delta": {"stop_reason": stop_reason, "stop_sequence": stop_sequence},
            "usage": usage(completion),
        });
        events.push(Named { name: "message_delta", body });
        events.push(Named { name: "message_stop", body: json!({"type": "message_stop"}) });
        events
    }

    fn piece(&mut self, piece: Piece, events: &mut Vec<Named>) {
        match piece {
            Piece::Content(text) => {
                self.within(Kind::Text, json!({"type": "text", "text": ""}), events);
                events.push(self.more(json!({"type": "text_delta", "text": text})));
            }
            Piece::Reasoning(text) => {
                let block = json!({"type": "thinking", "thinking": "", "signature": ""});
                self.within(Kind::Thinking, block, events);
                events.push(self.more(json!({"type": "thinking_delta", "thinking": text})));
            }
            Piece::Call { name } => {
                self.close(events);
                if self.takes_call() {
                    self.begin(Kind::Call, tool_use(&name, json!({})), events);
                }
            }
            Piece::Arguments(text) if self.open == Some(Kind::Call) => {
                events.push(self.more(json!({"type": "input_json_delta", "partial_json": text})));
            }
            // Of a call that is left out.
            Piece::Arguments(_) => {}
            Piece::CallEnd => self.close(events),
        }
    }

    /// Counts a call, and says whether the message has it.
    fn takes_call(&mut self) -> bool {
        self.calls += 1;
        self.calls == 1 || !self.one_call
    }

    /// Goes on in a block of this kind.
    fn within(&mut self, kind: Kind, block: Value, events: &mut Vec<Named>) {
        if self.open != Some(kind) {
            self.close(events);
            self.begin(kind, block, events);
        }
    }

    fn begin(&mut self, kind: Kind, block: Value, events: &mut Vec<Named>) {
        let name = "content_block_start";
        let body = json!({"type": name, "index": self.begun, "content_block": block});
        events.push(Named { name, body });
        self.open = Some(kind);
        self.begun += 1;
    }

    fn more(&self, delta: Value) -> Named {
        let name = "content_block_delta";
        Named { name, body: json!({"type": name, "index": self.index(), "delta": delta}) }
    }

    fn close(&mut self, events: &mut Vec<Named>) {
        if self.open.take().is_some() {
            let name = "content_block_stop";
            events.push(Named { name, body: json!({"type": name, "index": self.index()}) });
        }
    }

    /// The number of the block that was begun last.
    fn index(&self) -> usize {
        self.begun.saturating_sub(1)
    }

    fn stop(&self, completion: &Completion) -> (&'static str, Option<&str>) {
        let stop = completion.stopped_by.and_then(|stop| self.stops.get(stop));
        match (stop, completion.finish) {
            (Some(stop), _) => ("stop_sequence", Some(stop)),
            (None, FinishReason::Length | FinishReason::Deadline) => ("max_tokens", None),
            (None, _) if self.calls > 0 => ("tool_use", None),
            (None, FinishReason::Stop | FinishReason::Cancelled) => ("end_turn", None),
        }
    }
}

fn tool_use(name: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": request_id::fresh("toolu_"), "name": name, "input": input})
}

fn usage(completion: &Completion) -> Value {
    json!({
        "input_tokens": completion.prompt_tokens.saturating_sub(completion.cached_tokens),
        "cache_read_input_tokens": completion.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": completion.completion_tokens,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::generation::Call;

    fn message(one_call: bool) -> Message {
        Message::new("msg_1".into(), "m".into(), vec!["END".into()], one_call)
    }

    fn completion(finish: FinishReason, stopped_by: Option<usize>) -> Completion {
        Completion {
            tokens: vec![],
            finish,
            stopped_by,
            prompt_tokens: 10,
            cached_tokens: 4,
            completion_tokens: 5,
            prompt_time: Duration::ZERO,
            decode_time: Duration::ZERO,
        }
    }

    fn answer() -> Vec<Piece> {
        let call = |name: &str| Piece::Call { name: name.into() };
        vec![
            Piece::Reasoning("h".into()),
            Piece::Reasoning("m".into()),
            Piece::Content("so".into()),
            call("f"),
            Piece::Arguments("{\"x\":".into()),
            Piece::Arguments("1}".into()),
            Piece::CallEnd,
            call("g"),
            Piece::Arguments("{}".into()),
            Piece::CallEnd,
        ]
    }

    fn names(events: &[Named]) -> Vec<String> {
        let name = |event: &Named| match event.body["index"].as_u64() {
            Some(index) => format!("{} {index}", event.name.trim_start_matches("content_block_")),
            None => event.name.to_owned(),
        };
        events.iter().map(name).collect()
    }

    #[test]
    fn each_kind_of_piece_has_a_block_of_its_own() {
        let mut message = message(false);
        let mut events = vec![message.start(10)];
        events.extend(message.delta(Delta { pieces: answer(), ..Delta::default() }));
        events.extend(message.end(&completion(FinishReason::Stop, None)));
        let want = [
            "message_start",
            "start 0",
            "delta 0",
            "delta 0",
            "stop 0",
            "start 1",
            "delta 1",
            "stop 1",
            "start 2",
            "delta 2",
            "delta 2",
            "stop 2",
            "start 3",
            "delta 3",
            "stop 3",
            "message_delta",
            "message_stop",
        ];
        assert_eq!(names(&events), want);
        assert!(events.iter().all(|event| event.body["type"] == event.name));
        assert_eq!(events[9].body["delta"]["partial_json"], "{\"x\":");
        let last = &events[events.len() - 2].body;
        assert_eq!(last["delta"]["stop_reason"], "tool_use");
        assert_eq!(last["usage"]["input_tokens"], 6);
    }

    #[test]
    fn a_whole_message_has_the_same_blocks() {
        let call =
            |name: &str, arguments: &str| Call { name: name.into(), arguments: arguments.into() };
        let whole = Whole {
            content: "so".into(),
            reasoning: "hm".into(),
            reasoning_tokens: 1,
            calls: vec![call("f", "{\"x\":1}"), call("g", "{}")],
            logprobs: vec![],
            completion: completion(FinishReason::Stop, None),
        };
        let got = message(false).whole(whole);
        let kinds: Vec<_> = got["content"].as_array().unwrap().iter().map(|b| &b["type"]).collect();
        assert_eq!(kinds, ["thinking", "text", "tool_use", "tool_use"]);
        assert_eq!(got["content"][2]["input"], json!({"x": 1}));
        assert_eq!(got["stop_reason"], "tool_use");
    }

    #[test]
    fn of_several_calls_one_is_left_where_only_one_may_be() {
        let mut message = message(true);
        let events = message.delta(Delta { pieces: answer(), ..Delta::default() });
        let calls = events.iter().filter(|e| e.body["content_block"]["type"] == "tool_use");
        assert_eq!(calls.count(), 1);
        assert_eq!(names(&events).last().unwrap(), "stop 2");
    }

    #[test]
    fn the_end_has_a_reason() {
        let message = message(false);
        for (finish, stopped_by, want) in [
            (FinishReason::Stop, None, ("end_turn", None)),
            (FinishReason::Stop, Some(0), ("stop_sequence", Some("END"))),
            // A stop text of the model's definition, which the client knows nothing of.
            (FinishReason::Stop, Some(1), ("end_turn", None)),
            (FinishReason::Length, None, ("max_tokens", None)),
        ] {
            assert_eq!(message.stop(&completion(finish, stopped_by)), want);
        }
    }
}
