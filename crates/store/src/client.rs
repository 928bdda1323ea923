//! HTTP requests, whose redirects are followed by hand: a token goes to its host and to no other.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, LINK, LOCATION,
};
use reqwest::{Method, Response};
use tokio::time::timeout;
use url::Url;

use crate::download::error::{FetchError, shown};
use crate::settings::{Proxy, Settings};

/// Most redirects of one request.
const REDIRECTS_MAX: usize = 10;
/// Longest answer of a registry about its files.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Makes HTTP requests; belongs to one runtime.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    settings: Arc<Settings>,
}

impl Client {
    pub(crate) fn new(settings: Arc<Settings>) -> Result<Self, FetchError> {
        // Whoever was first decides for the process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("m40d/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .connect_timeout(settings.connect_timeout);
        match &settings.proxy {
            Proxy::Environment => {}
            Proxy::Direct => builder = builder.no_proxy(),
            Proxy::Url(url) => {
                let proxy = reqwest::Proxy::all(url.clone());
                let proxy =
                    proxy.map_err(|error| FetchError::NoClient { reason: causes(&error) })?;
                builder = builder.proxy(proxy);
            }
        }
        let http = builder.build();
        let http = http.map_err(|error| FetchError::NoClient { reason: causes(&error) })?;
        Ok(Self { http, settings })
    }

    /// What a URL leads to, whatever its status, and the URL that it was in the end.
    pub(crate) async fn get(
        &self,
        url: &Url,
        headers: &[(HeaderName, String)],
    ) -> Result<(Response, Url), FetchError> {
        self.follow(Method::GET, url, headers, |_, _| true).await
    }

    /// The headers of the last answer that is still of the same host.
    pub(crate) async fn head_here(&self, url: &Url) -> Result<Response, FetchError> {
        let same_host = |from: &Url, to: &Url| from.origin() == to.origin();
        Ok(self.follow(Method::HEAD, url, &[], same_host).await?.0)
    }

    /// The body of a small answer.
    pub(crate) async fn text(
        &self,
        url: &Url,
        headers: &[(HeaderName, String)],
    ) -> Result<String, FetchError> {
        Ok(self.page(url, headers).await?.0)
    }

    /// The body of a small answer, and where it goes on.
    pub(crate) async fn page(
        &self,
        url: &Url,
        headers: &[(HeaderName, String)],
    ) -> Result<(String, Option<Url>), FetchError> {
        let (response, url) = self.get(url, headers).await?;
        let mut response = check_status(response, &url)?;
        let next = response.headers().get(LINK).and_then(|link| next_page(&url, link));
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece(&mut response, &url).await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > ANSWER_BYTES_MAX {
                let reason = format!("it is longer than {ANSWER_BYTES_MAX} bytes");
                return Err(FetchError::Answer { url: shown(&url), reason });
            }
        }
        let reason = || "it is not UTF-8".to_owned();
        let text = String::from_utf8(bytes)
            .map_err(|_| FetchError::Answer { url: shown(&url), reason: reason() })?;
        Ok((text, next))
    }

    /// The next bytes of a body.
    pub(crate) async fn piece(
        &self,
        response: &mut Response,
        url: &Url,
    ) -> Result<Option<bytes::Bytes>, FetchError> {
        match timeout(self.settings.stall_timeout, response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(error)) => Err(broken(url, &error)),
            Err(_) => Err(self.stalled(url)),
        }
    }

    async fn follow(
        &self,
        method: Method,
        url: &Url,
        headers: &[(HeaderName, String)],
        may_go: impl Fn(&Url, &Url) -> bool,
    ) -> Result<(Response, Url), FetchError> {
        let mut at = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.http.request(method.clone(), at.clone());
            request = request.headers(self.headers(headers, url, &at));
            let response = match timeout(self.settings.stall_timeout, request.send()).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(broken(&at, &error)),
                Err(_) => return Err(self.stalled(&at)),
            };
            let location = response.headers().get(LOCATION);
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = location.filter(|_| is_redirect) else {
                return Ok((response, at));
            };
            let next = next_hop(&at, location)?;
            if !may_go(&at, &next) {
                return Ok((response, at));
            }
            at = next;
        }
        let reason = format!("more than {REDIRECTS_MAX} redirects");
        Err(FetchError::Redirect { url: shown(url), reason })
    }

    fn headers(&self, given: &[(HeaderName, String)], first: &Url, at: &Url) -> HeaderMap {
        let mut headers = HeaderMap::new();
        // What is hashed is the file, not a packed form of it.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for (name, value) in given {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        }
        let token = self.settings.tokens.iter().find(|token| is_host(first, &token.host));
        if let Some(token) = token.filter(|_| first.origin() == at.origin())
            && let Ok(mut value) =
                HeaderValue::from_str(&format!("Bearer {}", token.secret.reveal()))
        {
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        headers
    }

    fn stalled(&self, url: &Url) -> FetchError {
        FetchError::Stalled { url: shown(url), seconds: self.settings.stall_timeout.as_secs() }
    }
}

