//! `m40ctl doctor` on whatever machine this is, with and without a daemon.

use std::fs;
use std::process::Command;

use m40_nvml_fake::{CARD_VARIABLE, Sheet, library};
use m40_testkit::daemon::Daemon;
use serde_json::Value;

use crate::{Done, M40CTL, builder, ctl, path_str};

/// The finding of this check; there must be one.
#[track_caller]
fn finding<'a>(said: &'a Value, check: &str) -> &'a Value {
    let findings = said["findings"].as_array().expect("a list");
    let found = findings.iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("nothing about {check}: {said}"))
}

/// A doctor of this daemon, whose user has its folder for a home.
fn doctor(daemon: &Daemon, options: &[&str]) -> Done {
    let mut command = daemon.ctl(M40CTL, &[&["doctor"], options].concat());
    Done::from(&command.env("HOME", daemon.dir()).output().expect("m40ctl must run"))
}

#[test]
fn a_daemon_that_runs_is_well_until_a_manifest_is_wrong() {
    let daemon = builder().start();
    let said = doctor(&daemon, &["--json"]).json();
    let of_daemon = finding(&said, "daemon");
    assert_eq!(of_daemon["level"], "ok");
    let pid = format!("pid {}", daemon.pid());
    assert!(of_daemon["found"].as_str().unwrap().contains(&pid), "{said}");
    let config = finding(&said, "config");
    assert_eq!(config["level"], "ok");
    assert!(config["found"].as_str().unwrap().contains(path_str(&daemon.config_file())));
    assert_eq!(finding(&said, "http")["level"], "ok");
    for finding in said["findings"].as_array().unwrap() {
        assert_eq!(finding["level"] == "ok", finding["cure"].is_null(), "{finding}");
    }

    fs::create_dir(daemon.dir().join("models.d")).unwrap();
    fs::write(daemon.dir().join("models.d/m.toml"), "sorce = 1\n").unwrap();
    ctl(&daemon, &["reload"]).fails(65, &["a manifest is wrong", "mend"]);
    let done = doctor(&daemon, &[]);
    assert_eq!(done.code, 1, "{}", done.out);
    assert!(done.err.contains("found: each has its cure above"), "{}", done.err);
    let line = done.out.lines().find(|line| line.starts_with("problem  config")).unwrap();
    assert!(line.contains("m.toml:1:1: unknown key `sorce`"), "{line}");
    assert!(line.ends_with("`m40ctl config check` shows the line"), "{line}");
}

#[test]
fn without_a_daemon_the_machine_and_its_card_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let mut sheet = Sheet::m40(&dir.path().join("card"));
    sheet.set("temperature", 93);
    let mut command = Command::new(M40CTL);
    command.env_clear().env("HOME", dir.path()).env("M40_SOCKET", dir.path().join("none"));
    command.env("M40_NVML", library()).env(CARD_VARIABLE, dir.path().join("card"));
    command.env("CONFIGURATION_DIRECTORY", dir.path());
    command.env("STATE_DIRECTORY", dir.path().join("models"));
    let done = Done::from(&command.args(["doctor", "--json"]).output().unwrap());
    assert_eq!(done.code, 1, "{}", done.err);
    let said = done.json();
    let heat = finding(&said, "heat");
    assert_eq!(heat["level"], "problem");
    assert!(heat["found"].as_str().unwrap().starts_with("93 °C"), "{heat}");
    let daemon = finding(&said, "daemon");
    assert_eq!(daemon["level"], "warning");
    assert!(daemon["found"].as_str().unwrap().contains("not running"), "{daemon}");
    let store = finding(&said, "store")["found"].as_str().expect("a text");
    assert!(store.contains(path_str(&dir.path().join("models"))), "{store}");
}
