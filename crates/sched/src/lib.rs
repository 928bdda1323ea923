//! Decisions made between two tokens, as pure functions of what is known.
//!
//! Time and randomness are passed in; nothing here does IO, reads a clock or sleeps, so that every
//! decision can be replayed from its inputs.
//!
//! * [`sampler`] chooses tokens, [`pace`] shares a device between streams and prompts.
//! * [`ledger`] knows who holds which bytes of a memory, [`footprint`] what a model will take.
//! * [`residency`] decides which models are in memory and which requests run on them.
//! * [`pages`] knows whose the pages of a KV cache are, and who reads the same.

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
