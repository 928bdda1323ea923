//! Models that manifests define and whose files come from elsewhere.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use m40_testkit::daemon::{Builder, Daemon};
use m40_testkit::gguf::TinyModel;
use m40_testkit::origin::{Fault, Layer, Origin};
use serde_json::{Value, json};

use crate::{builder, check_healthy, ctl, path_str, tiny};

/// Bytes after each of which a download notes what it has.
pub(crate) const CHUNK: usize = 4 << 20;

/// A daemon that is not started yet, whose registries are this origin.
pub(crate) fn at(origin: &Origin) -> Builder {
    let url = origin.url("");
    builder().config(&format!(
        "[store]\nproxy = \"none\"\nconnections = 1\ntries_max = 4\nretry_wait_s_max = 1\n\
         hugging_face = {url:?}\nollama = {url:?}\n"
    ))
}

pub(crate) fn define(root: &Path, name: &str, text: &str) {
    // As an editor does, so that each change is one.
    let dir = root.join("models.d");
    fs::create_dir_all(&dir).expect("the folder of a test");
    let fresh = dir.join(format!(".{name}"));
    fs::write(&fresh, text).expect("a manifest");
    fs::rename(&fresh, dir.join(format!("{name}.toml"))).expect("a manifest");
}

/// A tiny model with so many bytes behind it that nobody reads.
pub(crate) fn padded(bytes: usize) -> Vec<u8> {
    let mut model = TinyModel::new("llama").build();
    let mut random = 7_u32;
    model.extend(
        std::iter::repeat_with(|| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as u8
        })
        .take(bytes),
    );
    model
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    m40_store::Sha256::of(bytes).to_string()
}

/// What lists say of a model.
pub(crate) fn listed(daemon: &Daemon, name: &str) -> Value {
    let list = ctl(daemon, &["list", "--json"]).ok().json();
    let models = list["models"].as_array().expect("a list");
    models.iter().find(|model| model["name"] == name).cloned().unwrap_or(Value::Null)
}

/// Asks until it is so.
#[track_caller]
pub(crate) fn until(what: &str, is: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(Instant::now() < deadline, "never {what}");
    }
}

pub(crate) fn chat(model: &str) -> Value {
    let messages = json!([{"role": "user", "content": "hello"}]);
    json!({"model": model, "messages": messages, "temperature": 0, "max_tokens": 4})
}

#[track_caller]
pub(crate) fn check_serves(daemon: &Daemon, model: &str) {
    let reply = daemon.post("/v1/chat/completions", &chat(model));
    assert_eq!(reply.status, 200, "{}", reply.json());
}

#[test]
fn what_a_saved_manifest_names_is_fetched_and_served_and_who_asks_meanwhile_is_told_how_far_it_is()
{
    let origin = Origin::start();
    let model = TinyModel::new("llama").build();
    let at_origin = "/org/repo/resolve/main/tiny.gguf";
    origin.hugging_face_file("org/repo", "tiny.gguf", model.clone(), &sha256(&model));
    origin.fault(at_origin, Fault::Nothing);
    origin.fault(at_origin, Fault::HoldAfter(1000));
    let mut daemon = at(&origin).start();
    define(daemon.dir(), "far", "source = \"hf:org/repo/tiny.gguf\"\naliases = [\"f\"]\n");
    origin.wait_for_held(1);
    let entry = listed(&daemon, "far");
    assert_eq!(entry["state"], "remote", "{entry}");
    assert_eq!(entry["progress"]["total_bytes"], model.len() as u64);
    for list in [&["list"][..], &["status"], &["show", "f"]] {
        let said = ctl(&daemon, list).ok().out;
        assert!(said.contains("remote, ") && said.contains("far"), "{said}");
    }
    ctl(&daemon, &["load", "far"]).fails(75, &["\"far\"", "is not here yet"]);
    let reply = daemon.post("/v1/chat/completions", &chat("f"));
    assert_eq!((reply.status, reply.header("retry-after").is_some()), (503, true));
    origin.release();
    let pulled = ctl(&daemon, &["pull", "f"]).ok().out;
    assert!(pulled.starts_with("far is here") || pulled.starts_with("added far"), "{pulled}");
    check_serves(&daemon, "f");
    assert_eq!(listed(&daemon, "far")["source"], "hf:org/repo/tiny.gguf");
    let shown = ctl(&daemon, &["show", "--json", "far"]).ok().json();
    assert_eq!(shown["files"][0]["sha256"], sha256(&model));
    assert_eq!(origin.seen_at(at_origin).len(), 2);

    // Nobody needs to be asked again.
    drop(origin);
    let daemon_again = daemon.crash().start();
    check_serves(&daemon_again, "far");
    daemon = daemon_again;
    check_healthy(&mut daemon);
}

