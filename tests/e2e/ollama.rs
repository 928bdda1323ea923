//! Ollama's API: the shapes that its clients read, and what their words do.

use m40_testkit::daemon::{Builder, Daemon};
use m40_testkit::gguf::TinyModel;
use m40_testkit::http::{Reply, request, request_with};
use m40_testkit::models;
use m40_testkit::origin::Origin;
use serde_json::{Value, json};

use crate::sources::{at, ollama as registry, sha256, until};
use crate::{builder, check_healthy, ctl, path_str, tiny, with_tiny, write};

/// A question with a short answer that is always the same.
fn short(model: &str) -> Value {
    json!({"model": model, "stream": false, "options": {"temperature": 0, "num_predict": 8}})
}

fn generate(model: &str, prompt: &str) -> Value {
    let mut value = short(model);
    value["prompt"] = json!(prompt);
    value
}

fn chat(model: &str, content: &str) -> Value {
    let mut value = short(model);
    value["messages"] = json!([{"role": "user", "content": content}]);
    value
}

#[track_caller]
fn ok(daemon: &Daemon, path: &str, body: &Value) -> Value {
    let reply = daemon.post(path, body);
    assert_eq!(reply.status, 200, "{path}: {}", reply.body);
    reply.json()
}

#[track_caller]
fn refused(reply: &Reply, status: u16, says: &str) {
    assert_eq!(reply.status, status, "{}", reply.body);
    let error = reply.json();
    assert_eq!(error.as_object().map(serde_json::Map::len), Some(1), "{error}");
    let text = error["error"].as_str().expect("the shape of Ollama");
    assert!(text.contains(says), "{text:?} lacks {says:?}");
}

fn lines(daemon: &Daemon, path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let mut stream = daemon.post_stream(path, &body);
    assert_eq!(stream.status, 200);
    let lines = std::iter::from_fn(|| stream.line());
    lines.map(|line| serde_json::from_str(&line).expect("a line is JSON")).collect()
}

/// The names of the models in memory.
fn in_memory(daemon: &Daemon) -> Vec<String> {
    let ps = daemon.get("/api/ps").json();
    let models = ps["models"].as_array().expect("a list").clone();
    models.iter().map(|model| model["name"].as_str().expect("a name").to_owned()).collect()
}

/// A daemon whose clients may change what is here.
fn managing() -> Builder {
    builder().http("allow_model_management = true")
}

#[test]
fn clients_find_it_by_its_greeting_and_version() {
    let daemon = builder().start();
    let greeting = daemon.get("/");
    assert_eq!((greeting.status, greeting.body.as_str()), (200, "Ollama is running"));
    assert_eq!(request(daemon.http(), "HEAD", "/", None).status, 200);
    assert_eq!(request(daemon.http(), "HEAD", "/api/tags", None).status, 200);
    let version = daemon.get("/api/version").json()["version"].as_str().unwrap().to_owned();
    assert!(version.split('.').all(|part| part.parse::<u32>().is_ok()), "{version}");
    refused(&request(daemon.http(), "DELETE", "/api/tags", None), 405, "DELETE");
    refused(&daemon.get("/api/nothing"), 404, "/api/nothing");
}

#[test]
fn an_answer_is_the_same_whole_and_in_lines_with_its_figures_at_the_end() {
    let daemon = with_tiny();
    for (path, asked) in
        [("/api/generate", generate("tiny", "hello")), ("/api/chat", chat("tiny", "hello"))]
    {
        let text = |value: &Value| {
            let text = if path == "/api/chat" {
                assert_eq!(value["message"]["role"], "assistant");
                &value["message"]["content"]
            } else {
                &value["response"]
            };
            text.as_str().unwrap().to_owned()
        };
        let whole = ok(&daemon, path, &asked);
        assert_eq!((&whole["model"], &whole["done"]), (&json!("tiny"), &json!(true)));
        assert!(whole["created_at"].as_str().unwrap().ends_with('Z'));
        let parts = lines(&daemon, path, &asked);
        let (last, pieces) = parts.split_last().unwrap();
        assert!(pieces.iter().all(|piece| piece["done"] == false && !text(piece).is_empty()));
        assert_eq!(pieces.iter().map(text).collect::<String>(), text(&whole));
        for end in [&whole, last] {
            assert_eq!((&end["done_reason"], &end["eval_count"]), (&json!("length"), &json!(8)));
            let times =
                ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"];
            let times = times.map(|time| end[time].as_u64().unwrap_or_else(|| panic!("{time}")));
            assert!(times[1..].iter().all(|time| *time <= times[0]), "{times:?}");
            assert!(end["prompt_eval_count"].as_u64().unwrap() > 0);
        }
        assert_eq!(text(last), "");
    }
}

