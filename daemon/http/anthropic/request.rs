//! Requests of Anthropic's API, and the conversation that each means.

use std::collections::HashMap;

use m40_grammar::Grammar;
use m40_reply::{Tool, ToolChoice, Tools};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::generation::{Chat, Form, Reasoning, ToolShape};
use crate::http::error::HttpError;

/// The fields of a request; those about sampling are read beside.
#[derive(Debug, Deserialize)]
pub(super) struct Request {
    pub model: Option<String>,
    /// Read beside as well; here it says that it is there.
    pub max_tokens: Option<u32>,
    pub stop_sequences: Option<Vec<String>>,
    pub stream: Option<bool>,
    messages: Vec<Message>,
    system: Option<Content>,
    tools: Option<Vec<ToolParam>>,
    tool_choice: Option<Choice>,
    thinking: Option<Thinking>,
    output_config: Option<OutputConfig>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    content: Content,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of blocks")]
enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

/// A part of a message; which of the fields it has depends on its type.
#[derive(Debug, Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
    thinking: Option<String>,
    id: Option<String>,
    name: Option<String>,
    input: Option<Map<String, Value>>,
    tool_use_id: Option<String>,
    content: Option<Box<Content>>,
}

#[derive(Debug, Deserialize)]
struct ToolParam {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: String,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<OutputFormat>,
}

#[derive(Debug, Deserialize)]
struct OutputFormat {
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Value>,
}

impl Request {
    /// What the answer has to look like.
    pub(super) fn take_form(&mut self) -> Result<Option<Form>, HttpError> {
        const FIELD: &str = "output_config.format";
        let format = self.output_config.as_mut().and_then(|config| config.format.take());
        match format.map(|format| (format.kind, format.schema)) {
            None => Ok(None),
            Some((kind, Some(schema))) if kind == "json_schema" => {
                Ok(Some(Form { grammar: Grammar::JsonSchema(schema), field: FIELD }))
            }
            Some(_) => {
                let message = "must be of type \"json_schema\", with a schema";
                Err(HttpError::bad_param(FIELD, message))
            }
        }
    }

    /// Whether no more than one tool is to be called.
    pub(super) fn one_call(&self) -> bool {
        let choice = self.tool_choice.as_ref();
        choice.and_then(|choice| choice.disable_parallel_tool_use).unwrap_or(false)
    }

    /// The same in the terms of chat templates.
    pub(super) fn into_chat(self) -> Result<Chat, HttpError> {
        if self.messages.is_empty() {
            return Err(HttpError::bad_param("messages", "must have at least one message"));
        }
        let one_call = self.one_call();
        let tools = tools(self.tools.unwrap_or_default())?;
        let tool_choice = tool_choice(self.tool_choice, &tools)?;
        let mut told = Told::default();
        if let Some(system) = self.system {
            told.push("system", text_of(system, "system")?);
        }
        for (at, message) in self.messages.into_iter().enumerate() {
            told.message(message, &format!("messages[{at}]"))?;
        }
        Ok(Chat {
            messages: Value::Array(told.messages),
            tools,
            tool_shape: ToolShape::Anthropic,
            tool_choice,
            one_call,
            reasoning: reasoning(self.thinking, self.output_config.and_then(|c| c.effort))?,
            ..Chat::default()
        })
    }
}

/// What was told so far.
#[derive(Debug, Default)]
struct Told {
    messages: Vec<Value>,
    /// The tool of each call, by the call's id.
    called: HashMap<String, String>,
}

impl Told {
    fn push(&mut self, role: &str, content: String) {
        self.messages.push(json!({"role": role, "content": content}));
    }

    fn message(&mut self, message: Message, at: &str) -> Result<(), HttpError> {
        let place = format!("{at}.content");
        match message.role.as_str() {
            "user" => self.user(message.content, &place),
            "assistant" => self.assistant(message.content, &place),
            "system" => {
                let text = text_of(message.content, &place)?;
                self.push("system", text);
                Ok(())
            }
            other => {
                let message = format!("{other:?} is none of user, assistant, system");
                Err(HttpError::bad_param(format!("{at}.role"), message))
            }
        }
    }

