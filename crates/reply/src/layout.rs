//! How each family writes calls, part by part: for grammars, and to show a model calls of before.

use serde_json::Value;

use crate::format::{Family, Format};
use crate::syntax::{
    DEEPSEEK_CALL, DEEPSEEK_CALL_END, DEEPSEEK_CALLS, DEEPSEEK_CALLS_END, DEEPSEEK_SEP,
};
use crate::xml;

/// A part of how calls are written.
pub(crate) enum Part {
    /// A mark, which may be a special token.
    Mark(&'static str),
    /// A mark that need not be there.
    May(&'static str),
    Text(String),
    /// The arguments of the call.
    Arguments,
}

use Part::{Arguments, Mark, May};

/// How calls are written.
pub(crate) struct Layout {
    /// Before the first call.
    pub begin: Vec<Part>,
    /// What each call begins with.
    pub open: Vec<Part>,
    /// The rest of a call of the tool of this name.
    pub call: fn(&str) -> Vec<Part>,
    /// Between two calls; `None` where there is only one.
    pub between: Option<&'static str>,
    /// After the last call.
    pub end: Vec<Part>,
}

impl Layout {
    /// The mark that says that calls come; `None` where they are what an answer begins with.
    pub(crate) fn trigger(&self) -> Option<&'static str> {
        match self.begin.iter().chain(&self.open).next() {
            Some(Mark(mark)) => Some(mark),
            _ => None,
        }
    }
}

impl Format {
    pub(crate) fn layout(&self) -> Layout {
        let simple =
            |open, call, between| Layout { begin: vec![], open, call, between, end: vec![] };
        let array = |begin, end| Layout {
            begin,
            open: vec![],
            call: |name| in_object(name, "arguments"),
            between: Some(", "),
            end,
        };
        match self.calls() {
            Family::Plain | Family::Hermes => simple(
                vec![Mark("<tool_call>")],
                |name| {
                    let [before, after] = object(name, "arguments");
                    let (before, after) = (format!("\n{before}"), format!("{after}\n"));
                    vec![Part::Text(before), Arguments, Part::Text(after), Mark("</tool_call>")]
                },
                Some("\n"),
            ),
            Family::Xml => simple(
                vec![Mark(xml::CALL)],
                |name| {
                    vec![
                        Part::Text(format!("\n<function={name}>\n")),
                        Arguments,
                        text("</function>\n"),
                        Mark(xml::CALL_END),
                    ]
                },
                Some("\n"),
            ),
            Family::Llama => {
                simple(vec![May("<|python_tag|>")], |name| in_object(name, "parameters"), None)
            }
            Family::Gemma => simple(vec![], |name| in_object(name, "parameters"), None),
            Family::Mistral { named: false } => {
                array(vec![Mark("[TOOL_CALLS]"), text(" [")], vec![text("]")])
            }
            Family::Granite => array(vec![Mark("<|tool_call|>"), text("[")], vec![text("]")]),
            Family::Phi { functools: true } => array(vec![Mark("functools[")], vec![text("]")]),
            Family::Phi { functools: false } => array(
                vec![Mark("<|tool_call|>"), text("[")],
                vec![text("]"), Mark("<|/tool_call|>")],
            ),
            Family::Mistral { named: true } => simple(
                vec![Mark("[TOOL_CALLS]")],
                |name| vec![text(name), Mark("[ARGS]"), Arguments],
                Some(""),
            ),
            Family::DeepSeek { fenced: true } => Layout {
                begin: vec![Mark(DEEPSEEK_CALLS)],
                open: vec![Mark(DEEPSEEK_CALL)],
                call: |name| {
                    vec![
                        text("function"),
                        Mark(DEEPSEEK_SEP),
                        Part::Text(format!("{name}\n```json\n")),
                        Arguments,
                        text("\n```"),
                        Mark(DEEPSEEK_CALL_END),
                    ]
                },
                between: Some("\n"),
                end: vec![Mark(DEEPSEEK_CALLS_END)],
            },
            Family::DeepSeek { fenced: false } => Layout {
                begin: vec![Mark(DEEPSEEK_CALLS)],
                open: vec![Mark(DEEPSEEK_CALL)],
                call: |name| {
                    vec![text(name), Mark(DEEPSEEK_SEP), Arguments, Mark(DEEPSEEK_CALL_END)]
                },
                between: Some(""),
                end: vec![Mark(DEEPSEEK_CALLS_END)],
            },
            Family::Harmony => simple(
                vec![Mark("<|channel|>")],
                |name| {
                    vec![
                        Part::Text(format!("commentary to=functions.{name} ")),
                        Mark("<|constrain|>"),
                        text("json"),
                        Mark("<|message|>"),
                        Arguments,
                    ]
                },
                None,
            ),
        }
    }

    /// Calls, of a tool's name and its arguments each, as the model writes them.
    pub(crate) fn written<'c>(&self, calls: impl IntoIterator<Item = (&'c str, String)>) -> String {
        let Layout { begin, open, call, between, end } = self.layout();
        let mut text = String::new();
        write(&mut text, &begin, "");
        for (n, (name, arguments)) in calls.into_iter().enumerate() {
            if n > 0 {
                text += between.unwrap_or("\n");
            }
            write(&mut text, &open, "");
            write(&mut text, &call(name), &arguments);
        }
        write(&mut text, &end, "");
        text
    }
}

fn write(text: &mut String, parts: &[Part], arguments: &str) {
    for part in parts {
        *text += match part {
            Mark(mark) => mark,
            May(_) => "",
            Part::Text(text) => text,
            Arguments => arguments,
        };
    }
}

fn text(text: &str) -> Part {
    Part::Text(text.to_owned())
}

/// A call that is an object.
fn in_object(name: &str, key: &str) -> Vec<Part> {
    let [before, after] = object(name, key);
    vec![Part::Text(before), Arguments, Part::Text(after)]
}

/// What is before the arguments in the object of a call, and after.
fn object(name: &str, key: &str) -> [String; 2] {
    [format!("{{\"name\": {}, \"{key}\": ", Value::from(name)), "}".to_owned()]
}
