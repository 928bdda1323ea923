//! Start, signals, stop.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use m40_testkit::http;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{builder, check_healthy, check_one_line, ctl, endless, path_str, with_tiny};

/// A request whose answer goes on for a long time.
fn long(stream: bool) -> Value {
    json!({"prompt": "a", "stream": stream, "ignore_eos": true, "temperature": 0})
}

#[test]
fn it_starts_serves_and_stops() {
    let mut daemon = builder().start();
    check_healthy(&mut daemon);
    let status = ctl(&daemon, &["status", "--json"]).ok().json();
    assert_eq!(status["http_address"], daemon.http().to_string());
    assert_eq!(status["control_socket"].as_str(), daemon.socket().to_str());
    assert_eq!(status["stopping"], false);
    let text = ctl(&daemon, &["status"]).ok().out;
    assert!(text.contains("no model is loaded"), "{text}");

    assert!(daemon.stop().success());
    assert!(!daemon.socket().exists());
    ctl(&daemon, &["status"]).fails(69, &["m40d is not running", "systemctl start m40d"]);
}

#[test]
fn interrupting_it_stops_it_as_well() {
    let mut daemon = builder().start();
    daemon.signal(Signal::SIGINT);
    assert!(daemon.wait().success());
}

#[test]
fn a_running_answer_is_finished_before_the_end() {
    let mut daemon = endless(builder());
    let mut request = long(true);
    request["max_tokens"] = json!(2000);
    let mut answer = daemon.post_stream("/generate", &request);
    let mut lines = vec![answer.line().unwrap()];
    daemon.signal(Signal::SIGTERM);
    daemon.notification("STOPPING=1");
    lines.extend(std::iter::from_fn(|| answer.line()));
    let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!(last["done"], true, "{last}");
    assert_eq!(last["usage"]["completion_tokens"], 2000);
    assert!(daemon.wait().success());
}

#[test]
fn what_outlasts_the_grace_is_told_why_in_the_words_of_each_api() {
    let mut daemon = endless(builder().config("[limits]\nshutdown_grace_s = 0"));
    // Not all APIs can ignore the model's own end: after this prompt it is far away.
    let chat = json!({"model": "tiny", "messages": [{"role": "user", "content": "c"}],
        "stream": true, "ignore_eos": true, "temperature": 0});
    let text = json!({"model": "tiny", "prompt": "c", "stream": true, "ignore_eos": true,
        "temperature": 0, "options": {"num_predict": -1, "temperature": 0}});
    let responses = json!({"model": "tiny", "input": "c", "stream": true, "ignore_eos": true,
        "temperature": 0});
    let (mut messages, mut completions) = (chat.clone(), text.clone());
    messages["max_tokens"] = json!(50_000);
    completions["max_tokens"] = json!(50_000);
    let requests = [
        ("/generate", &text),
        ("/v1/chat/completions", &chat),
        ("/v1/completions", &completions),
        ("/v1/responses", &responses),
        ("/v1/messages", &messages),
        ("/api/generate", &text),
        ("/api/chat", &chat),
        ("/completion", &text),
    ];
    // They share passes.
    let mut streams = requests.map(|(path, request)| (path, daemon.post_stream(path, request)));
    for (path, stream) in &mut streams {
        let line = stream.line().unwrap();
        assert_eq!(stream.status, 200, "{path}: {line}");
    }
    daemon.signal(Signal::SIGTERM);
    for (path, stream) in &mut streams {
        let lines: Vec<_> = std::iter::from_fn(|| stream.line()).collect();
        let told = lines.iter().filter(|line| line.contains("m40d is stopping")).count();
        assert_eq!(told, 1, "{path}: {:?}", lines.last());
    }
    assert!(daemon.wait().success());
}

#[test]
fn a_second_signal_ends_the_wait() {
    let mut daemon = endless(builder().config("[limits]\nshutdown_grace_s = 3600"));
    let mut answer = daemon.post_stream("/generate", &long(true));
    answer.line().unwrap();
    daemon.signal(Signal::SIGTERM);
    daemon.notification("STOPPING=1");
    daemon.signal(Signal::SIGTERM);
    let last = std::iter::from_fn(|| answer.line()).last().unwrap();
    assert!(last.contains("stopping"), "{last}");
    assert!(daemon.wait().success());
}

#[test]
fn hangup_rereads_the_configuration_and_says_what_needs_a_restart() {
    let mut daemon = builder().start();
    let config = daemon.config_file();
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text}[engine]\nthreads = 1\n")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.notification("RELOADING=1");
    daemon.notification("READY=1");
    assert!(daemon.log().contains("engine.threads"), "{}", daemon.log());

    std::fs::write(&config, "nonsense").unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.notification("RELOADING=1");
    daemon.notification("READY=1");
    assert!(daemon.log().contains("going on with the old one"), "{}", daemon.log());
    check_healthy(&mut daemon);
}

