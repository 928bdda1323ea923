//! `m40ctl rm, prune, verify, adopt`: what is on disk.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use m40_testkit::daemon::Daemon;
use m40_testkit::gguf::TinyModel;
use m40_testkit::origin::Origin;
use serde_json::json;

use crate::sources::{at, check_serves, define, listed, sha256, until};
use crate::{builder, ctl, path_str, tiny, write};

fn blobs(daemon: &Daemon) -> usize {
    let dir = daemon.dir().join("state/blobs/sha256");
    fs::read_dir(dir).expect("the folder of blobs").count()
}

#[test]
fn a_model_is_removed_with_its_files_but_not_one_that_is_in_use_or_defined() {
    let origin = Origin::start();
    origin.file("/m.gguf", TinyModel::new("llama").build());
    let builder = at(&origin);
    define(builder.dir(), "defined", &format!("source = {:?}\n", origin.url("/m.gguf")));
    let daemon = builder.start();
    ctl(&daemon, &["pull", "defined"]).ok();
    ctl(&daemon, &["rm", "defined"]).fails(1, &["\"defined\" is defined by", "defined.toml"]);
    let url = origin.url("/m.gguf");
    ctl(&daemon, &["pull", &url, "--name", "same"]).ok();
    let other = write(daemon.dir(), "other.gguf", &TinyModel::new("llama").seed(1).build());
    ctl(&daemon, &["pull", path_str(&other)]).ok();
    assert_eq!(blobs(&daemon), 2);
    ctl(&daemon, &["load", "other"]).ok();
    ctl(&daemon, &["rm", "other"]).fails(1, &["\"other\" is in memory", "m40ctl unload other"]);
    ctl(&daemon, &["unload", "other"]).ok();
    assert!(ctl(&daemon, &["rm", "other"]).ok().out.starts_with("removed other"));
    assert_eq!(blobs(&daemon), 1);
    // What the manifest needs stays.
    let removed = ctl(&daemon, &["rm", "--json", "same"]).ok().json();
    assert_eq!(removed, json!({"model": "same", "freed_bytes": 0}));
    check_serves(&daemon, "defined");
    ctl(&daemon, &["rm", "same"]).fails(66, &["\"same\"", "m40ctl list"]);
    // As the file does that was pulled from this machine.
    assert!(other.exists());
}

#[test]
fn prune_leaves_what_is_stored_or_named_by_a_manifest_and_does_nothing_while_one_is_wrong() {
    let origin = Origin::start();
    let models = [1, 2].map(|seed| TinyModel::new("llama").seed(seed).build());
    origin.file("/one.gguf", models[0].clone());
    origin.file("/two.gguf", models[1].clone());
    let builder = at(&origin);
    for name in ["one", "two"] {
        let url = origin.url(&format!("/{name}.gguf"));
        define(builder.dir(), name, &format!("source = {url:?}\n"));
    }
    let daemon = builder.start();
    let file = tiny(daemon.dir(), "own.gguf");
    ctl(&daemon, &["pull", path_str(&file)]).ok();
    ctl(&daemon, &["pull", "one"]).ok();
    ctl(&daemon, &["pull", "two"]).ok();
    assert_eq!(ctl(&daemon, &["prune"]).ok().out, "there is nothing to remove\n");
    assert_eq!(blobs(&daemon), 3);

    let manifest = |name: &str| daemon.dir().join(format!("models.d/{name}.toml"));
    fs::remove_file(manifest("two")).unwrap();
    define(daemon.dir(), "wrong", "sorce = 1\n");
    ctl(&daemon, &["reload"]);
    ctl(&daemon, &["prune"]).fails(1, &["wrong.toml:1:1", "correct it first"]);
    fs::remove_file(manifest("wrong")).unwrap();
    ctl(&daemon, &["reload"]).ok();
    let told = ctl(&daemon, &["prune", "--dry-run", "--json"]).ok().json();
    assert_eq!((&told["dry_run"], told["files"].as_array().unwrap().len()), (&json!(true), 1));
    assert_eq!(told["files"][0]["sha256"], sha256(&models[1]));
    assert_eq!(told["files"][0]["sources"][0], origin.url("/two.gguf"));
    assert_eq!(blobs(&daemon), 3);
    let pruned = ctl(&daemon, &["prune"]).ok().out;
    assert!(pruned.contains(&sha256(&models[1])) && pruned.contains("\nremoved: "), "{pruned}");
    assert_eq!(blobs(&daemon), 2);
    check_serves(&daemon, "one");
    check_serves(&daemon, "own");
}

