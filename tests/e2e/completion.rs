//! What a shell offers behind `m40ctl`: asked as scripts ask, and by a bash at a terminal.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use m40_testkit::daemon::Daemon;
use m40_testkit::terminal::Terminal;

use crate::{Done, M40CTL, builder, ctl, path_str, tiny, write};

/// A daemon with these models, none of which is in memory.
fn with_models(names: &[&str]) -> Daemon {
    let daemon = builder().start();
    let file = tiny(daemon.dir(), "tiny.gguf");
    for name in names {
        ctl(&daemon, &["pull", path_str(&file), "--name", name]).ok();
    }
    daemon
}

/// What is offered for the last of these words, by the daemon behind a socket.
#[track_caller]
fn offered_by(socket: &Path, words: &[&str]) -> Vec<String> {
    // Ends what would not end by itself.
    let mut command = Command::new("timeout");
    command.args(["60", M40CTL, "--", "m40ctl"]).args(words);
    command.env_clear().env("M40CTL_COMPLETE", "bash").env("M40_SOCKET", socket);
    let no_files = tempfile::tempdir().expect("a temporary folder");
    let output = command.current_dir(no_files.path()).output();
    let done = Done::from(&output.expect("timeout of coreutils")).ok();
    assert_eq!(done.err, "");
    done.out.lines().map(str::to_owned).collect()
}

#[test]
fn names_of_models_are_offered_where_a_command_takes_them() {
    let daemon = with_models(&["qwen3:8b", "smol"]);
    ctl(&daemon, &["load", "smol"]).ok();
    let offered = |words: &[&str]| offered_by(&daemon.socket(), words);
    for command in ["load", "run", "bench", "plan", "pull", "show", "verify"] {
        let all = offered(&[command, ""]);
        assert!(
            ["qwen3:8b", "smol"].iter().all(|name| all.contains(&(*name).to_owned())),
            "{all:?}"
        );
        assert_eq!(offered(&[command, "qw"]), ["qwen3:8b"], "{command}");
    }
    assert_eq!(offered(&["logs", "--model", "s"]), ["smol"]);
    // Each where it can be done.
    assert_eq!(offered(&["unload", "s"]), ["smol"]);
    assert_eq!(offered(&["unload", "q"]), Vec::<String>::new());
    assert_eq!(offered(&["rm", "q"]), ["qwen3:8b"]);
    assert_eq!(offered(&["rm", "s"]), Vec::<String>::new());

    let socket = daemon.socket();
    let elsewhere =
        offered_by(Path::new("/nonexistent"), &["--socket", path_str(&socket), "show", "s"]);
    assert_eq!(elsewhere, ["smol"]);
}

#[test]
fn without_an_answer_of_the_daemon_the_rest_is_offered_and_nothing_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, file) = (dir.path().join("control.sock"), write(dir.path(), "model.gguf", b""));
    let check = || {
        assert_eq!(offered_by(&socket, &["show", "s"]), Vec::<String>::new());
        assert_eq!(offered_by(&socket, &["unlo"]), ["unload"]);
        let typed = format!("{}/mod", dir.path().display());
        assert_eq!(offered_by(&socket, &["load", &typed]), [path_str(&file)]);
    };
    check();
    let _never_answers = UnixListener::bind(&socket).unwrap();
    check();
}

#[test]
fn bash_completes_names_with_colons() {
    let daemon = with_models(&["qwen3:14b", "qwen3:8b"]);
    let programs = Path::new(M40CTL).parent().unwrap();
    let mut command = Command::new("bash");
    command.args(["--norc", "--noprofile", "-i"]).env("PS1", "$ ").env("HOME", daemon.dir());
    command.env("PATH", format!("{}:/usr/bin:/bin", programs.display()));
    command.env("M40_SOCKET", daemon.socket());
    let mut terminal = Terminal::start(&command);
    let prompts = |terminal: &Terminal| terminal.screen().contents().matches('$').count();
    terminal.until("prompt", |terminal| prompts(terminal) == 1);
    terminal.keys("source <(m40ctl completions bash)\r");
    terminal.until("another prompt", |terminal| prompts(terminal) == 2);
    terminal.keys("m40ctl sho\t");
    terminal.shows("$ m40ctl show ");
    terminal.keys("qw\t");
    terminal.shows("$ m40ctl show qwen3:");
    terminal.keys("8\t--js\t");
    terminal.shows("$ m40ctl show qwen3:8b --json ");
    terminal.keys("--color=ne\t");
    terminal.shows("--color=never");
}
