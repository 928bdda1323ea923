//! OpenAI's API beyond one plain answer: several answers, tools, completions, responses, models.

use std::collections::BTreeMap;
use std::iter;

use m40_testkit::daemon::Daemon;
use m40_testkit::gguf::TinyModel;
use m40_testkit::models;
use serde_json::{Value, json};

use crate::{builder, check_healthy, ctl, endless, load, path_str, tiny, with_tiny, write};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";

#[track_caller]
fn ask(daemon: &Daemon, route: &str, request: &Value) -> Value {
    let reply = daemon.post(route, request);
    assert_eq!(reply.status, 200, "{request}: {}", reply.body);
    reply.json()
}

/// The events of a stream; those before `[DONE]` where the route has it.
fn events(daemon: &Daemon, route: &str, request: &Value) -> Vec<Value> {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let mut stream = daemon.post_stream(route, &request);
    let mut events: Vec<String> = iter::from_fn(|| stream.event()).collect();
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|event| serde_json::from_str(event).expect("an event is JSON")).collect()
}

fn chat(more: Value) -> Value {
    let mut request = json!({
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 8, "ignore_eos": true,
    });
    let more = more.as_object().expect("fields").clone();
    request.as_object_mut().expect("an object").extend(more);
    request
}

#[test]
fn several_answers_differ_by_their_seeds_and_are_the_same_alone_and_streamed() {
    let daemon = with_tiny();
    let content = |seed: u64| {
        let reply = ask(&daemon, CHAT, &chat(json!({"seed": seed})));
        reply["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let alone = [content(7), content(8), content(9)];
    assert_ne!(alone[0], alone[1]);

    let several = chat(json!({"seed": 7, "n": 3, "stream_options": {"include_usage": true}}));
    let whole = ask(&daemon, CHAT, &several);
    let choices = whole["choices"].as_array().unwrap();
    for (index, (choice, alone)) in choices.iter().zip(&alone).enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], **alone);
        assert_eq!(choice["finish_reason"], "length");
    }
    assert_eq!(choices.len(), 3);
    let prompt = whole["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(whole["usage"]["completion_tokens"], 24);
    assert_eq!(whole["usage"]["total_tokens"], prompt + 24);

    let chunks = events(&daemon, CHAT, &several);
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!(usage["usage"]["prompt_tokens"], prompt);
    assert_eq!(usage["usage"]["completion_tokens"], 24);
    let mut texts = BTreeMap::<u64, String>::new();
    let mut finished = 0;
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        let text = texts.entry(choice["index"].as_u64().unwrap()).or_default();
        text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        finished += usize::from(choice["finish_reason"] == "length");
    }
    assert_eq!(finished, 3);
    assert_eq!(texts.into_values().collect::<Vec<_>>(), alone);
}

#[test]
fn a_client_that_leaves_frees_the_places_of_all_of_its_answers() {
    let daemon = endless(builder());
    // All places there are.
    let endless = chat(json!({"n": 8, "stream": true, "max_tokens": null}));
    for _ in 0..2 {
        let mut streams = [0; 2].map(|_| daemon.post_stream(CHAT, &endless));
        for stream in &mut streams {
            // Eight beginnings, and something of an answer.
            (0..9).for_each(|_| assert!(stream.event().is_some()));
        }
    }
    // Answered only when those do not go on: they would take minutes.
    ask(&daemon, CHAT, &chat(json!({})));
}

#[test]
fn tools_and_what_came_of_them_reach_the_template() {
    // It is given messages as they are because it names a format of calls.
    let template = "{# <tool_call> #}{% for t in tools or [] %}{{ t.function.name }}{% endfor %}\
        {% for m in messages %}{{ m.role }}{{ m.content }}{{ m.name or '' }}\
        {% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %}{% endfor %}";
    let mut daemon = load(builder(), &TinyModel::new("llama").chat_template(Some(template)));
    let tokens = |request: Value| ask(&daemon, CHAT, &request)["usage"]["prompt_tokens"].clone();
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}});
    let call = json!({"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\":\"Rome\"}"}});
    let messages = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]);
    // The prompt is this very text, of a token for each byte or more.
    let count = |text: &str| {
        let request = json!({"prompt": text, "max_tokens": 1, "ignore_eos": true});
        ask(&daemon, COMPLETIONS, &request)["usage"]["prompt_tokens"].clone()
    };
    let history = "useraassistantRometoolrainweather";
    let asked = |more: Value| {
        let mut request = chat(more);
        request["messages"] = messages.clone();
        request
    };
    assert_eq!(tokens(asked(json!({}))), count(history));
    assert_eq!(tokens(asked(json!({"tools": [tool]}))), count(&format!("weather{history}")));
    let none = asked(json!({"tools": [tool], "tool_choice": "none"}));
    assert_eq!(tokens(none), count(history));
    check_healthy(&mut daemon);
}

