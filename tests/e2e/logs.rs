//! `m40ctl logs`: what it asks journalctl for, and what it says where there is nothing to ask.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::{Done, M40CTL, builder, ctl, path_str};

/// Runs a command of `m40ctl` with the programs of one folder, and no daemon.
fn logs(programs: &Path, arguments: &[&str]) -> Done {
    let mut command = Command::new(M40CTL);
    command.env_clear().env("PATH", programs).env("M40_SOCKET", programs.join("none"));
    Done::from(&command.arg("logs").args(arguments).output().expect("m40ctl must run"))
}

#[test]
fn journalctl_is_run_with_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("journalctl");
    fs::write(&program, "#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit 3\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let typed = ["-f", "-n", "7", "--since", "10 min ago", "--model", "m:1", "--request", "req-1"];
    let done = logs(dir.path(), &typed);
    let asked: Vec<_> = done.out.lines().collect();
    assert_eq!(
        asked,
        [
            "--unit=m40d.service",
            "--no-pager",
            "--output=short-iso",
            "--lines=7",
            "--follow",
            "--since=10 min ago",
            "MODEL=m:1",
            "REQUEST_ID=req-1",
        ]
    );
    // How journalctl ends is how the command ends.
    assert_eq!(done.code, 3);
    let done = logs(dir.path(), &["--json", "--unit", "m40d@1"]);
    assert!(done.out.starts_with("--unit=m40d@1\n--no-pager\n--output=json\n"), "{}", done.out);
    logs(dir.path(), &["--model", "../x"]).fails(64, &["model name", "m40ctl list"]);
}

#[test]
fn without_a_journal_it_is_said_where_a_log_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let done = logs(dir.path(), &[]);
    assert_eq!(done.code, 66);
    assert!(done.err.contains("there is no journalctl"), "{}", done.err);
    assert!(done.err.contains("stderr"), "{}", done.err);

    // One that was started by hand has its log where its stderr goes.
    let daemon = builder().start();
    let log = daemon.dir().join("log");
    ctl(&daemon, &["logs"]).fails(66, &["runs in no unit", path_str(&log)]);
}
