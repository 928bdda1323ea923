//! What has the service manager start the daemon again: a watchdog that is not fed, a GPU that is lost.

use std::os::unix::net::UnixStream;

use m40_testkit::daemon::Daemon;
use m40_testkit::http;
use serde_json::{Value, json};

use crate::{builder, check_healthy, endless};

/// Has a fault that builds for tests can be asked for.
#[track_caller]
fn fault(daemon: &Daemon, name: &str) {
    let socket = UnixStream::connect(daemon.socket()).expect("the control socket");
    let head = format!("POST /test/{name} HTTP/1.1\r\nhost: m40d\r\nconnection: close\r\n\r\n");
    let reply = http::exchange(socket, head.as_bytes());
    assert!(reply.starts_with("HTTP/1.1 204 "), "{reply}");
}

#[test]
fn the_watchdog_is_fed_until_the_engine_hangs() {
    let mut daemon = builder().env("WATCHDOG_USEC", "200000").start();
    for _ in 0..2 {
        daemon.notification("WATCHDOG=1");
    }
    fault(&daemon, "hang");
    daemon.notification_with("STATUS=the engine hangs");
    for _ in 0..3 {
        // Any message.
        let message = daemon.notification_with("");
        assert!(message.contains("STATUS=the engine hangs"), "{message}");
    }
    assert!(daemon.log().contains("the engine hangs"), "{}", daemon.log());
    // It is not the engine that stops it.
    assert!(daemon.stop().success());
}

#[test]
fn a_lost_gpu_makes_it_unready_and_ends_it_after_its_answers() {
    let mut daemon = endless(builder());
    let request = json!({"prompt": "a", "stream": true, "ignore_eos": true, "temperature": 0,
        "max_tokens": 2000});
    let mut answer = daemon.post_stream("/generate", &request);
    let mut lines = vec![answer.line().unwrap()];
    let early = http::connect(daemon.http());
    // Connections are accepted in the order in which they came.
    check_healthy(&mut daemon);
    fault(&daemon, "lose-gpu");
    daemon.notification("STOPPING=1");
    let ready = http::exchange(early, b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    lines.extend(std::iter::from_fn(|| answer.line()));
    let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(last["usage"]["completion_tokens"], 2000, "{last}");
    assert_eq!(daemon.wait().code(), Some(71));
    assert!(daemon.log().contains("m40d: the GPU failed: "), "{}", daemon.log());
}
