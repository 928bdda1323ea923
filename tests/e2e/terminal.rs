//! `m40ctl` at a terminal, and where there is none.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::thread;

use m40_testkit::daemon::Daemon;
use m40_testkit::terminal::Terminal;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{Done, M40CTL, builder, ctl, endless, path_str, with_tiny};

const PROMPT: &str = ">>> ";
const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
/// Turns bracketed paste on, as the editor does at the beginning of each prompt.
const PASTE_ON: &str = "\x1b[?2004h";
const UP: &str = "\x1b[A";

/// A command at a terminal of its own; its history is in the daemon's folder.
fn at_terminal(daemon: &Daemon, arguments: &[&str]) -> Terminal {
    Terminal::start(daemon.ctl(M40CTL, arguments).env("HOME", daemon.dir()))
}

/// A chat that is ready for what is typed.
fn chat(daemon: &Daemon, options: &[&str]) -> Terminal {
    let mut terminal = at_terminal(daemon, &[&["run"], options, &["tiny"]].concat());
    terminal.shows("/help lists commands");
    terminal.shows(PROMPT);
    terminal
}

/// Types a line and waits until the next may be typed.
#[track_caller]
fn enter(terminal: &mut Terminal, line: &str) {
    let before = prompts(terminal);
    terminal.keys(line);
    terminal.keys("\r");
    terminal.until("another prompt", |terminal| prompts(terminal) > before);
}

/// What the program wrote.
fn sent(terminal: &Terminal) -> String {
    String::from_utf8_lossy(terminal.sent()).into_owned()
}

/// How often a prompt was begun.
fn prompts(terminal: &Terminal) -> usize {
    sent(terminal).matches(PASTE_ON).count()
}

/// The conversation, as `/save` writes it.
fn saved(terminal: &mut Terminal, daemon: &Daemon, name: &str) -> Value {
    enter(terminal, &format!("/save ~/{name}"));
    let text = fs::read(daemon.dir().join(name)).expect("the file that was saved");
    serde_json::from_slice(&text).expect("a conversation is JSON")
}

#[track_caller]
fn check_ended(terminal: &mut Terminal, code: i32) {
    assert_eq!(terminal.end().code(), Some(code), "{terminal:?}");
    terminal.check_restored();
}

fn running(daemon: &Daemon) -> u64 {
    let status = ctl(daemon, &["status", "--json"]).ok().json();
    status["models"][0]["loaded"]["running"].as_u64().expect("the model is loaded")
}

