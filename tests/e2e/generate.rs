//! `POST /generate`

use m40_testkit::daemon::Daemon;
use serde_json::{Value, json};

use crate::{ctl, path_str, tiny, with_tiny};

fn generate(daemon: &Daemon, request: &Value) -> Value {
    let reply = daemon.post("/generate", request);
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

#[test]
fn the_pieces_of_a_stream_are_the_whole_answer() {
    let daemon = with_tiny();
    let mut request =
        json!({"prompt": "once", "max_tokens": 24, "temperature": 0, "ignore_eos": true});
    let whole = generate(&daemon, &request);
    assert_eq!(whole["model"], "tiny");
    assert_eq!(whole["finish_reason"], "length");
    assert_eq!(whole["usage"]["completion_tokens"], 24);
    assert!(whole["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);

    request["stream"] = json!(true);
    let mut stream = daemon.post_stream("/generate", &request);
    let lines: Vec<Value> = std::iter::from_fn(|| stream.line())
        .map(|line| serde_json::from_str(&line).unwrap())
        .collect();
    let (last, pieces) = lines.split_last().unwrap();
    let text: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
    assert_eq!(whole["text"], text);
    assert_eq!((&last["done"], &last["usage"]["completion_tokens"]), (&json!(true), &json!(24)));
}

#[test]
fn a_seed_makes_an_answer_repeatable() {
    let daemon = with_tiny();
    let request = |seed: u64| {
        json!({"prompt": "once", "max_tokens": 16, "temperature": 1.5, "top_k": 0, "min_p": 0,
               "top_p": 1, "seed": seed, "ignore_eos": true})
    };
    let first = generate(&daemon, &request(7))["text"].clone();
    assert_eq!(generate(&daemon, &request(7))["text"], first);
    assert_ne!(generate(&daemon, &request(8))["text"], first);
}

#[test]
fn a_stop_string_ends_the_answer_and_is_not_part_of_it() {
    let daemon = with_tiny();
    let mut request =
        json!({"prompt": "once", "max_tokens": 24, "temperature": 0, "ignore_eos": true});
    let whole = generate(&daemon, &request)["text"].as_str().unwrap().to_owned();
    let middle: Vec<char> = whole.chars().skip(whole.chars().count() / 2).take(3).collect();
    let stop: String = middle.into_iter().collect();
    request["stop"] = json!(stop);
    let stopped = generate(&daemon, &request);
    assert_eq!(stopped["finish_reason"], "stop");
    assert_eq!(stopped["text"], whole[..whole.find(&stop).unwrap()]);
}

#[test]
fn a_bias_bans_a_token() {
    let daemon = with_tiny();
    let ask = |bias: Value| {
        let request = json!({
            "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "temperature": 0,
            "logprobs": true, "top_logprobs": 2, "logit_bias": bias, "ignore_eos": true,
        });
        let reply = daemon.post("/v1/chat/completions", &request);
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()["choices"][0]["logprobs"]["content"][0].clone()
    };
    let free = ask(json!({}));
    // The tiny vocabulary begins with the bytes, so one of these is always the favourite.
    let all_but_one: serde_json::Map<String, Value> =
        (0..64).filter(|id| *id != 33).map(|id| (id.to_string(), json!(-100))).collect();
    let biased = ask(Value::Object(all_but_one.clone()));
    assert_eq!(free["top_logprobs"], biased["top_logprobs"], "bias must not change logprobs");
    let mut favoured = all_but_one;
    favoured.insert("33".to_owned(), json!(100));
    assert_ne!(ask(Value::Object(favoured))["token"], free["token"]);
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    let mut daemon = with_tiny();
    let request = json!({"prompt": "word ".repeat(2000)});
    let reply = daemon.post("/generate", &request);
    assert_eq!(reply.status, 400, "{}", reply.body);
    let error = &reply.json()["error"];
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("256 tokens"), "{message}");
    let asked = message.split(" tokens long").next().unwrap().rsplit(' ').next().unwrap();
    assert!(asked.parse::<u32>().unwrap() >= 256, "{message}");
    assert_eq!(error["param"], "prompt");
    assert_eq!(error["code"], "context_length_exceeded");
    crate::check_healthy(&mut daemon);
}

#[test]
fn the_model_may_be_left_out_only_while_exactly_one_is_loaded() {
    let daemon = crate::builder().start();
    let ask = || daemon.post("/generate", &json!({"prompt": "a", "max_tokens": 1}));
    let none = ask();
    assert_eq!(none.status, 400);
    assert!(none.body.contains("no model is loaded"), "{}", none.body);
    for file in ["a.gguf", "b.gguf"] {
        let file = tiny(daemon.dir(), file);
        assert_eq!(ask().status == 200, file.ends_with("b.gguf"));
        ctl(&daemon, &["load", path_str(&file)]).ok();
    }
    let several = ask();
    assert_eq!(several.status, 400);
    assert!(several.body.contains("a, b"), "{}", several.body);
    assert_eq!(several.json()["error"]["param"], "model");
    let named = daemon.post("/generate", &json!({"model": "b", "prompt": "a", "max_tokens": 1}));
    assert_eq!(named.json()["model"], "b");
}

#[test]
fn a_stored_model_is_loaded_by_the_request_that_names_it() {
    let daemon = crate::builder().start();
    let file = tiny(daemon.dir(), "t.gguf");
    ctl(&daemon, &["pull", path_str(&file)]).ok();
    let models = daemon.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "t");
    assert_eq!(models["data"][0]["status"], "stored");
    let reply = daemon.post("/generate", &json!({"model": "t", "prompt": "a", "max_tokens": 1}));
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(daemon.get("/v1/models").json()["data"][0]["status"], "ready");
}
