//! Why a file is not here.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use m40_control::{ErrorCode, PullProgress};
use m40_store::{FetchError, StoreError as BlobError};

/// Why the file of a model is not here yet.
#[derive(Debug, Clone)]
pub(crate) enum NotHere {
    /// It comes.
    Coming(PullProgress),
    /// It could not be had.
    Failed(Arc<Failure>),
}

/// Why a file could not be had.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failure {
    pub code: ErrorCode,
    pub message: String,
    /// When it is tried again by itself.
    pub again: Option<Instant>,
}

impl NotHere {
    /// It could not be had, and nothing tries again.
    pub(crate) fn failed(error: &FetchError) -> Self {
        Self::Failed(Arc::new(Failure::new(error, None)))
    }

    /// The code that the control API has for it.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            Self::Coming(_) => ErrorCode::Busy,
            Self::Failed(failure) => failure.code,
        }
    }
}

impl Failure {
    pub(super) fn new(error: &FetchError, again: Option<Instant>) -> Self {
        Self { code: code(error), message: error.to_string(), again }
    }
}

impl fmt::Display for NotHere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coming(progress) => write!(f, "is not here yet: {progress}"),
            Self::Failed(failure) => write!(f, "could not be fetched: {failure}"),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match self.again.map(|again| again.saturating_duration_since(Instant::now()).as_secs()) {
            Some(seconds @ 90..) => write!(f, "; tried again in {} min", seconds.div_ceil(60)),
            Some(seconds) => write!(f, "; tried again in {seconds} s"),
            None => Ok(()),
        }
    }
}

fn code(error: &FetchError) -> ErrorCode {
    match error {
        FetchError::Store(error) => blob_error(error),
        FetchError::GaveUp { last, .. } => code(last),
        FetchError::Status { status: 404 | 410, .. } | FetchError::NotThere { .. } => {
            ErrorCode::NotFound
        }
        FetchError::Digest { .. }
        | FetchError::Size { .. }
        | FetchError::Inconsistent { .. }
        | FetchError::Archive { .. } => ErrorCode::BadModel,
        FetchError::Cancelled => ErrorCode::Aborted,
        FetchError::NoClient { .. } | FetchError::Lost => ErrorCode::Internal,
        FetchError::Broken { .. }
        | FetchError::Stalled { .. }
        | FetchError::Status { .. }
        | FetchError::Redirect { .. }
        | FetchError::WebPage { .. }
        | FetchError::Ranges { .. }
        | FetchError::Answer { .. } => ErrorCode::Origin,
    }
}

/// The code that the control API has for what the store says.
pub(crate) fn blob_error(error: &BlobError) -> ErrorCode {
    match error {
        BlobError::NotAbsolute { .. }
        | BlobError::NotAFile { .. }
        | BlobError::Digest { .. }
        | BlobError::NotAdoptable { .. } => ErrorCode::InvalidRequest,
        BlobError::NoFile { .. } | BlobError::NoBlob { .. } => ErrorCode::NotFound,
        BlobError::Changed { .. } => ErrorCode::Conflict,
        BlobError::NoSpace { .. } => ErrorCode::NoSpace,
        BlobError::Io { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => ErrorCode::Forbidden,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoSpace,
            _ => ErrorCode::Internal,
        },
    }
}
