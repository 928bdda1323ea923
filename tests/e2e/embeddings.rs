//! `/v1/embeddings`, `/v1/rerank`, `/api/embed` and `/api/embeddings`.

use std::io::Write;

use m40_testkit::daemon::Daemon;
use m40_testkit::gguf::{TinyEncoder, TinyModel};
use m40_testkit::http;
use serde_json::{Value, json};

use crate::manifests::until;
use crate::{builder, check_healthy, ctl, path_str, with_tiny, write};

/// A daemon with an encoder `bert`, which is loaded.
fn with_bert() -> Daemon {
    with_encoder(&TinyEncoder::bert())
}

fn with_encoder(model: &TinyEncoder) -> Daemon {
    let builder = builder();
    let path = write(builder.dir(), "bert.gguf", &model.build());
    let daemon = builder.start();
    ctl(&daemon, &["load", path_str(&path)]).ok();
    daemon
}

fn post(daemon: &Daemon, path: &str, request: &Value) -> Value {
    let reply = daemon.post(path, request);
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

#[track_caller]
fn refused(daemon: &Daemon, path: &str, request: &Value, says: &[&str]) {
    let reply = daemon.post(path, request);
    assert_eq!(reply.status, 400, "{request}: {}", reply.body);
    for part in says {
        assert!(reply.body.contains(part), "{request}: {} lacks {part:?}", reply.body);
    }
}

fn floats(value: &Value) -> Vec<f32> {
    let numbers = value.as_array().expect("an array").iter();
    numbers.map(|x| x.as_f64().expect("of numbers") as f32).collect()
}

fn length(vector: &[f32]) -> f32 {
    vector.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// Vectors of these inputs, by `/v1/embeddings`.
fn vectors(daemon: &Daemon, input: &Value) -> Vec<Vec<f32>> {
    let reply = post(daemon, "/v1/embeddings", &json!({"model": "bert", "input": input}));
    let data = reply["data"].as_array().expect("a list");
    for (index, item) in data.iter().enumerate() {
        assert_eq!((&item["index"], &item["object"]), (&json!(index), &json!("embedding")));
    }
    data.iter().map(|item| floats(&item["embedding"])).collect()
}

/// The bytes of a base64 text.
fn decode(text: &str) -> Vec<u8> {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |c: u8| LETTERS.iter().position(|letter| *letter == c).map(|digit| digit as u32);
    let mut bytes = vec![];
    for four in text.as_bytes().chunks(4) {
        let digits: Vec<u32> = four.iter().filter_map(|c| digit(*c)).collect();
        let bits = (0..4).fold(0, |bits, i| bits << 6 | digits.get(i).copied().unwrap_or(0));
        bytes.extend(&bits.to_be_bytes()[1..digits.len()]);
    }
    bytes
}

#[test]
fn an_encoder_makes_vectors_in_every_form_of_openai() {
    let daemon = with_bert();
    let texts = json!(["the cat sat on the mat", "money", "the river"]);
    let reply = post(&daemon, "/v1/embeddings", &json!({"model": "bert", "input": texts}));
    assert_eq!((&reply["object"], &reply["model"]), (&json!("list"), &json!("bert")));
    // Six words, one and two, each text between two marks.
    assert_eq!(reply["usage"], json!({"prompt_tokens": 15, "total_tokens": 15}));

    let all = vectors(&daemon, &texts);
    assert!(all.iter().all(|v| v.len() == 128 && (length(v) - 1.0).abs() < 1e-5));
    assert_ne!(all[0], all[1]);
    assert_eq!(vectors(&daemon, &json!("money")), all[1..2]);
    // [CLS] the river [SEP]
    let tokens = json!([[2, 5, 12, 3]]);
    assert_eq!(vectors(&daemon, &tokens), all[2..]);
    assert_eq!(vectors(&daemon, &tokens[0]), all[2..]);

    let request = json!({"model": "bert", "input": "money", "encoding_format": "base64"});
    let packed = post(&daemon, "/v1/embeddings", &request);
    let bytes = decode(packed["data"][0]["embedding"].as_str().unwrap());
    let unpacked: Vec<f32> =
        bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    assert_eq!(unpacked, all[1]);

    let request = json!({"model": "bert", "input": "money", "dimensions": 16});
    let short = floats(&post(&daemon, "/v1/embeddings", &request)["data"][0]["embedding"]);
    assert!(short.len() == 16 && (length(&short) - 1.0).abs() < 1e-5, "{short:?}");
    assert!((short[0] / short[1] - all[1][0] / all[1][1]).abs() < 1e-3);
}

#[test]
fn a_model_that_generates_makes_vectors_too() {
    let daemon = with_tiny();
    let request = json!({"model": "tiny", "input": ["hello world", "hello"]});
    let reply = post(&daemon, "/v1/embeddings", &request);
    let [one, other] = [0, 1].map(|i| floats(&reply["data"][i]["embedding"]));
    assert!(one.len() == 256 && one != other && (length(&one) - 1.0).abs() < 1e-5);
    let chat = json!({"prompt": "hello", "max_tokens": 2, "ignore_eos": true});
    assert_eq!(post(&daemon, "/generate", &chat)["usage"]["completion_tokens"], 2);
}

#[test]
fn a_text_longer_than_the_context_is_refused_with_both_numbers_or_truncated() {
    let daemon = with_bert();
    let long = "cat ".repeat(300);
    let mut request = json!({"model": "bert", "input": ["dog", long]});
    let says = ["text 1 has 302 tokens", "holds 192", "\"input\"", "context_length_exceeded"];
    refused(&daemon, "/v1/embeddings", &request, &says);
    request["truncate"] = json!(true);
    let cut = post(&daemon, "/v1/embeddings", &request);
    assert_eq!(cut["usage"]["prompt_tokens"], 3 + 192);
    // What is left ends like a text.
    let fits = vectors(&daemon, &json!("cat ".repeat(190)));
    assert_eq!(floats(&cut["data"][1]["embedding"]), fits[0]);
}

#[test]
fn ollama_has_its_own_forms() {
    let daemon = with_bert();
    let expected = vectors(&daemon, &json!(["money", "the river"]));
    let request = json!({"model": "bert:latest", "input": ["money", "the river"]});
    let reply = post(&daemon, "/api/embed", &request);
    assert_eq!(reply["model"], "bert:latest");
    assert_eq!(floats(&reply["embeddings"][0]), expected[0]);
    assert_eq!(floats(&reply["embeddings"][1]), expected[1]);
    assert_eq!(reply["prompt_eval_count"], 7);
    assert!(reply["total_duration"].as_u64().unwrap() > reply["load_duration"].as_u64().unwrap());

    let long = json!({"model": "bert", "input": "cat ".repeat(300)});
    assert_eq!(post(&daemon, "/api/embed", &long)["prompt_eval_count"], 192);
    let strict = json!({"model": "bert", "input": "cat ".repeat(300), "truncate": false});
    refused(&daemon, "/api/embed", &strict, &["302 tokens"]);
    assert_eq!(post(&daemon, "/api/embed", &json!({"model": "bert"}))["embeddings"], json!([]));

    let old = post(&daemon, "/api/embeddings", &json!({"model": "bert", "prompt": "money"}));
    let old = floats(&old["embedding"]);
    let scale = length(&old);
    assert!(old.iter().zip(&expected[0]).all(|(x, unit)| (x / scale - unit).abs() < 1e-5));
    let none = post(&daemon, "/api/embeddings", &json!({"model": "bert", "prompt": ""}));
    assert_eq!(none["embedding"], json!([]));
}

#[test]
fn ollamas_clients_name_load_and_unload_encoders_as_they_do_other_models() {
    let builder = builder();
    let path = write(builder.dir(), "bert.gguf", &TinyEncoder::bert().build());
    let daemon = builder.start();
    ctl(&daemon, &["pull", path_str(&path)]).ok();
    let in_memory = || daemon.get("/api/ps").json()["models"].as_array().map_or(0, Vec::len);
    for path in ["/api/embed", "/api/embeddings"] {
        let loaded = post(&daemon, path, &json!({"model": "bert", "keep_alive": -1}));
        let nothing = if path == "/api/embed" { "embeddings" } else { "embedding" };
        assert_eq!((&loaded[nothing], in_memory()), (&json!([]), 1));
        for name in ["bert", "BERT:latest"] {
            let asked = json!({"model": name, "input": "money", "prompt": "money"});
            assert_ne!(post(&daemon, path, &asked)[nothing], json!([]));
        }
        post(&daemon, path, &json!({"model": "bert", "keep_alive": 0}));
        until("it has left", || in_memory() == 0);
        let last = json!({"model": "bert", "input": "a", "prompt": "a", "keep_alive": "0s"});
        post(&daemon, path, &last);
        until("it has left after its request", || in_memory() == 0);
        let none = daemon.post(path, &json!({"model": "none:7b", "input": "a", "prompt": "a"}));
        let says = "model \"none:7b\" not found, try pulling it first";
        assert_eq!((none.status, none.json()), (404, json!({"error": says})));
    }
}

#[test]
fn vectors_and_ranks_are_counted_and_logged_as_answers_are() {
    let daemon = with_bert();
    // Five tokens, and two texts of three.
    post(&daemon, "/v1/embeddings", &json!({"model": "bert", "input": "the cat sat"}));
    post(
        &daemon,
        "/v1/rerank",
        &json!({"model": "bert", "query": "money", "documents": ["money"]}),
    );
    refused(&daemon, "/v1/embeddings", &json!({"model": "bert", "input": []}), &["0 texts"]);
    let text = daemon.get("/metrics").body;
    for line in [
        "m40d_prompt_tokens_total{model_name=\"bert\"} 11",
        "m40d_request_success_total{model_name=\"bert\",finished_reason=\"stop\"} 2",
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    assert!(!text.contains("m40d_prefix_cache_queries_total{model_name=\"bert\"}"), "{text}");
    let log = daemon.log();
    let line =
        log.lines().find(|line| line.contains("answered") && line.contains("/v1/embeddings"));
    let line = line.expect("a request has a line");
    for part in ["model=\"bert\"", "prompt_tokens=5", "finish=\"stop\""] {
        assert!(line.contains(part), "no {part} in {line}");
    }
}

#[test]
fn a_cross_encoder_ranks_documents_and_makes_no_vectors() {
    let daemon = with_encoder(&TinyEncoder::cross_encoder());
    let documents = json!(["the cat sat", {"text": "money"}, "a dog on the river bank"]);
    let mut request = json!({"model": "bert", "query": "the cat", "documents": documents});
    let reply = post(&daemon, "/v1/rerank", &request);
    let results = reply["results"].as_array().unwrap().clone();
    let score = |result: &Value| result["relevance_score"].as_f64().unwrap();
    assert!(results.is_sorted_by(|a, b| score(a) >= score(b)), "{results:?}");
    assert!(results.iter().all(|result| score(result) > 0.0 && score(result) < 1.0));
    let mut seen: Vec<u64> = results.iter().map(|r| r["index"].as_u64().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2]);
    assert!(reply["usage"]["total_tokens"].as_u64().unwrap() > 0);

    request["top_n"] = json!(1);
    request["return_documents"] = json!(true);
    let best = post(&daemon, "/rerank", &request)["results"].clone();
    assert_eq!(best.as_array().unwrap().len(), 1);
    assert_eq!(best[0]["index"], results[0]["index"]);
    let index = results[0]["index"].as_u64().unwrap() as usize;
    assert_eq!(
        best[0]["document"]["text"],
        ["the cat sat", "money", "a dog on the river bank"][index]
    );

    let request = json!({"model": "bert", "input": "the cat"});
    refused(&daemon, "/v1/embeddings", &request, &["cross-encoder", "/v1/rerank"]);
}

#[test]
fn other_models_rank_by_the_cosine_of_vectors() {
    let daemon = with_bert();
    let documents = ["money", "the cat sat", "the river"];
    let request = json!({"model": "bert", "query": "the cat sat", "documents": documents});
    let results = post(&daemon, "/v1/rerank", &request)["results"].clone();
    assert_eq!(results[0]["index"], 1);
    assert!((results[0]["relevance_score"].as_f64().unwrap() - 1.0).abs() < 1e-5);
    let of = vectors(&daemon, &json!(["the cat sat", "money"]));
    let cosine: f32 = of[0].iter().zip(&of[1]).map(|(a, b)| a * b).sum();
    let found = results.as_array().unwrap().iter().find(|result| result["index"] == 0).unwrap();
    assert!((found["relevance_score"].as_f64().unwrap() as f32 - cosine).abs() < 1e-5);
}

#[test]
fn an_encoder_generates_nothing_and_says_what_it_is_for() {
    let mut daemon = with_bert();
    let says = ["an encoder", "/v1/embeddings"];
    refused(&daemon, "/generate", &json!({"model": "bert", "prompt": "the"}), &says);
    let message = json!({"role": "user", "content": "the"});
    for stream in [false, true] {
        let chat = json!({"model": "bert", "messages": [message], "stream": stream});
        refused(&daemon, "/v1/chat/completions", &chat, &says);
    }
    check_healthy(&mut daemon);
}

#[test]
fn nonsense_is_refused_with_what_was_expected() {
    let mut daemon = with_bert();
    let of = |input: Value| json!({"model": "bert", "input": input});
    let many = vec!["a"; 2049];
    let cases: &[(&str, Value, &str)] = &[
        ("/v1/embeddings", json!({"model": "bert"}), "input"),
        ("/v1/embeddings", of(json!([])), "there are 0 texts"),
        ("/v1/embeddings", of(json!(many)), "there are 2049 texts, a request may have 1 to 2048"),
        ("/v1/embeddings", of(json!([["a"]])), "an array of token ids"),
        ("/v1/embeddings", of(json!([[1], []])), "text 1 has no tokens"),
        ("/v1/embeddings", of(json!([1, 99_999])), "token 99999 is outside the vocabulary"),
        ("/v1/embeddings", of(json!([1, -1])), "expected a string"),
        ("/v1/embeddings", of(Value::Null), "expected a string"),
        (
            "/v1/embeddings",
            json!({"model": "bert", "input": "a", "dimensions": 129}),
            "129 dimensions were asked for, the model has 1 to 128",
        ),
        ("/v1/embeddings", json!({"model": "bert", "input": "a", "dimensions": 0}), "1 to 128"),
        (
            "/v1/embeddings",
            json!({"model": "bert", "input": "a", "encoding_format": "hex"}),
            "encoding_format",
        ),
        ("/v1/rerank", json!({"model": "bert", "documents": ["a"]}), "query"),
        ("/v1/rerank", json!({"model": "bert", "query": "a", "documents": []}), "0 texts"),
        ("/v1/rerank", json!({"model": "bert", "query": "a", "documents": [7]}), "documents[0]"),
        (
            "/v1/rerank",
            json!({"model": "bert", "query": "a", "documents": ["a"], "top_n": 0}),
            "top_n",
        ),
        ("/api/embed", json!({"model": "bert", "input": [["a"]]}), "an array of strings"),
        ("/api/embed", json!({"input": "a"}), "model"),
        ("/api/embeddings", json!({"model": "bert", "prompt": 7}), "prompt"),
    ];
    for (path, request, says) in cases {
        refused(&daemon, path, request, &[says]);
    }
    for path in ["/v1/embeddings", "/v1/rerank", "/api/embed", "/api/embeddings"] {
        let request = json!({"model": "none", "input": "a", "query": "a", "documents": ["a"],
                             "prompt": "a"});
        assert_eq!(daemon.post(path, &request).status, 404, "{path}");
        assert_eq!(daemon.get(path).status, 405, "{path}");
    }
    check_healthy(&mut daemon);
}

#[test]
fn who_leaves_gives_the_place_back_and_pays_for_what_was_begun() {
    // Long enough a text for a while of passes, cut short when the connection closes.
    let builder = builder().config("[models]\ncontext_tokens_max = 8000");
    let model = TinyModel::new("llama").context(8000);
    let path = write(builder.dir(), "tiny.gguf", &model.build());
    let mut daemon = builder.start();
    ctl(&daemon, &["load", path_str(&path)]).ok();
    let text = vec![vec![40; 7900]; 30];
    let body = json!({"model": "tiny", "input": text}).to_string();
    let mut stream = http::connect(daemon.http());
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let runs = || {
        let queue = ctl(&daemon, &["queue", "--json"]).ok().json();
        queue["requests"].as_array().expect("a list").iter().any(|r| r["running"] == true)
    };
    until("the request runs", runs);
    drop(stream);
    until("the request is over", || !runs());
    until("it is counted", || {
        let metrics = daemon.get("/metrics").body;
        let counted = |line: &str| metrics.lines().any(|found| found == line);
        counted(&format!("m40d_prompt_tokens_total{{model_name=\"tiny\"}} {}", 30 * 7900))
            && counted(
                "m40d_request_success_total{model_name=\"tiny\",finished_reason=\"abort\"} 1",
            )
    });
    check_healthy(&mut daemon);
}
