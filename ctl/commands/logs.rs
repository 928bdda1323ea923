//! `m40ctl logs`: the daemon's lines in the journal, which journalctl shows.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use m40_control::{Client, check_model_name};

use crate::completion::names;
use crate::error::{CommandError, Kind};
use crate::output::Output;

/// Lines that are shown where neither their number nor their time is asked for.
const LINES: u32 = 100;
/// The unit, where the daemon that runs does not say.
const UNIT: &str = "m40d.service";
/// Longest text that journalctl is handed, in bytes.
const TEXT_BYTES_MAX: usize = 128;
/// Largest file of /proc that is looked at, in bytes.
const CGROUP_BYTES_MAX: usize = 4096;

/// Show what the daemon has logged, from the journal of systemd
///
/// Of the daemon that the control socket leads to, else of the system's m40d.service. A request's id is in
/// its X-Request-Id header. With --json a line is an object with all the journal's fields.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on with new lines as they come
    #[arg(short, long)]
    follow: bool,
    /// How many of the latest lines to begin with [default: 100, or all with --since]
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<u32>,
    /// From when on, as journalctl takes it: "2026-05-01 12:00", "10 min ago", today
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Only lines about this model
    #[arg(long, value_name = "NAME", add = names())]
    model: Option<String>,
    /// Only lines about the request with this id
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// Of this unit, such as m40d@1 [default: the daemon's own]
    #[arg(long, value_name = "UNIT")]
    unit: Option<String>,
}

/// A unit of the system's or of a user's manager.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unit {
    name: String,
    of_user: bool,
}

pub(crate) async fn run(
    args: &LogsArgs,
    client: &Client,
    output: &Output,
) -> Result<(), CommandError> {
    let unit = match &args.unit {
        Some(name) => Unit { name: name.clone(), of_user: false },
        None => unit_of_daemon(client).await?,
    };
    let arguments = arguments(args, &unit, output.json)?;
    if !Path::new("/run/systemd/system").exists() {
        output.note("systemd does not run here; the journal may be old, or empty")?;
    }
    // Signals, pages and the exit code are journalctl's from here on.
    Err(cannot_show(&Command::new("journalctl").args(arguments).exec()))
}

fn cannot_show(error: &io::Error) -> CommandError {
    let failure = |what: String| CommandError::new(Kind::NotFound, what);
    match error.kind() {
        io::ErrorKind::NotFound => failure("there is no journalctl, so no journal".to_owned())
            .hint("a daemon that was started by hand logs to its stderr: see there"),
        _ => failure(format!("cannot run journalctl: {error}")).hint("is systemd installed?"),
    }
}

/// The unit that the daemon behind the socket runs in; the usual one where none runs.
async fn unit_of_daemon(client: &Client) -> Result<Unit, CommandError> {
    let Ok(status) = client.status().await else {
        return Ok(Unit { name: UNIT.to_owned(), of_user: false });
    };
    let process = PathBuf::from(format!("/proc/{}", status.pid));
    let cgroup = fs::read(process.join("cgroup")).unwrap_or_default();
    let cgroup = String::from_utf8_lossy(&cgroup[..cgroup.len().min(CGROUP_BYTES_MAX)]);
    unit_in(&cgroup).ok_or_else(|| {
        let place = match fs::read_link(process.join("fd/2")) {
            Ok(path) if path.is_absolute() => path.display().to_string(),
            _ => "wherever its stderr goes".to_owned(),
        };
        let what =
            format!("m40d (pid {}) runs in no unit of systemd, so not in its journal", status.pid);
        CommandError::new(Kind::NotFound, what)
            .hint(format!("its log is {place}; --unit m40d shows what the unit has logged before"))
    })
}

/// The unit of ours that a process with these control groups (cgroups(7)) is in.
fn unit_in(cgroup: &str) -> Option<Unit> {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.into_iter().find_map(|path| {
        let name = path.rsplit('/').find(|part| part.ends_with(".service"))?;
        // A daemon that somebody starts by hand may be in the unit of a terminal or of a CI runner.
        let of_user = path.contains("/user@");
        name.starts_with("m40d").then(|| Unit { name: name.to_owned(), of_user })
    })
}

