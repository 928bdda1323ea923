//! The line editor of a chat, and the history that it keeps.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use m40_control::RunParams;
use rustyline::completion::Completer;
use rustyline::config::{BellStyle, CompletionType};
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Helper};

use super::typed::{COMMANDS, is_unfinished};
use crate::error::CommandError;

/// Most entries of the history.
const ENTRIES_MAX: usize = 1000;
/// Longest entry that is kept: what is longer was pasted, and is somewhere else.
const ENTRY_BYTES_MAX: usize = 8 << 10;
/// Largest history that is read. With its escapes none that was written here is larger.
const HISTORY_BYTES_MAX: u64 = (2 * ENTRIES_MAX * ENTRY_BYTES_MAX) as u64;

const PROMPT: &str = ">>> ";

/// What was typed, or why nothing was.
#[derive(Debug)]
pub(super) enum Line {
    Text(String),
    /// Ctrl-C: what was typed is discarded.
    Interrupted,
    /// Ctrl-D, or the terminal is gone.
    End,
}

/// Reads what a person types.
pub(super) struct Editor {
    editor: rustyline::Editor<Chatting, FileHistory>,
    history: Option<PathBuf>,
}

impl Editor {
    /// An editor that keeps its history in this file, if in any. A history that cannot be read is
    /// as good as none.
    pub(super) fn new(history: Option<PathBuf>) -> Result<Self, CommandError> {
        let config = Config::builder()
            .max_history_size(ENTRIES_MAX)
            .and_then(|config| config.history_ignore_dups(true))
            .map_err(failed)?
            .completion_type(CompletionType::List)
            .completion_show_all_if_ambiguous(true)
            .bell_style(BellStyle::None)
            .bracketed_paste(true)
            .build();
        let mut editor = rustyline::Editor::with_config(config).map_err(failed)?;
        editor.set_helper(Some(Chatting));
        if let Some(history) = history.as_deref().filter(|path| is_readable(path)) {
            let _ = editor.load_history(history);
        }
        Ok(Self { editor, history })
    }

    /// Waits for what is typed. Blocks.
    pub(super) fn read(&mut self) -> Result<Line, CommandError> {
        match self.editor.readline(PROMPT) {
            Ok(text) => Ok(Line::Text(text)),
            Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
            Err(ReadlineError::Eof) => Ok(Line::End),
            Err(error) => Err(failed(error)),
        }
    }

    /// Adds to the history, also to that of chats to come.
    ///
    /// # Errors
    /// Where the history cannot be written.
    pub(super) fn remember(&mut self, text: &str) -> Result<(), CommandError> {
        if text.len() > ENTRY_BYTES_MAX || !self.editor.add_history_entry(text).map_err(failed)? {
            return Ok(());
        }
        let Some(path) = &self.history else { return Ok(()) };
        let written = make_folder(path)
            .map_err(ReadlineError::from)
            .and_then(|()| self.editor.append_history(path));
        written.map_err(|error| {
            let failed = failed(error);
            let message = format!("cannot keep the history in {}: {failed}", path.display());
            CommandError::new(failed.kind, message)
        })
    }
}

fn is_readable(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.len() <= HISTORY_BYTES_MAX)
}

fn make_folder(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(folder) => DirBuilder::new().recursive(true).mode(0o700).create(folder),
        None => Ok(()),
    }
}

fn failed(error: ReadlineError) -> CommandError {
    match error {
        ReadlineError::Io(error) => error.into(),
        error => io::Error::other(error).into(),
    }
}

/// What the editor knows of a chat: when a message is whole, and what can follow a slash.
struct Chatting;

impl Validator for Chatting {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_unfinished(context.input()) {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

impl Completer for Chatting {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(complete(&line[..at]))
    }
}

/// Where what can be completed begins, and what it may become.
fn complete(typed: &str) -> (usize, Vec<String>) {
    let fitting = |names: &[&str], begun: &str| {
        let fitting = names.iter().filter(|name| name.starts_with(begun));
        fitting.map(|name| format!("{name} ")).collect()
    };
    if let Some(begun) = typed.strip_prefix("/set ") {
        return ("/set ".len(), fitting(&RunParams::NAMES, begun));
    }
    if !typed.starts_with('/') {
        return (0, Vec::new());
    }
    (0, fitting(&COMMANDS.map(|(name, ..)| name), typed))
}

impl Hinter for Chatting {
    type Hint = String;
}

impl Highlighter for Chatting {}

impl Helper for Chatting {}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// While a history is written the process has another umask, which all of its files go by.
    fn alone() -> MutexGuard<'static, ()> {
        static UMASK: Mutex<()> = Mutex::new(());
        UMASK.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(editor: &Editor) -> Vec<&String> {
        editor.editor.history().iter().collect()
    }

    #[test]
    fn a_history_lasts_has_a_cap_and_is_its_owners_alone() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/history");
        let mut editor = Editor::new(Some(path.clone())).unwrap();
        for number in 0..ENTRIES_MAX + 5 {
            editor.remember(&format!("number {number}\nof several lines")).unwrap();
        }
        editor.remember(&"x".repeat(ENTRY_BYTES_MAX + 1)).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));

        let again = Editor::new(Some(path)).unwrap();
        let entries = entries(&again);
        assert_eq!(entries.len(), ENTRIES_MAX);
        assert_eq!(entries[0], "number 5\nof several lines");
        assert_eq!(
            **entries.last().unwrap(),
            format!("number {}\nof several lines", ENTRIES_MAX + 4)
        );
    }

    #[test]
    fn two_chats_at_a_time_keep_the_history_of_both() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let mut one = Editor::new(Some(path.clone())).unwrap();
        let mut other = Editor::new(Some(path.clone())).unwrap();
        one.remember("a").unwrap();
        other.remember("b").unwrap();
        one.remember("c").unwrap();
        let again = Editor::new(Some(path)).unwrap();
        assert_eq!(entries(&again), ["a", "b", "c"]);
    }

    #[test]
    fn what_is_no_history_is_not_read() {
        let _alone = alone();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(HISTORY_BYTES_MAX + 1).unwrap();
        assert!(entries(&Editor::new(Some(path)).unwrap()).is_empty());
        assert!(Editor::new(Some(dir.path().to_path_buf())).is_ok());
        let mut nowhere = Editor::new(Some("/dev/null/history".into())).unwrap();
        assert!(nowhere.remember("x").unwrap_err().message.contains("/dev/null/history"));
    }

    #[test]
    fn commands_and_parameters_are_completed() {
        assert_eq!(complete("/sa"), (0, vec!["/save ".to_owned()]));
        assert_eq!(complete("/set top_"), (5, vec!["top_k ".to_owned(), "top_p ".to_owned()]));
        assert_eq!(complete("hel"), (0, vec![]));
    }
}
