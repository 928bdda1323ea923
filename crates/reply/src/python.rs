//! Calls written as Python: `f(a="x", n=[1, 2])`, to names and JSON objects.

use serde_json::{Map, Number, Value};

use crate::Tools;

/// Deepest nesting of a value.
const DEPTH_MAX: usize = 32;

/// The calls that a text consists of, with their arguments as JSON; `None` where it is anything else,
/// or calls what is no tool. Arguments must be named and literal.
pub(crate) fn calls(text: &str, tools: &Tools) -> Option<Vec<(String, String)>> {
    let mut cursor = Cursor { rest: text };
    let mut calls = vec![];
    let list = cursor.eat("[");
    loop {
        let printed = cursor.eat("print(");
        calls.push(cursor.call(tools)?);
        if printed && !cursor.eat(")") {
            return None;
        }
        let separated = cursor.eat(",") || cursor.eat(";");
        if list && cursor.eat("]") {
            return cursor.is_empty().then_some(calls);
        }
        if cursor.is_empty() {
            return (!list).then_some(calls);
        }
        if list && !separated {
            return None;
        }
    }
}

struct Cursor<'t> {
    rest: &'t str,
}

impl<'t> Cursor<'t> {
    fn skip_space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn is_empty(&mut self) -> bool {
        self.skip_space();
        self.rest.is_empty()
    }

