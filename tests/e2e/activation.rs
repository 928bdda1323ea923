//! Sockets that a service manager hands over: what it does with `m40d.socket`, without one.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;

use m40_testkit::daemon::Builder;
use m40_testkit::http;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{builder, check_healthy, check_one_line, ctl, endless};

/// A socket that a test holds, as systemd does.
fn tcp() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound socket has an address");
    (listener, address)
}

fn unix(builder: &Builder) -> UnixListener {
    let path = builder.socket();
    std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
    UnixListener::bind(path).expect("a socket")
}

/// An answer that lasts until the daemon is told twice to stop.
fn unending() -> Value {
    json!({"prompt": "a", "stream": true, "ignore_eos": true, "temperature": 0})
}

/// A request whose connection may be used for another one.
fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

/// One whose connection ends with it.
fn get_once(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").into_bytes()
}

#[test]
fn it_serves_on_sockets_that_it_is_given_and_leaves_them_when_it_stops() {
    let (listener, address) = tcp();
    let given = builder();
    let control = unix(&given);
    // The address of the configuration is taken: it is not needed.
    let (_taken, elsewhere) = tcp();
    let given = given.listen(elsewhere).hand_over("control", control).hand_over("http", listener);
    let mut daemon = given.clone().start();
    assert_eq!(daemon.http(), address);
    check_healthy(&mut daemon);
    let status = ctl(&daemon, &["status", "--json"]).ok().json();
    assert_eq!(status["http_address"], address.to_string());
    assert_eq!(status["control_socket"].as_str(), daemon.socket().to_str());
    assert!(daemon.stop().success());

    // Who comes now waits for the next one.
    let mut waiting = http::connect(address);
    waiting.write_all(&get_once("/health")).unwrap();
    assert!(daemon.socket().exists());
    let mut daemon = given.start();
    let answer = http::exchange(waiting, b"");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    check_healthy(&mut daemon);
    ctl(&daemon, &["status"]).ok();
}

#[test]
fn a_socket_alone_may_be_given_and_the_other_one_is_made() {
    let (listener, address) = tcp();
    let mut daemon = builder().hand_over("http", listener).start();
    assert_eq!(daemon.http(), address);
    ctl(&daemon, &["status"]).ok();
    assert!(daemon.stop().success());
    assert!(!daemon.socket().exists());
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let told =
        builder().env("LISTEN_PID", "1").env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "http");
    check_healthy(&mut told.start());
}

#[test]
fn who_was_accepted_before_the_end_is_answered_and_who_comes_later_waits() {
    let (listener, address) = tcp();
    let given = builder().hand_over("http", listener);
    let mut daemon = endless(given.clone());
    let mut answer = daemon.post_stream("/generate", &unending());
    answer.line().unwrap();
    let early = [(); 3].map(|()| http::connect(address));
    // Connections are accepted in the order in which they came.
    check_healthy(&mut daemon);
    daemon.signal(Signal::SIGTERM);
    daemon.notification("STOPPING=1");
    let mut late = http::connect(address);
    late.write_all(&get_once("/health")).unwrap();
    for (early, path) in early.into_iter().zip(["/ready", "/health", "/v1/models"]) {
        let told = http::exchange(early, &get(path));
        let status = if path == "/v1/models" { "200" } else { "503" };
        assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{told}");
        assert!(told.contains("connection: close"), "{told}");
    }

    daemon.signal(Signal::SIGTERM);
    let last = std::iter::from_fn(|| answer.line()).last().unwrap();
    assert!(last.contains("stopping"), "{last}");
    assert!(daemon.wait().success());
    let _next = given.start();
    let answer = http::exchange(late, b"");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn a_running_answer_says_that_its_connection_ends() {
    let mut daemon = endless(builder());
    let request = json!({"prompt": "a", "ignore_eos": true, "max_tokens": 3000}).to_string();
    let mut kept = http::connect(daemon.http());
    let head = "POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    write!(kept, "{head}content-length: {}\r\n\r\n{request}", request.len()).unwrap();
    let queue = || ctl(&daemon, &["queue", "--json"]).ok().json();
    while queue()["requests"].as_array().is_none_or(Vec::is_empty) {}
    daemon.signal(Signal::SIGTERM);
    let answer = http::exchange(kept, b"");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(daemon.wait().success());
}

#[test]
fn sockets_that_cannot_be_used_are_refused_in_one_clear_line() {
    let mixed = builder();
    let control = unix(&mixed);
    let (http, _) = tcp();
    let swapped = mixed.hand_over("http", control);
    let cases: [(Builder, &[&str]); 6] = [
        (swapped, &["\"http\"", "TCP", "ListenStream="]),
        (builder().hand_over("control", http), &["\"control\"", "Unix", "ListenStream="]),
        (builder().hand_over("http", UdpSocket::bind("127.0.0.1:0").unwrap()), &["\"http\""]),
        (builder().hand_over("http", silent()), &["\"http\"", "does not listen"]),
        (builder().hand_over("m40d.socket", tcp().0), &["m40d.socket", "FileDescriptorName="]),
        (builder().hand_over("http", tcp().0).hand_over("http", tcp().0), &["two", "\"http\""]),
    ];
    for (given, says) in cases {
        let output = given.fail();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{err}");
        check_one_line(&err, says);
    }
}

/// A TCP socket that does not listen.
fn silent() -> TcpStream {
    let (listener, address) = tcp();
    let stream = TcpStream::connect(address).expect("somebody listens");
    drop(listener);
    stream
}

#[test]
fn an_address_for_other_machines_takes_keys_whoever_made_the_socket() {
    let everywhere = || TcpListener::bind("0.0.0.0:0").unwrap();
    let output = builder().hand_over("http", everywhere()).fail();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(78), "{err}");
    check_one_line(&err, &["other machines", "0.0.0.0:", "[http] keys"]);
    let mut daemon = builder().http("insecure = true").hand_over("http", everywhere()).start();
    check_healthy(&mut daemon);
    // As with an address of its own, any name for this machine will do.
    let reply = http::raw(daemon.http(), b"GET /health HTTP/1.0\r\nhost: box.example\r\n\r\n");
    assert!(reply.starts_with("HTTP/1.0 200 "), "{reply}");
}