/// Refuses an answer that has not the file in it.
pub(crate) fn check_status(response: Response, url: &Url) -> Result<Response, FetchError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response.headers().get(reqwest::header::RETRY_AFTER);
    let seconds = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    Err(FetchError::Status {
        url: shown(url),
        status: status.as_u16(),
        retry_after: seconds.map(Duration::from_secs),
    })
}

fn next_hop(from: &Url, location: &HeaderValue) -> Result<Url, FetchError> {
    let refuse =
        |reason: &str| FetchError::Redirect { url: shown(from), reason: reason.to_owned() };
    let to = location.to_str().ok().and_then(|to| from.join(to).ok());
    let to = to.ok_or_else(|| refuse("redirected to something that is no URL"))?;
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => Ok(to),
        ("https", "http") => Err(refuse("redirected from https to http, where anybody may answer")),
        _ => Err(refuse("redirected to something that is not on the web")),
    }
}

/// Where `Link: <url>; rel="next"` leads, if it is of the same registry.
fn next_page(from: &Url, link: &HeaderValue) -> Option<Url> {
    let next = link.to_str().ok()?.split(',').find(|link| link.contains("rel=\"next\""))?;
    let (_, address) = next.split_once('<')?;
    let url = from.join(address.split_once('>')?.0).ok()?;
    (url.origin() == from.origin()).then_some(url)
}

fn is_host(url: &Url, host: &str) -> bool {
    let Some(found) = url.host_str() else { return false };
    match url.port() {
        Some(port) => format!("{found}:{port}") == host,
        None => found == host,
    }
}

fn broken(url: &Url, error: &reqwest::Error) -> FetchError {
    FetchError::Broken { url: shown(url), reason: causes(error) }
}

/// An error and what is behind it; the client's own text has the URL in it, which may hold a key.
fn causes(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    if causes.is_empty() { "the request failed".to_owned() } else { causes.join(": ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(from: &str, to: &'static str) -> Result<String, String> {
        let from = Url::parse(from).unwrap();
        match next_hop(&from, &HeaderValue::from_static(to)) {
            Ok(url) => Ok(url.into()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn redirects_lead_to_the_web_and_not_out_of_https() {
        assert_eq!(hop("https://a/b/c", "../d"), Ok("https://a/d".into()));
        assert_eq!(hop("http://a/b", "https://c/d?e"), Ok("https://c/d?e".into()));
        assert!(hop("https://a/b?key", "http://a/b").unwrap_err().contains("https to http"));
        assert!(!hop("https://a/b?key", "http://a/b").unwrap_err().contains("key"));
        assert!(hop("http://a/b", "file:///etc/passwd").unwrap_err().contains("not on the web"));
        assert!(hop("http://a/b", "http://[").unwrap_err().contains("no URL"));
    }

    #[test]
    fn a_token_belongs_to_one_host_and_port() {
        let url = |text: &str| Url::parse(text).unwrap();
        assert!(is_host(&url("https://hub.example/x"), "hub.example"));
        assert!(is_host(&url("http://lan:81/x"), "lan:81"));
        assert!(!is_host(&url("http://lan:81/x"), "lan"));
        assert!(!is_host(&url("https://hub.example.evil/x"), "hub.example"));
    }
}