#[test]
fn models_are_found_with_and_without_a_tag_and_in_capitals() {
    let daemon = with_tiny();
    for name in ["tiny", "tiny:latest", "Tiny", "TINY:latest"] {
        assert_eq!(ok(&daemon, "/api/generate", &generate(name, "a"))["model"], name);
    }
    for path in ["/api/generate", "/api/chat", "/api/show"] {
        let none = json!({"model": "other:7b", "prompt": "a"});
        refused(&daemon.post(path, &none), 404, "model 'other:7b' not found");
        refused(&daemon.post(path, &json!({})), 400, "model is required");
        let nothing = request_with(daemon.http(), "POST", path, &[], b"");
        refused(&nothing, 400, "missing request body");
    }
}

#[test]
fn what_curl_sends_is_taken_but_not_from_pages_of_other_sites() {
    let daemon = with_tiny();
    let body = generate("tiny", "a").to_string();
    let post = |headers: &[(&str, &str)]| {
        request_with(daemon.http(), "POST", "/api/generate", headers, body.as_bytes())
    };
    let form = ("content-type", "application/x-www-form-urlencoded");
    assert_eq!(post(&[form]).status, 200);
    assert_ne!(post(&[form, ("origin", "https://elsewhere.example")]).status, 200);
}

#[test]
fn an_empty_prompt_loads_and_unloads() {
    let daemon = builder().start();
    ctl(&daemon, &["pull", path_str(&tiny(daemon.dir(), "t.gguf"))]).ok();
    assert_eq!(in_memory(&daemon), [""; 0]);
    let loaded = ok(&daemon, "/api/generate", &json!({"model": "t"}));
    assert_eq!((&loaded["done_reason"], &loaded["response"]), (&json!("load"), &json!("")));
    assert_eq!(in_memory(&daemon), ["t:latest"]);
    let unload = json!({"model": "t", "messages": [], "keep_alive": 0});
    let unloaded = ok(&daemon, "/api/chat", &unload);
    assert_eq!(unloaded["done_reason"], "unload");
    assert_eq!(unloaded["message"], json!({"role": "assistant", "content": ""}));
    assert_eq!(in_memory(&daemon), [""; 0]);
    // It need not be there for that.
    assert_eq!(ok(&daemon, "/api/chat", &unload)["done_reason"], "unload");
}

#[test]
fn a_request_says_how_long_its_model_stays() {
    let daemon = builder().start();
    ctl(&daemon, &["pull", path_str(&tiny(daemon.dir(), "t.gguf"))]).ok();
    let expires = |keep_alive: Value| {
        let mut asked = generate("t", "a");
        asked["keep_alive"] = keep_alive;
        ok(&daemon, "/api/generate", &asked);
        let ps = daemon.get("/api/ps").json();
        ps["models"][0]["expires_at"].as_str().expect("it is in memory")[..4].to_owned()
    };
    let now = &ok(&daemon, "/api/generate", &generate("t", "a"))["created_at"];
    let this_year = &now.as_str().unwrap()[..4];
    assert!(expires(json!(-1)).as_str() > "2200");
    assert!(expires(json!("87600h")).as_str() > this_year);
    assert!(expires(json!("1h")).as_str() < "2200");
    let mut last = generate("t", "a");
    last["keep_alive"] = json!("0s");
    ok(&daemon, "/api/generate", &last);
    until("unloaded", || in_memory(&daemon).is_empty());
    last["keep_alive"] = json!("soon");
    refused(&daemon.post("/api/generate", &last), 400, "soon");
}

