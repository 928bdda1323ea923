//! Models that manifests define, and changes of them while the daemon runs.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use m40_testkit::daemon::{Builder, Daemon};
use m40_testkit::gguf::TinyModel;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{Done, ENDLESS_CONTEXT, builder, check_healthy, ctl, path_str, tiny};

/// The folder of manifests of a daemon that is or will be in this folder.
fn dir(root: &Path) -> PathBuf {
    let dir = root.join("models.d");
    fs::create_dir_all(&dir).expect("the folder of a test");
    dir
}

/// A daemon that is not started yet, with the file `tiny.gguf` and a manifest `m` of it that has
/// these keys more.
fn defined(keys: &str) -> Builder {
    let builder = builder();
    let file = tiny(builder.dir(), "tiny.gguf");
    write(builder.dir(), "m", &format!("source = {:?}\n{keys}\n", path_str(&file)));
    builder
}

fn write(root: &Path, name: &str, text: &str) {
    // As an editor does, so that each change is one.
    let (dir, file) = (dir(root), format!("{name}.toml"));
    let fresh = dir.join(format!(".{file}"));
    fs::write(&fresh, text).expect("a manifest");
    fs::rename(&fresh, dir.join(file)).expect("a manifest");
}

fn source(daemon: &Daemon) -> String {
    format!("source = {:?}\n", path_str(&daemon.dir().join("tiny.gguf")))
}

fn answer(daemon: &Daemon, request: &Value) -> Value {
    let reply = daemon.post("/v1/chat/completions", request);
    assert_eq!(reply.status, 200, "{}", reply.json());
    reply.json()
}

/// A greedy chat of a few tokens with a model.
fn chat(model: &str) -> Value {
    let messages = json!([{"role": "user", "content": "hello"}]);
    json!({"model": model, "messages": messages, "temperature": 0, "max_tokens": 8})
}

fn prompt_tokens(daemon: &Daemon) -> u64 {
    answer(daemon, &chat("m"))["usage"]["prompt_tokens"].as_u64().expect("a count")
}

#[test]
fn a_defined_model_is_listed_loaded_on_request_and_known_by_its_aliases() {
    let daemon =
        defined("aliases = [\"m:latest\", \"default\"]\ncontext_tokens = 128\nkv_type = \"int8\"")
            .start();
    let models = daemon.get("/v1/models").json();
    assert_eq!(models["data"][0]["id"], "m");
    let reply = answer(&daemon, &chat("default"));
    assert_eq!(reply["model"], "m");
    let listed = ctl(&daemon, &["list", "--json"]).ok().json();
    let model = &listed["models"][0];
    assert_eq!((&model["name"], &model["state"]), (&json!("m"), &json!("ready")));
    assert_eq!(model["aliases"], json!(["m:latest", "default"]));
    assert_eq!(model["loaded"]["context_tokens"], 128);
    assert_eq!(model["loaded"]["kv_type"], "int8");
    assert!(model["manifest"].as_str().unwrap().ends_with("models.d/m.toml"));
    assert_eq!(ctl(&daemon, &["unload", "m:latest"]).ok().out, "unloaded m\n");
    ctl(&daemon, &["load", "m:latest"]).ok();

    // Neither the name nor the file is mistaken for another.
    let other = daemon.dir().join("m.gguf");
    fs::copy(daemon.dir().join("tiny.gguf"), &other).unwrap();
    ctl(&daemon, &["load", path_str(&other)]).fails(1, &["\"m\" is defined by", "m.toml"]);
}

