//! `X-Request-Id`: the client's own when it is sane, else a fresh one; on every response and in
//! every log line of the request.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::Request;
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, info_span};

const HEADER: &str = "x-request-id";
const CLIENT_ID_BYTES_MAX: usize = 128;

/// The id of the request that has it in its extensions.
#[derive(Debug, Clone)]
pub(super) struct RequestId(HeaderValue);

impl RequestId {
    pub(super) fn as_str(&self) -> &str {
        // What is sane, or made here, is ASCII.
        self.0.to_str().unwrap_or_default()
    }
}

/// Sets the header and runs the request in a span that carries it.
pub(super) async fn layer(mut request: Request, next: Next) -> Response {
    let id = match request.headers().get(HEADER).filter(|id| is_sane(id)) {
        Some(id) => id.clone(),
        None => HeaderValue::from_str(&fresh("req-")).unwrap_or(HeaderValue::from_static("req")),
    };
    let id = RequestId(id);
    // The path without its query, which could hold anything.
    let (method, path) = (request.method(), request.uri().path());
    let span = info_span!("request", id = id.as_str(), %method, path);
    request.extensions_mut().insert(id.clone());
    async move {
        let mut response = next.run(request).await;
        response.headers_mut().insert(HEADER, id.0);
        response
    }
    .instrument(span)
    .await
}

fn is_sane(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=CLIENT_ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
}

/// An id that no other request of any daemon has.
pub(super) fn fresh(prefix: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // The standard library keys its hashers from the system's random source.
    static KEYS: LazyLock<(RandomState, RandomState)> = LazyLock::new(Default::default);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:016x}{:016x}", KEYS.0.hash_one(n), KEYS.1.hash_one(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_ids_differ() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| fresh("req-")).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 36 && id.starts_with("req-")));
    }

    #[test]
    fn hostile_ids_are_replaced() {
        assert!(is_sane(&HeaderValue::from_static("abc-123")));
        for bad in ["", "a b", &"x".repeat(129)] {
            assert!(!is_sane(&HeaderValue::from_str(bad).unwrap()), "{bad}");
        }
        assert!(!is_sane(&HeaderValue::from_bytes(b"a\xff").unwrap()));
    }
}
