//! A program at a terminal: keys go in, and what a person would see comes out.
//!
//! The terminal is a pseudo-terminal of the kernel, so Ctrl-C is a signal and modes are real; what is
//! written to it is understood by a terminal emulator. Nothing here sleeps.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use vt100::{Parser, Screen};

use crate::daemon::{pid_of, with_deadline};

/// The width of a terminal.
pub const COLUMNS: NonZeroU16 = NonZeroU16::new(100).expect("is not zero");
/// Its height.
pub const ROWS: NonZeroU16 = NonZeroU16::new(40).expect("is not zero");

/// How long a program may take to show what is waited for, or to end.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Sent after a program has ended, to know that all it wrote has come.
const END: &[u8] = b"\x1b]0;end of the program\x07";

/// A program that runs at a terminal. It is killed when this is dropped.
pub struct Terminal {
    child: Child,
    /// The side of the person.
    keys: File,
    /// The side of the program.
    terminal: OwnedFd,
    before: Termios,
    output: Receiver<Vec<u8>>,
    sent: Vec<u8>,
    emulator: Parser,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal")
            .field("screen", &self.screen().contents())
            .finish_non_exhaustive()
    }
}

impl Terminal {
    /// Starts the program of `command`, with its arguments and with the variables that it sets, on a
    /// terminal of [`COLUMNS`] and [`ROWS`].
    ///
    /// # Panics
    /// When there is no terminal to be had, or no such program; so for every method here.
    pub fn start(command: &Command) -> Self {
        let (ws_row, ws_col) = (ROWS.get(), COLUMNS.get());
        let size = Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a pseudo-terminal");
        // The program may be fast to change it.
        let before = tcgetattr(&pty.slave).expect("a terminal has a mode");
        let side = || Stdio::from(pty.slave.try_clone().expect("a file can be used twice"));
        let variables = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
        // It makes the terminal the one that Ctrl-C of the program comes from.
        let child = Command::new("/usr/bin/setsid")
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .env_clear()
            .env("TERM", "xterm-256color")
            .envs(variables)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .expect("setsid of util-linux");
        let keys = File::from(pty.master);
        let output = read_all(keys.try_clone().expect("a file can be used twice"));
        let (terminal, emulator) = (pty.slave, Parser::new(ROWS, COLUMNS, 0));
        Self { child, keys, terminal, before, output, sent: Vec::new(), emulator }
    }

    /// Types this.
    ///
    /// # Panics
    /// See [`start`](Self::start).
    pub fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("the terminal is there");
    }

    /// Waits until this is to be seen somewhere.
    ///
    /// # Panics
    /// When that takes too long, or the program ends; so for all that waits.
    #[track_caller]
    pub fn shows(&mut self, text: &str) {
        self.until(text, |terminal| terminal.screen().contents().contains(text));
    }

    /// Waits until this is so.
    ///
    /// # Panics
    /// See [`shows`](Self::shows).
    #[track_caller]
    pub fn until(&mut self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !is(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.take(&bytes),
                Err(_) => panic!("no {what:?} on\n{}", self.screen().contents()),
            }
        }
    }

    /// What is to be seen.
    pub fn screen(&self) -> &Screen {
        self.emulator.screen()
    }

    /// All that the program has written so far, as it wrote it.
    pub fn sent(&self) -> &[u8] {
        &self.sent
    }

    /// Gives the terminal another width, which the program is told by a signal.
    ///
    /// # Panics
    /// See [`start`](Self::start).
    pub fn resize(&mut self, columns: NonZeroU16) {
        let (ws_row, ws_col) = (ROWS.get(), columns.get());
        let size = rustix::termios::Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        self.emulator.screen_mut().set_size(ROWS, columns);
        rustix::termios::tcsetwinsize(&self.keys, size).expect("a terminal has a size");
    }

    /// Sends the program a signal.
    ///
    /// # Panics
    /// See [`start`](Self::start).
    pub fn signal(&self, signal: Signal) {
        kill(pid_of(&self.child), signal).expect("the program is there");
    }

    /// Waits for the end of the program, and returns how it ended when all that it wrote has come.
    ///
    /// # Panics
    /// See [`shows`](Self::shows).
    #[track_caller]
    pub fn end(&mut self) -> ExitStatus {
        let (pid, child) = (pid_of(&self.child), &mut self.child);
        let status = with_deadline(pid, || child.wait()).expect("a child can be waited for");
        let side = self.terminal.try_clone().expect("a file can be used twice");
        File::from(side).write_all(END).expect("the terminal is there");
        self.until("end", |terminal| terminal.sent.ends_with(END));
        self.sent.truncate(self.sent.len() - END.len());
        status
    }

    /// The terminal must be as it was: its mode, its screen and its cursor.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn check_restored(&self) {
        let mode = tcgetattr(&self.terminal).expect("a terminal has a mode");
        assert_eq!(mode, self.before, "the mode of the terminal has changed");
        let screen = self.screen();
        assert!(!screen.alternate_screen(), "the alternate screen is left on");
        assert!(!screen.hide_cursor(), "the cursor is hidden");
        assert!(!screen.bracketed_paste(), "bracketed paste is left on");
    }

    fn take(&mut self, bytes: &[u8]) {
        self.emulator.process(bytes);
        self.sent.extend_from_slice(bytes);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What can be read of a file, as it comes, until nobody wants it.
fn read_all(mut file: File) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = file.read(&mut buffer) {
            if sender.send(buffer[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}
