//! Which models are in memory, and which requests run on them.

use serde::{Deserialize, Serialize};

use crate::ModelRef;

/// Bytes of memory, by what they are for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryParts {
    /// Weights.
    pub weight_bytes: u64,
    /// KV cache.
    pub kv_bytes: u64,
    /// Everything else.
    pub scratch_bytes: u64,
}

impl MemoryParts {
    /// All of them.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.kv_bytes + self.scratch_bytes
    }
}

/// Answer to `GET /vram`: the account of the memory that models share. At every moment `held_bytes`
/// is the total of `sum`, which is the sum of all models' parts, and with `free_bytes` it is the
/// budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vram {
    /// What computes.
    pub device: String,
    /// Bytes that there are for models.
    pub budget_bytes: u64,
    /// Bytes that models hold.
    pub held_bytes: u64,
    /// Bytes that no model holds.
    pub free_bytes: u64,
    /// Bytes that the memory of a GPU itself has as free; absent on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_free_bytes: Option<u64>,
    /// What all models hold.
    pub sum: MemoryParts,
    /// What each model holds, by name.
    pub models: Vec<ModelMemory>,
}

/// What a model holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelMemory {
    /// Its name.
    pub model: String,
    /// Whether it is being loaded, and these bytes are kept for it.
    pub reserved: bool,
    /// The bytes.
    pub memory: MemoryParts,
}

/// Body of `POST /models/plan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanRequest {
    /// What would be asked for.
    pub model: ModelRef,
}

/// Answer to `POST /models/plan`: what would happen if the model was asked for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The model's own name.
    pub model: String,
    /// What would come of the request.
    pub outcome: Outcome,
    /// Why it would be refused, if it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the model takes.
    pub needs: MemoryParts,
    /// Bytes that no model holds now.
    pub free_bytes: u64,
    /// Models that would leave for it, and the bytes that each frees.
    pub evicts: Vec<Evicted>,
    /// Models that would give back KV cache for it, and how many bytes.
    pub shrinks: Vec<Evicted>,
    /// Of those that would leave, the ones whose requests are awaited first, and how many run.
    pub awaits: Vec<(String, u64)>,
    /// How long the load is thought to take, if there would be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<u64>,
    /// Requests for the same model that would be answered before.
    pub ahead: u64,
}

/// A model and bytes that it gives back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    /// Its name.
    pub model: String,
    /// The bytes.
    pub bytes: u64,
}

/// What would come of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Outcome {
    /// It would run at once.
    Starts,
    /// The model is in memory, and others have all places.
    WaitsForPlace,
    /// The model is being loaded already, or will be as soon as there is room.
    JoinsLoad,
    /// The model is on its way out, and would be loaded again.
    LoadsAgain,
    /// The model would be loaded now, or once idle models have left.
    Loads,
    /// Others would have to end their requests first, or to have been in memory for longer.
    WaitsForRoom,
    /// It would not be answered.
    Refused,
}

impl Outcome {
    /// In words, for people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Starts => "would run at once",
            Self::WaitsForPlace => "would wait for a place: it is in memory, and all are taken",
            Self::JoinsLoad => "would wait for the load that is under way",
            Self::LoadsAgain => "would be loaded again: it is leaving memory",
            Self::Loads => "would be loaded",
            Self::WaitsForRoom => "would be loaded when others have made room",
            Self::Refused => "would be refused",
        }
    }
}

/// Answer to `GET /queue`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueList {
    /// The requests, in the order in which they came.
    pub requests: Vec<QueueEntry>,
}

/// A request that waits or runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueEntry {
    /// Its number; no other request has it while the daemon runs.
    pub request: u64,
    /// The model that answers.
    pub model: String,
    /// `interactive`, `agent` or `batch`.
    pub urgency: String,
    /// Whether it runs; else it waits.
    pub running: bool,
    /// How long it has run, or waited.
    pub since_ms: u64,
    /// Requests for the same model that are before it, if it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<u64>,
    /// How long it waits in all, as far as that can be told from earlier answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}

/// Body of `POST /queue/cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelRequest {
    /// Number of the request.
    pub request: u64,
}
