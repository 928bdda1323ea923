//! `m40ctl pull` of what is not on this machine.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use m40_testkit::gguf::TinyModel;
use m40_testkit::origin::{Fault, Origin};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::sources::{CHUNK, at, check_serves, define, listed, padded, sha256, until};
use crate::{Done, M40CTL, ctl};

#[test]
fn a_source_becomes_a_model_with_a_name_of_its_own() {
    let origin = Origin::start();
    let model = TinyModel::new("llama").build();
    origin.hugging_face_file("org/Tiny-GGUF", "q/tiny-Q8_0.gguf", model.clone(), &sha256(&model));
    let tree = [("q/tiny-Q8_0.gguf", sha256(&model), model.len() as u64)];
    let tree: Vec<_> =
        tree.iter().map(|(path, hash, size)| (*path, hash.as_str(), *size)).collect();
    origin.hugging_face_tree("org/Tiny-GGUF", &tree);
    let daemon = at(&origin).start();
    let pulled = ctl(&daemon, &["pull", "hf:org/Tiny-GGUF:Q8_0"]).ok().out;
    assert!(pulled.starts_with("added Tiny:Q8_0 ("), "{pulled}");
    assert_eq!(listed(&daemon, "Tiny:Q8_0")["source"], "hf:org/Tiny-GGUF:Q8_0");
    check_serves(&daemon, "Tiny:Q8_0");
    let again = ctl(&daemon, &["pull", "Tiny:Q8_0"]).ok().out;
    assert!(again.starts_with("Tiny:Q8_0 is here"), "{again}");

    let events = ctl(&daemon, &["pull", "--json", "--update", "Tiny:Q8_0"]).ok().out;
    let events: Vec<Value> =
        events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["event"], "begun");
    assert_eq!((&events[0]["goes_on"], events.len() >= 2), (&Value::Bool(false), true));
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["model"]["name"]), (&"done".into(), &"Tiny:Q8_0".into()));

    ctl(&daemon, &["pull", "hf:org/Tiny-GGUF:Q4_0"]).fails(66, &["Q4_0", "tiny-Q8_0.gguf"]);
    ctl(&daemon, &["pull", "hf:nothing"]).fails(64, &["hf:nothing"]);
    ctl(&daemon, &["pull", "unknown"]).fails(66, &["\"unknown\"", "m40ctl list", "hf:"]);
    let other = ["pull", "hf:org/Tiny-GGUF/q/tiny-Q8_0.gguf", "--name", "Tiny:Q8_0"];
    ctl(&daemon, &other).fails(1, &["\"Tiny:Q8_0\"", "--replace"]);
}

#[test]
fn two_who_want_one_source_share_one_download() {
    let origin = Origin::start();
    origin.file("/m.gguf", padded(2 * CHUNK));
    origin.fault("/m.gguf", Fault::HoldAfter(1000));
    let daemon = at(&origin).start();
    let url = origin.url("/m.gguf");
    let pulls = ["one", "two"].map(|name| {
        let mut command = daemon.ctl(M40CTL, &["pull", "--json", &url, "--name", name]);
        let mut pull = command.stdout(Stdio::piped()).spawn().expect("m40ctl must run");
        let mut lines = BufReader::new(pull.stdout.take().expect("a pipe")).lines();
        let first = lines.next().expect("a line").expect("text");
        assert!(first.contains("\"begun\""), "{first}");
        (pull, lines)
    });
    origin.wait_for_held(1);
    origin.release();
    for (mut pull, lines) in pulls {
        let lines: Vec<String> = lines.map(|line| line.expect("text")).collect();
        assert!(lines.last().is_some_and(|line| line.contains("\"done\"")), "{lines:?}");
        // What is done never becomes less.
        let done = |line: &String| {
            let event: Value = serde_json::from_str(line).expect("JSON");
            event["done_bytes"].as_u64()
        };
        assert!(lines.iter().filter_map(done).is_sorted(), "{lines:?}");
        assert!(pull.wait().expect("a child").success());
    }
    assert_eq!(origin.seen_at("/m.gguf").len(), 1);
    check_serves(&daemon, "one");
    check_serves(&daemon, "two");
}

