//! What goes wrong with models on the card.

use m40_cuda::{CompileError, CudaError};
use m40_sched::pages::PagesError;

use crate::lower::{AssembleError, LowerError};
use crate::ops::PAGE_TOKENS;
use crate::weights::WeightsError;

/// Why a model cannot be planned or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The card does not run the program.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// The weights did not get there.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Memory was laid out wrongly.
    #[error("internal error: {0}")]
    Assemble(#[from] AssembleError),
    /// The KV cache does not hold one sequence.
    #[error(
        "{bytes} bytes of KV cache hold {tokens} tokens, fewer than a page's {PAGE_TOKENS}: give \
         the model more memory"
    )]
    NoCache {
        /// Bytes that it was to have.
        bytes: u64,
        /// Tokens that they hold.
        tokens: usize,
    },
    /// Something lies farther from the arena's start than kernels count.
    #[error("the model's memory lies {offset} bytes from the arena's start; kernels reach 64 GiB")]
    TooFar {
        /// Bytes from the start.
        offset: u64,
    },
    /// Blocks that have to run at once do not.
    #[error("{blocks} blocks of the decode kernels are to run at once, the gpu runs {resident}")]
    NotResident {
        /// Blocks of a launch.
        blocks: u32,
        /// Blocks that run at once.
        resident: u32,
    },
    /// Its decode kernels cannot be made.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The card.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Why a pass was not run. What sequences hold is as before, unless the card failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassError {
    /// A token outside the vocabulary.
    #[error("token {token} is not in the vocabulary of {vocab}")]
    Token {
        /// Its id.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A row that does not go on where its sequence ends.
    #[error("a row is at position {position} of a sequence of {len} tokens")]
    Position {
        /// The row's.
        position: usize,
        /// Where the sequence ends.
        len: usize,
    },
    /// A sequence would be longer than it may be.
    #[error("position {position} is beyond the context of {context} tokens")]
    Context {
        /// The row's.
        position: usize,
        /// Tokens that a sequence may have.
        context: usize,
    },
    /// A row of no sequence, or a sequence of another model.
    #[error("sequence {index} of {count} is none of this model's")]
    Sequence {
        /// The row's.
        index: usize,
        /// Sequences given.
        count: usize,
    },
    /// A sequence that may share its pages was to take for computed what is not.
    #[error("sequence {index} may share its pages, which are to hold what its tokens make")]
    Shared {
        /// Among those given.
        index: usize,
    },
    /// A sequence is not at the token up to which the card's state of it knows.
    #[error(
        "the gpu is to choose the token after position {position}, and its state of the sequence \
         knows {accepted} tokens: it has to be told anew how the sequence goes on"
    )]
    Unknown {
        /// Tokens that the state has accepted; 0 if it was lost.
        accepted: u64,
        /// The row's.
        position: usize,
    },
    /// Parameters, or a vocabulary, that the card does not sample by: the host has to.
    #[error("the gpu does not choose tokens with these sampling parameters and this vocabulary")]
    Unsampled,
    /// More rows than go through the card at once, or two of one sequence, where only one pass is asked
    /// for.
    #[error("{rows} rows do not fit in one pass")]
    Rows {
        /// Rows given.
        rows: usize,
    },
    /// The blocks of a launch waited too long for each other, as when something else holds a part of
    /// the card; or the kernel gives no sign of life.
    #[error(
        "the blocks of a launch waited in vain for each other: does another program use the GPU? \
         decoding one op a launch goes on beside it"
    )]
    Stuck,
    /// The kernel has read something else than it was told to do, and did nothing.
    #[error("the gpu read another job than the host had posted: is its memory or the bus failing?")]
    Corrupt,
    /// The KV cache is full, or what the sequence had of it went to another.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// The card.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}
