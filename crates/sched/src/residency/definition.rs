//! What is said of models and requests before anything is decided.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use thiserror::Error;

use crate::footprint::{Footprint, ModelName, mib};
use crate::moment::Moment;

/// How urgent a request is, the least first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Nobody waits for it.
    Batch,
    /// A program waits for it.
    Agent,
    /// A person waits for it.
    #[default]
    Interactive,
}

impl Class {
    /// All classes, the least urgent first.
    pub const ALL: [Self; 3] = [Self::Batch, Self::Agent, Self::Interactive];
}

/// What a model is, and how it is to be treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Definition {
    /// What it takes of the memory; a change holds from the next load on.
    pub footprint: Footprint,
    /// Another number for whatever cannot change in a loaded model, as its file: with a new one the
    /// model leaves memory when its requests are done.
    pub revision: u64,
    /// Requests that run at a time.
    pub slots: NonZeroU32,
    /// Models of less priority leave first, and wait longer where requests are as urgent.
    pub priority: i32,
    /// Whether it stays in memory once it is there.
    pub pinned: bool,
    /// Whether it is loaded before anybody asks, and again after it had to leave for another.
    pub preload: bool,
    /// How long it stays in memory without a request; for ever when absent, or pinned.
    pub idle: Option<Duration>,
    /// How long a load is thought to take until one was seen.
    pub load_time: Duration,
}

/// How long a model stays in memory without a request, where whoever used it last said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    /// This long.
    For(Duration),
    /// Until another needs its room.
    Forever,
}

/// What all models have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Requests that may wait for one model.
    pub waiting_max: NonZeroUsize,
    /// How long requests of models in memory may go before one that waits for their room. After
    /// that they wait as well, until the other model had its turn.
    pub patience: Duration,
    /// How long a model stays in memory at least, unless an operator sends it out.
    pub resident_least: Duration,
    /// A request counts as one class more urgent for each time that it has waited so long.
    pub aging: Duration,
    /// How long a model is not loaded after a first failure; twice as long after each further one.
    pub cooldown: Duration,
    /// The longest such time.
    pub cooldown_most: Duration,
    /// How long a model that an operator sends out may go on with its requests before they are cut
    /// short; for ever when absent.
    pub drain_most: Option<Duration>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            waiting_max: NonZeroUsize::new(256).unwrap_or(NonZeroUsize::MIN),
            patience: Duration::from_secs(5),
            resident_least: Duration::from_secs(2),
            aging: Duration::from_secs(30),
            cooldown: Duration::from_secs(5),
            cooldown_most: Duration::from_secs(300),
            drain_most: None,
        }
    }
}

impl Rules {
    /// How long to keep from loading after so many failures in a row.
    pub(super) fn cooldown_after(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.cooldown.saturating_mul(1 << doublings).min(self.cooldown_most)
    }

    /// How urgent a request of `class` is that waits since `since`.
    pub(super) fn level(&self, class: Class, since: Moment, now: Moment) -> u64 {
        let aged = now.since(since).as_nanos() / self.aging.as_nanos().max(1);
        u64::try_from(aged).unwrap_or(u64::MAX).saturating_add(class as u64)
    }
}

/// A request, by the number that it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub(super) u64);

impl RequestId {
    /// The number, for people; no other request has it.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The model that is to answer.
    pub model: ModelName,
    /// How urgent it is.
    pub class: Class,
    /// When it is to be over, whether it waits or runs.
    pub deadline: Option<Moment>,
    /// Whether to load the model even if that failed lately: for operators.
    pub insists: bool,
}

impl Ask {
    /// As urgent as any, without a deadline.
    pub fn new(model: impl Into<ModelName>) -> Self {
        Self { model: model.into(), class: Class::default(), deadline: None, insists: false }
    }
}

/// Models that are to stay in memory together, and cannot.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "pinned models need {} MiB and there are {}: {}; unpin one, or give it a smaller context",
    mib(*needed), budget >> 20, list(models)
)]
pub struct PinnedTooLarge {
    /// Each of them, and its bytes.
    pub models: Vec<(ModelName, u64)>,
    /// Bytes of all of them.
    pub needed: u64,
    /// Bytes that there are.
    pub budget: u64,
}

/// As `"a" 100 MiB, "b" 20 MiB`.
pub(super) fn list(models: &[(ModelName, u64)]) -> String {
    let one = |(name, bytes): &(ModelName, u64)| format!("{:?} {} MiB", name.as_str(), mib(*bytes));
    models.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Checks that all pinned models of a set fit in `budget` bytes together.
///
/// # Errors
/// [`PinnedTooLarge`].
pub fn check_pinned(
    models: &BTreeMap<ModelName, Definition>,
    budget: u64,
) -> Result<(), PinnedTooLarge> {
    let pinned = models.iter().filter(|(_, definition)| definition.pinned);
    let size = |(name, definition): (&ModelName, &Definition)| {
        (name.clone(), definition.footprint.total())
    };
    let models: Vec<_> = pinned.map(size).collect();
    let needed = models.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    if needed > budget { Err(PinnedTooLarge { models, needed, budget }) } else { Ok(()) }
}
