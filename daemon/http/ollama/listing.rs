//! `GET /api/tags` and `GET /api/ps`: the models that are here, and those in memory.

use std::time::{Duration, SystemTime};

use axum::Json;
use axum::extract::State;
use m40_control::{ModelEntry, ModelState};
use m40llm::ModelInfo;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::{HttpError, names, rfc3339};
use crate::http::Context;
use crate::models::Facts;

/// When a model leaves that stays for ever, as seconds from now: what Go's longest duration comes to.
const FOR_EVER: Duration = Duration::from_secs(i64::MAX as u64 / 1_000_000_000);

pub(super) async fn tags(State(context): State<Context>) -> Result<Json<Value>, HttpError> {
    let listed = context.models.listed().await?;
    let models = context.models.clone();
    let known = spawn_blocking(move || {
        let is_here = |entry: &ModelEntry| entry.state != ModelState::Remote;
        let with_facts = |entry: ModelEntry| Some((models.facts_to_list(&entry.name)?, entry));
        listed.into_iter().filter(is_here).filter_map(with_facts).collect::<Vec<_>>()
    });
    let mut all = Vec::new();
    for (facts, entry) in known.await.map_err(|_| HttpError::internal())? {
        let mut value = model(&entry.name, &facts);
        value["modified_at"] = json!(rfc3339(facts.modified));
        value["size"] = json!(facts.size_bytes);
        if let Some(can) = context.models.capabilities(&entry.name).await {
            value["capabilities"] = can.iter().map(ToString::to_string).collect();
        }
        all.push((facts.modified, value));
    }
    // The newest first, as Ollama has it.
    all.sort_by_key(|(modified, _)| std::cmp::Reverse(*modified));
    let all: Vec<Value> = all.into_iter().map(|(_, value)| value).collect();
    Ok(Json(json!({"models": all})))
}

pub(super) async fn ps(State(context): State<Context>) -> Result<Json<Value>, HttpError> {
    let models = context.models.clone();
    let listed = spawn_blocking(move || {
        let mut all = models.in_memory();
        // What stays longest first.
        all.sort_by_key(|(_, stays)| std::cmp::Reverse(stays.unwrap_or(Duration::MAX)));
        let now = SystemTime::now();
        let seen = |(entry, stays): (ModelEntry, Option<Duration>)| {
            let name = entry.name;
            let loaded = entry.loaded?;
            let mut value = model(&name, &models.facts_to_list(&name)?);
            let on_gpu = if models.are_on_gpu() { loaded.memory_bytes } else { 0 };
            value["size"] = json!(loaded.memory_bytes);
            value["size_vram"] = json!(on_gpu);
            value["context_length"] = json!(loaded.context_tokens);
            value["expires_at"] = json!(rfc3339(now + stays.unwrap_or(FOR_EVER).min(FOR_EVER)));
            Some((name, value))
        };
        all.into_iter().filter_map(seen).collect::<Vec<_>>()
    });
    let all = listed.await.map_err(|_| HttpError::internal())?.into_iter();
    let all = all.filter(|(name, _)| context.models.check_allowed(name).is_ok());
    let all: Vec<Value> = all.map(|(_, value)| value).collect();
    Ok(Json(json!({"models": all})))
}

fn model(name: &str, facts: &Facts) -> Value {
    let name = names::shown(name);
    json!({
        "name": name,
        "model": name,
        "digest": facts.digest.to_string(),
        "details": details(&facts.info),
    })
}

/// What a model is, in short.
pub(super) fn details(info: &ModelInfo) -> Value {
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": parameter_size(info.parameters),
        "quantization_level": info.quantization,
        "context_length": info.context,
    })
}

/// A number of weights as `7.6B`, `134.52M` or `12K`.
fn parameter_size(parameters: u64) -> String {
    let count = parameters as f64;
    match parameters {
        1_000_000_000.. => format!("{:.1}B", count / 1e9),
        1_000_000.. => format!("{:.2}M", count / 1e6),
        1000.. => format!("{:.0}K", count / 1e3),
        few => few.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let sizes =
            [(999, "999"), (12_345, "12K"), (134_515_008, "134.52M"), (7_615_616_512, "7.6B")];
        for (parameters, size) in sizes {
            assert_eq!(parameter_size(parameters), size);
        }
    }

    #[test]
    fn for_ever_can_be_written() {
        assert!(rfc3339(SystemTime::now() + FOR_EVER).starts_with("23"));
    }
}
