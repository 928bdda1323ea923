//! What a daemon and its models are doing, as lines: `status` and `top` show the same.

mod card;

use std::collections::BTreeMap;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use m40_control::{LoadedModel, ModelEntry, ModelState, ModelWork, Status};
use serde::Serialize;

use crate::output::mib;
use crate::text::{Align, Line, Table};

pub(crate) use card::{card, care};

/// The columns of models, with what is at which edge.
const COLUMNS: [(&str, Align); 9] = [
    ("NAME", Align::Left),
    ("STATE", Align::Left),
    ("RUNNING", Align::Right),
    ("WAITING", Align::Right),
    ("DONE", Align::Right),
    ("TOKENS/S", Align::Right),
    (PROMPT_RATE, Align::Right),
    ("CONTEXT", Align::Right),
    ("MEMORY", Align::Right),
];

/// The column that only looks at the same model twice can fill.
const PROMPT_RATE: &str = "PROMPT/S";

/// How fast something goes, in tokens per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Rate {
    /// Tokens made.
    pub completion_tokens_per_s: Option<f64>,
    /// Prompt tokens computed.
    pub prompt_tokens_per_s: Option<f64>,
}

impl Rate {
    /// What was done between two looks at a model; nothing is known of one that was loaded again.
    fn between(before: &ModelWork, after: &ModelWork, time: Duration) -> Self {
        let rate = |before: u64, after: u64| {
            let done = after.checked_sub(before)?;
            (time > Duration::ZERO).then(|| done as f64 / time.as_secs_f64())
        };
        Self {
            completion_tokens_per_s: rate(before.completion_tokens, after.completion_tokens),
            prompt_tokens_per_s: rate(before.prompt_tokens, after.prompt_tokens),
        }
    }

    fn plus(self, other: &Self) -> Self {
        let sum = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a + b),
            (one, other) => one.or(other),
        };
        Self {
            completion_tokens_per_s: sum(
                self.completion_tokens_per_s,
                other.completion_tokens_per_s,
            ),
            prompt_tokens_per_s: sum(self.prompt_tokens_per_s, other.prompt_tokens_per_s),
        }
    }
}

/// Rates by the models' names.
pub(crate) type Rates = BTreeMap<String, Rate>;

/// The rates of loaded models between two looks at a daemon.
pub(crate) fn rates_between(before: &Status, after: &Status, time: Duration) -> Rates {
    let before: BTreeMap<_, _> = loaded(before).collect();
    let rate = |(name, now): (&str, &LoadedModel)| {
        let then = before.get(name)?;
        Some((name.to_owned(), Rate::between(&then.work, &now.work, time)))
    };
    loaded(after).filter_map(rate).collect()
}

/// The rates of models over all the time since they were loaded in which they had something to do.
pub(crate) fn rates_since_load(status: &Status) -> Rates {
    let rate = |(name, loaded): (&str, &LoadedModel)| {
        let completion_tokens_per_s = loaded.work.completion_tokens_per_s();
        (name.to_owned(), Rate { completion_tokens_per_s, prompt_tokens_per_s: None })
    };
    loaded(status).map(rate).collect()
}

fn loaded(status: &Status) -> impl Iterator<Item = (&str, &LoadedModel)> {
    status.models.iter().filter_map(|model| Some((model.name.as_str(), model.loaded.as_ref()?)))
}

/// All of a daemon in a line: models, requests, rates, memory.
pub(crate) fn totals(status: &Status, rates: &Rates) -> Line {
    let loaded: Vec<&LoadedModel> = loaded(status).map(|(_, loaded)| loaded).collect();
    let sum = |of: fn(&LoadedModel) -> u64| loaded.iter().map(|model| of(model)).sum::<u64>();
    let all = rates.values().fold(Rate::default(), Rate::plus);
    let models = match loaded.len() {
        1 => "1 model".to_owned(),
        count => format!("{count} models"),
    };
    let mut text = format!(
        "{models}, {} of memory; {} running, {} waiting",
        mib(sum(|model| model.memory_bytes)),
        sum(|model| model.running),
        sum(|model| model.waiting),
    );
    if let Some(rate) = all.completion_tokens_per_s {
        text.push_str(&format!("; {rate:.1} tokens/s"));
    }
    if let Some(rate) = all.prompt_tokens_per_s {
        text.push_str(&format!(", prompts {rate:.1} tokens/s"));
    }
    Line::default().plain(text)
}

/// A row for each model, below headings.
pub(crate) fn models(models: &[&ModelEntry], rates: &Rates) -> Vec<Line> {
    // Of all the time since a load nobody knows how much of it went into prompts.
    let of_prompts = |rate: &Rate| rate.prompt_tokens_per_s.is_some();
    let prompts = rates.is_empty() || rates.values().any(of_prompts);
    let shown = |&(heading, _): &(&str, Align)| prompts || heading != PROMPT_RATE;
    let mut table = Table::new(COLUMNS.into_iter().filter(shown));
    for model in models {
        let rate = rates.get(&model.name).copied().unwrap_or_default();
        let name = (Style::new().bold(), model.name.clone());
        let state = (state_style(model.state), model.state.name().to_owned());
        let figures = figures(model.loaded.as_ref(), rate);
        let cells = [name, state].into_iter().chain(figures.map(|text| (Style::new(), text)));
        let cells = cells.zip(COLUMNS).filter(|(_, column)| shown(column));
        table.row(cells.map(|(cell, _)| cell));
    }
    table.lines()
}

