//! `/props`, `/slots` and `/running`: what models are, and what they do.

use axum::Json;
use axum::extract::{Query, State};
use m40_control::{ModelEntry, ModelState, QueueEntry};
use m40_sched::sampler::SamplingParams;
use m40_tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::generation;
use crate::http::Context;
use crate::http::error::HttpError;
use crate::models::{Loaded, Urgency};

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    model: Option<String>,
    /// Anything but `0`: no place is an error.
    fail_on_no_slot: Option<String>,
}

pub(super) async fn props(
    State(context): State<Context>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Value>, HttpError> {
    let ticket = context.models.ask(wanted.model.as_deref(), Urgency::default()).await?;
    let name = ticket.model().to_owned();
    let definition = context.models.definition(Some(&name));
    let sampling = definition.map(|definition| definition.sampling.params()).unwrap_or_default();
    let slots = context.models.side_by_side();
    let props = move |loaded: &Loaded| {
        let model = &loaded.model;
        let tokenizer = model.tokenizer();
        let text = |token: Option<u32>| token.map(|token| special(tokenizer, token));
        json!({
            "default_generation_settings": {
                "n_ctx": model.info().context,
                "params": settings(&sampling),
            },
            "total_slots": slots,
            "model_alias": name,
            "chat_template": model.chat_template().source(),
            "bos_token": text(tokenizer.bos()),
            "eos_token": text(tokenizer.eos()),
            "modalities": {"vision": false, "audio": false},
            "build_info": concat!("m40d-", env!("CARGO_PKG_VERSION")),
        })
    };
    Ok(Json(generation::read(ticket, props).await?))
}

fn special(tokenizer: &Tokenizer, token: u32) -> String {
    tokenizer.decode(&[token], true)
}

/// How tokens are chosen, in llama.cpp's terms.
fn settings(sampling: &SamplingParams) -> Value {
    json!({
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repeat_penalty": sampling.repeat_penalty,
        "repeat_last_n": sampling.repeat_last_n,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed.map_or_else(|| json!(-1), |seed| json!(seed)),
    })
}

pub(super) async fn slots(
    State(context): State<Context>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Vec<Value>>, HttpError> {
    let mut models = context.models.listed().await?;
    models.retain(|model| model.loaded.is_some());
    if let Some(name) = wanted.model {
        models.retain(|model| model.name == name || model.aliases.contains(&name));
        if models.is_empty() {
            let message = format!("the model {name:?} is not in memory, so it has no slots");
            return Err(HttpError::not_found(message));
        }
    }
    let (queue, places) = (context.models.queue(), context.models.side_by_side() as usize);
    let slots: Vec<Value> =
        models.iter().flat_map(|model| slots_of(model, &queue, places)).collect();
    let fails = wanted.fail_on_no_slot.is_some_and(|fails| fails != "0");
    if fails && slots.iter().all(|slot| slot["is_processing"] == true) {
        return Err(HttpError::no_slot());
    }
    Ok(Json(slots))
}

/// The places for answers of a model that is in memory.
fn slots_of(model: &ModelEntry, queue: &[QueueEntry], places: usize) -> Vec<Value> {
    let Some(loaded) = &model.loaded else { return vec![] };
    let runs = |entry: &&QueueEntry| entry.running && entry.model == model.name;
    let mut running = queue.iter().filter(runs);
    let slot = |id: usize| {
        let request = running.next();
        json!({
            "id": id,
            "model": model.name,
            "id_task": request.map_or_else(|| json!(-1), |entry| json!(entry.request)),
            "n_ctx": loaded.context_tokens,
            "is_processing": request.is_some(),
        })
    };
    (0..places).map(slot).collect()
}

pub(super) async fn running(State(context): State<Context>) -> Result<Json<Value>, HttpError> {
    let state = |state: &ModelState| match state {
        ModelState::Ready => Some("ready"),
        ModelState::Waiting | ModelState::Loading => Some("starting"),
        ModelState::Unloading => Some("stopping"),
        _ => None,
    };
    let entry = |model: ModelEntry| {
        let state = state(&model.state)?;
        let ttl = model.loaded.and_then(|loaded| loaded.leaves_in_s);
        Some(json!({"model": model.name, "state": state, "ttl": ttl}))
    };
    let models = context.models.listed().await?;
    let running: Vec<Value> = models.into_iter().filter_map(entry).collect();
    Ok(Json(json!({"running": running})))
}
