//! A model architecture as data: a flat list of typed ops over named buffers.
//!
//! [`build`] reads a GGUF's metadata and tensor table and returns a [`Program`]: what every backend
//! runs, token after token. The same list drives the CPU executor, launch-by-launch CUDA and the
//! persistent kernel, so this crate knows no backend.
//!
//! | module | holds |
//! |---|---|
//! | [`op`] | the ops and what they refer to |
//! | [`program`] | [`Program`], its buffers and weights, and its text form for diffs |
//! | [`verify`] | the rules every program obeys, checked before anything runs it |
//! | [`memory`] | where each buffer lies in one scratch arena |
//! | [`cost`] | bytes moved and operations of each op |
//! | [`diff`] | what two runs made of the same tokens, compared op by op |
//! | [`rope`] | rotary frequency tables with every scaling GGUF knows |
//! | [`arch`] | one file per architecture family |
#![forbid(unsafe_code)]

pub mod arch;
pub mod cost;
pub mod diff;
pub mod memory;
pub mod op;
pub mod program;
pub mod rope;
pub mod verify;

pub use arch::{BuildError, BuildOptions, build, supported_architectures};
pub use memory::MemoryPlan;
pub use op::{
    Activation, AttentionShape, BufferId, Index, MAX_HEAD_DIM, MatrixId, Op, Projection, RopeId,
    RowSet, VectorId,
};
pub use program::{Buffer, Description, Head, KvLayer, KvType, Matrix, Pooling, Program, Vector};
pub use rope::{RopeStyle, RopeTable};
