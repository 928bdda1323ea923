//! Whether the daemon is there, whether it serves, and figures of what it does.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use m40_control::{ModelEntry, ModelState};
use serde::Deserialize;
use serde_json::json;
use tokio::task::spawn_blocking;

use super::Context;
use super::error::HttpError;
use crate::metrics;
use crate::net::Phase;

#[derive(Debug, Deserialize)]
pub(super) struct Wanted {
    model: Option<String>,
}

/// `GET /health`, also of one model: then 503 when it cannot be had.
pub(super) async fn health(
    State(context): State<Context>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, HttpError> {
    if *context.models.phase().borrow() != Phase::Serving {
        return Ok(stopping());
    }
    let bad = |rejection: QueryRejection| HttpError::bad_param("model", rejection.body_text());
    let Query(wanted) = wanted.map_err(bad)?;
    let Some(name) = wanted.model else { return Ok(Json(json!({"status": "ok"})).into_response()) };
    let entry = context.models.look_up(&name).await?;
    let status = match entry.state {
        ModelState::Failed => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    Ok((status, Json(of_model(&entry))).into_response())
}

fn of_model(entry: &ModelEntry) -> serde_json::Value {
    json!({
        "status": if entry.state == ModelState::Failed { "failed" } else { "ok" },
        "model": entry.name,
        "state": entry.state.name(),
        "loaded": entry.state == ModelState::Ready,
        "failure": entry.failure,
    })
}

/// `GET /ready`: 503 while the daemon stops, as it also does when its GPU is lost.
pub(super) async fn ready(State(context): State<Context>) -> Response {
    match *context.models.phase().borrow() {
        Phase::Serving => Json(json!({"status": "ready"})).into_response(),
        Phase::Draining | Phase::Closing => stopping(),
    }
}

fn stopping() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "stopping"}))).into_response()
}

/// `GET /metrics`
pub(super) async fn metrics(State(context): State<Context>) -> Result<Response, HttpError> {
    let models = context.models;
    // Looking reads files.
    let text = spawn_blocking(move || models.metrics().text(&models.look())).await;
    let text = text.ok().and_then(Result::ok).ok_or_else(HttpError::internal)?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
