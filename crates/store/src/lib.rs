//! Model files, named by the hash of what is in them: download, resume, verify, import, prune.
//!
//! ```text
//! lock                  held by the process that has the store
//! blobs/sha256/<hex>    the files
//! meta/<hex>.*          what is known of them beside
//! partial/              downloads and imports on their way
//! quarantine/<hex>      files that went bad
//! ```
//!
//! No byte is trusted before it is hashed: not what an origin sends, what a crash left on the disk,
//! or what lies in a folder that is adopted. A blob appears by one rename, after its bytes were
//! hashed and flushed.

#![forbid(unsafe_code)]

mod adopt;
mod blobs;
mod client;
mod download;
mod error;
mod host;
mod import;
mod ollama;
mod progress;
mod prune;
mod pull;
mod resolve;
mod secret;
mod settings;
mod sha256;
mod store;
mod verify;

pub use adopt::{Adopted, AdoptedModel};
pub use blobs::{Blob, BlobInfo, Kept};
pub use download::error::FetchError;
pub use error::{OpenError, StoreError};
pub use host::{Host, Machine};
pub use import::hash_file;
pub use m40_source::{self as source, Source, SourceError};
pub use ollama::OllamaModel;
pub use progress::{Phase, Progress};
pub use prune::{Pruned, Referenced};
pub use pull::{Pull, Pulled, PulledFile, Request};
pub use secret::Secret;
pub use settings::{Proxy, Settings, Token};
pub use sha256::{CHUNK_BYTES, Sha256, Sha256Error};
pub use store::Store;
pub use verify::{Verified, hash_file_idly};