#[test]
fn a_download_that_a_crash_cut_goes_on_where_it_was() {
    let origin = Origin::start();
    let bytes = padded(3 * CHUNK);
    origin.file("/m.gguf", bytes.clone());
    origin.fault("/m.gguf", Fault::HoldAfter(2 * CHUNK as u64 + 5));
    let builder = at(&origin);
    let keys = format!("sha256 = {:?}\nsize_bytes = {}\n", sha256(&bytes), bytes.len());
    define(builder.dir(), "m", &format!("source = {:?}\n{keys}", origin.url("/m.gguf")));
    let daemon = builder.start();
    origin.wait_for_held(1);
    until("two chunks on disk", || {
        listed(&daemon, "m")["progress"]["done_bytes"].as_u64() >= Some(2 * CHUNK as u64)
    });
    let builder = daemon.crash();
    origin.release();
    let daemon = builder.start();
    ctl(&daemon, &["pull", "m"]).ok();
    check_serves(&daemon, "m");
    let seen = origin.seen_at("/m.gguf");
    let range = format!("bytes={}-", 2 * CHUNK);
    assert!(seen.last().unwrap().header("range").unwrap().starts_with(&range), "{seen:?}");
}

#[test]
fn whatever_the_origin_does_the_model_is_right_or_the_reason_is_told() {
    let origin = Origin::start();
    let bytes = padded(CHUNK);
    origin.file("/m.gguf", bytes.clone());
    for fault in [
        Fault::Status(503, Some("0")),
        Fault::ResetAfter(CHUNK as u64 + 7),
        Fault::Corrupt(12),
        Fault::Chunked,
    ] {
        origin.fault("/m.gguf", fault);
    }
    origin.always("/gone.gguf", Fault::Status(403, None));
    origin.always("/down.gguf", Fault::Status(503, Some("0")));
    let daemon = at(&origin).start();
    let source = |path: &str| format!("source = {:?}\n", origin.url(path));
    let right = format!("sha256 = {:?}\n", sha256(&bytes));
    let wrong = format!("sha256 = {:?}\n", sha256(b"another"));
    define(daemon.dir(), "m", &(source("/m.gguf") + &right));
    define(daemon.dir(), "gone", &source("/gone.gguf"));
    ctl(&daemon, &["reload"]).ok();
    ctl(&daemon, &["pull", "m"]).ok();
    check_serves(&daemon, "m");
    ctl(&daemon, &["pull", "gone"]).fails(76, &["gone.gguf", "403", "token"]);
    until("failed", || listed(&daemon, "gone")["failure"].is_string());
    // What may pass is tried again for a manifest only.
    let down = ctl(&daemon, &["pull", &origin.url("/down.gguf?key=secret")]);
    down.fails(76, &["down.gguf", "503", "what came is kept"]);
    assert!(!down.err.contains("tried again"), "{}", down.err);
    define(daemon.dir(), "down", &source("/down.gguf?key=secret"));
    ctl(&daemon, &["reload"]).ok();
    ctl(&daemon, &["pull", "down"]).fails(76, &["503", "tried again in "]);
    assert!(!daemon.log().contains("secret"), "{}", daemon.log());
    let reply = daemon.post("/v1/chat/completions", &chat("gone"));
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("could not be fetched"));

    // Another hash makes it another file, which is not there.
    define(daemon.dir(), "m", &(source("/m.gguf") + &wrong));
    ctl(&daemon, &["reload"]).ok();
    ctl(&daemon, &["pull", "m"]).fails(65, &["SHA-256", &sha256(&bytes), &sha256(b"another")]);
    ctl(&daemon, &["load", "m"]).fails(65, &["\"m\" could not be fetched", "SHA-256"]);
    define(daemon.dir(), "m", &(source("/m.gguf") + &right));
    ctl(&daemon, &["reload"]).ok();
    check_serves(&daemon, "m");
}