#[test]
fn what_goes_on_from_a_context_knows_what_was_said() {
    let daemon = with_tiny();
    let first = ok(&daemon, "/api/generate", &generate("tiny", "hello"));
    let context = first["context"].as_array().unwrap().clone();
    let count = |value: &Value, key: &str| value[key].as_u64().unwrap();
    let said = count(&first, "prompt_eval_count") + count(&first, "eval_count");
    assert_eq!(context.len() as u64, said);
    let mut second = generate("tiny", "more");
    second["context"] = json!(context);
    let second = ok(&daemon, "/api/generate", &second);
    assert!(count(&second, "prompt_eval_count") > said);
    let longer = second["context"].as_array().unwrap();
    assert_eq!(longer[..context.len()], context[..]);

    let mut raw = generate("tiny", "hello");
    raw["raw"] = json!(true);
    let reply = ok(&daemon, "/api/generate", &raw);
    assert_eq!(reply["context"], Value::Null);
    assert!(count(&reply, "prompt_eval_count") < count(&first, "prompt_eval_count"));
    raw["system"] = json!("be brief");
    refused(&daemon.post("/api/generate", &raw), 400, "raw mode does not support");
    let mut unknown = generate("tiny", "a");
    unknown["context"] = json!([4_000_000_000_u32]);
    refused(&daemon.post("/api/generate", &unknown), 400, "there is no token 4000000000");
}

#[test]
fn a_request_brings_its_own_system_prompt_and_template() {
    let daemon = with_tiny();
    let count =
        |asked: &Value| ok(&daemon, "/api/generate", asked)["prompt_eval_count"].as_u64().unwrap();
    let plain = generate("tiny", "hello");
    let mut with_system = plain.clone();
    with_system["system"] = json!("be brief");
    assert!(count(&with_system) > count(&plain));
    let mut short = plain.clone();
    short["template"] = json!("{{ messages[-1].content }}");
    assert!(count(&short) < count(&plain));
    short["template"] = json!("{% for %}");
    refused(&daemon.post("/api/generate", &short), 400, "template");
}

#[test]
fn num_ctx_bounds_a_request_and_old_messages_make_room() {
    let daemon = with_tiny();
    let mut asked = generate("tiny", "hello");
    asked["options"] = json!({"temperature": 0, "num_ctx": 40, "num_predict": -1});
    let whole = ok(&daemon, "/api/generate", &asked);
    let count = |key: &str| whole[key].as_u64().unwrap();
    assert!(count("prompt_eval_count") + count("eval_count") <= 40, "{whole}");
    let ps = daemon.get("/api/ps").json();
    assert_eq!(ps["models"][0]["context_length"], 256, "it was not loaded again");

    let mut long = chat("tiny", "the last question");
    let old = json!({"role": "user", "content": "word ".repeat(100)});
    let answer = json!({"role": "assistant", "content": "yes"});
    let last = long["messages"][0].clone();
    long["messages"] = json!([old, answer, last]);
    let got = ok(&daemon, "/api/chat", &long)["prompt_eval_count"].as_u64().unwrap();
    assert_eq!(
        Some(got),
        ok(&daemon, "/api/chat", &chat("tiny", "the last question"))["prompt_eval_count"].as_u64()
    );
    long["truncate"] = json!(false);
    refused(&daemon.post("/api/chat", &long), 400, "256 tokens");
}