#[test]
fn the_second_question_of_a_chat_comes_with_the_first() {
    let daemon = with_tiny();
    let options = ["--verbose", "--temperature", "0", "--max-tokens", "8"];
    let mut terminal = chat(&daemon, &options);
    enter(&mut terminal, "hello");
    enter(&mut terminal, "hello");
    let screen = terminal.screen().contents();
    let figures: Vec<Vec<u32>> = screen
        .lines()
        .filter(|line| line.starts_with("prompt ") && line.contains("cached"))
        .map(|line| line.split([' ', '(']).filter_map(|word| word.parse().ok()).collect())
        .collect();
    let [first, second] = figures.as_slice() else { panic!("{screen}") };
    assert!(second[0] > first[0], "the history was not sent: {screen}");
    assert!(second[1] >= first[0], "the history was computed again: {screen}");

    let conversation = saved(&mut terminal, &daemon, "chat.json");
    let roles: Vec<_> =
        conversation["messages"].as_array().unwrap().iter().map(|m| m["role"].clone()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"]);

    enter(&mut terminal, "/clear");
    enter(&mut terminal, "/show");
    terminal.shows("messages    0");
    enter(&mut terminal, "/load ~/chat.json");
    enter(&mut terminal, "/show");
    terminal.shows("messages    4");
    terminal.shows("max_tokens  8");
    terminal.keys(CTRL_D);
    check_ended(&mut terminal, 0);
}

#[test]
fn ctrl_c_stops_an_answer_and_twice_at_the_prompt_leaves() {
    let daemon = endless(builder());
    let mut terminal = chat(&daemon, &["--set", "ignore_eos=true"]);
    let before = terminal.sent().len();
    terminal.keys("go on\r");
    terminal.until("an answer", |terminal| terminal.sent().len() > before + 200);
    assert_eq!(running(&daemon), 1);
    terminal.keys(CTRL_C);
    terminal.until("another prompt", |terminal| prompts(terminal) == 2);
    // It is stopped in the daemon as well, within a token.
    while running(&daemon) > 0 {}
    let conversation = saved(&mut terminal, &daemon, "chat.json");
    assert_eq!(conversation["messages"][0]["content"], "go on");
    assert_ne!(conversation["messages"][1]["content"], "");

    terminal.keys("discarded");
    terminal.keys(CTRL_C);
    terminal.shows("Ctrl-C again or Ctrl-D leaves");
    terminal.until("another prompt", |terminal| prompts(terminal) == 4);
    enter(&mut terminal, "/show");
    terminal.shows("messages    2");
    terminal.keys(CTRL_C);
    terminal.until("another prompt", |terminal| prompts(terminal) == 6);
    terminal.keys(CTRL_C);
    check_ended(&mut terminal, 0);
}

#[test]
fn what_is_typed_during_an_answer_is_for_the_next_prompt() {
    let daemon = endless(builder());
    let mut terminal = chat(&daemon, &["--set", "ignore_eos=true", "--max-tokens", "500"]);
    let before = terminal.sent().len();
    terminal.keys("go on\r");
    terminal.until("an answer", |terminal| terminal.sent().len() > before + 100);
    terminal.keys("%%typed ahead%%");
    terminal.until("another prompt", |terminal| prompts(terminal) == 2);
    terminal.shows(">>> %%typed ahead%%");
    let sent = sent(&terminal);
    let answer = sent.split(PASTE_ON).nth(1).unwrap();
    assert!(!answer.contains("%%ty"), "{answer}");
}

#[test]
fn a_message_may_have_several_lines_typed_or_pasted() {
    let daemon = with_tiny();
    let mut terminal = chat(&daemon, &["--max-tokens", "2"]);
    terminal.keys("\"\"\"\r");
    terminal.keys("one\r");
    enter(&mut terminal, "  two\"\"\"");
    enter(&mut terminal, "\x1b[200~three\rfour\nfive\x1b[201~");
    enter(&mut terminal, " /usr/bin");
    let conversation = saved(&mut terminal, &daemon, "chat.json");
    let asked: Vec<_> = conversation["messages"].as_array().unwrap().iter().step_by(2).collect();
    let texts: Vec<_> = asked.iter().map(|message| message["content"].as_str().unwrap()).collect();
    assert_eq!(texts, ["one\n  two", "three\nfour\nfive", "/usr/bin"]);
    terminal.keys("/bye\r");
    check_ended(&mut terminal, 0);
}

#[test]
fn the_history_outlives_a_chat() {
    let daemon = with_tiny();
    let mut terminal = chat(&daemon, &["--max-tokens", "1"]);
    enter(&mut terminal, "what was first?");
    enter(&mut terminal, "\x1b[200~two\nlines\x1b[201~");
    terminal.keys(CTRL_D);
    check_ended(&mut terminal, 0);
    let history = daemon.dir().join(".local/state/m40ctl/history");
    assert_eq!(fs::metadata(&history).unwrap().permissions().mode() & 0o777, 0o600);

    let mut terminal = chat(&daemon, &["--max-tokens", "1"]);
    terminal.keys(UP);
    terminal.shows(">>> two");
    terminal.keys(UP);
    terminal.keys(UP);
    terminal.shows(">>> what was first?");
    enter(&mut terminal, " and again");
    let conversation = saved(&mut terminal, &daemon, "chat.json");
    assert_eq!(conversation["messages"][0]["content"], "what was first? and again");

    let mut terminal = chat(&daemon, &["--no-history", "--max-tokens", "1"]);
    terminal.keys(UP);
    enter(&mut terminal, "secret");
    assert!(!fs::read_to_string(&history).unwrap().contains("secret"));
}

#[test]
fn another_size_of_the_terminal_is_followed_while_it_is_typed() {
    let daemon = with_tiny();
    let mut terminal = chat(&daemon, &["--max-tokens", "1"]);
    let line = "x".repeat(70);
    terminal.keys(&line);
    terminal.shows(&line);
    terminal.resize(NonZeroU16::new(50).unwrap());
    assert!(!terminal.screen().contents().contains(&line), "a part of it is cut off");
    // The editor draws it anew.
    terminal.shows(&line);
    enter(&mut terminal, "");
    terminal.keys(CTRL_D);
    check_ended(&mut terminal, 0);

    let mut terminal = at_terminal(&daemon, &["top"]);
    terminal.shows("MEMORY");
    terminal.resize(NonZeroU16::new(30).unwrap());
    terminal.until("less of it", |terminal| !terminal.screen().contents().contains("MEMORY"));
    terminal.keys("q");
    check_ended(&mut terminal, 0);
}

#[test]
fn wrong_commands_and_parameters_are_told_and_end_no_chat() {
    let daemon = with_tiny();
    let mut terminal = chat(&daemon, &["--max-tokens", "1"]);
    enter(&mut terminal, "/frobnicate");
    terminal.shows("there is no command /frobnicate: /help lists them");
    enter(&mut terminal, "/set heat 1");
    terminal.shows("there is no parameter \"heat\": there are max_tokens, temperature,");
    enter(&mut terminal, "/set top_p 7");
    enter(&mut terminal, "hello");
    terminal.shows("top_p is 7");
    enter(&mut terminal, "/set top_p");
    enter(&mut terminal, "/system \"\"\"be brief\"\"\"");
    enter(&mut terminal, "hello");
    terminal.shows("(cut off: max_tokens is reached");
    let conversation = saved(&mut terminal, &daemon, "chat.json");
    assert_eq!(conversation["system"], "be brief");
    assert_eq!(conversation["messages"].as_array().unwrap().len(), 2);
    terminal.keys("/s\t");
    terminal.shows("/show");
    let before = prompts(&terminal);
    terminal.keys(CTRL_C);
    terminal.until("another prompt", |terminal| prompts(terminal) > before);
    terminal.keys(CTRL_D);
    check_ended(&mut terminal, 0);

    let mut terminal = at_terminal(&daemon, &["run", "nope"]);
    assert_eq!(terminal.end().code(), Some(66));
}

#[test]
fn a_chat_that_is_ended_leaves_the_terminal_as_it_was() {
    let daemon = with_tiny();
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut terminal = chat(&daemon, &[]);
        terminal.keys("half a mess");
        terminal.signal(signal);
        check_ended(&mut terminal, 130);
    }
    let mut terminal = chat(&daemon, &["--no-history"]);
    drop(daemon);
    terminal.keys("hello\r");
    check_ended(&mut terminal, 69);
    assert!(terminal.screen().contents().contains("m40d is not running"), "{terminal:?}");
}

