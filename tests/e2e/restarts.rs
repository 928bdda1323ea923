//! Restarts under load, with the socket held by the test as systemd holds it.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use m40_testkit::gguf::TinyModel;
use m40_testkit::http;
use serde_json::{Value, json};

use crate::{builder, path_str, write};

/// Clients at a time, each with a stream.
const CLIENTS: usize = 16;

/// Restarts, unless `M40_RESTARTS` says how many.
const RESTARTS: usize = 4;

/// Tokens of an answer.
const TOKENS: u32 = 400;

/// What comes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Begun,
    Finished,
    ToldWhyNot,
}

/// Asks until told to stop. Whatever is neither an answer as a whole nor an error that says why panics.
fn ask(address: SocketAddr, seen: &Sender<Seen>, over: &AtomicBool) {
    let see = |what| seen.send(what).expect("the test counts");
    let request = json!({"model": "tiny", "prompt": "a", "stream": true, "ignore_eos": true,
        "temperature": 0, "max_tokens": TOKENS});
    while !over.load(Ordering::Relaxed) {
        let mut answer = http::stream(address, "/generate", &request);
        let mut last = None;
        while let Some(line) = answer.line() {
            if last.is_none() && answer.status == 200 {
                see(Seen::Begun);
            }
            last = Some(line);
        }
        let last = last.expect("a response says something");
        let last: Value = serde_json::from_str(&last).expect("each line is JSON");
        match (answer.status, &last["error"]["code"]) {
            (200, Value::Null) => {
                assert_eq!(last["usage"]["completion_tokens"], TOKENS, "{last}");
                see(Seen::Finished);
            }
            (status, code) => {
                assert!(status == 200 || status == 503, "{status}: {last}");
                assert_eq!(code, "stopping", "{last}");
                see(Seen::ToldWhyNot);
            }
        }
    }
}

#[test]
fn restarts_refuse_nobody_and_tell_those_whom_they_cut_short() {
    let restarts = std::env::var("M40_RESTARTS").ok().and_then(|text| text.parse().ok());
    let restarts: usize = restarts.unwrap_or(RESTARTS);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let given = builder().config("[limits]\nshutdown_grace_s = 1").hand_over("http", listener);
    let file = write(given.dir(), "tiny.gguf", &TinyModel::new("llama").context(4096).build());
    std::fs::create_dir(given.dir().join("models.d")).unwrap();
    let manifest = format!("source = {:?}\npreload = true\n", path_str(&file));
    write(&given.dir().join("models.d"), "tiny.toml", manifest.as_bytes());

    let over = AtomicBool::new(false);
    let (sender, seen) = channel();
    let (mut counts, mut longest_stop) = (BTreeMap::new(), Duration::ZERO);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            let (sender, over) = (sender.clone(), &over);
            scope.spawn(move || ask(address, &sender, over));
        }
        drop(sender);
        let mut count = |what| *counts.entry(what).or_insert(0) += 1;
        for restart in 0..=restarts {
            let mut daemon = given.clone().start();
            // The last one answers until nobody asks any more.
            over.store(restart == restarts, Ordering::Relaxed);
            let most = if restart == restarts { usize::MAX } else { CLIENTS };
            seen.iter()
                .inspect(|what| count(*what))
                .filter(|what| *what == Seen::Begun)
                .take(most)
                .count();
            let told = Instant::now();
            assert!(daemon.stop().success());
            longest_stop = longest_stop.max(told.elapsed());
        }
    });
    assert!(counts.contains_key(&Seen::Finished), "{counts:?}");
    assert!(counts.contains_key(&Seen::ToldWhyNot), "{counts:?}");
    let _ = writeln!(
        std::io::stderr(),
        "{restarts} restarts under {CLIENTS} clients: {counts:?}, the longest stop {longest_stop:?}"
    );
}
