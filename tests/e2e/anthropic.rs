//! `/v1/messages`: the shapes that Anthropic's clients read.

use m40_testkit::daemon::Daemon;
use serde_json::{Value, json};

use crate::with_tiny;

const ROUTE: &str = "/v1/messages";

fn request() -> Value {
    json!({
        "model": "tiny",
        "system": [{"type": "text", "text": "be brief"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        "max_tokens": 12, "temperature": 0, "top_k": 40, "ignore_eos": true,
        "metadata": {"user_id": "someone"},
    })
}

fn with(fields: Value) -> Value {
    let mut request = request();
    for (name, value) in fields.as_object().expect("fields are an object") {
        request[name] = value.clone();
    }
    request
}

/// The events of a stream, each with the name that its type says.
fn events(daemon: &Daemon, request: &Value) -> Vec<Value> {
    let mut stream = daemon.post_stream(ROUTE, request);
    assert_eq!(stream.status, 200);
    let mut named = vec![];
    while let Some(line) = stream.line() {
        let name = line.strip_prefix("event: ").expect("each event has a name").to_owned();
        let data = stream.line().expect("each event has data");
        let data: Value =
            serde_json::from_str(data.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(data["type"], name);
        named.push(data);
    }
    named
}

#[test]
fn a_message_has_the_shape_of_anthropic() {
    let daemon = with_tiny();
    let reply = daemon.post(ROUTE, &request());
    assert_eq!(reply.status, 200, "{}", reply.body);
    let message = reply.json();
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    let told = (&message["type"], &message["role"], &message["model"], &message["stop_reason"]);
    assert_eq!(
        told,
        (&json!("message"), &json!("assistant"), &json!("tiny"), &json!("max_tokens"))
    );
    assert_eq!(message["content"][0]["type"], "text");
    assert_eq!(message["usage"]["output_tokens"], 12);
    let counted = daemon.post("/v1/messages/count_tokens", &request()).json();
    let usage = &message["usage"];
    let read = usage["input_tokens"].as_u64().unwrap()
        + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(counted, json!({"input_tokens": read}));
}

#[test]
fn a_stream_has_named_events_that_make_the_same_message() {
    let daemon = with_tiny();
    let whole = daemon.post(ROUTE, &request()).json();
    let events = events(&daemon, &with(json!({"stream": true})));
    let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["message_start", "content_block_start"]);
    assert_eq!(names[names.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    assert_eq!(events[0]["message"]["content"], json!([]));
    let counted = daemon.post("/v1/messages/count_tokens", &request()).json();
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], counted["input_tokens"]);
    let texts = events.iter().filter_map(|event| event["delta"]["text"].as_str());
    assert_eq!(whole["content"][0]["text"], texts.collect::<String>());
    let end = &events[events.len() - 2];
    assert_eq!(end["delta"]["stop_reason"], "max_tokens");
    assert_eq!(end["usage"]["output_tokens"], 12);
}

#[test]
fn the_stop_sequence_that_ended_a_message_is_named() {
    let daemon = with_tiny();
    let text = daemon.post(ROUTE, &request()).json()["content"][0]["text"].clone();
    let last = text.as_str().unwrap().chars().last().unwrap().to_string();
    let asked = with(json!({"stop_sequences": ["never that", last]}));
    let stopped = daemon.post(ROUTE, &asked).json();
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&json!("stop_sequence"), &json!(last))
    );
    assert!(!stopped["content"].to_string().contains(&last));
}

#[test]
fn errors_have_the_shape_of_anthropic() {
    let daemon = with_tiny();
    let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
    for (fields, status, kind, says) in [
        (json!({"model": "nobody"}), 404, "not_found_error", "nobody"),
        (json!({"max_tokens": null}), 400, "invalid_request_error", "max_tokens"),
        (json!({"messages": []}), 400, "invalid_request_error", "messages"),
        (json!({"messages": image}), 400, "invalid_request_error", "image"),
        (json!({"temperature": -1}), 400, "invalid_request_error", "temperature"),
        (json!({"stop_sequences": [""]}), 400, "invalid_request_error", "stop_sequences"),
        (json!({"tools": [{"name": "f"}]}), 400, "invalid_request_error", "input_schema"),
    ] {
        let reply = daemon.post(ROUTE, &with(fields.clone()));
        let error = reply.json();
        assert_eq!((reply.status, &error["type"]), (status, &json!("error")), "{fields}: {error}");
        assert_eq!(error["error"]["type"], kind, "{fields}");
        assert!(error["error"]["message"].as_str().unwrap().contains(says), "{fields}: {error}");
        assert_eq!(error["request_id"].as_str(), reply.header("x-request-id"));
    }
}
