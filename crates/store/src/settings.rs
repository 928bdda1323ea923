//! How downloads are made.

use std::time::Duration;

use url::Url;

use crate::secret::Secret;

/// How downloads are made. The defaults are for the public registries and a line of its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Connections of one download, where the origin can send parts of a file.
    pub connections: usize,
    /// Most bytes per second of all downloads together.
    pub bytes_per_s_max: Option<u64>,
    /// How often something is tried in a row without getting further.
    pub tries_max: u32,
    /// Wait before the second try; it doubles with each, and up to half of it is left out by chance.
    pub backoff: Duration,
    /// Longest wait between two tries, also where the origin asks for a longer one.
    pub backoff_max: Duration,
    /// Longest time to get a connection.
    pub connect_timeout: Duration,
    /// Longest time without a byte.
    pub stall_timeout: Duration,
    /// Through whom requests go.
    pub proxy: Proxy,
    /// Where `hf:` sources are.
    pub hugging_face: Url,
    /// Where `ollama:` sources without a host are.
    pub ollama: Url,
    /// What hosts ask for.
    pub tokens: Vec<Token>,
}

/// Through whom requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proxy {
    /// As `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    /// Nobody.
    Direct,
    /// This one, always.
    Url(Url),
}

/// A bearer token for one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The host, or host:port; no other ever gets the token.
    pub host: String,
    /// The token.
    pub secret: Secret,
}

impl Default for Settings {
    fn default() -> Self {
        let url = |text: &str| Url::parse(text).expect("the address is valid");
        Self {
            connections: 4,
            bytes_per_s_max: None,
            tries_max: 8,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(20),
            stall_timeout: Duration::from_secs(30),
            proxy: Proxy::Environment,
            hugging_face: url("https://huggingface.co"),
            ollama: url("https://registry.ollama.ai"),
            tokens: Vec::new(),
        }
    }
}
