//! Grammars of answers that must call tools.
//!
//! They are written in llguidance's dialect of Lark. Arguments are as the schema of the tool says, with
//! white space as models are shown it; properties that the schema does not have are left out unless it
//! asks for them. A model that reasons may do so first, unless the prompt says that it has.

use serde_json::{Value, json};

use crate::format::{Family, Format};
use crate::syntax::{
    DEEPSEEK_CALL, DEEPSEEK_CALL_END, DEEPSEEK_CALLS, DEEPSEEK_CALLS_END, DEEPSEEK_SEP,
};
use crate::{Tool, ToolChoice, Tools};

/// A part of how calls are written.
enum Part {
    /// A mark, which may be a special token.
    Mark(&'static str),
    Text(String),
    /// The arguments of the call.
    Arguments,
}

use Part::{Arguments, Mark};

/// How calls are written.
struct Layout {
    begin: Vec<Part>,
    call: fn(&str) -> Vec<Part>,
    /// Between two calls; `None` where there is only one.
    between: Option<&'static str>,
    end: Vec<Part>,
}

impl Format {
    /// The grammar of answers that call tools as `choice` says, in llguidance's dialect of Lark; `None`
    /// where no call is asked for. `prompt_tail` is the end of the prompt,
    /// `is_control` says which [marks](Self::markers) are control tokens of the model: those are named
    /// (`<|name|>`, or `<[NAME]>` for `[NAME]`), others are texts.
    pub fn grammar(
        &self,
        tools: &Tools,
        choice: &ToolChoice,
        parallel: bool,
        prompt_tail: &str,
        is_control: &dyn Fn(&str) -> bool,
    ) -> Option<String> {
        let wanted: Vec<&Tool> = match choice {
            ToolChoice::None | ToolChoice::Auto => return None,
            ToolChoice::Required => tools.iter().collect(),
            ToolChoice::Named(name) => tools.get(name).into_iter().collect(),
        };
        if wanted.is_empty() {
            return None;
        }
        let layout = self.layout();
        let parts = |parts: &[Part]| -> String {
            parts.iter().map(|part| part.to_lark("", is_control)).collect()
        };
        let (begin, end) = (parts(&layout.begin), parts(&layout.end));
        let more = match layout.between.filter(|_| parallel) {
            Some("") => "call*".to_owned(),
            Some(between) => format!("({} call)*", quoted(between)),
            None => String::new(),
        };
        let mut lark = self.reasoning(prompt_tail, is_control);
        let names: Vec<String> = (0..wanted.len()).map(|n| format!("call_{n}")).collect();
        let mut rule = |name: &str, body: &str| {
            lark.push_str(name);
            lark.push_str(": ");
            lark.push_str(body.trim());
            lark.push('\n');
        };
        rule("calls", &format!("{begin}call {more} {end}"));
        rule("call", &names.join(" | "));
        for (n, tool) in wanted.iter().enumerate() {
            let arguments = format!("arguments_{n}");
            let call = (layout.call)(&tool.name);
            let body: String =
                call.iter().map(|part| part.to_lark(&arguments, is_control)).collect();
            rule(&format!("call_{n}"), &body);
            rule(&arguments, &format!("%json {}", schema(tool)));
        }
        Some(lark)
    }

    /// The rule `start`: `calls`, after reasoning where there may be some.
    fn reasoning(&self, prompt_tail: &str, is_control: &dyn Fn(&str) -> bool) -> String {
        let mark = |mark| Mark(mark).to_lark("", is_control);
        let tail = prompt_tail.trim_end();
        let (open, close, after) = match self.think {
            _ if self.family == Family::Harmony => {
                let open = format!("{}\"analysis\" {}", mark("<|channel|>"), mark("<|message|>"));
                (open, "<|end|>", format!("{}\"assistant\"", mark("<|start|>")))
            }
            Some(think) if !tail.ends_with(think.close) => {
                (mark(think.open), think.close, "/\\n*/".to_owned())
            }
            _ => return "start: calls\n".to_owned(),
        };
        let opened = self.think.is_some_and(|think| tail.ends_with(think.open));
        let first = if opened { "thought".to_owned() } else { format!("({open}thought)?") };
        let (text, close) = match is_control(close) {
            true => ("TEXT".to_owned(), mark(close)),
            // What ends the text is part of it.
            false => (format!("text[suffix={}]", quoted(close)), String::new()),
        };
        let name = text.split('[').next().unwrap_or_default();
        format!("start: {first} calls\nthought: {name} {close}{after}\n{text}: /(.|\\n)*/\n")
    }

