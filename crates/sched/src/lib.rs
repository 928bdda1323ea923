//! Decisions the engine makes between two tokens, as pure functions of their arguments.
//!
//! Time and randomness are passed in; nothing here does IO, reads a clock or sleeps, so that every
//! decision can be replayed from its inputs.

#![forbid(unsafe_code)]

pub mod footprint;
pub mod ledger;
mod moment;
pub mod pace;
pub mod pages;
pub mod residency;
pub mod sampler;

pub use footprint::{Footprint, ModelName, NeverFits, Parts};
pub use ledger::{Account, Ledger, LedgerError};
pub use moment::Moment;
pub use pace::Pace;
pub use pages::Pages;
pub use residency::{Action, Ask, Class, Definition, Refusal, RequestId, Rules, Scheduler};
pub use sampler::{ParamError, Sampled, Sampler, SamplingParams, top_logprobs};