#[test]
fn a_model_can_do_what_its_manifest_says_or_else_its_file() {
    let mut daemon = defined("aliases = [\"n\"]").start();
    let can = |daemon: &Daemon, name: &str| {
        let shown = ctl(daemon, &["show", "--json", name]).ok().json();
        shown["capabilities"].clone()
    };
    assert_eq!(can(&daemon, "m"), json!(["completion"]));
    let template = "template = \"{{ tools }}{{ messages[0].content }}<think>\"";
    write(daemon.dir(), "m", &format!("{}{template}", source(&daemon)));
    reloaded(&mut daemon);
    assert_eq!(can(&daemon, "m"), json!(["completion", "tools", "thinking"]));
    let said = "aliases = [\"n\"]\ncapabilities = [\"vision\", \"insert\"]";
    write(daemon.dir(), "m", &format!("{}{said}", source(&daemon)));
    reloaded(&mut daemon);
    assert_eq!(can(&daemon, "n"), json!(["insert", "vision"]));
    let shown = ctl(&daemon, &["show", "m"]).ok().out;
    assert!(shown.contains("can         insert, vision\n"), "{shown}");
    let bare = TinyModel::new("llama").chat_template(None).builder();
    let encoder = bare.meta("llama.pooling_type", 1_u32).build();
    fs::write(daemon.dir().join("e.gguf"), encoder).unwrap();
    write(daemon.dir(), "e", &format!("source = {:?}", path_str(&daemon.dir().join("e.gguf"))));
    reloaded(&mut daemon);
    assert_eq!(can(&daemon, "e"), json!(["embedding"]));
    fs::remove_file(daemon.dir().join("e.gguf")).unwrap();
    assert_eq!(can(&daemon, "e"), Value::Null, "nobody says it");
}