fn damage(daemon: &Daemon, bytes: &[u8]) -> PathBuf {
    let blob = daemon.dir().join("state/blobs/sha256").join(sha256(bytes));
    let file = fs::File::options().write(true).open(&blob).expect("the blob");
    file.write_all_at(b"?!", bytes.len() as u64 - 2).expect("a blob that can be written to");
    blob
}

#[test]
fn a_damaged_file_is_found_and_what_a_manifest_names_is_fetched_again() {
    let origin = Origin::start();
    let models = [1, 2].map(|seed| TinyModel::new("llama").seed(seed).build());
    origin.file("/m.gguf", models[0].clone());
    origin.file("/p.gguf", models[1].clone());
    let builder = at(&origin);
    define(builder.dir(), "m", &format!("source = {:?}\n", origin.url("/m.gguf")));
    let daemon = builder.start();
    ctl(&daemon, &["pull", "m"]).ok();
    ctl(&daemon, &["pull", &origin.url("/p.gguf")]).ok();
    let good = ctl(&daemon, &["verify"]).ok().out;
    assert_eq!(good.lines().filter(|line| line.ends_with(": good")).count(), 2, "{good}");

    damage(&daemon, &models[0]);
    damage(&daemon, &models[1]);
    let bad = ctl(&daemon, &["verify", "p"]);
    bad.fails(65, &["a file is damaged"]);
    assert!(bad.out.contains(" p: damaged") && bad.out.contains("quarantine/"), "{}", bad.out);
    let bad = ctl(&daemon, &["verify", "--json", "m"]);
    assert_eq!(bad.code, 65);
    let event: serde_json::Value = serde_json::from_str(bad.out.lines().next().unwrap()).unwrap();
    assert_eq!((&event["event"], &event["models"]), (&json!("file"), &json!(["m"])));
    let kept = event["damage"]["quarantine"].as_str().unwrap();
    assert!(Path::new(kept).exists(), "{event}");
    until("fetched again", || origin.seen_at("/m.gguf").len() == 2);
    ctl(&daemon, &["pull", "m"]).ok();
    check_serves(&daemon, "m");
    let entry = listed(&daemon, "p");
    assert!(entry["failure"].as_str().is_some_and(|why| why.contains("m40ctl pull p")), "{entry}");
    // What nobody defines is fetched when somebody asks for it.
    ctl(&daemon, &["pull", "p"]).ok();
    check_serves(&daemon, "p");
    ctl(&daemon, &["verify"]).ok();
    ctl(&daemon, &["verify", "nope"]).fails(66, &["\"nope\""]);
}

#[test]
fn files_that_are_used_where_they_are_are_verified_by_name_and_stay_there() {
    let builder = builder();
    let file = tiny(builder.dir(), "tiny.gguf");
    let bytes = fs::read(&file).unwrap();
    let source = format!("source = {:?}\n", path_str(&file));
    define(builder.dir(), "m", &format!("{source}sha256 = {:?}\n", sha256(&bytes)));
    define(builder.dir(), "plain", &source);
    let split = builder.dir().join("split-00001-of-00002.gguf");
    for (number, shard) in (1..).zip(TinyModel::new("llama").build_shards(2)) {
        write(builder.dir(), &format!("split-0000{number}-of-00002.gguf"), &shard);
    }
    define(builder.dir(), "split", &format!("source = {:?}\n", path_str(&split)));
    let daemon = builder.start();
    ctl(&daemon, &["pull", "m"]).ok();
    let good = ctl(&daemon, &["verify", "m"]).ok().out;
    assert!(good.starts_with(&sha256(&bytes)) && good.ends_with("tiny.gguf: good\n"), "{good}");
    let plain = ctl(&daemon, &["verify", "plain"]).ok().out;
    assert!(plain.contains(&sha256(&bytes)) && plain.contains("nobody says"), "{plain}");
    assert_eq!(ctl(&daemon, &["verify", "split"]).ok().out.lines().count(), 2);
    assert_eq!(ctl(&daemon, &["verify"]).ok().out, "nothing is stored\n");

    let shards = [1, 2].map(|number| format!("split-0000{number}-of-00002.gguf"));
    let sizes = shards.map(|name| fs::metadata(daemon.dir().join(name)).unwrap().len());
    assert_eq!(listed(&daemon, "split")["size_bytes"], sizes.iter().sum::<u64>());
    let shown = ctl(&daemon, &["show", "--json", "split"]).ok().json();
    assert_eq!(shown["files"].as_array().map(Vec::len), Some(2));

    fs::write(&file, TinyModel::new("llama").seed(3).build()).unwrap();
    let other = ctl(&daemon, &["verify", "m"]);
    other.fails(65, &["a file is damaged"]);
    assert!(other.out.contains("is another file"), "{}", other.out);
    assert!(file.exists());
}