    fn eat(&mut self, text: &str) -> bool {
        self.skip_space();
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'t str {
        self.skip_space();
        let end = self.rest.find(|c| !wanted(c)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn call(&mut self, tools: &Tools) -> Option<(String, String)> {
        let name = self.take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.'));
        if tools.get(name).is_none() || !self.eat("(") {
            return None;
        }
        let mut arguments = Map::new();
        while !self.eat(")") {
            let name = self.take_while(|c| c.is_alphanumeric() || c == '_');
            if name.is_empty() || !self.eat("=") {
                return None;
            }
            if arguments.insert(name.to_owned(), self.value(DEPTH_MAX)?).is_some() {
                return None;
            }
            if !self.eat(",") && !self.rest.starts_with(')') {
                return None;
            }
        }
        Some((name.to_owned(), Value::Object(arguments).to_string()))
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        let depth = depth.checked_sub(1)?;
        self.skip_space();
        match self.rest.chars().next()? {
            '"' | '\'' => self.text().map(Value::String),
            '[' => self.items("[", "]", depth),
            '(' => self.items("(", ")", depth),
            '{' => self.entries(depth),
            '-' | '+' | '.' | '0'..='9' => self.number(),
            _ => match self.take_while(char::is_alphanumeric) {
                "True" | "true" => Some(Value::Bool(true)),
                "False" | "false" => Some(Value::Bool(false)),
                "None" | "null" => Some(Value::Null),
                _ => None,
            },
        }
    }

    fn items(&mut self, open: &str, close: &str, depth: usize) -> Option<Value> {
        let mut items = vec![];
        self.eat(open);
        while !self.eat(close) {
            items.push(self.value(depth)?);
            if !self.eat(",") && !self.rest.starts_with(close) {
                return None;
            }
        }
        Some(Value::Array(items))
    }

    fn entries(&mut self, depth: usize) -> Option<Value> {
        let mut entries = Map::new();
        self.eat("{");
        while !self.eat("}") {
            self.skip_space();
            let key = self.text()?;
            if !self.eat(":") {
                return None;
            }
            entries.insert(key, self.value(depth)?);
            if !self.eat(",") && !self.rest.starts_with('}') {
                return None;
            }
        }
        Some(Value::Object(entries))
    }

    fn number(&mut self) -> Option<Value> {
        let digits = self.take_while(|c| c.is_ascii_digit() || "+-._eE".contains(c));
        let digits = digits.replace('_', "");
        if let Ok(whole) = digits.parse::<i64>() {
            return Some(whole.into());
        }
        Number::from_f64(digits.parse().ok()?).map(Value::Number)
    }

    fn text(&mut self) -> Option<String> {
        let quotes = ["\"\"\"", "'''", "\"", "'"];
        let quote = quotes.into_iter().find(|quote| self.rest.starts_with(quote))?;
        let mut rest = &self.rest[quote.len()..];
        let mut text = String::new();
        loop {
            if let Some(after) = rest.strip_prefix(quote) {
                self.rest = after;
                return Some(text);
            }
            let mut chars = rest.chars();
            match chars.next()? {
                '\n' if quote.len() == 1 => return None,
                '\\' => rest = escape(chars.as_str(), &mut text)?,
                plain => {
                    text.push(plain);
                    rest = chars.as_str();
                }
            }
        }
    }
}

/// Reads what follows a backslash; gives what follows that. As in Python, a backslash before a
/// character that needs none stays.
fn escape<'t>(rest: &'t str, text: &mut String) -> Option<&'t str> {
    let mut chars = rest.chars();
    let escaped = chars.next()?;
    let digits = match escaped {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => 0,
    };
    if digits > 0 {
        let code = u32::from_str_radix(chars.as_str().get(..digits)?, 16).ok()?;
        text.push(char::from_u32(code)?);
        return Some(&chars.as_str()[digits..]);
    }
    match escaped {
        'n' => text.push('\n'),
        't' => text.push('\t'),
        'r' => text.push('\r'),
        '\\' | '\'' | '"' => text.push(escaped),
        '\n' => {}
        other => text.extend(['\\', other]),
    }
    Some(chars.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Tool;

    fn tools() -> Tools {
        let tool = |name: &str| Tool {
            name: name.into(),
            description: None,
            parameters: json!({}),
            strict: false,
        };
        Tools::new(vec![tool("f"), tool("look.up")]).unwrap()
    }

    #[track_caller]
    fn one(text: &str, arguments: Value) {
        let got = calls(text, &tools()).unwrap_or_else(|| panic!("no call: {text}"));
        let got: Value = serde_json::from_str(&got[0].1).unwrap();
        assert_eq!(got, arguments, "{text}");
    }

    #[test]
    fn literals_become_json() {
        one("f()", json!({}));
        one("f( a = 'x', b=\"it's\\n\", )", json!({"a": "x", "b": "it's\n"}));
        one(
            "f(a=[1, -2.5, 1_000], b=(True, None))",
            json!({"a": [1, -2.5, 1000], "b": [true, null]}),
        );
        one("f(a={'k': {\"n\": []}})", json!({"a": {"k": {"n": []}}}));
        one("f(a='''two\nlines''', b='\\u00e9\\x41\\d')", json!({"a": "two\nlines", "b": "éA\\d"}));
    }

    #[test]
    fn several_calls_are_read_in_their_order() {
        let names = |text| -> Vec<String> {
            calls(text, &tools()).into_iter().flatten().map(|(name, _)| name).collect()
        };
        assert_eq!(names("[f(a=1), look.up()]"), ["f", "look.up"]);
        assert_eq!(names("print(f(a=1))\nlook.up()\n"), ["f", "look.up"]);
        assert_eq!(names("f(); look.up()"), ["f", "look.up"]);
    }

    #[test]
    fn what_is_no_call_of_a_tool_is_none() {
        for text in [
            "",
            "g()",
            "f",
            "f(",
            "f(1)",
            "f(a)",
            "f(a=b)",
            "f(a=1",
            "f(a=1 b=2)",
            "x = f()",
            "f() + 1",
            "[f()",
            "[f() f()]",
            "print(f()",
            "f(a='x)",
            "f(a='\\ud800')",
            "f(a=1, a=2)",
            "f(a=--1)",
        ] {
            assert_eq!(calls(text, &tools()), None, "{text}");
        }
        let deep = format!("f(a={}{})", "[".repeat(40), "]".repeat(40));
        assert_eq!(calls(&deep, &tools()), None);
    }
}
