//! Runs programs on a GPU: weights on the card, the KV cache in pages, passes of kernels.
#![forbid(unsafe_code)]

pub mod kv;
pub mod lower;
pub mod ops;
pub mod weights;
