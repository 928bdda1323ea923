//! A conversation as chat templates take it, said message by message.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// A call of a tool that an assistant made earlier.
#[derive(Debug)]
pub(super) struct Called {
    pub id: Option<String>,
    pub name: String,
    pub arguments: Map<String, Value>,
}

/// What was said so far.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    messages: Vec<Map<String, Value>>,
    /// The names of the tools that were called, by the calls' ids.
    names: HashMap<String, String>,
}

impl Conversation {
    /// A message that is nothing but text.
    pub(super) fn say(&mut self, role: &str, content: String) {
        let message = Map::from_iter([
            ("role".to_owned(), json!(role)),
            ("content".to_owned(), Value::String(content)),
        ]);
        self.messages.push(message);
    }

    /// As [`Self::say`], where a speaker may go on in pieces: the assistant after it thought, and
    /// whoever gives instructions, since few templates take those but once.
    pub(super) fn go_on(&mut self, role: &str, text: String) {
        match self.messages.last_mut() {
            Some(last) if role == "assistant" && last["role"] == role && is_unsaid(last) => {
                last.insert("content".to_owned(), Value::String(text));
            }
            Some(last) if role == "system" && last["role"] == role => {
                if let Value::String(content) = &mut last["content"] {
                    content.push_str("\n\n");
                    content.push_str(&text);
                }
            }
            _ => self.say(role, text),
        }
    }

    /// What the assistant thinks before it says or calls anything, in a message of its own.
    pub(super) fn think(&mut self, text: String) {
        self.say("assistant", String::new());
        self.reason(text);
    }

    /// What the assistant thought before it wrote its last message.
    pub(super) fn reason(&mut self, text: String) {
        self.assistant().insert("reasoning_content".to_owned(), Value::String(text));
    }

    /// One more call in the assistant's last message.
    pub(super) fn call(&mut self, called: Called) {
        let Called { id, name, arguments } = called;
        let mut call =
            json!({"type": "function", "function": {"name": name, "arguments": arguments}});
        if let Some(id) = id {
            call["id"] = json!(id);
            self.names.insert(id, name);
        }
        let calls = self.assistant().entry("tool_calls").or_insert_with(|| json!([]));
        if let Value::Array(calls) = calls {
            calls.push(call);
        }
    }

    /// What came of a call. Some templates want the tool's name, some the call's id.
    pub(super) fn result(&mut self, id: Option<String>, name: Option<String>, content: String) {
        let name = name.or_else(|| self.names.get(id.as_deref()?).cloned());
        self.say("tool", content);
        let Some(message) = self.messages.last_mut() else { return };
        for (key, value) in [("tool_call_id", id), ("name", name)] {
            if let Some(value) = value {
                message.insert(key.to_owned(), Value::String(value));
            }
        }
    }

    /// The last message, which is one of the assistant.
    fn assistant(&mut self) -> &mut Map<String, Value> {
        if self.messages.last().is_none_or(|last| last["role"] != "assistant") {
            self.say("assistant", String::new());
        }
        self.messages.last_mut().expect("one was just made sure of")
    }

    /// All of it, an array of objects.
    pub(super) fn into_value(self) -> Value {
        Value::Array(self.messages.into_iter().map(Value::Object).collect())
    }
}

/// Whether an assistant only thought so far.
fn is_unsaid(message: &Map<String, Value>) -> bool {
    message["content"] == "" && !message.contains_key("tool_calls")
}
