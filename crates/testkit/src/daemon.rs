//! A real `m40d` for a test: its own folder, sockets and port, ready when the test gets it, gone
//! when the test drops it.
//!
//! Nothing here sleeps: being ready is learnt from the message that systemd would get.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{self, Reply, Stream};

/// How long a daemon may take to become ready, or to end.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often a wait for a message looks whether the process is still there.
const LOOK: Duration = Duration::from_millis(20);

/// Name of the configuration file in the daemon's folder.
const CONFIG: &str = "m40d.toml";

/// Starts a program as a service manager does that hands over sockets: those at the first two
/// descriptors become the third and fourth, and the process is told that they are for it.
const HAND_OVER: &str = "exec 3<&0 4<&1 </dev/null >/dev/null; \
                         export LISTEN_PID=$$; exec \"$0\" \"$@\"";

/// How to start a daemon.
#[derive(Debug, Clone)]
pub struct Builder {
    m40d: PathBuf,
    dir: Arc<TempDir>,
    http: String,
    config: String,
    vars: Vec<(String, String)>,
    sockets: Vec<(String, Arc<OwnedFd>)>,
}

impl Builder {
    /// The program to start, as `env!("CARGO_BIN_EXE_m40d")` of the test names it.
    ///
    /// # Panics
    /// When there is no temporary folder to be had; so for every method here.
    pub fn new(m40d: impl Into<PathBuf>) -> Self {
        let dir = Arc::new(tempfile::tempdir().expect("a temporary folder"));
        let http = "listen = \"127.0.0.1:0\"\n".to_owned();
        let (config, vars, sockets) = (String::new(), Vec::new(), Vec::new());
        Self { m40d: m40d.into(), dir, http, config, vars, sockets }
    }

    /// Its folder, where a test may put files before the start.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where its control socket will be.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/control.sock")
    }

    /// Listens here instead of on a free port.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.http = format!("listen = \"{address}\"\n");
        self
    }

    /// Gives clients this long to send the head of a request.
    #[must_use]
    pub fn header_timeout_s(mut self, seconds: u32) -> Self {
        self.http.push_str(&format!("header_timeout_s = {seconds}\n"));
        self
    }

    /// Adds lines to `[http]`.
    #[must_use]
    pub fn http(mut self, lines: &str) -> Self {
        self.http.push_str(lines);
        self.http.push('\n');
        self
    }

    /// Adds lines to the configuration: whole sections other than `[http]` and `[paths]`.
    #[must_use]
    pub fn config(mut self, sections: &str) -> Self {
        self.config.push_str(sections);
        self.config.push('\n');
        self
    }

    /// Sets a variable of its environment, which is empty but for `HOME` and what says that the
    /// configuration, manifests included, is in its folder.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.vars.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Hands a socket over to it under this name, as systemd does that listens for it. The socket stays
    /// open as long as this is there.
    ///
    /// # Panics
    /// For a third one.
    #[must_use]
    pub fn hand_over(mut self, name: &str, socket: impl Into<OwnedFd>) -> Self {
        assert!(
            self.sockets.len() < 2,
            "two descriptors can be given to a shell without unsafe code"
        );
        self.sockets.push((name.to_owned(), Arc::new(socket.into())));
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready; its log is in the message.
    pub fn start(self) -> Daemon {
        let notify = self.dir().join("notify");
        let _ = std::fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).expect("a notify socket");
        socket.set_read_timeout(Some(LOOK)).expect("the time is not zero");
        let log = std::fs::File::create(self.dir().join("log")).expect("a log file");
        let mut command = self.command();
        command.env("NOTIFY_SOCKET", &notify).stderr(log);
        let child = command.spawn().expect("m40d must start");
        let http = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut daemon = Daemon { child, builder: self, http, notify: socket };
        let ready = daemon.notification("READY=1");
        daemon.http = address_in(&ready);
        daemon
    }

    /// Runs it when it must not become ready, and returns how it ended and what it said.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn fail(&self) -> Output {
        let mut command = self.command();
        let child = command.stderr(Stdio::piped()).spawn().expect("m40d must start");
        let pid = pid_of(&child);
        with_deadline(pid, move || child.wait_with_output()).expect("m40d must end")
    }

    fn command(&self) -> Command {
        let config = self.dir().join(CONFIG);
        let dir = self.dir().display();
        let text = format!(
            "[http]\n{}[paths]\nstate_dir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n{}",
            self.http, self.config
        );
        std::fs::write(&config, text).expect("a configuration file");
        let mut command = self.program();
        command.env("HOME", self.dir()).arg("--config").arg(config);
        command.env("CONFIGURATION_DIRECTORY", self.dir());
        command.envs(self.vars.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The program with the sockets that are handed over, and nothing in its environment but those.
    fn program(&self) -> Command {
        let mut stdio = self.sockets.iter().map(|(_, socket)| {
            Stdio::from(socket.try_clone().expect("a descriptor can be duplicated"))
        });
        let mut command = match self.sockets.len() {
            0 => Command::new(&self.m40d),
            _ => Command::new("/bin/sh"),
        };
        command.env_clear();
        command.stdin(stdio.next().unwrap_or_else(Stdio::null));
        command.stdout(stdio.next().unwrap_or_else(Stdio::null));
        if !self.sockets.is_empty() {
            let names: Vec<&str> = self.sockets.iter().map(|(name, _)| name.as_str()).collect();
            command.env("LISTEN_FDS", names.len().to_string());
            command.env("LISTEN_FDNAMES", names.join(":"));
            command.args(["-c", HAND_OVER]).arg(&self.m40d);
        }
        command
    }
}

/// A running daemon. It is killed when this is dropped; in a test that fails, its log is shown.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    builder: Builder,
    http: SocketAddr,
    notify: UnixDatagram,
}

