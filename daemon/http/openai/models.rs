//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use m40_control::ModelEntry;
use serde::Serialize;

use crate::http::Context;
use crate::http::error::HttpError;
use crate::models::ModelError;

/// A model, in OpenAI's shape and with what other servers add.
#[derive(Debug, Serialize)]
pub(super) struct ModelObject {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    aliases: Vec<String>,
    status: &'static str,
    /// Tokens of prompt and answer together, while it is loaded; under vLLM's name as well.
    context_length: Option<u32>,
    max_model_len: Option<u32>,
    meta: Meta,
}

/// What its file says, under llama.cpp's names where it has them.
#[derive(Debug, Serialize)]
struct Meta {
    n_params: u64,
    /// In bytes.
    size: u64,
    architecture: String,
    quantization: String,
}

#[derive(Debug, Serialize)]
pub(super) struct List {
    object: &'static str,
    data: Vec<ModelObject>,
}

pub(super) async fn list(State(context): State<Context>) -> Result<Json<List>, HttpError> {
    let object = |entry| ModelObject::new(entry, context.started_unix_s);
    let data = context.models.listed().await?.into_iter().map(object).collect();
    Ok(Json(List { object: "list", data }))
}

pub(super) async fn one(
    State(context): State<Context>,
    Path(id): Path<String>,
) -> Result<Json<ModelObject>, HttpError> {
    let mut entries = context.models.listed().await?.into_iter();
    let is = |entry: &ModelEntry| entry.name == id || entry.aliases.contains(&id);
    match entries.find(is) {
        Some(entry) => Ok(Json(ModelObject::new(entry, context.started_unix_s))),
        None => Err(ModelError::Unknown { name: id }.into()),
    }
}

impl ModelObject {
    fn new(entry: ModelEntry, started_unix_s: u64) -> Self {
        let context = entry.loaded.as_ref().map(|loaded| loaded.context_tokens);
        Self {
            id: entry.name,
            object: "model",
            created: entry.imported_at_unix_s.unwrap_or(started_unix_s),
            owned_by: "m40d",
            aliases: entry.aliases,
            status: entry.state.name(),
            context_length: context,
            max_model_len: context,
            meta: Meta {
                n_params: entry.parameters,
                size: entry.size_bytes,
                architecture: entry.architecture,
                quantization: entry.quantization,
            },
        }
    }
}
