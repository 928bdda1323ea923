//! Architectures: GGUF metadata and tensor table in, verified [`Program`] out.
//!
//! Every architecture here is a decoder-only transformer with RMS norms and a gated feed-forward
//! block. A file under `arch/` reads one family's metadata into a [`decoder::Decoder`]; the ops are
//! emitted in one place, [`decoder`]. Adding an architecture of this shape is one function and one
//! line in [`FAMILIES`].

mod decoder;
mod gemma;
mod hyper;
mod llama;
mod phi3;
mod qwen;
mod tensors;

use m40_gguf::{Gguf, GgufError};

use crate::program::{KvType, Program};
use crate::verify::VerifyError;
use decoder::Decoder;
use hyper::Hyper;

/// Reads a family's metadata.
type Describe = fn(&Hyper<'_>) -> Result<Decoder, BuildError>;

/// `general.architecture` and how to read it.
const FAMILIES: &[(&str, Describe)] = &[
    ("gemma2", gemma::gemma2),
    ("gemma3", gemma::gemma3),
    ("llama", llama::llama),
    ("phi3", phi3::phi3),
    ("qwen2", qwen::qwen),
    ("qwen3", qwen::qwen),
];

/// Names of every architecture [`build`] knows, sorted.
pub fn supported_architectures() -> Vec<&'static str> {
    FAMILIES.iter().map(|(name, _)| *name).collect()
}

/// What the user decides about a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuildOptions {
    /// Tokens of context to be served; the trained context when absent. Some models change their
    /// rotary frequencies for long contexts.
    pub context: Option<u32>,
    /// How keys and values are kept.
    pub kv_type: KvType,
}

/// Why a file does not make a program.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No family reads this architecture.
    #[error(
        "architecture \"{architecture}\" is not supported (this build runs {})",
        supported_architectures().join(", ")
    )]
    UnsupportedArchitecture {
        /// `general.architecture`.
        architecture: String,
    },
    /// The architecture is known, but not this variant of it.
    #[error("{what} is not supported for architecture \"{architecture}\"")]
    UnsupportedVariant {
        /// `general.architecture`.
        architecture: String,
        /// What the file asks for.
        what: String,
    },
    /// A metadata key is missing.
    #[error("metadata key {key} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value is outside what any real model has.
    #[error("metadata key {key} is {value}, expected {expected}")]
    OutOfRange {
        /// The key.
        key: String,
        /// What the file says.
        value: String,
        /// What would be accepted.
        expected: String,
    },
    /// A weight is missing.
    #[error("tensor {tensor} is missing")]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// A weight has another shape than the metadata implies.
    #[error("tensor {tensor} is {found}, the metadata implies {expected}")]
    TensorShape {
        /// Its name.
        tensor: String,
        /// Shape the metadata implies, fastest dimension first.
        expected: String,
        /// Shape in the file.
        found: String,
    },
    /// The file has weights that the architecture, as known here, would leave out.
    #[error(
        "{count} tensors would not be used, the first is {first}: this is another variant of the architecture"
    )]
    UnusedTensors {
        /// Name of the first.
        first: String,
        /// How many.
        count: usize,
    },
    /// Metadata of the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The ops do not fit together; a bug in a family, not in the file.
    #[error("internal error: {0}")]
    Verify(#[from] VerifyError),
}

/// Builds the program of a model file.
///
/// # Errors
/// See [`BuildError`]; nothing is built from a file that is only partly understood.
pub fn build<B: AsRef<[u8]>>(gguf: &Gguf<B>, options: BuildOptions) -> Result<Program, BuildError> {
    let hyper = Hyper::read(gguf, options)?;
    let architecture = hyper.architecture.clone();
    let (_, describe) = FAMILIES
        .iter()
        .find(|(name, _)| *name == architecture)
        .ok_or(BuildError::UnsupportedArchitecture { architecture })?;
    let decoder = describe(&hyper)?;
    let program = decoder::emit(&hyper, &decoder)?;
    crate::verify::verify(&program)?;
    Ok(program)
}
