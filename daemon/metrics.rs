//! Figures for Prometheus, in the style of vLLM's names.
//!
//! What happens is counted when it does; what is, such as memory, is looked up when somebody asks
//! ([`look`]). Labels have the names of models that there are, or were: no client can add one.

mod look;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use m40_sched::residency::Why;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub(crate) use look::Look;

/// The type of the text that [`Metrics::text`] makes.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Bounds of whole waits, in seconds.
const LONG: [f64; 18] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 40.0,
    160.0, 640.0,
];

/// Bounds of the time between tokens, in seconds.
const SHORT: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 5.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Model {
    model_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    model_name: String,
    finished_reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Evicted {
    model_name: String,
    reason: &'static str,
}

/// All that is counted. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    answers: Answers,
    loads: Family<Model, Counter>,
    load_failures: Family<Model, Counter>,
    load_seconds: Family<Model, Histogram>,
    evictions: Family<Evicted, Counter>,
}

/// What is counted of answers.
#[derive(Debug)]
struct Answers {
    first_token: Family<Model, Histogram>,
    between_tokens: Family<Model, Histogram>,
    whole: Family<Model, Histogram>,
    queue: Family<Model, Histogram>,
    prefill: Family<Model, Histogram>,
    prompt_tokens: Family<Model, Counter>,
    generation_tokens: Family<Model, Counter>,
    prefix_queries: Family<Model, Counter>,
    prefix_hits: Family<Model, Counter>,
    success: Family<Finished, Counter>,
    failure: Family<Model, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("m40d");
        let answers = Answers::new(&mut registry);
        let new = &mut registry;
        let inner = Inner {
            loads: counter(new, "model_loads", "Models loaded"),
            load_failures: counter(new, "model_load_failures", "Loads that failed"),
            load_seconds: histogram(new, "model_load_seconds", "Time of loads", long),
            evictions: counter(new, "model_evictions", "Models sent out of memory"),
            answers,
            registry,
        };
        Self(Arc::new(inner))
    }
}

impl Answers {
    fn new(new: &mut Registry) -> Self {
        let first = "Time from a request to the first piece of its answer";
        let between = "Time between two tokens of an answer";
        let prefill = "Time from a request's turn to the first piece of its answer";
        Self {
            first_token: histogram(new, "time_to_first_token_seconds", first, long),
            between_tokens: histogram(new, "inter_token_latency_seconds", between, short),
            whole: histogram(new, "e2e_request_latency_seconds", "Time of whole requests", long),
            queue: histogram(new, "request_queue_time_seconds", "Time until its turn", long),
            prefill: histogram(new, "request_prefill_time_seconds", prefill, long),
            prompt_tokens: counter(new, "prompt_tokens", "Tokens of prompts"),
            generation_tokens: counter(new, "generation_tokens", "Tokens generated"),
            prefix_queries: counter(new, "prefix_cache_queries", "Prompt tokens looked for"),
            prefix_hits: counter(new, "prefix_cache_hits", "Prompt tokens found in the cache"),
            success: counter(new, "request_success", "Answers, by how they ended"),
            failure: counter(new, "request_failure", "Requests that failed"),
        }
    }
}

fn long() -> Histogram {
    Histogram::new(LONG)
}

fn short() -> Histogram {
    Histogram::new(SHORT)
}

fn counter<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Counter>
where
    L: EncodeLabelSet + Clone + fmt::Debug + Eq + std::hash::Hash + Send + Sync + 'static,
{
    let family = Family::default();
    registry.register(name, help, Family::clone(&family));
    family
}

fn histogram(
    registry: &mut Registry,
    name: &str,
    help: &str,
    new: fn() -> Histogram,
) -> Family<Model, Histogram> {
    let family = Family::new_with_constructor(new);
    registry.register(name, help, Family::clone(&family));
    family
}

/// An answer that has ended, in whatever way.
#[derive(Debug)]
pub(crate) struct Ended<'a> {
    pub model: &'a str,
    /// The word for how; `None` when it failed.
    pub finish: Option<&'static str>,
    pub prompt_tokens: u64,
    /// Of the prompt, found in the prefix cache; `None` where nothing was looked for there.
    pub cached_tokens: Option<u64>,
    pub completion_tokens: u64,
    /// Until its turn; `None` when it had none.
    pub queue: Option<Duration>,
    pub whole: Duration,
}

/// Times between tokens of one model. Counting one looks nothing up.
#[derive(Debug)]
pub(crate) struct BetweenTokens(Histogram);

