//! Test support: the real models, seeded tiny ones and ones of real size, and a guard around a
//! running daemon, kernels compiled for the host, an HTTP origin with faults, a terminal, files made of
//! the code.
//!
//! Never shipped: only dev-dependencies name this crate.
#![forbid(unsafe_code)]

pub mod daemon;
pub mod emulation;
pub mod gguf;
pub mod http;
pub mod models;
pub mod origin;
pub mod reference;
pub mod shapes;
pub mod terminal;
pub mod tiny_encoders;
pub mod tiny_golden;
