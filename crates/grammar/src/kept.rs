//! The constraints that were asked for last, as many requests come with the same grammar.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::{Constraint, Grammar, GrammarError, Vocabulary};

/// Constraints that are kept.
const MAX_KEPT: usize = 8;
/// Bytes of text of all grammars that are kept.
const MAX_BYTES: usize = 1 << 18;

/// Compiles grammars, but for those that it has compiled of late. What it keeps stays as it was compiled:
/// the answers of a request find out for themselves, so that one that has come to where its grammar asks
/// too much ends no other, and nothing grows.
#[derive(Debug)]
pub struct Compiler {
    vocabulary: Vocabulary,
    /// The latest first.
    kept: Mutex<VecDeque<Kept>>,
}

#[derive(Debug)]
struct Kept {
    grammar: Grammar,
    bytes: usize,
    /// No answer starts from this very one.
    constraint: Constraint,
}

impl Compiler {
    /// For answers in these tokens.
    pub fn new(vocabulary: Vocabulary) -> Self {
        Self { vocabulary, kept: Mutex::default() }
    }

    /// The tokens of answers.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// As [`Vocabulary::compile`].
    ///
    /// # Errors
    /// See [`Vocabulary::compile`].
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint, GrammarError> {
        if let Some(constraint) = self.find(grammar) {
            return Ok(constraint);
        }
        // Others need not wait; who wants the same at the same time compiles it too.
        let constraint = self.vocabulary.compile(grammar)?;
        self.keep(grammar, &constraint);
        Ok(constraint)
    }

    fn find(&self, grammar: &Grammar) -> Option<Constraint> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|kept| kept.grammar == *grammar)?;
        let found = kept.remove(at)?;
        let constraint = found.constraint.apart();
        kept.push_front(found);
        Some(constraint)
    }

    fn keep(&self, grammar: &Grammar, constraint: &Constraint) {
        let bytes = bytes(grammar);
        if bytes > MAX_BYTES {
            return;
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| kept.grammar != *grammar);
        let (grammar, constraint) = (grammar.clone(), constraint.apart());
        kept.push_front(Kept { grammar, bytes, constraint });
        while kept.len() > MAX_KEPT || kept.iter().map(|kept| kept.bytes).sum::<usize>() > MAX_BYTES
        {
            kept.pop_back();
        }
    }
}

/// About how much memory a grammar takes as it is.
fn bytes(grammar: &Grammar) -> usize {
    match grammar {
        Grammar::Json => 0,
        Grammar::JsonSchema(schema) => value_bytes(schema),
        Grammar::Regex(text) | Grammar::Lark(text) | Grammar::Gbnf(text) => text.len(),
    }
}

/// Its depth is that of a schema which was compiled, so bounded.
fn value_bytes(value: &Value) -> usize {
    let below = match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(value_bytes).sum(),
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| key.len() + value_bytes(value)).sum()
        }
    };
    below + size_of::<Value>()
}
