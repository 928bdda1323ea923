//! Calls of Qwen 3 Coder: a tag for the function, and in it one for each argument with its value as text.
//!
//! ```text
//! <tool_call>
//! <function=NAME>
//! <parameter=KEY>
//! value
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//! Values that the schema has as strings are the text between the line feeds; others are JSON, or else
//! text.

use serde_json::Value;

use crate::Tool;
use crate::pieces::{Pieces, drain, find};

pub(crate) const FUNCTION: &str = "<function=";
pub(crate) const FUNCTION_END: &str = "</function>";
pub(crate) const PARAMETER: &str = "<parameter=";
pub(crate) const PARAMETER_END: &str = "</parameter>";
pub(crate) const CALL: &str = "<tool_call>";
pub(crate) const CALL_END: &str = "</tool_call>";

/// Longest name of an argument.
const KEY_MAX: usize = 512;
/// Bytes of a value that is told when all of it is there.
const VALUE_MAX: usize = 1 << 18;
/// What of a schema says more of a string than that it is one of some: such a value is written as JSON.
const OF_STRINGS: [&str; 4] = ["pattern", "format", "minLength", "maxLength"];

/// The arguments of a call while they come, told as one JSON object.
#[derive(Debug)]
pub(crate) struct Parameters {
    schema: Value,
    /// Whether one was told.
    any: bool,
    at: At,
}

#[derive(Debug)]
enum At {
    /// An argument comes, or the end.
    Between,
    /// The value of this argument begins.
    Begin(String),
    /// In a string.
    Text,
    /// In the value of this argument.
    Value(String),
}

/// What became of the arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    Again,
    Wait,
    /// They are complete.
    Whole,
    /// They are none.
    Broken,
}

impl Parameters {
    /// For a call of this tool.
    pub(crate) fn new(tool: &Tool) -> Self {
        Self { schema: tool.parameters.clone(), any: false, at: At::Between }
    }

    /// Tells what is sure of the first of `held`, which goes.
    pub(crate) fn read(&mut self, held: &mut String, end: bool, pieces: &mut Pieces) -> Read {
        match &mut self.at {
            At::Between => self.between(held, end, pieces),
            At::Begin(key) => {
                let key = std::mem::take(key);
                if held.starts_with('\n') {
                    held.remove(0);
                }
                self.at = match is_text(self.property(&key)) {
                    true => {
                        pieces.arguments("\"");
                        At::Text
                    }
                    false => At::Value(key),
                };
                Read::Again
            }
            At::Text => {
                let (at, found) = find(held, &[PARAMETER_END], end);
                let text = &held[..at];
                // The last line feed belongs to the tag.
                let text =
                    if found || !end { text.strip_suffix('\n').unwrap_or(text) } else { text };
                pieces.arguments(&escaped(text));
                if !found {
                    held.drain(..text.len());
                    return Read::Wait;
                }
                pieces.arguments("\"");
                held.drain(..at + PARAMETER_END.len());
                self.ended()
            }
            At::Value(key) => match held.find(PARAMETER_END) {
                Some(at) if at <= VALUE_MAX => {
                    let key = std::mem::take(key);
                    let text = drain(held, at);
                    held.drain(..PARAMETER_END.len());
                    let text = text.strip_suffix('\n').unwrap_or(&text);
                    pieces.arguments(&value(text, self.property(&key)));
                    self.ended()
                }
                None if !end && held.len() <= VALUE_MAX => Read::Wait,
                _ => Read::Broken,
            },
        }
    }

    fn between(&mut self, held: &mut String, end: bool, pieces: &mut Pieces) -> Read {
        let space = held.len() - held.trim_start().len();
        let rest = &held[space..];
        if let Some(rest) = rest.strip_prefix(PARAMETER) {
            let Some(length) = rest.find('>').filter(|length| *length <= KEY_MAX) else {
                return if end || rest.len() > KEY_MAX { Read::Broken } else { Read::Wait };
            };
            let key = rest[..length].trim().to_owned();
            let before = if self.any { ", " } else { "{" };
            pieces.arguments(&format!("{before}{}: ", Value::from(&*key)));
            held.drain(..space + PARAMETER.len() + length + 1);
            self.at = At::Begin(key);
            return Read::Again;
        }
        if [FUNCTION_END, CALL_END].iter().any(|close| rest.starts_with(close)) {
            pieces.arguments(if self.any { "}" } else { "{}" });
            return Read::Whole;
        }
        let may_be = [PARAMETER, FUNCTION_END, CALL_END].iter().any(|mark| mark.starts_with(rest));
        if may_be && !end { Read::Wait } else { Read::Broken }
    }

    fn ended(&mut self) -> Read {
        (self.any, self.at) = (true, At::Between);
        Read::Again
    }

    fn property(&self, key: &str) -> &Value {
        &self.schema["properties"][key]
    }
}

/// Whether values of this schema are text as it is.
pub(crate) fn is_text(schema: &Value) -> bool {
    schema["type"] == "string" && OF_STRINGS.iter().all(|key| schema.get(key).is_none())
}

/// The JSON of a value that was written so.
fn value(text: &str, schema: &Value) -> String {
    let json = match text.trim() {
        "True" => "true",
        "False" => "false",
        "None" => "null",
        other => other,
    };
    match serde_json::from_str::<Value>(json) {
        Ok(value) if allows(schema, &value) => json.to_owned(),
        _ => Value::from(text).to_string(),
    }
}

/// Whether a schema has values of this one's type; it has all where it does not say.
fn allows(schema: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str().unwrap_or_default() {
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        _ => false,
    };
    let branches = || schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array);
    match (schema.get("type"), branches()) {
        (Some(Value::Array(names)), _) => names.iter().any(is),
        (Some(name), _) => is(name),
        (None, Some(branches)) => branches.iter().any(|branch| allows(branch, value)),
        (None, None) => true,
    }
}

/// What stands between the quotes of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
