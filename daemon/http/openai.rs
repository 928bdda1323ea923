//! OpenAI's API.
//!
//! | route | |
//! |---|---|
//! | `GET /v1/models`, `GET /v1/models/{id}` | the models, stored and loaded |
//! | `POST /v1/chat/completions` | conversations, with tools and structured answers |
//! | `POST /v1/completions` | texts and tokens to go on from, as they are |
//! | `POST /v1/responses` | conversations, as items; nothing of them is kept |
//!
//! Each route turns its request into [`Question`](crate::generation::Question)s, whose [`Answers`] go
//! through a [`Shape`](sse::Shape) when they are streamed and become one object when they are not.
//! What a chunk says is borrowed from what the model wrote, as there is one for each token.

mod answers;
mod chat;
mod chat_reply;
mod completion_reply;
mod completions;
mod conversation;
mod figures;
mod format;
mod logprobs;
pub(super) mod messages;
mod models;
mod reasoning;
mod responses;
mod sse;
mod tools;

use axum::Router;
use axum::routing::{get, post};

use super::Context;
use answers::Answers;
pub(super) use figures::{Timings, Usage};
pub(super) use messages::{Message, to_template};

/// The routes of this API.
pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/responses", post(responses::respond))
}
