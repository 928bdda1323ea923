//! `POST /api/embed` and `/api/embeddings`, as Ollama has them.
//!
//! `/api/embed`: `{"model", "input": text | [text], "truncate"?: true, "dimensions"?}`; vectors have the
//! length 1, and without input the model is loaded. `/api/embeddings`, the older one: `{"model", "prompt"}`,
//! one vector as it comes from the model.

use std::time::Instant;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::error::HttpError;
use super::{Context, read_json};
use crate::embedding::{self, Computed, Text, Texts};
use crate::models::Urgency;

#[derive(Debug, Deserialize)]
struct Request {
    model: String,
    #[serde(default)]
    input: Option<Input>,
    #[serde(default)]
    truncate: Option<bool>,
    #[serde(default)]
    dimensions: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of strings")]
enum Input {
    One(String),
    Many(Vec<String>),
}

/// Durations are in nanoseconds.
#[derive(Debug, Serialize)]
struct Reply {
    model: String,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
}

#[derive(Debug, Deserialize)]
struct OldRequest {
    model: String,
    #[serde(default)]
    prompt: Option<String>,
}

#[derive(Debug, Serialize)]
struct OldReply {
    embedding: Vec<f32>,
}

pub(super) async fn embed(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let begun = Instant::now();
    let request: Request = read_json(&headers, body, context.body_limits).await?;
    let texts = Texts {
        texts: match request.input {
            None => vec![],
            Some(Input::One(text)) if text.is_empty() => vec![],
            Some(Input::One(text)) => vec![Text::Plain(text)],
            Some(Input::Many(texts)) => texts.into_iter().map(Text::Plain).collect(),
        },
        truncate: request.truncate.unwrap_or(true),
        dimensions: request.dimensions,
        normalise: true,
    };
    let Computed { found, tokens, waited } = embed_on(&context, &request.model, texts).await?;
    let nanoseconds = |time: std::time::Duration| time.as_nanos() as u64;
    Ok(Json(Reply {
        model: request.model,
        embeddings: found,
        total_duration: nanoseconds(begun.elapsed()),
        load_duration: nanoseconds(waited),
        prompt_eval_count: tokens,
    })
    .into_response())
}

pub(super) async fn embed_one(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let request: OldRequest = read_json(&headers, body, context.body_limits).await?;
    let prompt = request.prompt.filter(|prompt| !prompt.is_empty());
    let texts = prompt.into_iter().map(Text::Plain).collect();
    let texts = Texts { texts, truncate: true, dimensions: None, normalise: false };
    let mut computed = embed_on(&context, &request.model, texts).await?;
    let embedding = computed.found.pop().unwrap_or_default();
    Ok(Json(OldReply { embedding }).into_response())
}

/// Without texts the model is only loaded.
async fn embed_on(
    context: &Context,
    model: &str,
    texts: Texts,
) -> Result<Computed<Vec<Vec<f32>>>, HttpError> {
    // Clients name the tag that a name has where it says none.
    let name = model.strip_suffix(":latest").unwrap_or(model);
    let ticket = context.models.ask(Some(name), Urgency::default()).await?;
    if texts.texts.is_empty() {
        let since = Instant::now();
        ticket.turn().await?;
        return Ok(Computed { found: vec![], tokens: 0, waited: since.elapsed() });
    }
    Ok(embedding::embed(ticket, texts).await?)
}
