//! Architectures: GGUF metadata and tensor table in, verified [`Program`] out.
//!
//! An architecture is a decoder, with RMS norms before its blocks, or an encoder, with layer norms after
//! them. A file under `arch/` reads one family's metadata into a [`decoder::Decoder`] or an
//! [`encoder::Encoder`]; the ops of each kind are emitted in one place. Adding an architecture of either
//! shape is one function and one line in [`FAMILIES`].

mod bert;
mod decoder;
mod emitter;
mod encoder;
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
use encoder::Encoder;
use hyper::Hyper;

/// Reads a family's metadata.
#[derive(Clone, Copy)]
enum Describe {
    Decoder(fn(&Hyper<'_>) -> Result<Decoder, BuildError>),
    Encoder(fn(&Hyper<'_>) -> Result<Encoder, BuildError>),
}

impl Describe {
    /// What the key is called that has the epsilon of all norms.
    fn epsilon_key(self) -> &'static str {
        match self {
            Self::Decoder(_) => "attention.layer_norm_rms_epsilon",
            Self::Encoder(_) => "attention.layer_norm_epsilon",
        }
    }
}

/// `general.architecture` and how to read it.
const FAMILIES: &[(&str, Describe)] = &[
    ("bert", Describe::Encoder(bert::bert)),
    ("gemma2", Describe::Decoder(gemma::gemma2)),
    ("gemma3", Describe::Decoder(gemma::gemma3)),
    ("llama", Describe::Decoder(llama::llama)),
    ("nomic-bert", Describe::Encoder(bert::nomic_bert)),
    ("phi3", Describe::Decoder(phi3::phi3)),
    ("qwen2", Describe::Decoder(qwen::qwen)),
    ("qwen3", Describe::Decoder(qwen::qwen)),
];

fn describe(architecture: &str) -> Result<Describe, BuildError> {
    let found = FAMILIES.iter().find(|(name, _)| *name == architecture);
    found.map(|(_, describe)| *describe).ok_or_else(|| BuildError::UnsupportedArchitecture {
        architecture: architecture.to_owned(),
    })
}

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
    let program = match describe(&hyper.architecture)? {
        Describe::Decoder(describe) => decoder::emit(&hyper, &describe(&hyper)?)?,
        Describe::Encoder(describe) => encoder::emit(&hyper, &describe(&hyper)?)?,
    };
    crate::verify::verify(&program)?;
    Ok(program)
}
