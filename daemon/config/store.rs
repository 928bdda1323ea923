//! `[store]`: how files are downloaded.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use m40_control::paths::Env;
use m40_store::{Proxy, Secret, Settings, Token};
use serde::de;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use super::raw::Bounded;
use super::secret::SecretFile;
use crate::exit::Failure;

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawStore {
    connections: Bounded<1, 32>,
    rate_mib_per_s_max: Bounded<0, 1_000_000>,
    tries_max: Bounded<1, 1000>,
    retry_wait_s_max: Bounded<1, 3600>,
    connect_timeout_s: Bounded<1, 600>,
    stall_timeout_s: Bounded<1, 3600>,
    proxy: RawProxy,
    hugging_face: WebAddress,
    ollama: WebAddress,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tokens: BTreeMap<String, SecretFile>,
}

impl Default for RawStore {
    fn default() -> Self {
        let plain = Settings::default();
        Self {
            connections: Bounded(4),
            rate_mib_per_s_max: Bounded(0),
            tries_max: Bounded(plain.tries_max),
            retry_wait_s_max: Bounded(60),
            connect_timeout_s: Bounded(20),
            stall_timeout_s: Bounded(30),
            proxy: RawProxy(plain.proxy),
            hugging_face: WebAddress(plain.hugging_face),
            ollama: WebAddress(plain.ollama),
            tokens: BTreeMap::new(),
        }
    }
}

/// How files are downloaded, but for the tokens, which are read when the store is opened: a
/// configuration can be checked by who may not read them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Store {
    settings: Settings,
    /// Of each host.
    tokens: BTreeMap<String, SecretFile>,
}

impl From<RawStore> for Store {
    fn from(raw: RawStore) -> Self {
        let seconds = |value: u64| Duration::from_secs(value);
        let settings = Settings {
            connections: raw.connections.to_usize(),
            bytes_per_s_max: Some(raw.rate_mib_per_s_max.get() << 20).filter(|&rate| rate > 0),
            tries_max: raw.tries_max.to_u32(),
            backoff_max: seconds(raw.retry_wait_s_max.get()),
            connect_timeout: seconds(raw.connect_timeout_s.get()),
            stall_timeout: seconds(raw.stall_timeout_s.get()),
            proxy: raw.proxy.0,
            hugging_face: raw.hugging_face.0,
            ollama: raw.ollama.0,
            ..Settings::default()
        };
        Self { settings, tokens: raw.tokens }
    }
}

impl Store {
    /// The settings with the tokens, which this reads.
    pub(crate) fn settings(&self, env: &Env) -> Result<Settings, Failure> {
        let token = |(host, file): (&String, &SecretFile)| {
            let secret = Secret::from_file(&file.path("store.tokens", env)?);
            let secret = secret.map_err(|source| Failure::Token {
                host: host.clone(),
                reason: source.to_string(),
            })?;
            Ok(Token { host: host.clone(), secret })
        };
        let tokens = self.tokens.iter().map(token).collect::<Result<_, Failure>>()?;
        Ok(Settings { tokens, ..self.settings.clone() })
    }
}

/// `environment`, `none`, or an HTTP address.
#[derive(Debug, Clone)]
struct RawProxy(Proxy);

impl<'de> Deserialize<'de> for RawProxy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "environment" => Ok(Self(Proxy::Environment)),
            "none" => Ok(Self(Proxy::Direct)),
            address => web_address(address, &"\"environment\", \"none\" or an address")
                .map(Proxy::Url)
                .map(Self),
        }
    }
}

impl Serialize for RawProxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Proxy::Environment => serializer.serialize_str("environment"),
            Proxy::Direct => serializer.serialize_str("none"),
            Proxy::Url(address) => serializer.collect_str(address),
        }
    }
}

#[derive(Debug, Clone)]
struct WebAddress(Url);

impl Serialize for WebAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for WebAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        web_address(&text, &"an address").map(Self)
    }
}

fn web_address<E: de::Error>(text: &str, what: &dyn fmt::Display) -> Result<Url, E> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    // The text is left out: it may have a password in it.
    let expected = format!("must be {what} such as \"https://host.example:8080\"");
    match url {
        Some(url) if url.username().is_empty() && url.password().is_none() => Ok(url),
        Some(_) => Err(E::custom(format!(
            "{expected}, without a password: HTTPS_PROXY in the environment may have one"
        ))),
        None => Err(E::custom(expected)),
    }
}
