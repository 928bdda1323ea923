//! What an answer has to look like: a JSON schema, JSON, a regular expression or a grammar.
#![forbid(unsafe_code)]

use serde_json::Value;

/// What an answer has to look like.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    Json,
    /// JSON that a schema describes.
    JsonSchema(Value),
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// llguidance's dialect of Lark.
    Lark(String),
    /// llama.cpp's notation.
    Gbnf(String),
}
