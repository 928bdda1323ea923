//! The shapes of answers, whole and in lines.

use std::convert::Infallible;
use std::mem;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use m40_reply::Piece;
use m40llm::{Completion, FinishReason, TokenLogprob};
use serde_json::{Value, json};

use super::{HttpError, rfc3339};
use crate::generation::{Answer, Call, Delta, Event};
use crate::http::error::ErrorShape;
use crate::http::request_id;

/// Which route answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Generate,
    Chat,
}

/// What is known of a reply before there is one.
#[derive(Debug)]
pub(super) struct Reply {
    kind: Kind,
    /// The model's name as the client wrote it.
    model: String,
    /// When the request came.
    since: Instant,
    /// How long it waited for its turn, once it has that.
    waited: Option<Duration>,
    /// Whether log-probabilities were asked for.
    pub logprobs: bool,
    /// Whether the client is told the tokens to go on from.
    pub goes_on: bool,
    /// A call that is not complete yet.
    call: Call,
    /// Calls so far.
    calls: usize,
}

/// A part of an answer, or all of it.
#[derive(Debug, Default)]
struct Said {
    content: String,
    thinking: String,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
}

impl Said {
    fn is_empty(&self) -> bool {
        self.content.is_empty()
            && self.thinking.is_empty()
            && self.calls.is_empty()
            && self.logprobs.is_empty()
    }

    fn add(&mut self, more: Self) {
        self.content.push_str(&more.content);
        self.thinking.push_str(&more.thinking);
        self.calls.extend(more.calls);
        self.logprobs.extend(more.logprobs);
    }
}

/// What a request without a prompt is told.
pub(super) fn loaded(kind: Kind, model: &str, reason: &str) -> Value {
    let mut value = json!({"model": model, "created_at": rfc3339(SystemTime::now())});
    put(&mut value, kind, Said::default());
    value["done"] = json!(true);
    value["done_reason"] = json!(reason);
    value
}

impl Reply {
    pub(super) fn new(kind: Kind, model: String, since: Instant) -> Self {
        Self {
            kind,
            model,
            since,
            waited: None,
            logprobs: false,
            goes_on: false,
            call: Call::default(),
            calls: 0,
        }
    }

    /// The reply in one.
    pub(super) async fn whole(mut self, mut answer: Answer) -> Result<Value, HttpError> {
        let mut all = Said::default();
        self.start(&mut answer).await?;
        loop {
            match answer.next().await {
                Some(Event::Delta(delta)) => all.add(self.hear(delta)),
                Some(Event::Done(completion)) => {
                    return Ok(self.last(all, answer.prompt(), &completion));
                }
                Some(Event::Failed(error)) => return Err(error.into()),
                None => return Err(HttpError::internal()),
            }
        }
    }

    /// The reply in lines of JSON.
    pub(super) fn lines(self, answer: Answer) -> Response {
        let lines = stream::unfold(Some((answer, self)), async |state| {
            let (mut answer, mut reply) = state?;
            let (value, is_last) = match reply.line(&mut answer).await {
                Ok(line) => line,
                Err(error) => (ErrorShape::Ollama.body(&error), true),
            };
            Some((line(&value), (!is_last).then_some((answer, reply))))
        });
        respond(Body::from_stream(lines))
    }

    /// The next line, and whether it is the last.
    async fn line(&mut self, answer: &mut Answer) -> Result<(Value, bool), HttpError> {
        self.start(answer).await?;
        loop {
            match answer.next().await {
                Some(Event::Delta(delta)) => {
                    let said = self.hear(delta);
                    if !said.is_empty() {
                        return Ok((self.part(said, false), false));
                    }
                }
                Some(Event::Done(completion)) => {
                    return Ok((self.last(Said::default(), answer.prompt(), &completion), true));
                }
                Some(Event::Failed(error)) => return Err(error.into()),
                None => return Err(HttpError::internal()),
            }
        }
    }

    async fn start(&mut self, answer: &mut Answer) -> Result<(), HttpError> {
        if self.waited.is_none() {
            answer.started().await?;
            self.waited = Some(self.since.elapsed());
        }
        Ok(())
    }

    /// What can be told of more of an answer. A call is told when it is complete.
    fn hear(&mut self, delta: Delta) -> Said {
        let mut said = Said::default();
        for piece in delta.pieces {
            match piece {
                Piece::Content(text) => said.content.push_str(&text),
                Piece::Reasoning(text) => said.thinking.push_str(&text),
                Piece::Call { name } => self.call = Call { name, ..Call::default() },
                Piece::Arguments(text) => self.call.arguments.push_str(&text),
                Piece::CallEnd => {
                    said.calls.push(call(self.calls, mem::take(&mut self.call)));
                    self.calls += 1;
                }
            }
        }
        said.logprobs = delta.logprobs.iter().map(logprob).collect();
        said
    }

    fn part(&self, mut said: Said, is_done: bool) -> Value {
        let mut value = json!({"model": self.model, "created_at": rfc3339(SystemTime::now())});
        let logprobs = mem::take(&mut said.logprobs);
        put(&mut value, self.kind, said);
        value["done"] = json!(is_done);
        if self.logprobs && !logprobs.is_empty() {
            value["logprobs"] = Value::Array(logprobs);
        }
        value
    }

