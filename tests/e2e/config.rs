//! What the daemon says to a wrong configuration or command line, before it serves anything.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Done, M40CTL, builder, check_one_line, ctl, path_str};

const M40D: &str = env!("CARGO_BIN_EXE_m40d");

fn run(arguments: &[&str]) -> Done {
    Done::from(&Command::new(M40D).env_clear().args(arguments).output().expect("m40d must run"))
}

#[track_caller]
fn check(sections: &str, code: i32, says: &[&str]) {
    let output = builder().config(sections).fail();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{err}");
    check_one_line(&err, says);
}

#[test]
fn an_unknown_key_is_named_with_file_line_and_guess() {
    let line = ["m40d.toml:7:1: ", "unknown key `thread`", "did you mean `threads`?"];
    check("[engine]\nthread = 2", 78, &line);
}

#[test]
fn a_wrong_value_is_named_with_its_range() {
    check("[limits]\nqueued_jobs_max = 0", 78, &["m40d.toml:7:19: ", "from 1 to 65536"]);
    check("[log]\nlevel = \"chatty\"", 78, &["chatty", "debug"]);
}

/// The CPU must not stand in for a GPU that was asked for.
#[test]
fn a_gpu_serves_or_the_start_fails_and_says_why() {
    let cuda = "[engine]\ndevice = \"cuda\"\n[gpu]\nvram_mib_max = 256";
    if run(&["--check-gpu"]).code == 0 {
        let daemon = builder().config(cuda).start();
        let said = ctl(&daemon, &["status"]).ok().out;
        assert!(said.contains("cuda, ") && said.contains("256 MiB for models"), "{said}");
        return;
    }
    let output = builder().config(cuda).fail();
    let err = String::from_utf8_lossy(&output.stderr);
    check_one_line(&err, &["engine.device is \"cuda\": ", "set it to \"cpu\""]);
    let of_build = err.contains("no GPU kernels") || err.contains("no GPU backend");
    assert_eq!(output.status.code(), Some(if of_build { 78 } else { 69 }), "{err}");
    let missing = ["no NVIDIA driver here", "no CUDA device"];
    assert!(of_build || missing.iter().any(|missing| err.contains(missing)), "{err}");
}

#[test]
fn a_wrong_budget_or_way_to_decode_is_named_with_its_place() {
    check("[gpu]\nvram_mib_max = -1", 78, &["m40d.toml:7:16: ", "from 0 to 65536"]);
    check("[gpu]\ndecode = \"fast\"", 78, &["m40d.toml:7:10: ", "`graph`", "`persistent`"]);
}

#[test]
fn the_gpu_computes_or_what_is_missing_is_said() {
    let done = run(&["--check-gpu"]);
    if done.code == 0 {
        assert!(done.out.contains("compute capability"), "{}", done.out);
        assert!(done.out.contains("; computes, with kernels as "), "{}", done.out);
        assert!(done.out.contains("; nvrtc 12."), "{}", done.out);
    } else {
        assert_eq!((done.code, done.out.as_str()), (69, ""));
        let missing = ["no NVIDIA driver here", "no CUDA device", "no GPU kernels"];
        assert!(missing.iter().any(|missing| done.err.contains(missing)), "{}", done.err);
    }
}

#[test]
fn an_unknown_group_is_refused() {
    check("[control]\ngroup = \"no-such-group-m40\"", 78, &["no-such-group-m40"]);
}

#[test]
fn a_named_file_must_exist() {
    let done = run(&["--config", "/nonexistent/m40d.toml"]);
    done.fails(78, &["/nonexistent/m40d.toml", "No such file"]);
}

#[test]
fn the_shipped_configuration_checks() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/m40d.toml");
    let output = Command::new(M40D)
        .env_clear()
        .env("HOME", "/nonexistent")
        .args(["--check-config", "--config", shipped])
        .output();
    let done = Done::from(&output.unwrap()).ok();
    assert_eq!((done.out.as_str(), done.err.as_str()), ("", ""));
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let done = run(&["--frobnicate"]);
    assert_eq!(done.code, 64);
    assert!(done.err.contains("--frobnicate"), "{}", done.err);
    let version = run(&["--version"]).ok().out;
    assert_eq!(version, format!("m40d {}\n", m40llm::version()));
    assert!(version.starts_with(concat!("m40d ", env!("CARGO_PKG_VERSION"), " (")), "{version}");
    assert!(version.contains("GPU "), "says nothing of the kernels: {version}");
}

