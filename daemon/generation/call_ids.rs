//! Ids of calls as Mistral's templates want them: nine letters and digits, and each call with one.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};

/// A call that no tool has answered yet.
struct Open {
    name: Option<Value>,
    id: String,
}

/// The same messages, with numbered calls. What a tool says is of the call whose id it has, or else of the
/// first open one of that tool, or else of the first open one.
pub(super) fn numbered(messages: &Value) -> Value {
    let mut messages = messages.clone();
    let (mut new_ids, mut open) = (BTreeMap::new(), VecDeque::<Open>::new());
    let mut ids = (1..).map(|number: usize| format!("call{number:05}"));
    for message in objects(Some(&mut messages)) {
        for call in objects(message.get_mut("tool_calls")) {
            let id = ids.next().unwrap_or_default();
            let name = call.get("function").map(|function| function["name"].clone());
            if let Some(Value::String(old)) = call.insert("id".to_owned(), json!(id)) {
                new_ids.insert(old, id.clone());
            }
            open.push_back(Open { name, id });
        }
        if message.get("role").is_some_and(|role| role == "tool") {
            let old = message.get("tool_call_id").and_then(Value::as_str);
            let known = old.and_then(|old| new_ids.get(old));
            let name = message.get("name");
            let at = match known {
                Some(id) => open.iter().position(|call| call.id == *id),
                None => open.iter().position(|call| call.name.as_ref() == name).or(Some(0)),
            };
            let first = at.and_then(|at| open.remove(at)).map(|call| call.id);
            let id = known.cloned().or(first).or_else(|| ids.next());
            message.insert("tool_call_id".to_owned(), json!(id));
        }
    }
    messages
}

fn objects(list: Option<&mut Value>) -> impl Iterator<Item = &mut Map<String, Value>> {
    let list = list.and_then(Value::as_array_mut).into_iter().flatten();
    list.filter_map(Value::as_object_mut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: Option<&str>, name: &str) -> Value {
        let mut call = json!({"type": "function", "function": {"name": name, "arguments": {}}});
        if let Some(id) = id {
            call["id"] = json!(id);
        }
        call
    }

    /// The ids of calls and of what tools say, in their order.
    fn ids(messages: &Value) -> Vec<String> {
        let of = |message: &Value| {
            let calls = message["tool_calls"].as_array().cloned().unwrap_or_default();
            let calls = calls.into_iter().map(|call| call["id"].clone());
            calls.chain([message["tool_call_id"].clone()]).collect::<Vec<_>>()
        };
        let all = messages.as_array().unwrap().iter().flat_map(of);
        all.filter_map(|id| id.as_str().map(str::to_owned)).collect()
    }

    #[test]
    fn what_a_tool_says_keeps_the_call_that_it_is_of() {
        let calls = [call(Some("call_abcdefghijkl"), "f"), call(Some("toolu_2"), "f")];
        let messages = json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "toolu_2", "content": "two"},
            {"role": "tool", "tool_call_id": "call_abcdefghijkl", "content": "one"},
            {"role": "assistant", "content": "", "tool_calls": [call(Some("toolu_2"), "g")]},
            {"role": "tool", "tool_call_id": "toolu_2", "content": "three"},
        ]);
        let [one, two, three] = ["call00001", "call00002", "call00003"];
        let numbered = numbered(&messages);
        assert_eq!(ids(&numbered), [one, two, two, one, three, three]);
        assert_eq!(numbered[0], messages[0]);
        assert_eq!(numbered[2]["content"], "two");
    }

    #[test]
    fn calls_without_ids_have_some_and_are_found_by_the_name_of_their_tool() {
        let messages = json!([
            {"role": "assistant", "content": "", "tool_calls": [call(None, "f"), call(None, "g")]},
            {"role": "tool", "name": "g", "content": "of g"},
            {"role": "tool", "content": "of f"},
            {"role": "tool", "content": "of nothing"},
        ]);
        let [one, two, three] = ["call00001", "call00002", "call00003"];
        assert_eq!(ids(&numbered(&messages)), [one, two, two, one, three]);
        assert_eq!(numbered(&json!("no list")), json!("no list"));
        assert_eq!(numbered(&json!([7, {"tool_calls": [8]}])), json!([7, {"tool_calls": [8]}]));
    }
}
