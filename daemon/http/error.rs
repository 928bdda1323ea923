//! OpenAI's error shape, and how everything that can go wrong maps to it.

use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use m40_control::ErrorCode;
use m40_sched::Refusal;
use m40_sched::sampler::ParamError;
use serde_json::{Value, json};

use super::body::BodyError;
use crate::generation::{AnswerError, AskError};
use crate::models::{JobError, ModelError, Reason};

/// How soon a client may try again when nothing else is known, in seconds.
const RETRY_AFTER_S: u64 = 1;

/// An error on its way to a client.
#[derive(Debug)]
pub(super) struct HttpError {
    status: StatusCode,
    /// OpenAI's `type`.
    kind: &'static str,
    message: String,
    /// The parameter at fault.
    param: Option<String>,
    code: Option<&'static str>,
    /// How soon the client may try again, in seconds.
    retry_s: Option<u64>,
}

impl HttpError {
    fn new(status: StatusCode, kind: &'static str, message: String) -> Self {
        Self { status, kind, message, param: None, code: None, retry_s: None }
    }

    /// A request that says something impossible in `param`.
    pub(super) fn bad_param(param: impl Into<String>, message: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("{param}: {message}");
        Self { param: Some(param), ..Self::bad_request(message) }
    }

    pub(super) fn not_found(message: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    pub(super) fn method_not_allowed(message: String) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    pub(super) fn internal() -> Self {
        let message = "m40d failed, see its log".to_owned();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    fn bad_request(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    fn unavailable(message: String, code: &'static str) -> Self {
        let new = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", message);
        Self { retry_s: Some(RETRY_AFTER_S), code: Some(code), ..new }
    }

    /// Every place for answers is taken.
    pub(super) fn no_slot() -> Self {
        Self::unavailable("every slot is taken".to_owned(), "no_slot")
    }

    /// The same error for a route that calls the parameter something else.
    pub(super) fn about(self, param: &str, here: &str) -> Self {
        match self.param.as_deref() {
            Some(named) if named == param => Self { param: Some(here.to_owned()), ..self },
            _ => self,
        }
    }

    /// The object that goes into a body or an event.
    pub(super) fn body(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_s {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        } else if self.status.is_server_error() {
            // OpenAI's clients retry every 5xx unless told that it is useless.
            response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
        }
        response
    }
}

impl From<BodyError> for HttpError {
    fn from(error: BodyError) -> Self {
        let message = error.to_string();
        let of = |status| Self::new(status, "invalid_request_error", message.clone());
        match error {
            BodyError::ContentType => of(StatusCode::UNSUPPORTED_MEDIA_TYPE),
            BodyError::TooLarge { .. } => of(StatusCode::PAYLOAD_TOO_LARGE),
            BodyError::Timeout { .. } => of(StatusCode::REQUEST_TIMEOUT),
            BodyError::Broken
            | BodyError::Empty
            | BodyError::Malformed { .. }
            | BodyError::Shape { .. } => Self::bad_request(message),
            BodyError::Field { path, .. } => {
                Self { param: Some(path), ..Self::bad_request(message) }
            }
        }
    }
}

impl From<ModelError> for HttpError {
    fn from(error: ModelError) -> Self {
        let message = error.to_string();
        if let ModelError::Ended(reason) = error {
            return Self::ended(reason, message);
        }
        if let ModelError::Refused { refusal, .. } = &error {
            return Self::refused(refusal, message);
        }
        match error.code() {
            ErrorCode::NotFound if matches!(error, ModelError::Unknown { .. }) => {
                Self::no_model(message)
            }
            ErrorCode::InvalidRequest => {
                Self { param: Some("model".to_owned()), ..Self::bad_request(message) }
            }
            ErrorCode::Conflict => {
                Self::new(StatusCode::CONFLICT, "invalid_request_error", message)
            }
            ErrorCode::Busy => Self::unavailable(message, "busy"),
            _ => Self::load_failed(message),
        }
    }
}

impl HttpError {
    fn no_model(message: String) -> Self {
        Self {
            param: Some("model".to_owned()),
            code: Some("model_not_found"),
            ..Self::not_found(message)
        }
    }

    /// The model is known, so it is the server that cannot keep its word.
    fn load_failed(message: String) -> Self {
        let new = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message);
        Self { code: Some("model_load_failed"), ..new }
    }

    /// The scheduler refused it.
    fn refused(refusal: &Refusal, message: String) -> Self {
        let of = |status, code| {
            let new = Self::new(status, "invalid_request_error", message.clone());
            Self { param: Some("model".to_owned()), code: Some(code), ..new }
        };
        match refusal {
            Refusal::Unknown(_) | Refusal::Removed(_) => Self::no_model(message),
            Refusal::NeverFits(_) => of(StatusCode::UNPROCESSABLE_ENTITY, "model_too_large"),
            Refusal::Pinned { .. } => of(StatusCode::UNPROCESSABLE_ENTITY, "memory_pinned"),
            Refusal::LoadFailed { .. } => Self::load_failed(message),
            Refusal::QueueFull { retry_after, .. } => Self {
                code: Some("queue_full"),
                retry_s: Some(retry_after.as_secs().max(RETRY_AFTER_S)),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            },
            Refusal::DeadlinePassed { .. } => Self::ended(Reason::Deadline, message),
            Refusal::Unloaded(_) => Self::ended(Reason::Unloaded, message),
        }
    }

    /// It was ended before it was done.
    fn ended(reason: Reason, message: String) -> Self {
        match reason {
            Reason::Stopping => Self::unavailable(message, "stopping"),
            Reason::Unloaded => Self::unavailable(message, "unloaded"),
            Reason::Cancelled => Self {
                code: Some("cancelled"),
                ..Self::new(StatusCode::CONFLICT, "invalid_request_error", message)
            },
            Reason::Deadline => Self {
                code: Some("deadline_passed"),
                ..Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", message)
            },
        }
    }
}

impl From<AnswerError> for HttpError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Ask(error) => error.into(),
            AnswerError::Job(error) => error.into(),
        }
    }
}

impl From<AskError> for HttpError {
    fn from(error: AskError) -> Self {
        let message = error.to_string();
        let bad = |param: &str, code| Self {
            param: Some(param.to_owned()),
            code,
            ..Self::bad_request(message.clone())
        };
        match error {
            AskError::Model(error) => error.into(),
            AskError::PromptTooLong { .. } => bad("messages", Some("context_length_exceeded")),
            AskError::EmptyPrompt => bad("messages", None),
            AskError::NoSuchToken { field, .. } => bad(field, None),
            AskError::Sampling(error) => error.into(),
            AskError::Template(_) => Self::bad_request(message),
            AskError::Internal => Self::internal(),
        }
    }
}

impl From<ParamError> for HttpError {
    fn from(error: ParamError) -> Self {
        let field = match &error {
            ParamError::OutOfRange { field, .. } => field,
            ParamError::Bias { .. } | ParamError::TooManyBiases { .. } => "logit_bias",
        };
        Self { param: Some(field.to_owned()), ..Self::bad_request(error.to_string()) }
    }
}

impl From<JobError> for HttpError {
    fn from(error: JobError) -> Self {
        let message = error.to_string();
        if let JobError::CutShort(reason) = error {
            return Self::ended(reason, message);
        }
        match error.code() {
            ErrorCode::InvalidRequest => Self::bad_request(message),
            ErrorCode::Busy => Self::unavailable(message, "busy"),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message),
        }
    }
}
