//! A line that shows how far something is, and never runs backwards.

use std::io;

use m40_control::PullProgress;

use crate::output::Output;

/// Characters between the brackets.
const WIDTH: u64 = 24;
/// Longest label, in characters.
const LABEL_MAX: usize = 24;

/// The line, on a terminal; else there is none.
#[derive(Debug, Default)]
pub(super) struct Bar {
    label: String,
    done_bytes: u64,
}

impl Bar {
    /// A line that begins with this.
    pub(super) fn new(label: &str) -> Self {
        let label = match label.chars().count() {
            count if count > LABEL_MAX => label.chars().take(LABEL_MAX - 1).chain(['…']).collect(),
            _ => label.to_owned(),
        };
        Self { label, done_bytes: 0 }
    }

    pub(super) fn show(&mut self, progress: &PullProgress, output: &Output) -> io::Result<()> {
        output.progress(&self.line(progress))
    }

    /// Leaves the line empty for what is printed next.
    pub(super) fn clear(&self, output: &Output) -> io::Result<()> {
        output.progress("")
    }

    fn line(&mut self, progress: &PullProgress) -> String {
        // A try that begins anew counts from its own start.
        self.done_bytes = self.done_bytes.max(progress.done_bytes);
        let progress = PullProgress { done_bytes: self.done_bytes, ..*progress };
        let bar = progress.percent().map_or_else(String::new, |percent| {
            let full = (percent * WIDTH / 100) as usize;
            format!("[{}{}] ", "#".repeat(full), " ".repeat(WIDTH as usize - full))
        });
        format!("{} {bar}{progress}", self.label).trim_start().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use m40_control::PullPhase;

    use super::*;

    #[test]
    fn the_bar_never_runs_backwards() {
        let mut bar = Bar::new("m");
        let at = |done_bytes| PullProgress {
            phase: PullPhase::Downloading,
            done_bytes,
            total_bytes: Some(1000),
            bytes_per_s: 100,
        };
        let half = bar.line(&at(500));
        assert_eq!(
            half,
            "m [############            ] downloading 50 %, 500 B of 1.0 kB, 100 B/s, 5 s left"
        );
        assert_eq!(bar.line(&at(100)), half);
        assert!(bar.line(&at(2000)).starts_with("m [########################] downloading 100 %"));
        let unknown = PullProgress { total_bytes: None, ..at(0) };
        assert_eq!(Bar::new("").line(&unknown), "downloading, 100 B/s");
    }
}