#[test]
fn models_of_ollama_and_of_a_cache_are_adopted_and_found_by_their_sources() {
    let builder = builder().config(
        "[store]\nproxy = \"none\"\nhugging_face = \"http://127.0.0.1:1\"\nollama = \"http://127.0.0.1:1\"",
    );
    let model = TinyModel::new("llama").build();
    let ollama = builder.dir().join("ollama");
    let manifest = ollama.join("manifests/registry.ollama.ai/library/tiny");
    fs::create_dir_all(&manifest).unwrap();
    fs::create_dir_all(ollama.join("blobs")).unwrap();
    let digest = format!("sha256:{}", sha256(&model));
    let params = br#"{"temperature": 0.25}"#;
    let layer = |kind: &str, bytes: &[u8]| {
        let blob = format!("sha256-{}", sha256(bytes));
        fs::write(ollama.join("blobs").join(blob), bytes).expect("a blob");
        let media_type = format!("application/vnd.ollama.image.{kind}");
        let digest = format!("sha256:{}", sha256(bytes));
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let layers = [layer("model", &model), layer("params", params)];
    fs::write(manifest.join("1b"), json!({ "layers": layers }).to_string()).unwrap();
    fs::write(manifest.join("broken"), "{").unwrap();
    let blob = ollama.join("blobs").join(digest.replace(':', "-"));
    let other = TinyModel::new("llama").seed(1).build();
    let cache = builder.dir().join("hub");
    let snapshot =
        cache.join("models--org--repo/snapshots/0123456789abcdef0123456789abcdef01234567");
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("other.gguf"), &other).unwrap();
    let daemon = builder.start();
    let adopted = ctl(&daemon, &["adopt", path_str(&ollama)]).ok().out;
    assert!(adopted.contains("adopted tiny:1b (") && adopted.contains("left "), "{adopted}");
    assert!(adopted.ends_with("1 adopted, 1 left\n"), "{adopted}");
    check_serves(&daemon, "tiny:1b");
    let shown = ctl(&daemon, &["show", "tiny:1b"]).ok().out;
    assert!(shown.contains("sampling.temperature = 0.25"), "{shown}");
    let adopted = ctl(&daemon, &["adopt", "--json", path_str(&cache)]).ok().out;
    assert!(adopted.contains("\"adopted\":1"), "{adopted}");
    check_serves(&daemon, "other");

    // A manifest of the same source needs nobody on the network.
    define(daemon.dir(), "m", "source = \"ollama:tiny:1b\"\n");
    ctl(&daemon, &["reload"]).ok();
    assert_eq!(listed(&daemon, "m")["state"], "stored");
    check_serves(&daemon, "m");
    // The other program's files stay when the models go.
    fs::remove_file(daemon.dir().join("models.d/m.toml")).unwrap();
    ctl(&daemon, &["reload"]).ok();
    ctl(&daemon, &["unload", "tiny:1b"]).ok();
    ctl(&daemon, &["rm", "tiny:1b"]).ok();
    assert_eq!(fs::read(blob).unwrap(), model);
    let nothing = daemon.dir().join("models.d");
    ctl(&daemon, &["adopt", path_str(&nothing)]).fails(64, &["models.d", "Ollama", "Hugging Face"]);
}