    fn layout(&self) -> Layout {
        let simple = |call, between| Layout { begin: vec![], call, between, end: vec![] };
        match self.calls() {
            Family::Plain | Family::Hermes => simple(
                |name| {
                    let [before, after] = object(name, "arguments");
                    let (before, after) = (format!("\n{before}"), format!("{after}\n"));
                    vec![
                        Mark("<tool_call>"),
                        Part::Text(before),
                        Arguments,
                        Part::Text(after),
                        Mark("</tool_call>"),
                    ]
                },
                Some("\n"),
            ),
            Family::Llama | Family::Gemma => simple(
                |name| {
                    let [before, after] = object(name, "parameters");
                    vec![Part::Text(before), Arguments, Part::Text(after)]
                },
                None,
            ),
            Family::Mistral { named: false } => Layout {
                begin: vec![Mark("[TOOL_CALLS]"), text(" [")],
                call: |name| {
                    let [before, after] = object(name, "arguments");
                    vec![Part::Text(before), Arguments, Part::Text(after)]
                },
                between: Some(", "),
                end: vec![text("]")],
            },
            Family::Mistral { named: true } => simple(
                |name| vec![Mark("[TOOL_CALLS]"), text(name), Mark("[ARGS]"), Arguments],
                Some(""),
            ),
            Family::DeepSeek { fenced: true } => Layout {
                begin: vec![Mark(DEEPSEEK_CALLS)],
                call: |name| {
                    vec![
                        Mark(DEEPSEEK_CALL),
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
                call: |name| {
                    vec![
                        Mark(DEEPSEEK_CALL),
                        text(name),
                        Mark(DEEPSEEK_SEP),
                        Arguments,
                        Mark(DEEPSEEK_CALL_END),
                    ]
                },
                between: Some(""),
                end: vec![Mark(DEEPSEEK_CALLS_END)],
            },
            Family::Harmony => simple(
                |name| {
                    vec![
                        Mark("<|channel|>"),
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

    /// A call as the model writes it.
    pub(crate) fn call(&self, name: &str, arguments: &str) -> String {
        let parts = (self.layout().call)(name);
        let text = |part: &Part| match part {
            Mark(mark) => (*mark).to_owned(),
            Part::Text(text) => text.clone(),
            Arguments => arguments.to_owned(),
        };
        parts.iter().map(text).collect()
    }
}

impl Part {
    /// The part in Lark, and a space.
    fn to_lark(&self, arguments: &str, is_control: &dyn Fn(&str) -> bool) -> String {
        match self {
            Mark(mark) if !is_control(mark) => format!("{} ", quoted(mark)),
            Mark(mark) if mark.starts_with('<') => format!("{mark} "),
            Mark(mark) => format!("<{mark}> "),
            Part::Text(text) => format!("{} ", quoted(text)),
            Arguments => format!("{arguments} "),
        }
    }
}

fn text(text: &str) -> Part {
    Part::Text(text.to_owned())
}

/// What is before the arguments in the object of a call, and after.
fn object(name: &str, key: &str) -> [String; 2] {
    [format!("{{\"name\": {}, \"{key}\": ", quoted(name)), "}".to_owned()]
}

/// A string of Lark, which is one of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// The schema of a tool's arguments, with what the parser is to know of them.
fn schema(tool: &Tool) -> Value {
    let mut schema = tool.parameters.clone();
    if let Value::Object(schema) = &mut schema {
        schema.entry("type").or_insert_with(|| json!("object"));
        if schema.contains_key("properties") {
            schema.entry("additionalProperties").or_insert(json!(false));
        }
        let options = json!({
            "whitespace_flexible": false,
            "item_separator": ", ",
            "key_separator": ": ",
            "coerce_one_of": true,
            "lenient": !tool.strict,
        });
        schema.insert("x-guidance".to_owned(), options);
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERMES: &str = "<tool_call> </think>";

    fn tools() -> Tools {
        let tool = |name: &str| Tool {
            name: name.into(),
            description: None,
            parameters: json!({"properties": {"city": {"type": "string"}}}),
            strict: false,
        };
        Tools::new(vec![tool("weather"), tool("now")]).unwrap()
    }

    fn grammar(template: &str, choice: &ToolChoice, tail: &str, control: bool) -> Option<String> {
        Format::of_template(template).grammar(&tools(), choice, true, tail, &|_| control)
    }

    #[test]
    fn only_a_call_that_must_come_has_a_grammar() {
        assert_eq!(grammar(HERMES, &ToolChoice::Auto, "", false), None);
        assert_eq!(grammar(HERMES, &ToolChoice::None, "", false), None);
        let named = grammar(HERMES, &ToolChoice::Named("now".into()), "", false).unwrap();
        assert!(named.contains("now") && !named.contains("weather"), "{named}");
    }

    #[test]
    fn marks_that_are_control_tokens_are_named() {
        let of = |template, control| {
            let lark = grammar(template, &ToolChoice::Required, "", control).unwrap();
            lark.lines().find(|line| line.starts_with("call_0")).unwrap().to_owned()
        };
        let texts = r#"call_0: "[TOOL_CALLS]" "weather" "[ARGS]" arguments_0"#;
        assert_eq!(of("[TOOL_CALLS] [ARGS]", false), texts);
        let named = r#"call_0: <[TOOL_CALLS]> "weather" <[ARGS]> arguments_0"#;
        assert_eq!(of("[TOOL_CALLS] [ARGS]", true), named);
        let harmony = of("<|channel|><|message|>", true);
        assert!(harmony.contains("<|constrain|> \"json\" <|message|> arguments_0"), "{harmony}");
    }

    #[test]
    fn reasoning_may_come_first_where_it_has_not_been() {
        let start = |tail, control| {
            let lark = grammar(HERMES, &ToolChoice::Required, tail, control).unwrap();
            lark.lines()
                .take_while(|line| !line.starts_with("calls"))
                .collect::<Vec<_>>()
                .join("; ")
        };
        assert_eq!(
            start("<|im_start|>assistant\n", false),
            r#"start: ("<think>" thought)? calls; thought: text /\n*/; text[suffix="</think>"]: /(.|\n)*/"#
        );
        assert_eq!(
            start("<think>\n", true),
            r"start: thought calls; thought: TEXT </think> /\n*/; TEXT: /(.|\n)*/"
        );
        assert_eq!(start("<think>\n\n</think>\n\n", false), "start: calls");
    }
}
