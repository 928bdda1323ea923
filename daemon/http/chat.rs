//! `POST /v1/chat/completions`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;

use super::chat_reply::Reply;
use super::error::HttpError;
use super::{Context, HEAD_WAIT, PING_INTERVAL, params, request_id, unix_s};
use crate::generation::{Answer, Chat, Event, Input, Question};

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default)]
    model: Option<String>,
    messages: Vec<Message>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
    #[serde(default)]
    n: Option<u32>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(default)]
    response_format: Option<ResponseFormat>,
    #[serde(default)]
    chat_template_kwargs: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Message {
    role: String,
    #[serde(default)]
    content: Value,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: String,
}

pub(super) async fn complete(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let (request, fields) = params::read::<Request>(&headers, body, context.body_limits).await?;
    check_supported(&request)?;
    let definition = context.models.definition(request.model.as_deref());
    let urgency = fields.urgency()?;
    let params = fields.params(definition.as_deref())?;
    let input = Input::Chat(Chat {
        messages: template_messages(request.messages)?,
        extra: request.chat_template_kwargs.unwrap_or_default(),
        ..Chat::default()
    });
    let ticket = context.models.ask(request.model.as_deref(), urgency).await?;
    let logprobs = params.logprobs.is_some();
    let question = Question { input, params, ..Question::default() };
    let mut answer = Answer::new(&context.models, ticket, question)?;
    let reply = Reply {
        id: request_id::fresh("chatcmpl-"),
        created: unix_s(),
        model: answer.model().to_owned(),
        logprobs,
        include_usage: request.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
    };
    if request.stream.unwrap_or(false) {
        answer.started_within(HEAD_WAIT).await?;
        let keep_alive = KeepAlive::new().interval(PING_INTERVAL).text("ping");
        Ok(Sse::new(events(answer, reply)).keep_alive(keep_alive).into_response())
    } else {
        Ok(Json(reply.whole(&answer.whole().await?)).into_response())
    }
}

// What would change the answer and cannot be honoured is refused, not dropped.
fn check_supported(request: &Request) -> Result<(), HttpError> {
    if request.n.is_some_and(|n| n != 1) {
        return Err(HttpError::bad_param("n", "only 1 is supported"));
    }
    if request.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
        return Err(HttpError::bad_param("tools", "are not supported yet"));
    }
    match &request.response_format {
        Some(format) if format.kind != "text" => {
            let message = format!("the type {:?} is not supported, only \"text\"", format.kind);
            Err(HttpError::bad_param("response_format", message))
        }
        _ => Ok(()),
    }
}

pub(super) fn template_messages(messages: Vec<Message>) -> Result<Value, HttpError> {
    if messages.is_empty() {
        return Err(HttpError::bad_param("messages", "must have at least one message"));
    }
    let convert = |(at, message): (usize, Message)| {
        let role = match message.role.as_str() {
            // What newer clients call the system role; templates know only that.
            "developer" => "system",
            role @ ("system" | "user" | "assistant" | "tool") => role,
            other => {
                let message =
                    format!("{other:?} is none of system, developer, user, assistant, tool");
                return Err(HttpError::bad_param(format!("messages[{at}].role"), message));
            }
        };
        let content = text_of(message.content, role)
            .map_err(|message| HttpError::bad_param(format!("messages[{at}].content"), message))?;
        Ok(json!({"role": role, "content": content}))
    };
    messages.into_iter().enumerate().map(convert).collect()
}

fn text_of(content: Value, role: &str) -> Result<String, String> {
    match content {
        Value::String(text) => Ok(text),
        // An assistant that only called tools said nothing.
        Value::Null if role == "assistant" => Ok(String::new()),
        Value::Array(parts) => {
            let texts: Result<Vec<String>, String> = parts.into_iter().map(part_text).collect();
            Ok(texts?.join("\n"))
        }
        _ => Err("must be a string or an array of parts".to_owned()),
    }
}

fn part_text(part: Value) -> Result<String, String> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (Some("text"), None) => Err("a part of type \"text\" lacks its text".to_owned()),
        (Some(other), _) => {
            Err(format!("parts of type {other:?} are not supported, only \"text\""))
        }
        (None, _) => Err("a part lacks its type".to_owned()),
    }
}

fn events(answer: Answer, reply: Reply) -> impl Stream<Item = Result<SseEvent, Infallible>> {
    let first = VecDeque::from([sse(&reply.first_chunk())]);
    stream::unfold((answer, reply, first), |(mut answer, reply, mut pending)| async move {
        if pending.is_empty() {
            match answer.next().await? {
                Event::Delta(delta) => pending.extend(reply.chunks(&delta).iter().map(sse)),
                Event::Done(completion) => {
                    pending.push_back(sse(&reply.last_chunk(&completion)));
                    pending.extend(reply.usage_chunk(&completion).as_ref().map(sse));
                    pending.push_back(SseEvent::default().data("[DONE]"));
                }
                Event::Failed(error) => pending.push_back(sse(&HttpError::from(error).body())),
            }
        }
        let event = pending.pop_front()?;
        Some((Ok(event), (answer, reply, pending)))
    })
}

fn sse(value: &Value) -> SseEvent {
    // JSON text has no line ends, which is all that a field's value must not have.
    SseEvent::default().data(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(messages: &str) -> Result<Value, String> {
        let messages: Vec<Message> = serde_json::from_str(messages).unwrap();
        template_messages(messages).map_err(|error| error.body()["error"]["message"].to_string())
    }

    #[test]
    fn every_form_of_content_becomes_text() {
        let got = convert(
            r#"[{"role":"developer","content":"be brief"},
                {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
                {"role":"assistant","content":null},
                {"role":"assistant"},
                {"role":"tool","tool_call_id":"x","content":"42"}]"#,
        );
        let want = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": ""},
            {"role": "tool", "content": "42"},
        ]);
        assert_eq!(got, Ok(want));
    }

    #[test]
    fn what_is_not_text_is_refused_by_place() {
        for (messages, says) in [
            ("[]", "at least one"),
            (
                r#"[{"role":"user","content":"a"},{"role":"wizard","content":"b"}]"#,
                "messages[1].role",
            ),
            (r#"[{"role":"user","content":null}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":7}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":[{"type":"image_url"}]}]"#, "image_url"),
            (r#"[{"role":"user","content":[{"type":"text"}]}]"#, "lacks its text"),
            (r#"[{"role":"user","content":["a"]}]"#, "lacks its type"),
        ] {
            let error = convert(messages).unwrap_err();
            assert!(error.contains(says), "{messages}: {error}");
        }
    }
}
