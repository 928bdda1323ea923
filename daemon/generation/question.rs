//! What is asked, in no protocol's shape, and the prompt that it becomes.

use std::time::{SystemTime, UNIX_EPOCH};

use m40_grammar::Grammar;
use m40_manifest::{Definition, Text};
use m40_reply::{Format, Reader, ToolChoice, Tools};
use m40_tokenizer::{ChatTemplate, TemplateError, TemplateInput};
use m40llm::GenerateParams;
use serde_json::{Map, Value, json};

use super::AskError;
use super::tools::Reading;
use crate::models::Loaded;

/// What is asked of a model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Question {
    pub input: Input,
    pub params: GenerateParams,
    /// What the answer has to look like; any text where nothing says.
    pub grammar: Option<Grammar>,
}

/// What is to be answered or gone on from.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each answer")]
pub(crate) enum Input {
    /// Text to go on from, as it is.
    Text(String),
    /// Tokens to go on from, as they are.
    Tokens(Vec<u32>),
    /// A conversation for the model's chat template.
    Chat(Chat),
}

impl Default for Input {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

/// A conversation, in the terms of chat templates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chat {
    /// An array of objects with `role` (`system`, `user`, `assistant`, `tool`) and `content`, a string.
    /// An assistant's may have `reasoning_content`, and `tool_calls` in OpenAI's shape but with
    /// `arguments` that are objects; a tool's has `name` or `tool_call_id`.
    pub messages: Value,
    pub tools: Tools,
    pub tool_choice: ToolChoice,
    /// Whether an answer that must call tools has a single call.
    pub one_call: bool,
    pub reasoning: Reasoning,
    /// The chat template of this request, if it brings its own.
    pub template: Option<String>,
    /// More variables for the template.
    pub extra: Map<String, Value>,
}

/// Whether a model is to reason before it answers, where its template knows a way to say so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reasoning {
    /// As the template has it.
    #[default]
    Default,
    Off,
    On,
    /// `low`, `medium`, `high` and the like.
    Effort(String),
}

impl Reasoning {
    /// The variables that templates of several families look at.
    fn variables(&self, extra: &mut Map<String, Value>) {
        let (on, effort) = match self {
            Self::Default => return,
            Self::Off => (false, None),
            Self::On => (true, None),
            Self::Effort(effort) => (true, Some(effort)),
        };
        for switch in ["enable_thinking", "thinking"] {
            extra.entry(switch).or_insert_with(|| json!(on));
        }
        if let Some(effort) = effort {
            extra.entry("reasoning_effort").or_insert_with(|| json!(effort));
        }
    }
}

/// A question that can be answered.
#[derive(Debug)]
pub(super) struct Prepared {
    pub prompt: Vec<u32>,
    /// What takes the answer apart; all is content where there is none.
    pub reader: Option<Reader>,
    pub params: GenerateParams,
}

impl Question {
    /// Adds what a definition says of all answers.
    pub(super) fn complete(&mut self, definition: &Definition) {
        self.params.stop.extend(definition.stop.iter().cloned());
        if let Input::Chat(chat) = &mut self.input {
            chat.begin_with(definition.system.as_ref());
            if let (None, Some(template)) = (&chat.template, &definition.template) {
                chat.template = Some(template.content.to_string());
            }
        }
    }

    /// What the model is to be given, if it is something that it can answer.
    pub(super) fn prepare(&self, loaded: &Loaded) -> Result<Prepared, AskError> {
        let (context, vocab) = (loaded.model.info().context, loaded.model.info().vocab);
        if !loaded.model.info().generates {
            return Err(AskError::Encoder { model: loaded.name.to_string() });
        }
        check_bias(&self.params, vocab)?;
        let (prompt, reading) = self.encode(loaded)?;
        if prompt.is_empty() {
            return Err(AskError::EmptyPrompt);
        }
        if let Some(&token) = prompt.iter().find(|token| **token >= vocab) {
            return Err(AskError::NoSuchToken { field: "prompt", token, vocab });
        }
        // One token of room at least, or there would be nothing to answer with.
        if prompt.len() >= context as usize {
            let (model, prompt_tokens) = (loaded.name.to_string(), prompt.len());
            return Err(AskError::PromptTooLong { model, prompt_tokens, context });
        }
        let mut params = self.params.clone();
        params.constraint = match reading.as_ref().and_then(|reading| reading.grammar.as_ref()) {
            // A call is not what the answer would have to look like.
            Some(calls) => Some(loaded.model.grammar(calls).map_err(AskError::ToolGrammar)?),
            None => self.grammar.as_ref().map(|asked| loaded.model.grammar(asked)).transpose()?,
        };
        let reader = reading.map(|reading| {
            params.keep_special.extend(reading.marks);
            reading.reader
        });
        Ok(Prepared { prompt, reader, params })
    }

