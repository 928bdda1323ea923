//! Why a grammar cannot be used, or an answer cannot go on by it.

/// Characters of what the parser says that are shown.
const SHOWN: usize = 400;

/// Why a grammar cannot be used, or an answer cannot go on by it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// More than anybody means.
    #[error("{what} has more than {limit} {unit}: make it smaller")]
    TooLarge {
        /// `the JSON schema` or the like.
        what: &'static str,
        /// Most that there may be.
        limit: usize,
        /// Of what.
        unit: &'static str,
    },
    /// A schema that is no schema, or asks for what cannot be held to.
    #[error("the JSON schema cannot be used{}: {reason}", place(at))]
    Schema {
        /// JSON pointer to the part that is in the way, if that is known.
        at: Option<String>,
        /// What is in the way, and what to do.
        reason: String,
    },
    /// A grammar or regular expression with a mistake.
    #[error("the {form} cannot be used: {reason}")]
    Grammar {
        /// `regular expression` or `Lark grammar`.
        form: &'static str,
        /// What is wrong, and where.
        reason: String,
    },
    /// A GBNF grammar with a mistake.
    #[error("the GBNF grammar cannot be used: line {line}, column {column}: {reason}")]
    Gbnf {
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// A token that the model does not have.
    #[error(
        "the grammar names the token {name}, which the model does not have: write it in quotes if it \
         is text"
    )]
    UnknownToken {
        /// As in the grammar.
        name: String,
    },
    /// The model's vocabulary is not one that masks can be made for.
    #[error("the model cannot be held to a grammar: {reason}")]
    Vocabulary {
        /// What is in the way.
        reason: String,
    },
    /// The answer came to a place where the grammar needs more work than is allowed, or has no way on.
    #[error("the answer cannot go on by its grammar: {reason}")]
    Stuck {
        /// What is in the way.
        reason: String,
    },
    /// The system has no thread to compile on.
    #[error("cannot compile the grammar: {reason}; try again")]
    NoThread {
        /// What the system says.
        reason: String,
    },
}

fn place(at: &Option<String>) -> String {
    match at.as_deref() {
        None => String::new(),
        Some("") => " at its root".to_owned(),
        Some(at) => format!(" at {at}"),
    }
}

/// One line of what the parser says: it adds the grammar and its own state to it.
pub(crate) fn shown(reason: impl std::fmt::Display) -> String {
    let text = reason.to_string();
    let end = ["\n<", "<non-verbose/>"].iter().filter_map(|mark| text.find(mark)).min();
    let text = text[..end.unwrap_or(text.len())].split_whitespace();
    let mut line = text.collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(SHOWN) {
        line.truncate(end);
        line.push('…');
    }
    line
}