/// What journalctl is asked. Each text is part of a word of its own, which begins with what it means.
fn arguments(args: &LogsArgs, unit: &Unit, json: bool) -> Result<Vec<String>, CommandError> {
    let scope = if unit.of_user { "--user-unit" } else { "--unit" };
    let mut arguments = vec![
        format!("{scope}={}", checked("--unit", &unit.name)?),
        "--no-pager".to_owned(),
        format!("--output={}", if json { "json" } else { "short-iso" }),
    ];
    match (args.lines, &args.since) {
        (Some(lines), _) => arguments.push(format!("--lines={lines}")),
        (None, Some(_)) => {}
        (None, None) => arguments.push(format!("--lines={LINES}")),
    }
    if args.follow {
        arguments.push("--follow".to_owned());
    }
    if let Some(since) = &args.since {
        arguments.push(format!("--since={}", checked("--since", since)?));
    }
    if let Some(model) = &args.model {
        check_model_name(model)
            .map_err(|error| CommandError::new(Kind::Usage, error.to_string()))
            .map_err(|error| error.hint("m40ctl list shows the names"))?;
        arguments.push(format!("MODEL={model}"));
    }
    if let Some(request) = &args.request {
        arguments.push(format!("REQUEST_ID={}", checked("--request", request)?));
    }
    Ok(arguments)
}

fn checked<'a>(option: &str, text: &'a str) -> Result<&'a str, CommandError> {
    let bad = |what| {
        Err(CommandError::new(Kind::Usage, format!("the text of {option} {what}"))
            .hint("m40ctl logs --help says what it takes"))
    };
    match text {
        "" => bad("is empty"),
        text if text.len() > TEXT_BYTES_MAX => bad("is longer than 128 bytes"),
        text if text.contains(char::is_control) => bad("has control characters"),
        text => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn args(typed: &[&str]) -> LogsArgs {
        let cli = Cli::try_parse_from([&["m40ctl", "logs"], typed].concat()).unwrap();
        let Command::Logs(args) = cli.command else { panic!("another command") };
        args
    }

    fn system() -> Unit {
        Unit { name: UNIT.to_owned(), of_user: false }
    }

    #[track_caller]
    fn check(typed: &[&str], expected: &[&str]) {
        let found = arguments(&args(typed), &system(), false).unwrap();
        let fixed = ["--unit=m40d.service", "--no-pager", "--output=short-iso"];
        assert_eq!(found, [&fixed[..], expected].concat());
    }

    #[test]
    fn journalctl_is_asked_for_what_was_typed() {
        check(&[], &["--lines=100"]);
        check(&["-f", "-n", "5"], &["--lines=5", "--follow"]);
        check(&["--since", "-1h"], &["--since=-1h"]);
        check(
            &["--model", "qwen3:8b", "--request", "req-1"],
            &["--lines=100", "MODEL=qwen3:8b", "REQUEST_ID=req-1"],
        );
        let user = Unit { name: "m40d.service".into(), of_user: true };
        let found = arguments(&args(&[]), &user, true).unwrap();
        assert_eq!(found[0], "--user-unit=m40d.service");
        assert!(found.contains(&"--output=json".to_owned()), "{found:?}");
    }

    #[test]
    fn what_journalctl_cannot_mean_is_not_asked() {
        for typed in [
            ["--request", ""],
            ["--since", "a\nb"],
            ["--unit", &"x".repeat(129)],
            ["--model", "../x"],
        ] {
            let unit = args(&typed).unit.map_or_else(system, |name| Unit { name, ..system() });
            let error = arguments(&args(&typed), &unit, false).unwrap_err();
            assert_eq!(error.kind, Kind::Usage, "{typed:?}");
            assert!(error.hint.is_some(), "{error}");
        }
    }

    #[test]
    fn the_unit_is_the_one_that_the_daemon_runs_in() {
        let system = |name: &str| Some(Unit { name: name.to_owned(), of_user: false });
        assert_eq!(unit_in("0::/system.slice/m40d.service\n"), system("m40d.service"));
        let instance = "0::/system.slice/system-m40d.slice/m40d@1.service\n";
        assert_eq!(unit_in(instance), system("m40d@1.service"));
        let user = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/m40d.service\n";
        assert_eq!(unit_in(user), Some(Unit { name: "m40d.service".into(), of_user: true }));
        // Version 1, with a line for each controller.
        assert_eq!(unit_in("2:cpu:/\n1:name=systemd:/system.slice/m40d.service\n"), system(UNIT));
        for by_hand in [
            "0::/\n",
            "0::/user.slice/user-0.slice/session-3.scope\n",
            "0::/user.slice/user-1.slice/user@1.service/app.slice/vte-spawn-7.scope\n",
            "0::/system.slice/runner.service\n",
            "nonsense",
        ] {
            assert_eq!(unit_in(by_hand), None, "{by_hand}");
        }
    }
}
