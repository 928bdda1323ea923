//! Tools whose calls are the model's choice, and what of a request cannot hold an answer.

use m40_testkit::daemon::Daemon;
use m40_testkit::gguf::TinyModel;
use m40_testkit::models;
use serde_json::{Value, json};

use crate::{builder, check_healthy, ctl, load, path_str};

const CHAT: &str = "/v1/chat/completions";

fn with_smollm2() -> Daemon {
    let daemon = builder().start();
    ctl(&daemon, &["pull", path_str(&models::smollm2()), "--name", "smollm2"]).ok();
    daemon
}

/// The schema of a tool that knows two cities.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "city": {"enum": ["Ulm", "Bonn"]},
            "days": {"type": "integer", "minimum": 2, "maximum": 9},
        },
        "required": ["city", "days"],
    })
}

/// A conversation in which the model was seen to call, with arguments of no schema.
fn conversation() -> Value {
    let call = |id: &str, city: &str| {
        let arguments = json!({"city": city}).to_string();
        let function = json!({"name": "weather", "arguments": arguments});
        json!({"role": "assistant", "content": null,
            "tool_calls": [{"id": id, "type": "function", "function": function}]})
    };
    let user = |city: &str| json!({"role": "user", "content": format!("Weather in {city}?")});
    json!([user("Paris"), call("1", "Paris"), user("Oslo"), call("2", "Oslo"), user("Rome")])
}

fn request(strict: bool, more: Value) -> Value {
    let function = json!({"name": "weather", "description": "The weather of a city.",
        "parameters": schema(), "strict": strict});
    let mut request = json!({"model": "smollm2", "messages": conversation(), "temperature": 0,
        "max_tokens": 100, "tools": [{"type": "function", "function": function}]});
    request.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
    request
}

/// The calls of an answer: each tool and its arguments.
fn called(message: &Value) -> Vec<(String, Value)> {
    let calls = message["tool_calls"].as_array().map_or(&[][..], Vec::as_slice);
    let call = |call: &Value| {
        let function = &call["function"];
        let text = |key: &str| function[key].as_str().expect("a string").to_owned();
        (text("name"), serde_json::from_str(&text("arguments")).expect("JSON"))
    };
    calls.iter().map(call).collect()
}

#[track_caller]
fn check_strict(arguments: &Value) {
    let city = arguments["city"].as_str().expect("a string");
    assert!(["Ulm", "Bonn"].contains(&city), "{arguments}");
    assert!(arguments["days"].as_u64().is_some_and(|days| (2..=9).contains(&days)), "{arguments}");
    assert_eq!(arguments.as_object().map(serde_json::Map::len), Some(2));
}

#[test]
fn calls_of_strict_tools_are_as_their_schema_says_when_the_model_chooses_to_call() {
    let daemon = with_smollm2();
    let ask = |request: &Value| {
        let reply = daemon.post(CHAT, request);
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()["choices"][0]["message"].clone()
    };
    let free = called(&ask(&request(false, json!({}))));
    assert!(free.iter().any(|(_, arguments)| arguments.get("days").is_none()), "{free:?}");

    let message = ask(&request(true, json!({"parallel_tool_calls": false})));
    let strict = called(&message);
    assert_eq!(strict.len(), 1, "{message}");
    assert_eq!(strict[0].0, "weather");
    check_strict(&strict[0].1);

    let mut stream = daemon
        .post_stream(CHAT, &request(true, json!({"stream": true, "parallel_tool_calls": false})));
    let events = std::iter::from_fn(|| stream.event()).take_while(|event| event != "[DONE]");
    let pieces: String = events
        .filter_map(|event| {
            let event: Value = serde_json::from_str(&event).expect("JSON");
            let call = &event["choices"][0]["delta"]["tool_calls"][0];
            call["function"]["arguments"].as_str().map(str::to_owned)
        })
        .collect();
    assert_eq!(serde_json::from_str::<Value>(&pieces).unwrap(), strict[0].1);

    // Text stays free.
    let mut talk = request(true, json!({"max_tokens": 12}));
    talk["messages"] = json!([{"role": "user", "content": "What is 2 plus 2?"}]);
    let said = ask(&talk);
    assert!(said["content"].as_str().is_some_and(|text| !text.is_empty()), "{said}");
}

