//! Manifests: TOML files that say which models there are.
//!
//! ```toml
//! # models.d/qwen3.toml: one model, named by its file
//! source = "hf:Qwen/Qwen3-8B-GGUF:Q4_K_M"
//! context_tokens = 16384
//! ```
//!
//! A file has the keys of one model, or a `[[model]]` table for each of several; most files are the
//! former, where a table around the keys would say nothing. The stem of the file's name is the name
//! of a single model that has no `name` of its own.
//!
//! [`Catalog::next`] takes the files as they are and gives back what counts of them;
//! [`Catalog::changes`] says what that changes. Nothing here does IO: a text that a manifest takes
//! from another file comes from the caller's [`Surroundings`].
#![forbid(unsafe_code)]

mod catalog;
mod check;
mod definition;
mod diff;
mod duration;
pub mod fuzz;
pub mod mistake;
mod raw;

use std::path::Path;

pub use catalog::{Catalog, Input, Model};
pub use check::{
    ALIASES_MAX, FILE_BYTES_MAX, MIRRORS_MAX, MODELS_MAX, STOP_BYTES_MAX, STOPS_MAX, TEXT_BYTES_MAX,
};
pub use definition::{Capability, Definition, IdleUnload, KvType, Sampling, Text};
pub use diff::{changed_keys, set_keys};
pub use m40_source::{Sha256, Source};

/// What checking a manifest takes from outside.
pub trait Surroundings {
    /// What is in a file, if it has at most so many bytes.
    ///
    /// # Errors
    /// What is wrong, with the path in it.
    fn read(&self, path: &Path, bytes_max: usize) -> Result<String, String>;

    /// Whether a text is a chat template.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check_template(&self, template: &str) -> Result<(), String>;
}

#[cfg(test)]
mod tests;
