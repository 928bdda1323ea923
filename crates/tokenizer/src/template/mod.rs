//! Chat templates: sources that come with models and turn messages into a prompt.
//!
//! Most are in Jinja's language, and some, of Ollama's registries, in Go's (`go`). Those of Jinja are written for the `transformers` library, whose environment is recreated here:
//! `trim_blocks` and `lstrip_blocks` on, Python's methods on strings, maps and lists, `tojson` as
//! Python's `json.dumps` writes it, `raise_exception`, `strftime_now`, `break` and `continue`, and
//! the `generation` blocks that mark training targets.
//!
//! A template comes from a file that someone downloaded: its source, its steps and its output are
//! bounded. The memory of its variables is not: the engine has no means to.

mod clock;
mod go;
mod python;

use std::fmt;
use std::io::{self, Write};

use m40_gguf::{Gguf, GgufError};
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig};
use thiserror::Error;

use crate::Tokenizer;
use go::GoTemplate;

/// A thousand times the steps of a long conversation in the longest template known.
const MAX_STEPS: u64 = 50_000_000;
/// The longest template known is a tenth of this.
const MAX_SOURCE_BYTES: usize = 1 << 20;
/// More than any context holds.
const MAX_PROMPT_BYTES: usize = 64 << 20;

const DEFAULT: &str = "tokenizer.chat_template";
const TOOL_USE: &str = "tokenizer.chat_template.tool_use";

/// The variables by which models' templates are told whether, or how much, to think.
const THINK_SWITCHES: [&str; 3] = ["enable_thinking", "thinking", "reasoning_effort"];

/// The ChatML layout, for models that come without a template.
const CHATML: &str = "\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
";

/// A chat template cannot be read or rendered.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template's key has another type than it must.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// The source is too long.
    #[error("the chat template has {bytes} bytes, but at most {MAX_SOURCE_BYTES} are allowed")]
    SourceTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The source is not a valid template.
    #[error("the chat template does not parse: line {line}: {message}")]
    Syntax {
        /// The line, from 1; 0 when it is not known.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// The template refuses these messages, in its own words (`raise_exception`).
    #[error("the chat template refuses the messages: {message}")]
    Raised {
        /// What the template says.
        message: String,
    },
    /// The template fails on these messages.
    #[error("the chat template fails on these messages: line {line}: {message}")]
    Render {
        /// The line, from 1; 0 when it is not known.
        line: usize,
        /// What went wrong.
        message: String,
    },
    /// The template takes more steps than any real one.
    #[error("the chat template did not end within {MAX_STEPS} steps")]
    TooManySteps,
    /// The prompt is longer than any context.
    #[error("the chat template writes a prompt of more than {MAX_PROMPT_BYTES} bytes")]
    PromptTooLong,
}

/// What a template gets to see.
#[derive(Debug, Clone, Copy)]
pub struct TemplateInput<'a> {
    /// An array of objects with at least `role` and `content`.
    pub messages: &'a serde_json::Value,
    /// An array of tools in the shape of the OpenAI API.
    pub tools: Option<&'a serde_json::Value>,
    /// Whether the prompt ends with the start of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking` or `documents`. They cannot replace the ones
    /// above.
    pub extra: Option<&'a serde_json::Map<String, serde_json::Value>>,
    /// The time for templates that write the date: seconds since 1970-01-01 00:00:00, both in the
    /// time zone to show. Without it such templates use a date of their own.
    pub now: Option<i64>,
}

impl<'a> TemplateInput<'a> {
    /// These messages, ending with the start of the assistant's turn, and nothing else.
    pub fn new(messages: &'a serde_json::Value) -> Self {
        Self { messages, tools: None, add_generation_prompt: true, extra: None, now: None }
    }
}

/// A model's chat template, parsed.
pub struct ChatTemplate {
    default: Source,
    /// Used when there are tools, by models that have a template of its own for them.
    tool_use: Option<Source>,
    bos: String,
    eos: String,
}

/// A template in its environment.
struct Source {
    language: Language,
    text: String,
}

