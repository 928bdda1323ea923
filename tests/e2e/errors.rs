//! Bad requests: the right status, OpenAI's error shape, the parameter's name, and a daemon that
//! stays up.

use m40_testkit::http;
use serde_json::{Value, json};

use crate::{check_healthy, ctl, path_str, with_tiny, write};

const CHAT: &str = "/v1/chat/completions";

#[track_caller]
fn check_error(reply: &http::Reply, status: u16, kind: &str) -> Value {
    assert_eq!(reply.status, status, "{}", reply.body);
    let error = reply.json()["error"].clone();
    assert_eq!(error["type"], kind, "{error}");
    let keys: Vec<&String> = error.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["message", "type", "param", "code"]);
    let message = error["message"].as_str().expect("a text");
    assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
    assert!(reply.header("x-request-id").is_some());
    error
}

#[test]
fn a_bad_parameter_is_named() {
    let mut daemon = with_tiny();
    let user = json!([{"role": "user", "content": "a"}]);
    let cases = [
        (json!({"messages": user, "temperature": -1}), "temperature"),
        (json!({"messages": user, "temperature": "hot"}), "temperature"),
        (json!({"messages": user, "top_p": 2}), "top_p"),
        (json!({"messages": user, "max_tokens": 0}), "max_tokens"),
        (json!({"messages": user, "max_tokens": -5}), "max_tokens"),
        (json!({"messages": user, "n": 9}), "n"),
        (json!({"messages": user, "stop": [""]}), "stop"),
        (json!({"messages": user, "stop": 7}), "stop"),
        (json!({"messages": user, "stream": "yes"}), "stream"),
        (json!({"messages": user, "top_logprobs": 5}), "top_logprobs"),
        (json!({"messages": user, "logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"messages": user, "logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"messages": user, "logit_bias": {"999999": 1}}), "logit_bias"),
        (json!({"messages": user, "tools": [{"type": "function"}]}), "tools[0].function"),
        (json!({"messages": user, "tool_choice": "required"}), "tool_choice"),
        (json!({"messages": user, "reasoning_effort": "some"}), "reasoning_effort"),
        (json!({"messages": user, "response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [{"role": "wizard", "content": "a"}]}), "messages[0].role"),
        (json!({"messages": [{"content": "a"}]}), "messages[0]"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages[0].content",
        ),
    ];
    for (request, param) in cases {
        let error = check_error(&daemon.post(CHAT, &request), 400, "invalid_request_error");
        assert_eq!(error["param"], param, "{request}: {error}");
        assert!(error["message"].as_str().unwrap().contains(param.split('[').next().unwrap()));
    }
    let no_prompt = daemon.post("/generate", &json!({}));
    let error = check_error(&no_prompt, 400, "invalid_request_error");
    assert!(error["message"].as_str().unwrap().contains("prompt"), "{error}");
    let empty = daemon.post("/generate", &json!({"prompt": ""}));
    let error = check_error(&empty, 400, "invalid_request_error");
    assert_eq!(error["param"], "prompt");
    check_healthy(&mut daemon);
}

#[test]
fn every_other_mistake_has_its_status() {
    let mut daemon = with_tiny();
    let address = daemon.http();
    let json_type = ("content-type", "application/json");
    let send = |method: &str, path: &str, header: (&str, &str), body: &[u8]| {
        http::request_with(address, method, path, &[header], body)
    };
    let bad = "invalid_request_error";
    check_error(&send("POST", CHAT, json_type, b"{\"messages\": ["), 400, bad);
    check_error(&send("POST", CHAT, json_type, b""), 400, bad);
    check_error(&send("POST", CHAT, json_type, b"\xff\xfe"), 400, bad);
    check_error(&send("POST", CHAT, ("content-type", "text/plain"), b"{}"), 415, bad);
    check_error(&send("POST", CHAT, ("x-none", "1"), b"{}"), 415, bad);
    check_error(&send("GET", CHAT, json_type, b""), 405, bad);
    check_error(&send("DELETE", "/health", json_type, b""), 405, bad);
    check_error(&send("GET", "/nowhere", json_type, b""), 404, "not_found_error");
    let user = json!([{"role": "user", "content": "a"}]);
    let unknown = daemon.post(CHAT, &json!({"model": "gpt-7", "messages": user}));
    let error = check_error(&unknown, 404, "not_found_error");
    assert_eq!((&error["code"], &error["param"]), (&json!("model_not_found"), &json!("model")));
    let traversal = json!({"model": "../../etc/passwd", "messages": user});
    check_error(&daemon.post(CHAT, &traversal), 404, "not_found_error");
    check_healthy(&mut daemon);
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let mut daemon = crate::load(crate::builder(), &m40_testkit::gguf::TinyModel::new("llama"));
    let address = daemon.http();
    let headers = [("content-type", "application/json")];
    let big = vec![b' '; (16 << 20) + 1];
    let reply = http::request_with(address, "POST", CHAT, &headers, &big);
    let error = check_error(&reply, 413, "invalid_request_error");
    assert!(error["message"].as_str().unwrap().contains("16 MiB"), "{error}");
    // The same in chunks, without a declared length.
    let mut chunked =
        b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
        transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            .to_vec();
    let chunk = [b"100000\r\n".to_vec(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    for _ in 0..17 {
        chunked.extend(&chunk);
    }
    let answer = http::raw(address, &chunked);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    check_healthy(&mut daemon);
}

#[test]
fn a_model_that_cannot_be_loaded_is_the_servers_failure() {
    let mut daemon = crate::builder().start();
    let file = crate::tiny(daemon.dir(), "t.gguf");
    ctl(&daemon, &["pull", path_str(&file)]).ok();
    // The blob is another link to the same file, which somebody damages.
    write(daemon.dir(), "t.gguf", b"damaged");
    let reply = daemon.post("/generate", &json!({"model": "t", "prompt": "a"}));
    let error = check_error(&reply, 500, "server_error");
    assert_eq!(error["code"], "model_load_failed");
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    check_healthy(&mut daemon);
}

#[test]
fn a_template_that_fails_is_reported_with_its_line() {
    let model = m40_testkit::gguf::TinyModel::new("llama")
        .chat_template(Some("{{ messages[0].role }}\n{{ messages[0].nothing.at.all }}"));
    let mut daemon = crate::load(crate::builder(), &model);
    let user = json!([{"role": "user", "content": "a"}]);
    let error =
        check_error(&daemon.post(CHAT, &json!({"messages": user})), 400, "invalid_request_error");
    assert!(error["message"].as_str().unwrap().contains("line 2"), "{error}");
    check_healthy(&mut daemon);
}
