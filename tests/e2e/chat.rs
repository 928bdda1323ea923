//! `POST /v1/chat/completions`: the shapes that OpenAI's clients read.

use m40_testkit::daemon::Daemon;
use serde_json::{Value, json};

use crate::with_tiny;

const ROUTE: &str = "/v1/chat/completions";

fn request() -> Value {
    json!({
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        ],
        "max_completion_tokens": 12, "temperature": 0, "ignore_eos": true,
        "user": "someone", "metadata": {"x": 1}, "service_tier": "auto",
    })
}

fn events(daemon: &Daemon, request: &Value) -> Vec<Value> {
    let mut stream = daemon.post_stream(ROUTE, request);
    let mut events: Vec<String> = std::iter::from_fn(|| stream.event()).collect();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).expect("an event is JSON")).collect()
}

#[test]
fn a_reply_has_the_shape_of_openai() {
    let daemon = with_tiny();
    let reply = daemon.post(ROUTE, &request());
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.header("x-request-id").is_some());
    let reply = reply.json();
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["model"], "tiny");
    assert!(reply["created"].as_u64().unwrap() > 1_600_000_000);
    let choice = &reply["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["refusal"], Value::Null);
    assert!(choice["message"]["content"].is_string());
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(choice["finish_reason"], "length");
    let usage = &reply["usage"];
    let count = |key: &str| usage[key].as_u64().unwrap();
    assert_eq!(count("completion_tokens"), 12);
    assert_eq!(count("total_tokens"), count("prompt_tokens") + 12);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    assert!(reply["timings"]["prompt_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_stream_begins_with_the_role_and_ends_with_reason_usage_and_done() {
    let daemon = with_tiny();
    let mut asked = request();
    asked["stream"] = json!(true);
    asked["stream_options"] = json!({"include_usage": true});
    let chunks = events(&daemon, &asked);
    let (usage, chunks) = chunks.split_last().unwrap();
    let (last, chunks) = chunks.split_last().unwrap();
    let (first, pieces) = chunks.split_first().unwrap();

    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let text: String =
        pieces.iter().map(|c| c["choices"][0]["delta"]["content"].as_str().unwrap()).collect();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 12);
    for chunk in chunks.iter().chain([last]) {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!((&chunk["id"], &chunk["created"]), (&first["id"], &first["created"]));
        assert!(chunk.as_object().unwrap().contains_key("usage"));
        assert_eq!(chunk["usage"], Value::Null);
    }
    for piece in pieces {
        assert_eq!(piece["choices"][0]["finish_reason"], Value::Null);
    }
    let whole = daemon.post(ROUTE, &request()).json();
    assert_eq!(whole["choices"][0]["message"]["content"], text);
}

#[test]
fn without_being_asked_a_stream_has_no_usage() {
    let daemon = with_tiny();
    let mut asked = request();
    asked["stream"] = json!(true);
    let chunks = events(&daemon, &asked);
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn logprobs_are_those_of_the_tokens_streamed_or_not() {
    let daemon = with_tiny();
    let mut asked = request();
    asked["logprobs"] = json!(true);
    asked["top_logprobs"] = json!(3);
    let whole = daemon.post(ROUTE, &asked).json();
    let tokens = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(tokens.len(), 12);
    for token in &tokens {
        let top = token["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 3);
        // Greedy: the token is the likeliest one.
        assert_eq!(top[0]["bytes"], token["bytes"]);
        let logprobs: Vec<f64> = top.iter().map(|t| t["logprob"].as_f64().unwrap()).collect();
        assert!(logprobs[0] <= 0.0 && logprobs.is_sorted_by(|a, b| a >= b), "{logprobs:?}");
    }
    asked["stream"] = json!(true);
    let streamed: Vec<Value> = events(&daemon, &asked)
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    let bytes = |tokens: &[Value]| tokens.iter().map(|t| t["bytes"].clone()).collect::<Vec<_>>();
    assert_eq!(bytes(&streamed), bytes(&tokens));
}

#[test]
fn a_conversation_that_goes_on_is_not_computed_again() {
    let daemon = with_tiny();
    daemon.post(ROUTE, &request());
    let again = daemon.post(ROUTE, &request()).json();
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > 0, "{again}");
}

#[test]
fn the_request_id_of_the_client_comes_back() {
    let daemon = with_tiny();
    let headers = [("content-type", "application/json"), ("x-request-id", "mine-42")];
    let reply = m40_testkit::http::request_with(daemon.http(), "POST", ROUTE, &headers, b"{}");
    assert_eq!(reply.header("x-request-id"), Some("mine-42"));
}
