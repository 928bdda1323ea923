//! The shapes of OpenAI's chat completions, whole and in chunks.

use m40_reply::Piece;
use m40llm::{Completion, FinishReason, TokenLogprob};
use serde::Serialize;

use super::figures::{Timings, Usage, finish_reason};
use super::logprobs::Logprob;
use super::sse::{Frames, Shape};
use crate::generation::{Call, Delta, Whole};
use crate::http::error::HttpError;
use crate::http::{request_id, unix_s};

pub(super) const FINGERPRINT: &str = concat!("m40d-", env!("CARGO_PKG_VERSION"));

/// What all parts of one reply begin with.
#[derive(Debug, Serialize)]
pub(super) struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: &'static str,
}

impl Head {
    pub(super) fn new(id_prefix: &str, object: &'static str, model: &str) -> Self {
        Self {
            id: request_id::fresh(id_prefix),
            object,
            created: unix_s(),
            model: model.to_owned(),
            system_fingerprint: FINGERPRINT,
        }
    }
}

/// A reply on its way.
#[derive(Debug)]
pub(super) struct Reply {
    head: Head,
    /// Whether a chunk with the usage was asked for.
    include_usage: bool,
    choices: Vec<Choice>,
    usage: Usage,
}

/// What is known of an answer that is streamed.
#[derive(Debug, Clone, Default)]
struct Choice {
    /// Calls that have begun.
    calls: usize,
    reasoning_tokens: u32,
}

#[derive(Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: &'a [ChunkChoice<'a>],
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: usize,
    delta: Part<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Part<'a> {
    Role { role: &'static str, content: &'static str },
    Content { content: &'a str },
    // Clients look for one name or the other.
    Reasoning { reasoning: &'a str, reasoning_content: &'a str },
    Call { tool_calls: [NumberedCall<'a>; 1] },
    Arguments { tool_calls: [MoreArguments<'a>; 1] },
    Nothing {},
}

#[derive(Serialize)]
struct NumberedCall<'a> {
    index: usize,
    #[serde(flatten)]
    call: ToolCall<'a>,
}

#[derive(Serialize)]
struct MoreArguments<'a> {
    index: usize,
    function: Arguments<'a>,
}

#[derive(Serialize)]
struct Arguments<'a> {
    arguments: &'a str,
}

#[derive(Serialize)]
struct ToolCall<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    function: Function<'a>,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    arguments: &'a str,
}

#[derive(Serialize)]
struct Logprobs<'a> {
    content: Vec<Logprob<'a>>,
    refusal: Option<&'a str>,
}

/// The reply to a request without `stream`.
#[derive(Serialize)]
pub(super) struct WholeReply<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<WholeChoice<'a>>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<Timings>,
}

#[derive(Serialize)]
struct WholeChoice<'a> {
    index: usize,
    message: Message<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: Option<&'a str>,
    refusal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall<'a>>,
}

impl Reply {
    /// A reply of `n` answers.
    pub(super) fn new(model: &str, n: usize, include_usage: bool) -> Self {
        Self {
            head: Head::new("chatcmpl-", "chat.completion", model),
            include_usage,
            choices: vec![Choice::default(); n],
            usage: Usage::default(),
        }
    }

    /// The reply to a request without `stream`.
    pub(super) fn whole<'a>(&'a self, answers: &'a [Whole]) -> WholeReply<'a> {
        let mut usage = Usage::default();
        for (index, answer) in answers.iter().enumerate() {
            usage.add(&answer.completion, answer.reasoning_tokens, index == 0);
        }
        let timings = match answers {
            [answer] => Some(Timings::of(&answer.completion)),
            _ => None,
        };
        let choices = answers.iter().enumerate().map(|(index, answer)| WholeChoice {
            index,
            message: Message::of(answer),
            logprobs: logprobs(&answer.logprobs),
            finish_reason: finish(answer.completion.finish, !answer.calls.is_empty()),
        });
        WholeReply { head: &self.head, choices: choices.collect(), usage, timings }
    }

    fn chunk<'a>(&'a self, choices: &'a [ChunkChoice<'a>], timings: Option<Timings>) -> Chunk<'a> {
        Chunk { head: &self.head, choices, usage: self.include_usage.then_some(None), timings }
    }

    fn send(
        &self,
        frames: &mut Frames,
        index: usize,
        delta: Part<'_>,
        logprobs: Option<Logprobs<'_>>,
    ) {
        frames.data(
            &self.chunk(&[ChunkChoice { index, delta, logprobs, finish_reason: None }], None),
        );
    }
}

