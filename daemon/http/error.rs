//! How everything that can go wrong maps to a status and a text, and the shapes in which the APIs say it.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::Request;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use m40_control::{ApiError, ErrorCode};
use m40_grammar::GrammarError;
use m40_sched::Refusal;
use m40_sched::sampler::ParamError;
use m40llm::EmbedError;
use serde_json::{Value, json};

use super::body::BodyError;
use super::request_id::RequestId;
use crate::embedding::EmbeddingError;
use crate::generation::{AnswerError, AskError};
use crate::models::{JobError, ModelError, Reason};

/// How soon a client may try again when nothing else is known, in seconds.
const RETRY_AFTER_S: u64 = 1;

/// The shape that an API's clients expect of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ErrorShape {
    OpenAi,
    /// `{"error": "text"}`
    Ollama,
    Anthropic,
}

impl ErrorShape {
    /// The shape of whoever asks for this path.
    pub(super) fn of_path(path: &str) -> Self {
        if path == "/api" || path.starts_with("/api/") {
            Self::Ollama
        } else if path == "/v1/messages" || path.starts_with("/v1/messages/") {
            Self::Anthropic
        } else {
            Self::OpenAi
        }
    }

    /// The object that goes into a body or an event.
    pub(super) fn body(self, error: &HttpError) -> Value {
        match self {
            Self::OpenAi => error.body(),
            Self::Ollama => json!({"error": error.message}),
            Self::Anthropic => json!({
                "type": "error",
                "error": {"type": anthropic_kind(error.status), "message": error.message},
            }),
        }
    }
}

fn anthropic_kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::GATEWAY_TIMEOUT => "timeout_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    }
}

/// Gives each [`HttpError`] of the routes inside the shape that its path decides.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    let shape = ErrorShape::of_path(request.uri().path());
    let id = request.extensions().get::<RequestId>().cloned();
    let mut response = next.run(request).await;
    let error = response.extensions_mut().remove::<Arc<HttpError>>();
    let Some(error) = error else { return response };
    let mut body = shape.body(&error);
    if let (ErrorShape::Anthropic, Some(id)) = (shape, id) {
        body["request_id"] = Value::from(id.as_str());
    }
    // Other layers may have added headers, which are kept.
    let (mut head, _) = response.into_parts();
    let (json, body) = Json(body).into_response().into_parts();
    head.headers.extend(json.headers);
    Response::from_parts(head, body)
}

