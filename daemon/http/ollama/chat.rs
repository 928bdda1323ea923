//! `POST /api/chat`

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use m40_manifest::Capability;
use m40_reply::{Tool, Tools};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::ask::Fields;
use super::reply::Kind;
use super::{HttpError, is_empty, parse, read};
use crate::generation::{Chat, Input};
use crate::http::Context;

/// The fields that only this route has.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Request {
    messages: Option<Vec<Message>>,
    tools: Option<Vec<OfferedTool>>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    thinking: Option<String>,
    #[serde(default)]
    images: Value,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    #[serde(default)]
    tool_name: Option<String>,
    #[serde(default)]
    tool_call_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ToolCall {
    #[serde(default)]
    id: Option<String>,
    function: CalledFunction,
}

#[derive(Debug, Deserialize)]
struct CalledFunction {
    name: String,
    #[serde(default)]
    arguments: Option<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct OfferedTool {
    function: OfferedFunction,
}

#[derive(Debug, Deserialize)]
struct OfferedFunction {
    name: String,
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    parameters: Option<Value>,
}

pub(super) async fn chat(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let bytes = read(&context, headers, body).await?;
    let (fields, request): (Fields, Request) = (parse(&bytes)?, parse(&bytes)?);
    let asked = fields.find(&context, Kind::Chat).await?;
    let messages = request.messages.unwrap_or_default();
    if messages.is_empty() {
        return asked.load(&context).await;
    }
    if messages.iter().any(|message| !is_empty(&message.images)) {
        return Err(asked.does_not_support("images"));
    }
    let tools = tools(request.tools.unwrap_or_default())?;
    let calls: &[_] = if tools.is_empty() { &[] } else { &[Capability::Tools] };
    asked.check(&context, calls).await?;
    let input = Input::Chat(Chat {
        messages: template_messages(messages)?,
        tools,
        reasoning: asked.reasoning(),
        shortens: asked.shortens(),
        ..Chat::default()
    });
    asked.answer(&context, input, Vec::new()).await
}

fn template_messages(messages: Vec<Message>) -> Result<Value, HttpError> {
    let convert = |(at, message): (usize, Message)| match message.role.as_str() {
        "system" | "user" | "assistant" | "tool" => Ok(message.into_template()),
        other => {
            let known = "system, user, assistant, tool";
            let message = format!("messages[{at}].role: {other:?} is none of {known}");
            Err(HttpError::bad_request(message))
        }
    };
    messages.into_iter().enumerate().map(convert).collect()
}

impl Message {
    fn into_template(self) -> Value {
        let mut value = json!({"role": self.role, "content": self.content.unwrap_or_default()});
        if let Some(thinking) = self.thinking.filter(|thinking| !thinking.is_empty()) {
            value["reasoning_content"] = json!(thinking);
        }
        if let Some(calls) = self.tool_calls.filter(|calls| !calls.is_empty()) {
            value["tool_calls"] = calls.into_iter().map(ToolCall::into_template).collect();
        }
        if let Some(name) = self.tool_name.filter(|name| !name.is_empty()) {
            value["name"] = json!(name);
        }
        if let Some(id) = self.tool_call_id.filter(|id| !id.is_empty()) {
            value["tool_call_id"] = json!(id);
        }
        value
    }
}

impl ToolCall {
    fn into_template(self) -> Value {
        let CalledFunction { name, arguments } = self.function;
        let arguments = arguments.unwrap_or_default();
        let function = json!({"name": name, "arguments": arguments});
        let mut value = json!({"type": "function", "function": function});
        if let Some(id) = self.id {
            value["id"] = json!(id);
        }
        value
    }
}

fn tools(offered: Vec<OfferedTool>) -> Result<Tools, HttpError> {
    let tool = |OfferedTool { function }: OfferedTool| Tool {
        name: function.name,
        description: function.description,
        // A function without parameters.
        parameters: function
            .parameters
            .filter(|parameters| !parameters.is_null())
            .unwrap_or_else(|| json!({"type": "object", "properties": {}})),
        strict: false,
    };
    let tools = Tools::new(offered.into_iter().map(tool).collect());
    tools.map_err(|error| HttpError::bad_request(format!("tools: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(messages: Value) -> Result<Value, String> {
        let messages = serde_json::from_value(messages).unwrap();
        template_messages(messages).map_err(|error| error.body()["error"]["message"].to_string())
    }

    #[test]
    fn messages_get_the_words_that_templates_know() {
        let got = convert(json!([
            {"role": "user", "content": "a", "images": []},
            {"role": "assistant", "content": "", "thinking": "hm",
             "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "tool_name": "f", "content": "42"},
        ]));
        let call = json!({"type": "function", "function": {"name": "f", "arguments": {"x": 1}}});
        let want = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "content": "42", "name": "f"},
        ]);
        assert_eq!(got, Ok(want));
        let error = convert(json!([{"role": "wizard", "content": "a"}])).unwrap_err();
        assert!(error.contains("messages[0].role"), "{error}");
    }

    #[test]
    fn tools_need_no_parameters() {
        let offered = json!([{"type": "function", "function": {"name": "f"}}]);
        let tools = tools(serde_json::from_value(offered).unwrap()).unwrap();
        assert_eq!(tools.iter().next().unwrap().parameters["type"], "object");
    }
}