impl Shape for Reply {
    fn begin(&mut self, frames: &mut Frames) {
        self.head.object = "chat.completion.chunk";
        for index in 0..self.choices.len() {
            self.send(frames, index, Part::Role { role: "assistant", content: "" }, None);
        }
    }

    fn delta(&mut self, index: usize, delta: Delta, frames: &mut Frames) {
        self.choices[index].reasoning_tokens += delta.reasoning_tokens();
        let mut logprobs = logprobs(&delta.logprobs);
        for piece in &delta.pieces {
            let part = match piece {
                Piece::Content(content) => Part::Content { content },
                Piece::Reasoning(text) => {
                    Part::Reasoning { reasoning: text, reasoning_content: text }
                }
                Piece::Call { name } => {
                    let calls = &mut self.choices[index].calls;
                    *calls += 1;
                    let call = ToolCall::new(name, "");
                    Part::Call { tool_calls: [NumberedCall { index: *calls - 1, call }] }
                }
                Piece::Arguments(arguments) => {
                    let (index, function) =
                        (self.choices[index].calls.saturating_sub(1), Arguments { arguments });
                    Part::Arguments { tool_calls: [MoreArguments { index, function }] }
                }
                Piece::CallEnd => continue,
            };
            self.send(frames, index, part, logprobs.take());
        }
        // They belong to text that is held back, or was never any.
        if logprobs.is_some() {
            self.send(frames, index, Part::Content { content: "" }, logprobs);
        }
    }

    fn done(&mut self, index: usize, completion: Completion, frames: &mut Frames) {
        let Choice { calls, reasoning_tokens } = self.choices[index];
        self.usage.add(&completion, reasoning_tokens, self.usage == Usage::default());
        let finish_reason = Some(finish(completion.finish, calls > 0));
        let choice = ChunkChoice { index, delta: Part::Nothing {}, logprobs: None, finish_reason };
        frames.data(&self.chunk(&[choice], Some(Timings::of(&completion))));
    }

    fn end(&mut self, frames: &mut Frames) {
        if self.include_usage {
            frames.data(&Chunk { usage: Some(Some(self.usage)), ..self.chunk(&[], None) });
        }
        frames.end();
    }

    fn failed(&mut self, error: &HttpError, frames: &mut Frames) {
        frames.data(&error.body());
    }
}

impl<'a> Message<'a> {
    fn of(answer: &'a Whole) -> Self {
        let reasoning = (!answer.reasoning.is_empty()).then_some(&*answer.reasoning);
        let said = !answer.content.is_empty() || answer.calls.is_empty();
        let call = |call: &'a Call| ToolCall::new(&call.name, &call.arguments);
        Self {
            role: "assistant",
            content: said.then_some(&*answer.content),
            refusal: None,
            reasoning,
            reasoning_content: reasoning,
            tool_calls: answer.calls.iter().map(call).collect(),
        }
    }
}

impl<'a> ToolCall<'a> {
    fn new(name: &'a str, arguments: &'a str) -> Self {
        let id = request_id::fresh("call_");
        Self { id, kind: "function", function: Function { name, arguments } }
    }
}

fn logprobs(tokens: &[TokenLogprob]) -> Option<Logprobs<'_>> {
    (!tokens.is_empty()).then(|| Logprobs { content: Logprob::all(tokens), refusal: None })
}

