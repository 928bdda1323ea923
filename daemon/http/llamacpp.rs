//! What llama.cpp's server has beside OpenAI's API, and a route of llama-swap.
//!
//! | route | |
//! |---|---|
//! | `POST /completion`, `POST /completions` | a text or tokens to go on from, as they are; streamed as server-sent events |
//! | `POST /infill` | what comes between two texts |
//! | `POST /tokenize`, `POST /detokenize` | a text as tokens, tokens as a text |
//! | `POST /apply-template` | the prompt that a conversation becomes |
//! | `GET /props` | what a model answers with |
//! | `GET /slots` | the places for answers, and who has them |
//! | `GET /running` | the models that are in memory, or on their way in or out |
//!
//! Bodies may name a model in `model`, and queries in `?model=`; else it is the one that is loaded.

mod completion;
mod completion_reply;
mod state;
mod tokens;

use axum::Router;
use axum::routing::{get, post};

use super::Context;

/// The routes of this API.
pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/completion", post(completion::complete))
        .route("/completions", post(completion::complete))
        .route("/infill", post(completion::fill_in))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/apply-template", post(tokens::apply_template))
        .route("/props", get(state::props))
        .route("/slots", get(state::slots))
        .route("/running", get(state::running))
}