#[test]
fn a_terminal_that_can_do_nothing_is_enough_for_a_chat() {
    let daemon = with_tiny();
    let options = ["run", "--max-tokens", "2", "tiny"];
    let mut terminal = Terminal::start(daemon.ctl(M40CTL, &options).env("TERM", "dumb"));
    for line in ["hello\r", "\"\"\"\r", "two lines\"\"\"\r", "/show\r"] {
        terminal.shows(PROMPT);
        terminal.keys(line);
    }
    terminal.shows("messages    4");
    terminal.keys(CTRL_D);
    check_ended(&mut terminal, 0);
    assert_eq!(sent(&terminal).find('\x1b'), None);

    let top = ["top", "--count", "2", "--interval", "0.1"];
    let mut terminal = Terminal::start(daemon.ctl(M40CTL, &top).env("TERM", "dumb"));
    assert_eq!(terminal.end().code(), Some(0));
    assert_eq!(terminal.screen().contents().matches("tiny  ready").count(), 2, "{terminal:?}");
}

/// Runs a command with this on its standard input.
fn piped(daemon: &Daemon, arguments: &[&str], input: &str) -> Done {
    let mut command = daemon.ctl(M40CTL, arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("m40ctl must run");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("m40ctl reads it");
    drop(stdin);
    Done::from(&child.wait_with_output().expect("m40ctl must end"))
}

#[test]
fn a_pipe_is_a_prompt_or_follows_one_and_gets_no_control_sequence() {
    let daemon = with_tiny();
    let run = ["run", "--temperature", "0", "--max-tokens", "16", "tiny"];
    let with = |prompt| [&run[..], &[prompt]].concat();
    let plain = ctl(&daemon, &with("hello")).ok();
    assert!(!plain.out.contains('\x1b') && plain.err.is_empty(), "{}", plain.err);
    assert_eq!(piped(&daemon, &run, "hello").ok().out, plain.out);

    let both = ctl(&daemon, &with("sum up:\n\none\ntwo\n")).ok().out;
    assert_eq!(piped(&daemon, &with("sum up:"), "one\ntwo\n").ok().out, both);
    assert_ne!(both, plain.out);
    // Whoever started it need not know that it could read something.
    let (_open, silent) = UnixStream::pair().unwrap();
    let mut asked = daemon.ctl(M40CTL, &with("hello"));
    let asked = asked.stdin(OwnedFd::from(silent)).output().unwrap();
    assert_eq!(Done::from(&asked).ok().out, plain.out);
    let mut binary = daemon.ctl(M40CTL, &run);
    let binary = binary.stdin(fs::File::open(daemon.dir().join("tiny.gguf")).unwrap());
    Done::from(&binary.output().unwrap()).fails(64, &["not UTF-8", "iconv"]);

    let color = ctl(&daemon, &["--color", "always", "status"]).ok().out;
    assert!(color.contains("\x1b[32mready"), "{color}");
    assert!(!ctl(&daemon, &["status"]).ok().out.contains('\x1b'));
}

#[test]
fn colours_are_for_terminals_whose_user_wants_them() {
    let daemon = with_tiny();
    let sent = |command: &mut Command| {
        let mut terminal = Terminal::start(command);
        terminal.shows("tiny");
        assert_eq!(terminal.end().code(), Some(0));
        terminal.sent().windows(5).any(|bytes| bytes == b"\x1b[32m")
    };
    let status = || daemon.ctl(M40CTL, &["status"]);
    assert!(sent(&mut status()));
    assert!(!sent(status().env("NO_COLOR", "1")));
    assert!(!sent(status().env("TERM", "dumb")));
    assert!(!sent(status().args(["--color", "never"])));
}

#[test]
fn an_answer_does_not_reach_the_terminal_as_control_sequences() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("evil.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let text = r#"{"event":"text","text":"\u001b]0;title\u0007\u001b[2J\u009b31mfine"}"#;
    let done = r#"{"event":"error","error":{"code":"internal","message":"\u001b[31mred"}}"#;
    let body = format!("{text}\n{done}\n");
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream);
        let mut length = 0;
        for line in (&mut reader).lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
        }
        reader.read_exact(&mut vec![0; length]).unwrap();
        write!(reader.get_mut(), "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
            .unwrap();
    });
    let mut command = Command::new(M40CTL);
    command.args(["--socket", path_str(&socket), "run", "x", "hello"]);
    let mut terminal = Terminal::start(&command);
    terminal.shows("fine");
    assert_eq!(terminal.end().code(), Some(70));
    server.join().unwrap();
    let sent = sent(&terminal);
    let harmful = |c: char| c.is_control() && !matches!(c, '\r' | '\n');
    assert!(!sent.contains(harmful), "{sent:?}");
    assert!(sent.contains("]0;title[2J31mfine") && sent.contains("[31mred"), "{sent:?}");
}

