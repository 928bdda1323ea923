//! A terminal that is changed for a while and put back however that ends.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};

/// What a terminal is taken for that does not say its size, in columns and rows.
const SIZE: (usize, usize) = (80, 24);

/// Goes to the alternate screen and hides the cursor.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// Shows the cursor and goes back to what was there before.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// Ends the bracketed paste that a line editor asked for.
const PASTE_OFF: &str = "\x1b[?2004l";

/// The mode of a terminal as it was, and what undoes what is done to it.
#[derive(Debug)]
pub(crate) struct Before {
    terminal: File,
    mode: Termios,
    undo: &'static str,
    restored: AtomicBool,
}

impl Before {
    /// The mode that a line editor, which may be cut off, is going to change. Of a terminal that is
    /// no screen it asks for nothing else.
    pub(crate) fn editing(terminal: impl AsFd, is_screen: bool) -> io::Result<Self> {
        Self::new(&terminal, if is_screen { PASTE_OFF } else { "" })
    }

    fn new(terminal: &impl AsFd, undo: &'static str) -> io::Result<Self> {
        let terminal = File::from(terminal.as_fd().try_clone_to_owned()?);
        let mode = tcgetattr(&terminal)?;
        Ok(Self { terminal, mode, undo, restored: AtomicBool::new(false) })
    }

    /// Puts the terminal back, once.
    pub(crate) fn restore(&self) {
        if !self.restored.swap(true, Ordering::Relaxed) {
            // A terminal that is gone needs nothing.
            let _ = (&self.terminal).write_all(self.undo.as_bytes());
            let _ = tcsetattr(&self.terminal, OptionalActions::Drain, &self.mode);
        }
    }
}

/// A terminal that does not show what is typed, until this is dropped: it is shown when somebody
/// reads it.
#[derive(Debug)]
pub(crate) struct Quiet(Before);

impl Quiet {
    /// Turns the echo of this terminal off.
    pub(crate) fn begin(terminal: impl AsFd) -> io::Result<Self> {
        let before = Before::new(&terminal, "")?;
        let mut mode = before.mode.clone();
        mode.local_modes -= LocalModes::ECHO;
        tcsetattr(&before.terminal, OptionalActions::Now, &mode)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.0.restore();
    }
}

type PanicHook = Arc<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

/// A terminal that shows a picture instead of lines, until this is dropped.
pub(crate) struct Screen {
    before: Arc<Before>,
    hook: PanicHook,
}

impl Screen {
    /// Takes the terminal: the alternate screen, keys as they are typed and not echoed. Ctrl-C is a
    /// signal as before, Ctrl-Z does nothing, and what a panic says is seen after the terminal is
    /// put back.
    pub(crate) fn open(terminal: impl AsFd) -> io::Result<Self> {
        let before = Arc::new(Before::new(&terminal, LEAVE)?);
        let hook: PanicHook = panic::take_hook().into();
        let (restored, earlier) = (Arc::clone(&before), Arc::clone(&hook));
        panic::set_hook(Box::new(move |info| {
            restored.restore();
            earlier(info);
        }));
        let screen = Self { before, hook };
        let mut mode = screen.before.mode.clone();
        mode.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        mode.special_codes[SpecialCodeIndex::VMIN] = 1;
        mode.special_codes[SpecialCodeIndex::VTIME] = 0;
        mode.special_codes[SpecialCodeIndex::VSUSP] = 0;
        tcsetattr(&screen.before.terminal, OptionalActions::Now, &mode)?;
        (&screen.before.terminal).write_all(ENTER.as_bytes())?;
        Ok(screen)
    }

    /// Columns and rows.
    pub(crate) fn size(&self) -> (usize, usize) {
        match tcgetwinsize(&self.before.terminal) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (usize::from(size.ws_col), usize::from(size.ws_row))
            }
            _ => SIZE,
        }
    }

    /// Shows these lines, which must fit, and nothing else.
    pub(crate) fn draw(&self, lines: &[String]) -> io::Result<()> {
        // In one write and without clearing first, so that nothing flickers.
        let picture = format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"));
        (&self.before.terminal).write_all(picture.as_bytes())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.before.restore();
        // While a panic unwinds hooks must stay as they are; this one has nothing left to do.
        if !std::thread::panicking() {
            let earlier = Arc::clone(&self.hook);
            panic::set_hook(Box::new(move |info| earlier(info)));
        }
    }
}

/// What is typed on stdin, as the terminal sends it.
pub(crate) struct Keys(Receiver<Vec<u8>>);

impl Keys {
    /// Begins to read keys. Nothing else may read stdin after it.
    pub(crate) fn read() -> Self {
        let (sender, keys) = channel(1);
        // It ends with the program: a read of a terminal cannot be interrupted.
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok(read @ 1..) = io::stdin().read(&mut buffer) {
                if sender.blocking_send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self(keys)
    }

    /// The next key, or a few that came together; `None` when the terminal is gone.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        self.0.recv().await
    }
}

/// The signals that ask a program to end, Ctrl-C but for its own.
pub(crate) struct Ends([Signal; 2]);

impl Ends {
    /// From here on these signals end nothing by themselves.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    /// Returns when one has come.
    pub(crate) async fn asked(&mut self) {
        let [terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// A panic puts every open screen back, which all tests of the process have one hook for.
    fn alone() -> MutexGuard<'static, ()> {
        static HOOK: Mutex<()> = Mutex::new(());
        HOOK.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The two ends of a terminal.
    fn terminal() -> (File, OwnedFd) {
        let pty = nix::pty::openpty(None, None).unwrap();
        (File::from(pty.master), pty.slave)
    }

    fn sent(master: &mut File, until: &str) -> String {
        let (mut text, mut byte) = (String::new(), [0]);
        while !text.ends_with(until) {
            assert_eq!(master.read(&mut byte).unwrap(), 1);
            text.push(char::from(byte[0]));
        }
        text
    }

    #[test]
    fn a_screen_is_put_back_when_it_is_dropped() {
        let _alone = alone();
        let (mut master, slave) = terminal();
        let before = tcgetattr(&slave).unwrap();
        let screen = Screen::open(&slave).unwrap();
        let during = tcgetattr(&slave).unwrap();
        assert!(!during.local_modes.intersects(LocalModes::ECHO | LocalModes::ICANON));
        assert!(during.local_modes.contains(LocalModes::ISIG));
        screen.draw(&["one".to_owned(), "two".to_owned()]).unwrap();
        assert_eq!(screen.size(), SIZE);
        drop(screen);
        assert_eq!(sent(&mut master, LEAVE).matches(ENTER).count(), 1);
        let after = tcgetattr(&slave).unwrap();
        assert_eq!(after.local_modes, before.local_modes);
        assert_eq!(format!("{:?}", after.special_codes), format!("{:?}", before.special_codes));
    }

    #[test]
    fn a_panic_puts_the_screen_back_before_it_speaks() {
        let _alone = alone();
        let (mut master, slave) = terminal();
        let before = tcgetattr(&slave).unwrap();
        let panicked = panic::catch_unwind(|| {
            let _screen = Screen::open(&slave).unwrap();
            panic!("while it is open");
        });
        assert!(panicked.is_err());
        assert_eq!(sent(&mut master, LEAVE).matches(LEAVE).count(), 1);
        assert_eq!(tcgetattr(&slave).unwrap().local_modes, before.local_modes);
    }
}