#[test]
fn what_a_definition_says_of_answers_counts_at_once() {
    let mut daemon = defined("[sampling]\ntemperature = 0").start();
    // Without the definition a request that says nothing is sampled at random.
    let plain = json!({"model": "m", "prompt": "hello", "max_tokens": 12});
    let text = |daemon: &Daemon| daemon.post("/generate", &plain).json()["text"].clone();
    let greedy = text(&daemon);
    assert_eq!(text(&daemon), greedy);
    let asked = json!({"model": "m", "prompt": "hello", "max_tokens": 12, "temperature": 0});
    assert_eq!(daemon.post("/generate", &asked).json()["text"], greedy);
    let before = prompt_tokens(&daemon);

    let system = "system = \"You are a daemon.\"";
    write(daemon.dir(), "m", &format!("{}{system}", source(&daemon)));
    reloaded(&mut daemon);
    let with_system = prompt_tokens(&daemon);
    assert!(with_system > before, "{with_system} tokens, {before} without");
    let mut own = chat("m");
    own["messages"].as_array_mut().unwrap().insert(0, json!({"role": "system", "content": "x"}));
    let own = answer(&daemon, &own)["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(own < with_system, "a conversation keeps its own");

    let template = "template = \"{% for m in messages %}{{ m.content }}{% endfor %}\"";
    write(daemon.dir(), "m", &format!("{}{template}", source(&daemon)));
    reloaded(&mut daemon);
    assert!(prompt_tokens(&daemon) < before);

    let first = greedy.as_str().unwrap().chars().next().unwrap();
    let stop = format!("stop = [{:?}]\n[sampling]\ntemperature = 0", first.to_string());
    write(daemon.dir(), "m", &format!("{}{stop}", source(&daemon)));
    reloaded(&mut daemon);
    let stopped = daemon.post("/generate", &plain).json();
    assert_eq!((&stopped["text"], &stopped["finish_reason"]), (&json!(""), &json!("stop")));
    // All of it without a load.
    let status = ctl(&daemon, &["status", "--json"]).ok().json();
    assert_eq!(status["models"].as_array().unwrap().len(), 1);
    assert_eq!(daemon.log().matches("loading").count(), 1, "{}", daemon.log());
}

/// What is on disk counts from here on.
fn reloaded(daemon: &mut Daemon) {
    ctl(daemon, &["reload"]).ok();
}

#[test]
fn a_saved_manifest_counts_without_a_word_and_a_wrong_one_is_told_everywhere() {
    let mut daemon = builder().start();
    let file = tiny(daemon.dir(), "tiny.gguf");
    write(daemon.dir(), "m", &format!("source = {:?}\n", path_str(&file)));
    daemon.notification_with("STATUS=serving on ");
    ctl(&daemon, &["load", "m"]).ok();

    write(daemon.dir(), "m", &format!("source = {:?}\nprioritty = 1\n", path_str(&file)));
    let status = daemon.notification_with("m.toml:2:1: unknown key `prioritty`");
    assert!(status.contains("did you mean `priority`?"), "{status}");
    assert!(daemon.log().contains("m.toml:2:1: unknown key"), "{}", daemon.log());
    let said = ctl(&daemon, &["status"]).ok().out;
    assert!(said.contains("m.toml:2:1: unknown key") && said.contains("go on serving"), "{said}");
    let json = ctl(&daemon, &["status", "--json"]).ok().json();
    assert_eq!(json["manifest_problems"][0]["place"]["line"], 2);
    assert_eq!(json["models"][0]["state"], "ready");

    let reload = ctl(&daemon, &["reload"]);
    assert_eq!(
        (reload.code, reload.err.as_str()),
        (65, "m40ctl: a manifest is wrong: mend what is shown above; saving it is enough\n")
    );
    assert!(reload.out.contains("    2 | prioritty = 1\n      | ^\n"), "{}", reload.out);
    answer(&daemon, &chat("m"));

    fs::remove_file(dir(daemon.dir()).join("m.toml")).unwrap();
    daemon.notification_with("STATUS=serving on ");
    check_gone(&daemon);
    check_healthy(&mut daemon);
}

#[track_caller]
fn check_gone(daemon: &Daemon) {
    let reply = daemon.post("/v1/chat/completions", &chat("m"));
    assert_eq!(reply.status, 404, "{}", reply.json());
}

/// Writes a manifest and leaves it open, which keeps the daemon from reading it by itself.
fn write_and_hold(daemon: &Daemon, name: &str, text: &str) -> File {
    let mut file = File::create(dir(daemon.dir()).join(format!("{name}.toml"))).expect("a file");
    file.write_all(text.as_bytes()).expect("a file that is open");
    file
}

#[test]
fn a_dry_run_shows_what_would_change_and_when_it_counts_and_a_reload_does_it() {
    let daemon = defined("context_tokens = 128\npriority = 1").start();
    ctl(&daemon, &["load", "m"]).ok();
    let unchanged = ctl(&daemon, &["reload", "--dry-run"]).ok().out;
    assert_eq!(unchanged, "nothing changes\n");
    let text = format!("{}context_tokens = 64\npriority = 2\n", source(&daemon));
    let _held = write_and_hold(&daemon, "m", &text);
    let told = ctl(&daemon, &["reload", "--dry-run"]).ok().out;
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("~ m  (") && lines[0].ends_with("m.toml)"), "{told}");
    assert_eq!(lines[1], "    context_tokens: 128 -> 64  [at the next load]");
    assert_eq!(lines[2], "    priority: 1 -> 2  [at once]");
    let json = ctl(&daemon, &["reload", "--json"]).ok().json();
    assert_eq!((&json["dry_run"], &json["changes"][0]["model"]), (&json!(false), &json!("m")));
    assert_eq!(ctl(&daemon, &["reload"]).ok().out, "nothing changes\n");
    // A loaded model goes on with the context it has, and has the new one when it comes again.
    assert_eq!(context(&daemon), 128);
    ctl(&daemon, &["unload", "m"]).ok();
    ctl(&daemon, &["load", "m"]).ok();
    assert_eq!(context(&daemon), 64);
}

fn context(daemon: &Daemon) -> u64 {
    let status = ctl(daemon, &["status", "--json"]).ok().json();
    status["models"][0]["loaded"]["context_tokens"].as_u64().expect("a loaded model")
}

