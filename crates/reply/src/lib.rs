//! What a model writes, taken apart while it comes: content, reasoning and calls of tools.
#![forbid(unsafe_code)]

mod call;
mod format;
mod grammar;
mod harmony;
mod json;
mod layout;
mod offer;
mod pieces;
mod python;
mod reader;
mod syntax;
mod tagged;
mod tools;
mod xml;

pub use format::Format;
pub use grammar::NotHeld;
pub use reader::Reader;
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
