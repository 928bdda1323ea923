//! Grammars of answers that must call tools, or whose calls must be as their tools say.
//!
//! They are written in llguidance's dialect of Lark. Arguments are as the schema of the tool says, with
//! white space as models are shown it; properties that the schema does not have are left out unless it
//! asks for them. A model that reasons may do so first, unless the prompt says that it has. What is text
//! never holds what the reader would take for the beginning of a call.

use serde_json::{Map, Value, json};

use crate::format::{Family, Format, Think};
use crate::harmony;
use crate::layout::{Layout, Part};
use crate::xml;
use crate::{Tool, ToolChoice, Tools};

/// Any text, as a regular expression.
const ANY: &str = r"(.|\n)*";
/// What the object of a call begins with.
const OBJECT: &str = r#"\s*(\[\s*)?\{\s*"(name|arguments|parameters|id|type)""#;

/// The rule of an argument's text and the tag that ends it.
const TAG_TEXT: &str = "tag_text";
/// What a schema may have at its root where arguments are tags.
const ROOT_KEYS: [&str; 9] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "title",
    "description",
    "$schema",
];

/// Calls as the model writes them cannot be held to the parameters of a strict tool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "calls as this model writes them cannot be held to {key:?} of the tool {tool:?}: leave it out, or \
     \"strict\""
)]
pub struct NotHeld {
    /// The tool's name.
    pub tool: String,
    /// What of its schema is in the way.
    pub key: String,
}

impl Format {
    /// The grammar of answers that call tools as `choice` says, in llguidance's dialect of Lark; `None`
    /// where any text will do: no call is asked for, and no tool is `strict`. Where the choice is the
    /// model's and a tool is strict, an answer is text, and from where it begins to call as the grammar
    /// says, whichever tool it calls. `prompt_tail` is the end of the prompt,
    /// `is_control` says which [marks](Self::markers) are control tokens of the model: those are named
    /// (`<|name|>`, or `<[NAME]>` for `[NAME]`), others are texts.
    ///
    /// # Errors
    /// See [`NotHeld`].
    pub fn grammar(
        &self,
        tools: &Tools,
        choice: &ToolChoice,
        parallel: bool,
        prompt_tail: &str,
        is_control: &dyn Fn(&str) -> bool,
    ) -> Result<Option<String>, NotHeld> {
        let must = !matches!(choice, ToolChoice::Auto);
        let wanted: Vec<&Tool> = match choice {
            ToolChoice::None => return Ok(None),
            ToolChoice::Auto if !tools.iter().any(|tool| tool.strict) => return Ok(None),
            ToolChoice::Auto | ToolChoice::Required => tools.iter().collect(),
            ToolChoice::Named(name) => tools.get(name).into_iter().collect(),
        };
        if wanted.is_empty() {
            return Ok(None);
        }
        let layout = self.layout();
        let mut lark = Lark { text: String::new(), is_control };
        match self.family {
            Family::Harmony => harmony_start(&mut lark, must),
            _ => self.start(&mut lark, &layout, must, prompt_tail),
        }
        calls(&mut lark, &layout, parallel);
        let names: Vec<String> = (0..wanted.len()).map(|n| format!("call_{n}")).collect();
        lark.rule("call", &names.join(" | "));
        for (n, tool) in wanted.iter().enumerate() {
            let arguments = format!("arguments_{n}");
            let body = lark.parts((layout.call)(&tool.name).iter(), &arguments);
            lark.rule(&format!("call_{n}"), &body);
            match self.family {
                Family::Xml => tags(&mut lark, &arguments, tool)?,
                _ => lark.rule(&arguments, &format!("%json {}", schema(tool))),
            }
        }
        if self.family == Family::Xml {
            let end = format!("\n{}\n", xml::PARAMETER_END);
            let text = without(&[xml::PARAMETER_END]);
            lark.rule(&format!("{TAG_TEXT}[suffix={}]", quoted(&end)), &text);
        }
        Ok(Some(lark.text))
    }