impl Daemon {
    /// Its folder, for files of the test.
    pub fn dir(&self) -> &Path {
        self.builder.dir()
    }

    /// Where its HTTP is.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.builder.socket()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The configuration file that it was started with.
    pub fn config_file(&self) -> PathBuf {
        self.dir().join(CONFIG)
    }

    /// Kills it as a crash would, and returns how to start it again in the same folder.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn crash(mut self) -> Builder {
        self.child.kill().expect("m40d must be there");
        self.wait();
        self.builder.clone()
    }

    /// What it has logged so far.
    ///
    /// # Panics
    /// When the log cannot be read.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("log")).expect("the log must be there")
    }

    /// `GET path`
    pub fn get(&self, path: &str) -> Reply {
        http::request(self.http, "GET", path, None)
    }

    /// `POST path` with a JSON body
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        http::request(self.http, "POST", path, Some(body))
    }

    /// `POST path`, to read the reply as it arrives
    pub fn post_stream(&self, path: &str, body: &Value) -> Stream {
        http::stream(self.http, path, body)
    }

    /// A command of `m40ctl` (the program at `m40ctl`) for this daemon.
    pub fn ctl(&self, m40ctl: impl AsRef<Path>, arguments: &[&str]) -> Command {
        let mut command = Command::new(m40ctl.as_ref());
        command.env_clear().env("M40_SOCKET", self.socket()).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the daemon is gone.
    pub fn signal(&self, signal: Signal) {
        kill(pid_of(&self.child), signal).expect("m40d must be there");
    }

    /// Waits for a message to the service manager that has this line, and returns the message.
    ///
    /// # Panics
    /// When the daemon ends, or a minute passes, without one.
    pub fn notification(&mut self, line: &str) -> String {
        self.notification_where(line, |message| message.lines().any(|found| found == line))
    }

    /// As [`Self::notification`], for a message that has this text anywhere.
    ///
    /// # Panics
    /// When the daemon ends, or a minute passes, without one.
    pub fn notification_with(&mut self, text: &str) -> String {
        self.notification_where(text, |message| message.contains(text))
    }

    fn notification_where(&mut self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + TIMEOUT;
        let mut buffer = [0; 4096];
        while Instant::now() < deadline {
            match self.notify.recv(&mut buffer) {
                Ok(length) => {
                    let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    if is(&message) {
                        return message;
                    }
                }
                // A wait with a time limit is not begun again after a signal of any kind.
                Err(error) if is_timeout(&error) || error.kind() == io::ErrorKind::Interrupted => {
                    let ended = self.child.try_wait().expect("a child can be waited for");
                    if let Some(status) = ended {
                        panic!("m40d ended with {status} before {what}\n{}", self.log());
                    }
                }
                Err(error) => panic!("cannot read the notify socket: {error}"),
            }
        }
        panic!("no {what} within {TIMEOUT:?}\n{}", self.log());
    }

    /// Whether the process is still there.
    ///
    /// # Panics
    /// When that cannot be found out.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Asks it to stop and waits for its end.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits for its end; kills it after a minute.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub fn wait(&mut self) -> ExitStatus {
        let pid = pid_of(&self.child);
        let child = &mut self.child;
        with_deadline(pid, || child.wait()).expect("a child can be waited for")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let status = self.child.wait();
        if thread::panicking() {
            let log = std::fs::read_to_string(self.dir().join("log")).unwrap_or_default();
            let _ = io::Write::write_all(
                &mut io::stderr(),
                format!("---- m40d ({status:?}) ----\n{log}----\n").as_bytes(),
            );
        }
    }
}

pub(crate) fn pid_of(child: &Child) -> Pid {
    // Process ids are positive and small.
    Pid::from_raw(child.id() as i32)
}

pub(crate) fn with_deadline<T>(pid: Pid, wait: impl FnOnce() -> T) -> T {
    let (done, is_done) = channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if is_done.recv_timeout(TIMEOUT) == Err(RecvTimeoutError::Timeout) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        });
        let result = wait();
        drop(done);
        result
    })
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn address_in(ready: &str) -> SocketAddr {
    let address = ready.split("://").nth(1).and_then(|rest| rest.split(',').next());
    let address: Option<SocketAddr> = address.and_then(|text| text.parse().ok());
    // Who listens everywhere is reached here.
    let address = address.map(|address| match address.ip().is_unspecified() {
        true => SocketAddr::from(([127, 0, 0, 1], address.port())),
        false => address,
    });
    address.unwrap_or_else(|| panic!("no address in {ready:?}"))
}