#[test]
fn a_completion_goes_on_from_texts_and_tokens() {
    let daemon = with_tiny();
    let asked = |more: Value| {
        let mut request = json!({"max_tokens": 6, "temperature": 0, "ignore_eos": true});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    };
    let text = |request: Value| {
        ask(&daemon, COMPLETIONS, &request)["choices"][0]["text"].as_str().unwrap().to_owned()
    };
    let whole = ask(&daemon, COMPLETIONS, &asked(json!({"prompt": "one"})));
    assert_eq!(whole["object"], "text_completion");
    assert!(whole["id"].as_str().unwrap().starts_with("cmpl-"));
    let choice = &whole["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!(choice["logprobs"], Value::Null);
    let one = choice["text"].as_str().unwrap();
    let generated = json!({"prompt": "one", "max_tokens": 6, "temperature": 0, "ignore_eos": true});
    assert_eq!(ask(&daemon, "/generate", &generated)["text"], *one);

    let echoed = text(asked(json!({"prompt": "one", "echo": true})));
    assert_eq!(echoed, format!("one{one}"));
    let two = text(asked(json!({"prompt": "two"})));
    let both = ask(&daemon, COMPLETIONS, &asked(json!({"prompt": ["one", "two"], "n": 2})));
    let texts: Vec<&str> =
        both["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts, [one, one, &two, &two]);
    assert_eq!(both["usage"]["completion_tokens"], 24);
    let prompts: u64 = ["one", "two"]
        .map(|prompt| ask(&daemon, COMPLETIONS, &asked(json!({"prompt": prompt}))))
        .iter()
        .map(|reply| reply["usage"]["prompt_tokens"].as_u64().unwrap())
        .sum();
    assert_eq!(both["usage"]["prompt_tokens"], prompts);

    let tokens = text(asked(json!({"prompt": [1, 5, 9]})));
    let lists = ask(&daemon, COMPLETIONS, &asked(json!({"prompt": [[1, 5, 9], [1, 5]]})));
    assert_eq!(lists["choices"][0]["text"], *tokens);
    assert_eq!(lists["usage"]["prompt_tokens"], 5);

    let streamed =
        asked(json!({"prompt": "one", "echo": true, "stream_options": {"include_usage": true}}));
    let chunks = events(&daemon, COMPLETIONS, &streamed);
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(6)));
    let joined: String = chunks.iter().map(|c| c["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(joined, echoed);
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn a_completion_without_a_length_has_sixteen_tokens_and_their_log_probabilities_on_demand() {
    let daemon = with_tiny();
    let request = json!({"prompt": "one", "logprobs": 2, "ignore_eos": true, "temperature": 0});
    let whole = ask(&daemon, COMPLETIONS, &request);
    let logprobs = &whole["choices"][0]["logprobs"];
    let length = |key: &str| logprobs[key].as_array().unwrap().len();
    let keys = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
    assert_eq!(keys.map(length), [16; 4]);
    assert_eq!(logprobs["text_offset"][0], 0);
    let streamed: usize = events(&daemon, COMPLETIONS, &request)
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["tokens"].as_array())
        .map(Vec::len)
        .sum();
    assert_eq!(streamed, 16);
}

#[test]
fn what_a_completion_cannot_do_is_refused_by_name() {
    let mut daemon = with_tiny();
    for (request, param) in [
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [999_999]}), "prompt"),
        (json!({"prompt": {"a": 1}}), "prompt"),
        (json!({"prompt": "a", "n": 9}), "n"),
        (json!({"prompt": "a", "n": 2, "best_of": 4}), "best_of"),
        (json!({"prompt": vec!["a"; 65]}), "prompt"),
        (json!({"prompt": "a", "logprobs": 21}), "logprobs"),
        (json!({"prompt": "a", "logprobs": 1, "echo": true}), "logprobs"),
        (json!({"prompt": [1], "echo": true}), "echo"),
        (json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (json!({"prompt": [1], "suffix": "b"}), "suffix"),
    ] {
        let reply = daemon.post(COMPLETIONS, &request);
        assert_eq!(reply.status, 400, "{request}: {}", reply.body);
        assert_eq!(reply.json()["error"]["param"], param, "{request}: {}", reply.body);
    }
    check_healthy(&mut daemon);
}