#[test]
fn options_and_formats_are_read_as_ollama_reads_them() {
    let daemon = with_tiny();
    let with = |key: &str, value: Value| {
        let mut asked = generate("tiny", "hello");
        asked[key] = value;
        daemon.post("/api/generate", &asked)
    };
    let unknown = json!({"temperature": 0, "num_predict": 2, "mirostat": 1, "num_gpu": 99});
    assert_eq!(with("options", unknown).json()["eval_count"], 2);
    refused(&with("options", json!({"top_p": "x"})), 400, "option \"top_p\" must be of type");
    refused(&with("format", json!("xml")), 400, "invalid format");
    refused(&with("images", json!(["aGk="])), 400, "\"tiny\" does not support images");
    refused(&with("suffix", json!("tail")), 400, "\"tiny\" does not support insert");
    refused(&with("think", json!(true)), 400, "\"tiny\" does not support thinking");
    assert_eq!(with("think", json!(false)).status, 200);
    assert_eq!(with("images", json!([])).status, 200);
    let mut tools = chat("tiny", "hello");
    tools["tools"] = json!([{"type": "function", "function": {"name": "f"}}]);
    refused(&daemon.post("/api/chat", &tools), 400, "\"tiny\" does not support tools");
}

#[test]
fn log_probabilities_come_when_they_are_asked_for() {
    let daemon = with_tiny();
    let mut asked = generate("tiny", "hello");
    assert_eq!(ok(&daemon, "/api/generate", &asked)["logprobs"], Value::Null);
    asked["logprobs"] = json!(true);
    asked["top_logprobs"] = json!(2);
    let whole = ok(&daemon, "/api/generate", &asked);
    let tokens = whole["logprobs"].as_array().unwrap();
    assert_eq!(tokens.len(), 8);
    for token in tokens {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"], "greedy");
    }
    let streamed: usize = lines(&daemon, "/api/generate", &asked)
        .iter()
        .filter_map(|line| line["logprobs"].as_array().map(Vec::len))
        .sum();
    assert_eq!(streamed, 8);
    asked["top_logprobs"] = json!(21);
    refused(&daemon.post("/api/generate", &asked), 400, "between 0 and 20");
}

#[test]
fn lists_and_details_are_true_to_the_file_and_the_ledger() {
    let daemon = builder().start();
    let file = tiny(daemon.dir(), "t.gguf");
    ctl(&daemon, &["pull", path_str(&file)]).ok();
    let tags = daemon.get("/api/tags").json();
    let [model] = tags["models"].as_array().unwrap().as_slice() else { panic!("{tags}") };
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!((&model["name"], &model["model"]), (&json!("t:latest"), &json!("t:latest")));
    assert_eq!((&model["size"], &model["digest"]), (&json!(bytes.len()), &json!(sha256(&bytes))));
    assert_eq!(model["details"]["family"], "llama");
    assert_eq!(model["details"]["format"], "gguf");
    assert!(model["capabilities"].as_array().unwrap().contains(&json!("completion")));

    ok(&daemon, "/api/generate", &json!({"model": "t"}));
    let ps = daemon.get("/api/ps").json();
    let vram = ctl(&daemon, &["vram", "--json"]).ok().json();
    assert_eq!(ps["models"][0]["size"], vram["held_bytes"], "{vram}");
    assert_eq!(ps["models"][0]["size_vram"], 0, "it runs on the CPU");
    assert_eq!(ps["models"][0]["digest"], model["digest"]);

    let show = ok(&daemon, "/api/show", &json!({"model": "t"}));
    let info = &show["model_info"];
    assert_eq!(info["general.architecture"], "llama");
    assert_eq!(info["llama.context_length"], 256);
    assert_eq!(info["tokenizer.ggml.tokens"], Value::Null);
    assert_eq!((&show["details"], &show["tensors"]), (&model["details"], &Value::Null));
    assert!(show["template"].as_str().unwrap().contains("messages"), "{show}");
    assert!(show["modelfile"].as_str().unwrap().starts_with("FROM t:latest"));
    let verbose = ok(&daemon, "/api/show", &json!({"name": "T:latest", "verbose": true}));
    assert!(verbose["model_info"]["tokenizer.ggml.tokens"].as_array().unwrap().len() > 100);
    assert!(!verbose["tensors"].as_array().unwrap().is_empty());
}

