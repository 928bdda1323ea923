//! Templates in Go's language (`text/template`), as models of Ollama's registries have them.
//!
//! What such templates use is here: `if`, `range`, `with`, variables, pipes, trim markers, comparisons, `len`,
//! `slice`, `index`, `json` and printing. What else there is does not parse, so that nothing is left out in
//! silence. Two kinds of template are written in it: newer ones go through `.Messages` themselves; older ones
//! write one turn, of `.System`, `.Prompt` and `.Response`, and are written once for each.

mod parse;
mod run;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{TemplateError, TemplateInput};
use parse::Node;
use run::{Run, Stop};

/// What stands for a break between the messages of one turn.
const BREAK: &str = "\n\n";

/// A template in Go's language.
#[derive(Debug)]
pub(super) struct GoTemplate {
    nodes: Vec<Node>,
    /// Names of all fields that it reads, as written.
    fields: BTreeSet<String>,
}

/// Whether a template is in this language and not in Jinja's: Jinja has no names that begin with a dot or
/// `$`, and its blocks have other marks.
pub(super) fn is_go(source: &str) -> bool {
    let is_name = |(at, text): (usize, &str), action: &str| {
        let begins = action[..at].ends_with([' ', '(', '-']) || at == 0;
        let names = action[at + text.len()..].starts_with(|c: char| c.is_ascii_uppercase());
        begins && (text == "$" || names)
    };
    let mut actions =
        source.split("{{").skip(1).map(|rest| rest.split("}}").next().unwrap_or(rest));
    let is_go = |action: &str| {
        let words = action.strip_prefix('-').unwrap_or(action).trim_start();
        let word = words.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        let mut names = action.match_indices(['.', '$']);
        words.starts_with("/*")
            || parse::is_keyword(word)
            || names.any(|name| is_name(name, action))
    };
    !source.contains("{%") && actions.any(is_go)
}

impl GoTemplate {
    /// # Errors
    /// [`TemplateError::Syntax`] of what is not in the language, or not in this part of it.
    pub(super) fn parse(source: &str) -> Result<Self, TemplateError> {
        let (mut nodes, fields) = parse::parse(source)?;
        if !fields.contains("Messages") && !fields.contains("Response") {
            // An answer follows what it writes.
            nodes.push(Node::response());
        }
        Ok(Self { nodes, fields })
    }

    /// Whether it reads a field of this name.
    pub(super) fn reads(&self, field: &str) -> bool {
        self.fields.contains(field)
    }

    /// The prompt for a conversation.
    pub(super) fn render(&self, input: &TemplateInput<'_>) -> Result<String, TemplateError> {
        let messages = messages(input.messages);
        let mut common = thoughts(input);
        let suffix = input.extra.and_then(|extra| extra.get("suffix")).filter(|s| s.is_string());
        let mut run = Run::new(input.now);
        if let Some(suffix) = suffix {
            common.insert("suffix".into(), suffix.clone());
        } else if self.reads("Messages") {
            common.insert("system".into(), joined(&messages, "system").into());
            common.insert("messages".into(), messages.into());
            common.insert("tools".into(), input.tools.cloned().unwrap_or(Value::Null));
            common.insert("response".into(), "".into());
            run.template(&self.nodes, &common.into(), Stop::AtEnd)?;
            return Ok(run.written);
        }
        self.turns(&messages, &common, &mut run)?;
        Ok(run.written)
    }

    /// Writes each turn, and the last as far as an answer goes on from it.
    fn turns(
        &self,
        messages: &[Value],
        common: &Map<String, Value>,
        run: &mut Run,
    ) -> Result<(), TemplateError> {
        let mut turn = Turn::default();
        for message in messages {
            let content = message["content"].as_str().unwrap_or_default();
            let is_next = match message["role"].as_str() {
                Some("system") => !turn.prompt.is_empty() || !turn.response.is_empty(),
                Some("user") => !turn.response.is_empty(),
                _ => false,
            };
            if is_next {
                run.template(&self.nodes, &std::mem::take(&mut turn).values(common), Stop::AtEnd)?;
            }
            match message["role"].as_str() {
                Some("system") => turn.system = content.to_owned(),
                Some("user") => turn.prompt = content.to_owned(),
                Some("assistant") => turn.response = content.to_owned(),
                _ => {}
            }
        }
        run.template(&self.nodes, &turn.values(common), Stop::AfterResponse)
    }
}

/// What older templates write at a time.
#[derive(Debug, Default)]
struct Turn {
    system: String,
    prompt: String,
    response: String,
}

impl Turn {
    fn values(self, common: &Map<String, Value>) -> Value {
        let mut values = common.clone();
        values.insert("system".into(), self.system.into());
        values.insert("prompt".into(), self.prompt.into());
        values.insert("response".into(), self.response.into());
        values.into()
    }
}

/// What a template is told of thoughts before an answer.
fn thoughts(input: &TemplateInput<'_>) -> Map<String, Value> {
    let said = |name: &str| input.extra.and_then(|extra| extra.get(name));
    let switch = said("enable_thinking").or_else(|| said("thinking")).and_then(Value::as_bool);
    let level = said("reasoning_effort").and_then(Value::as_str);
    let mut values = Map::new();
    values.insert("think".into(), switch.unwrap_or_else(|| level.is_some()).into());
    values.insert("think_level".into(), level.unwrap_or_default().into());
    values.insert("is_think_set".into(), (switch.is_some() || level.is_some()).into());
    values
}

/// Messages as these templates know them: of text, those of one role that follow each other joined, and
/// with the arguments of tool calls as values.
fn messages(given: &Value) -> Vec<Value> {
    let mut messages: Vec<Value> = Vec::new();
    for message in given.as_array().into_iter().flatten() {
        let Value::Object(fields) = message else { continue };
        let content = text(fields.get("content").unwrap_or(&Value::Null));
        let role = fields.get("role").and_then(Value::as_str).unwrap_or_default();
        if let Some(Value::Object(last)) = messages.last_mut()
            && last.get("role").and_then(Value::as_str) == Some(role)
            && role != "tool"
            && let Some(Value::String(before)) = last.get_mut("content")
        {
            before.push_str(BREAK);
            before.push_str(&content);
            continue;
        }
        let mut fields = fields.clone();
        if let Some(thought) =
            fields.get("reasoning_content").or_else(|| fields.get("reasoning")).cloned()
        {
            fields.entry("thinking").or_insert(thought);
        }
        if let Some(name) = fields.get("name").cloned() {
            fields.entry("tool_name").or_insert(name);
        }
        if let Some(Value::Array(calls)) = fields.get_mut("tool_calls") {
            calls.iter_mut().for_each(with_arguments);
        }
        fields.insert("content".into(), content.into());
        messages.push(fields.into());
    }
    messages
}

/// Arguments that are a text of JSON are what that says.
fn with_arguments(call: &mut Value) {
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
    {
        *arguments = parsed;
    }
}

/// A content's text: its own, or that of its parts.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().concat()
        }
        _ => String::new(),
    }
}

/// The contents of all messages of a role.
fn joined(messages: &[Value], role: &str) -> String {
    let of_role = messages.iter().filter(|message| message["role"] == json!(role));
    of_role.filter_map(|message| message["content"].as_str()).collect::<Vec<_>>().join(BREAK)
}
