//! Printing: text for people, JSON for programs.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Stdout, Write};
use std::time::Duration;

use clap::ValueEnum;
use m40_control::paths::Env;
use m40_control::{ModelEntry, Size};
use serde::Serialize;
use tokio::time::timeout;

use crate::text::{Line, Table, harmless};

/// How long something may take before a terminal says that it is waited for.
const PATIENCE: Duration = Duration::from_millis(300);

/// When text has colours: on a terminal, also into files and pipes, or nowhere.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    #[default]
    Auto,
    Always,
    Never,
}

/// Where a command prints.
#[derive(Debug)]
pub(crate) struct Output {
    pub json: bool,
    /// Whether text has colours.
    pub color: bool,
    out: Stdout,
    is_terminal: bool,
    is_dumb: bool,
}

impl Output {
    /// Prints to stdout.
    pub(crate) fn new(json: bool, color: Color, env: &Env) -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        let is_dumb = matches!(env.var("TERM"), None | Some("dumb"));
        let color = match color {
            Color::Auto => is_terminal && !is_dumb && env.var("NO_COLOR").is_none(),
            Color::Always => true,
            Color::Never => false,
        };
        Self { json, color, out, is_terminal, is_dumb }
    }

    /// Whether people see what is printed as it comes.
    pub(crate) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Whether a picture can be drawn over another.
    pub(crate) fn is_screen(&self) -> bool {
        self.is_terminal && !self.is_dumb
    }

    /// One line of text.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        let text = if self.is_terminal { harmless(text) } else { text.into() };
        writeln!(self.out, "{text}")
    }

    /// One line of styled text.
    pub(crate) fn styled(&mut self, line: &Line) -> io::Result<()> {
        writeln!(self.out, "{}", line.show(usize::MAX, self.color))
    }

    /// One value as one line of JSON.
    pub(crate) fn value(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value).map_err(io::Error::other)?;
        writeln!(self.out, "{}", escaped(&text))
    }

    /// A piece of a model's answer, at once.
    pub(crate) fn piece(&mut self, text: &str) -> io::Result<()> {
        let text = if self.is_terminal { harmless(text) } else { text.into() };
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Something beside the result, for people only: to stderr.
    pub(crate) fn note(&self, text: &str) -> io::Result<()> {
        let mut err = io::stderr();
        let text = if err.is_terminal() { harmless(text) } else { text.into() };
        writeln!(err, "{text}")
    }

    /// Replaces the line of progress; only a terminal that can take it away again has one.
    pub(crate) fn progress(&self, text: &str) -> io::Result<()> {
        let mut err = io::stderr();
        if self.json || self.is_dumb || !err.is_terminal() {
            return Ok(());
        }
        // What does not fit is cut off at the edge, not carried to the next line.
        write!(err, "\r\x1b[K\x1b[?7l{}\x1b[?7h", harmless(text))?;
        err.flush()
    }

    /// Waits for something, and says so where it takes long.
    pub(crate) async fn waiting<T>(
        &self,
        text: &str,
        done: impl Future<Output = T>,
    ) -> io::Result<T> {
        let mut done = std::pin::pin!(done);
        if let Ok(done) = timeout(PATIENCE, &mut done).await {
            return Ok(done);
        }
        self.progress(text)?;
        let _cleared = ClearProgress(self);
        Ok(done.await)
    }

    /// Columns padded to their widest cell; the first row is the heading.
    pub(crate) fn table(&mut self, rows: &[Vec<String>]) -> io::Result<()> {
        Table::of(rows).lines().iter().try_for_each(|line| self.styled(line))
    }
}

/// JSON with all characters that steer a terminal as escapes; on its own it has only some of them.
fn escaped(json: &str) -> Cow<'_, str> {
    if !json.contains(char::is_control) {
        return json.into();
    }
    let escape = |c: char| match c.is_control() {
        true => format!("\\u{:04x}", u32::from(c)),
        false => c.to_string(),
    };
    json.chars().map(escape).collect::<String>().into()
}

/// Takes the line of progress away, also where the wait for it is given up.
struct ClearProgress<'a>(&'a Output);

impl Drop for ClearProgress<'_> {
    fn drop(&mut self) {
        // A terminal that is gone shows no progress.
        let _ = self.0.progress("");
    }
}

/// A size in decimal units, as disks and downloads have it.
pub(crate) fn size(bytes: u64) -> String {
    Size(bytes).to_string()
}

/// Memory, in MiB.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// How long something takes or has taken.
pub(crate) fn time(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..100_000 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => format!("{} min {} s", ms / 60_000, ms / 1000 % 60),
    }
}

/// A count with a suffix, as model names have it.
pub(crate) fn count(n: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("B", 1_000_000_000), ("M", 1_000_000), ("K", 1000)];
    match UNITS.iter().find(|(_, unit)| n >= *unit) {
        Some((name, unit)) => format!("{:.1}{name}", n as f64 / *unit as f64),
        None => n.to_string(),
    }
}

/// The rows of a list of models.
pub(crate) fn model_rows(models: &[ModelEntry]) -> Vec<Vec<String>> {
    let heading = ["NAME", "SIZE", "PARAMETERS", "FORMAT", "STATE"].map(str::to_owned).to_vec();
    let row = |model: &ModelEntry| {
        vec![
            model.name.clone(),
            size(model.size_bytes),
            if model.parameters > 0 { count(model.parameters) } else { "-".to_owned() },
            format!("{} {}", model.architecture, model.quantization).trim().to_owned(),
            state(model),
        ]
    };
    std::iter::once(heading).chain(models.iter().map(row)).collect()
}

/// A model's state in words.
pub(crate) fn state(model: &ModelEntry) -> String {
    if let Some(progress) = &model.progress {
        return format!("{}, {progress}", model.state.name());
    }
    match (&model.failure, &model.loaded) {
        (Some(failure), _) => format!("{}: {failure}", model.state.name()),
        (None, Some(loaded)) => {
            let (state, context) = (model.state.name(), loaded.context_tokens);
            let kv = match loaded.kv_type.as_str() {
                "" | "f16" => String::new(),
                other => format!(" (kv {other})"),
            };
            format!("{state}, context {context}{kv}, {} jobs", loaded.jobs)
        }
        (None, None) => model.state.name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_are_short() {
        assert_eq!(size(999), "999 B");
        assert_eq!(mib((5 << 20) + (1 << 19)), "5.5 MiB");
        assert_eq!([999, 1234, 125_000].map(time), ["999 ms", "1.2 s", "2 min 5 s"]);
        assert_eq!(size(98_362_432), "98.4 MB");
        assert_eq!(size(24_000_000_000), "24.0 GB");
        assert_eq!(count(134_515_008), "134.5M");
        assert_eq!(count(12), "12");
    }

    #[test]
    fn json_steers_no_terminal_and_means_the_same() {
        let text = "a\u{9b}31m\u{7f}\x1b\n\u{e9}";
        let json = serde_json::to_string(text).unwrap();
        let escaped = escaped(&json);
        assert!(!escaped.contains(char::is_control) && json.contains('\u{9b}'));
        assert_eq!(serde_json::from_str::<String>(&escaped).unwrap(), text);
        assert!(matches!(super::escaped("{}"), Cow::Borrowed(_)));
    }
}
