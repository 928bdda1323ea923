//! Bytes that are not HTTP, or not quite, on the raw sockets.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;

use m40_testkit::daemon::Daemon;
use m40_testkit::gguf::TinyModel;
use m40_testkit::http;
use serde_json::json;

use crate::{builder, check_healthy, ctl, load, wait_until_idle};

#[test]
fn nonsense_on_the_port_is_refused_or_dropped() {
    let mut daemon = builder().start();
    let long_head = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    let many_headers = format!("GET /health HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(2000));
    let bad: [&[u8]; 11] = [
        b"",
        b"\0\0\0\0\0\0\0\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nbroken header\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999\r\n\r\n",
        long_head.as_bytes(),
        many_headers.as_bytes(),
    ];
    for bytes in bad {
        let answer = http::raw_and_close(daemon.http(), bytes);
        let shown: String = String::from_utf8_lossy(bytes).chars().take(60).collect();
        let refused = answer.is_empty()
            || answer.starts_with("HTTP/1.1 4")
            || answer.starts_with("HTTP/1.1 505");
        assert!(refused, "{shown:?} was answered with {answer:?}");
        check_healthy(&mut daemon);
    }
}

#[test]
fn a_body_that_ends_too_early_is_no_request() {
    let mut daemon = builder().start();
    let head = "POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let bad_chunk = format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n");
    let cut = format!("{head}content-length: 100\r\n\r\n{{\"prompt\":");
    for request in [bad_chunk, cut] {
        let answer = http::raw_and_close(daemon.http(), request.as_bytes());
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer:?}");
    }
    check_healthy(&mut daemon);
}