/// An error on its way to a client. As a response it has its shape from [`layer`].
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

    /// Clients may not add or remove models.
    pub(super) fn management_off() -> Self {
        let message = "clients may not add, change or remove models here: set [http] \
                       allow_model_management = true, or use m40ctl on the machine";
        Self::forbidden(message.to_owned())
    }

    /// The key of a client does not go so far.
    pub(super) fn may_not_manage(key: &str) -> Self {
        Self::forbidden(format!(
            "the key {key} may not add, change or remove models: manage_models = true in its line \
             of the keys file would let it"
        ))
    }

    pub(super) fn no_key() -> Self {
        let message =
            "this needs an API key: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`";
        Self::unauthorized(message, "missing_api_key")
    }

    pub(super) fn wrong_key() -> Self {
        Self::unauthorized("the API key is not one of those that count here", "invalid_api_key")
    }

    fn unauthorized(message: &str, code: &'static str) -> Self {
        let new = Self::new(StatusCode::UNAUTHORIZED, "authentication_error", message.to_owned());
        Self { code: Some(code), ..new }
    }

    /// A key that was used too much, and may be used again after that.
    pub(super) fn rate_exceeded(key: &str, wait: Duration) -> Self {
        let message =
            format!("the key {key} has used what it may use in a minute: wait, or ask for less");
        let new = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
        let retry_s = wait.as_secs_f64().ceil() as u64;
        Self { code: Some("rate_limit_exceeded"), retry_s: Some(retry_s.max(1)), ..new }
    }

    /// A request that calls this machine what it is not called.
    pub(super) fn wrong_host(host: &str) -> Self {
        let message =
            format!("{host:?} is no name of this machine: [http] hosts has those that are");
        Self { code: Some("host_not_allowed"), ..Self::forbidden(message) }
    }

    /// A request of a page of another site.
    pub(super) fn wrong_origin(origin: &str) -> Self {
        let message =
            format!("pages of {origin} may not ask here: [http] cors_origins has those that may");
        Self { code: Some("origin_not_allowed"), ..Self::forbidden(message) }
    }

    fn forbidden(message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", message)
    }

    pub(super) fn internal() -> Self {
        let message = "m40d failed, see its log".to_owned();
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// Ollama's clients know it by its words.
    pub(super) fn too_busy() -> Self {
        let message = "server busy, please try again.  maximum pending requests exceeded";
        Self::unavailable(message.to_owned(), "queue_full")
    }

    /// What nobody can do here.
    pub(super) fn not_implemented(message: String) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "not_supported_error", message)
    }

    pub(super) fn bad_request(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// A bad request for what `param` says.
    fn at_param(param: &str, code: Option<&'static str>, message: String) -> Self {
        Self { param: Some(param.to_owned()), code, ..Self::bad_request(message) }
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

    /// What goes into a body or an event for OpenAI's clients.
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
        let mut response = self.status.into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        } else if self.status.is_server_error() {
            // OpenAI's clients retry every 5xx unless told that it is useless.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Arc::new(self));
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

impl From<ApiError> for HttpError {
    fn from(error: ApiError) -> Self {
        let status = StatusCode::from_u16(error.code.http_status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let kind = if status.is_server_error() { "server_error" } else { "invalid_request_error" };
        Self::new(status, kind, error.message)
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
            ErrorCode::Forbidden => Self {
                param: Some("model".to_owned()),
                code: Some("model_not_allowed"),
                ..Self::forbidden(message)
            },
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
        let bad = |param, code| Self::at_param(param, code, message.clone());
        match error {
            AskError::Model(error) => error.into(),
            AskError::PromptTooLong { .. } => bad("messages", Some("context_length_exceeded")),
            AskError::EmptyPrompt => bad("messages", None),
            AskError::NoFillIn { .. } => bad("suffix", None),
            AskError::NoSuchToken { field, .. } => bad(field, None),
            AskError::Sampling(error) => error.into(),
            AskError::Encoder { .. } => bad("model", None),
            AskError::Template(_) => Self::bad_request(message),
            AskError::NoSuchTool { .. } => bad("tool_choice", None),
            AskError::Grammar { error: GrammarError::NoThread { .. }, .. } | AskError::Internal => {
                Self::internal()
            }
            AskError::Grammar { field, .. } => bad(&field, None),
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

impl From<EmbeddingError> for HttpError {
    fn from(error: EmbeddingError) -> Self {
        let message = error.to_string();
        let bad = |param, code| Self::at_param(param, code, message.clone());
        match error {
            EmbeddingError::Model(error) => error.into(),
            EmbeddingError::Texts { .. } | EmbeddingError::Tokens { .. } => bad("input", None),
            EmbeddingError::Dimensions { .. } => bad("dimensions", None),
            EmbeddingError::OnlyRanks { .. } | EmbeddingError::Embed(EmbedError::NoClassifier) => {
                bad("model", None)
            }
            EmbeddingError::Embed(EmbedError::TooLong { .. }) => {
                bad("input", Some("context_length_exceeded"))
            }
            EmbeddingError::Embed(EmbedError::Empty { .. } | EmbedError::UnknownToken { .. }) => {
                bad("input", None)
            }
            EmbeddingError::Embed(EmbedError::Pass(error)) => JobError::from(error).into(),
            EmbeddingError::CutShort(reason) => Self::ended(reason, message),
            // Nobody cancels who does not say why, but the client, who is gone.
            EmbeddingError::Embed(EmbedError::Cancelled) => Self::ended(Reason::Cancelled, message),
            EmbeddingError::Embed(EmbedError::NotNumbers { .. }) | EmbeddingError::Panicked => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_decides_the_shape() {
        for (path, shape) in [
            ("/v1/chat/completions", ErrorShape::OpenAi),
            ("/v1/messagesx", ErrorShape::OpenAi),
            ("/v1/messages", ErrorShape::Anthropic),
            ("/v1/messages/count_tokens", ErrorShape::Anthropic),
            ("/api/chat", ErrorShape::Ollama),
            ("/apis", ErrorShape::OpenAi),
        ] {
            assert_eq!(ErrorShape::of_path(path), shape, "{path}");
        }
    }

    #[test]
    fn every_shape_has_the_text() {
        let error = HttpError::bad_param("top_k", "is odd");
        assert_eq!(ErrorShape::Ollama.body(&error), json!({"error": "top_k: is odd"}));
        let body = ErrorShape::Anthropic.body(&error);
        let inner = json!({"type": "invalid_request_error", "message": "top_k: is odd"});
        assert_eq!(body, json!({"type": "error", "error": inner}));
        assert_eq!(ErrorShape::OpenAi.body(&error)["error"]["param"], "top_k");
    }
}
