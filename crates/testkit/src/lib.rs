//! Test support: the real models, seeded tiny ones and ones of real size, and a guard around a
//! running daemon.
//!
//! Never shipped: only dev-dependencies name this crate.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod gguf;
pub mod http;
pub mod models;
pub mod shapes;
pub mod tiny_golden;