#[test]
fn hangup_rereads_the_manifests_before_it_says_ready() {
    let mut daemon = defined("").start();
    let text = format!("{}aliases = [\"other\"]", source(&daemon));
    let _held = write_and_hold(&daemon, "m", &text);
    daemon.signal(Signal::SIGHUP);
    daemon.notification("RELOADING=1");
    daemon.notification("READY=1");
    ctl(&daemon, &["load", "other"]).ok();
}

#[test]
fn another_source_lets_a_running_answer_end_and_serves_the_next_one() {
    let builder = builder();
    let long = TinyModel::new("llama").context(ENDLESS_CONTEXT).build();
    let long = crate::write(builder.dir(), "long.gguf", &long);
    let short = tiny(builder.dir(), "tiny.gguf");
    let context = format!("context_tokens = {ENDLESS_CONTEXT}\n");
    write(builder.dir(), "m", &format!("source = {:?}\n{context}", path_str(&long)));
    write(builder.dir(), "n", &format!("source = {:?}\npreload = true\n", path_str(&short)));
    let mut daemon = builder.start();
    let request = json!({"model": "m", "prompt": "a", "stream": true, "ignore_eos": true,
        "temperature": 0, "max_tokens": 3000});
    let mut running = daemon.post_stream("/generate", &request);
    let mut lines = vec![running.line().expect("the first token")];
    ctl(&daemon, &["load", "n"]).ok();

    write(daemon.dir(), "m", &format!("source = {:?}\n", path_str(&short)));
    ctl(&daemon, &["reload"]).ok();
    // Asked of the new one, which waits for the old one's answer.
    let next = answer(&daemon, &chat("m"));
    assert_eq!(next["model"], "m");
    lines.extend(std::iter::from_fn(|| running.line()));
    let last: Value = serde_json::from_str(lines.last().unwrap()).unwrap();
    assert_eq!((&last["done"], &last["usage"]["completion_tokens"]), (&json!(true), &json!(3000)));
    let status = ctl(&daemon, &["status", "--json"]).ok().json();
    let models = status["models"].as_array().unwrap();
    assert_eq!(models.len(), 2, "{status}");
    assert_eq!(models[0]["loaded"]["context_tokens"], 256);
    assert_eq!(models[0]["source"].as_str(), short.to_str());
    // The other model never noticed.
    assert_eq!(daemon.log().matches("unloading").count(), 1, "{}", daemon.log());
    assert_eq!(models[1]["state"], "ready");
    check_healthy(&mut daemon);
}

#[test]
fn a_model_is_loaded_before_anybody_asks_when_its_definition_says_so() {
    let mut daemon = defined("preload = true").start();
    let model =
        |daemon: &Daemon| ctl(daemon, &["status", "--json"]).ok().json()["models"][0].clone();
    // Loading it joins the load that is under way, or finds it done.
    ctl(&daemon, &["load", "m"]).ok();
    assert_eq!(daemon.log().matches("loading").count(), 1, "{}", daemon.log());
    assert_eq!(model(&daemon)["state"], "ready");
    check_healthy(&mut daemon);
}

#[test]
fn a_file_that_is_not_there_is_said_to_be_missing() {
    let daemon = builder();
    write(daemon.dir(), "near", "source = \"/nowhere/m.gguf\"\n");
    let daemon = daemon.start();
    let list = ctl(&daemon, &["list"]).ok().out;
    let missing =
        |line: &str| line.starts_with("near ") && line.contains("failed: there is no file");
    assert!(list.lines().any(missing), "{list}");
    ctl(&daemon, &["load", "near"]).fails(66, &["/nowhere/m.gguf", "does not exist"]);
}

#[test]
fn a_context_that_the_model_does_not_have_is_refused_when_it_is_loaded() {
    let daemon = defined("context_tokens = 100000").start();
    ctl(&daemon, &["load", "m"]).fails(65, &["100000 tokens", "1 to 256"]);
}