    fn user(&mut self, content: Content, at: &str) -> Result<(), HttpError> {
        let blocks = match content {
            Content::Text(text) => {
                self.push("user", text);
                return Ok(());
            }
            Content::Blocks(blocks) => blocks,
        };
        let mut texts = vec![];
        for (n, block) in blocks.into_iter().enumerate() {
            let at = format!("{at}[{n}]");
            if block.kind == "tool_result" {
                self.user_text(&mut texts);
                self.tool_result(block, &at)?;
            } else {
                texts.push(text_block(block, &at)?);
            }
        }
        self.user_text(&mut texts);
        Ok(())
    }

    fn user_text(&mut self, texts: &mut Vec<String>) {
        if !texts.is_empty() {
            let text = texts.join("\n");
            texts.clear();
            self.push("user", text);
        }
    }

    fn tool_result(&mut self, block: Block, at: &str) -> Result<(), HttpError> {
        let id = needed(block.tool_use_id, at, "tool_use_id")?;
        let Some(name) = self.called.get(&id) else {
            let message = format!("no call before it has the id {id:?}");
            return Err(HttpError::bad_param(format!("{at}.tool_use_id"), message));
        };
        let content = match block.content {
            Some(content) => text_of(*content, &format!("{at}.content"))?,
            None => String::new(),
        };
        let told = json!({"role": "tool", "tool_call_id": id, "name": name, "content": content});
        self.messages.push(told);
        Ok(())
    }

    fn assistant(&mut self, content: Content, at: &str) -> Result<(), HttpError> {
        let blocks = match content {
            Content::Text(text) => {
                self.push("assistant", text);
                return Ok(());
            }
            Content::Blocks(blocks) => blocks,
        };
        let (mut texts, mut thoughts, mut calls) = (vec![], vec![], vec![]);
        for (n, block) in blocks.into_iter().enumerate() {
            let at = format!("{at}[{n}]");
            match block.kind.as_str() {
                "thinking" => thoughts.push(needed(block.thinking, &at, "thinking")?),
                // Only who wrote them can read them.
                "redacted_thinking" => {}
                "tool_use" => calls.push(self.tool_use(block, &at)?),
                _ => texts.push(text_block(block, &at)?),
            }
        }
        let mut message = json!({"role": "assistant", "content": texts.join("\n")});
        if !thoughts.is_empty() {
            message["reasoning_content"] = Value::String(thoughts.join("\n"));
        }
        if !calls.is_empty() {
            message["tool_calls"] = Value::Array(calls);
        }
        self.messages.push(message);
        Ok(())
    }

    fn tool_use(&mut self, block: Block, at: &str) -> Result<Value, HttpError> {
        let id = needed(block.id, at, "id")?;
        let name = needed(block.name, at, "name")?;
        let arguments = needed(block.input, at, "input")?;
        let call = json!({
            "id": id,
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        });
        self.called.insert(id, name);
        Ok(call)
    }
}

fn needed<T>(field: Option<T>, at: &str, name: &str) -> Result<T, HttpError> {
    field.ok_or_else(|| HttpError::bad_param(format!("{at}.{name}"), "is missing"))
}

