//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::{Path, State};
use m40_control::ModelEntry;
use m40_manifest::Capability;
use serde::Serialize;
use tokio::task::spawn_blocking;

use crate::http::Context;
use crate::http::error::HttpError;
use crate::models::{Facts, ModelError};

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
    /// Absent where neither its manifest nor its file is there to say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Vec<String>>,
    /// Tokens of prompt and answer together, as it is or would be loaded; under vLLM's name as well.
    context_length: Option<u32>,
    max_model_len: Option<u32>,
    meta: Meta,
}

/// What its file says, under llama.cpp's names where it has them; `null` where the file is not here.
#[derive(Debug, Serialize)]
struct Meta {
    n_params: u64,
    n_ctx_train: Option<u32>,
    n_embd: Option<u32>,
    n_vocab: Option<u32>,
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
    let data = objects(&context, context.models.listed().await?).await?;
    Ok(Json(List { object: "list", data }))
}

pub(super) async fn one(
    State(context): State<Context>,
    Path(id): Path<String>,
) -> Result<Json<ModelObject>, HttpError> {
    let mut entries = context.models.listed().await?;
    entries.retain(|entry| entry.name == id || entry.aliases.contains(&id));
    match objects(&context, entries).await?.pop() {
        Some(object) => Ok(Json(object)),
        None => Err(ModelError::Unknown { name: id }.into()),
    }
}

async fn objects(
    context: &Context,
    entries: Vec<ModelEntry>,
) -> Result<Vec<ModelObject>, HttpError> {
    let models = context.models.clone();
    let with_facts = move |entry: ModelEntry| (models.facts_to_list(&entry.name), entry);
    // Facts are read from files.
    let known = spawn_blocking(|| entries.into_iter().map(with_facts).collect::<Vec<_>>()).await;
    let mut objects = Vec::new();
    for (facts, entry) in known.map_err(|_| HttpError::internal())? {
        let can = context.models.capabilities(&entry.name).await;
        objects.push(ModelObject::new(entry, facts.as_ref(), can, context.started_unix_s));
    }
    Ok(objects)
}

impl ModelObject {
    fn new(
        entry: ModelEntry,
        facts: Option<&Facts>,
        can: Option<BTreeSet<Capability>>,
        started_unix_s: u64,
    ) -> Self {
        let info = facts.map(|facts| &facts.info);
        let context = entry.loaded.as_ref().map(|loaded| loaded.context_tokens);
        let context = context.or_else(|| Some(info?.context));
        Self {
            id: entry.name,
            object: "model",
            created: entry.imported_at_unix_s.unwrap_or(started_unix_s),
            owned_by: "m40d",
            aliases: entry.aliases,
            status: entry.state.name(),
            capabilities: can.map(|can| can.iter().map(ToString::to_string).collect()),
            context_length: context,
            max_model_len: context,
            meta: Meta {
                n_params: info.map_or(entry.parameters, |info| info.parameters),
                n_ctx_train: info.map(|info| info.context_trained),
                n_embd: info.map(|info| info.embedding),
                n_vocab: info.map(|info| info.vocab),
                size: facts.map_or(entry.size_bytes, |facts| facts.size_bytes),
                architecture: entry.architecture,
                quantization: entry.quantization,
            },
        }
    }
}
