//! Which way of writing a chat template was made for.

use crate::Tools;
use crate::harmony::{self, Harmony};
use crate::reader::Reader;
use crate::syntax::{self, Syntax};
use crate::tagged::Tagged;
use crate::xml;

/// How a model writes reasoning and calls of tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Format {
    pub(crate) think: Option<Think>,
    pub(crate) family: Family,
    pub(crate) place: Place,
    /// Whether the template writes what was called.
    pub(crate) writes_calls: bool,
}

/// Where a chat template has the tools from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Place {
    /// It has none for them.
    #[default]
    None,
    /// Its variable `tools`.
    Variable,
    /// The field `tools` of a system prompt, JSON as text.
    System,
}

/// Marks around reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Think {
    pub open: &'static str,
    pub close: &'static str,
}

const THINKS: [Think; 2] = [
    Think { open: "<think>", close: "</think>" },
    // Magistral.
    Think { open: "[THINK]", close: "[/THINK]" },
];

/// How calls are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Family {
    /// In no way that is known.
    #[default]
    Plain,
    Hermes,
    /// Qwen 3 Coder's tags.
    Xml,
    Llama,
    /// With names before the arguments, or else an array of objects.
    Mistral {
        named: bool,
    },
    Gemma,
    /// With arguments in a block of Markdown, or else as they are.
    DeepSeek {
        fenced: bool,
    },
    Harmony,
    /// Granite 3. (Granite 4 writes as Hermes does.)
    Granite,
    /// Phi 4, behind its own tokens or, where it is told so, a word.
    Phi {
        functools: bool,
    },
}

impl Format {
    /// The format of a model with this chat template: plain text where nothing else is known.
    pub fn of_template(source: &str) -> Self {
        let has = |text: &str| source.contains(text);
        let think = THINKS.into_iter().find(|think| has(think.close));
        let family = if has("<|channel|>") && has("<|message|>") {
            Family::Harmony
        } else if has("[TOOL_CALLS]") {
            Family::Mistral { named: has("[ARGS]") }
        } else if has("<｜tool▁call▁begin｜>") {
            Family::DeepSeek { fenced: has("```json") }
        } else if has("<|start_of_role|>") && has("<|tool_call|>") {
            Family::Granite
        } else if has("<|/tool|>") || has("functools[") {
            Family::Phi { functools: has("functools[") }
        } else if has("<tool_call>") && has(xml::FUNCTION) && has(xml::PARAMETER) {
            Family::Xml
        } else if has("<tool_call>") {
            Family::Hermes
        } else if has("<|python_tag|>") || (has("<|start_header_id|>") && has("\"parameters\"")) {
            Family::Llama
        } else if has("<start_of_turn>") {
            Family::Gemma
        } else {
            Family::Plain
        };
        // Of a format that is not known, calls would not be understood.
        let place = match family {
            Family::Plain => Place::None,
            Family::Phi { .. } if has("message['tools']") => Place::System,
            Family::Gemma | Family::Phi { .. } if !has("tools") && !has(".Tools") => Place::None,
            _ => Place::Variable,
        };
        let writes_calls = match family {
            Family::Granite | Family::Phi { .. } => has("tool_calls") || has(".ToolCalls"),
            _ => place != Place::None,
        };
        Self { think, family, place, writes_calls }
    }

    /// Whether models of it were made to call tools. Others can be [asked to](Self::offer).
    pub fn has_tools(&self) -> bool {
        self.place != Place::None
    }

    /// Whether its templates take the tools as a variable.
    pub fn takes_tools(&self) -> bool {
        self.place == Place::Variable
    }

    /// Whether it has a way to reason before answering.
    pub fn has_reasoning(&self) -> bool {
        self.think.is_some() || self.family == Family::Harmony
    }

    /// Whether its templates take no call without an id of nine letters and digits.
    pub fn wants_short_ids(&self) -> bool {
        matches!(self.family, Family::Mistral { .. })
    }

    /// Texts that have a meaning in it. Where a vocabulary has one of them as a special token, a reader
    /// needs the text of that token.
    pub fn markers(&self) -> Vec<&'static str> {
        let think = self.think.iter().flat_map(|think| [think.open, think.close]);
        let mut markers: Vec<_> = match self.family {
            Family::Harmony => think.chain(harmony::MARKS).collect(),
            _ => think.chain(self.syntaxes().iter().flat_map(Syntax::markers)).collect(),
        };
        markers.sort_unstable();
        markers.dedup();
        markers
    }

    /// Reads one answer to a prompt that ends so. Where `tools` are none, nothing is a call.
    pub fn reader(&self, tools: &Tools, prompt_tail: &str) -> Reader {
        match self.family {
            Family::Harmony => Reader::harmony(Harmony::new(tools, prompt_tail)),
            _ => Reader::tagged(Tagged::new(self.think, self.syntaxes(), tools, prompt_tail)),
        }
    }

    /// How calls are written, be it that the model was asked to.
    pub(crate) fn calls(&self) -> Family {
        match self.family {
            Family::Plain => Family::Hermes,
            family => family,
        }
    }

    pub(crate) fn syntaxes(&self) -> &'static [Syntax] {
        match self.calls() {
            Family::Harmony => &[],
            Family::Plain | Family::Hermes => syntax::HERMES,
            Family::Xml => syntax::XML,
            Family::Llama => syntax::LLAMA,
            Family::Mistral { .. } => syntax::MISTRAL,
            Family::Gemma => syntax::GEMMA,
            Family::DeepSeek { .. } => syntax::DEEPSEEK,
            Family::Granite => syntax::GRANITE,
            Family::Phi { .. } => syntax::PHI,
        }
    }
}
