//! What the daemon says of itself over HTTP and in its log.

use m40_testkit::gguf::TinyModel;
use m40_testkit::http;
use serde_json::json;

use crate::{builder, ctl, load, wait_until_idle, with_tiny, write};

/// The value of a line of the metrics.
fn figure(text: &str, line: &str) -> Option<f64> {
    text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
}

#[test]
fn metrics_count_what_was_answered_and_show_what_is_held() {
    let daemon = with_tiny();
    let ask = |stream: bool| {
        let body = json!({"prompt": "a b", "max_tokens": 5, "ignore_eos": true, "stream": stream});
        daemon.post("/generate", &body)
    };
    let prompt = ask(false).json()["usage"]["prompt_tokens"].as_f64().unwrap();
    assert_eq!(ask(true).status, 200);
    assert_eq!(daemon.post("/generate", &json!({"prompt": "a", "model": "none"})).status, 404);

    wait_until_idle(&daemon);
    let reply = daemon.get("/metrics");
    assert!(reply.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = reply.body;
    for (line, value) in [
        ("m40d_generation_tokens_total{model_name=\"tiny\"}", 10.0),
        ("m40d_prompt_tokens_total{model_name=\"tiny\"}", 2.0 * prompt),
        ("m40d_prefix_cache_queries_total{model_name=\"tiny\"}", 2.0 * prompt),
        ("m40d_request_success_total{model_name=\"tiny\",finished_reason=\"length\"}", 2.0),
        ("m40d_time_to_first_token_seconds_count{model_name=\"tiny\"}", 2.0),
        ("m40d_e2e_request_latency_seconds_count{model_name=\"tiny\"}", 2.0),
        ("m40d_request_queue_time_seconds_count{model_name=\"tiny\"}", 2.0),
        ("m40d_num_requests_running{model_name=\"tiny\"}", 0.0),
        ("m40d_num_requests_waiting{model_name=\"tiny\"}", 0.0),
        ("m40d_model_loads_total{model_name=\"tiny\"}", 1.0),
    ] {
        assert_eq!(figure(&text, line), Some(value), "{line} in\n{text}");
    }
    // Less where a piece has several tokens.
    let between = figure(&text, "m40d_inter_token_latency_seconds_count{model_name=\"tiny\"}");
    assert!(between.is_some_and(|count| count <= 8.0), "{text}");
    let passes = |part: &str| {
        figure(&text, &format!("m40d_decode_batch_size_{part}{{model_name=\"tiny\"}}"))
    };
    assert!(passes("sum").is_some_and(|rows| (8.0..=10.0).contains(&rows)), "{text}");
    assert_eq!(passes("sum"), passes("count"), "each was alone");
    let vram = ctl(&daemon, &["vram", "--json"]).ok().json();
    let held = |kind: &str| {
        let line = format!("m40d_model_memory_bytes{{model_name=\"tiny\",kind=\"{kind}\"}}");
        figure(&text, &line).unwrap_or_else(|| panic!("no {line} in\n{text}"))
    };
    let sum = held("weights") + held("kv_cache") + held("scratch");
    assert_eq!(Some(sum), vram["held_bytes"].as_f64());
    assert_eq!(figure(&text, "m40d_vram_used_bytes"), Some(sum));
    assert!(!text.contains("none"), "a client made a label:\n{text}");

    ctl(&daemon, &["unload", "tiny"]).ok();
    let text = daemon.get("/metrics").body;
    let evicted = "m40d_model_evictions_total{model_name=\"tiny\",reason=\"asked\"}";
    assert_eq!(figure(&text, evicted), Some(1.0), "{text}");
    assert_eq!(figure(&text, "m40d_vram_used_bytes"), Some(0.0));
}

#[test]
fn health_tells_of_a_model_whether_it_is_loaded_or_why_not() {
    let builder = builder();
    std::fs::create_dir_all(builder.dir().join("models.d")).unwrap();
    let broken = write(builder.dir(), "broken.gguf", b"GGUF, or not");
    let manifest = format!("source = {broken:?}\n");
    write(&builder.dir().join("models.d"), "broken.toml", manifest.as_bytes());
    let daemon = load(builder, &TinyModel::new("llama"));
    let health = |name: &str| daemon.get(&format!("/health?model={name}"));
    let tiny = health("tiny");
    assert_eq!((tiny.status, tiny.json()["loaded"].as_bool()), (200, Some(true)));
    ctl(&daemon, &["unload", "tiny"]).ok();
    assert_eq!(health("unknown").status, 404);

    assert_ne!(daemon.post("/generate", &json!({"prompt": "a", "model": "broken"})).status, 200);
    let broken = health("broken");
    assert_eq!((broken.status, broken.json()["status"].as_str()), (503, Some("failed")));
    assert!(!broken.json()["failure"].is_null(), "{}", broken.body);
    assert_eq!(daemon.get("/ready").json()["status"], "ready");
}

#[test]
fn a_request_has_one_line_in_the_log_without_what_was_said() {
    let daemon = with_tiny();
    let body = json!({"prompt": "very secret", "max_tokens": 3, "ignore_eos": true});
    let headers = [("content-type", "application/json"), ("x-request-id", "mine-1")];
    let body = body.to_string();
    let reply = http::request_with(daemon.http(), "POST", "/generate", &headers, body.as_bytes());
    assert_eq!(reply.status, 200);
    daemon.get("/health");
    let log = daemon.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("answered")).collect();
    let [line] = lines.as_slice() else { panic!("{} lines in\n{log}", lines.len()) };
    for part in [
        "mine-1",
        "/generate",
        "status=200",
        "model=\"tiny\"",
        "completion_tokens=3",
        "first_token_ms=",
        "finish=\"length\"",
    ] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    assert!(!log.contains("secret"), "{log}");
}