#[test]
fn clients_change_nothing_unless_that_is_allowed() {
    let mut daemon = with_tiny();
    for path in ["/api/pull", "/api/create", "/api/copy", "/api/push"] {
        refused(&daemon.post(path, &json!({"model": "x"})), 403, "allow_model_management");
    }
    let tiny = json!({"model": "tiny"});
    let delete = request(daemon.http(), "DELETE", "/api/delete", Some(&tiny));
    refused(&delete, 403, "allow_model_management");
    let blob = format!("/api/blobs/sha256:{}", sha256(b"x"));
    refused(&request_with(daemon.http(), "POST", &blob, &[], b"x"), 403, "allow_model_management");
    check_healthy(&mut daemon);
}

#[test]
fn a_model_is_copied_used_and_deleted() {
    let daemon = managing().start();
    ctl(&daemon, &["pull", path_str(&tiny(daemon.dir(), "t.gguf"))]).ok();
    let copy = |from: &str, to: &str| {
        daemon.post("/api/copy", &json!({"source": from, "destination": to}))
    };
    let copied = copy("t", "mine:small");
    assert_eq!((copied.status, copied.body.as_str()), (200, ""));
    assert_eq!(
        ok(&daemon, "/api/generate", &generate("mine:small", "a"))["response"],
        ok(&daemon, "/api/generate", &generate("t", "a"))["response"]
    );
    refused(&copy("none", "x"), 404, "model 'none' not found");
    let delete =
        |name: &str| request(daemon.http(), "DELETE", "/api/delete", Some(&json!({"model": name})));
    let deleted = delete("mine:small");
    assert_eq!((deleted.status, deleted.body.as_str()), (200, ""));
    refused(&delete("mine:small"), 404, "model 'mine:small' not found");
    assert_eq!(ok(&daemon, "/api/generate", &generate("t", "a"))["done"], true);
    refused(&daemon.post("/api/push", &json!({"model": "t"})), 501, "pushed");
}

#[test]
fn a_model_is_made_of_a_file_that_was_sent_and_of_another_model() {
    let daemon = managing().start();
    let bytes = TinyModel::new("llama").build();
    let digest = format!("sha256:{}", sha256(&bytes));
    let blob = format!("/api/blobs/{digest}");
    let send = |path: &str, bytes: &[u8]| request_with(daemon.http(), "POST", path, &[], bytes);
    assert_eq!(request(daemon.http(), "HEAD", &blob, None).status, 404);
    let wrong = send(&blob, b"something else");
    refused(&wrong, 400, &format!("digest mismatch, expected \"{digest}\", got \"sha256:"));
    assert_eq!(request(daemon.http(), "HEAD", &blob, None).status, 404);
    assert_eq!(send(&blob, &bytes).status, 201);
    assert_eq!(send(&blob, &bytes).status, 200);
    assert_eq!(request(daemon.http(), "HEAD", &blob, None).status, 200);
    refused(&send("/api/blobs/sha256:x", b""), 400, "digest");

    let made =
        lines(&daemon, "/api/create", &json!({"model": "sent", "files": {"m.gguf": digest}}));
    assert_eq!(made.last().unwrap()["status"], "success");
    assert_eq!(ok(&daemon, "/api/generate", &generate("sent", "a"))["done"], true);

    let changes = json!({"model": "brief", "from": "sent", "system": "be brief",
        "parameters": {"temperature": 0.5, "stop": ["<end>"], "num_gpu": 1}});
    let made = lines(&daemon, "/api/create", &changes);
    assert_eq!(made[0]["status"], "ignoring parameter num_gpu");
    let show = ok(&daemon, "/api/show", &json!({"model": "brief"}));
    assert_eq!(show["system"], "be brief");
    assert!(show["parameters"].as_str().unwrap().contains("temperature"), "{show}");
    let count = |name: &str| {
        ok(&daemon, "/api/generate", &generate(name, "a"))["prompt_eval_count"].as_u64().unwrap()
    };
    assert!(count("brief") > count("sent"));
    for (wrong, status, says) in [
        (json!({"model": "x", "from": "none"}), 404, "not found"),
        (json!({"model": "x"}), 400, "'from' or 'files'"),
        (json!({"model": "x", "from": "sent", "quantize": "q4_0"}), 400, "'quantize' is not"),
        (json!({"model": "x", "from": "sent", "adapters": {"a": "b"}}), 400, "'adapters' is not"),
        (json!({"model": "x", "from": "sent", "messages": [{}]}), 400, "'messages' is not"),
        (json!({"model": "x", "files": {"a": format!("sha256:{}", sha256(b"y"))}}), 404, "no blob"),
        (json!({"model": "x", "from": "sent", "template": "{% for %}"}), 400, "template"),
    ] {
        refused(&daemon.post("/api/create", &wrong), status, says);
    }
}

