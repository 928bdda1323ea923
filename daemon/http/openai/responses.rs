//! `POST /v1/responses`: a conversation as items, answered as items. Nothing of it is kept.

mod events;
mod input;
mod item;
mod object;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::format::TextFormat;
use super::tools::{self, FlatTool};
use super::{Answers, reasoning, sse};
use crate::generation::{Chat, Form, Input, Question, ToolShape};
use crate::http::error::HttpError;
use crate::http::{Context, HEAD_WAIT, params};
use events::Events;
use object::{Asked, Reply};

#[derive(Debug, Deserialize)]
struct Request {
    model: Option<String>,
    input: input::Items,
    instructions: Option<String>,
    stream: Option<bool>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    text: Option<Value>,
    reasoning: Option<Effort>,
    include: Option<Vec<String>>,
    metadata: Option<Map<String, Value>>,
    max_output_tokens: Option<u32>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    prompt: Option<Value>,
    background: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Effort {
    effort: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Text {
    format: Option<TextFormat>,
}

/// What asks for the log-probabilities of an answer's tokens.
const LOGPROBS: &str = "message.output_text.logprobs";

pub(super) async fn respond(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let (request, mut fields) =
        params::read::<Request>(&headers, body, context.body_limits).await?;
    check_supported(&request)?;
    let includes = |what: &str| request.include.iter().flatten().any(|include| include == what);
    fields.set_logprobs(includes(LOGPROBS));
    let definition = context.models.definition(request.model.as_deref());
    let urgency = fields.urgency()?;
    let params = fields
        .params(definition.as_deref())
        .map_err(|error| error.about("max_tokens", "max_output_tokens"))?;
    let asked = Asked::new(&request, &params.sampling);
    let (model, streamed) = (request.model.clone(), request.stream.unwrap_or(false));
    let grammar = format_of(request.text.as_ref())?.and_then(TextFormat::grammar);
    let form = grammar.map(|grammar| Form { grammar, field: "text.format" });
    let input = Input::Chat(request.into_chat()?);
    let question = Question { input, params, form, ..Question::default() };
    let about = |error| HttpError::from(error).about("messages", "input");
    let mut answers =
        Answers::ask(&context.models, model.as_deref(), urgency, vec![question]).await?;
    let reply = Reply::new(answers.model(), asked);
    if streamed {
        answers.started_within(HEAD_WAIT).await.map_err(about)?;
        return Ok(sse::reply(answers, Events::new(reply)));
    }
    let answers = answers.whole().await;
    let answers = answers.map_err(|error| HttpError::from(error).about("messages", "input"))?;
    // One question has one answer.
    let answer = answers.into_iter().next().ok_or_else(HttpError::internal)?;
    Ok(Json(reply.whole(answer)).into_response())
}

// What would change the answer and cannot be honoured is refused, not dropped.
fn check_supported(request: &Request) -> Result<(), HttpError> {
    let kept = "is not supported, as nothing is kept here: send the whole conversation in `input`";
    let refused = [
        ("previous_response_id", request.previous_response_id.is_some(), kept),
        ("conversation", request.conversation.is_some(), kept),
        ("prompt", request.prompt.is_some(), "is not supported: send its text in `input`"),
        ("background", request.background == Some(true), "is not supported: use `stream`"),
    ];
    match refused.into_iter().find(|(_, is_asked, _)| *is_asked) {
        Some((param, _, message)) => Err(HttpError::bad_param(param, message)),
        None => Ok(()),
    }
}

fn format_of(text: Option<&Value>) -> Result<Option<TextFormat>, HttpError> {
    let Some(text) = text else { return Ok(None) };
    let bad = |error| HttpError::bad_param("text", error);
    Ok(Text::deserialize(text).map_err(bad)?.format)
}

fn tool_of((at, tool): (usize, &Value)) -> Result<FlatTool, HttpError> {
    FlatTool::deserialize(tool).map_err(|error| HttpError::bad_param(format!("tools[{at}]"), error))
}

impl Request {
    fn into_chat(self) -> Result<Chat, HttpError> {
        let tools: Result<Vec<FlatTool>, HttpError> =
            self.tools.iter().flatten().enumerate().map(tool_of).collect();
        let tools = tools::flat(tools?)?;
        let effort = self.reasoning.as_ref().and_then(|reasoning| reasoning.effort.as_deref());
        Ok(Chat {
            reasoning: reasoning::of_effort(effort, "reasoning.effort")?,
            tool_choice: tools::choice(self.tool_choice.as_ref(), &tools)?,
            tools,
            tool_shape: ToolShape::Flat,
            one_call: self.parallel_tool_calls == Some(false),
            messages: input::to_template(self.instructions, self.input)?,
            ..Chat::default()
        })
    }
}
