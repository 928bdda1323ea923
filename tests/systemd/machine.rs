//! A systemd of a test's own: process 1 of its own namespaces, over this machine's files, which it cannot
//! change (`boot` beside this file). Up when the test gets it, gone when the test drops it.

use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use m40_testkit::http::{self, Reply};
use nix::sched::{CloneFlags, setns};
use tempfile::TempDir;

use crate::package;

/// How long systemd may take to come up.
const TIMEOUT: Duration = Duration::from_secs(120);
/// How often the wait for that looks whether it is still there.
const LOOK: Duration = Duration::from_millis(20);
/// How long a command may take, in seconds.
const COMMAND_TIMEOUT_S: &str = "120";

/// Where m40d listens unless it is told otherwise.
pub(crate) const HTTP: ([u8; 4], u16) = ([127, 0, 0, 1], 11434);

/// A running systemd.
pub(crate) struct Machine {
    boot: Child,
    init: String,
    work: TempDir,
}

/// What is laid over the machine's files before systemd starts.
pub(crate) struct Plan {
    work: TempDir,
}

impl Plan {
    /// Nothing but the machine's own files; `None`, said aloud, where the machine cannot do it.
    pub(crate) fn new() -> Option<Self> {
        if let Some(reason) = lacks() {
            return skip(&reason);
        }
        let work = tempfile::tempdir().expect("a temporary folder");
        std::fs::create_dir(work.path().join("files")).expect("a new folder");
        Some(Self { work })
    }

    /// Puts a file there, which is a program if it begins with `#!`.
    pub(crate) fn file(self, path: &str, text: &str) -> Self {
        put(&self.work.path().join("files").join(path.trim_start_matches('/')), text);
        self
    }

    /// Boots it, and waits until systemd is up; `None`, said aloud, where the machine lets nobody do that.
    pub(crate) fn boot(self) -> Option<Machine> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let work = self.work;
        let notify = UnixDatagram::bind(work.path().join("notify")).expect("a notify socket");
        notify.set_read_timeout(Some(LOOK)).expect("the time is not zero");
        let console = File::create(work.path().join("console")).expect("a new file");
        let root = env::var("M40_SYSTEMD_ROOT").unwrap_or_else(|_| "/".to_owned());
        let mut boot = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/systemd/boot"))
            .arg(work.path())
            .args([format!("m40d-test-{}-{count}", std::process::id()), root])
            .stdin(Stdio::piped())
            .stdout(console.try_clone().expect("an open file"))
            .stderr(console)
            .spawn()
            .expect("bash must be there");
        let read = |name| std::fs::read_to_string(work.path().join(name)).unwrap_or_default();
        let deadline = Instant::now() + TIMEOUT;
        let mut buffer = [0; 4096];
        loop {
            let said = match notify.recv(&mut buffer) {
                Ok(length) => String::from_utf8_lossy(&buffer[..length]),
                Err(_) => "".into(),
            };
            if said.lines().any(|line| line == "READY=1") {
                break;
            }
            let ended = boot.try_wait().expect("a child can be waited for").is_some();
            if ended && !work.path().join("booting").exists() {
                return skip(&format!("this machine does not let it boot: {}", read("console")));
            }
            assert!(!ended && Instant::now() < deadline, "systemd is not up: {}", read("console"));
        }
        let init = read("init").trim().to_owned();
        Some(Machine { boot, init, work })
    }

    /// Boots it and installs the package.
    pub(crate) fn boot_and_install(self) -> Option<Machine> {
        let machine = self.boot()?;
        machine.install(package::built());
        Some(machine)
    }
}

/// Why this machine cannot boot a systemd, as far as that can be told beforehand.
fn lacks() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("only root can".to_owned());
    }
    let is_there = |program: &&str| {
        env::split_paths(&env::var_os("PATH").unwrap_or_default())
            .any(|folder| folder.join(program).exists())
    };
    let programs = ["systemctl", "systemd-sysusers", "unshare", "nsenter", "dpkg-deb"];
    let missing = programs.into_iter().find(|program| !is_there(program))?;
    Some(format!("{missing} is not installed"))
}

fn skip<T>(reason: &str) -> Option<T> {
    assert!(env::var_os("M40_REQUIRE_SYSTEMD").is_none(), "cannot boot a systemd: {reason}");
    let test = thread::current();
    let text = format!("systemd: {}: skipped: {reason}\n", test.name().unwrap_or("?"));
    // Also where the test harness captures what passing tests print.
    io::stderr().write_all(text.as_bytes()).expect("stderr is open");
    None
}

fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder");
    std::fs::write(path, text).expect("a file");
    let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("a mode");
}

impl Machine {
    /// Where a path of the machine is for the test.
    pub(crate) fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.init))
    }

    /// Writes a file, which is a program if it begins with `#!`.
    pub(crate) fn write(&self, path: &str, text: impl AsRef<str>) {
        put(&self.path(path), text.as_ref());
    }

    /// Runs a line of sh.
    pub(crate) fn run(&self, line: &str) -> Output {
        self.command(line).output().expect("nsenter must be there")
    }

    /// Runs a line of sh, which must succeed, and returns what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{line}: {}\n{out}\n{err}", output.status);
        out
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "env", "-i"]);
        command.args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "SYSTEMD_PAGER="]);
        command.args(["DEBIAN_FRONTEND=noninteractive", "timeout", COMMAND_TIMEOUT_S]);
        command.args(["sh", "-c", line]);
        command.stdin(Stdio::null());
        command
    }

    /// Installs a package, as the first or over an older one.
    #[track_caller]
    pub(crate) fn install(&self, package: &Path) -> String {
        std::fs::copy(package, self.path("/tmp/m40d.deb")).expect("a package");
        self.ok("dpkg --force-unsafe-io --force-confold --install /tmp/m40d.deb 2>&1")
    }

    /// A property of a unit, as `systemctl show` prints it.
    #[track_caller]
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.ok(&format!("systemctl show --property {name} --value '{unit}'"))
    }

    /// A request to m40d from within the machine.
    pub(crate) fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.inside(|| http::request_with(HTTP.into(), "GET", path, headers, b""))
    }

    /// Does something in the machine's network.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.init)).expect("a namespace");
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(network, CloneFlags::CLONE_NEWNET).expect("root may go there");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Waits until the unit has logged a line with this text `times` times since boot.
    #[track_caller]
    pub(crate) fn wait_for_log(&self, unit: &str, text: &str, times: usize) {
        let mut journal = self.command(&format!(
            "exec journalctl --boot --follow --lines all --output cat --unit '{unit}'"
        ));
        let mut journal = journal.stdout(Stdio::piped()).spawn().expect("nsenter must be there");
        let lines = BufReader::new(journal.stdout.take().expect("it is piped")).lines();
        let found = lines.map_while(Result::ok).filter(|line| line.contains(text)).take(times);
        let found = found.count();
        // It goes on unless it has ended by itself.
        let _ = journal.kill();
        journal.wait().expect("a child can be waited for");
        assert_eq!(found, times, "the journal lacks {text:?}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            let journal = self.run("journalctl --boot --no-pager --output short-monotonic");
            let console = std::fs::read(self.work.path().join("console")).unwrap_or_default();
            let _ = io::stderr().write_all(&[journal.stdout, console].concat());
        }
        // That is what `boot` waits for.
        drop(self.boot.stdin.take());
        let _ = self.boot.wait();
    }
}
