//! JSON and JSON schemas.

use serde_json::{Value, json};

use super::*;

fn schema(schema: Value) -> Grammar {
    Grammar::JsonSchema(schema)
}

#[test]
fn json_is_any_object_and_nothing_else() {
    let good = [r"{}", r#"{"a": [1, {"b": null}], "c":"\n"}"#, "{\n  \"a\": true\n}"];
    check(&Grammar::Json, &good, &["[]", "1", "", "{", "{}x", "{'a':1}", r#"{"a":01}"#]);
}

#[test]
fn white_space_ends() {
    let good = ["{ }", "{\n}", "{\n    \"a\": 1}"];
    check(&Grammar::Json, &good, &["{  }", "{\n\n}", "{\t}", " {}"]);
}

#[test]
fn properties_types_and_bounds_hold() {
    let grammar = schema(json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 4},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        },
        "required": ["name", "age"],
        "additionalProperties": false,
    }));
    let good = [r#"{"name":"Ann","age":7}"#, r#"{"name": "Ann", "age": 120, "tags": ["a","b"]}"#];
    let bad = [
        r#"{"name":"Annie","age":7}"#,
        r#"{"name":"","age":7}"#,
        r#"{"name":"Ann","age":121}"#,
        r#"{"name":"Ann"}"#,
        r#"{"name":"Ann","age":7,"tags":["c"]}"#,
        r#"{"name":"Ann","age":7,"tags":["a","b","a"]}"#,
        r#"{"name":"Ann","age":7,"more":1}"#,
    ];
    check(&grammar, &good, &bad);
}

#[test]
fn references_choices_and_patterns_hold() {
    let grammar = schema(json!({
        "$defs": {"a/b c": {"type": "array", "items": {"$ref": "#/$defs/a~1b%20c"}}},
        "oneOf": [{"$ref": "#/$defs/a~1b%20c"}, {"type": "string", "pattern": "^[xy]+$"}, {"const": 7}],
    }));
    check(&grammar, &["[]", "[[],[[]]]", "\"xy\"", "7"], &["[7]", "\"z\"", "8", "\"\""]);
    check(&schema(json!(true)), &["1", "[null]", "{}"], &["x"]);
}

#[test]
fn what_cannot_be_held_to_is_refused_with_its_place_or_ignored_if_asked() {
    let mut asked = json!({"type": "object", "properties": {
        "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": true},
    }});
    let (error, text) = refusal(&schema(asked.clone()));
    let GrammarError::Schema { at, .. } = error else { panic!("{error}") };
    assert_eq!(at.as_deref(), Some("/properties/uniqueItems"));
    assert!(text.contains("lenient"), "{text}");
    asked["x-guidance"] = json!({"lenient": true, "whitespace_pattern": "x*"});
    check(&schema(asked), &[r#"{"uniqueItems":[1,1]}"#], &["{x}"]);
}

#[test]
fn schemas_that_are_none_or_that_nothing_meets_are_refused() {
    for wrong in [
        json!("object"),
        json!({"type": "objekt"}),
        json!({"type": 7}),
        json!({"$ref": "#/$defs/none"}),
        json!({"$ref": "http://127.0.0.1:9/schema"}),
        json!({"type": "integer", "minimum": 3, "maximum": 2}),
        json!({"type": "string", "pattern": "("}),
        json!({"enum": []}),
        json!(false),
    ] {
        let (error, text) = refusal(&schema(wrong.clone()));
        assert!(matches!(error, GrammarError::Schema { .. }), "{wrong}: {text}");
    }
}
