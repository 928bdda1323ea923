//! What a model writes, taken apart while it comes: content, reasoning and calls of tools.
#![forbid(unsafe_code)]

mod tools;

pub use tools::{Tool, ToolChoice, Tools, ToolsError};

/// A part of an answer, in the order in which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// What is said to the user.
    Content(String),
    /// What the model says to itself.
    Reasoning(String),
    /// A call begins.
    Call {
        /// The tool's name, one of those that were offered.
        name: String,
    },
    /// More of the JSON object that has the arguments of the call that began last.
    Arguments(String),
    /// The call is complete: its arguments, joined, are one JSON object.
    CallEnd,
}

/// How a model writes reasoning and calls of tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Format {}

impl Format {
    /// The format of a model with this chat template: plain text where nothing else is known.
    pub fn of_template(_source: &str) -> Self {
        Self {}
    }

    /// Reads one answer to a prompt that ends so.
    pub fn reader(&self, _tools: &Tools, _prompt_tail: &str) -> Reader {
        Reader {}
    }
}

/// Takes one answer apart.
#[derive(Debug)]
pub struct Reader {}

impl Reader {
    /// What is sure after this text, which follows what came before.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        if text.is_empty() { vec![] } else { vec![Piece::Content(text.to_owned())] }
    }

    /// What was held back, when nothing follows.
    pub fn finish(&mut self) -> Vec<Piece> {
        vec![]
    }
}