#[test]
fn a_busy_port_is_one_clear_line() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let output = builder().listen(address).fail();
    assert_eq!(output.status.code(), Some(69));
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    check_one_line(&err, &[&address.to_string(), "in use", "[http] listen"]);
}

#[test]
fn an_address_of_another_machine_is_one_clear_line_too() {
    let address = "192.0.2.1:11434";
    let output = builder().listen(address.parse().unwrap()).http("insecure = true").fail();
    assert_eq!(output.status.code(), Some(75));
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    check_one_line(&err, &[address, "does not have", "[http] listen"]);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let stale = builder();
    std::fs::create_dir(stale.dir().join("run")).unwrap();
    // Closing a listener leaves its file behind.
    drop(UnixListener::bind(stale.socket()).unwrap());
    let mut daemon = stale.start();
    check_healthy(&mut daemon);

    let socket = daemon.socket();
    let second = builder().config(&format!("[control]\nsocket = {:?}", path_str(&socket)));
    let output = second.fail();
    assert_eq!(output.status.code(), Some(69));
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    check_one_line(&err, &["another m40d", path_str(&socket)]);
    ctl(&daemon, &["status"]).ok();
}

#[test]
fn two_daemons_never_share_a_state_folder() {
    let daemon = builder().start();
    let state = daemon.dir().join("state");
    let again = builder();
    let socket = again.socket();
    // Its own [paths] come first in the file, so a link leads both to the same folder.
    std::os::unix::fs::symlink(&state, again.dir().join("state")).unwrap();
    let output = again.fail();
    assert_eq!(output.status.code(), Some(69));
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    check_one_line(&err, &["state folder", "another m40d"]);
    assert!(!socket.exists());
}

#[test]
fn a_crash_leaves_nothing_in_the_way() {
    let daemon = with_tiny();
    let file = daemon.dir().join("tiny.gguf");
    ctl(&daemon, &["pull", path_str(&file), "--name", "kept"]).ok();
    let mut daemon = daemon.crash().start();
    check_healthy(&mut daemon);
    let list = ctl(&daemon, &["list", "--json"]).ok().json();
    assert_eq!(list["models"][0]["name"], "kept");
    assert_eq!(list["models"][0]["state"], "stored");
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    let mut daemon = builder().start();
    let idle = http::connect(daemon.http());
    assert!(daemon.stop().success());
    drop(idle);
}

#[test]
fn prompts_and_answers_are_never_logged() {
    let daemon = crate::load(
        builder().config("[log]\nlevel = \"trace\""),
        &m40_testkit::gguf::TinyModel::new("llama"),
    );
    let request = json!({"prompt": "xyzzy-secret-prompt", "max_tokens": 4});
    assert_eq!(daemon.post("/generate", &request).status, 200);
    ctl(&daemon, &["run", path_str(&daemon.dir().join("tiny.gguf")), "xyzzy-secret-prompt"]).ok();
    assert!(!daemon.log().contains("xyzzy"), "{}", daemon.log());
}

#[test]
fn what_is_logged_can_be_changed_while_it_runs() {
    let daemon = builder().start();
    assert_eq!(ctl(&daemon, &["log-level"]).ok().out, "info\n");
    assert_eq!(daemon.get("/health").status, 200);
    assert!(!daemon.log().contains("/health"), "{}", daemon.log());

    let changed = ctl(&daemon, &["log-level", "info,m40d::http=debug"]).ok().out;
    assert_eq!(changed, "info,m40d::http=debug ([log] level is info)\n");
    assert_eq!(daemon.get("/health").status, 200);
    assert!(daemon.log().contains("/health"), "{}", daemon.log());
    let level = ctl(&daemon, &["log-level", "--json"]).ok().json();
    assert_eq!(
        (level["filter"].as_str(), level["configured"].as_str()),
        (Some("info,m40d::http=debug"), Some("info"))
    );

    ctl(&daemon, &["log-level", "loud"]).fails(64, &["\"loud\"", "debug"]);
    ctl(&daemon, &["log-level", "error"]).ok();
    let lines = daemon.log().lines().count();
    ctl(&daemon, &["reload"]).ok();
    assert_eq!(daemon.log().lines().count(), lines, "{}", daemon.log());
}

#[test]
fn the_journal_gets_priorities_and_no_times() {
    let daemon = builder().env("JOURNAL_STREAM", "9:1").start();
    let log = daemon.log();
    assert!(log.lines().all(|line| line.starts_with("<6>")), "{log}");
    assert!(log.contains("<6>m40d::lifecycle: ready"), "{log}");
    let failed = builder().env("JOURNAL_STREAM", "9:1").config("nonsense = 1").fail();
    let err = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(err.starts_with("<3>m40d: "), "{err}");
}
