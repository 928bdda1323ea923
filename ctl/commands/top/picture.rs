//! What `top` shows, and what keys do to it.

use std::cmp::Reverse;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use m40_control::ModelEntry;

use super::Look;
use crate::commands::queue;
use crate::text::{Line, Table};
use crate::view;

/// Lines between what is above the models and them: an empty one, and their headings.
const BETWEEN: usize = 2;
/// Lines below them.
const BELOW: usize = 2;

/// What models are ordered by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Order {
    #[default]
    Name,
    Rate,
    Requests,
    Memory,
}

impl Order {
    const fn next(self) -> Self {
        match self {
            Self::Name => Self::Rate,
            Self::Rate => Self::Requests,
            Self::Requests => Self::Memory,
            Self::Memory => Self::Name,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Rate => "tokens/s",
            Self::Requests => "requests",
            Self::Memory => "memory",
        }
    }
}

/// What a key asks for beyond the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pressed {
    Leave,
    Stay,
}

/// How a look is shown.
#[derive(Debug, Default)]
pub(super) struct Picture {
    interval: Duration,
    order: Order,
    /// Models above the first that is shown.
    skipped: usize,
    paused: bool,
    trouble: Option<String>,
}

impl Picture {
    /// A picture that is replaced at this interval.
    pub(super) fn watching(interval: Duration) -> Self {
        Self { interval, ..Self::default() }
    }

    /// Whether it stays as it is.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Why there is no newer look.
    pub(super) fn set_trouble(&mut self, trouble: Option<String>) {
        self.trouble = trouble;
    }

    /// Does what keys ask for.
    pub(super) fn press(&mut self, keys: &[u8]) -> Pressed {
        match keys {
            b"\x1b[A" | b"\x1bOA" => self.skipped = self.skipped.saturating_sub(1),
            b"\x1b[B" | b"\x1bOB" => self.skipped += 1,
            // Some other key that sends several bytes.
            [0x1b, ..] => {}
            _ if keys.contains(&b'q') => return Pressed::Leave,
            _ => keys.iter().for_each(|key| match key {
                b's' => self.order = self.order.next(),
                b' ' => self.paused = !self.paused,
                b'k' => self.skipped = self.skipped.saturating_sub(1),
                b'j' => self.skipped += 1,
                _ => {}
            }),
        }
        Pressed::Stay
    }

    /// The lines of a look, however many there are.
    pub(super) fn lines(&self, look: &Look) -> Vec<Line> {
        let models = self.ordered(look);
        let mut lines = self.head(look);
        if !models.is_empty() {
            lines.push(Line::default());
            lines.extend(view::models(&models, &look.rates));
            lines.extend(view::remarks(&models));
        }
        lines.extend(requests(look));
        lines
    }

    /// The lines of a look as a screen of so many columns and rows shows them.
    pub(super) fn draw(
        &mut self,
        look: &Look,
        (columns, rows): (usize, usize),
        color: bool,
    ) -> Vec<String> {
        let models = self.ordered(look);
        let requests = requests(look);
        // Where not all have room, models have most of it.
        let below = BELOW + requests.len().min(rows / 3);
        let mut lines = self.head(look);
        let room = rows.saturating_sub(lines.len() + BETWEEN + below);
        self.skipped = self.skipped.min(models.len().saturating_sub(room));
        let mut table = view::models(&models, &look.rates).into_iter();
        let headings = table.next().unwrap_or_default();

        lines.push(Line::default());
        lines.push(headings);
        lines.extend(table.skip(self.skipped).take(room));
        lines.extend(view::remarks(&models));
        lines.truncate(rows.saturating_sub(below));
        let room = rows.saturating_sub(BELOW + lines.len());
        lines.extend(requests.into_iter().take(room));
        lines.resize(rows.saturating_sub(1), Line::default());
        lines.push(self.foot(models.len()));
        lines.truncate(rows);
        lines.iter().map(|line| line.show(columns, color)).collect()
    }

    fn head(&self, look: &Look) -> Vec<Line> {
        let status = &look.status;
        let mut first = Line::default()
            .then(Style::new().bold(), format!("m40d {}", status.version))
            .plain(format!(", up {}, {}", view::uptime(status.uptime_s), status.device));
        if status.stopping {
            first = first.plain(", ").then(AnsiColor::Yellow.on_default(), "stopping");
        }
        let second = match &self.trouble {
            Some(trouble) => Line::default().then(AnsiColor::Red.on_default(), trouble),
            None => view::totals(status, &look.rates),
        };
        let mut lines = vec![first, second];
        if let Some(card) = &status.card {
            lines.push(Line::default().plain(view::card(card)));
            lines.extend(view::care(card));
        }
        lines
    }

    fn foot(&self, models: usize) -> Line {
        let (every, order) = (self.interval.as_secs_f64(), self.order.name());
        let paused = if self.paused { "paused, space goes on" } else { "space pauses" };
        let hidden = match self.skipped {
            0 => String::new(),
            skipped => format!("  {skipped} of {models} above"),
        };
        let text = format!(
            "q leaves  s sorts (by {order})  {paused}  arrows move  every {every} s{hidden}"
        );
        Line::default().then(Style::new().dimmed(), text)
    }

