//! `/tokenize`, `/detokenize` and `/apply-template`: what a model reads, without an answer.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use m40_tokenizer::{Special, Tokenizer};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::generation::{self, AskError, Chat};
use crate::http::error::HttpError;
use crate::http::openai::{Message, to_template};
use crate::http::{Context, read_json};
use crate::models::Urgency;

#[derive(Debug, Deserialize)]
pub(super) struct Text {
    model: Option<String>,
    content: String,
    /// Whether the tokens are added that the model was trained with at the start and end.
    #[serde(default)]
    add_special: bool,
    /// Whether texts of special tokens become them.
    parse_special: Option<bool>,
    #[serde(default)]
    with_pieces: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tokens {
    model: Option<String>,
    tokens: Vec<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Conversation {
    model: Option<String>,
    messages: Vec<Message>,
    #[serde(default)]
    chat_template_kwargs: Map<String, Value>,
}

pub(super) async fn tokenize(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, HttpError> {
    let text: Text = read_json(&headers, body, context.body_limits).await?;
    let ticket = context.models.ask(text.model.as_deref(), Urgency::default()).await?;
    let tokens = generation::read(ticket, move |loaded| {
        let tokenizer = loaded.model.tokenizer();
        let special = Special { add: text.add_special, parse: text.parse_special.unwrap_or(true) };
        let tokens = tokenizer.encode(&text.content, special);
        if text.with_pieces {
            tokens.into_iter().map(|id| json!({"id": id, "piece": piece(tokenizer, id)})).collect()
        } else {
            json!(tokens)
        }
    });
    Ok(Json(json!({"tokens": tokens.await?})))
}

/// The text of a token; its bytes where they are no text by themselves.
fn piece(tokenizer: &Tokenizer, id: u32) -> Value {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    match std::str::from_utf8(&bytes) {
        Ok(text) => json!(text),
        Err(_) => json!(&*bytes),
    }
}

pub(super) async fn detokenize(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, HttpError> {
    let Tokens { model, tokens } = read_json(&headers, body, context.body_limits).await?;
    let ticket = context.models.ask(model.as_deref(), Urgency::default()).await?;
    let content = generation::read(ticket, move |loaded| {
        let vocab = loaded.model.info().vocab;
        match tokens.iter().find(|token| **token >= vocab) {
            Some(&token) => Err(AskError::NoSuchToken { field: "tokens", token, vocab }),
            None => Ok(loaded.model.tokenizer().decode(&tokens, true)),
        }
    });
    Ok(Json(json!({"content": content.await??})))
}

pub(super) async fn apply_template(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, HttpError> {
    let conversation: Conversation = read_json(&headers, body, context.body_limits).await?;
    let Conversation { model, messages, chat_template_kwargs: extra } = conversation;
    let chat = Chat { messages: to_template(messages)?, extra, ..Chat::default() };
    let ticket = context.models.ask(model.as_deref(), Urgency::default()).await?;
    let prompt = generation::prompt(&context.models, ticket, chat).await?;
    Ok(Json(json!({"prompt": prompt.text})))
}
