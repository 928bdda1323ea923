//! What an answer has to look like: `response_format`, and `text.format` of responses.

use m40_grammar::Grammar;
use serde::Deserialize;
use serde_json::Value;

/// `response_format` of chat completions.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ResponseFormat {
    Text,
    JsonObject {
        /// As llama.cpp has it.
        schema: Option<Value>,
    },
    JsonSchema {
        json_schema: Schema,
    },
}

/// `text.format` of responses.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum TextFormat {
    Text,
    JsonObject,
    JsonSchema(Schema),
}

/// A schema with a name. An answer always is as the schema says, so `strict` makes no difference.
#[derive(Debug, Deserialize)]
pub(super) struct Schema {
    schema: Option<Value>,
}

impl ResponseFormat {
    /// The grammar of the answer; none where it is free.
    pub(super) fn grammar(self) -> Option<Grammar> {
        match self {
            Self::Text => None,
            Self::JsonObject { schema } | Self::JsonSchema { json_schema: Schema { schema } } => {
                Some(json(schema))
            }
        }
    }
}

impl TextFormat {
    /// The grammar of the answer; none where it is free.
    pub(super) fn grammar(self) -> Option<Grammar> {
        match self {
            Self::Text => None,
            Self::JsonObject => Some(Grammar::Json),
            Self::JsonSchema(Schema { schema }) => Some(json(schema)),
        }
    }
}

fn json(schema: Option<Value>) -> Grammar {
    schema.map_or(Grammar::Json, Grammar::JsonSchema)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_format_has_its_grammar() {
        let schema = json!({"type": "object"});
        let chat = |value: Value| {
            serde_json::from_value::<ResponseFormat>(value).map(ResponseFormat::grammar)
        };
        let text =
            |value: Value| serde_json::from_value::<TextFormat>(value).map(TextFormat::grammar);
        let want = Some(Grammar::JsonSchema(schema.clone()));
        assert_eq!(chat(json!({"type": "text"})).unwrap(), None);
        assert_eq!(chat(json!({"type": "json_object"})).unwrap(), Some(Grammar::Json));
        assert_eq!(chat(json!({"type": "json_object", "schema": schema})).unwrap(), want);
        let nested = json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}});
        assert_eq!(chat(nested).unwrap(), want);
        assert!(chat(json!({"type": "json_schema"})).is_err());
        assert!(chat(json!({"type": "xml"})).is_err());
        assert_eq!(text(json!({"type": "text"})).unwrap(), None);
        assert_eq!(text(json!({"type": "json_object"})).unwrap(), Some(Grammar::Json));
        let flat = json!({"type": "json_schema", "name": "n", "strict": true, "schema": schema});
        assert_eq!(text(flat).unwrap(), want);
    }
}