#[test]
fn other_apis_hold_calls_to_strict_tools_too() {
    let daemon = with_smollm2();
    let input: Vec<Value> = ["Paris", "Oslo"]
        .iter()
        .flat_map(|city| {
            let arguments = json!({"city": city}).to_string();
            [
                json!({"role": "user", "content": format!("Weather in {city}?")}),
                json!({"type": "function_call", "call_id": city, "name": "weather",
                    "arguments": arguments}),
            ]
        })
        .chain([json!({"role": "user", "content": "Weather in Rome?"})])
        .collect();
    let tool = json!({"type": "function", "name": "weather", "description": "The weather of a city.",
        "parameters": schema(), "strict": true});
    let reply = daemon.post(
        "/v1/responses",
        &json!({"model": "smollm2", "input": input, "tools": [tool], "temperature": 0,
            "max_output_tokens": 100, "parallel_tool_calls": false}),
    );
    let output = reply.json()["output"].clone();
    let calls: Vec<&Value> = output
        .as_array()
        .unwrap_or_else(|| panic!("{}", reply.body))
        .iter()
        .filter(|item| item["type"] == "function_call")
        .collect();
    assert_eq!(calls.len(), 1, "{output}");
    check_strict(&serde_json::from_str(calls[0]["arguments"].as_str().unwrap()).unwrap());

    let messages: Vec<Value> = ["Paris", "Oslo"]
        .iter()
        .flat_map(|city| {
            let call = json!({"type": "tool_use", "id": city, "name": "weather",
                "input": {"city": city}});
            [
                json!({"role": "user", "content": format!("Weather in {city}?")}),
                json!({"role": "assistant", "content": [call]}),
            ]
        })
        .chain([json!({"role": "user", "content": "Weather in Rome?"})])
        .collect();
    let tool = json!({"name": "weather", "description": "The weather of a city.",
        "input_schema": schema(), "strict": true});
    let reply = daemon.post(
        "/v1/messages",
        &json!({"model": "smollm2", "messages": messages, "tools": [tool], "temperature": 0,
            "max_tokens": 100,
            "tool_choice": {"type": "auto", "disable_parallel_tool_use": true}}),
    );
    let content = reply.json()["content"].clone();
    let blocks = content.as_array().unwrap_or_else(|| panic!("{}", reply.body));
    let uses: Vec<&Value> = blocks.iter().filter(|block| block["type"] == "tool_use").collect();
    assert_eq!(uses.len(), 1, "{content}");
    check_strict(&uses[0]["input"]);
}

#[test]
fn what_cannot_hold_an_answer_is_named_as_the_api_calls_it() {
    let mut daemon = load(builder(), &TinyModel::new("llama").context(2048));
    let bad = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}});
    let messages = json!([{"role": "user", "content": "a"}]);
    let fine = json!({"type": "object", "properties": {}});
    let nested = |schema: &Value| {
        json!({"type": "function",
            "function": {"name": schema["type"], "parameters": schema, "strict": true}})
    };
    let other = json!({"type": "function", "function": {"name": "fine", "parameters": fine}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": bad}});
    let flat = json!({"type": "json_schema", "name": "n", "schema": bad});
    for (route, request, param) in [
        (CHAT, json!({"messages": messages, "response_format": format}), "response_format"),
        (
            CHAT,
            json!({"messages": messages, "tools": [other, nested(&bad)]}),
            "tools[1].function.parameters",
        ),
        (
            CHAT,
            json!({"messages": messages, "tools": [nested(&bad)], "tool_choice": "required"}),
            "tools[0].function.parameters",
        ),
        ("/v1/responses", json!({"input": "a", "text": {"format": flat}}), "text.format"),
        (
            "/v1/responses",
            json!({"input": "a", "tools": [
                {"type": "function", "name": "f", "parameters": bad, "strict": true}]}),
            "tools[0].parameters",
        ),
        ("/completion", json!({"prompt": "a", "json_schema": bad}), "json_schema"),
        ("/completion", json!({"prompt": "a", "grammar": "root ::= ("}), "grammar"),
    ] {
        let reply = daemon.post(route, &request);
        assert_eq!(reply.status, 400, "{request}: {}", reply.body);
        let error = &reply.json()["error"];
        assert_eq!(error["param"], param, "{request}: {error}");
        assert!(error["message"].as_str().unwrap().starts_with(param), "{error}");
    }
    for (route, request, says) in [
        ("/api/chat", json!({"model": "tiny", "messages": messages, "format": bad}), "format: "),
        (
            "/v1/messages",
            json!({"max_tokens": 5, "messages": messages,
                "output_config": {"format": {"type": "json_schema", "schema": bad}}}),
            "output_config.format: ",
        ),
        (
            "/v1/messages",
            json!({"max_tokens": 5, "messages": messages,
                "tools": [{"name": "f", "input_schema": bad, "strict": true}]}),
            "tools[0].input_schema: ",
        ),
    ] {
        let reply = daemon.post(route, &request);
        assert_eq!(reply.status, 400, "{request}: {}", reply.body);
        assert!(reply.body.contains(says), "{request}: {}", reply.body);
    }
    check_healthy(&mut daemon);
}