/// A line for each model that there is more to say of: why it failed, or how far it is on its way here.
pub(crate) fn remarks(models: &[&ModelEntry]) -> Vec<Line> {
    let remark = |model: &&ModelEntry| {
        let name = Line::default().plain(&model.name).plain(" ");
        if let Some(progress) = &model.progress {
            return Some(name.plain(format!("is {}, {progress}", model.state.name())));
        }
        let why = model.failure.as_ref()?;
        Some(name.then(state_style(ModelState::Failed), "failed").plain(format!(": {why}")))
    };
    models.iter().filter_map(remark).collect()
}

fn figures(loaded: Option<&LoadedModel>, rate: Rate) -> [String; 7] {
    let Some(loaded) = loaded else { return Default::default() };
    let per_s = |rate: Option<f64>| match rate {
        None | Some(0.0) => "-".to_owned(),
        Some(rate) => format!("{rate:.1}"),
    };
    [
        loaded.running.to_string(),
        loaded.waiting.to_string(),
        loaded.jobs_done.to_string(),
        per_s(rate.completion_tokens_per_s),
        per_s(rate.prompt_tokens_per_s),
        format!("{}/{}", loaded.context_tokens_used, loaded.context_tokens),
        mib(loaded.memory_bytes),
    ]
}

fn state_style(state: ModelState) -> Style {
    match state {
        ModelState::Ready => AnsiColor::Green.on_default(),
        ModelState::Failed => AnsiColor::Red.on_default(),
        ModelState::Loading | ModelState::Unloading => AnsiColor::Yellow.on_default(),
        _ => Style::new(),
    }
}

/// How long a daemon runs, in two units at most.
pub(crate) fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A status for tests: the daemon's own words of it, with these models.
#[cfg(test)]
pub(crate) fn test_status(models: serde_json::Value) -> Status {
    serde_json::from_value(serde_json::json!({
        "version": "1.2.3", "pid": 7, "uptime_s": 3661, "device": "cpu, 2 threads",
        "http_address": "127.0.0.1:11434", "control_socket": "/run/x", "state_dir": "/var/x",
        "stopping": false, "models": models,
    }))
    .expect("it has every field that a status must have")
}

/// A loaded model for tests.
#[cfg(test)]
pub(crate) fn test_model(name: &str, made: u64, running: u64) -> serde_json::Value {
    serde_json::json!({
        "name": name, "state": "ready", "size_bytes": 1, "architecture": "llama",
        "quantization": "Q4_K_M", "parameters": 1, "source": "/x",
        "loaded": {
            "context_tokens": 8192, "weight_bytes": 98_400_000, "kv_bytes_per_token": 1000,
            "load_ms": 1, "memory_bytes": 98 << 20, "context_tokens_used": 12 * running,
            "jobs": running + 2, "running": running, "waiting": 2, "jobs_done": 5,
            "work": {"completion_tokens": made, "prompt_tokens": 10, "busy_ms": 2000},
        },
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(lines: &[Line]) -> Vec<String> {
        lines.iter().map(|line| line.show(usize::MAX, false)).collect()
    }

    #[test]
    fn rates_are_what_was_done_between_two_looks() {
        let before = test_status(json!([test_model("a", 100, 1), test_model("b", 50, 0)]));
        let after = test_status(json!([test_model("a", 150, 1), test_model("b", 7, 0)]));
        let rates = rates_between(&before, &after, Duration::from_secs(2));
        assert_eq!(rates["a"].completion_tokens_per_s, Some(25.0));
        assert_eq!(rates["a"].prompt_tokens_per_s, Some(0.0));
        // It was loaded again meanwhile.
        assert_eq!(rates["b"].completion_tokens_per_s, None);
        let line = totals(&after, &rates).show(usize::MAX, false);
        assert_eq!(
            line,
            "2 models, 196.0 MiB of memory; 1 running, 4 waiting; 25.0 tokens/s, prompts 0.0 tokens/s"
        );
        assert_eq!(rates_since_load(&after)["a"].completion_tokens_per_s, Some(75.0));
    }

    #[test]
    fn models_are_rows_and_remarks_say_more() {
        let status = test_status(json!([
            test_model("a", 100, 1),
            {"name": "broken", "state": "failed", "failure": "no\x1b[2Jn\u{e9}",
             "size_bytes": 1, "architecture": "", "quantization": "", "parameters": 0,
             "source": "/x"},
        ]));
        let entries: Vec<_> = status.models.iter().collect();
        let rates = rates_since_load(&status);
        let lines = shown(&models(&entries, &rates));
        assert_eq!(
            lines,
            [
                "NAME    STATE   RUNNING  WAITING  DONE  TOKENS/S  CONTEXT    MEMORY",
                "a       ready         1        2     5      50.0  12/8192  98.0 MiB",
                "broken  failed",
            ]
        );
        let now = rates_between(&status, &status, Duration::from_secs(1));
        let lines = shown(&models(&entries, &now));
        assert!(lines[0].contains("TOKENS/S  PROMPT/S  CONTEXT"), "{lines:#?}");
        assert!(lines[1].contains("       -         -  12/8192"), "{lines:#?}");
        assert_eq!(shown(&remarks(&entries)), ["broken failed: no[2Jn\u{e9}"]);
    }

    #[test]
    fn uptimes_have_two_units_at_most() {
        assert_eq!(uptime(59), "59 s");
        assert_eq!(uptime(61), "1 min 1 s");
        assert_eq!(uptime(3660), "1 h 1 min");
        assert_eq!(uptime(90_000), "1 d 1 h");
    }
}
