//! Ollama's API, for the clients that were written for it.
//!
//! | route | |
//! |---|---|
//! | `GET /` | `Ollama is running`, by which its clients find it |
//! | `GET /api/version` | the version that clients are told |
//! | `GET /api/tags` | the models that are here |
//! | `GET /api/ps` | the models in memory |
//! | `POST /api/show` | what a model is and can do |
//! | `POST /api/generate` | an answer to a prompt; loads and unloads |
//! | `POST /api/chat` | the next message of a conversation |
//! | `POST /api/embed`, `/api/embeddings` | vectors of texts |
//! | `POST /api/pull`, `/api/create`, `/api/copy`, `DELETE /api/delete`, `/api/blobs/{digest}` | change what is here, where that is allowed |
//! | `POST /api/push` | 501 |
//!
//! Times are nanoseconds; streams are lines of JSON. A model's name always has a tag for clients, and
//! `latest` where it has none here. What Ollama would reload a model for is no reason to here:
//! `num_ctx` bounds the request that says it, and other options of loading mean nothing.

mod ask;
mod blobs;
mod chat;
mod create;
mod embed;
mod generate;
mod keep_alive;
mod listing;
mod manage;
mod names;
mod options;
mod reply;
mod show;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::routing::{delete, get, head, post};
use axum::{Json, Router, middleware};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::SystemTime;

use super::body::{self, BodyError};
use super::error::HttpError;
use super::{Context, guard};

/// The version of Ollama whose API this is. Clients ask for it before they use what came with one; it must
/// be numeric, and VS Code wants 0.6.4 or later.
const VERSION: &str = "0.18.3";

/// The routes of this API.
pub(super) fn routes(context: &Context) -> Router<Context> {
    let changing = Router::new()
        .route("/api/pull", post(manage::pull))
        .route("/api/push", post(manage::push))
        .route("/api/create", post(create::create))
        .route("/api/copy", post(manage::copy))
        .route("/api/delete", delete(manage::delete))
        .route("/api/blobs/{digest}", head(blobs::look).post(blobs::receive))
        .route_layer(middleware::from_fn_with_state(context.clone(), guard::manage));
    Router::new()
        .route("/", get(async || "Ollama is running"))
        .route("/api/version", get(async || Json(json!({"version": VERSION}))))
        .route("/api/tags", get(listing::tags))
        .route("/api/ps", get(listing::ps))
        .route("/api/show", post(show::show))
        .route("/api/generate", post(generate::generate))
        .route("/api/chat", post(chat::chat))
        .route("/api/embed", post(embed::embed))
        .route("/api/embeddings", post(embed::embed_one))
        .merge(changing)
}

/// Reads a body. Ollama's clients need not say that it is JSON, and with curl most do not; who asks from
/// a page of another site always says where that is, and must.
async fn read(context: &Context, mut headers: HeaderMap, body: Body) -> Result<Bytes, HttpError> {
    if !headers.contains_key(header::ORIGIN) {
        let json = HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
    }
    Ok(body::read(&headers, body, context.body_limits).await?)
}

fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, HttpError> {
    body::parse(bytes).map_err(|error| match error {
        BodyError::Empty => HttpError::bad_request("missing request body".to_owned()),
        error => error.into(),
    })
}

/// Nothing, as Go's clients send it: absent, `null`, or an empty text, list or object.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// A time as Go writes it: RFC 3339 in UTC, with nanoseconds.
fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}