#[test]
fn top_draws_a_screen_and_puts_the_terminal_back_however_it_ends() {
    let daemon = with_tiny();
    for end in ["q", CTRL_C] {
        let mut terminal = at_terminal(&daemon, &["top"]);
        terminal.shows("1 model, ");
        terminal.shows("tiny  ready");
        terminal.shows("sorts (by name)");
        assert!(terminal.screen().alternate_screen() && terminal.screen().hide_cursor());
        terminal.keys("s");
        terminal.shows("sorts (by tokens/s)");
        terminal.keys(" ");
        terminal.shows("paused, space goes on");
        terminal.keys(end);
        check_ended(&mut terminal, 0);
    }
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let mut terminal = at_terminal(&daemon, &["top"]);
        terminal.shows("tiny  ready");
        terminal.signal(signal);
        check_ended(&mut terminal, 130);
    }
}

#[test]
fn top_shows_what_is_running_and_waits_for_a_daemon_that_went_away() {
    let daemon = endless(builder());
    let mut chatting = chat(&daemon, &["--set", "ignore_eos=true"]);
    chatting.keys("go on\r");
    let mut terminal = at_terminal(&daemon, &["top", "--interval", "0.1"]);
    terminal.until("a rate", |terminal| {
        let screen = terminal.screen().contents();
        let row = screen.lines().find(|line| line.starts_with("tiny  ready"));
        let row: Vec<_> = row.unwrap_or_default().split_whitespace().collect();
        let number = |at: usize| row.get(at).and_then(|cell| cell.parse::<f64>().ok());
        number(2) == Some(1.0) && number(5).is_some_and(|rate| rate > 0.0)
    });
    terminal.until("a request", |terminal| {
        let screen = terminal.screen().contents();
        screen.lines().any(|line| line.contains("  tiny   ") && line.contains("  runs   "))
    });
    drop(daemon);
    terminal.shows("m40d is not running");
    terminal.shows("tiny  ready");
    terminal.keys("q");
    check_ended(&mut terminal, 0);
}