    /// The rule `start`: calls, or text before them, after reasoning where there may be some.
    fn start(&self, lark: &mut Lark<'_>, layout: &Layout, must: bool, prompt_tail: &str) {
        let tail = prompt_tail.trim_end();
        let think = self.think.filter(|think| !tail.ends_with(think.close));
        let opened = think.is_some_and(|think| tail.ends_with(think.open));
        let first = match think {
            None => String::new(),
            Some(_) if opened => "thought ".to_owned(),
            Some(think) => format!("({}thought)? ", lark.mark(think.open)),
        };
        lark.rule("start", &format!("{first}{}", if must { "calls" } else { "said" }));
        if let Some(think) = think {
            let close = ended(lark, "reasoned", think.close, &without(&[think.close]));
            lark.rule("thought", &format!("{close}/\\n*/"));
        }
        if !must {
            self.said(lark, layout, think.filter(|_| !opened));
        }
    }

    /// The rule `said`: text without calls, or calls where they may begin. `think` is what the answer may
    /// begin with instead.
    fn said(&self, lark: &mut Lark<'_>, layout: &Layout, think: Option<Think>) {
        let trigger = layout.trigger();
        let mut begin: Vec<String> = vec![];
        let mut anywhere: Vec<String> = vec![];
        for syntax in self.syntaxes() {
            anywhere.extend(syntax.outer.map(literal));
            match (syntax.open, &syntax.shape) {
                ("", _) => begin.push(OBJECT.to_owned()),
                // Code of any kind stands after such a mark.
                (open @ "```json", _) => anywhere.push(format!("{}{OBJECT}", literal(open))),
                (open, _) => anywhere.push(literal(open)),
            }
        }
        begin.extend(think.map(|think| format!("\\s*{}", literal(think.open))));
        if !anywhere.is_empty() {
            begin.push(format!("{ANY}({})", anywhere.join("|")));
        }
        let text = format!("/{ANY}/ & ~/({}){ANY}/", begin.join("|"));
        match trigger {
            None => lark.rule("said", "TEXT | calls"),
            // The calls have the mark, unless the text before them ends with it.
            Some(mark) if (lark.is_control)(mark) => lark.rule("said", "TEXT calls?"),
            Some(mark) => {
                lark.rule("said", "TEXT | before called");
                lark.rule(&format!("before[suffix={}]", quoted(mark)), "TEXT");
            }
        }
        lark.rule("TEXT", &text);
    }
}