fn finish(finish: FinishReason, calls: bool) -> &'static str {
    match finish_reason(finish) {
        "stop" if calls => "tool_calls",
        reason => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn completion(finish: FinishReason) -> Completion {
        Completion {
            finish,
            stopped_by: None,
            prompt_tokens: 3,
            cached_tokens: 0,
            completion_tokens: 5,
            tokens: vec![],
            prompt_time: Duration::ZERO,
            decode_time: Duration::ZERO,
        }
    }

    fn token(byte: u8) -> TokenLogprob {
        TokenLogprob { id: 1, bytes: vec![byte], logprob: -1.0, top: vec![] }
    }

    /// The choices of the chunks that these deltas make.
    fn choices(deltas: Vec<Delta>) -> Vec<Value> {
        let (mut reply, mut frames) = (Reply::new("m", 1, false), Frames::default());
        deltas.into_iter().for_each(|delta| reply.delta(0, delta, &mut frames));
        reply.done(0, completion(FinishReason::Stop), &mut frames);
        frames.shown().into_iter().map(|(_, chunk)| chunk["choices"][0].clone()).collect()
    }

    fn pieces(pieces: Vec<Piece>) -> Delta {
        Delta { pieces, ..Delta::default() }
    }

    #[test]
    fn reasoning_has_both_names_and_calls_are_numbered() {
        let text = |text: &str| text.to_owned();
        let got = choices(vec![
            pieces(vec![Piece::Reasoning(text("hm")), Piece::Content(text("a"))]),
            pieces(vec![Piece::Call { name: text("f") }, Piece::Arguments(text("{\"x\""))]),
            pieces(vec![Piece::Arguments(text(":1}")), Piece::CallEnd]),
            pieces(vec![Piece::Call { name: text("g") }, Piece::Arguments(text("{}"))]),
            pieces(vec![Piece::CallEnd]),
        ]);
        let deltas: Vec<&Value> = got.iter().map(|choice| &choice["delta"]).collect();
        assert_eq!(deltas[0], &json!({"reasoning": "hm", "reasoning_content": "hm"}));
        assert_eq!(deltas[1], &json!({"content": "a"}));
        let begun = &deltas[2]["tool_calls"][0];
        assert!(begun["id"].as_str().unwrap().starts_with("call_"));
        let function = json!({"name": "f", "arguments": ""});
        assert_eq!((&begun["index"], &begun["function"]), (&json!(0), &function));
        assert_eq!(begun["type"], "function");
        let more = |index: usize, arguments: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]});
        assert_eq!(deltas[3..5], [&more(0, "{\"x\""), &more(0, ":1}")]);
        assert_eq!(deltas[5]["tool_calls"][0]["index"], 1);
        assert_ne!(deltas[5]["tool_calls"][0]["id"], begun["id"]);
        assert_eq!(deltas[6..], [&more(1, "{}"), &json!({})]);
        assert_eq!(got[7]["finish_reason"], "tool_calls");
    }

    #[test]
    fn log_probabilities_of_text_that_is_held_back_are_not_lost() {
        let got = choices(vec![
            Delta { logprobs: vec![token(b'a')], ..Delta::default() },
            Delta { logprobs: vec![token(b'b')], ..pieces(vec![Piece::Content("ab".into())]) },
        ]);
        let tokens = |at: usize| got[at]["logprobs"]["content"].as_array().map(Vec::len);
        assert_eq!([tokens(0), tokens(1), tokens(2)], [Some(1), Some(1), None]);
        assert_eq!(got[0]["delta"], json!({"content": ""}));
        assert_eq!(got[2]["finish_reason"], "stop");
    }

    #[test]
    fn a_whole_answer_of_calls_alone_has_no_content() {
        let call = || Call { name: "f".into(), arguments: "{}".into() };
        let whole = |content: &str, calls: Vec<Call>| Whole {
            content: content.into(),
            reasoning: "hm".into(),
            calls,
            logprobs: vec![],
            reasoning_tokens: 2,
            completion: completion(FinishReason::Stop),
        };
        let answers = [whole("", vec![call()]), whole("a", vec![call()]), whole("", vec![])];
        let got = json!(Reply::new("m", 3, false).whole(&answers));
        let message = |at: usize| &got["choices"][at]["message"];
        assert_eq!(message(0)["content"], Value::Null);
        let function = json!({"name": "f", "arguments": "{}"});
        assert_eq!(message(0)["tool_calls"][0]["function"], function);
        assert_eq!(
            (&message(0)["reasoning"], &message(0)["reasoning_content"]),
            (&json!("hm"), &json!("hm"))
        );
        assert_eq!(message(1)["content"], "a");
        assert_eq!(message(2)["content"], "");
        assert!(message(2).get("tool_calls").is_none());
        let finish = |at: usize| got["choices"][at]["finish_reason"].as_str();
        assert_eq!([finish(0), finish(2)], [Some("tool_calls"), Some("stop")]);
        assert_eq!(got["usage"]["completion_tokens_details"]["reasoning_tokens"], 6);
        assert_eq!(got["usage"]["prompt_tokens"], 3);
    }

    #[test]
    fn a_call_that_was_cut_off_is_no_call_that_ended() {
        assert_eq!(finish(FinishReason::Length, true), "length");
    }
}
