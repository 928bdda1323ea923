//! The one error shape of the control API.

use serde::{Deserialize, Serialize};

/// What went wrong, as something a program can branch on. Texts may change, codes may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request is malformed or a value in it is out of range.
    InvalidRequest,
    /// The caller may not use the control socket.
    Forbidden,
    /// No such model, file or route.
    NotFound,
    /// The route exists, the method does not.
    MethodNotAllowed,
    /// The name is taken, or the model is in a state in which this cannot be done.
    Conflict,
    /// The request body is larger than the daemon accepts.
    TooLarge,
    /// The request body is not JSON by its `Content-Type`.
    UnsupportedMediaType,
    /// The file is not a model that this daemon can run.
    BadModel,
    /// Too much is queued or loaded; trying again later may help.
    Busy,
    /// The daemon is stopping.
    Stopping,
    /// The disk is too full; the message has what is needed and what is free.
    NoSpace,
    /// Where a file comes from does not answer, refuses, or sends something else.
    Origin,
    /// An operation was ended by an operator before it was done.
    Aborted,
    /// The daemon failed; its log says more.
    Internal,
}

impl ErrorCode {
    /// The HTTP status that goes with the code, on the control socket.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::InvalidRequest => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict | Self::Aborted => 409,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::BadModel => 422,
            Self::Busy | Self::Stopping => 503,
            Self::Internal => 500,
            Self::Origin => 502,
            Self::NoSpace => 507,
        }
    }
}

/// An error as it travels: a stable code, and one line for people that says what, where and
/// what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What to branch on.
    pub code: ErrorCode,
    /// What to show.
    pub message: String,
}

impl ApiError {
    /// An error with this code and message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}