#[test]
fn the_check_of_the_configuration_checks_the_manifests() {
    let builder = defined("");
    let check = |builder: &Builder| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_m40d"));
        command.env_clear().env("HOME", "/nonexistent").arg("--check-config");
        command.env("CONFIGURATION_DIRECTORY", builder.dir());
        Done::from(&command.output().expect("m40d must run"))
    };
    assert_eq!(check(&builder).ok().err, "");
    write(builder.dir(), "one", "sorce = 1\n");
    write(builder.dir(), "two", "source = \"/a\"\nname = \"m\"\n");
    let done = check(&builder);
    assert_eq!(done.code, 78);
    let lines: Vec<&str> = done.err.lines().collect();
    assert_eq!(lines.len(), 2, "{}", done.err);
    assert!(lines[0].contains("one.toml:1:1: unknown key `sorce`"), "{}", done.err);
    assert!(lines[1].contains("two.toml:2:8: the name \"m\" is taken by "), "{}", done.err);
}

#[test]
fn an_alias_takes_a_name_from_a_file_that_was_loaded_where_it_is() {
    let daemon = defined("").start();
    let other = daemon.dir().join("other.gguf");
    fs::copy(daemon.dir().join("tiny.gguf"), &other).unwrap();
    ctl(&daemon, &["load", path_str(&other)]).ok();
    write(daemon.dir(), "m", &format!("{}aliases = [\"other\"]\n", source(&daemon)));
    ctl(&daemon, &["reload"]).ok();
    assert_eq!(answer(&daemon, &chat("other"))["model"], "m");
    // The file is found by its path no more, and leaves memory.
    ctl(&daemon, &["load", path_str(&other)]).fails(1, &["\"m\" is defined by"]);
    until("one model in memory", || {
        let models = &ctl(&daemon, &["status", "--json"]).ok().json()["models"];
        models.as_array().is_some_and(|models| models.len() == 1)
    });
    ctl(&daemon, &["unload", "other"]).ok();
    ctl(&daemon, &["unload", "other"]).fails(1, &["not loaded"]);
}

/// Asks until it is so.
#[track_caller]
pub(crate) fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < deadline, "never {what}");
    }
}

/// True until it is dropped, also by a failing test.
struct Edits<'a>(&'a AtomicBool);

impl Drop for Edits<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// How long a new name takes from the save of its manifest to its first answer.
fn saved_to_served(daemon: &Daemon, source: &str, edit: usize) -> Duration {
    let alias = format!("timed-{edit}");
    write(daemon.dir(), "timed", &format!("{source}aliases = [{alias:?}]\n"));
    let saved = Instant::now();
    let request = json!({"model": alias, "prompt": "a", "max_tokens": 1});
    until("served by its new name", || match daemon.post("/generate", &request).status {
        200 => true,
        404 => false,
        other => panic!("status {other}"),
    });
    saved.elapsed()
}