#[test]
fn a_path_of_this_machine_is_held_to_its_hash_and_size() {
    let builder = builder();
    let file = tiny(builder.dir(), "tiny.gguf");
    let bytes = fs::read(&file).unwrap();
    let source = format!("source = {:?}\n", path_str(&file));
    let sha = |bytes: &[u8]| format!("sha256 = {:?}\n", sha256(bytes));
    define(builder.dir(), "long", &format!("{source}size_bytes = 7\n"));
    define(builder.dir(), "other", &(source.clone() + &sha(b"another")));
    define(builder.dir(), "right", &(source + &sha(&bytes)));
    let daemon = builder.start();
    ctl(&daemon, &["pull", "right"]).ok();
    check_serves(&daemon, "right");
    assert_eq!(listed(&daemon, "right")["source"].as_str(), file.to_str());
    let length = format!("{} bytes, and not 7", bytes.len());
    ctl(&daemon, &["load", "long"]).fails(65, &["tiny.gguf", &length]);
    ctl(&daemon, &["pull", "other"]).fails(65, &["tiny.gguf", "SHA-256", &sha256(&bytes)]);
    assert_eq!(daemon.post("/v1/chat/completions", &chat("other")).status, 500);

    // A file that is another one by now is looked at anew.
    ctl(&daemon, &["unload", "right"]).ok();
    fs::remove_file(&file).unwrap();
    fs::write(&file, TinyModel::new("llama").seed(3).build()).unwrap();
    let refused = || ctl(&daemon, &["load", "right"]).code == 65;
    until("refused", refused);
    fs::write(&file, &bytes).unwrap();
    until("served", || ctl(&daemon, &["load", "right"]).code == 0);
}

fn kind(name: &str) -> String {
    format!("application/vnd.ollama.image.{name}")
}

/// Puts a tiny model into an Ollama registry, with these parameters and this template.
pub(crate) fn ollama(origin: &Origin, model: &[u8], params: &[u8], template: &[u8]) {
    let layers = [("model", model), ("params", params), ("template", template)];
    let parts: Vec<(String, String, &[u8])> =
        layers.iter().map(|(name, bytes)| (kind(name), sha256(bytes), *bytes)).collect();
    let layers: Vec<Layer<'_>> = parts
        .iter()
        .map(|(media_type, sha256, bytes)| Layer { media_type, bytes, sha256 })
        .collect();
    origin.ollama_model("library/tiny", "1b", &layers);
}

#[test]
fn what_a_registry_says_of_how_to_use_a_model_counts_where_the_manifest_is_silent() {
    let origin = Origin::start();
    let params = br#"{"temperature": 0, "seed": 7, "num_ctx": 64}"#;
    let template = b"{% for m in messages %}{{ m.content }}{% endfor %}";
    ollama(&origin, &TinyModel::new("llama").build(), params, template);
    let builder = at(&origin);
    define(builder.dir(), "m", "source = \"ollama:tiny:1b\"\n");
    let daemon = builder.start();
    ctl(&daemon, &["pull", "m"]).ok();
    ctl(&daemon, &["pull", "ollama:tiny:1b", "--name", "own"]).ok();
    let generate = |model: &str| {
        let request = json!({"model": model, "prompt": "hello", "max_tokens": 12});
        daemon.post("/generate", &request).json()
    };
    // Without the parameters a request that says nothing is sampled at random.
    let greedy = generate("m")["text"].clone();
    assert!(greedy.as_str().is_some_and(|text| !text.is_empty()), "{greedy}");
    assert_eq!(generate("m")["text"], greedy);
    assert_eq!(generate("own")["text"], greedy);
    let tokens = |model: &str| {
        let reply = daemon.post("/v1/chat/completions", &chat(model)).json();
        reply["usage"]["prompt_tokens"].as_u64().expect("a count")
    };
    let shown = ctl(&daemon, &["show", "m"]).ok().out;
    assert!(shown.contains("sampling.temperature = 0"), "{shown}");
    assert!(shown.contains("not used") && shown.contains("params.num_ctx"), "{shown}");
    let with_template = tokens("m");
    assert_eq!(tokens("own"), with_template);

    let own = "template = \"x {% for m in messages %}{{ m.content }}{% endfor %}\"\n";
    define(daemon.dir(), "m", &format!("source = \"ollama:tiny:1b\"\n{own}"));
    ctl(&daemon, &["reload"]).ok();
    assert!(tokens("m") > with_template);

    // What it says now is asked for when somebody wants that.
    let first = greedy.as_str().unwrap().chars().next().unwrap();
    let params = json!({"temperature": 0, "stop": [first.to_string()]}).to_string();
    ollama(&origin, &TinyModel::new("llama").build(), params.as_bytes(), template);
    assert!(ctl(&daemon, &["pull", "m"]).ok().out.starts_with("m is here"));
    ctl(&daemon, &["pull", "--update", "m"]).ok();
    assert_eq!(generate("m")["text"], "");

    // A template in Go's language counts where the file has none of its own.
    define(daemon.dir(), "m", "source = \"ollama:tiny:1b\"\n");
    ctl(&daemon, &["reload"]).ok();
    let go = b"{{ if .System }}{{ .System }} {{ end }}{{ .Prompt }}";
    let tiny = || TinyModel::new("llama");
    for (model, counts) in [(tiny().chat_template(None), true), (tiny(), false)] {
        ollama(&origin, &model.build(), b"{}", go);
        ctl(&daemon, &["pull", "--update", "m"]).ok();
        // One that was loaded keeps its template where there is no other.
        ctl(&daemon, &["unload", "m"]).ok();
        assert_eq!(tokens("m") == with_template, counts);
        let shown = ctl(&daemon, &["show", "m"]).ok().out;
        assert_eq!(shown.contains("template = "), counts, "{shown}");
    }
}

