//! Conversations about tools, for chat templates that have no place for them.
//!
//! The tools are put into the system prompt with how to call them, calls into what the assistant said, and
//! what tools answered into what the user says.

use serde_json::{Map, Value, json};

use crate::Tools;
use crate::format::{Family, Format, Place};

impl Format {
    /// The messages as a template can take them that has no place for tools, or for what was called;
    /// `None` where it is to be given them as they are. Messages are objects with `role` and
    /// `content`, a string; an assistant's may have `tool_calls` in OpenAI's shape but with `arguments`
    /// that are objects.
    pub fn offer(&self, messages: &Value, tools: &Tools) -> Option<Value> {
        let list = messages.as_array().map_or(&[][..], Vec::as_slice);
        let calls = |message: &Value| message["tool_calls"].is_array();
        let speaks_of_tools = |message: &Value| message["role"] == "tool" || calls(message);
        match self.place {
            Place::None if !tools.is_empty() || list.iter().any(speaks_of_tools) => {
                Some(self.without_place(list, tools))
            }
            Place::System if !tools.is_empty() => {
                Some(with_system(self.with_texts_of_calls(list), tools))
            }
            Place::Variable | Place::System if !self.writes_calls && list.iter().any(calls) => {
                Some(Value::Array(self.with_texts_of_calls(list)))
            }
            _ => None,
        }
    }

    /// What the assistant called is what it said, where the template does not write it.
    fn with_texts_of_calls(&self, list: &[Value]) -> Vec<Value> {
        let told = |message: &Value| match message.as_object() {
            Some(object) if !self.writes_calls => Value::Object(self.with_text_of_calls(object)),
            _ => message.clone(),
        };
        list.iter().map(told).collect()
    }

    fn without_place(&self, list: &[Value], tools: &Tools) -> Value {
        let mut told: Vec<Map<String, Value>> = vec![];
        for message in list.iter().filter_map(Value::as_object) {
            let message = self.without_tools(message);
            match told.last_mut() {
                // Many templates insist on turns.
                Some(last) if last["role"] == "user" && message["role"] == "user" => {
                    let both = format!("{}\n{}", content(last), content(&message));
                    last.insert("content".to_owned(), both.into());
                }
                _ => told.push(message),
            }
        }
        let instructions = self.instructions(tools);
        match told.first_mut() {
            _ if tools.is_empty() => {}
            Some(first) if first["role"] == "system" => {
                let both = format!("{}\n\n{instructions}", content(first));
                first.insert("content".to_owned(), both.into());
            }
            _ => {
                let system = json!({"role": "system", "content": instructions});
                told.splice(..0, system.as_object().cloned());
            }
        }
        told.into_iter().map(Value::Object).collect()
    }

    fn without_tools(&self, message: &Map<String, Value>) -> Map<String, Value> {
        let mut message = message.clone();
        if message.get("role").is_some_and(|role| role == "tool") {
            let answer = format!("<tool_response>\n{}\n</tool_response>", content(&message));
            message.insert("role".to_owned(), "user".into());
            message.insert("content".to_owned(), answer.into());
        }
        let mut message = self.with_text_of_calls(&message);
        message.entry("role").or_insert("user".into());
        message
    }

    fn with_text_of_calls(&self, message: &Map<String, Value>) -> Map<String, Value> {
        let mut message = message.clone();
        if let Some(Value::Array(calls)) = message.remove("tool_calls") {
            let calls = calls.iter().map(|call| {
                let function = &call["function"];
                (function["name"].as_str().unwrap_or_default(), function["arguments"].to_string())
            });
            let mut text = content(&message).to_owned();
            if !text.is_empty() {
                text.push('\n');
            }
            text += &self.written(calls);
            message.insert("content".to_owned(), text.into());
        }
        message
    }

