//! Anthropic's API.
//!
//! | route | |
//! |---|---|
//! | `POST /v1/messages` | conversations, with tools and thoughts; streamed as named events |
//! | `POST /v1/messages/count_tokens` | how many tokens a conversation is |
//!
//! A request becomes a [`Question`] in `request`; an answer becomes a message, whole or in events, in
//! `reply`. Which API keys count is not known here, nor that errors have this API's shape.

mod reply;
mod request;

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream::{self, Stream};
use serde_json::{Value, json};

use super::error::{ErrorShape, HttpError};
use super::{Context, HEAD_WAIT, PING_INTERVAL, params, request_id};
use crate::generation::{self, Answer, Event, Input, Question};
use reply::{Message, Named};
use request::Request;

/// The routes of this API.
pub(super) fn routes() -> Router<Context> {
    Router::new()
        .route("/v1/messages", post(messages))
        .route("/v1/messages/count_tokens", post(count_tokens))
}

async fn messages(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let (mut request, fields) =
        params::read::<Request>(&headers, body, context.body_limits).await?;
    if request.max_tokens.is_none() {
        return Err(HttpError::bad_param("max_tokens", "is missing"));
    }
    let (model, stream) = (request.model.clone(), request.stream.unwrap_or(false));
    let definition = context.models.definition(model.as_deref());
    let urgency = fields.urgency()?;
    let mut params = fields.params(definition.as_deref())?;
    params.logprobs = None;
    params.stop = request.stop_sequences.take().unwrap_or_default();
    params::check_stops(&params.stop)
        .map_err(|message| HttpError::bad_param("stop_sequences", message))?;
    let (stops, one_call) = (params.stop.clone(), request.one_call());
    let form = request.take_form()?;
    let input = Input::Chat(request.into_chat()?);
    let ticket = context.models.ask(model.as_deref(), urgency).await?;
    let question = Question { input, params, form, ..Question::default() };
    let mut answer = Answer::new(&context.models, ticket, question)?;
    let id = request_id::fresh("msg_");
    let message = Message::new(id, answer.model().to_owned(), stops, one_call);
    if stream {
        answer.started_within(HEAD_WAIT).await?;
        let ping = SseEvent::default().event("ping").data(json!({"type": "ping"}).to_string());
        let keep_alive = KeepAlive::new().interval(PING_INTERVAL).event(ping);
        Ok(Sse::new(events(answer, message)).keep_alive(keep_alive).into_response())
    } else {
        Ok(Json(message.whole(answer.whole().await?)).into_response())
    }
}

async fn count_tokens(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, HttpError> {
    let (request, fields) = params::read::<Request>(&headers, body, context.body_limits).await?;
    let (model, urgency) = (request.model.clone(), fields.urgency()?);
    let chat = request.into_chat()?;
    let ticket = context.models.ask(model.as_deref(), urgency).await?;
    let prompt = generation::prompt(&context.models, ticket, chat).await?;
    Ok(Json(json!({"input_tokens": prompt.tokens.len()})))
}

fn events(answer: Answer, message: Message) -> impl Stream<Item = Result<SseEvent, Infallible>> {
    let unbegun: Option<VecDeque<Named>> = None;
    stream::unfold((answer, message, unbegun), |(mut answer, mut message, pending)| async move {
        let mut pending = match pending {
            Some(pending) => pending,
            // How long the prompt is is known when the request has its turn.
            None => VecDeque::from([match answer.started().await {
                Ok(()) => message.start(answer.prompt().len()),
                Err(error) => failure(&error.into()),
            }]),
        };
        while pending.is_empty() {
            match answer.next().await? {
                Event::Delta(delta) => pending.extend(message.delta(delta)),
                Event::Done(completion) => pending.extend(message.end(&completion)),
                Event::Failed(error) => pending.push_back(failure(&error.into())),
            }
        }
        let event = pending.pop_front()?;
        // JSON text has no line ends, which is all that a field's value must not have.
        let sse = SseEvent::default().event(event.name).data(event.body.to_string());
        Some((Ok(sse), (answer, message, Some(pending))))
    })
}

fn failure(error: &HttpError) -> Named {
    Named { name: "error", body: ErrorShape::Anthropic.body(error) }
}