#[test]
fn a_model_is_pulled_from_a_registry_with_its_progress() {
    let origin = Origin::start();
    let template = b"{% for m in messages %}{{ m.content }}{% endfor %}";
    registry(&origin, &TinyModel::new("llama").build(), b"{}", template);
    let daemon = at(&origin).http("allow_model_management = true").start();
    let told = lines(&daemon, "/api/pull", &json!({"model": "tiny:1b"}));
    assert_eq!(told[0]["status"], "pulling manifest");
    assert_eq!(told.last().unwrap()["status"], "success");
    assert_eq!(ok(&daemon, "/api/generate", &generate("tiny:1b", "a"))["done"], true);
    assert_eq!(daemon.get("/api/tags").json()["models"][0]["name"], "tiny:1b");
    let again = ok(&daemon, "/api/pull", &json!({"model": "tiny:1b", "stream": false}));
    assert_eq!(again, json!({"status": "success"}));
    let none = lines(&daemon, "/api/pull", &json!({"model": "none:2b"}));
    assert!(none.last().unwrap()["error"].is_string(), "{none:?}");
}

#[test]
fn smollm2_answers_ollamas_clients_as_it_answers_others() {
    let daemon = builder().start();
    let file = models::smollm2();
    ctl(&daemon, &["pull", path_str(&file), "--name", "smollm2"]).ok();
    let mut raw = generate("smollm2", "The capital of France is");
    raw["raw"] = json!(true);
    raw["options"]["num_predict"] = json!(4);
    assert_eq!(ok(&daemon, "/api/generate", &raw)["response"], " Paris.\n\n");
    let question = "What is 2 plus 2? Answer with a number.";
    let mut asked = chat("smollm2:latest", question);
    asked["options"]["num_predict"] = json!(24);
    let parts = lines(&daemon, "/api/chat", &asked);
    let text: String =
        parts.iter().map(|part| part["message"]["content"].as_str().unwrap()).collect();
    assert!(text.contains('4'), "{text}");
    let messages = json!([{"role": "user", "content": question}]);
    let same =
        json!({"model": "smollm2", "messages": messages, "temperature": 0, "max_tokens": 24});
    let same = daemon.post("/v1/chat/completions", &same).json();
    assert_eq!(same["choices"][0]["message"]["content"], text);
    let show = ok(&daemon, "/api/show", &json!({"model": "smollm2"}));
    assert_eq!(show["details"]["parameter_size"], "134.52M");
    assert_eq!(show["details"]["quantization_level"], "Q4_1");
}

#[test]
fn a_model_in_memory_may_be_another_than_the_tag_says_but_never_one_of_another_name() {
    let daemon = builder().start();
    for name in ["a.gguf", "b.gguf"] {
        let file =
            write(daemon.dir(), name, &TinyModel::new("llama").seed(name.len() as u64).build());
        ctl(&daemon, &["load", path_str(&file)]).ok();
    }
    let mut names = in_memory(&daemon);
    names.sort();
    assert_eq!(names, ["a:latest", "b:latest"]);
    refused(&daemon.post("/api/chat", &chat("a:7b", "x")), 404, "model 'a:7b' not found");
}
