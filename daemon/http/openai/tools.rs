//! The tools of a request, and how they are to be used.

use m40_reply::{Tool, ToolChoice, Tools};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::error::HttpError;

/// A tool as chat completions say it.
#[derive(Debug, Deserialize)]
pub(super) struct NestedTool {
    #[serde(rename = "type")]
    kind: String,
    function: Option<Function>,
}

/// A tool as `/v1/responses` says it.
#[derive(Debug, Deserialize)]
pub(super) struct FlatTool {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

impl Function {
    fn into_tool(self) -> Tool {
        let Self { name, description, parameters, strict } = self;
        // OpenAI's word for a function without any.
        let parameters = parameters.unwrap_or_else(|| json!({"type": "object", "properties": {}}));
        Tool { name, description, parameters, strict: strict.unwrap_or(false) }
    }
}

/// The tools of a chat completion.
pub(super) fn nested(tools: Vec<NestedTool>) -> Result<Tools, HttpError> {
    let function = |tool: NestedTool, at: &str| {
        check_kind(&tool.kind, at)?;
        let missing = || HttpError::bad_param(format!("{at}.function"), "is missing");
        tool.function.ok_or_else(missing)
    };
    collect(tools, function)
}

/// The tools of a response.
pub(super) fn flat(tools: Vec<FlatTool>) -> Result<Tools, HttpError> {
    let function = |tool: FlatTool, at: &str| {
        check_kind(&tool.kind, at)?;
        let FlatTool { name, description, parameters, strict, .. } = tool;
        let missing = || HttpError::bad_param(format!("{at}.name"), "is missing");
        Ok(Function { name: name.ok_or_else(missing)?, description, parameters, strict })
    };
    collect(tools, function)
}

fn collect<T>(
    tools: Vec<T>,
    function: impl Fn(T, &str) -> Result<Function, HttpError>,
) -> Result<Tools, HttpError> {
    let tool = |(at, tool)| Ok(function(tool, &format!("tools[{at}]"))?.into_tool());
    let tools: Result<Vec<Tool>, HttpError> = tools.into_iter().enumerate().map(tool).collect();
    Tools::new(tools?).map_err(|error| HttpError::bad_param("tools", error))
}

fn check_kind(kind: &str, at: &str) -> Result<(), HttpError> {
    if kind == "function" {
        return Ok(());
    }
    let message = format!("{kind:?} is not supported, only \"function\"");
    Err(HttpError::bad_param(format!("{at}.type"), message))
}

/// How the tools are to be used: a word, or an object that names one, in either API's shape.
pub(super) fn choice(value: Option<&Value>, tools: &Tools) -> Result<ToolChoice, HttpError> {
    let bad = |message: &str| Err(HttpError::bad_param("tool_choice", message));
    let choice = match value {
        None | Some(Value::Null) => ToolChoice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => return bad("is none of none, auto, required"),
        },
        Some(object) => {
            let name = object["function"]["name"].as_str().or_else(|| object["name"].as_str());
            match (object["type"].as_str(), name) {
                (Some("function"), Some(name)) => ToolChoice::Named(name.to_owned()),
                (Some("function"), None) => return bad("lacks the function's name"),
                _ => return bad("must be a word, or an object of type \"function\""),
            }
        }
    };
    match &choice {
        ToolChoice::Named(name) if tools.get(name).is_none() => bad("names no tool of the request"),
        ToolChoice::Required if tools.is_empty() => bad("needs tools"),
        _ => Ok(choice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested_of(tools: Value) -> Result<Tools, Value> {
        nested(serde_json::from_value(tools).unwrap())
            .map_err(|error| error.body()["error"]["param"].clone())
    }

    fn flat_of(tools: Value) -> Result<Tools, Value> {
        flat(serde_json::from_value(tools).unwrap())
            .map_err(|error| error.body()["error"]["param"].clone())
    }

    #[test]
    fn both_shapes_mean_the_same_tools() {
        let schema = json!({"type": "object", "properties": {"x": {"type": "number"}}});
        let one = nested_of(json!([
            {"type": "function", "function": {"name": "f", "description": "d", "parameters": schema, "strict": true}},
            {"type": "function", "function": {"name": "g"}},
        ]));
        let other = flat_of(json!([
            {"type": "function", "name": "f", "description": "d", "parameters": schema, "strict": true},
            {"type": "function", "name": "g", "parameters": null, "strict": null},
        ]));
        assert_eq!(one, other);
        assert_eq!(one.unwrap().get("g").unwrap().parameters["type"], "object");
    }

    #[test]
    fn tools_that_cannot_be_offered_are_refused_by_place() {
        let cases = [
            (nested_of(json!([{"type": "web_search"}])), "tools[0].type"),
            (nested_of(json!([{"type": "function"}])), "tools[0].function"),
            (nested_of(json!([{"type": "function", "function": {"name": "a b"}}])), "tools"),
            (flat_of(json!([{"type": "function"}])), "tools[0].name"),
            (
                flat_of(json!([{"type": "function", "name": "f"}, {"type": "local_shell"}])),
                "tools[1].type",
            ),
        ];
        for (got, param) in cases {
            assert_eq!(got.unwrap_err(), param);
        }
    }

    #[test]
    fn a_choice_must_be_possible() {
        let tools = nested_of(json!([{"type": "function", "function": {"name": "f"}}])).unwrap();
        let of = |value: Value| choice(Some(&value), &tools).map_err(|_| ());
        assert_eq!(choice(None, &Tools::default()).unwrap(), ToolChoice::Auto);
        assert_eq!(of(json!("none")), Ok(ToolChoice::None));
        assert_eq!(of(json!("required")), Ok(ToolChoice::Required));
        let named = Ok(ToolChoice::Named("f".into()));
        assert_eq!(of(json!({"type": "function", "function": {"name": "f"}})), named);
        assert_eq!(of(json!({"type": "function", "name": "f"})), named);
        for bad in [
            json!("always"),
            json!({"type": "function", "name": "g"}),
            json!({"type": "function"}),
            json!({"type": "custom", "name": "f"}),
            json!(7),
        ] {
            assert_eq!(of(bad.clone()), Err(()), "{bad}");
        }
        assert!(choice(Some(&json!("required")), &Tools::default()).is_err());
    }
}