#[test]
fn an_interrupted_pull_ends_and_the_same_command_goes_on_but_that_of_a_manifest_goes_on_by_itself()
{
    let origin = Origin::start();
    origin.file("/m.gguf", padded(2 * CHUNK));
    origin.file("/d.gguf", padded(CHUNK));
    origin.fault("/m.gguf", Fault::HoldAfter(CHUNK as u64 + 1));
    origin.fault("/d.gguf", Fault::HoldAfter(1000));
    let builder = at(&origin);
    define(builder.dir(), "d", &format!("source = {:?}\n", origin.url("/d.gguf")));
    let daemon = builder.start();
    let interrupted = |source: &str, until: &str| {
        let mut command = daemon.ctl(M40CTL, &["pull", "--json", source]);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut pull = command.spawn().expect("m40ctl must run");
        let mut lines = BufReader::new(pull.stdout.take().expect("a pipe")).lines();
        while !lines.next().expect("a line").expect("text").contains(until) {}
        kill(Pid::from_raw(pull.id() as i32), Signal::SIGINT).expect("m40ctl must be there");
        Done::from(&pull.wait_with_output().expect("m40ctl must end"))
    };
    let url = origin.url("/m.gguf");
    let done = format!("\"done_bytes\":{CHUNK}");
    let stopped = interrupted(&url, &done);
    stopped.fails(130, &["was stopped", "goes on with it"]);
    interrupted("d", "begun").fails(130, &["the download goes on", "m40ctl list"]);
    origin.release();
    ctl(&daemon, &["pull", &url]).ok();
    let range = format!("bytes={CHUNK}-");
    let seen = origin.seen_at("/m.gguf");
    assert!(seen[1].header("range").is_some_and(|found| found.starts_with(&range)), "{seen:?}");
    check_serves(&daemon, "m");
    ctl(&daemon, &["pull", "d"]).ok();
    assert_eq!(origin.seen_at("/d.gguf").len(), 1);
}

#[test]
fn a_pull_that_a_restart_cut_goes_on_by_itself_and_one_that_was_given_up_does_not() {
    let origin = Origin::start();
    origin.file("/m.gguf", padded(2 * CHUNK));
    origin.file("/up.gguf", padded(CHUNK));
    origin.fault("/m.gguf", Fault::HoldAfter(CHUNK as u64 + 1));
    origin.fault("/up.gguf", Fault::HoldAfter(1000));
    let daemon = at(&origin).start();
    let begun = |path: &str| {
        let mut command = daemon.ctl(M40CTL, &["pull", "--json", &origin.url(path)]);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut pull = command.spawn().expect("m40ctl must run");
        let mut lines = BufReader::new(pull.stdout.take().expect("a pipe")).lines();
        assert!(lines.next().expect("a line").expect("text").contains("begun"));
        // It would end if nobody read on.
        (pull, lines)
    };
    let pulls = daemon.dir().join("state/pulls");
    let is_noted = |name: &str| pulls.join(name).exists();
    let (mut given_up, _lines) = begun("/up.gguf");
    until("on disk", || is_noted("up.toml"));
    kill(Pid::from_raw(given_up.id() as i32), Signal::SIGINT).expect("m40ctl must be there");
    given_up.wait().expect("m40ctl must end");
    until("forgotten", || !is_noted("up.toml"));
    let (mut cut, _lines) = begun("/m.gguf");
    until("on disk", || is_noted("m.toml"));
    let builder = daemon.crash();
    cut.wait().expect("m40ctl must end");
    origin.release();
    let daemon = builder.start();
    until("here", || listed(&daemon, "m")["state"] == "stored");
    check_serves(&daemon, "m");
    until("forgotten", || !is_noted("m.toml"));
    assert_eq!(listed(&daemon, "up"), Value::Null);
}

#[test]
fn what_is_no_model_is_refused_and_what_does_not_fit_on_the_disk_too_with_both_numbers() {
    let origin = Origin::start();
    origin.file("/text.gguf", &b"this is not a model"[..]);
    let size = 1_u64 << 60;
    origin.hugging_face_tree("org/big", &[("big-F32.gguf", &sha256(b"big"), size)]);
    let daemon = at(&origin).start();
    ctl(&daemon, &["pull", &origin.url("/text.gguf")]).fails(65, &["text.gguf"]);
    assert_eq!(listed(&daemon, "text"), Value::Null);
    let full = ctl(&daemon, &["pull", "hf:org/big:F32"]);
    full.fails(73, &["not enough space", "1152921504.6 GB more needed", " free"]);
    let json = ctl(&daemon, &["pull", "--json", "hf:org/big:F32"]);
    let error: Value = serde_json::from_str(&json.err).unwrap();
    assert_eq!((json.code, &error["error"]["kind"]), (73, &"no_space".into()));
}
