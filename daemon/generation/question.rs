//! What is asked, in no protocol's shape, and the prompt that it becomes.

use std::time::{SystemTime, UNIX_EPOCH};

use m40_grammar::{Constraint, Grammar};
use m40_manifest::{Definition, Text};
use m40_reply::{Format, Reader, ToolChoice, Tools};
use m40_tokenizer::{ChatTemplate, FillIn, Special, TemplateError, TemplateInput, Tokenizer};
use m40llm::GenerateParams;
use serde_json::{Map, Value, json};

use super::tools::Reading;
use super::{AskError, call_ids};
use crate::models::Loaded;

/// What is asked of a model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Question {
    pub input: Input,
    /// Tokens of an earlier exchange, that the input goes on from.
    pub before: Vec<u32>,
    pub params: GenerateParams,
    /// Most tokens of prompt and answer together, where that is less than the model's context.
    pub context_max: Option<u32>,
    /// What the answer has to look like; any text where nothing says.
    pub form: Option<Form>,
}

/// What an answer has to look like.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Form {
    pub grammar: Grammar,
    /// The field of the request that says so.
    pub field: &'static str,
}

/// What is to be answered or gone on from.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    /// Text to go on from, as it is.
    Text(String),
    /// Tokens to go on from, as they are.
    Tokens(Vec<u32>),
    /// Two texts, for what comes between them.
    Fill { before: String, after: String },
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
    pub tool_shape: ToolShape,
    pub tool_choice: ToolChoice,
    /// Whether an answer that is held to calls has a single one.
    pub one_call: bool,
    pub reasoning: Reasoning,
    /// The chat template of this request, if it brings its own.
    pub template: Option<String>,
    /// More variables for the template.
    pub extra: Map<String, Value>,
    /// Whether the oldest messages may be left out where not all fit the context.
    pub shortens: bool,
}

/// Where in a tool a request has its schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ToolShape {
    /// In `function.parameters`.
    #[default]
    Nested,
    /// In `parameters`.
    Flat,
    /// In `input_schema`.
    Anthropic,
}

impl ToolShape {
    /// The field of the tool.
    pub(super) fn schema_field(self) -> &'static str {
        match self {
            Self::Nested => "function.parameters",
            Self::Flat => "parameters",
            Self::Anthropic => "input_schema",
        }
    }
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
        let (served, vocab) = (loaded.model.info().context, loaded.model.info().vocab);
        let context = self.context_max.map_or(served, |most| most.min(served));
        if !loaded.model.info().generates {
            return Err(AskError::Encoder { model: loaded.name.to_string() });
        }
        check_bias(&self.params, vocab)?;
        let (prompt, reading) = self.encode(loaded, context as usize)?;
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
        if context < served {
            let room = context - prompt.len() as u32;
            params.max_tokens = Some(params.max_tokens.map_or(room, |most| most.min(room)));
        }
        params.constraint = self.constraint(loaded, reading.as_ref())?;
        let reader = reading.map(|reading| {
            params.keep_special.extend(reading.marks);
            reading.reader
        });
        Ok(Prepared { prompt, reader, params })
    }

    /// What holds the answer to its form. A call that must come is not what an answer would have to look
    /// like; where one only may, the answer has the form that was asked for.
    fn constraint(
        &self,
        loaded: &Loaded,
        reading: Option<&Reading>,
    ) -> Result<Option<Constraint>, AskError> {
        let calls = reading.and_then(|reading| reading.calls.as_ref());
        match (&self.form, calls, &self.input) {
            (form, Some(calls), Input::Chat(chat)) if form.is_none() || chat.must_call() => {
                let held = loaded.model.grammar(calls);
                held.map(Some).map_err(|error| chat.tool_error(loaded, error))
            }
            (Some(Form { grammar, field }), ..) => {
                let refused = |error| AskError::Grammar { field: (*field).to_owned(), error };
                loaded.model.grammar(grammar).map(Some).map_err(refused)
            }
            (None, ..) => Ok(None),
        }
    }

    fn encode(
        &self,
        loaded: &Loaded,
        context: usize,
    ) -> Result<(Vec<u32>, Option<Reading>), AskError> {
        let tokenizer = loaded.model.tokenizer();
        let encode = |text: &str| self.encode_after(tokenizer, text);
        match &self.input {
            Input::Text(text) => Ok((encode(text), None)),
            Input::Tokens(tokens) => Ok((tokens.clone(), None)),
            Input::Fill { before, after } => Ok((fill(loaded, before, after)?, None)),
            Input::Chat(chat) => {
                let other = chat.other_template(loaded)?;
                let template = other.as_ref().unwrap_or_else(|| loaded.model.chat_template());
                let format = Format::of_template(template.source());
                let (text, prompt) = chat.fit(template, &format, encode, context)?;
                let reading = chat.reading(&format, &text, tokenizer)?;
                Ok((prompt, Some(reading)))
            }
        }
    }

    /// The tokens of a prompt, after those that come before.
    fn encode_after(&self, tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        let mut tokens = tokenizer.encode_prompt(text);
        if !self.before.is_empty() {
            let begin = tokenizer.bos();
            let begins_anew = begin.is_some() && tokens.first() == begin.as_ref();
            tokens.splice(..usize::from(begins_anew), self.before.iter().copied());
        }
        tokens
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
        self.render(&self.messages, template, &Format::of_template(template.source()))
    }

    /// Its template, unless that is the model's.
    fn other_template(&self, loaded: &Loaded) -> Result<Option<ChatTemplate>, TemplateError> {
        let (own, tokenizer) = (loaded.model.chat_template(), loaded.model.tokenizer());
        let other = self.template.as_deref().filter(|other| *other != own.source());
        other.map(|other| ChatTemplate::for_tokenizer(other, tokenizer)).transpose()
    }

    /// Its text and tokens. Where those fill the context, and messages may be left out, it begins at the
    /// first message of the user from which they do not.
    fn fit(
        &self,
        template: &ChatTemplate,
        format: &Format,
        encode: impl Fn(&str) -> Vec<u32>,
        context: usize,
    ) -> Result<(String, Vec<u32>), TemplateError> {
        let encoded = |messages: &Value| {
            let text = self.render(messages, template, format)?;
            let tokens = encode(&text);
            Ok::<_, TemplateError>((text, tokens))
        };
        let mut best = encoded(&self.messages)?;
        if !self.shortens || best.1.len() < context {
            return Ok(best);
        }
        let beginnings = self.later_beginnings();
        let mut left = beginnings.as_slice();
        while let Some(&middle) = left.get(left.len() / 2) {
            let (earlier, later) = left.split_at(left.len() / 2);
            let found = encoded(&self.from(middle))?;
            left = if found.1.len() < context {
                best = found;
                earlier
            } else {
                &later[1..]
            };
        }
        Ok(best)
    }

    /// Where it could begin but for where it does: templates want a message of the user first.
    fn later_beginnings(&self) -> Vec<usize> {
        let messages = self.messages.as_array().map_or(&[][..], Vec::as_slice);
        let of_user = messages.iter().enumerate().filter(|(_, message)| message["role"] == "user");
        of_user.map(|(at, _)| at).skip(1).collect()
    }

    /// Its messages from here on, and all system prompts.
    fn from(&self, first: usize) -> Value {
        let messages = self.messages.as_array().into_iter().flatten().enumerate();
        let stays = |(at, message): &(usize, &Value)| *at >= first || message["role"] == "system";
        messages.filter(stays).map(|(_, message)| message.clone()).collect()
    }

    pub(super) fn render(
        &self,
        messages: &Value,
        template: &ChatTemplate,
        format: &Format,
    ) -> Result<String, TemplateError> {
        let mut extra = self.extra.clone();
        self.reasoning.variables(&mut extra);
        let numbered = format.wants_short_ids().then(|| call_ids::numbered(messages));
        let messages = numbered.as_ref().unwrap_or(messages);
        let offered = self.offered();
        let told = format.offer(messages, &offered);
        let tools = (format.takes_tools() && !offered.is_empty()).then(|| offered.to_template());
        template.render(&TemplateInput {
            messages: told.as_ref().unwrap_or(messages),
            tools: tools.as_ref(),
            add_generation_prompt: true,
            extra: Some(&extra),
            now: Some(unix_s()),
        })
    }
}

