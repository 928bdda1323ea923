//! `m40llm`: loads a GGUF model and generates text with it, or makes vectors of texts.
//!
//! [`Engine::load`] opens a file, maps it, builds its program, tokenizer and chat template and binds
//! them to a backend; the [`Model`] it returns is a cheap handle. A [`Session`] is one conversation:
//! its KV cache, and [`Session::generate`]. Prefixes that a prompt shares with what the session
//! already holds are not computed again. [`Model::embed`] makes vectors, with encoders and with models
//! that generate.
//!
//! ```no_run
//! use m40llm::{CancelToken, Engine, EngineOptions, GenerateParams, ModelOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::new(EngineOptions::default())?;
//! let model = engine.load("model.gguf".as_ref(), &ModelOptions::default())?;
//! let prompt = model.tokenizer().encode_prompt("The capital of France is");
//! let params = GenerateParams { max_tokens: Some(16), ..GenerateParams::default() };
//! let mut text = String::new();
//! model.session().generate(&prompt, &params, &CancelToken::default(), &mut |chunk| {
//!     text.push_str(&chunk.text);
//! })?;
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

mod abilities;
mod backend;
mod bench;
mod cpu;
mod duty;
mod embed;
mod footprint;
mod generate;
mod gpu;
mod mapping;
mod model;
mod passes;
mod pulse;
mod session;
mod stop;
#[cfg(test)]
mod tests;

pub use abilities::Abilities;
#[cfg(feature = "cuda")]
pub use bench::bench_executor;
pub use bench::{BenchLine, BenchOptions, BenchRow, BenchTest, OnLine, Spread};
pub use duty::Duty;
pub use embed::{EmbedError, EmbedText};
pub use generate::{
    CancelToken, Chunk, Completion, FinishReason, GenerateError, GenerateParams, TokenLogprob,
};
pub use gpu::{Decode, GpuError, GpuMemory, GpuOptions, check_gpu, version};
#[cfg(feature = "cuda")]
pub use gpu::{kernel_builder, kernel_image};
pub use m40_cpu::Numerics;
pub use m40_grammar::{Constraint, Grammar, GrammarError};
pub use m40_program::{KvType, Pooling};
pub use m40_sched::sampler::{ParamError, SamplingParams};
pub use m40_tokenizer::{ChatTemplate, Special, TemplateError, TemplateInput, Tokenizer};
pub use model::{
    Device, Engine, EngineOptions, LoadError, Model, ModelInfo, ModelOptions, has_chat_template,
    model_files,
};
pub use passes::DecodePasses;
pub use session::Session;
