//! JSON schemas before and after the parser has them: their bounds, the white space that answers may
//! have, and where in a schema is what was refused.

use serde_json::{Map, Value, json};

use crate::GrammarError;

/// Objects, arrays, keys and values of a schema.
const MAX_NODES: usize = 20_000;
/// Objects and arrays in each other.
const MAX_DEPTH: usize = 64;
/// Keys and strings together.
const MAX_BYTES: usize = 1 << 18;

/// What the parser reads its options from.
const OPTIONS: &str = "x-guidance";
const LENIENT: &str = "lenient";
/// Between two parts of JSON, if anything. With more a model could write white space for ever.
const WHITE_SPACE: &str = r"\n[\x20\x09]{0,32}|\x20";

/// Any object.
pub(crate) fn any_object() -> Value {
    json!({"type": "object", OPTIONS: options(false)})
}

/// The schema with our options in place of its own.
pub(crate) fn prepare(schema: &Value) -> Result<Value, GrammarError> {
    Count::default().add(schema, 0)?;
    let mut schema = schema.clone();
    if let Value::Object(root) = &mut schema {
        let lenient =
            root.get(OPTIONS).and_then(|own| own.get(LENIENT)) == Some(&Value::Bool(true));
        root.insert(OPTIONS.to_owned(), options(lenient));
    }
    Ok(schema)
}

fn options(lenient: bool) -> Value {
    json!({"whitespace_pattern": WHITE_SPACE, "coerce_one_of": true, LENIENT: lenient})
}

/// What a schema has so far.
#[derive(Default)]
struct Count {
    nodes: usize,
    bytes: usize,
}

impl Count {
    fn add(&mut self, value: &Value, depth: usize) -> Result<(), GrammarError> {
        check(depth, MAX_DEPTH, "objects and arrays in each other")?;
        self.nodes += 1;
        check(self.nodes, MAX_NODES, "values")?;
        match value {
            Value::String(text) => self.add_text(text),
            Value::Array(items) => items.iter().try_for_each(|item| self.add(item, depth + 1)),
            Value::Object(entries) => entries.iter().try_for_each(|(key, value)| {
                self.add_text(key)?;
                self.add(value, depth + 1)
            }),
            Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
        }
    }

    fn add_text(&mut self, text: &str) -> Result<(), GrammarError> {
        self.bytes += text.len();
        check(self.bytes, MAX_BYTES, "bytes of keys and strings")
    }
}

fn check(found: usize, limit: usize, unit: &'static str) -> Result<(), GrammarError> {
    if found > limit {
        return Err(GrammarError::TooLarge { what: "the JSON schema", limit, unit });
    }
    Ok(())
}

/// The error for a schema that the parser refused with this `reason`.
pub(crate) fn refused(schema: &Value, mut reason: String) -> GrammarError {
    let key = quoted(&reason).find_map(|word| holder(schema, word));
    if reason.contains("Unimplemented keys") {
        reason += "; leave them out, or have them ignored by \"x-guidance\": {\"lenient\": true} at \
                   the root of the schema";
    }
    GrammarError::Schema { at: key, reason }
}

/// The words of a text that are in quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split(['"', '\'']).skip(1).step_by(2).filter(|word| !word.is_empty())
}

/// JSON pointer to the first object that has this key, but for `properties`, whose keys are names.
fn holder(value: &Value, key: &str) -> Option<String> {
    let below = |step: &str, value: &Value| {
        holder(value, key).map(|at| format!("/{}{at}", step.replace('~', "~0").replace('/', "~1")))
    };
    match value {
        Value::Object(entries) if entries.contains_key(key) => Some(String::new()),
        Value::Object(entries) => entries.iter().find_map(|(step, value)| match value {
            Value::Object(named) if step == "properties" => within(named, &below),
            _ => below(step, value),
        }),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(i, item)| below(&i.to_string(), item))
        }
        _ => None,
    }
}

fn within(
    named: &Map<String, Value>,
    below: &dyn Fn(&str, &Value) -> Option<String>,
) -> Option<String> {
    let at = named.iter().find_map(|(name, value)| below(name, value))?;
    Some(format!("/properties{at}"))
}
