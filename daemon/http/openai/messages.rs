//! The messages of chat completions, as a client says them.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::conversation::{Called, Conversation};
use crate::http::error::HttpError;

/// A message of a conversation.
#[derive(Debug, Deserialize)]
pub(in crate::http) struct Message {
    role: String,
    #[serde(default)]
    content: Value,
    /// Of a tool, or of whoever speaks.
    name: Option<String>,
    /// What the assistant thought; servers differ in what they call it.
    reasoning: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<Call>>,
    tool_call_id: Option<String>,
}

/// A call of a tool in the history.
#[derive(Debug, Deserialize)]
struct Call {
    id: Option<String>,
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    /// JSON in a string; some clients send the object itself.
    #[serde(default)]
    arguments: Value,
}

/// A conversation in the terms of chat templates.
pub(in crate::http) fn to_template(messages: Vec<Message>) -> Result<Value, HttpError> {
    if messages.is_empty() {
        return Err(HttpError::bad_param("messages", "must have at least one message"));
    }
    let mut conversation = Conversation::default();
    for (at, message) in messages.into_iter().enumerate() {
        add(&mut conversation, message, &format!("messages[{at}]"))?;
    }
    Ok(conversation.into_value())
}

fn add(conversation: &mut Conversation, message: Message, at: &str) -> Result<(), HttpError> {
    let role = role(&message.role)
        .map_err(|message| HttpError::bad_param(format!("{at}.role"), message))?;
    let content = text_of(message.content, role)
        .map_err(|message| HttpError::bad_param(format!("{at}.content"), message))?;
    if role == "tool" {
        conversation.result(message.tool_call_id, message.name, content);
        return Ok(());
    }
    conversation.say(role, content);
    if role == "assistant" {
        let reasoning = message.reasoning_content.or(message.reasoning);
        reasoning.into_iter().for_each(|text| conversation.reason(text));
        for (n, call) in message.tool_calls.into_iter().flatten().enumerate() {
            let Function { name, arguments } = call.function;
            let place = format!("{at}.tool_calls[{n}].function.arguments");
            let arguments = arguments_of(arguments, &place)?;
            conversation.call(Called { id: call.id, name, arguments });
        }
    }
    Ok(())
}

/// The role as templates know it.
pub(super) fn role(role: &str) -> Result<&'static str, String> {
    match role {
        // What newer clients call the system role; templates know only that.
        "developer" | "system" => Ok("system"),
        "user" => Ok("user"),
        "assistant" => Ok("assistant"),
        "tool" => Ok("tool"),
        other => Err(format!("{other:?} is none of system, developer, user, assistant, tool")),
    }
}

/// The arguments of a call in the history, which templates take as an object.
pub(super) fn arguments_of(arguments: Value, place: &str) -> Result<Map<String, Value>, HttpError> {
    let parsed = match arguments {
        Value::String(text) if text.trim().is_empty() => Ok(Value::Object(Map::new())),
        Value::String(text) => serde_json::from_str(&text),
        Value::Null => Ok(Value::Object(Map::new())),
        other => Ok(other),
    };
    match parsed {
        Ok(Value::Object(arguments)) => Ok(arguments),
        Ok(_) => Err(HttpError::bad_param(place, "must be a JSON object in a string")),
        Err(error) => {
            let message = format!("must be a JSON object in a string, but: {error}");
            Err(HttpError::bad_param(place, message))
        }
    }
}

/// The text of a message's content.
pub(super) fn text_of(content: Value, role: &str) -> Result<String, String> {
    match content {
        Value::String(text) => Ok(text),
        // An assistant that only called tools said nothing.
        Value::Null if role == "assistant" => Ok(String::new()),
        Value::Array(parts) => {
            let texts: Result<Vec<String>, String> = parts.into_iter().map(part_text).collect();
            Ok(texts?.join("\n"))
        }
        _ => Err("must be a string or an array of parts".to_owned()),
    }
}

