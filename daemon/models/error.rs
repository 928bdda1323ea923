//! Why there is no model to answer.

use std::path::PathBuf;
use std::sync::Arc;

use m40_control::{ApiError, ErrorCode};
use m40llm::LoadError;

use crate::pulls::NotHere;

/// Why a model is not ready, or takes no job.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ModelError {
    #[error(
        "there is no model {name:?}: `m40ctl list` shows which there are, `m40ctl pull FILE` adds one"
    )]
    Unknown { name: String },
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
    #[error(
        "{limit} models are loaded, the most that models.loaded_max allows: unload one with `m40ctl unload NAME`"
    )]
    TooManyLoaded { limit: usize },
    #[error("{}", .0.message)]
    Load(Arc<LoadFailure>),
    #[error(
        "the model {name:?} has {limit} requests waiting, the most that limits.queued_jobs_max allows: try again later"
    )]
    QueueFull { name: String, limit: usize },
    #[error("the model {name:?} is being unloaded: try again")]
    Unloading { name: String },
    #[error("m40d is stopping")]
    Stopping,
}

/// Why a load failed, kept for everybody who waits for it.
#[derive(Debug)]
pub(crate) struct LoadFailure {
    pub code: ErrorCode,
    pub message: String,
}

impl From<&LoadError> for LoadFailure {
    fn from(error: &LoadError) -> Self {
        let code = match error {
            LoadError::NotFound { .. } => ErrorCode::NotFound,
            LoadError::Io { .. } | LoadError::Gpu { .. } => ErrorCode::Internal,
            // It would fit if other models made room.
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
            | Self::NameDefined { .. } => ErrorCode::Conflict,
            Self::NotHere { why, .. } => why.code(),
            Self::TooManyLoaded { .. } | Self::QueueFull { .. } | Self::Unloading { .. } => {
                ErrorCode::Busy
            }
            Self::Load(failure) => failure.code,
            Self::Stopping => ErrorCode::Stopping,
        }
    }
}

impl From<ModelError> for ApiError {
    fn from(error: ModelError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}
