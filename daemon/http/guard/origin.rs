//! The site whose page asks, as browsers say it. Sites that are not listed are refused, where browsers
//! would only keep them from reading the answer.

use std::time::Duration;

use axum::http::header::{HOST, HeaderName, ORIGIN, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, AllowPrivateNetwork, CorsLayer};

use crate::config::Origins;
use crate::http::error::HttpError;

/// How long a browser may remember what it was told.
const PREFLIGHT_AGE: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone)]
pub(super) struct Sites(Origins);

impl Sites {
    pub(super) fn new(origins: &Origins) -> Self {
        Self(origins.clone())
    }

    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), HttpError> {
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let listed = match &self.0 {
            Origins::Any => true,
            Origins::Listed(listed) => listed.contains(origin),
        };
        if listed || is_own(origin, headers.get(HOST)) {
            Ok(())
        } else {
            Err(HttpError::wrong_origin(origin.to_str().unwrap_or("that origin")))
        }
    }

    /// What tells browsers that sites may read answers; none where no site may.
    pub(super) fn layer(&self) -> Option<CorsLayer> {
        let origins = match &self.0 {
            Origins::Any => AllowOrigin::any(),
            Origins::Listed(listed) if listed.is_empty() => return None,
            Origins::Listed(listed) => AllowOrigin::list(listed.iter().cloned()),
        };
        let layer = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST, Method::HEAD, Method::DELETE])
            .allow_headers(AllowHeaders::mirror_request())
            .allow_private_network(AllowPrivateNetwork::yes())
            .expose_headers([HeaderName::from_static("x-request-id"), RETRY_AFTER])
            .max_age(PREFLIGHT_AGE);
        Some(layer)
    }
}

/// Whether the page came from here.
fn is_own(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let authority = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    match (authority, host) {
        (Some((_, authority)), Some(host)) => authority.as_bytes() == host.as_bytes(),
        _ => false,
    }
}