    fn ordered<'a>(&self, look: &'a Look) -> Vec<&'a ModelEntry> {
        let mut models: Vec<&ModelEntry> = look.status.models.iter().collect();
        let rate = |model: &ModelEntry| {
            look.rates
                .get(&model.name)
                .and_then(|rate| rate.completion_tokens_per_s)
                .unwrap_or(-1.0)
        };
        let loaded = |model: &ModelEntry, of: fn(&m40_control::LoadedModel) -> u64| {
            Reverse(model.loaded.as_ref().map_or(0, of))
        };
        match self.order {
            Order::Name => models.sort_by(|a, b| a.name.cmp(&b.name)),
            Order::Rate => models.sort_by(|a, b| rate(b).total_cmp(&rate(a))),
            Order::Requests => models.sort_by_key(|model| loaded(model, |loaded| loaded.jobs)),
            Order::Memory => {
                models.sort_by_key(|model| loaded(model, |loaded| loaded.memory_bytes));
            }
        }
        models
    }
}

/// The requests, below headings and apart from what is above them; nothing where there are none.
fn requests(look: &Look) -> Vec<Line> {
    if look.requests.is_empty() {
        return Vec::new();
    }
    let table = Table::of(&queue::rows(&look.requests));
    std::iter::once(Line::default()).chain(table.lines()).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use m40_control::QueueEntry;
    use serde_json::Value;

    use super::super::Looker;
    use super::*;

    fn look(models: &[(&str, u64, u64)]) -> Look {
        let model = |made: u64, &(name, rate, jobs): &(&str, u64, u64)| {
            view::test_model(name, made * rate, jobs)
        };
        let status = |made: u64| -> Value { models.iter().map(|m| model(made, m)).collect() };
        let (mut looker, start) = (Looker::default(), Instant::now());
        looker.look(start, (view::test_status(status(1)), vec![]));
        looker.look(start + Duration::from_secs(1), (view::test_status(status(2)), vec![]))
    }

    fn names(lines: &[String]) -> Vec<&str> {
        let rows = lines.iter().filter(|line| line.contains(" ready "));
        rows.filter_map(|line| line.split_whitespace().next()).collect()
    }

    #[test]
    fn a_picture_fills_the_screen_and_no_more() {
        let models: Vec<_> = ["a", "b", "c", "d", "e"].map(|name| (name, 3, 1)).to_vec();
        let look = look(&models);
        for (columns, rows) in [(80, 24), (30, 8), (200, 7), (5, 2), (1, 1)] {
            let lines = Picture::default().draw(&look, (columns, rows), false);
            assert_eq!(lines.len(), rows);
            assert!(lines.iter().all(|line| line.chars().count() <= columns), "{lines:#?}");
        }
    }

    #[test]
    fn keys_sort_move_pause_and_leave() {
        let look = look(&[("a", 1, 3), ("b", 9, 1), ("c", 5, 2)]);
        let mut picture = Picture::watching(Duration::from_secs(1));
        let tall = (120, 24);
        assert_eq!(names(&picture.draw(&look, tall, false)), ["a", "b", "c"]);
        for (order, expected) in [
            ("tokens/s", ["b", "c", "a"]),
            ("requests", ["a", "c", "b"]),
            ("memory", ["a", "b", "c"]),
        ] {
            assert_eq!(picture.press(b"s"), Pressed::Stay);
            let lines = picture.draw(&look, tall, false);
            assert_eq!(names(&lines), expected);
            assert!(lines.last().unwrap().contains(order));
        }
        let short = (120, 2 + BETWEEN + BELOW + 1);
        picture.press(b"\x1b[B");
        assert_eq!(names(&picture.draw(&look, short, false)), ["b"]);
        picture.press(b"jjjjj");
        assert_eq!(names(&picture.draw(&look, short, false)), ["c"]);
        picture.press(b"\x1b[A");
        assert_eq!(names(&picture.draw(&look, short, false)), ["b"]);
        picture.press(b" ");
        assert!(picture.is_paused());
        assert_eq!(picture.press(b"\x1b[15~"), Pressed::Stay);
        assert_eq!(picture.press(b"q"), Pressed::Leave);
    }

    #[test]
    fn requests_are_below_models_and_take_a_third_of_the_screen_at_most() {
        let entry = |request| QueueEntry {
            request,
            model: "a".to_owned(),
            urgency: "agent".to_owned(),
            running: request == 1,
            since_ms: 1200,
            ahead: None,
            wait_ms: None,
        };
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut look = look(&names.map(|name| (name, 1, 1)));
        look.requests = (1..=20).map(entry).collect();
        let lines = Picture::default().draw(&look, (120, 12), false);
        let count = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
        assert_eq!((count(" ready "), count(" agent "), lines.len()), (2, 2, 12), "{lines:#?}");
        let tall = Picture::default().draw(&look, (120, 60), false);
        assert!(
            tall.iter().any(|line| line.starts_with("1        a      agent    runs")),
            "{tall:#?}"
        );
        assert_eq!(tall.iter().filter(|line| line.contains(" agent ")).count(), 20);
    }

    #[test]
    fn a_daemon_that_is_gone_is_said_above_its_last_figures() {
        let look = look(&[("a", 1, 3)]);
        let mut picture = Picture::default();
        picture.set_trouble(Some("m40d is not running".to_owned()));
        let lines = picture.draw(&look, (80, 24), false);
        assert_eq!(lines[1], "m40d is not running");
        assert_eq!(names(&lines), ["a"]);
    }
}
