//! Model files, named by the hash of what is in them: download, resume, verify, import, prune.
//!
//! No byte is trusted before it is hashed.

#![forbid(unsafe_code)]

pub mod source;

pub use source::{Source, SourceError};
