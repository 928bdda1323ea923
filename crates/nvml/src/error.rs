//! Why the library does not say, or do, what it was asked.

use std::path::{Path, PathBuf};

use m40_control::PciAddress;
use nvml_wrapper::error::NvmlError as Source;

/// Why a card cannot be looked after.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NvmlError {
    /// The library cannot be loaded.
    #[error("cannot load {}: {reason}", path.display())]
    NoLibrary {
        /// Which.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The library is there, and finds no driver that it could ask.
    #[error("{} finds no NVIDIA driver to ask: {reason}", path.display())]
    NoDriver {
        /// Which library.
        path: PathBuf,
        /// What it says.
        reason: String,
    },
    /// There is no such card.
    #[error("NVML knows no card at {address}: {reason}")]
    NoCard {
        /// Where one was looked for.
        address: PciAddress,
        /// What the library says.
        reason: String,
    },
    /// The card is off the bus, or must be reset before it does anything.
    #[error("the card at {address} is lost: {reason}")]
    Lost {
        /// Where it was.
        address: PciAddress,
        /// What the library says.
        reason: String,
    },
    /// Only root may do that.
    #[error("not permitted to {what}")]
    NotPermitted {
        /// What was to be done.
        what: &'static str,
    },
    /// The card, or its driver, cannot do that.
    #[error("the card does not {what}: {reason}")]
    Refused {
        /// What was to be done.
        what: &'static str,
        /// What the library says.
        reason: String,
    },
}

impl NvmlError {
    pub(crate) fn of_start(path: &Path, error: &Source) -> Self {
        let (path, reason) = (path.to_path_buf(), line(error));
        match error {
            Source::LibloadingError(_) | Source::FailedToLoadSymbol(_) => {
                Self::NoLibrary { path, reason }
            }
            _ => Self::NoDriver { path, reason },
        }
    }

    pub(crate) fn of_card(address: PciAddress, error: &Source) -> Self {
        let reason = line(error);
        match error {
            Source::GpuLost | Source::ResetRequired => Self::Lost { address, reason },
            _ => Self::NoCard { address, reason },
        }
    }

    pub(crate) fn refused(what: &'static str, error: &Source) -> Self {
        match error {
            Source::NoPermission => Self::NotPermitted { what },
            error => Self::Refused { what, reason: line(error) },
        }
    }
}

/// What a foreign library says, in one line of bounded length.
fn line(error: &Source) -> String {
    let text = error.to_string();
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(256).collect()
}