#[test]
fn a_thousand_edits_right_and_wrong_fail_no_request_for_another_model() {
    // Nobody is there.
    let builder =
        builder().config("[store]\nproxy = \"none\"\nhugging_face = \"http://127.0.0.1:1\"");
    let file = tiny(builder.dir(), "tiny.gguf");
    let source = format!("source = {:?}\n", path_str(&file));
    write(builder.dir(), "kept", &format!("{source}pin = true\n"));
    write(builder.dir(), "also", &format!("{source}preload = true\n"));
    let mut daemon = builder.start();
    ctl(&daemon, &["load", "kept"]).ok();
    let texts = [
        source.clone(),
        format!("{source}priority = 7\n"),
        format!("{source}context_tokens = 64\n"),
        format!("{source}aliases = [\"kept\"]\n"),
        format!("{source}name = \"x\"\n"),
        format!("[[model]]\nname = \"x\"\n{source}[[model]]\nname = \"y\"\n{source}"),
        "source = \"hf:org/repo:Q8_0\"\n".to_owned(),
        format!("{source}contxt_tokens = 1\n"),
        source[..source.len() / 2].to_owned(),
        String::new(),
    ];
    let dir = dir(daemon.dir());
    let editing = AtomicBool::new(true);
    let (served, mut times) = thread::scope(|scope| {
        let edits = Edits(&editing);
        let (daemon, editing) = (&daemon, &editing);
        let ask = |model: &'static str| {
            move || {
                let mut served = 0;
                while editing.load(Ordering::Relaxed) {
                    answer(daemon, &chat(model));
                    served += 1;
                }
                served
            }
        };
        let asking = ["kept", "also", "kept", "also"].map(|model| scope.spawn(ask(model)));
        let mut times = vec![];
        // An ordinary linear congruential generator: the same edits each time.
        let mut state = 4_u32;
        let mut random = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as usize % below
        };
        for edit in 0..1000 {
            let path = dir.join(format!("edited-{}.toml", random(8)));
            let text = &texts[random(texts.len())];
            match random(4) {
                0 => drop(fs::remove_file(&path)),
                1 => fs::write(&path, text).expect("a manifest"),
                _ => {
                    let fresh = dir.join("fresh");
                    fs::write(&fresh, text).expect("a manifest");
                    fs::rename(&fresh, &path).expect("a manifest");
                }
            }
            if edit % 25 == 0 {
                times.push(saved_to_served(daemon, &source, edit));
                let reload = ctl(daemon, &["reload"]);
                assert!(matches!(reload.code, 0 | 65), "{}", reload.err);
                // Whatever the rest is: the one that is loaded stays defined.
                let list = ctl(daemon, &["list", "--json"]).ok().json();
                let models = list["models"].as_array().expect("a list");
                assert!(models.iter().any(|model| model["name"] == "kept"), "{list}");
            }
        }
        drop(edits);
        let served = asking.map(|asking| asking.join().expect("no request may fail"));
        (served, times)
    });
    assert!(served.iter().all(|&served| served > 0));
    times.sort();
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    println!("from saving to serving: {median:?}, at most {most:?}; requests served: {served:?}");
    for n in 0..8 {
        let _ = fs::remove_file(dir.join(format!("edited-{n}.toml")));
    }
    write(daemon.dir(), "last", &source);
    ctl(&daemon, &["reload"]).ok();
    let list = ctl(&daemon, &["list", "--json"]).ok().json();
    let names: Vec<_> = list["models"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    assert_eq!(names, ["also", "kept", "last", "timed"]);
    assert!(!daemon.log().contains("unloading"), "{}", daemon.log());
    check_healthy(&mut daemon);
}

#[test]
fn a_model_whose_source_changes_all_the_time_loses_no_request() {
    let builder = builder();
    let files = ["one.gguf", "two.gguf"].map(|name| tiny(builder.dir(), name));
    let define = |root: &Path, n: usize| {
        write(root, "m", &format!("source = {:?}\n", path_str(&files[n % 2])));
    };
    define(builder.dir(), 0);
    let daemon = builder.start();
    let editing = AtomicBool::new(true);
    thread::scope(|scope| {
        let edits = Edits(&editing);
        let ask = || {
            while editing.load(Ordering::Relaxed) {
                answer(&daemon, &chat("m"));
            }
        };
        let asking = [scope.spawn(ask), scope.spawn(ask)];
        for n in 1..40 {
            define(daemon.dir(), n);
            ctl(&daemon, &["reload"]).ok();
        }
        drop(edits);
        for asking in asking {
            asking.join().expect("no request may fail");
        }
    });
    assert!(daemon.log().contains("unloading"), "{}", daemon.log());
}

#[test]
fn a_manifest_that_is_wrong_at_the_start_does_not_keep_the_others_from_serving() {
    let builder = defined("");
    write(builder.dir(), "wrong", "sorce = 1\n");
    let mut daemon = builder.start();
    answer(&daemon, &chat("m"));
    assert!(daemon.log().contains("wrong.toml:1:1: unknown key `sorce`"), "{}", daemon.log());
    check_healthy(&mut daemon);
}
