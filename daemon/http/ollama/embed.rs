//! `POST /api/embed` and `/api/embeddings`: vectors of texts.
//!
//! `/api/embed`: `{"model", "input": text | [text], "truncate"?: true, "dimensions"?, "keep_alive"?}`; vectors
//! have the length 1, and without input the model is loaded. `/api/embeddings`, the older one: `{"model",
//! "prompt", "keep_alive"?}`, one vector as it comes from the model.

use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use m40_sched::residency::Stay;
use serde::{Deserialize, Serialize};

use super::keep_alive::KeepAlive;
use super::{HttpError, ask, names, parse, read};
use crate::embedding::{self, Computed, Text, Texts};
use crate::http::Context;
use crate::models::ModelError;

/// The fields that both have.
#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    keep_alive: Option<KeepAlive>,
}

#[derive(Debug, Deserialize)]
struct Request {
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
pub(super) struct Reply {
    model: String,
    embeddings: Vec<Vec<f32>>,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: usize,
}

#[derive(Debug, Deserialize)]
struct OldRequest {
    #[serde(default)]
    prompt: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct OldReply {
    embedding: Vec<f32>,
}

pub(super) async fn embed(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Reply>, HttpError> {
    let begun = Instant::now();
    let bytes = read(&context, headers, body).await?;
    let (fields, request): (Fields, Request) = (parse(&bytes)?, parse(&bytes)?);
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
    let Computed { found, tokens, waited } = fields.embed(&context, texts).await?;
    let nanoseconds = |time: Duration| time.as_nanos() as u64;
    Ok(Json(Reply {
        model: fields.model.unwrap_or_default(),
        embeddings: found,
        total_duration: nanoseconds(begun.elapsed()),
        load_duration: nanoseconds(waited),
        prompt_eval_count: tokens,
    }))
}

pub(super) async fn embed_one(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<OldReply>, HttpError> {
    let bytes = read(&context, headers, body).await?;
    let (fields, request): (Fields, OldRequest) = (parse(&bytes)?, parse(&bytes)?);
    let prompt = request.prompt.filter(|prompt| !prompt.is_empty());
    let texts = prompt.into_iter().map(Text::Plain).collect();
    let texts = Texts { texts, truncate: true, dimensions: None, normalise: false };
    let mut computed = fields.embed(&context, texts).await?;
    Ok(Json(OldReply { embedding: computed.found.pop().unwrap_or_default() }))
}

impl Fields {
    /// Without texts the model is only loaded, or let go.
    async fn embed(
        &self,
        context: &Context,
        texts: Texts,
    ) -> Result<Computed<Vec<Vec<f32>>>, HttpError> {
        let asked = self.model.as_deref().unwrap_or_default();
        let found = names::look_for(&context.models, asked).await?;
        let name = found.ok_or_else(|| no_model(asked))?;
        let nothing = |waited| Computed { found: vec![], tokens: 0, waited };
        if texts.texts.is_empty() && self.keep_alive.is_some_and(KeepAlive::is_none) {
            context.models.keep_for(&name, Stay::For(Duration::ZERO));
            return Ok(nothing(Duration::ZERO));
        }
        let ticket = ask::ticket(context, &name, self.keep_alive).await;
        let ticket = ticket.map_err(|error| match error {
            ModelError::Unknown { .. } => no_model(asked),
            error => ask::refused(error),
        })?;
        if texts.texts.is_empty() {
            let since = Instant::now();
            drop(ticket.turn().await?);
            return Ok(nothing(since.elapsed()));
        }
        Ok(embedding::embed(ticket, texts).await?)
    }
}

/// In the words of these routes, which are not those of others.
fn no_model(asked: &str) -> HttpError {
    HttpError::not_found(format!("model {asked:?} not found, try pulling it first"))
}
