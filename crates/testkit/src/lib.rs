//! Test support: the real models, seeded tiny ones, and a guard around a running daemon.
//!
//! Never shipped: only dev-dependencies name this crate.
#![forbid(unsafe_code)]

pub mod gguf;
pub mod models;
pub mod tiny_golden;
