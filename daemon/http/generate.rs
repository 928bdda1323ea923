//! `POST /generate`: a prompt as it is, without a chat template.
//!
//! Request: `{"prompt": "…", "model"?, "stream"?, "max_tokens"?, …}` with the sampling fields of
//! [`super::params`]. `model` may be left out while exactly one is loaded.
//!
//! Without `stream` the reply is `{"model", "text", "finish_reason", "usage", "timings"}`, with
//! it `application/x-ndjson`: lines `{"text": "…"}` and a last one without `text` that has the
//! rest and `"done": true`, or `{"error": {…}}`. Lines suit `curl -N` and shell tools better than
//! server-sent events, which `/v1/chat/completions` has.

use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use m40_reply::Piece;
use m40llm::Completion;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::HttpError;
use super::openai::{Timings, Usage};
use super::{Context, HEAD_WAIT, params};
use crate::generation::{Answer, Event, Input, Question, finish_word};

#[derive(Debug, Deserialize)]
struct Request {
    #[serde(default)]
    model: Option<String>,
    prompt: String,
    #[serde(default)]
    stream: Option<bool>,
}

pub(super) async fn generate(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let (request, fields) = params::read::<Request>(&headers, body, context.body_limits).await?;
    let definition = context.models.definition(request.model.as_deref());
    let urgency = fields.urgency()?;
    let params = fields.params(definition.as_deref())?;
    if params.logprobs.is_some() {
        let message = "only /v1/chat/completions has them";
        return Err(HttpError::bad_param("logprobs", message));
    }
    let ticket = context.models.ask(request.model.as_deref(), urgency).await?;
    let input = Input::Text(request.prompt);
    let question = Question { input, params, ..Question::default() };
    let about = |error| HttpError::from(error).about("messages", "prompt");
    let mut answer = Answer::new(&context.models, ticket, question).map_err(about)?;
    if request.stream.unwrap_or(false) {
        answer.started_within(HEAD_WAIT).await.map_err(about)?;
        Ok(lines(answer))
    } else {
        answer.started().await.map_err(about)?;
        Ok(Json(whole(answer).await?).into_response())
    }
}

async fn whole(answer: Answer) -> Result<Value, HttpError> {
    let model = answer.model().to_owned();
    let whole = answer.whole().await?;
    let mut reply = summary(&model, &whole.completion);
    reply["text"] = Value::String(whole.content);
    Ok(reply)
}

fn lines(answer: Answer) -> Response {
    let lines = stream::unfold(answer, |mut answer| async move {
        let value = match answer.next().await? {
            Event::Delta(delta) => json!({"text": content(&delta.pieces)}),
            Event::Done(completion) => {
                let mut last = summary(answer.model(), &completion);
                last["done"] = Value::Bool(true);
                last
            }
            Event::Failed(error) => HttpError::from(error).body(),
        };
        let line = Bytes::from(format!("{value}\n"));
        Some((Ok::<_, Infallible>(line), answer))
    });
    let content_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    (content_type, Body::from_stream(lines)).into_response()
}

// A prompt that is no conversation has an answer that is nothing but content.
fn content(pieces: &[Piece]) -> String {
    let text = |piece: &Piece| match piece {
        Piece::Content(text) => text.clone(),
        _ => String::new(),
    };
    pieces.iter().map(text).collect()
}

fn summary(model: &str, completion: &Completion) -> Value {
    json!({
        "model": model,
        "finish_reason": finish_word(completion.finish),
        "usage": Usage::of(completion, 0),
        "timings": Timings::of(completion),
    })
}
