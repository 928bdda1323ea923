//! The items of a request's input, as a conversation.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::conversation::{Called, Conversation};
use super::super::messages::{arguments_of, role, text_of};
use crate::http::error::HttpError;

/// A text of the user, or items.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or an array of items")]
pub(super) enum Items {
    Text(String),
    Items(Vec<Value>),
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
}

#[derive(Debug, Deserialize)]
struct FunctionCall {
    call_id: String,
    name: String,
    #[serde(default)]
    arguments: Value,
}

#[derive(Debug, Deserialize)]
struct FunctionCallOutput {
    call_id: String,
    output: Value,
}

#[derive(Debug, Deserialize)]
struct Reasoning {
    #[serde(default)]
    summary: Vec<Value>,
    content: Option<Vec<Value>>,
}

/// A conversation in the terms of chat templates.
pub(super) fn to_template(instructions: Option<String>, items: Items) -> Result<Value, HttpError> {
    let mut conversation = Conversation::default();
    if let Some(instructions) = instructions {
        conversation.say("system", instructions);
    }
    match items {
        Items::Text(text) => conversation.say("user", text),
        Items::Items(items) if items.is_empty() => {
            return Err(HttpError::bad_param("input", "must have at least one item"));
        }
        Items::Items(items) => {
            for (at, item) in items.into_iter().enumerate() {
                add(&mut conversation, item, &format!("input[{at}]"))?;
            }
        }
    }
    Ok(conversation.into_value())
}

fn add(conversation: &mut Conversation, item: Value, at: &str) -> Result<(), HttpError> {
    // Messages may do without a type.
    let kind = item["type"].as_str().unwrap_or("message").to_owned();
    match kind.as_str() {
        "message" => add_message(conversation, parse(item, at)?, at),
        "function_call" => {
            let FunctionCall { call_id, name, arguments } = parse(item, at)?;
            let arguments = arguments_of(arguments, &format!("{at}.arguments"))?;
            conversation.call(Called { id: Some(call_id), name, arguments });
            Ok(())
        }
        "function_call_output" => {
            let FunctionCallOutput { call_id, output } = parse(item, at)?;
            let text = text_of(output, "tool")
                .map_err(|message| HttpError::bad_param(format!("{at}.output"), message))?;
            conversation.result(Some(call_id), None, text);
            Ok(())
        }
        "reasoning" => {
            let Reasoning { summary, content } = parse(item, at)?;
            // What was encrypted elsewhere has nothing for anybody here.
            let parts = content.unwrap_or(summary);
            let text = text_of(Value::Array(parts), "assistant")
                .map_err(|message| HttpError::bad_param(at, message))?;
            if !text.is_empty() {
                conversation.think(text);
            }
            Ok(())
        }
        other => {
            let message = format!(
                "{other:?} is none of message, function_call, function_call_output, reasoning"
            );
            Err(HttpError::bad_param(format!("{at}.type"), message))
        }
    }
}

fn add_message(
    conversation: &mut Conversation,
    message: Message,
    at: &str,
) -> Result<(), HttpError> {
    let role = role(&message.role)
        .map_err(|message| HttpError::bad_param(format!("{at}.role"), message))?;
    let text = text_of(message.content, role)
        .map_err(|message| HttpError::bad_param(format!("{at}.content"), message))?;
    conversation.go_on(role, text);
    Ok(())
}

fn parse<T: DeserializeOwned>(item: Value, at: &str) -> Result<T, HttpError> {
    T::deserialize(item).map_err(|error| HttpError::bad_param(at, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn convert(instructions: Option<&str>, input: Value) -> Result<Value, Value> {
        let items = serde_json::from_value(input).unwrap();
        to_template(instructions.map(str::to_owned), items)
            .map_err(|error| error.body()["error"]["param"].clone())
    }

    #[test]
    fn a_text_is_what_the_user_says() {
        let got = convert(Some("be brief"), json!("hello")).unwrap();
        let want = json!([
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "hello"},
        ]);
        assert_eq!(got, want);
    }

    #[test]
    fn what_an_assistant_thought_said_and_called_in_one_turn_is_one_message() {
        let got = convert(
            Some("be brief"),
            json!([
                {"role": "developer", "content": "and kind"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}],
                 "encrypted_content": null},
                {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                 "content": [{"type": "output_text", "text": "wait", "annotations": []}]},
                {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "f", "arguments": "{\"x\":1}"},
                {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "one"},
                {"type": "function_call_output", "call_id": "c2",
                 "output": [{"type": "input_text", "text": "two"}]},
                {"role": "assistant", "content": "done"},
                {"role": "assistant", "content": "really"},
            ]),
        );
        let call = |id: &str, name: &str, arguments: Value| json!({"type": "function", "function": {"name": name, "arguments": arguments}, "id": id});
        let want = json!([
            {"role": "system", "content": "be brief\n\nand kind"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "wait", "reasoning_content": "hm",
             "tool_calls": [call("c1", "f", json!({"x": 1})), call("c2", "g", json!({}))]},
            {"role": "tool", "content": "one", "tool_call_id": "c1", "name": "f"},
            {"role": "tool", "content": "two", "tool_call_id": "c2", "name": "g"},
            {"role": "assistant", "content": "done"},
            {"role": "assistant", "content": "really"},
        ]);
        assert_eq!(got, Ok(want));
    }

    #[test]
    fn items_that_mean_nothing_here_are_refused_by_place() {
        for (input, param) in [
            (json!([]), "input"),
            (json!([7]), "input[0]"),
            (
                json!([{"role": "user", "content": "a"}, {"type": "item_reference", "id": "x"}]),
                "input[1].type",
            ),
            (json!([{"role": "wizard", "content": "a"}]), "input[0].role"),
            (json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content"),
            (json!([{"type": "function_call", "name": "f"}]), "input[0]"),
            (
                json!([{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]),
                "input[0].arguments",
            ),
            (
                json!([{"type": "function_call_output", "call_id": "c", "output": 7}]),
                "input[0].output",
            ),
        ] {
            assert_eq!(convert(None, input.clone()).unwrap_err(), param, "{input}");
        }
    }
}