    fn encode(&self, loaded: &Loaded) -> Result<(Vec<u32>, Option<Reading>), AskError> {
        let tokenizer = loaded.model.tokenizer();
        match &self.input {
            Input::Text(text) => Ok((tokenizer.encode_prompt(text), None)),
            Input::Tokens(tokens) => Ok((tokens.clone(), None)),
            Input::Chat(chat) => {
                let other = chat.other_template(loaded)?;
                let template = other.as_ref().unwrap_or_else(|| loaded.model.chat_template());
                let format = Format::of_template(template.source());
                let text = chat.render(template, &format)?;
                let reading = chat.reading(&format, &text, tokenizer)?;
                Ok((tokenizer.encode_prompt(&text), Some(reading)))
            }
        }
    }
}

impl Chat {
    /// Puts a system prompt before a conversation that has none of its own.
    fn begin_with(&mut self, system: Option<&Text>) {
        if let (Value::Array(messages), Some(system)) = (&mut self.messages, system)
            && !messages.iter().any(|message| message["role"] == "system")
        {
            messages.insert(0, json!({"role": "system", "content": &*system.content}));
        }
    }

    /// The text that it becomes for a model.
    pub(super) fn text(&self, loaded: &Loaded) -> Result<String, TemplateError> {
        let other = self.other_template(loaded)?;
        let template = other.as_ref().unwrap_or_else(|| loaded.model.chat_template());
        self.render(template, &Format::of_template(template.source()))
    }

    /// Its template, unless that is the model's.
    fn other_template(&self, loaded: &Loaded) -> Result<Option<ChatTemplate>, TemplateError> {
        let (own, tokenizer) = (loaded.model.chat_template(), loaded.model.tokenizer());
        let other = self.template.as_deref().filter(|other| *other != own.source());
        other.map(|other| ChatTemplate::for_tokenizer(other, tokenizer)).transpose()
    }

    pub(super) fn render(
        &self,
        template: &ChatTemplate,
        format: &Format,
    ) -> Result<String, TemplateError> {
        let mut extra = self.extra.clone();
        self.reasoning.variables(&mut extra);
        let offered = self.offered();
        let told = format.offer(&self.messages, &offered);
        let tools = (told.is_none() && !offered.is_empty()).then(|| offered.to_template());
        template.render(&TemplateInput {
            messages: told.as_ref().unwrap_or(&self.messages),
            tools: tools.as_ref(),
            add_generation_prompt: true,
            extra: Some(&extra),
            now: Some(unix_s()),
        })
    }
}

fn check_bias(params: &GenerateParams, vocab: u32) -> Result<(), AskError> {
    match params.sampling.logit_bias.iter().find(|(token, _)| *token >= vocab) {
        Some(&(token, _)) => Err(AskError::NoSuchToken { field: "logit_bias", token, vocab }),
        None => Ok(()),
    }
}

// Templates that write the date get it in UTC: a daemon's own time zone says nothing about its
// clients'.
fn unix_s() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_is_said_in_the_words_of_several_templates_and_never_against_the_request() {
        let variables = |reasoning: Reasoning, mut extra: Map<String, Value>| {
            reasoning.variables(&mut extra);
            Value::Object(extra)
        };
        assert_eq!(variables(Reasoning::Default, Map::new()), json!({}));
        let off = json!({"enable_thinking": false, "thinking": false});
        assert_eq!(variables(Reasoning::Off, Map::new()), off);
        let own = Map::from_iter([("enable_thinking".to_owned(), json!(false))]);
        let effort = variables(Reasoning::Effort("low".into()), own);
        let want = json!({"enable_thinking": false, "thinking": true, "reasoning_effort": "low"});
        assert_eq!(effort, want);
    }
}