/// What asks a model to fill in between two texts.
fn fill(loaded: &Loaded, before: &str, after: &str) -> Result<Vec<u32>, AskError> {
    let tokenizer = loaded.model.tokenizer();
    let no_tokens = || AskError::NoFillIn { model: loaded.name.to_string() };
    let FillIn { prefix, suffix, middle } = tokenizer.fill_in().ok_or_else(no_tokens)?;
    let plain = |text: &str| tokenizer.encode(text, Special::default());
    let begin = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let parts = [vec![prefix], plain(before), vec![suffix], plain(after), vec![middle]];
    Ok(begin.into_iter().chain(parts.concat()).collect())
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
    fn what_does_not_fit_begins_at_a_later_message_of_the_user_after_the_system_prompt() {
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let mut chat = Chat {
            messages: json!([
                message("system", "s"),
                message("user", "one"),
                message("assistant", "two"),
                message("user", "three"),
                message("assistant", "four"),
                message("user", "five"),
            ]),
            ..Chat::default()
        };
        let source = "{% for m in messages %}{{ m.content }} {% endfor %}";
        let template = ChatTemplate::new(source, "", "").unwrap();
        let bytes = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
        let format = Format::of_template(source);
        let fit = |chat: &Chat, context| chat.fit(&template, &format, bytes, context).unwrap().0;
        let whole = "s one two three four five ";
        assert_eq!(fit(&chat, 10), whole, "nobody said that it may be shortened");
        chat.shortens = true;
        assert_eq!(fit(&chat, 27), whole);
        assert_eq!(fit(&chat, 26), "s three four five ");
        assert_eq!(fit(&chat, 18), "s five ");
        assert_eq!(fit(&chat, 7), whole, "no less can be said");
    }

    #[test]
    fn calls_have_other_ids_only_for_templates_that_want_them() {
        let call = json!({"id": "call_of_a_client", "function": {"name": "f", "arguments": {}}});
        let messages = json!([
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_of_a_client", "content": "42"},
        ]);
        let shown = |mark: &str| {
            let source = format!(
                "{mark}{{{{ messages[0].tool_calls[0].id }}}} {{{{ messages[1].tool_call_id }}}}"
            );
            let template = ChatTemplate::new(&source, "", "").unwrap();
            let format = Format::of_template(&source);
            Chat::default().render(&messages, &template, &format).unwrap()
        };
        assert_eq!(shown("[TOOL_CALLS]"), "[TOOL_CALLS]call00001 call00001");
        assert_eq!(shown("<tool_call>"), "<tool_call>call_of_a_client call_of_a_client");
    }

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
