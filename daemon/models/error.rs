//! Why there is no model to answer.

use std::path::PathBuf;
use std::sync::Arc;

use m40_control::{ApiError, ErrorCode};
use m40_sched::residency::{PinnedTooLarge, Refusal};
use m40llm::LoadError;

use super::job::Reason;
use crate::pulls::NotHere;

/// Why a model is not ready, or takes no job.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ModelError {
    #[error(
        "there is no model {name:?}: `m40ctl list` shows which there are, `m40ctl pull SOURCE` adds one"
    )]
    Unknown { name: String },
    #[error("the key {key} may not use the model {name:?}")]
    NotAllowed { name: String, key: String },
    #[error("the model {name:?} is not loaded")]
    NotLoaded { name: String },
    #[error("no model is loaded: name one in \"model\", or load one with `m40ctl load NAME`")]
    NoneLoaded,
    #[error("several models are loaded ({names}): name one in \"model\"")]
    SeveralLoaded { names: String },
    #[error("the name {name:?} is in use for {}: unload that model first", path.display())]
    NameTaken { name: String, path: PathBuf },
    #[error(
        "{name:?} is a stored model, made from {}: use its name, or store this file under \
         another with `m40ctl pull FILE --name OTHER`",
        path.display()
    )]
    NameStored { name: String, path: PathBuf },
    #[error(
        "{name:?} is defined by {}: use its name, or load this file under another",
        manifest.display()
    )]
    NameDefined { name: String, manifest: PathBuf },
    #[error("the file of the model {name:?} {why}")]
    NotHere { name: String, why: NotHere },
    #[error("{} is not an absolute path of a file", path.display())]
    BadPath { path: PathBuf },
    #[error("{}", .0.message)]
    Load(Arc<LoadFailure>),
    #[error("{refusal}")]
    Refused {
        refusal: Box<Refusal>,
        /// What the latest load that failed came to.
        failure: Option<ErrorCode>,
    },
    #[error(transparent)]
    Pinned(#[from] PinnedTooLarge),
    #[error("the request was ended: {0}")]
    Ended(Reason),
    #[error("m40d failed, see its log")]
    Internal,
}

/// Why a load failed, kept for everybody who waits for it.
#[derive(Debug)]
pub(crate) struct LoadFailure {
    pub code: ErrorCode,
    pub message: String,
}

impl LoadFailure {
    /// Whether it would fit if enough of what there is were free in one piece.
    pub(super) fn found_no_place(&self) -> bool {
        self.code == ErrorCode::Busy
    }
}

impl From<&LoadError> for LoadFailure {
    fn from(error: &LoadError) -> Self {
        let code = match error {
            LoadError::NotFound { .. } => ErrorCode::NotFound,
            LoadError::Io { .. } | LoadError::Gpu { .. } => ErrorCode::Internal,
            // It would if others left.
            LoadError::NoRoom { memory, .. } if memory.needed() <= memory.capacity => {
                ErrorCode::Busy
            }
            _ => ErrorCode::BadModel,
        };
        Self { code, message: error.to_string() }
    }
}

impl ModelError {
    /// The code that the control API has for it.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown { .. } => ErrorCode::NotFound,
            Self::NoneLoaded | Self::SeveralLoaded { .. } | Self::BadPath { .. } => {
                ErrorCode::InvalidRequest
            }
            Self::NotLoaded { .. }
            | Self::NameTaken { .. }
            | Self::NameStored { .. }
            | Self::NameDefined { .. }
            | Self::Pinned(_) => ErrorCode::Conflict,
            Self::NotAllowed { .. } => ErrorCode::Forbidden,
            Self::NotHere { why, .. } => why.code(),
            Self::Load(failure) => failure.code,
            Self::Refused { refusal, failure } => refused(refusal, *failure),
            Self::Ended(reason) => reason.code(),
            Self::Internal => ErrorCode::Internal,
        }
    }
}

fn refused(refusal: &Refusal, failure: Option<ErrorCode>) -> ErrorCode {
    match refusal {
        Refusal::Unknown(_) | Refusal::Removed(_) => ErrorCode::NotFound,
        Refusal::NeverFits(_) => ErrorCode::BadModel,
        Refusal::Pinned { .. } => ErrorCode::Conflict,
        Refusal::LoadFailed { .. } => failure.unwrap_or(ErrorCode::Internal),
        Refusal::QueueFull { .. } => ErrorCode::Busy,
        Refusal::DeadlinePassed { .. } | Refusal::Unloaded(_) => ErrorCode::Aborted,
    }
}

impl Reason {
    /// The code that the control API has for it.
    pub(crate) fn code(self) -> ErrorCode {
        match self {
            Self::Stopping => ErrorCode::Stopping,
            Self::Unloaded | Self::Cancelled | Self::Deadline => ErrorCode::Aborted,
        }
    }
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use m40llm::GpuMemory;

    use super::*;

    #[test]
    fn what_would_fit_without_others_found_no_place() {
        let failure = |capacity| {
            let (weights, scratch, kv) = (60, 10, 30);
            let memory = Box::new(GpuMemory {
                weights,
                scratch,
                kv,
                kv_step: 1,
                step_tokens: 32,
                context: 960,
                context_trained: 960,
                // Of all that is free, the largest piece.
                free: 50,
                capacity,
            });
            LoadFailure::from(&LoadError::NoRoom { path: "some.gguf".into(), memory })
        };
        assert!(failure(100).found_no_place());
        assert!(!failure(99).found_no_place());
        assert_eq!(failure(99).code, ErrorCode::BadModel);
    }
}
