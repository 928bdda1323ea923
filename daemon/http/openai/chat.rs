//! `POST /v1/chat/completions`.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::chat_reply::Reply;
use super::format::ResponseFormat;
use super::messages::{self, Message};
use super::tools::{self, NestedTool};
use super::{Answers, answers, reasoning, sse};
use crate::generation::{Chat, Form, Input, Question};
use crate::http::error::HttpError;
use crate::http::{Context, HEAD_WAIT, params};

#[derive(Debug, Deserialize)]
struct Request {
    model: Option<String>,
    messages: Vec<Message>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    tools: Option<Vec<NestedTool>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    response_format: Option<ResponseFormat>,
    reasoning_effort: Option<String>,
    chat_template_kwargs: Option<Map<String, Value>>,
}

/// What a stream is to have beside its answers.
#[derive(Debug, Default, Deserialize)]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
}

impl StreamOptions {
    /// Whether a stream is to tell the counts.
    pub(super) fn include_usage(options: Option<&Self>) -> bool {
        options.and_then(|options| options.include_usage).unwrap_or(false)
    }
}

pub(super) async fn complete(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let (request, fields) = params::read::<Request>(&headers, body, context.body_limits).await?;
    let definition = context.models.definition(request.model.as_deref());
    let urgency = fields.urgency()?;
    let params = fields.params(definition.as_deref())?;
    let (model, n) = (request.model.clone(), answers::count(request.n)?);
    let streamed = request.stream.unwrap_or(false);
    let include_usage = StreamOptions::include_usage(request.stream_options.as_ref());
    let (chat, format) = request.into_chat()?;
    let grammar = format.and_then(ResponseFormat::grammar);
    let form = grammar.map(|grammar| Form { grammar, field: "response_format" });
    let input = Input::Chat(chat);
    let question = Question { input, params, form, ..Question::default() };
    let questions = answers::times(&question, n);
    let mut answers = Answers::ask(&context.models, model.as_deref(), urgency, questions).await?;
    let reply = Reply::new(answers.model(), n, include_usage);
    if streamed {
        answers.started_within(HEAD_WAIT).await?;
        Ok(sse::reply(answers, reply))
    } else {
        Ok(Json(reply.whole(&answers.whole().await?)).into_response())
    }
}

impl Request {
    fn into_chat(self) -> Result<(Chat, Option<ResponseFormat>), HttpError> {
        let tools = tools::nested(self.tools.unwrap_or_default())?;
        let chat = Chat {
            messages: messages::to_template(self.messages)?,
            tool_choice: tools::choice(self.tool_choice.as_ref(), &tools)?,
            tools,
            one_call: self.parallel_tool_calls == Some(false),
            reasoning: reasoning::of_effort(self.reasoning_effort.as_deref(), "reasoning_effort")?,
            extra: self.chat_template_kwargs.unwrap_or_default(),
            ..Chat::default()
        };
        Ok((chat, self.response_format))
    }
}
