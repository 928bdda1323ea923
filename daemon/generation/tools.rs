//! Tools and reasoning of a conversation: how its answer is read, and what holds it to calls.

use m40_grammar::{Grammar, GrammarError};
use m40_reply::{Format, NotHeld, Reader, ToolChoice, Tools};
use m40_tokenizer::Tokenizer;
use serde_json::json;

use super::{AskError, Chat};
use crate::models::Loaded;

/// How an answer is read.
#[derive(Debug)]
pub(super) struct Reading {
    pub reader: Reader,
    /// Control tokens that the reader must see.
    pub marks: Vec<u32>,
    /// What calls are held to.
    pub calls: Option<Grammar>,
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
        let grammar = format
            .grammar(&tools, &self.tool_choice, parallel, prompt, &is_control)
            .map_err(|error| self.not_held(&error))?;
        let reader = format.reader(&tools, prompt);
        Ok(Reading { reader, marks, calls: grammar.map(Grammar::Lark) })
    }

    fn not_held(&self, error: &NotHeld) -> AskError {
        let at = self.tools.iter().position(|tool| tool.name == error.tool).unwrap_or_default();
        let field = format!("tools[{at}].{}", self.tool_shape.schema_field());
        AskError::Grammar {
            field,
            error: GrammarError::Schema { at: None, reason: error.to_string() },
        }
    }

    /// Whether the answer is a call, whatever the model would say.
    pub(super) fn must_call(&self) -> bool {
        matches!(self.tool_choice, ToolChoice::Required | ToolChoice::Named(_))
    }

    /// The error for tools that calls cannot be held to: what is wrong with the first whose schema is.
    pub(super) fn tool_error(&self, loaded: &Loaded, error: GrammarError) -> AskError {
        for (at, tool) in self.tools.iter().enumerate() {
            let mut schema = tool.parameters.clone();
            if let Some(schema) = schema.as_object_mut().filter(|_| !tool.strict) {
                schema.insert("x-guidance".to_owned(), json!({"lenient": true}));
            }
            if let Err(error) = loaded.model.grammar(&Grammar::JsonSchema(schema)) {
                let field = format!("tools[{at}].{}", self.tool_shape.schema_field());
                return AskError::Grammar { field, error };
            }
        }
        AskError::Grammar { field: "tools".to_owned(), error }
    }
}

#[cfg(test)]
mod tests {
    use m40_reply::{Piece, Tool};
    use m40_sched::sampler::SamplingParams;
    use m40_testkit::models;
    use m40llm::{CancelToken, Engine, EngineOptions, GenerateParams, ModelOptions};
    use serde_json::Value;

    use super::*;

    fn chat(tool_choice: ToolChoice) -> Chat {
        let parameters = json!({
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        });
        let description = Some("The weather of a city.".into());
        let weather = Tool { name: "weather".into(), description, parameters, strict: true };
        Chat {
            messages: json!([{"role": "user", "content": "What is the weather in Paris?"}]),
            tools: Tools::new(vec![weather]).unwrap(),
            tool_choice,
            one_call: true,
            ..Chat::default()
        }
    }

    #[test]
    fn a_model_whose_template_knows_no_tools_calls_one_when_it_must() {
        let engine = Engine::new(EngineOptions { threads: Some(2), ..EngineOptions::default() });
        let model = engine.unwrap().load(&models::smollm2(), &ModelOptions::default()).unwrap();
        let (template, tokenizer) = (model.chat_template(), model.tokenizer());
        let chat = chat(ToolChoice::Required);
        let format = Format::of_template(template.source());
        let prompt = chat.render(&chat.messages, template, &format).unwrap();
        assert!(prompt.contains("The weather of a city."), "{prompt}");
        let Reading { mut reader, marks, calls } =
            chat.reading(&format, &prompt, tokenizer).unwrap();
        let params = GenerateParams {
            sampling: SamplingParams::greedy(),
            max_tokens: Some(100),
            constraint: calls.map(|grammar| model.grammar(&grammar).unwrap()),
            keep_special: marks,
            ..GenerateParams::default()
        };
        let mut pieces = vec![];
        let prompt = tokenizer.encode_prompt(&prompt);
        let mut on_chunk = |chunk: m40llm::Chunk| pieces.extend(reader.push(&chunk.text));
        model.session().generate(&prompt, &params, &CancelToken::new(), &mut on_chunk).unwrap();
        pieces.extend(reader.finish());
        let [Piece::Call { name }, arguments @ .., Piece::CallEnd] = &pieces[..] else {
            panic!("{pieces:?}");
        };
        let text = |piece: &Piece| match piece {
            Piece::Arguments(text) => text.clone(),
            other => panic!("{other:?}"),
        };
        let arguments: String = arguments.iter().map(text).collect();
        let arguments: Value = serde_json::from_str(&arguments).unwrap();
        assert_eq!(name, "weather");
        assert!(arguments["city"].is_string(), "{arguments}");
    }

    #[test]
    fn a_choice_that_is_none_of_the_tools_is_refused() {
        let engine = Engine::new(EngineOptions { threads: Some(1), ..EngineOptions::default() });
        let model = engine.unwrap().load(&models::smollm2(), &ModelOptions::default()).unwrap();
        let chat = chat(ToolChoice::Named("other".into()));
        let refused = chat.reading(&Format::default(), "", model.tokenizer());
        assert!(matches!(refused, Err(AskError::NoSuchTool { name }) if name == "other"));
    }
}
