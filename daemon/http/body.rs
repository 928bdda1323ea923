//! Reading a JSON body within bounds of size and time, with errors that name the field.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

/// What a body may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BodyLimits {
    pub bytes_max: usize,
    pub timeout: Duration,
}

/// Why a body is no request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the request body must be JSON: send `Content-Type: application/json`")]
    ContentType,
    #[error("the request body is larger than {mib} MiB, the most that http.body_mib_max allows")]
    TooLarge { mib: usize },
    #[error("the request body did not arrive within {seconds} s")]
    Timeout { seconds: u64 },
    #[error("the connection broke while the request body was read")]
    Broken,
    #[error("the request body is empty, expected a JSON object")]
    Empty,
    #[error("the request body is not valid JSON: {message}")]
    Malformed { message: String },
    #[error("the request body is not what it should be: {message}")]
    Shape { message: String },
    #[error("{path}: {message}")]
    Field { path: String, message: String },
}

/// Reads the whole body as a `T`.
pub(crate) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limits: BodyLimits,
) -> Result<T, BodyError> {
    parse(&read(headers, body, limits).await?)
}

/// Reads the whole body, which says that it is JSON.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: BodyLimits,
) -> Result<Bytes, BodyError> {
    if !is_json(headers) {
        return Err(BodyError::ContentType);
    }
    let too_large = BodyError::TooLarge { mib: limits.bytes_max >> 20 };
    if declared_length(headers).is_some_and(|length| length > limits.bytes_max as u64) {
        return Err(too_large);
    }
    let whole = Limited::new(body, limits.bytes_max).collect();
    match tokio::time::timeout(limits.timeout, whole).await {
        Err(_) => Err(BodyError::Timeout { seconds: limits.timeout.as_secs() }),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large),
        Ok(Err(_)) => Err(BodyError::Broken),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
    }
}

// Browsers send other types across sites without asking first, so a page could otherwise use a
// daemon that listens on its visitor's machine.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = value.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a `T` out of a JSON text.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BodyError> {
    if bytes.trim_ascii().is_empty() {
        return Err(BodyError::Empty);
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value: T = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        let message = error.to_string();
        match (error.is_data(), path.as_str()) {
            (false, _) => BodyError::Malformed { message },
            (true, ".") => BodyError::Shape { message },
            (true, _) => BodyError::Field { path, message },
        }
    })?;
    match json.end() {
        Ok(()) => Ok(value),
        Err(error) => Err(BodyError::Malformed { message: error.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Outer {
        #[expect(dead_code, reason = "only parsed")]
        inner: Vec<Inner>,
    }

    #[derive(Debug, serde::Deserialize)]
    struct Inner {
        #[expect(dead_code, reason = "only parsed")]
        number: u32,
    }

    const LIMITS: BodyLimits = BodyLimits { bytes_max: 1 << 20, timeout: Duration::from_secs(5) };

    async fn read_as(content_type: &str, body: impl Into<Body>) -> Result<Outer, BodyError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        read_json(&headers, body.into(), LIMITS).await
    }

    #[tokio::test]
    async fn a_wrong_value_is_named_by_its_path() {
        let error = read_as("application/json", r#"{"inner":[{"number":1},{"number":"x"}]}"#).await;
        let Err(BodyError::Field { path, message }) = error else { panic!("{error:?}") };
        assert_eq!(path, "inner[1].number");
        assert!(message.contains("expected u32"), "{message}");
    }

    #[tokio::test]
    async fn what_is_not_json_is_malformed() {
        for bad in ["{", "nonsense", "{\"inner\":[]} trailing", "\u{feff}{}", "{\"inner\":[}"] {
            let error = read_as("application/json", bad).await.unwrap_err();
            assert!(matches!(error, BodyError::Malformed { .. }), "{bad}: {error:?}");
        }
        for bad in ["{}", "null", "7", "\"text\""] {
            let error = read_as("application/json", bad).await.unwrap_err();
            assert!(matches!(error, BodyError::Shape { .. }), "{bad}: {error:?}");
        }
        let deep = format!("{{\"unknown\":{}", "[".repeat(100_000));
        let error = read_as("application/json", deep).await.unwrap_err();
        assert!(matches!(error, BodyError::Malformed { .. }), "{error:?}");
        assert_eq!(read_as("application/json", " \n").await.unwrap_err(), BodyError::Empty);
    }

    #[tokio::test]
    async fn the_content_type_must_be_json() {
        assert!(read_as("Application/JSON; charset=utf-8", r#"{"inner":[]}"#).await.is_ok());
        for bad in ["text/plain", "application/x-www-form-urlencoded", ""] {
            let error = read_as(bad, r#"{"inner":[]}"#).await.unwrap_err();
            assert_eq!(error, BodyError::ContentType, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_while_it_arrives() {
        let error = read_as("application/json", vec![b' '; (1 << 20) + 1]).await.unwrap_err();
        assert_eq!(error, BodyError::TooLarge { mib: 1 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_arrives_times_out() {
        let never = Body::from_stream(futures_util::stream::pending::<Result<String, BodyError>>());
        let error = read_as("application/json", never).await.unwrap_err();
        assert_eq!(error, BodyError::Timeout { seconds: 5 });
    }
}