impl BetweenTokens {
    /// As many tokens more are there, so long after those before.
    pub(crate) fn count(&self, tokens: u32, after: Duration) {
        (0..tokens).for_each(|_| self.0.observe(after.as_secs_f64() / f64::from(tokens)));
    }
}

impl Metrics {
    /// The first piece of an answer is there: so long after it was asked, and after its turn.
    pub(crate) fn first_token(&self, model: &str, after: Duration, prefill: Duration) {
        let answers = &self.0.answers;
        answers.first_token.get_or_create(&of(model)).observe(after.as_secs_f64());
        answers.prefill.get_or_create(&of(model)).observe(prefill.as_secs_f64());
    }

    /// Where the times between tokens of an answer are counted.
    pub(crate) fn between_tokens(&self, model: &str) -> BetweenTokens {
        BetweenTokens(self.0.answers.between_tokens.get_or_create_owned(&of(model)))
    }

    pub(crate) fn ended(&self, ended: &Ended<'_>) {
        let (answers, model) = (&self.0.answers, of(ended.model));
        if let Some(queue) = ended.queue {
            answers.queue.get_or_create(&model).observe(queue.as_secs_f64());
        }
        answers.whole.get_or_create(&model).observe(ended.whole.as_secs_f64());
        answers.prompt_tokens.get_or_create(&model).inc_by(ended.prompt_tokens);
        answers.generation_tokens.get_or_create(&model).inc_by(ended.completion_tokens);
        if let Some(cached) = ended.cached_tokens {
            answers.prefix_queries.get_or_create(&model).inc_by(ended.prompt_tokens);
            answers.prefix_hits.get_or_create(&model).inc_by(cached);
        }
        match ended.finish {
            Some(finished_reason) => {
                let model_name = ended.model.to_owned();
                answers.success.get_or_create(&Finished { model_name, finished_reason }).inc();
            }
            None => {
                answers.failure.get_or_create(&model).inc();
            }
        }
    }

    pub(crate) fn loaded(&self, model: &str, time: Duration) {
        self.0.loads.get_or_create(&of(model)).inc();
        self.0.load_seconds.get_or_create(&of(model)).observe(time.as_secs_f64());
    }

    pub(crate) fn load_failed(&self, model: &str) {
        self.0.load_failures.get_or_create(&of(model)).inc();
    }

    /// A model leaves memory.
    pub(crate) fn evicted(&self, model: &str, why: Why) {
        let reason = match why {
            Why::Room => "room",
            Why::Idle => "idle",
            Why::Removed => "removed",
            Why::Changed => "changed",
            Why::Asked => "asked",
            Why::TooLarge => "too_large",
        };
        let model_name = model.to_owned();
        self.0.evictions.get_or_create(&Evicted { model_name, reason }).inc();
    }

    /// All of it, and how things are now, as Prometheus reads them.
    pub(crate) fn text(&self, now: &Look) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.0.registry)?;
        encode_registry(&mut text, &now.registry())?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

fn of(model: &str) -> Model {
    Model { model_name: model.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_in_the_text() {
        let metrics = Metrics::default();
        let second = Duration::from_secs(1);
        metrics.first_token("m", 2 * second, second);
        metrics.between_tokens("m").count(4, second);
        metrics.ended(&Ended {
            model: "m",
            finish: Some("stop"),
            prompt_tokens: 7,
            cached_tokens: Some(3),
            completion_tokens: 5,
            queue: Some(second),
            whole: 4 * second,
        });
        metrics.loaded("m", second);
        metrics.evicted("m", Why::Room);
        let text = metrics.text(&Look::default()).unwrap();
        for line in [
            "m40d_time_to_first_token_seconds_sum{model_name=\"m\"} 2.0",
            "m40d_inter_token_latency_seconds_count{model_name=\"m\"} 4",
            "m40d_inter_token_latency_seconds_bucket{le=\"0.3\",model_name=\"m\"} 4",
            "m40d_request_queue_time_seconds_sum{model_name=\"m\"} 1.0",
            "m40d_prompt_tokens_total{model_name=\"m\"} 7",
            "m40d_prefix_cache_hits_total{model_name=\"m\"} 3",
            "m40d_generation_tokens_total{model_name=\"m\"} 5",
            "m40d_request_success_total{model_name=\"m\",finished_reason=\"stop\"} 1",
            "m40d_model_evictions_total{model_name=\"m\",reason=\"room\"} 1",
            "m40d_model_loads_total{model_name=\"m\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    }
}
