//! `m40ctl pull, list, load, run, unload`, and models that are no good.

use m40_testkit::gguf::{GgufBuilder, TinyModel};
use serde_json::Value;

use crate::{builder, check_healthy, ctl, endless, path_str, tiny, with_tiny, write};

#[test]
fn a_model_goes_from_a_file_to_an_answer_and_out_of_memory() {
    let daemon = builder().start();
    let file = tiny(daemon.dir(), "tiny-f32.gguf");
    assert!(ctl(&daemon, &["list"]).ok().err.contains("no models yet"));
    let pulled = ctl(&daemon, &["pull", path_str(&file)]).ok().out;
    assert!(pulled.starts_with("added tiny-f32 ("), "{pulled}");
    let list = ctl(&daemon, &["list"]).ok().out;
    assert!(list.lines().any(|line| line.starts_with("tiny-f32 ") && line.ends_with("stored")));
    // The daemon keeps the model when the file goes away.
    std::fs::remove_file(&file).unwrap();

    let loaded = ctl(&daemon, &["load", "tiny-f32"]).ok().out;
    assert!(loaded.starts_with("loaded tiny-f32 in "), "{loaded}");
    let status = ctl(&daemon, &["status", "--json"]).ok().json();
    assert_eq!(status["models"][0]["state"], "ready");
    assert_eq!(status["models"][0]["loaded"]["context_tokens"], 256);

    let run = ["run", "--temperature", "0", "--max-tokens", "8", "--verbose", "tiny-f32", "hello"];
    let answer = ctl(&daemon, &run).ok();
    assert!(answer.err.contains("prompt ") && answer.err.contains("tokens/s"), "{}", answer.err);
    assert_eq!(ctl(&daemon, &run).ok().out, answer.out);

    assert_eq!(ctl(&daemon, &["unload", "tiny-f32"]).ok().out, "unloaded tiny-f32\n");
    let list = ctl(&daemon, &["list", "--json"]).ok().json();
    assert_eq!(list["models"][0]["state"], "stored");
    ctl(&daemon, &["unload", "tiny-f32"]).fails(1, &["tiny-f32", "not loaded"]);
    ctl(&daemon, &["unload", "nope"]).fails(66, &["nope", "m40ctl list"]);
}

#[test]
fn run_loads_what_is_not_loaded_and_streams_events_as_json() {
    let daemon = builder().start();
    let file = tiny(daemon.dir(), "tiny.gguf");
    ctl(&daemon, &["pull", path_str(&file), "--name", "t:1"]).ok();
    let run = ["run", "--json", "--temperature", "0", "--max-tokens", "4", "t:1", "two", "words"];
    let out = ctl(&daemon, &run).ok().out;
    let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.first().unwrap()["event"], "loaded");
    let last = events.last().unwrap();
    assert_eq!(last["event"], "done");
    assert!(last["stats"]["completion_tokens"].as_u64().unwrap() <= 4);
}

#[test]
fn a_file_is_loaded_where_it_is() {
    let daemon = with_tiny();
    let list = ctl(&daemon, &["list", "--json"]).ok().json();
    assert_eq!(list["models"][0]["name"], "tiny");
    assert_eq!(list["models"][0]["architecture"], "llama");
    assert_eq!(list["models"][0]["imported_at_unix_s"], Value::Null);
    // Another file of the same name is not taken for it.
    let other = daemon.dir().join("other");
    std::fs::create_dir(&other).unwrap();
    let other = tiny(&other, "tiny.gguf");
    ctl(&daemon, &["load", path_str(&other)]).fails(1, &["\"tiny\"", "in use"]);

    // A stored model's own source is that model; another file of its name is not.
    ctl(&daemon, &["unload", "tiny"]).ok();
    let file = daemon.dir().join("tiny.gguf");
    ctl(&daemon, &["pull", path_str(&file)]).ok();
    ctl(&daemon, &["load", path_str(&other)]).fails(1, &["stored model", "--name"]);
    let loaded = ctl(&daemon, &["load", "--json", path_str(&file)]).ok().json();
    assert!(loaded["imported_at_unix_s"].is_u64(), "{loaded}");
}

#[test]
fn a_missing_file_is_named() {
    let mut daemon = builder().start();
    let path = daemon.dir().join("nope.gguf");
    let path = path_str(&path);
    ctl(&daemon, &["load", path]).fails(66, &[path, "does not exist"]);
    ctl(&daemon, &["pull", path]).fails(66, &[path, "there is no file"]);
    ctl(&daemon, &["load", "other"]).fails(66, &["\"other\"", "m40ctl pull"]);
    ctl(&daemon, &["run", "other", "hi"]).fails(66, &["\"other\""]);
    check_healthy(&mut daemon);
}

#[test]
fn a_corrupt_file_is_refused_and_never_listed() {
    let mut daemon = builder().start();
    let whole = TinyModel::new("llama").build();
    let mut wrong_magic = whole.clone();
    wrong_magic[0] = b'X';
    let damaged: [(&str, &[u8]); 4] = [
        ("empty.gguf", b""),
        ("text.gguf", b"this is not a model"),
        ("cut.gguf", &whole[..whole.len() / 2]),
        ("magic.gguf", &wrong_magic),
    ];
    for (name, bytes) in damaged {
        let path = write(daemon.dir(), name, bytes);
        ctl(&daemon, &["pull", path_str(&path)]).fails(65, &[name]);
        ctl(&daemon, &["load", path_str(&path)]).fails(65, &[name]);
    }
    assert_eq!(stored(&daemon), 0);
    let blobs = std::fs::read_dir(daemon.dir().join("state/blobs/sha256")).unwrap();
    assert_eq!(blobs.count(), 0);
    check_healthy(&mut daemon);
}

