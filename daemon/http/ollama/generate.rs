//! `POST /api/generate`

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use m40_manifest::Capability;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ask::{Asked, Fields};
use super::reply::Kind;
use super::{HttpError, is_empty, parse, read};
use crate::generation::{Chat, Input};
use crate::http::Context;

/// The fields that only this route has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    prompt: Option<String>,
    /// The text that comes after what is to be filled in.
    suffix: Option<String>,
    system: Option<String>,
    template: Option<String>,
    /// Tokens of earlier prompts and answers.
    context: Option<Vec<u32>>,
    /// Whether the prompt is given to the model as it is.
    raw: Option<bool>,
    images: Value,
}

pub(super) async fn generate(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let bytes = read(&context, headers, body).await?;
    let (fields, request): (Fields, Request) = (parse(&bytes)?, parse(&bytes)?);
    let asked = fields.find(&context, Kind::Generate).await?;
    if !is_empty(&request.images) {
        return Err(asked.does_not_support("images"));
    }
    let before = request.context.clone().unwrap_or_default();
    let Some(input) = request.input(&asked)? else { return asked.load(&context).await };
    let inserts: &[_] =
        if matches!(input, Input::Fill { .. }) { &[Capability::Insert] } else { &[] };
    asked.check(&context, inserts).await?;
    asked.answer(&context, input, before).await
}

/// An empty text says nothing.
fn said(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

impl Request {
    /// What the model is given; nothing where it is only to be loaded.
    fn input(self, asked: &Asked) -> Result<Option<Input>, HttpError> {
        let is_raw = self.raw.unwrap_or(false);
        let (system, template) = (said(self.system), said(self.template));
        let has_context = self.context.is_some_and(|context| !context.is_empty());
        if is_raw && (system.is_some() || template.is_some() || has_context) {
            let message = "raw mode does not support template, system, or context";
            return Err(HttpError::bad_request(message.to_owned()));
        }
        let prompt = self.prompt.unwrap_or_default();
        if let Some(after) = said(self.suffix) {
            return Ok(Some(Input::Fill { before: prompt, after }));
        }
        if prompt.is_empty() {
            return Ok(None);
        }
        if is_raw {
            return Ok(Some(Input::Text(prompt)));
        }
        let mut messages: Vec<Value> = Vec::new();
        messages.extend(system.map(|system| json!({"role": "system", "content": system})));
        messages.push(json!({"role": "user", "content": prompt}));
        Ok(Some(Input::Chat(Chat {
            messages: Value::Array(messages),
            reasoning: asked.reasoning(),
            template,
            ..Chat::default()
        })))
    }
}