/// What a template is written in.
enum Language {
    Jinja(Box<Environment<'static>>),
    Go(GoTemplate),
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source()).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Parses a template. `bos` and `eos` are the texts of the tokens it may write.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] with the line, or [`TemplateError::SourceTooLong`].
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        Ok(Self {
            default: Source::parse(source)?,
            tool_use: None,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// Parses a template that replaces the one a model comes with; the texts of the tokens it may
    /// write are the model's.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn for_tokenizer(source: &str, tokenizer: &Tokenizer) -> Result<Self, TemplateError> {
        let bos = tokenizer.special_text(tokenizer.bos());
        let eos = tokenizer.special_text(tokenizer.eos());
        Self::new(source, bos, eos)
    }

    /// The template a model comes with; ChatML when it has none.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`], and [`TemplateError::Metadata`] when the key is not a string.
    pub fn from_gguf<B: AsRef<[u8]>>(
        gguf: &Gguf<B>,
        tokenizer: &Tokenizer,
    ) -> Result<Self, TemplateError> {
        let source = gguf.get_str(DEFAULT)?.unwrap_or(CHATML);
        let mut template = Self::for_tokenizer(source, tokenizer)?;
        template.tool_use = gguf.get_str(TOOL_USE)?.map(Source::parse).transpose()?;
        Ok(template)
    }

    /// The template a model comes with, to look at: no texts of tokens are known to it. `None` when the
    /// model has none.
    ///
    /// # Errors
    /// As [`ChatTemplate::from_gguf`].
    pub fn peek<B: AsRef<[u8]>>(gguf: &Gguf<B>) -> Result<Option<Self>, TemplateError> {
        let Some(source) = gguf.get_str(DEFAULT)? else { return Ok(None) };
        let mut template = Self::new(source, "", "")?;
        template.tool_use = gguf.get_str(TOOL_USE)?.map(Source::parse).transpose()?;
        Ok(Some(template))
    }

    /// Whether it shows a model the tools that there are.
    pub fn takes_tools(&self) -> bool {
        self.tool_use.is_some() || self.default.reads(&["tools"], &["Tools"])
    }

    /// Whether it knows of thoughts before an answer: by a switch for them, or by the marks around them.
    pub fn knows_thoughts(&self) -> bool {
        let marks = ["<think>", "</think>"];
        marks.iter().any(|mark| self.source().contains(mark))
            || self.default.reads(&THINK_SWITCHES, &["Think", "Thinking"])
    }

    /// Whether it is written in Go's language, not in Jinja's.
    pub fn is_go(&self) -> bool {
        matches!(self.default.language, Language::Go(_))
    }

    /// The source of the template that is used without tools.
    pub fn source(&self) -> &str {
        &self.default.text
    }

    /// The prompt for these messages, for [`Tokenizer::encode_prompt`].
    ///
    /// # Errors
    /// [`TemplateError::Raised`] when the template refuses the messages, else what went wrong in
    /// which line, or which bound was passed.
    pub fn render(&self, input: &TemplateInput<'_>) -> Result<String, TemplateError> {
        let source = match &self.tool_use {
            Some(tool_use) if input.tools.is_some() => tool_use,
            _ => &self.default,
        };
        match &source.language {
            Language::Jinja(environment) => render(environment, self.context(input)),
            Language::Go(template) => template.render(input),
        }
    }

    fn context(&self, input: &TemplateInput<'_>) -> Value {
        let extra = input.extra.into_iter().flatten();
        let mut variables: Vec<(String, Value)> =
            extra.map(|(name, value)| (name.clone(), Value::from(Serde(value)))).collect();
        let mut set = |name: &str, value: Value| variables.push((name.to_owned(), value));
        if let Some(now) = input.now {
            set(
                "strftime_now",
                Value::from_function(move |format: &str| clock::format(now, format)),
            );
        }
        set("messages", Value::from(Serde(input.messages)));
        set(
            "tools",
            input.tools.map_or_else(|| Value::from(()), |tools| Value::from(Serde(tools))),
        );
        if !input.extra.is_some_and(|extra| extra.contains_key("documents")) {
            set("documents", Value::from(()));
        }
        set("add_generation_prompt", input.add_generation_prompt.into());
        set("bos_token", self.bos.as_str().into());
        set("eos_token", self.eos.as_str().into());
        Value::from_pairs(variables)
    }
}

const NAME: &str = "chat_template";

impl Source {
    fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_SOURCE_BYTES {
            return Err(TemplateError::SourceTooLong { bytes: text.len() });
        }
        let language = if go::is_go(text) {
            Language::Go(GoTemplate::parse(text)?)
        } else {
            let mut environment = environment()?;
            environment
                .add_template_owned(NAME, without_generation_blocks(text))
                .map_err(syntax)?;
            Language::Jinja(Box::new(environment))
        };
        Ok(Self { language, text: text.to_owned() })
    }

    /// Whether it reads one of these variables of Jinja, or of these fields of Go.
    fn reads(&self, variables: &[&str], fields: &[&str]) -> bool {
        match &self.language {
            Language::Jinja(environment) => {
                // It was found when it was added.
                let read = environment.get_template(NAME).map(|it| it.undeclared_variables(false));
                read.is_ok_and(|read| variables.iter().any(|variable| read.contains(*variable)))
            }
            Language::Go(template) => fields.iter().any(|field| template.reads(field)),
        }
    }
}

fn render(environment: &Environment<'_>, context: Value) -> Result<String, TemplateError> {
    let template = environment.get_template(NAME).map_err(failure)?;
    let mut prompt = Bounded { bytes: Vec::new(), overflowed: false };
    let result = template.render_captured_to(context, &mut prompt).map(drop);
    if prompt.overflowed {
        return Err(TemplateError::PromptTooLong);
    }
    result.map_err(failure)?;
    Ok(String::from_utf8_lossy(&prompt.bytes).into_owned())
}

fn environment() -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    let syntax_config = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax_config.map_err(syntax)?);
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_debug(false);
    // Prompts are not HTML, whatever a template is called.
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(python::write);
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", python::string);
    environment.add_function("raise_exception", raise_exception);
    Ok(environment)
}

/// What a template said in `raise_exception`.
#[derive(Debug, Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let raised = Raised(python::text(message));
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
}

fn syntax(error: Error) -> TemplateError {
    TemplateError::Syntax { line: error.line().unwrap_or(0), message: described(&error) }
}

fn failure(error: Error) -> TemplateError {
    let mut sources =
        std::iter::successors(Some(&error as &(dyn std::error::Error + 'static)), |error| {
            error.source()
        });
    if let Some(Raised(message)) = sources.find_map(|source| source.downcast_ref()) {
        return TemplateError::Raised { message: message.clone() };
    }
    if error.kind() == ErrorKind::OutOfFuel {
        return TemplateError::TooManySteps;
    }
    TemplateError::Render { line: error.line().unwrap_or(0), message: described(&error) }
}

fn described(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// A prompt that may not grow without end.
struct Bounded {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_PROMPT_BYTES {
            self.overflowed = true;
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `{% generation %}` and its end mark what a model is trained on, and mean nothing here. They
/// become conditions that always hold, with their white space control kept.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let Some(close) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(close + 2);
        let word = tag[2..close].trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests;
