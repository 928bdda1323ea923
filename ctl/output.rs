//! Printing: text for people, JSON for programs.

use std::io::{self, IsTerminal, Stdout, Write};

use m40_control::{ModelEntry, Size};
use serde::Serialize;

/// Where a command prints.
#[derive(Debug)]
pub(crate) struct Output {
    pub json: bool,
    out: Stdout,
    is_terminal: bool,
}

impl Output {
    /// Prints to stdout.
    pub(crate) fn new(json: bool) -> Self {
        let out = io::stdout();
        let is_terminal = out.is_terminal();
        Self { json, out, is_terminal }
    }

    /// One line of text.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// One value as one line of JSON.
    pub(crate) fn value(&mut self, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(value).map_err(io::Error::other)?;
        self.line(&text)
    }

    /// A piece of a model's answer, at once.
    pub(crate) fn piece(&mut self, text: &str) -> io::Result<()> {
        if self.is_terminal {
            self.out.write_all(harmless(text).as_bytes())?;
        } else {
            self.out.write_all(text.as_bytes())?;
        }
        self.out.flush()
    }

    /// Something beside the result, for people only: to stderr.
    pub(crate) fn note(&self, text: &str) -> io::Result<()> {
        writeln!(io::stderr(), "{text}")
    }

    /// Replaces the line of progress; only a terminal has one.
    pub(crate) fn progress(&self, text: &str) -> io::Result<()> {
        let mut err = io::stderr();
        if self.json || !err.is_terminal() {
            return Ok(());
        }
        // What does not fit is cut off at the edge, not carried to the next line.
        write!(err, "\r\x1b[K\x1b[?7l{}\x1b[?7h", harmless(text))?;
        err.flush()
    }

    /// Columns padded to their widest cell; the first row is the heading.
    pub(crate) fn table(&mut self, rows: &[Vec<String>]) -> io::Result<()> {
        let columns = rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            self.line(line.trim_end())?;
        }
        Ok(())
    }
}

/// The text without characters that steer a terminal: a model may answer with any.
fn harmless(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
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
    fn an_answer_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\u{9b}c\r\n\td"), "a[2Jbc\n\td");
    }
}