/// A command of `m40ctl config` of a user whose configuration is in this folder.
fn config(dir: &Path, arguments: &[&str]) -> Done {
    let mut command = Command::new(M40CTL);
    command.env_clear().env("HOME", dir).env("CONFIGURATION_DIRECTORY", dir);
    command.env("STATE_DIRECTORY", dir.join("state"));
    Done::from(&command.arg("config").args(arguments).output().expect("m40ctl must run"))
}

fn config_check(dir: &Path, arguments: &[&str]) -> Done {
    config(dir, &[&["check"], arguments].concat())
}

#[test]
fn mistakes_are_shown_with_their_lines_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("m40d.toml");
    fs::write(&config, "[engine]\nthread = 2\n").unwrap();
    let done = config_check(dir.path(), &[]);
    done.fails(65, &["a mistake in the configuration", "does not start"]);
    let lines: Vec<_> = done.out.lines().collect();
    assert!(lines[0].contains("m40d.toml:2:1: unknown key `thread`"), "{}", done.out);
    assert!(lines[0].ends_with("did you mean `threads`?"), "{}", done.out);
    assert_eq!(lines[1..], ["    2 | thread = 2", "      | ^"]);

    // Manifests are looked at where the configuration says that they are.
    let manifests = dir.path().join("elsewhere");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("good.toml"), "source = \"/m.gguf\"\n").unwrap();
    fs::write(manifests.join("bad.toml"), "source = \"/m.gguf\"\nname = \"a/b\"\n").unwrap();
    fs::write(&config, format!("[paths]\nmanifests_dir = \"{}\"\n", manifests.display())).unwrap();
    let done = config_check(dir.path(), &["--json", path_str(&config)]);
    assert_eq!(done.code, 65, "{}", done.err);
    let check = done.json();
    assert_eq!(check["config_file"], path_str(&config));
    assert_eq!(check["models"], serde_json::json!(["good"]));
    assert_eq!(check["settings"]["device"], "cpu");
    assert_eq!(check["problems"].as_array().unwrap().len(), 1);
    assert_eq!(check["problems"][0]["file"], path_str(&manifests.join("bad.toml")));
    assert_eq!(check["problems"][0]["place"]["line"], 2);

    fs::remove_file(manifests.join("bad.toml")).unwrap();
    let out = config_check(dir.path(), &[]).ok().out;
    let expected = format!("good: {}; 1 model in {}\n", config.display(), manifests.display());
    assert_eq!(out, expected);
    config_check(dir.path(), &["/nonexistent.toml"]).fails(65, &["a mistake"]);
}

#[test]
fn what_counts_is_shown_as_a_file_that_means_the_same_without_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let defaults = config(dir.path(), &["show"]).ok().out;
    assert!(
        defaults.starts_with("# no configuration file, so the defaults\n[http]\n"),
        "{defaults}"
    );

    let file = dir.path().join("m40d.toml");
    let hidden = dir.path().join("token");
    fs::write(&hidden, "hf_hidden\n").unwrap();
    let tokens = format!("tokens = {{ \"h.example\" = {hidden:?} }}");
    fs::write(&file, format!("[engine]\nthreads = 3\n[store]\n{tokens}\n")).unwrap();
    let out = config(dir.path(), &["show"]).ok().out;
    let state = format!("state_dir = {:?}", dir.path().join("state"));
    for line in ["threads = 3", "queued_jobs_max = 256", "[store.tokens]", &state] {
        assert!(out.lines().any(|shown| shown == line), "{out} lacks {line}");
    }
    assert!(!out.contains("hf_hidden"), "{out}");

    let keys = config(dir.path(), &["show", "--json"]).ok().json();
    assert_eq!(keys["engine"], serde_json::json!({"device": "cpu", "threads": 3}));
    assert_eq!(keys["store"]["tokens"]["h.example"], path_str(&hidden));

    let same = dir.path().join("same.toml");
    fs::write(&same, out).unwrap();
    let again = config(dir.path(), &["show", "--json", path_str(&same)]).ok().json();
    assert_eq!(again, keys);

    fs::write(&file, "[engine]\nthread = 2\n").unwrap();
    let wrong = config(dir.path(), &["show", "--json"]);
    wrong.fails(65, &["m40d.toml:2:1: unknown key `thread`", "m40ctl config check"]);
    assert_eq!(wrong.out, "");
}
