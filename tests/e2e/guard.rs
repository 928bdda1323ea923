//! Guard rails of the HTTP listener, each with a client that breaks it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;

use m40_testkit::daemon::Daemon;
use m40_testkit::gguf::TinyModel;
use m40_testkit::http::{self, Reply};
use serde_json::{Value, json};

use crate::{
    Done, M40CTL, builder, check_healthy, check_one_line, ctl, endless, load, wait_until_idle,
};

/// A key of a client, and its line for the file of keys.
struct Made {
    key: String,
    line: String,
}

fn new_key(name: &str) -> Made {
    let output = std::process::Command::new(M40CTL).args(["key", "new", name, "--json"]).output();
    let made = Done::from(&output.expect("m40ctl must run")).ok().json();
    let text = |field: &str| made[field].as_str().expect("a text").to_owned();
    Made { key: text("key"), line: text("line") }
}

impl Made {
    /// Its line, with more that it may or may not.
    fn with(&self, more: &str) -> String {
        self.line.replace(" }", &format!(", {more} }}\n"))
    }
}

/// A daemon with the model `tiny`, of whose clients keys are asked.
fn with_keys(lines: &str) -> (Daemon, PathBuf) {
    let builder = builder();
    let file = builder.dir().join("keys.toml");
    std::fs::write(&file, lines).expect("the folder of a test");
    let builder = builder.http(&format!("keys = {file:?}"));
    (load(builder, &TinyModel::new("llama")), file)
}

fn ask(daemon: &Daemon, headers: &[(&str, &str)], body: &Value) -> Reply {
    let headers: Vec<_> =
        headers.iter().copied().chain([("content-type", "application/json")]).collect();
    http::request_with(daemon.http(), "POST", "/generate", &headers, body.to_string().as_bytes())
}

