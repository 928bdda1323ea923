//! The control API of `m40d`: its types, its client, and the rules for where things live.
//!
//! `m40d` serves HTTP/1.1 with JSON bodies on a Unix socket and `m40ctl` speaks it through
//! `Client`, which the feature `client` has. Routes that take a while answer with newline-delimited JSON, one event a line.
//!
//! | route | request | answer |
//! |---|---|---|
//! | `GET /status` | | [`Status`] |
//! | `GET /models` | | [`ModelList`] |
//! | `POST /models/pull` | [`PullRequest`] | lines of [`PullEvent`] |
//! | `POST /models/show` | [`NameRequest`] | [`ModelDetails`] |
//! | `POST /models/remove` | [`NameRequest`] | [`Removed`] |
//! | `POST /models/load` | [`LoadRequest`] | [`ModelEntry`] |
//! | `POST /models/unload` | [`UnloadRequest`] | [`ModelEntry`] |
//! | `POST /models/plan` | [`PlanRequest`] | [`Plan`] |
//! | `POST /models/bench` | [`BenchRequest`] | lines of [`BenchEvent`] |
//! | `POST /run` | [`RunRequest`] | lines of [`RunEvent`] |
//! | `POST /reload` | [`ReloadRequest`] | [`Reload`] |
//! | `GET /log` | | [`LogLevel`] |
//! | `POST /log` | [`LogRequest`] | [`LogLevel`] |
//! | `POST /prune` | [`PruneRequest`] | [`Pruned`] |
//! | `POST /verify` | [`VerifyRequest`] | lines of [`VerifyEvent`] |
//! | `POST /adopt` | [`AdoptRequest`] | lines of [`AdoptEvent`] |
//! | `GET /queue` | | [`QueueList`] |
//! | `POST /queue/cancel` | [`CancelRequest`] | [`QueueEntry`] |
//! | `GET /vram` | | [`Vram`] |
//!
//! Every error is an [`ApiError`] with the status of [`ErrorCode::http_status`]. This crate never
//! links the engine, prints nothing and reads no environment: [`paths::Env`] is handed in.
#![forbid(unsafe_code)]

mod bench;
mod card;
mod check;
#[cfg(feature = "client")]
mod client;
mod error;
#[cfg(feature = "keys")]
pub mod keys;
mod params;
pub mod paths;
mod reload;
mod residency;
mod stored;
mod types;

pub use bench::*;
pub use card::*;
pub use check::*;
#[cfg(feature = "client")]
pub use client::{Client, ClientError, Events};
pub use error::{ApiError, ErrorCode};
pub use params::RunParams;
pub use reload::{
    Change, Effect, KeyChange, ManifestProblem, ModelChange, Place, Reload, ReloadRequest,
};
pub use residency::*;
pub use stored::*;
pub use types::*;
