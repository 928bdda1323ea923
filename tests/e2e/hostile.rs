//! Bytes that are not HTTP, or not quite, on the raw sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use m40_testkit::http;

use crate::{builder, check_healthy, ctl};

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
