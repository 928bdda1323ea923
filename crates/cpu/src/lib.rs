//! Runs a [`Program`](m40_program::Program) on the CPU.
//!
//! Weights stay in their file's block format, memory-mapped by whoever owns the bytes; matrix
//! products quantise activations to int8 per block and multiply integers, on the widest vectors the
//! CPU has. [`Numerics::Oracle`] runs the plain twin of every op instead: what all faster paths,
//! here and on a GPU, are compared with.
//!
//! | module | holds |
//! |---|---|
//! | [`executor`] | a pass of a program over a batch of rows |
//! | `ops` | one function per op, and its plain twin |
//! | [`kv`] | the KV cache of a sequence |
//! | `simd` | vectors of every instruction set behind one trait |
#![deny(unsafe_code)]

pub mod executor;
pub mod isa;
pub mod kv;
pub mod matmul;
mod ops;
#[expect(unsafe_code, reason = "lends closures and slices to other threads")]
pub mod pool;
mod row;
mod simd;

pub use executor::{Executor, ExecutorOptions, Numerics, PrepareError};
pub use isa::{Isa, UnsupportedIsa};
pub use kv::KvCache;
pub use pool::{ThreadPool, available_threads};
pub use row::Row;
