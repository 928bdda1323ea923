//! What is decided: what the caller is to do, and why a request is not answered.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::definition::{RequestId, list};
use crate::footprint::{ModelName, NeverFits, mib};

/// What the caller is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let this request run; say [`finished`](super::Scheduler::finished) when it has ended.
    Start {
        /// Which.
        request: RequestId,
        /// On this model, which is in memory.
        model: ModelName,
    },
    /// Tell whoever asked. Nothing more is heard of the request.
    Refuse {
        /// Which.
        request: RequestId,
        /// Why.
        refusal: Refusal,
    },
    /// End this running request; say [`finished`](super::Scheduler::finished) when it has ended.
    Stop {
        /// Which.
        request: RequestId,
    },
    /// Begin to load this model, for which there is room; say
    /// [`loaded`](super::Scheduler::loaded) or [`load_failed`](super::Scheduler::load_failed).
    Load {
        /// Which.
        model: ModelName,
    },
    /// Have this model, which stays, give back KV cache that it has got by
    /// [`grow_kv`](super::Scheduler::grow_kv), if need be by taking it from sequences; say
    /// [`shrink_kv`](super::Scheduler::shrink_kv) when it is free.
    ShrinkKv {
        /// Which.
        model: ModelName,
        /// How many bytes at least: whole pages are more.
        bytes: u64,
    },
    /// Begin to take this model out of memory; say [`unloaded`](super::Scheduler::unloaded) when its
    /// memory is free.
    Unload {
        /// Which.
        model: ModelName,
        /// Why.
        why: Why,
        /// Whether requests run that are to be ended. Otherwise none does.
        cut_short: bool,
    },
}

/// Why a model leaves memory, the most binding reason last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Another one needs its room.
    Room,
    /// Nobody has asked for it for as long as it was to stay.
    Idle,
    /// It is defined no more.
    Removed,
    /// It was defined anew, and what is in memory is not that.
    Changed,
    /// An operator said so.
    Asked,
    /// It holds more than was reserved for it.
    TooLarge,
}

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No model has this name.
    #[error("there is no model {:?}", .0.as_str())]
    Unknown(ModelName),
    /// The model is larger than the memory.
    #[error(transparent)]
    NeverFits(Box<NeverFits>),
    /// The model is larger than what pinned ones leave of the memory.
    #[error(
        "the model {:?} needs {} MiB, and pinned models leave {} of {} MiB: {}; unpin or unload one",
        model.as_str(), mib(*needed), budget.saturating_sub(held(pinned)) >> 20, budget >> 20,
        list(pinned)
    )]
    Pinned {
        /// The model.
        model: ModelName,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that there are.
        budget: u64,
        /// Pinned models in memory, and the bytes of each.
        pinned: Vec<(ModelName, u64)>,
    },
    /// The model could not be loaded, and it is too soon to try again.
    #[error(
        "the model {:?} could not be loaded: {reason} (failures in a row: {failures}; it is tried \
         again when asked for in {} s)",
        model.as_str(), seconds(*retry_after)
    )]
    LoadFailed {
        /// The model.
        model: ModelName,
        /// What the latest attempt said.
        reason: Arc<str>,
        /// Attempts that failed in a row.
        failures: u32,
        /// How long it is not tried again.
        retry_after: Duration,
    },
    /// As many requests wait for the model as may.
    #[error(
        "{limit} requests wait for the model {:?}, the most that may: try again in {} s",
        model.as_str(), seconds(*retry_after)
    )]
    QueueFull {
        /// The model.
        model: ModelName,
        /// Requests that may wait.
        limit: usize,
        /// After how long there may be room.
        retry_after: Duration,
    },
    /// The request's deadline passed before it could run.
    #[error("the request's time was over after it had waited {} s for the model {:?}",
        waited.as_secs(), model.as_str())]
    DeadlinePassed {
        /// The model.
        model: ModelName,
        /// How long it waited.
        waited: Duration,
    },
    /// The model was sent out of memory by force while the request waited for it.
    #[error("the model {:?} was unloaded", .0.as_str())]
    Unloaded(ModelName),
    /// The model's definition was taken away while the request waited for it.
    #[error("the model {:?} was removed", .0.as_str())]
    Removed(ModelName),
}

impl Refusal {
    /// After how long the same request may be answered, where time alone can bring that about.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::LoadFailed { retry_after, .. } | Self::QueueFull { retry_after, .. } => {
                Some(*retry_after)
            }
            _ => None,
        }
    }
}

impl From<NeverFits> for Refusal {
    fn from(error: NeverFits) -> Self {
        Self::NeverFits(Box::new(error))
    }
}

fn held(models: &[(ModelName, u64)]) -> u64 {
    models.iter().map(|(_, bytes)| bytes).sum()
}

/// Whole seconds, of which it takes no fewer.
fn seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}