fn text_of(content: Content, at: &str) -> Result<String, HttpError> {
    let blocks = match content {
        Content::Text(text) => return Ok(text),
        Content::Blocks(blocks) => blocks.into_iter().enumerate(),
    };
    let texts = blocks.map(|(n, block)| text_block(block, &format!("{at}[{n}]")));
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

fn text_block(block: Block, at: &str) -> Result<String, HttpError> {
    match block.kind.as_str() {
        "text" => needed(block.text, at, "text"),
        kind => {
            let message = format!("blocks of type {kind:?} are not read here");
            Err(HttpError::bad_param(format!("{at}.type"), message))
        }
    }
}

fn tools(tools: Vec<ToolParam>) -> Result<Tools, HttpError> {
    let tool = |(at, tool): (usize, ToolParam)| {
        if let Some(kind) = tool.kind.filter(|kind| kind != "custom") {
            let message = format!("{kind:?} does not run here: only tools that the client runs do");
            return Err(HttpError::bad_param(format!("tools[{at}].type"), message));
        }
        let parameters = needed(tool.input_schema, &format!("tools[{at}]"), "input_schema")?;
        let strict = tool.strict.unwrap_or(false);
        Ok(Tool { name: tool.name, description: tool.description, parameters, strict })
    };
    let tools = tools.into_iter().enumerate().map(tool).collect::<Result<Vec<_>, _>>()?;
    Tools::new(tools).map_err(|error| HttpError::bad_param("tools", error))
}

fn tool_choice(choice: Option<Choice>, tools: &Tools) -> Result<ToolChoice, HttpError> {
    let bad = |message: &str| Err(HttpError::bad_param("tool_choice", message));
    let Some(choice) = choice else { return Ok(ToolChoice::Auto) };
    match (choice.kind.as_str(), choice.name) {
        ("auto", _) => Ok(ToolChoice::Auto),
        ("none", _) => Ok(ToolChoice::None),
        ("any", _) if tools.is_empty() => bad("needs tools"),
        ("any", _) => Ok(ToolChoice::Required),
        ("tool", Some(name)) if tools.get(&name).is_some() => Ok(ToolChoice::Named(name)),
        ("tool", _) => bad("names no tool of the request"),
        _ => bad("is none of auto, any, tool, none"),
    }
}

fn reasoning(thinking: Option<Thinking>, effort: Option<String>) -> Result<Reasoning, HttpError> {
    let effort = effort.map(|effort| match effort.as_str() {
        "low" | "medium" | "high" => Ok(Reasoning::Effort(effort)),
        // Few models were taught more words.
        "xhigh" | "max" => Ok(Reasoning::Effort("high".to_owned())),
        _ => {
            let message = "is none of low, medium, high, xhigh, max";
            Err(HttpError::bad_param("output_config.effort", message))
        }
    });
    let effort = effort.transpose()?;
    match thinking.as_ref().map(|thinking| thinking.kind.as_str()) {
        None => Ok(effort.unwrap_or_default()),
        Some("disabled") => Ok(Reasoning::Off),
        // How long it may be, and where, is the model's own affair.
        Some("enabled" | "adaptive" | "between_tools") => Ok(effort.unwrap_or(Reasoning::On)),
        Some(_) => {
            let message = "is none of enabled, adaptive, between_tools, disabled";
            Err(HttpError::bad_param("thinking.type", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(request: Value) -> Result<Chat, String> {
        let request: Request = serde_json::from_value(request).unwrap();
        let param = |error: HttpError| error.body()["error"]["param"].as_str().unwrap().to_owned();
        request.into_chat().map_err(param)
    }

    fn messages(messages: Value) -> Result<Value, String> {
        chat(json!({"messages": messages})).map(|chat| chat.messages)
    }

    #[test]
    fn blocks_become_the_messages_that_templates_know() {
        let call = json!({"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}});
        let got = chat(json!({
            "system": [{"type": "text", "text": "be"}, {"type": "text", "text": "brief"}],
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "b"}, call,
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1",
                     "content": [{"type": "text", "text": "42"}]},
                    {"type": "text", "text": "c"}, {"type": "text", "text": "d"},
                ]},
            ],
        }));
        let call = json!({"id": "t1", "type": "function",
            "function": {"name": "f", "arguments": {"x": 1}}});
        let want = json!([
            {"role": "system", "content": "be\nbrief"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "t1", "name": "f", "content": "42"},
            {"role": "user", "content": "c\nd"},
        ]);
        assert_eq!(got.unwrap().messages, want);
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_place() {
        let result = |id: &str| json!({"type": "tool_result", "tool_use_id": id});
        for (wrong, place) in [
            (json!([]), "messages"),
            (json!([{"role": "wizard", "content": "a"}]), "messages[0].role"),
            (
                json!([{"role": "user", "content": [{"type": "image"}]}]),
                "messages[0].content[0].type",
            ),
            (
                json!([{"role": "user", "content": [{"type": "text"}]}]),
                "messages[0].content[0].text",
            ),
            (
                json!([{"role": "user", "content": "a"}, {"role": "user", "content": [result("t")]}]),
                "messages[1].content[0].tool_use_id",
            ),
            (
                json!([{"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]}]),
                "messages[0].content[0].name",
            ),
        ] {
            assert_eq!(messages(wrong.clone()).unwrap_err(), place, "{wrong}");
        }
    }

    #[test]
    fn tools_are_offered_and_chosen() {
        let tool = json!({"name": "f", "input_schema": {"type": "object"}});
        let with = |choice: Value| {
            chat(json!({"messages": [{"role": "user", "content": "a"}], "tools": [tool],
                "tool_choice": choice}))
        };
        for (choice, want) in [
            (json!(null), ToolChoice::Auto),
            (json!({"type": "auto"}), ToolChoice::Auto),
            (json!({"type": "any"}), ToolChoice::Required),
            (json!({"type": "tool", "name": "f"}), ToolChoice::Named("f".into())),
            (json!({"type": "none"}), ToolChoice::None),
        ] {
            let got = with(choice).unwrap();
            assert_eq!((got.tool_choice, got.tools.iter().count()), (want, 1));
        }
        for wrong in [json!({"type": "tool", "name": "g"}), json!({"type": "some"})] {
            assert_eq!(with(wrong).unwrap_err(), "tool_choice");
        }
        let served = json!({"type": "web_search_20250305", "name": "web_search"});
        let wrong = json!({"messages": [{"role": "user", "content": "a"}], "tools": [served]});
        assert_eq!(chat(wrong).unwrap_err(), "tools[0].type");
    }

    #[test]
    fn thinking_is_switched() {
        let with = |thinking: Value| {
            chat(json!({"messages": [{"role": "user", "content": "a"}], "thinking": thinking}))
        };
        assert_eq!(with(json!(null)).unwrap().reasoning, Reasoning::Default);
        let enabled = json!({"type": "enabled", "budget_tokens": 1024});
        assert_eq!(with(enabled).unwrap().reasoning, Reasoning::On);
        assert_eq!(with(json!({"type": "disabled"})).unwrap().reasoning, Reasoning::Off);
        assert_eq!(with(json!({"type": "perhaps"})).unwrap_err(), "thinking.type");
    }

    #[test]
    fn effort_and_format_are_taken() {
        let with = |config: Value| -> Request {
            let messages = json!([{"role": "user", "content": "a"}]);
            serde_json::from_value(json!({"messages": messages, "output_config": config})).unwrap()
        };
        let effort = |word: &str| with(json!({"effort": word})).into_chat().map(|c| c.reasoning);
        assert_eq!(effort("low").unwrap(), Reasoning::Effort("low".into()));
        assert_eq!(effort("max").unwrap(), Reasoning::Effort("high".into()));
        assert!(effort("some").is_err());

        let schema = json!({"type": "object"});
        let mut request = with(json!({"format": {"type": "json_schema", "schema": schema}}));
        let form = request.take_form().unwrap().map(|form| form.grammar);
        assert_eq!(form, Some(Grammar::JsonSchema(schema)));
        assert_eq!(with(json!({})).take_form().unwrap(), None);
        assert!(with(json!({"format": {"type": "regex"}})).take_form().is_err());
    }
}
