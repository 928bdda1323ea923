//! The key of a request: `Authorization: Bearer` as OpenAI's clients send it, or Anthropic's `x-api-key`.

use std::sync::Arc;
use std::time::Instant;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;

use crate::http::error::HttpError;
use crate::keys::{Key, Keys};

/// The key of a request that may be answered now.
pub(super) fn admitted(keys: &Keys, headers: &HeaderMap) -> Result<Arc<Key>, HttpError> {
    let sent = [bearer(headers), header(headers, "x-api-key")];
    if sent.iter().all(Option::is_none) {
        return Err(HttpError::no_key());
    }
    let key = sent.into_iter().flatten().find_map(|sent| keys.find(sent));
    let key = key.ok_or_else(HttpError::wrong_key)?;
    match key.admit(Instant::now()) {
        Ok(()) => Ok(key),
        Err(wait) => Err(HttpError::rate_exceeded(&key.name, wait)),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = header(headers, AUTHORIZATION.as_str())?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // What cannot be shown is no key, but was sent.
    Some(headers.get(name)?.to_str().unwrap_or_default())
}
