//! Runs programs on a GPU: weights on the card, the KV cache in pages, passes of kernels.
//!
//! | module | does |
//! |---|---|
//! | [`lower`] | a program to the ops of decode passes, without a device |
//! | [`ops`] | the ops as kernels read them |
//! | [`weights`] | weights onto the card |
//! | [`kv`] | where the pages of the KV cache lie |
//! | [`Pool`] | which sequences have them |
//! | [`prefill`], [`call`] | passes of many rows, as launches |
//! | [`specialize`] | decode kernels of one program, as source |
//! | [`continuation`] | how sequences go on by themselves |
//! | [`resident`], [`desk`] | a kernel that stays, and how the host talks with it |
//! | [`executor`] | a model on the card, and passes over it |
//! | [`observe`] | what of a program a pass leaves to be looked at |
//! | [`predict`] | what a Tesla M40 will make of a pass, from machine code |
#![forbid(unsafe_code)]

mod batch;
pub mod call;
mod choice;
pub mod continuation;
pub mod desk;
pub mod executor;
pub mod kv;
pub mod lower;
pub mod observe;
pub mod ops;
pub mod predict;
pub mod prefill;
pub mod resident;
mod sequence;
pub mod specialize;
pub mod weights;

pub use choice::{Choice, MAX_VOCAB, MAX_WINDOW, runs_on_device, samples};
pub use sequence::{Pool, Sequence, TooManySequences};
