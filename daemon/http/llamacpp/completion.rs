//! `POST /completion`: a prompt as it is, gone on from; and `POST /infill`, what comes between two texts.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use m40_grammar::Grammar;
use serde::Deserialize;
use serde_json::Value;

use super::completion_reply::Reply;
use crate::generation::{Answer, Event, Form, Input, Question};
use crate::http::error::HttpError;
use crate::http::{Context, HEAD_WAIT, PING_INTERVAL, body, params};

/// Most alternatives per token.
const PROBS_MAX: u32 = 20;

#[derive(Debug, Deserialize)]
struct Begun {
    prompt: Prompt,
}

#[derive(Debug, Deserialize)]
struct Between {
    input_prefix: String,
    input_suffix: String,
    /// Texts of other files, that the model is to know of.
    input_extra: Option<Vec<Extra>>,
    /// More of what comes before.
    prompt: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Extra {
    text: String,
}

/// The fields that both routes have.
#[derive(Debug, Deserialize)]
struct Request {
    model: Option<String>,
    stream: Option<bool>,
    /// Negative means as many as there is room for.
    n_predict: Option<i64>,
    n_probs: Option<u32>,
    /// llama.cpp's notation.
    grammar: Option<String>,
    json_schema: Option<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of tokens")]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

impl Begun {
    fn input(self) -> Input {
        match self.prompt {
            Prompt::Text(text) => Input::Text(text),
            Prompt::Tokens(tokens) => Input::Tokens(tokens),
        }
    }
}

impl Between {
    fn input(self) -> Input {
        let extra = self.input_extra.into_iter().flatten().map(|extra| extra.text + "\n");
        let before = extra.chain([self.input_prefix]).chain(self.prompt).collect();
        Input::Fill { before, after: self.input_suffix }
    }
}

impl Request {
    fn form(&mut self) -> Result<Option<Form>, HttpError> {
        let form = |grammar, field| Ok(Some(Form { grammar, field }));
        let grammar = self.grammar.take().filter(|grammar| !grammar.is_empty());
        let schema = self.json_schema.take().filter(|schema| !schema.is_null());
        match (grammar, schema) {
            (Some(_), Some(_)) => {
                Err(HttpError::bad_param("grammar", "cannot be had beside json_schema"))
            }
            (Some(grammar), None) => form(Grammar::Gbnf(grammar), "grammar"),
            (None, Some(schema)) => form(Grammar::JsonSchema(schema), "json_schema"),
            (None, None) => Ok(None),
        }
    }

    fn probs(&self) -> Result<Option<u32>, HttpError> {
        match self.n_probs {
            None | Some(0) => Ok(None),
            Some(n) if n > PROBS_MAX => {
                Err(HttpError::bad_param("n_probs", format!("is {n}, the most is {PROBS_MAX}")))
            }
            n => Ok(n),
        }
    }
}

pub(super) async fn complete(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let bytes = body::read(&headers, body, context.body_limits).await?;
    let input = body::parse::<Begun>(&bytes)?.input();
    answer(&context, &bytes, input, "prompt").await
}

pub(super) async fn fill_in(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let bytes = body::read(&headers, body, context.body_limits).await?;
    let input = body::parse::<Between>(&bytes)?.input();
    let answered = answer(&context, &bytes, input, "input_prefix").await;
    answered.map_err(|error| error.about("suffix", "input_suffix"))
}

/// Answers as the other fields of the body say; `name` is what it calls the prompt.
async fn answer(
    context: &Context,
    bytes: &[u8],
    input: Input,
    name: &str,
) -> Result<Response, HttpError> {
    let (mut request, fields): (Request, params::Fields) =
        (body::parse(bytes)?, body::parse(bytes)?);
    let definition = context.models.definition(request.model.as_deref());
    let urgency = fields.urgency()?;
    let mut params = fields.params(definition.as_deref())?;
    params.logprobs = request.probs()?;
    if let Some(n) = request.n_predict {
        params.max_tokens = u32::try_from(n).ok();
    }
    let form = request.form()?;
    let ticket = context.models.ask(request.model.as_deref(), urgency).await?;
    let (stops, probs) = (params.stop.clone(), params.logprobs.is_some());
    let question = Question { input, params, form, ..Question::default() };
    let about = |error| HttpError::from(error).about("messages", name);
    let mut answer = Answer::new(&context.models, ticket, question).map_err(about)?;
    let reply = Reply::new(answer.model().to_owned(), stops, probs);
    if request.stream.unwrap_or(false) {
        answer.started_within(HEAD_WAIT).await.map_err(about)?;
        let keep_alive = KeepAlive::new().interval(PING_INTERVAL).text("ping");
        Ok(Sse::new(events(answer, reply)).keep_alive(keep_alive).into_response())
    } else {
        answer.started().await.map_err(about)?;
        Ok(Json(reply.whole(&answer.whole().await?)).into_response())
    }
}

fn events(answer: Answer, reply: Reply) -> impl Stream<Item = Result<SseEvent, Infallible>> {
    let none = VecDeque::new();
    stream::unfold((answer, reply, none), |(mut answer, reply, mut pending)| async move {
        while pending.is_empty() {
            match answer.next().await? {
                Event::Delta(delta) => pending.extend(reply.chunk(&delta)),
                Event::Done(completion) => pending.push_back(reply.last(&completion)),
                Event::Failed(error) => pending.push_back(HttpError::from(error).body()),
            }
        }
        let value: Value = pending.pop_front()?;
        // JSON text has no line ends, which is all that a field's value must not have.
        Some((Ok(SseEvent::default().data(value.to_string())), (answer, reply, pending)))
    })
}