    fn last(&self, said: Said, prompt: &[u32], completion: &Completion) -> Value {
        let mut value = self.part(said, true);
        let reason = match completion.finish {
            FinishReason::Stop | FinishReason::Cancelled => "stop",
            FinishReason::Length | FinishReason::Deadline => "length",
        };
        value["done_reason"] = json!(reason);
        if self.goes_on {
            value["context"] = prompt.iter().chain(&completion.tokens).copied().collect();
        }
        let waited = self.waited.unwrap_or_default();
        value["total_duration"] = nanoseconds(self.since.elapsed());
        value["load_duration"] = nanoseconds(waited);
        value["prompt_eval_count"] = json!(completion.prompt_tokens);
        value["prompt_eval_duration"] = nanoseconds(completion.prompt_time);
        value["eval_count"] = json!(completion.completion_tokens);
        value["eval_duration"] = nanoseconds(completion.decode_time);
        value
    }
}

/// Puts what was said where the route has it.
fn put(value: &mut Value, kind: Kind, said: Said) {
    let text = match kind {
        Kind::Generate => {
            value["response"] = json!(said.content);
            value
        }
        Kind::Chat => {
            value["message"] = json!({"role": "assistant", "content": said.content});
            &mut value["message"]
        }
    };
    if !said.thinking.is_empty() {
        text["thinking"] = json!(said.thinking);
    }
    if !said.calls.is_empty() {
        text["tool_calls"] = Value::Array(said.calls);
    }
}

fn call(index: usize, call: Call) -> Value {
    let Call { name, arguments } = call;
    // They are an object; what is not would be shown as it is.
    let arguments = serde_json::from_str(&arguments).unwrap_or(Value::String(arguments));
    let function = json!({"index": index, "name": name, "arguments": arguments});
    json!({"id": request_id::fresh("call_"), "function": function})
}

fn logprob(token: &TokenLogprob) -> Value {
    let one = |bytes: &[u8], logprob: f32| json!({"token": String::from_utf8_lossy(bytes), "logprob": logprob, "bytes": bytes});
    let mut value = one(&token.bytes, token.logprob);
    if !token.top.is_empty() {
        let top = token.top.iter().map(|(_, bytes, logprob)| one(bytes, *logprob));
        value["top_logprobs"] = top.collect();
    }
    value
}

fn nanoseconds(time: Duration) -> Value {
    json!(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

/// A value as a line of a stream.
pub(super) fn line(value: &Value) -> Result<Bytes, Infallible> {
    Ok(Bytes::from(format!("{value}\n")))
}

/// A stream of lines as a response.
pub(super) fn respond(lines: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(kind: Kind) -> Reply {
        Reply::new(kind, "m:latest".into(), Instant::now())
    }

    fn delta(pieces: &[Piece]) -> Delta {
        Delta { pieces: pieces.to_vec(), ..Delta::default() }
    }

    #[test]
    fn a_call_is_told_when_it_is_complete_and_its_arguments_are_an_object() {
        let mut reply = reply(Kind::Chat);
        let begun = [Piece::Call { name: "look".into() }, Piece::Arguments("{\"a\":".into())];
        assert!(reply.hear(delta(&begun)).is_empty());
        let said = reply.hear(delta(&[Piece::Arguments("1}".into()), Piece::CallEnd]));
        let value = reply.part(said, false);
        let calls = value["message"]["tool_calls"].as_array().unwrap();
        let want = json!({"index": 0, "name": "look", "arguments": {"a": 1}});
        assert_eq!((calls.len(), &calls[0]["function"]), (1, &want));
        let more =
            [Piece::Call { name: "b".into() }, Piece::Arguments("{}".into()), Piece::CallEnd];
        let said = reply.hear(delta(&more));
        assert_eq!(said.calls[0]["function"]["index"], 1);
        assert_ne!(said.calls[0]["id"], calls[0]["id"]);
    }

    #[test]
    fn thoughts_are_apart_from_what_is_said() {
        let pieces = [Piece::Reasoning("hm".into()), Piece::Content("yes".into())];
        let mut chat = reply(Kind::Chat);
        let said = chat.hear(delta(&pieces));
        let want = json!({"role": "assistant", "content": "yes", "thinking": "hm"});
        assert_eq!(chat.part(said, false)["message"], want);
        let mut generate = reply(Kind::Generate);
        let said = generate.hear(delta(&pieces));
        let part = generate.part(said, false);
        assert_eq!((&part["response"], &part["thinking"]), (&json!("yes"), &json!("hm")));
    }

    #[test]
    fn the_last_part_has_the_figures_and_what_to_go_on_from() {
        let mut reply = reply(Kind::Generate);
        reply.goes_on = true;
        let completion = Completion {
            stopped_by: None,
            finish: FinishReason::Length,
            prompt_tokens: 2,
            cached_tokens: 0,
            completion_tokens: 1,
            tokens: vec![9],
            prompt_time: Duration::from_micros(5),
            decode_time: Duration::from_nanos(7),
        };
        let last = reply.last(Said::default(), &[4, 5], &completion);
        assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("length")));
        assert_eq!((&last["response"], &last["context"]), (&json!(""), &json!([4, 5, 9])));
        assert_eq!((&last["prompt_eval_count"], &last["eval_count"]), (&json!(2), &json!(1)));
        assert_eq!(last["prompt_eval_duration"], 5000);
        assert_eq!(last["eval_duration"], 7);
        assert!(last["total_duration"].is_u64() && last["load_duration"].is_u64());
    }

    #[test]
    fn a_request_without_a_prompt_has_an_empty_answer_of_its_route() {
        let value = loaded(Kind::Chat, "m", "load");
        assert_eq!(value["message"], json!({"role": "assistant", "content": ""}));
        assert_eq!((&value["done"], &value["done_reason"]), (&json!(true), &json!("load")));
        assert_eq!(loaded(Kind::Generate, "m", "unload")["response"], "");
        let time = value["created_at"].as_str().unwrap();
        assert_eq!((time.len(), &time[time.len() - 1..]), (30, "Z"), "{time}");
    }
}