fn stored(daemon: &m40_testkit::daemon::Daemon) -> usize {
    std::fs::read_dir(daemon.dir().join("state/models")).expect("the state folder").count()
}

#[test]
fn an_unknown_architecture_is_named() {
    let mut daemon = builder().start();
    let model = GgufBuilder::new().meta("general.architecture", "quantumllama").build();
    let path = write(daemon.dir(), "q.gguf", &model);
    ctl(&daemon, &["pull", path_str(&path)]).fails(65, &["q.gguf", "quantumllama", "llama"]);
    ctl(&daemon, &["load", path_str(&path)]).fails(65, &["q.gguf", "quantumllama"]);
    assert!(ctl(&daemon, &["status"]).ok().out.contains("no model is loaded"));
    check_healthy(&mut daemon);
}

#[test]
fn a_stored_model_that_fails_to_load_shows_why_until_it_is_unloaded() {
    let mut daemon = builder().start();
    let path = write(daemon.dir(), "tiny.gguf", &TinyModel::new("llama").build());
    ctl(&daemon, &["pull", path_str(&path)]).ok();
    let blobs = std::fs::read_dir(daemon.dir().join("state/blobs/sha256")).expect("the store");
    for blob in blobs {
        std::fs::write(blob.expect("an entry").path(), "damaged").expect("a writable blob");
    }
    ctl(&daemon, &["load", "tiny"]).fails(65, &["not a GGUF file"]);
    let status = ctl(&daemon, &["status"]).ok().out;
    assert!(status.contains("failed: "), "{status}");
    ctl(&daemon, &["unload", "tiny"]).ok();
    assert!(ctl(&daemon, &["status"]).ok().out.contains("no model is loaded"));
    check_healthy(&mut daemon);
}

#[test]
fn a_failed_load_is_tried_again_on_the_next_request() {
    let daemon = builder().start();
    let path = write(daemon.dir(), "m.gguf", b"not yet");
    ctl(&daemon, &["load", path_str(&path)]).fails(65, &["m.gguf"]);
    tiny(daemon.dir(), "m.gguf");
    ctl(&daemon, &["load", path_str(&path)]).ok();
}

#[test]
fn names_are_checked() {
    let daemon = builder().start();
    let file = tiny(daemon.dir(), "a.gguf");
    let file = path_str(&file);
    for name in ["../evil", ".hidden", "a/b", "", "-x"] {
        let argument = format!("--name={name}");
        ctl(&daemon, &["pull", file, &argument]).fails(64, &["name"]);
    }
    let long = format!("--name={}", "x".repeat(97));
    ctl(&daemon, &["pull", file, &long]).fails(64, &["97 bytes", "96"]);
    assert_eq!(stored(&daemon), 0);

    ctl(&daemon, &["pull", file, "--name", "taken"]).ok();
    let other = write(daemon.dir(), "b.gguf", &TinyModel::new("llama").seed(1).build());
    let other = path_str(&other);
    ctl(&daemon, &["pull", other, "--name", "taken"]).fails(1, &["\"taken\"", "--replace"]);
    ctl(&daemon, &["pull", other, "--name", "taken", "--replace"]).ok();
}

#[test]
fn a_split_model_is_taken_whole() {
    let daemon = builder().start();
    let shards = TinyModel::new("llama").build_shards(2);
    let first = write(daemon.dir(), "big-00001-of-00002.gguf", &shards[0]);
    let pull = ["pull", path_str(&first)];
    ctl(&daemon, &pull).fails(66, &["big-00002-of-00002.gguf", "missing"]);
    write(daemon.dir(), "big-00002-of-00002.gguf", &shards[1]);
    ctl(&daemon, &pull).ok();
    let run = ["run", "--max-tokens", "2", "big", "hi"];
    ctl(&daemon, &run).ok();
}

#[test]
fn a_model_is_unloaded_after_its_answers_or_at_once_when_forced() {
    let mut daemon = endless(builder());
    let long = serde_json::json!({"prompt": "a", "stream": true, "ignore_eos": true});
    let mut answer = daemon.post_stream("/generate", &long);
    answer.line().unwrap();
    ctl(&daemon, &["unload", "--force", "tiny"]).ok();
    let last = std::iter::from_fn(|| answer.line()).last().unwrap();
    assert!(last.contains("the model was unloaded"), "{last}");

    let file = daemon.dir().join("tiny.gguf");
    ctl(&daemon, &["load", path_str(&file)]).ok();
    let mut short = long.clone();
    short["max_tokens"] = 500.into();
    let mut answer = daemon.post_stream("/generate", &short);
    answer.line().unwrap();
    ctl(&daemon, &["unload", "tiny"]).ok();
    let last = std::iter::from_fn(|| answer.line()).last().unwrap();
    assert!(last.contains("\"done\":true"), "{last}");
    check_healthy(&mut daemon);
}

#[test]
fn failures_are_json_when_asked_for() {
    let daemon = builder().start();
    let done = ctl(&daemon, &["load", "--json", "nope"]);
    assert_eq!(done.code, 66);
    let error: Value = serde_json::from_str(&done.err).unwrap();
    assert_eq!(error["error"]["kind"], "not_found");
    assert_eq!(ctl(&daemon, &["frobnicate"]).code, 64);
    assert_eq!(ctl(&daemon, &["run", "--max-tokens", "0", "x", "y"]).code, 64);
    ctl(&daemon, &["run", "x"]).fails(64, &["no prompt"]);
}
