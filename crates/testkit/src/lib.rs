//! Test support: the real models, seeded tiny ones, and a guard around a running daemon.
//!
//! Never shipped: only dev-dependencies name this crate.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod gguf;
pub mod http;
pub mod models;
pub mod tiny_golden;
