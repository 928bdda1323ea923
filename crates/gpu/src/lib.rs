//! Runs programs on a GPU: weights on the card, the KV cache in pages, passes of kernels.
#![forbid(unsafe_code)]

mod choice;
pub mod kv;
pub mod lower;
pub mod ops;
pub mod weights;

pub use choice::{Choice, MAX_VOCAB, MAX_WINDOW, runs_on_device};
