//! Several clients of one model, and clients that leave.

use std::{iter, thread};

use m40_testkit::daemon::Daemon;
use m40_testkit::http::Stream;
use serde_json::{Value, json};

use crate::{builder, check_healthy, ctl, endless, path_str, tiny, with_tiny};

/// Answers at a time of a model on the CPU.
const SIDE_BY_SIDE: usize = 16;

fn long() -> Value {
    json!({"prompt": "a", "stream": true, "ignore_eos": true, "temperature": 0})
}

/// As many endless answers as are given at a time, all of them begun.
fn as_many_as_run(daemon: &Daemon) -> Vec<Stream> {
    let begin = || {
        let mut answer = daemon.post_stream("/generate", &long());
        answer.line().expect("it has begun");
        answer
    };
    iter::repeat_with(begin).take(SIDE_BY_SIDE).collect()
}

#[test]
fn concurrent_clients_all_get_the_right_answer() {
    let mut daemon = with_tiny();
    let ask = |prompt: &str| {
        let request = json!({"prompt": prompt, "max_tokens": 16, "temperature": 0,
            "ignore_eos": true});
        let reply = daemon.post("/generate", &request);
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()["text"].as_str().unwrap().to_owned()
    };
    let prompts = ["one", "two", "three", "four"];
    let alone: Vec<String> = prompts.iter().map(|prompt| ask(prompt)).collect();
    thread::scope(|scope| {
        let clients: Vec<_> =
            (0..16).map(|n| (n % 4, scope.spawn(move || ask(prompts[n % 4])))).collect();
        for (n, client) in clients {
            assert_eq!(client.join().unwrap(), alone[n], "{}", prompts[n]);
        }
    });
    check_healthy(&mut daemon);
}

#[test]
fn a_client_that_leaves_frees_the_model() {
    let daemon = endless(builder());
    drop(as_many_as_run(&daemon));
    // Without a stream as well; closing the connection is all that the daemon sees of it.
    let mut impatient = m40_testkit::http::connect(daemon.http());
    let body = json!({"prompt": "a", "ignore_eos": true}).to_string();
    let head = format!(
        "POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    std::io::Write::write_all(&mut impatient, head.as_bytes()).unwrap();
    drop(impatient);
    // Answered only when not all of those go on: they would take minutes.
    let reply = daemon.post("/generate", &json!({"prompt": "b", "max_tokens": 1}));
    assert_eq!(reply.status, 200, "{}", reply.body);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let mut daemon = endless(builder().config("[limits]\nqueued_jobs_max = 1"));
    let running = as_many_as_run(&daemon);
    let waiting = daemon.post_stream("/generate", &long());
    assert_eq!(waiting.status, 200);
    let refused = daemon.post("/generate", &json!({"prompt": "a"}));
    assert_eq!(refused.status, 429, "{}", refused.body);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("rate_limit_error"), &json!("queue_full"))
    );
    ctl(&daemon, &["run", "tiny", "a"]).fails(75, &["1 requests wait", "try again"]);
    drop(running);
    check_healthy(&mut daemon);
}

#[test]
fn one_load_serves_everybody_who_waits_for_it() {
    let daemon = builder().start();
    let file = tiny(daemon.dir(), "t.gguf");
    ctl(&daemon, &["pull", path_str(&file)]).ok();
    thread::scope(|scope| {
        let clients: Vec<_> =
            (0..8).map(|_| scope.spawn(|| ctl(&daemon, &["load", "t"]).code)).collect();
        for client in clients {
            assert_eq!(client.join().unwrap(), 0);
        }
    });
    let log = daemon.log();
    assert_eq!(log.matches(" loaded model=").count(), 1, "{log}");
}