fn get(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> Reply {
    http::request_with(daemon.http(), "GET", path, headers, b"")
}

fn short() -> Value {
    json!({"prompt": "a", "max_tokens": 2, "model": "tiny"})
}

#[track_caller]
fn refused(reply: &Reply, status: u16, code: &str) {
    let error = &reply.json()["error"];
    assert_eq!((reply.status, error["code"].as_str()), (status, Some(code)), "{}", reply.body);
}

#[test]
fn only_clients_with_a_key_are_answered() {
    let made = new_key("laptop");
    let (mut daemon, _) = with_keys(&made.line);
    let bearer = format!("bearer {}", made.key);
    assert_eq!(ask(&daemon, &[("authorization", &bearer)], &short()).status, 200);
    assert_eq!(ask(&daemon, &[("x-api-key", &made.key)], &short()).status, 200);
    let reply = ask(&daemon, &[], &short());
    refused(&reply, 401, "missing_api_key");
    assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    let cut = &made.key[..made.key.len() - 1];
    for wrong in ["", "laptop", cut, &"x".repeat(4000), "sk-m40-é"] {
        let reply = ask(&daemon, &[("x-api-key", wrong)], &short());
        refused(&reply, 401, "invalid_api_key");
        assert!(!reply.body.contains("sk-m40"), "{}", reply.body);
    }
    for path in ["/v1/models", "/health?model=tiny", "/nowhere"] {
        refused(&get(&daemon, path, &[]), 401, "missing_api_key");
    }
    assert_eq!(get(&daemon, "/metrics", &[]).status, 200, "this machine may");
    assert_eq!(
        get(&daemon, "/api/tags", &[]).json()["error"].as_str().map(str::is_empty),
        Some(false)
    );
    check_healthy(&mut daemon);
    let log = daemon.log();
    assert!(log.contains("laptop") && !log.contains(&made.key), "{log}");
}

#[test]
fn a_key_may_do_what_its_line_says_and_a_reload_reads_the_line_again() {
    let (one, other) = (new_key("one"), new_key("other"));
    let (daemon, file) = with_keys(&one.with("models = [\"small\"]"));
    let send = |key: &str| ask(&daemon, &[("x-api-key", key)], &short());
    refused(&send(&one.key), 403, "model_not_allowed");
    let listed = |key: &str| get(&daemon, "/v1/models", &[("x-api-key", key)]).json();
    assert_eq!(listed(&one.key)["data"].as_array().map(Vec::len), Some(0));
    refused(
        &get(&daemon, "/health?model=tiny", &[("x-api-key", &one.key)]),
        403,
        "model_not_allowed",
    );
    refused(&send(&other.key), 401, "invalid_api_key");

    let lines = one.with("models = [\"small\", \"tiny\"]") + &other.line;
    std::fs::write(&file, lines).unwrap();
    ctl(&daemon, &["reload"]).ok();
    assert_eq!((send(&one.key).status, send(&other.key).status), (200, 200));
    assert_eq!(listed(&one.key)["data"][0]["id"], "tiny");

    std::fs::write(&file, "one = { sha256 = \"nonsense\" }").unwrap();
    ctl(&daemon, &["reload"]).fails(1, &["keys.toml:1:", "64 hexadecimal digits"]);
    assert_eq!(send(&one.key).status, 200);
}

#[test]
fn only_a_key_that_says_so_adds_and_removes_models_and_only_where_clients_may() {
    let (manager, user) = (new_key("manager"), new_key("user"));
    let lines = manager.with("manage_models = true") + &user.line;
    let send = |daemon: &Daemon, key: &str| {
        let headers = [("x-api-key", key), ("content-type", "application/json")];
        http::request_with(daemon.http(), "POST", "/api/push", &headers, b"{}")
    };
    let managed = |allowed: bool| {
        let builder = builder();
        let file = builder.dir().join("keys.toml");
        std::fs::write(&file, &lines).expect("the folder of a test");
        let lines = format!("keys = {file:?}\nallow_model_management = {allowed}");
        builder.http(&lines).start()
    };
    let daemon = managed(true);
    let refusal = send(&daemon, &user.key);
    assert_eq!(refusal.status, 403, "{}", refusal.body);
    let text = refusal.json()["error"].as_str().expect("a text").to_owned();
    assert!(text.contains("the key user") && text.contains("manage_models = true"), "{text}");
    // Nobody can push from here, which is told only to who may try.
    assert_eq!(send(&daemon, &manager.key).status, 501);
    let refusal = send(&managed(false), &manager.key);
    assert_eq!(refusal.status, 403, "{}", refusal.body);
    assert!(refusal.body.contains("allow_model_management"), "{}", refusal.body);
}

#[test]
fn a_key_pays_for_vectors_too() {
    let made = new_key("one");
    let (daemon, _) = with_keys(&made.with("tokens_per_minute = 20"));
    let embed = || {
        let headers = [("x-api-key", made.key.as_str()), ("content-type", "application/json")];
        let body = json!({"model": "tiny", "input": vec![40; 50]}).to_string();
        http::request_with(daemon.http(), "POST", "/v1/embeddings", &headers, body.as_bytes())
    };
    assert_eq!(embed().status, 200);
    refused(&embed(), 429, "rate_limit_exceeded");
}

#[test]
fn who_asks_too_often_is_told_when_to_come_back() {
    let made = new_key("busy");
    let (daemon, _) = with_keys(&made.with("requests_per_minute = 2"));
    let send = || ask(&daemon, &[("x-api-key", &made.key)], &short());
    assert_eq!((send().status, send().status), (200, 200));
    let reply = send();
    refused(&reply, 429, "rate_limit_exceeded");
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
}

#[test]
fn who_has_used_its_tokens_waits_for_more() {
    let made = new_key("busy");
    let (daemon, _) = with_keys(&made.with("tokens_per_minute = 3"));
    let send = || {
        ask(
            &daemon,
            &[("x-api-key", &made.key)],
            &json!({
                "prompt": "a b c", "max_tokens": 8, "ignore_eos": true, "model": "tiny"
            }),
        )
    };
    assert_eq!(send().status, 200);
    refused(&send(), 429, "rate_limit_exceeded");
}

/// An answer under way that takes many seconds, of which the head has come.
fn begin_endless(daemon: &Daemon, key: &str) -> TcpStream {
    let body = json!({"prompt": "a", "stream": true, "ignore_eos": true, "urgency": "interactive"});
    let body = body.to_string();
    let head = format!(
        "POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         x-api-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = http::connect(daemon.http());
    stream.write_all(head.as_bytes()).expect("a small request is taken");
    read_some(&mut stream, b"HTTP/1.1 200 OK".len());
    stream
}

fn read_some(stream: &mut TcpStream, bytes: usize) {
    stream.read_exact(&mut vec![0; bytes]).expect("the answer goes on");
}

#[test]
fn a_request_is_no_more_urgent_than_its_key() {
    let made = new_key("night-job");
    let builder = builder();
    let file = builder.dir().join("keys.toml");
    std::fs::write(&file, made.with("priority = \"batch\"")).unwrap();
    let daemon = endless(builder.http(&format!("keys = {file:?}")));
    let _answer = begin_endless(&daemon, &made.key);
    let queue = ctl(&daemon, &["queue", "--json"]).ok().json();
    assert_eq!(queue["requests"][0]["urgency"], "batch", "{queue}");
}

#[test]
fn who_leaves_early_pays_for_what_was_made() {
    let made = new_key("impatient");
    let builder = builder();
    let file = builder.dir().join("keys.toml");
    std::fs::write(&file, made.with("tokens_per_minute = 20")).unwrap();
    let daemon = endless(builder.http(&format!("keys = {file:?}")));
    let mut answer = begin_endless(&daemon, &made.key);
    // Some hundreds of lines, each of a few tokens at most.
    read_some(&mut answer, 20_000);
    drop(answer);
    wait_until_idle(&daemon);
    let reply = ask(&daemon, &[("x-api-key", &made.key)], &short());
    refused(&reply, 429, "rate_limit_exceeded");
}

#[test]
fn metrics_take_a_key_where_that_is_configured() {
    let made = new_key("prometheus");
    let builder = builder();
    let file = builder.dir().join("keys.toml");
    std::fs::write(&file, &made.line).unwrap();
    let daemon = builder.http(&format!("keys = {file:?}\nmetrics = \"keys\"")).start();
    refused(&get(&daemon, "/metrics", &[]), 401, "missing_api_key");
    assert_eq!(get(&daemon, "/metrics", &[("x-api-key", &made.key)]).status, 200);
}

#[test]
fn other_machines_are_not_served_without_keys() {
    let listen = || builder().listen(SocketAddr::from(([0, 0, 0, 0], 0)));
    let output = listen().fail();
    assert_eq!(output.status.code(), Some(78));
    let err = String::from_utf8_lossy(&output.stderr);
    check_one_line(&err, &["http.listen", "0.0.0.0:0", "m40ctl key new", "insecure = true"]);
    let daemon = listen().http("insecure = true").start();
    assert_eq!(daemon.get("/health").status, 200);
}

#[test]
fn a_name_that_is_made_to_lead_here_is_refused() {
    let daemon = builder().http("hosts = [\"box.lan\"]").start();
    let status = |head: &str| {
        let text = format!("GET {head}\r\nconnection: close\r\n\r\n");
        http::raw(daemon.http(), text.as_bytes()).lines().next().unwrap_or_default().to_owned()
    };
    for good in [
        "/health HTTP/1.1\r\nhost: localhost:11434",
        "/health HTTP/1.1\r\nhost: [::1]",
        "/health HTTP/1.1\r\nhost: BOX.lan:80",
        "http://box.lan/health HTTP/1.1\r\nhost: box.lan",
        "/health HTTP/1.0",
    ] {
        assert!(status(good).contains(" 200 "), "{good}");
    }
    for bad in [
        "/health HTTP/1.1\r\nhost: evil.example",
        "/health HTTP/1.1\r\nhost: localhost.evil.example",
        "/health HTTP/1.1\r\nhost: localhost\r\nhost: evil.example",
        "http://evil.example/health HTTP/1.1\r\nhost: localhost",
        "/health HTTP/1.1\r\nhost: 10.0.0.1",
        "/health HTTP/1.1\r\nhost: \u{e9}",
    ] {
        assert!(status(bad).contains(" 403 "), "{bad}");
    }
}

#[test]
fn pages_of_other_sites_may_ask_only_when_they_are_listed() {
    let builder = builder().http("cors_origins = [\"https://chat.example\"]");
    let daemon = load(builder, &TinyModel::new("llama"));
    let allowed = "access-control-allow-origin";
    refused(
        &ask(&daemon, &[("origin", "https://evil.example")], &short()),
        403,
        "origin_not_allowed",
    );
    refused(&ask(&daemon, &[("origin", "null")], &short()), 403, "origin_not_allowed");
    let reply = ask(&daemon, &[("origin", "https://chat.example")], &short());
    assert_eq!((reply.status, reply.header(allowed)), (200, Some("https://chat.example")));
    // Errors can be read as well.
    let reply = ask(&daemon, &[("origin", "https://chat.example")], &json!({}));
    assert_eq!((reply.status, reply.header(allowed)), (400, Some("https://chat.example")));
    assert_eq!(reply.header("content-type"), Some("application/json"));
    // A page of the daemon's own.
    assert_eq!(ask(&daemon, &[("origin", "http://localhost")], &short()).status, 200);

    let preflight = |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        http::request_with(daemon.http(), "OPTIONS", "/v1/chat/completions", &headers, b"")
    };
    let reply = preflight("https://chat.example");
    assert_eq!((reply.status, reply.header(allowed)), (200, Some("https://chat.example")));
    let headers = reply.header("access-control-allow-headers");
    assert_eq!(headers, Some("authorization,content-type"));
    assert_eq!(preflight("https://evil.example").status, 403);
}

#[test]
fn one_client_cannot_have_all_connections() {
    let mut daemon = builder().http("client_connections_max = 3").start();
    let held: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = http::connect(daemon.http());
            // Answered, so accepted; and kept open.
            stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
            stream.read_exact(&mut [0; 15]).unwrap();
            stream
        })
        .collect();
    let answer = http::raw(daemon.http(), b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(answer, "");
    drop(held);
    // They are given back when the daemon sees their end, which nobody is told.
    while http::raw(daemon.http(), b"GET /health HTTP/1.0\r\n\r\n").is_empty() {}
    check_healthy(&mut daemon);
}

#[test]
fn who_takes_nothing_of_an_answer_loses_it() {
    let mut daemon = endless(builder().http("write_timeout_s = 1"));
    // Alternatives make an answer of many megabytes, more than what waits in sockets.
    let body = json!({
        "model": "tiny", "stream": true, "ignore_eos": true, "logprobs": true, "top_logprobs": 20,
        "messages": [{"role": "user", "content": "a"}]
    });
    let mut slow = daemon.post_stream("/v1/chat/completions", &body);
    wait_until_idle(&daemon);
    let mut taken = Vec::new();
    // It may end with a reset.
    while let Some(Ok(line)) = slow.try_line() {
        taken.push(line);
    }
    assert!(!taken.is_empty() && !taken.iter().any(|line| line.contains("[DONE]")));
    check_healthy(&mut daemon);
}

#[test]
fn a_head_of_ten_megabytes_is_refused() {
    let mut daemon = builder().start();
    let head = format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}", "a".repeat(10 << 20));
    let answer = http::raw(daemon.http(), head.as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    check_healthy(&mut daemon);
}