#[test]
fn a_refusal_reads_what_the_client_still_sends_or_says_that_the_connection_closes() {
    let mut daemon = builder().start();
    let refused = |length: usize| {
        format!(
            "DELETE /api/delete HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    for _ in 0..10 {
        let mut stream = http::connect(daemon.http());
        // As clients do that send the body by itself.
        stream.write_all(refused(2).as_bytes()).unwrap();
        stream.write_all(b"{}").unwrap();
        let next = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        let answers = http::exchange(stream, next);
        assert!(answers.starts_with("HTTP/1.1 403 "), "{answers}");
        assert!(answers.contains("HTTP/1.1 200 "), "{answers}");
    }
    for length in [2, 1 << 20] {
        let answer = http::exchange(http::connect(daemon.http()), refused(length).as_bytes());
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    }
    check_healthy(&mut daemon);
}

#[test]
fn a_head_that_never_comes_is_not_waited_for() {
    let mut daemon = builder().header_timeout_s(1).start();
    let mut slow = http::connect(daemon.http());
    slow.write_all(b"GET /health HTTP/1.1\r\nhost: ").unwrap();
    let mut answer = Vec::new();
    // Ends because the daemon closes it; the test's own limit is much longer.
    slow.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    check_healthy(&mut daemon);
}

#[test]
fn nonsense_on_the_control_socket_is_refused() {
    let mut daemon = builder().start();
    let send = |head: &str, body: &str| {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        let length = body.len();
        let text = format!(
            "{head} HTTP/1.1\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        http::exchange(stream, text.as_bytes())
    };
    assert!(send("GET /nowhere", "").starts_with("HTTP/1.1 404 "));
    assert!(send("PUT /status", "").starts_with("HTTP/1.1 405 "));
    let post = |body: &str| send("POST /models/load", body);
    assert!(post("{").starts_with("HTTP/1.1 400 "));
    let typo = post(r#"{"model": {"name": "x"}, "extra": 1}"#);
    assert!(typo.starts_with("HTTP/1.1 400 ") && typo.contains("extra"), "{typo}");
    let relative = post(r#"{"model": {"file": "x.gguf"}}"#);
    assert!(relative.starts_with("HTTP/1.1 400 ") && relative.contains("absolute"), "{relative}");
    let answer = send("\0\0\0\0", "");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
    ctl(&daemon, &["status"]).ok();
    check_healthy(&mut daemon);
}

/// How many hostile requests a storm has.
const STORM: usize = 1000;
/// Clients of a storm at a time.
const STORM_CLIENTS: usize = 8;
/// What the allocator may keep of a storm, in KiB.
const KEPT_KIB_MAX: u64 = 48 << 10;

#[test]
fn a_storm_of_hostile_requests_is_answered_rightly_and_leaves_nothing_behind() {
    let mut daemon = load(builder().header_timeout_s(1), &TinyModel::new("llama"));
    // What is kept for good is there after a first round.
    storm(daemon.http(), STORM / 4);
    wait_until_idle(&daemon);
    let before = resident_kib(&daemon);
    storm(daemon.http(), STORM);
    check_healthy(&mut daemon);
    wait_until_idle(&daemon);
    let after = resident_kib(&daemon);
    assert!(after < before + KEPT_KIB_MAX, "{before} KiB before, {after} KiB after");
    let answered = daemon.post("/generate", &json!({"prompt": "a", "max_tokens": 1}));
    assert_eq!(answered.status, 200, "{}", answered.body);
}

fn storm(daemon: SocketAddr, requests: usize) {
    std::thread::scope(|scope| {
        for client in 0..STORM_CLIENTS {
            scope.spawn(move || {
                (client..requests).step_by(STORM_CLIENTS).for_each(|n| attack(daemon, n));
            });
        }
    });
}

/// The `n`th attack, which must be answered as it deserves.
fn attack(daemon: SocketAddr, n: usize) {
    let path = ["/generate", "/v1/chat/completions"][n / 16 % 2];
    let json = [("content-type", "application/json")];
    let post = |body: &[u8]| http::request_with(daemon, "POST", path, &json, body).status;
    let deep = |open: &str| format!("{{\"prompt\":\"a\",\"x\":{}", open.repeat(50_000));
    let absurd = |field: &str| {
        let question = r#""prompt":"a","messages":[{"role":"user","content":"a"}]"#;
        format!("{{{question},{field}}}").into_bytes()
    };
    let open = |bytes: &[u8]| {
        let mut stream = http::connect(daemon);
        stream.write_all(bytes).expect("a small request is taken");
        stream
    };
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n");
    let (status, want) = match n % 16 {
        0 => (post(b"{"), 400),
        1 => (post(b"{\"prompt\": \"\xff\xfe\", \"messages\": [\"\xc0\x80\"]}"), 400),
        2 => (post(deep("[").as_bytes()), 400),
        3 => (post(deep("{\"a\":").as_bytes()), 400),
        4 => (post(&absurd("\"temperature\": 1e39")), 400),
        5 => (post(&absurd("\"max_tokens\": \"many\"")), 400),
        6 => (post(&absurd("\"deadline_s\": 1e300")), 400),
        7 => (post(&absurd(&format!("\"stop\": [{}\"a\"]", "\"a\",".repeat(1000)))), 400),
        8 => (post(&absurd("\"logit_bias\": {\"4294967295\": 1}")), 400),
        9 => (http::request_with(daemon, "POST", path, &[], b"{}").status, 415),
        10 => (http::request_with(daemon, "DELETE", path, &json, b"").status, 405),
        11 => (post(&absurd("\"model\": \"../../etc/passwd\"")), 404),
        // A body of 100 MB that is announced, and one that is not.
        12 => (status_of(open(format!("{head}content-length: 104857600\r\n\r\n").as_bytes())), 413),
        13 if n % 160 == 13 => (endless_body(daemon, &head), 413),
        // A head that comes byte by byte and then not at all is dropped, or told so.
        14 if n % 320 == 14 => (status_of(open(&head.as_bytes()[..20])), 408),
        // Clients that leave: before they have asked, and before they are answered.
        15 => return drop(open(format!("{head}content-length: 100\r\n\r\n{{").as_bytes())),
        _ => {
            let body = absurd("\"stream\": true, \"ignore_eos\": true");
            let length = body.len();
            let mut stream = open(format!("{head}content-length: {length}\r\n\r\n").as_bytes());
            stream.write_all(&body).expect("a small request is taken");
            return drop(stream);
        }
    };
    let right = status == want || (want == 408 && status == 0);
    assert!(right, "attack {n} on {path} was answered with {status}, not {want}");
}

/// The status that comes; 0 where the connection ends without one.
fn status_of(stream: TcpStream) -> u16 {
    let answer = http::exchange(stream, b"");
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Sends a body that does not end, until it is answered.
fn endless_body(daemon: SocketAddr, head: &str) -> u16 {
    let mut stream = http::connect(daemon);
    let head = format!("{head}transfer-encoding: chunked\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("a small request is taken");
    let mut answered = stream.try_clone().expect("a socket has another handle");
    let reader = std::thread::spawn(move || {
        let mut answer = [0; 12];
        answered.read_exact(&mut answer).map(|()| answer)
    });
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(1 << 20));
    for _ in 0..100 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let answer = reader.join().expect("reading does not panic");
    // What was still on its way may have had the answer thrown away.
    answer.map_or(413, |answer| String::from_utf8_lossy(&answer[9..]).parse().unwrap_or(0))
}

/// Memory that a daemon has, in KiB.
fn resident_kib(daemon: &Daemon) -> u64 {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let figure = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
    figure.expect("Linux says how much memory a process has")
}
