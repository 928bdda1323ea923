//! Tools and reasoning of a conversation: how its answer is read, and what holds it to calls.

use m40_grammar::Grammar;
use m40_reply::{Format, Reader, ToolChoice, Tools};
use m40_tokenizer::Tokenizer;

use super::{AskError, Chat};

/// How an answer is read.
#[derive(Debug)]
pub(super) struct Reading {
    pub reader: Reader,
    /// Control tokens that the reader must see.
    pub marks: Vec<u32>,
    /// Of answers that must call tools.
    pub grammar: Option<Grammar>,
}

impl Chat {
    /// The tools that the model may call.
    pub(super) fn offered(&self) -> Tools {
        match self.tool_choice {
            ToolChoice::None => Tools::default(),
            _ => self.tools.clone(),
        }
    }

    /// How the answer to this prompt is read.
    pub(super) fn reading(
        &self,
        format: &Format,
        prompt: &str,
        tokenizer: &Tokenizer,
    ) -> Result<Reading, AskError> {
        if let ToolChoice::Named(name) = &self.tool_choice
            && self.tools.get(name).is_none()
        {
            return Err(AskError::NoSuchTool { name: name.clone() });
        }
        let tools = self.offered();
        let control = |mark: &str| tokenizer.token_id(mark).filter(|id| tokenizer.is_control(*id));
        let marks = format.markers().into_iter().filter_map(control).collect();
        let is_control = |mark: &str| control(mark).is_some();
        let parallel = !self.one_call;
        let grammar = format.grammar(&tools, &self.tool_choice, parallel, prompt, &is_control);
        let reader = format.reader(&tools, prompt);
        Ok(Reading { reader, marks, grammar: grammar.map(Grammar::Lark) })
    }
}
