//! How calls are written, by family of models.

use crate::xml;

/// One way to write calls.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Syntax {
    /// What may stand before the first of several calls.
    pub outer: Option<&'static str>,
    /// What a call begins with. Where that is nothing, a call is only what an answer begins with, or what
    /// follows another.
    pub open: &'static str,
    /// Whether the opening begins an array of calls.
    pub opens_list: bool,
    pub shape: Shape,
    /// What may stand between two calls that share an opening.
    pub separator: Option<char>,
    /// What stands after a call. Models leave some of it out.
    pub closes: &'static [&'static str],
}

/// How a call has its name and arguments.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `{"name": …, "arguments": {…}}` (or `parameters`), alone or in an array.
    Object,
    /// The name as it is, then the object.
    Named {
        before: &'static str,
        /// What stands before an identifier, which follows the name.
        id: Option<&'static str>,
        between: &'static str,
    },
    /// `name(argument=value)`, up to the close.
    Python,
    /// The name, and tags of arguments.
    Xml,
}

const PLAIN: Syntax = Syntax {
    outer: None,
    open: "",
    opens_list: false,
    shape: Shape::Object,
    separator: None,
    closes: &[],
};

pub(crate) static HERMES: &[Syntax] =
    &[Syntax { open: "<tool_call>", closes: &["</tool_call>"], ..PLAIN }];

pub(crate) static XML: &[Syntax] = &[
    Syntax {
        outer: Some(xml::CALL),
        open: xml::FUNCTION,
        shape: Shape::Xml,
        closes: &[xml::FUNCTION_END, xml::CALL_END],
        ..PLAIN
    },
    Syntax { open: xml::CALL, closes: &[xml::CALL_END], ..PLAIN },
];

pub(crate) static LLAMA: &[Syntax] = &[
    Syntax { separator: Some(';'), ..PLAIN },
    Syntax { open: "<|python_tag|>", separator: Some(';'), ..PLAIN },
    Syntax {
        open: "<function=",
        shape: Shape::Named { before: "", id: None, between: ">" },
        closes: &["</function>"],
        ..PLAIN
    },
];

pub(crate) static MISTRAL: &[Syntax] = &[
    Syntax { open: "[TOOL_CALLS]", ..PLAIN },
    Syntax {
        open: "[TOOL_CALLS]",
        shape: Shape::Named { before: "", id: Some("[CALL_ID]"), between: "[ARGS]" },
        ..PLAIN
    },
];

pub(crate) static GEMMA: &[Syntax] = &[
    PLAIN,
    Syntax { open: "```tool_code", closes: &["```"], ..PLAIN },
    Syntax { open: "```tool_code", shape: Shape::Python, closes: &["```"], ..PLAIN },
    Syntax { open: "```tool_call", closes: &["```"], ..PLAIN },
    Syntax { open: "```json", closes: &["```"], ..PLAIN },
];

pub(crate) const DEEPSEEK_CALLS: &str = "<｜tool▁calls▁begin｜>";
pub(crate) const DEEPSEEK_CALLS_END: &str = "<｜tool▁calls▁end｜>";
pub(crate) const DEEPSEEK_CALL: &str = "<｜tool▁call▁begin｜>";
pub(crate) const DEEPSEEK_CALL_END: &str = "<｜tool▁call▁end｜>";
pub(crate) const DEEPSEEK_SEP: &str = "<｜tool▁sep｜>";

pub(crate) static DEEPSEEK: &[Syntax] = &[
    // V3 and R1.
    Syntax {
        outer: Some(DEEPSEEK_CALLS),
        open: DEEPSEEK_CALL,
        shape: Shape::Named { before: "function<｜tool▁sep｜>", id: None, between: "```json" },
        closes: &["```", DEEPSEEK_CALL_END, DEEPSEEK_CALLS_END],
        ..PLAIN
    },
    // V3.1.
    Syntax {
        outer: Some(DEEPSEEK_CALLS),
        open: DEEPSEEK_CALL,
        shape: Shape::Named { before: "", id: None, between: DEEPSEEK_SEP },
        closes: &[DEEPSEEK_CALL_END, DEEPSEEK_CALLS_END],
        ..PLAIN
    },
];

pub(crate) static GRANITE: &[Syntax] =
    &[Syntax { open: "<|tool_call|>", ..PLAIN }, Syntax { open: "<tool_call>", ..PLAIN }];

pub(crate) static PHI: &[Syntax] = &[
    Syntax { open: "<|tool_call|>", closes: &["<|/tool_call|>"], ..PLAIN },
    Syntax { open: "functools[", opens_list: true, ..PLAIN },
];

impl Syntax {
    /// What in a text says that a call may begin there.
    pub(crate) fn openings(&self) -> impl Iterator<Item = &'static str> {
        self.outer.into_iter().chain([self.open]).filter(|open| !open.is_empty())
    }

    /// All texts that belong to it rather than to a call.
    pub(crate) fn markers(&self) -> impl Iterator<Item = &'static str> {
        let (between, id) = match self.shape {
            Shape::Named { between, id, .. } => (Some(between), id),
            Shape::Object | Shape::Python | Shape::Xml => (None, None),
        };
        let inner = between.into_iter().chain(id);
        self.openings().chain(inner).chain(self.closes.iter().copied())
    }
}