/// The events of a response, each of which has its name.
fn named_events(daemon: &Daemon, request: &Value) -> Vec<Value> {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let mut stream = daemon.post_stream(RESPONSES, &request);
    let mut events = vec![];
    while let Some(line) = stream.line() {
        let name = line.strip_prefix("event: ").expect("a name").to_owned();
        let data = stream.line().expect("an event has data");
        let data = data.strip_prefix("data: ").expect("data");
        let event: Value = serde_json::from_str(data).expect("an event is JSON");
        assert_eq!(event["type"], *name);
        assert_eq!(event["sequence_number"], events.len());
        events.push(event);
    }
    events
}

#[test]
fn a_response_is_items_whole_and_streamed() {
    let daemon = with_tiny();
    let request = json!({
        "model": "tiny", "instructions": "be brief", "input": "hello", "max_output_tokens": 8,
        "temperature": 0, "ignore_eos": true, "store": true, "metadata": {"a": "b"},
    });
    let whole = ask(&daemon, RESPONSES, &request);
    assert!(whole["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("incomplete")));
    assert_eq!(whole["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!((&whole["store"], &whole["metadata"]["a"]), (&json!(false), &json!("b")));
    assert_eq!(whole["usage"]["output_tokens"], 8);
    let item = &whole["output"][0];
    assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("assistant")));
    let text = item["content"][0]["text"].as_str().unwrap();
    let same = json!({"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "max_tokens": 8, "temperature": 0, "ignore_eos": true});
    assert_eq!(ask(&daemon, CHAT, &same)["choices"][0]["message"]["content"], *text);

    let events = named_events(&daemon, &request);
    let names: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let begin = ["created", "in_progress", "output_item.added", "content_part.added"];
    assert!(names.iter().zip(begin).all(|(name, want)| *name == format!("response.{want}")));
    let end = ["output_text.done", "content_part.done", "output_item.done", "incomplete"];
    let (deltas, ends) = names.split_at(names.len() - end.len());
    assert!(ends.iter().zip(end).all(|(name, want)| *name == format!("response.{want}")));
    assert!(deltas[begin.len()..].iter().all(|name| *name == "response.output_text.delta"));
    let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(deltas, text);
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["output"][0]["content"][0]["text"], *text);
    assert_eq!(last["usage"]["output_tokens"], 8);
    assert_eq!(events[0]["response"]["id"], last["id"]);
}

#[test]
fn what_a_response_cannot_do_is_refused_by_name() {
    let mut daemon = with_tiny();
    for (request, param) in [
        (json!({"input": "a", "previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"input": "a", "conversation": "conv_1"}), "conversation"),
        (json!({"input": "a", "background": true}), "background"),
        (json!({"input": []}), "input"),
        (json!({"input": 7}), "input"),
        (json!({"input": "a", "max_output_tokens": 0}), "max_output_tokens"),
        (json!({"input": "a", "tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"input": "a", "tools": [7]}), "tools[0]"),
        (json!({"input": "a", "tool_choice": "required"}), "tool_choice"),
        (json!({"input": "a", "text": {"format": {"type": "xml"}}}), "text"),
        (json!({"input": "a", "reasoning": {"effort": "some"}}), "reasoning.effort"),
    ] {
        let reply = daemon.post(RESPONSES, &request);
        assert_eq!(reply.status, 400, "{request}: {}", reply.body);
        assert_eq!(reply.json()["error"]["param"], param, "{request}: {}", reply.body);
    }
    check_healthy(&mut daemon);
}

#[test]
fn models_are_listed_and_found_by_name() {
    let daemon = with_tiny();
    let list = daemon.get("/v1/models").json();
    let model = &list["data"][0];
    assert_eq!((&model["id"], &model["object"]), (&json!("tiny"), &json!("model")));
    assert_eq!((&model["context_length"], &model["max_model_len"]), (&json!(256), &json!(256)));
    let size = std::fs::metadata(daemon.dir().join("tiny.gguf")).unwrap().len();
    assert_eq!(model["meta"]["size"], size);
    assert_eq!(model["meta"]["architecture"], "llama");
    assert_eq!(model["capabilities"], json!(["completion"]));
    assert_eq!(daemon.get("/v1/models/tiny").json(), *model);
    let unknown = daemon.get("/v1/models/org/other");
    assert_eq!(unknown.status, 404, "{}", unknown.body);
    assert_eq!(unknown.json()["error"]["code"], "model_not_found");
}

#[test]
fn a_model_that_is_not_in_memory_is_told_as_it_would_be() {
    let builder = builder().config("[models]\ncontext_tokens_max = 100");
    let path = tiny(builder.dir(), "tiny.gguf");
    let daemon = builder.start();
    ctl(&daemon, &["pull", path_str(&path)]).ok();
    let before = daemon.get("/v1/models/tiny").json();
    assert_eq!(before["status"], "stored");
    assert_eq!((&before["context_length"], &before["max_model_len"]), (&json!(100), &json!(100)));
    assert_eq!(before["meta"]["n_ctx_train"], 256);
    assert_eq!(before["capabilities"], json!(["completion"]));
    ctl(&daemon, &["load", "tiny"]).ok();
    let mut after = daemon.get("/v1/models/tiny").json();
    assert_eq!(after["status"], "ready");
    after["status"] = json!("stored");
    assert_eq!(after, before);
}

#[test]
fn a_completion_with_a_suffix_fills_in_before_it() {
    let builder = builder();
    let keys = ["fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id"];
    let marks = [20_u32, 21, 22];
    let file = TinyModel::new("llama").builder();
    let file = keys
        .iter()
        .zip(marks)
        .fold(file, |file, (key, token)| file.meta(&format!("tokenizer.ggml.{key}"), token));
    let path = write(builder.dir(), "fills.gguf", &file.build());
    let daemon = builder.start();
    ctl(&daemon, &["load", path_str(&path)]).ok();
    let can = daemon.get("/v1/models/fills").json()["capabilities"].clone();
    assert_eq!(can, json!(["completion", "insert"]));
    let mut request = json!({"model": "fills", "prompt": "hello", "suffix": "world",
        "temperature": 0, "max_tokens": 8, "ignore_eos": true});
    let between = ask(&daemon, COMPLETIONS, &request)["choices"][0]["text"].clone();
    request["echo"] = json!(true);
    let echoed = ask(&daemon, COMPLETIONS, &request)["choices"][0]["text"].clone();
    assert_eq!(echoed, format!("hello{}", between.as_str().unwrap()));

    let tokens = |text: &str| {
        let told = daemon.post("/tokenize", &json!({"model": "fills", "content": text})).json();
        told["tokens"].as_array().expect("tokens").clone()
    };
    let [first, second, third] = marks.map(|token| vec![json!(token)]);
    let prompt = [first, tokens("hello"), second, tokens("world"), third].concat();
    let by_hand = json!({"model": "fills", "prompt": prompt, "temperature": 0, "max_tokens": 8,
        "ignore_eos": true});
    assert_eq!(ask(&daemon, COMPLETIONS, &by_hand)["choices"][0]["text"], between);

    let infill = json!({"model": "fills", "input_prefix": "hel", "prompt": "lo",
        "input_suffix": "world", "temperature": 0, "n_predict": 8, "ignore_eos": true});
    assert_eq!(ask(&daemon, "/infill", &infill)["content"], between);
}

#[test]
fn smollm2_answers_completions_and_responses() {
    let daemon = builder().start();
    let file = models::smollm2();
    ctl(&daemon, &["pull", path_str(&file), "--name", "smollm2"]).ok();
    let request = json!({"model": "smollm2", "prompt": "The capital of France is",
        "temperature": 0, "max_tokens": 4});
    assert_eq!(ask(&daemon, COMPLETIONS, &request)["choices"][0]["text"], " Paris.\n\n");
    let input = json!([{"role": "user", "content": [
        {"type": "input_text", "text": "What is 2 plus 2? Answer with a number."}]}]);
    let response = ask(
        &daemon,
        RESPONSES,
        &json!({"model": "smollm2", "input": input,
        "temperature": 0, "max_output_tokens": 60}),
    );
    assert_eq!(response["status"], "completed", "{response}");
    let text = response["output"][0]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains('4'), "{text}");
}