#[test]
fn top_without_a_terminal_prints_a_look_after_the_other() {
    let daemon = with_tiny();
    let top = ["top", "--interval", "0.1", "--count", "2"];
    let text = ctl(&daemon, &top).ok().out;
    assert_eq!(text.matches("\ntiny  ready").count(), 2, "{text}");
    assert!(!text.contains('\x1b'));
    let json = ctl(&daemon, &[&top[..], &["--json"]].concat()).ok().out;
    let looks: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(looks.len(), 2);
    assert_eq!(looks[1]["models"][0]["name"], "tiny");
    assert_eq!(looks[1]["rates"]["tiny"]["completion_tokens_per_s"], 0.0);
    assert!(looks[0]["time_unix_ms"].as_u64() < looks[1]["time_unix_ms"].as_u64());

    drop(daemon);
    let gone = Command::new(M40CTL).args(["--socket", "/nonexistent/x", "top"]).output().unwrap();
    Done::from(&gone).fails(69, &["m40d is not running", "systemctl start m40d"]);
}

#[test]
fn what_a_model_has_computed_is_counted() {
    let daemon = with_tiny();
    let run = ["run", "--json", "--temperature", "0", "--max-tokens", "8", "tiny", "hello"];
    let mut expected = [0, 0, 0];
    for _ in 0..2 {
        let out = ctl(&daemon, &run).ok().out;
        let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        let count = |name: &str| last["stats"][name].as_u64().unwrap();
        let cached = count("cached_tokens");
        expected[0] += count("prompt_tokens") - cached;
        expected[1] += cached;
        expected[2] += count("completion_tokens");
    }
    let status = ctl(&daemon, &["status", "--json"]).ok().json();
    let work = &status["models"][0]["loaded"]["work"];
    let counted = ["prompt_tokens", "cached_tokens", "completion_tokens"].map(|n| work[n].as_u64());
    assert_eq!(counted, expected.map(Some));
    assert_eq!(status["models"][0]["loaded"]["context_tokens_used"], 0);
}

#[test]
fn completions_need_no_daemon() {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = Command::new(M40CTL);
        let done = Done::from(&command.env_clear().args(["completions", shell]).output().unwrap());
        assert!(done.ok().out.contains("M40CTL_COMPLETE"));
    }
}
