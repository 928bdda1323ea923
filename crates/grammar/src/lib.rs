//! Which tokens may come next, for an answer that must have a form: JSON, a JSON schema, a regular
//! expression, a Lark or a GBNF grammar.
//!
//! A [`Vocabulary`] is made once per model and compiles a [`Grammar`] to a [`Constraint`], which any
//! number of answers start from, and a [`Compiler`] keeps for the next request; each answer has its own [`Progress`], which bans tokens and is told
//! which one was chosen. The parsing and the masks are llguidance's; this crate has what is ours: the
//! model's tokens, the limits of what a request may ask, and GBNF.
//!
//! A control token (`<|im_start|>`) is no text, so no grammar lets one by, but for the end of the
//! generation where the grammar may end, and tokens that a Lark or GBNF grammar names: `<|tool_call>`,
//! or `<[TOOL_CALLS]>` for one that is spelt `[TOOL_CALLS]`. Any token of the vocabulary can be named
//! so. Those that models mark as user-defined are text, too.

#![forbid(unsafe_code)]

mod constraint;
mod error;
mod gbnf;
mod kept;
mod lark;
mod schema;
mod vocabulary;

pub use constraint::{Constraint, Progress};
pub use error::GrammarError;
pub use kept::Compiler;
pub use vocabulary::Vocabulary;

/// The form that an answer must have.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    Json,
    /// JSON that a schema describes. White space is at most a line feed and an indent, or a space,
    /// between any two parts. Properties come in the order of the schema. `oneOf` is taken as `anyOf`.
    /// What cannot be held to is refused, unless the schema says `"x-guidance": {"lenient": true}`.
    JsonSchema(serde_json::Value),
    /// Text that matches a regular expression from its start to its end. No look-around and no
    /// back-references.
    Regex(String),
    /// A context-free grammar in llguidance's form of Lark, from its rule `start`.
    Lark(String),
    /// A context-free grammar in llama.cpp's form, from its rule `root`.
    Gbnf(String),
}