/// The rule `start` of harmony: messages to the user or to itself, then the last or a call.
fn harmony_start(lark: &mut Lark<'_>, must: bool) {
    let [channel, message, start] =
        [harmony::CHANNEL, harmony::MESSAGE, harmony::START].map(|mark| lark.mark(mark));
    let text = without(&harmony::MESSAGE_ENDS);
    let (first, last, channels) = match must {
        true => ("aside?", "calls".to_owned(), r#""analysis""#),
        false => {
            let last = format!("calls | {channel}\"final\" {message}TEXT");
            ("aside*", last, r#"("analysis" | "commentary")"#)
        }
    };
    lark.rule("start", &format!("{first} last"));
    lark.rule("last", &last);
    let close = ended(lark, "told", harmony::END, &text);
    lark.rule("aside", &format!("{channel}{channels} {message}{close}{start}\"assistant\""));
    if !must {
        lark.rule("TEXT", &text);
    }
}

/// The rules `calls`, and `called`, which has not what they begin with.
fn calls(lark: &mut Lark<'_>, layout: &Layout, parallel: bool) {
    let open = lark.parts(layout.open.iter(), "");
    let more = match layout.between.filter(|_| parallel) {
        Some("") => format!("({open}call)* "),
        Some(between) => format!("({} {open}call)* ", quoted(between)),
        None => String::new(),
    };
    let before = layout.begin.iter().chain(&layout.open);
    let trigger = layout.trigger();
    let begin = trigger.map(|mark| lark.mark(mark)).unwrap_or_default();
    lark.rule("calls", &format!("{begin}called"));
    let before = lark.parts(before.skip(usize::from(trigger.is_some())), "");
    let end = lark.parts(layout.end.iter(), "");
    lark.rule("called", &format!("{before}call {more}{end}"));
}

/// A text and the mark that ends it, in rules that begin with `name`.
fn ended(lark: &mut Lark<'_>, name: &str, mark: &str, text: &str) -> String {
    if (lark.is_control)(mark) {
        let token = name.to_uppercase();
        lark.rule(&token, text);
        format!("{token} {}", lark.mark(mark))
    } else {
        lark.rule(&format!("{name}[suffix={}]", quoted(mark)), text);
        format!("{name} ")
    }
}

/// Text in which none of these is, however it is spelt.
fn without(marks: &[&str]) -> String {
    let marks: Vec<String> = marks.iter().map(|mark| literal(mark)).collect();
    format!("/{ANY}/ & ~/{ANY}({}){ANY}/", marks.join("|"))
}

/// The rules of arguments that are tags: those of the schema, in its order.
fn tags(lark: &mut Lark<'_>, name: &str, tool: &Tool) -> Result<(), NotHeld> {
    let schema = &tool.parameters;
    let known = |key: &&String| !ROOT_KEYS.contains(&key.as_str());
    let other = schema.as_object().and_then(|schema| schema.keys().find(known));
    if let Some(key) = other.filter(|_| tool.strict) {
        return Err(NotHeld { tool: tool.name.clone(), key: key.clone() });
    }
    let Some(properties) = schema["properties"].as_object() else {
        let any =
            format!("{} /[a-zA-Z0-9_.-]+/ {} {TAG_TEXT}", quoted(xml::PARAMETER), quoted(">\n"));
        let body =
            if schema["additionalProperties"] == false { "\"\"" } else { &*format!("({any})*") };
        lark.rule(name, body);
        return Ok(());
    };
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let missing = required.iter().find(|key| !properties.contains_key(**key));
    if let Some(key) = missing.filter(|_| tool.strict) {
        return Err(NotHeld { tool: tool.name.clone(), key: format!("required: {key}") });
    }
    let end = format!("\n{}\n", xml::PARAMETER_END);
    let mut body = String::new();
    for (n, (key, property)) in properties.iter().enumerate() {
        let reads_back = key.trim() == key && !key.contains(['<', '>']);
        let texts = choices(property).unwrap_or_default();
        if tool.strict && !(reads_back && texts.iter().all(|t| !t.contains(xml::PARAMETER_END))) {
            return Err(NotHeld { tool: tool.name.clone(), key: key.clone() });
        }
        let value = match (choices(property), xml::is_text(property)) {
            (Some(choices), true) => {
                let texts: Vec<String> =
                    choices.iter().map(|text| quoted(&format!("{text}{end}"))).collect();
                format!("({})", texts.join(" | "))
            }
            (None, true) => TAG_TEXT.to_owned(),
            (_, false) => {
                let rule = format!("{name}_{n}");
                lark.rule(&rule, &format!("%json {}", part_of(schema, property, tool.strict)));
                format!("{rule} {}", quoted(&end))
            }
        };
        let open = quoted(&format!("{}{key}>\n", xml::PARAMETER));
        let optional = if required.contains(&key.as_str()) { "" } else { "?" };
        body += &format!("({open} {value}){optional} ");
    }
    lark.rule(name, if body.is_empty() { "\"\"" } else { &body });
    Ok(())
}

/// The texts of a property that must be one of some.
fn choices(property: &Value) -> Option<Vec<&str>> {
    let several = property.get("enum").and_then(Value::as_array);
    let one = property.get("const").map(std::slice::from_ref);
    let all = several.map(Vec::as_slice).or(one)?;
    Some(all.iter().filter_map(Value::as_str).collect())
}

/// A property as a schema of its own.
fn part_of(schema: &Value, property: &Value, strict: bool) -> Value {
    let mut part = match property {
        Value::Object(property) => property.clone(),
        _ => Map::new(),
    };
    for key in ["$defs", "definitions"] {
        if let Some(definitions) = schema.get(key) {
            part.entry(key).or_insert_with(|| definitions.clone());
        }
    }
    part.insert("x-guidance".to_owned(), options(strict));
    Value::Object(part)
}

/// A grammar that is being written.
struct Lark<'c> {
    text: String,
    is_control: &'c dyn Fn(&str) -> bool,
}

impl Lark<'_> {
    fn rule(&mut self, name: &str, body: &str) {
        self.text.extend([name, ": ", body.trim(), "\n"]);
    }

    /// A mark in Lark, and a space.
    fn mark(&self, mark: &str) -> String {
        if !(self.is_control)(mark) {
            format!("{} ", quoted(mark))
        } else if mark.starts_with('<') {
            format!("{mark} ")
        } else {
            format!("<{mark}> ")
        }
    }

    fn parts<'p>(&self, parts: impl Iterator<Item = &'p Part>, arguments: &str) -> String {
        let part = |part: &Part| match part {
            Part::Mark(mark) => self.mark(mark),
            Part::May(mark) => format!("({})? ", self.mark(mark).trim_end()),
            Part::Text(text) => format!("{} ", quoted(text)),
            Part::Arguments => format!("{arguments} "),
        };
        parts.map(part).collect()
    }
}

