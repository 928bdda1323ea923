//! Text for people: what is safe to show, how wide it is, and lines and tables of styled pieces.

use std::borrow::Cow;

use anstyle::Style;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// The text without characters that steer a terminal: a model may answer with any.
pub(crate) fn harmless(text: &str) -> Cow<'_, str> {
    let harms = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(harms) { text.replace(harms, "").into() } else { text.into() }
}

/// A line of text whose pieces have styles.
#[derive(Debug, Clone, Default)]
pub(crate) struct Line(Vec<(Style, String)>);

impl Line {
    /// The line with this after it. It takes no more than one line and steers nothing.
    pub(crate) fn then(mut self, style: Style, text: impl AsRef<str>) -> Self {
        let text = text.as_ref().replace(['\n', '\t'], " ");
        self.0.push((style, harmless(&text).into_owned()));
        self
    }

    /// The same in no style.
    pub(crate) fn plain(self, text: impl AsRef<str>) -> Self {
        self.then(Style::new(), text)
    }

    /// The line, cut at `columns` of the terminal, with escape sequences for its styles if `color`.
    pub(crate) fn show(&self, columns: usize, color: bool) -> String {
        let mut left = columns;
        let mut shown = String::new();
        for (style, text) in &self.0 {
            let text = cut(text, left);
            left = left.saturating_sub(text.width());
            if color && *style != Style::new() {
                shown.push_str(&format!("{style}{text}{style:#}"));
            } else {
                shown.push_str(text);
            }
        }
        shown.truncate(shown.trim_end().len());
        shown
    }
}

/// As much of the text as fits.
fn cut(text: &str, columns: usize) -> &str {
    let mut taken = 0;
    let end = text.char_indices().find(|(_, c)| {
        taken += c.width().unwrap_or(0);
        taken > columns
    });
    end.map_or(text, |(at, _)| &text[..at])
}

/// What is at the left edge of a column, or at the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows of cells below headings.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<(Style, String)>>,
}

impl Table {
    /// A table with these headings and no rows.
    pub(crate) fn new<T: Into<String>>(columns: impl IntoIterator<Item = (T, Align)>) -> Self {
        let columns = columns.into_iter().map(|(heading, align)| (heading.into(), align));
        Self { columns: columns.collect(), rows: Vec::new() }
    }

    /// A table of plain cells at the left edges of their columns; the first row is the headings.
    pub(crate) fn of(rows: &[Vec<String>]) -> Self {
        let mut rows = rows.iter();
        let headings = rows.next().into_iter().flatten();
        let mut table = Self::new(headings.map(|heading| (heading.as_str(), Align::Left)));
        for row in rows {
            table.row(row.iter().map(|cell| (Style::new(), cell.clone())));
        }
        table
    }

    /// Adds a row, with a cell for each column.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = (Style, String)>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The lines, the headings first.
    pub(crate) fn lines(&self) -> Vec<Line> {
        let heading = Style::new().bold();
        let headings = self.columns.iter().map(|(text, _)| (heading, text.clone())).collect();
        let rows: Vec<_> = std::iter::once(&headings).chain(&self.rows).collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|(_, text)| harmless(text).width()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        rows.into_iter().map(|row| self.line(row, &widths)).collect()
    }

    fn line(&self, row: &[(Style, String)], widths: &[usize]) -> Line {
        let cells = row.iter().zip(&self.columns).zip(widths).enumerate();
        cells.fold(Line::default(), |line, (at, (((style, text), (_, align)), width))| {
            let gap = if at == 0 { "" } else { "  " };
            let padding = " ".repeat(width.saturating_sub(harmless(text).width()));
            match align {
                Align::Left => line.plain(gap).then(*style, text).plain(padding),
                Align::Right => line.plain(gap).plain(padding).then(*style, text),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use anstyle::AnsiColor;

    use super::*;

    #[test]
    fn an_answer_cannot_steer_the_terminal() {
        assert_eq!(harmless("a\x1b[2Jb\u{9b}c\r\n\td\u{7}"), "a[2Jbc\n\td");
        assert!(matches!(harmless("plain\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn columns_are_below_each_other_by_what_a_terminal_shows() {
        let mut table = Table::new([("NAME", Align::Left), ("SIZE", Align::Right)]);
        for (name, size) in [("日本", "1 GB"), ("e\u{301}a", "10 kB"), ("a\nb", "\x1b7")] {
            table.row([(Style::new(), name.to_owned()), (Style::new(), size.to_owned())]);
        }
        let lines: Vec<_> = table.lines().iter().map(|line| line.show(99, false)).collect();
        assert_eq!(lines, ["NAME   SIZE", "日本   1 GB", "e\u{301}a    10 kB", "a b       7"]);
    }

    #[test]
    fn a_line_is_cut_between_characters() {
        let line = Line::default().plain("a日").then(AnsiColor::Red.on_default(), "本語");
        assert_eq!(line.show(2, false), "a");
        assert_eq!(line.show(5, false), "a日本");
        assert_eq!(line.show(5, true), "a日\x1b[31m本\x1b[0m");
    }
}
