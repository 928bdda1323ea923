//! The routes of llama.cpp's server.

use serde_json::{Value, json};

use crate::{endless, with_tiny};

fn events(stream: &mut m40_testkit::http::Stream) -> Vec<Value> {
    let event = || stream.event().map(|event| serde_json::from_str(&event).expect("JSON"));
    std::iter::from_fn(event).collect()
}

#[test]
fn texts_become_tokens_and_tokens_become_texts() {
    let daemon = with_tiny();
    let tokens = daemon.post("/tokenize", &json!({"content": "hello world"})).json();
    assert!(!tokens["tokens"].as_array().unwrap().is_empty());
    let text = daemon.post("/detokenize", &tokens).json();
    assert_eq!(text, json!({"content": "hello world"}));

    let pieces = json!({"content": "hello ü", "with_pieces": true});
    let pieces = daemon.post("/tokenize", &pieces).json();
    let bytes = |piece: &Value| match piece["piece"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => serde_json::from_value(piece["piece"].clone()).unwrap(),
    };
    let joined: Vec<u8> = pieces["tokens"].as_array().unwrap().iter().flat_map(bytes).collect();
    assert_eq!(String::from_utf8(joined).unwrap().trim_start(), "hello ü");

    let unknown = daemon.post("/detokenize", &json!({"tokens": [1, 4_000_000]}));
    assert_eq!((unknown.status, &unknown.json()["error"]["param"]), (400, &json!("tokens")));
}

#[test]
fn a_conversation_becomes_the_prompt_that_is_answered() {
    let daemon = with_tiny();
    let messages = json!([{"role": "user", "content": "hello"}]);
    let prompt = daemon.post("/apply-template", &json!({"messages": messages})).json();
    let prompt = prompt["prompt"].as_str().unwrap();
    assert!(prompt.contains("hello"), "{prompt}");
    let chat = json!({"messages": messages, "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    let chat = daemon.post("/v1/chat/completions", &chat).json();
    let same = json!({"prompt": prompt, "n_predict": 8, "temperature": 0, "ignore_eos": true});
    let same = daemon.post("/completion", &same).json();
    assert_eq!(same["content"], chat["choices"][0]["message"]["content"]);
    assert_eq!(same["tokens_evaluated"], chat["usage"]["prompt_tokens"]);
}

#[test]
fn a_completion_is_the_same_whole_and_streamed_and_of_text_and_tokens() {
    let daemon = with_tiny();
    let asked = json!({"prompt": "hello", "n_predict": 8, "temperature": 0, "ignore_eos": true,
        "n_probs": 2});
    let whole = daemon.post("/completion", &asked).json();
    assert_eq!((&whole["stop_type"], &whole["tokens_predicted"]), (&json!("limit"), &json!(8)));
    let probabilities = whole["completion_probabilities"].as_array().unwrap();
    assert_eq!(probabilities.len(), 8);
    assert!(probabilities.iter().all(|p| p["top_logprobs"].as_array().unwrap().len() == 2));

    let mut streamed = asked.clone();
    streamed["stream"] = json!(true);
    let chunks = events(&mut daemon.post_stream("/completions", &streamed));
    let text: String = chunks.iter().map(|chunk| chunk["content"].as_str().unwrap()).collect();
    assert_eq!(whole["content"], text);
    let stops: Vec<bool> = chunks.iter().map(|chunk| chunk["stop"].as_bool().unwrap()).collect();
    assert!(stops.iter().position(|stop| *stop) == Some(stops.len() - 1), "{stops:?}");

    let special = json!({"content": "hello", "add_special": true});
    let mut by_tokens = asked.clone();
    by_tokens["prompt"] = daemon.post("/tokenize", &special).json()["tokens"].clone();
    assert_eq!(daemon.post("/completion", &by_tokens).json()["content"], whole["content"]);

    let mut stopped = asked;
    let last = text.chars().last().unwrap().to_string();
    stopped["stop"] = json!([last]);
    let stopped = daemon.post("/completion", &stopped).json();
    let told = (&stopped["stop_type"], &stopped["stopping_word"]);
    assert_eq!(told, (&json!("word"), &json!(last)));
}

#[test]
fn a_completion_that_cannot_be_is_refused_by_name() {
    let daemon = with_tiny();
    for (fields, param) in [
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": [4_000_000]}), "prompt"),
        (json!({"prompt": "a", "n_probs": 21}), "n_probs"),
        (json!({"prompt": "a", "grammar": "root ::= \"a\"", "json_schema": {}}), "grammar"),
        (json!({"prompt": {"a": 1}}), "prompt"),
    ] {
        let reply = daemon.post("/completion", &fields);
        assert_eq!(reply.status, 400, "{fields}: {}", reply.body);
        assert_eq!(reply.json()["error"]["param"], param, "{fields}");
    }
    let infill = daemon.post("/infill", &json!({"input_prefix": "a", "input_suffix": "b"}));
    assert_eq!(infill.status, 400, "{}", infill.body);
    assert_eq!(infill.json()["error"]["param"], "input_suffix", "it has no such tokens");
}

#[test]
fn what_a_model_is_and_does_is_told() {
    let daemon = endless(crate::builder());
    let props = daemon.get("/props").json();
    assert_eq!(props["model_alias"], "tiny");
    let context = props["default_generation_settings"]["n_ctx"].as_u64().unwrap();
    assert_eq!(context, 60_000);
    assert!(props["chat_template"].is_string());

    let busy = |slots: &Value| {
        slots.as_array().unwrap().iter().filter(|slot| slot["is_processing"] == true).count()
    };
    let idle = daemon.get("/slots").json();
    assert_eq!(idle.as_array().unwrap().len() as u64, props["total_slots"].as_u64().unwrap());
    assert_eq!(busy(&idle), 0);
    let long = json!({"prompt": "a", "stream": true, "ignore_eos": true, "temperature": 0});
    let mut answer = daemon.post_stream("/completion", &long);
    answer.event().expect("it has begun");
    let slots = daemon.get("/slots?model=tiny&fail_on_no_slot=1").json();
    assert_eq!(busy(&slots), 1);
    assert_eq!(slots[0]["n_ctx"], context);
    assert_eq!(daemon.get("/slots?model=nobody").status, 404);

    let running = daemon.get("/running").json();
    assert_eq!(running["running"][0]["model"], "tiny");
    assert_eq!(running["running"][0]["state"], "ready");
}