fn part_text(mut part: Value) -> Result<String, String> {
    let key = match part["type"].as_str() {
        Some("text" | "input_text" | "output_text" | "summary_text" | "reasoning_text") => "text",
        // What an assistant said instead of an answer.
        Some("refusal") => "refusal",
        Some(other) => {
            return Err(format!(
                "parts of type {other:?} are not supported, models here read text"
            ));
        }
        None => return Err("a part lacks its type".to_owned()),
    };
    match part.get_mut(key).map(Value::take) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(format!("a part lacks its {key}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn convert(messages: &str) -> Result<Value, String> {
        let messages: Vec<Message> = serde_json::from_str(messages).unwrap();
        to_template(messages).map_err(|error| error.body()["error"]["message"].to_string())
    }

    #[test]
    fn every_form_of_content_becomes_text() {
        let got = convert(
            r#"[{"role":"developer","content":"be brief"},
                {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},
                {"role":"assistant","content":null},
                {"role":"assistant"},
                {"role":"assistant","content":[{"type":"refusal","refusal":"no"}]},
                {"role":"tool","tool_call_id":"x","content":"42"}]"#,
        );
        let want = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": ""},
            {"role": "assistant", "content": "no"},
            {"role": "tool", "content": "42", "tool_call_id": "x"},
        ]);
        assert_eq!(got, Ok(want));
    }

    #[test]
    fn calls_in_the_history_have_objects_for_arguments_and_results_have_their_tools_name() {
        let got = convert(
            r#"[{"role":"user","content":"a"},
                {"role":"assistant","content":null,"reasoning":"r","reasoning_content":"hm","tool_calls":[
                    {"id":"c1","type":"function","function":{"name":"f","arguments":"{\"x\": [1]}"}},
                    {"id":"c2","type":"function","function":{"name":"g","arguments":""}},
                    {"function":{"name":"g","arguments":{"y":2}}}]},
                {"role":"tool","tool_call_id":"c2","content":"two"},
                {"role":"tool","name":"own","tool_call_id":"c1","content":"one"}]"#,
        );
        let call = |name: &str, arguments: Value| json!({"type": "function", "function": {"name": name, "arguments": arguments}});
        let mut calls =
            [call("f", json!({"x": [1]})), call("g", json!({})), call("g", json!({"y": 2}))];
        calls[0]["id"] = json!("c1");
        calls[1]["id"] = json!("c2");
        let want = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": calls},
            {"role": "tool", "content": "two", "tool_call_id": "c2", "name": "g"},
            {"role": "tool", "content": "one", "tool_call_id": "c1", "name": "own"},
        ]);
        assert_eq!(got, Ok(want));
    }

    #[test]
    fn what_is_not_text_is_refused_by_place() {
        for (messages, says) in [
            ("[]", "at least one"),
            (
                r#"[{"role":"user","content":"a"},{"role":"wizard","content":"b"}]"#,
                "messages[1].role",
            ),
            (r#"[{"role":"user","content":null}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":7}]"#, "messages[0].content"),
            (r#"[{"role":"user","content":[{"type":"image_url"}]}]"#, "image_url"),
            (r#"[{"role":"user","content":[{"type":"input_audio"}]}]"#, "input_audio"),
            (r#"[{"role":"user","content":[{"type":"text"}]}]"#, "lacks its text"),
            (r#"[{"role":"user","content":["a"]}]"#, "lacks its type"),
        ] {
            let error = convert(messages).unwrap_err();
            assert!(error.contains(says), "{messages}: {error}");
        }
    }

    #[test]
    fn arguments_that_are_no_object_are_refused_by_place() {
        for arguments in [r#""{""#, r#""[1]""#, "7", r#""{} {}""#] {
            let messages = format!(
                r#"[{{"role":"assistant","tool_calls":[{{"id":"c","function":{{"name":"f","arguments":{arguments}}}}}]}}]"#
            );
            let error = convert(&messages).unwrap_err();
            assert!(error.contains("messages[0].tool_calls[0].function.arguments"), "{error}");
        }
    }
}