    fn instructions(&self, tools: &Tools) -> String {
        let mut text = "You can call these functions:\n<tools>\n".to_owned();
        for tool in tools.to_template().as_array().into_iter().flatten() {
            text += &tool["function"].to_string();
            text.push('\n');
        }
        let alone = match self.calls() {
            Family::Gemma => "and nothing else",
            _ => "once for each call",
        };
        let call = self.written([("NAME", "{\"ARGUMENT\": VALUE}".to_owned())]);
        text + "</tools>\nTo call one, write this, " + alone + ":\n" + &call
    }
}

/// Messages whose system prompt has the tools.
fn with_system(mut messages: Vec<Value>, tools: &Tools) -> Value {
    if messages.first().is_none_or(|first| first["role"] != "system") {
        let content = "You are a helpful assistant with some tools.";
        messages.insert(0, json!({"role": "system", "content": content}));
    }
    let functions = tools.to_template();
    let functions = functions.as_array().into_iter().flatten().map(|tool| tool["function"].clone());
    messages[0]["tools"] = functions.collect::<Value>().to_string().into();
    Value::Array(messages)
}

fn content(message: &Map<String, Value>) -> &str {
    message.get("content").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tool;

    fn tools() -> Tools {
        let now = Tool {
            name: "now".into(),
            description: Some("The time.".into()),
            parameters: json!({"type": "object"}),
            strict: false,
        };
        Tools::new(vec![now]).unwrap()
    }

    fn conversation() -> Value {
        let call = |zone| json!({"function": {"name": "now", "arguments": {"zone": zone}}});
        json!([
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": null, "tool_calls": [call("CET"), call("UTC")]},
            {"role": "tool", "content": "12:00"},
            {"role": "tool", "content": "11:00"},
            {"role": "user", "content": "Thanks."},
        ])
    }

    #[test]
    fn a_template_without_a_place_for_tools_gets_them_as_text() {
        let told = Format::of_template("plain").offer(&conversation(), &tools()).unwrap();
        let system = told[0]["content"].as_str().unwrap();
        let tool = r#"{"name":"now","description":"The time.","parameters":{"type":"object"}}"#;
        assert!(system.contains(tool), "{system}");
        assert!(system.contains("<tool_call>\n{\"name\": \"NAME\", \"arguments\": {"), "{system}");
        let want = json!([
            {"role": "user", "content": "What time is it?"},
            {
                "role": "assistant",
                "content": "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"zone\":\"CET\"}}\n</tool_call>\n\
                            <tool_call>\n{\"name\": \"now\", \"arguments\": {\"zone\":\"UTC\"}}\n</tool_call>",
            },
            {
                "role": "user",
                "content": "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n11:00\n\
                            </tool_response>\nThanks.",
            },
        ]);
        assert_eq!(told.as_array().unwrap()[1..], want.as_array().unwrap()[..]);
    }

    #[test]
    fn a_system_prompt_keeps_its_place() {
        let messages = json!([{"role": "system", "content": "Be brief."}]);
        let told = Format::of_template("<start_of_turn>").offer(&messages, &tools()).unwrap();
        assert_eq!(told.as_array().unwrap().len(), 1);
        let system = told[0]["content"].as_str().unwrap();
        assert!(system.starts_with("Be brief.\n\nYou can call"), "{system}");
        assert!(system.ends_with("{\"name\": \"NAME\", \"parameters\": {\"ARGUMENT\": VALUE}}"));
    }

    #[test]
    fn where_the_template_has_a_place_nothing_changes() {
        let places = ["<tool_call> {% for tool in tools %}", "<start_of_turn> {% if tools %}"];
        for template in places {
            assert_eq!(Format::of_template(template).offer(&conversation(), &tools()), None);
        }
        let messages = json!([{"role": "user", "content": "Hi."}]);
        assert_eq!(Format::of_template("plain").offer(&messages, &Tools::default()), None);
    }

    #[test]
    fn calls_of_before_are_told_when_there_are_no_tools_any_more() {
        let told = Format::of_template("plain").offer(&conversation(), &Tools::default()).unwrap();
        assert_eq!(told.as_array().unwrap().len(), 3);
        let called = told[1]["content"].as_str().unwrap();
        assert!(called.starts_with("<tool_call>") && told[1].get("tool_calls").is_none(), "{told}");
    }
}
