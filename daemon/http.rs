//! What clients on the network speak: the APIs of OpenAI, Anthropic and llama.cpp, and a plain `/generate`.
//!
//! | route | |
//! |---|---|
//! | `GET /health` | `{"status":"ok"}`; 503 while the daemon stops. `?model=NAME`: of that model |
//! | `GET /ready` | 200 while requests are taken, else 503 |
//! | `GET /metrics` | figures for Prometheus |
//! | `/v1/…` | OpenAI's ([`openai`]) |
//! | `POST /v1/embeddings` | vectors of texts, as OpenAI has them |
//! | `POST /v1/rerank`, `/rerank` | which documents fit a query, as Jina has it |
//! | `POST /generate` | a prompt as it is; streamed as newline-delimited JSON |
//! | `/v1/messages` and below | Anthropic's: `anthropic` |
//! | `/completion`, `/tokenize` and others | llama.cpp's: `llamacpp` |
//! | `GET /openapi.json` | all of these in OpenAPI's terms |
//!
//! Ollama's routes are in [`ollama`]. Administration is not here but on the control socket; what Ollama's
//! clients may do of it is done as if it was asked for there.

mod anthropic;
mod body;
mod embeddings;
mod error;
mod generate;
mod guard;
mod health;
mod llamacpp;
mod ollama;
mod openai;
mod openapi;
mod params;
mod record;
mod request_id;
mod rerank;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::routing::{get, post};
use axum::{Router, middleware};

use crate::control;
use crate::models::Models;
pub(crate) use body::{BodyError, BodyLimits, read_json};
use error::HttpError;
pub(crate) use guard::Guard;
pub(crate) use params::check_stops;

/// What every handler has.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub models: Models,
    /// What administration has.
    pub control: control::Context,
    pub body_limits: BodyLimits,
    /// Whether clients may add and remove models.
    pub allow_model_management: bool,
    /// Started when the daemon did, as seconds since 1970: OpenAI's `created` of a model that
    /// was never imported.
    pub started_unix_s: u64,
}

/// The routes of the HTTP listener.
pub(crate) fn router(context: Context, guard: Guard) -> Router {
    let routes = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/v1/embeddings", post(embeddings::embed))
        .route("/v1/rerank", post(rerank::rank))
        .route("/rerank", post(rerank::rank))
        .merge(openai::routes())
        .route("/generate", post(generate::generate))
        .merge(ollama::routes(&context))
        .merge(anthropic::routes())
        .merge(llamacpp::routes())
        .merge(openapi::routes())
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(context);
    guard
        .around(routes)
        .layer(middleware::from_fn(error::layer))
        .layer(middleware::from_fn(record::layer))
        .layer(middleware::from_fn(request_id::layer))
}

async fn no_route(uri: axum::http::Uri) -> HttpError {
    HttpError::not_found(format!("there is no route {}", uri.path()))
}

async fn no_method(method: axum::http::Method, uri: axum::http::Uri) -> HttpError {
    HttpError::method_not_allowed(format!("{} does not take {method}", uri.path()))
}

/// How long a stream's head waits for the request's turn. Until then what goes wrong has a status of its
/// own; after that it is an event, and proxies see that the server is alive.
const HEAD_WAIT: Duration = Duration::from_secs(5);

/// Keeps proxies from giving up on a stream while a request waits or a prompt is being computed.
const PING_INTERVAL: Duration = Duration::from_secs(15);

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