/// A string of Lark, which is one of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A regular expression that matches just this text.
fn literal(text: &str) -> String {
    let mut regex = String::new();
    for c in text.chars() {
        if r"\.+*?()|[]{}^$/".contains(c) {
            regex.push('\\');
        }
        regex.push(c);
    }
    regex
}

/// The schema of a tool's arguments, with what the parser is to know of them.
fn schema(tool: &Tool) -> Value {
    let mut schema = tool.parameters.clone();
    if let Value::Object(schema) = &mut schema {
        schema.entry("type").or_insert_with(|| json!("object"));
        if schema.contains_key("properties") {
            schema.entry("additionalProperties").or_insert(json!(false));
        }
        schema.insert("x-guidance".to_owned(), options(tool.strict));
    }
    schema
}

fn options(strict: bool) -> Value {
    json!({
        "whitespace_flexible": false,
        "item_separator": ", ",
        "key_separator": ": ",
        "coerce_one_of": true,
        "lenient": !strict,
    })
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
        Format::of_template(template).grammar(&tools(), choice, true, tail, &|_| control).unwrap()
    }

    #[test]
    fn only_calls_that_must_come_or_are_strict_have_a_grammar() {
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
        let texts = r#"call_0: "weather" "[ARGS]" arguments_0"#;
        assert_eq!(of("[TOOL_CALLS] [ARGS]", false), texts);
        let named = r#"call_0: "weather" <[ARGS]> arguments_0"#;
        assert_eq!(of("[TOOL_CALLS] [ARGS]", true), named);
        let harmony = of("<|channel|><|message|>", true);
        assert!(harmony.contains("<|constrain|> \"json\" <|message|> arguments_0"), "{harmony}");
    }

    #[test]
    fn reasoning_may_come_first_where_it_has_not_been() {
        let start = |tail, control| {
            let lark = grammar(HERMES, &ToolChoice::Required, tail, control).unwrap();
            lark.lines().take_while(|line| !line.starts_with("call")).collect::<Vec<_>>().join("; ")
        };
        let thought = r"/(.|\n)*/ & ~/(.|\n)*(<\/think>)(.|\n)*/";
        assert_eq!(
            start("<|im_start|>assistant\n", false),
            format!(
                "start: (\"<think>\" thought)? calls; reasoned[suffix=\"</think>\"]: {thought}; \
                 thought: reasoned /\\n*/"
            )
        );
        assert_eq!(
            start("<think>\n", true),
            format!("start: thought calls; REASONED: {thought}; thought: REASONED </think> /\\n*/")
        );
        assert_eq!(start("<think>\n\n</think>\n\n", false), "start: calls");
    }
}