#[test]
fn parts_and_members_of_archives_become_models() {
    let origin = Origin::start();
    let model = TinyModel::new("llama").build();
    let (head, tail) = model.split_at(model.len() / 3);
    origin.file("/a", head.to_vec());
    origin.file("/b", tail.to_vec());
    let builder = at(&origin);
    let (a, b) = (origin.url("/a"), origin.url("/b"));
    define(
        builder.dir(),
        "m",
        &format!("source = [{a:?}, {b:?}]\nsha256 = {:?}\npreload = true\n", sha256(&model)),
    );
    let daemon = builder.start();
    // It is in memory when it has come.
    until("loaded", || listed(&daemon, "m")["state"] == "ready");
    check_serves(&daemon, "m");
}

#[test]
fn a_model_that_nobody_defines_any_more_is_not_fetched_to_its_end() {
    let origin = Origin::start();
    origin.file("/m.gguf", padded(CHUNK));
    origin.fault("/m.gguf", Fault::HoldAfter(1000));
    let builder = at(&origin);
    define(builder.dir(), "m", &format!("source = {:?}\n", origin.url("/m.gguf")));
    let daemon = builder.start();
    origin.wait_for_held(1);
    fs::remove_file(daemon.dir().join("models.d/m.toml")).unwrap();
    ctl(&daemon, &["reload"]).ok();
    until("given up", || daemon.log().contains("not wanted any more"));
    let prune = ["prune", "--json"];
    until("pruned", || {
        let pruned = ctl(&daemon, &prune).ok().json();
        pruned["leftovers"].as_array().is_some_and(|leftovers| leftovers.len() == 1)
    });
}

#[test]
fn more_sources_than_are_fetched_at_a_time_wait_for_their_turn() {
    let origin = Origin::start();
    let names = ["a", "b", "c", "d", "e"];
    for (seed, name) in names.iter().enumerate() {
        let path = format!("/{name}.gguf");
        origin.file(&path, TinyModel::new("llama").seed(seed as u64).build());
        origin.fault(&path, Fault::HoldAfter(1000));
    }
    let builder = at(&origin);
    for name in names {
        let url = origin.url(&format!("/{name}.gguf"));
        define(builder.dir(), name, &format!("source = {url:?}\n"));
    }
    let daemon = builder.start();
    origin.wait_for_held(4);
    let phases = || names.map(|name| listed(&daemon, name)["progress"]["phase"].clone());
    until("one waits", || phases().iter().filter(|phase| *phase == "queued").count() == 1);
    origin.heal();
    origin.release();
    for name in names {
        ctl(&daemon, &["pull", name]).ok();
        check_serves(&daemon, name);
    }
}

#[test]
fn a_token_goes_to_its_host_and_into_no_log() {
    let origin = Origin::start();
    let model = TinyModel::new("llama").build();
    origin.file("/m.gguf", model);
    let host = origin.address().to_string();
    let builder = builder().config(&format!(
        "[store]\nproxy = \"none\"\ntokens = {{ {host:?} = \"hub\" }}\n[log]\nlevel = \"trace\""
    ));
    builder.fail();
    let credentials = builder.dir().join("credentials");
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("hub"), "very-secret\n").unwrap();
    define(builder.dir(), "m", &format!("source = {:?}\n", origin.url("/m.gguf")));
    let daemon = builder.env("CREDENTIALS_DIRECTORY", path_str(&credentials)).start();
    ctl(&daemon, &["pull", "m"]).ok();
    let seen = origin.seen_at("/m.gguf");
    assert_eq!(seen[0].header("authorization"), Some("Bearer very-secret"));
    assert!(!daemon.log().contains("very-secret"));
}
