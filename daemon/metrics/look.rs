//! How things are now: requests, memory, downloads and the card.

mod card;

use std::fmt;
use std::sync::atomic::AtomicU64;

use m40_control::{CardStatus, ModelEntry, Vram};
use m40llm::DecodePasses;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use super::{Model, of};

/// A gauge of bytes: more than fit a signed number of 32 bits.
type Bytes = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Held {
    model_name: String,
    kind: &'static str,
}

/// How many sequences passes had, as a histogram for each model.
#[derive(Debug)]
struct BatchSizes(Vec<(String, DecodePasses)>);

impl EncodeMetric for BatchSizes {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        for (model, passes) in &self.0 {
            let bound = |most: Option<usize>| most.map_or(f64::MAX, |most| most as f64);
            let buckets: Vec<_> =
                passes.buckets().map(|(most, count)| (bound(most), count)).collect();
            let (sum, count) = (passes.rows as f64, passes.counts.iter().sum());
            let labels = of(model);
            let mut encoder = encoder.encode_family(&labels)?;
            encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// What was seen.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// The models that are not merely stored, and those that are on their way here.
    pub models: Vec<ModelEntry>,
    pub memory: Option<Vram>,
    /// Of the models in memory that generate, by name.
    pub passes: Vec<(String, DecodePasses)>,
    pub card: Option<CardStatus>,
    /// Bytes of files that were fetched.
    pub fetched_bytes: u64,
}

impl Look {
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("m40d");
        self.add_requests(&mut registry);
        let sizes = BatchSizes(self.passes.clone());
        registry.register("decode_batch_size", "Sequences in a pass of decoding", sizes);
        self.add_memory(&mut registry);
        self.add_downloads(&mut registry);
        if let Some(card) = &self.card {
            card::add(&mut registry, card);
        }
        registry
    }

    fn add_requests(&self, registry: &mut Registry) {
        let (running, waiting) = (Family::<Model, Gauge>::default(), Family::default());
        let usage = Family::<Model, Bytes>::default();
        for entry in &self.models {
            let Some(loaded) = &entry.loaded else { continue };
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            running.get_or_create(&of(&entry.name)).set(count(loaded.running));
            let waits: &Family<Model, Gauge> = &waiting;
            waits.get_or_create(&of(&entry.name)).set(count(loaded.waiting));
            if let Some(share) = self.cache_share(entry) {
                usage.get_or_create(&of(&entry.name)).set(share);
            }
        }
        registry.register("num_requests_running", "Requests that run", running);
        registry.register("num_requests_waiting", "Requests that wait", waiting);
        let help = "Share of the KV cache that running requests have in use, 1 is all";
        registry.register("kv_cache_usage_perc", help, usage);
    }

    fn cache_share(&self, entry: &ModelEntry) -> Option<f64> {
        let (loaded, memory) = (entry.loaded.as_ref()?, self.memory.as_ref()?);
        let held = memory.models.iter().find(|held| held.model == entry.name)?;
        let used = loaded.context_tokens_used * loaded.kv_bytes_per_token;
        let all = held.memory.kv_bytes;
        (all > 0).then(|| (used as f64 / all as f64).min(1.0))
    }

    fn add_memory(&self, registry: &mut Registry) {
        let Some(memory) = &self.memory else { return };
        let bytes = |bytes: u64| ConstGauge::<f64>::new(bytes as f64);
        let mut add = |name: &str, help: &str, value: u64| {
            registry.register_with_unit(name, help, Unit::Bytes, bytes(value));
        };
        add("vram_budget", "Memory that models may have together", memory.budget_bytes);
        add("vram_used", "Memory that models have", memory.held_bytes);
        let held = Family::<Held, Bytes>::default();
        for model in &memory.models {
            let parts = &model.memory;
            for (kind, bytes) in [
                ("weights", parts.weight_bytes),
                ("kv_cache", parts.kv_bytes),
                ("scratch", parts.scratch_bytes),
            ] {
                let model_name = model.model.clone();
                held.get_or_create(&Held { model_name, kind }).set(bytes as f64);
            }
        }
        let help = "Memory that a model has";
        registry.register_with_unit("model_memory", help, Unit::Bytes, held);
    }

    fn add_downloads(&self, registry: &mut Registry) {
        let (done, all) = (Family::<Model, Bytes>::default(), Family::<Model, Bytes>::default());
        for entry in &self.models {
            let Some(progress) = &entry.progress else { continue };
            done.get_or_create(&of(&entry.name)).set(progress.done_bytes as f64);
            if let Some(total) = progress.total_bytes {
                all.get_or_create(&of(&entry.name)).set(total as f64);
            }
        }
        let help = "Bytes that are here of a file on its way";
        registry.register_with_unit("download_done", help, Unit::Bytes, done);
        let help = "Bytes of a file on its way";
        registry.register_with_unit("download_size", help, Unit::Bytes, all);
        let fetched = Counter::<u64>::default();
        fetched.inc_by(self.fetched_bytes);
        registry.register("downloaded_bytes", "Bytes of files that were fetched", fetched);
    }
}
