//! `[http]`: where clients connect, who may, and what they may cost.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderValue;
use axum::http::uri::Authority;
use serde::de;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use super::raw::{Bounded, ListenAddress};
use super::secret::SecretFile;

/// Most names or origins in a list.
const LIST_MAX: usize = 256;

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawHttp {
    listen: ListenAddress,
    insecure: bool,
    keys: Option<SecretFile>,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<SecretFile>,
    hosts: Names,
    cors_origins: RawOrigins,
    metrics: MetricsFor,
    connections_max: Bounded<1, 65_536>,
    client_connections_max: Bounded<1, 65_536>,
    body_mib_max: Bounded<1, 1024>,
    header_timeout_s: Bounded<1, 3600>,
    body_timeout_s: Bounded<1, 3600>,
    write_timeout_s: Bounded<1, 3600>,
    allow_model_management: bool,
}

impl Default for RawHttp {
    fn default() -> Self {
        Self {
            listen: ListenAddress(SocketAddr::from(([127, 0, 0, 1], 11434))),
            insecure: false,
            keys: None,
            tls_certificate: None,
            tls_key: None,
            hosts: Names(Vec::new()),
            cors_origins: RawOrigins(Origins::Listed(Vec::new())),
            metrics: MetricsFor::ThisMachine,
            connections_max: Bounded(512),
            client_connections_max: Bounded(256),
            body_mib_max: Bounded(16),
            header_timeout_s: Bounded(60),
            body_timeout_s: Bounded(60),
            write_timeout_s: Bounded(60),
            allow_model_management: false,
        }
    }
}

/// The HTTP listener.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Http {
    pub listen: SocketAddr,
    /// Whether other machines may come without keys.
    insecure: bool,
    /// The file of API keys; without it nobody needs one.
    pub keys: Option<SecretFile>,
    pub tls: Option<Tls>,
    /// Names by which clients may call this machine, in lower case, besides its own.
    pub hosts: Vec<String>,
    pub cors_origins: Origins,
    pub metrics: MetricsFor,
    pub connections_max: usize,
    pub client_connections_max: usize,
    pub body_bytes_max: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    /// How long a client may take nothing of what is sent to it.
    pub write_timeout: Duration,
    /// Whether clients may add and remove models.
    pub allow_model_management: bool,
}

/// Where the daemon's certificate is, and the key to it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tls {
    pub certificate: PathBuf,
    pub key: SecretFile,
}

/// Pages of which sites may use the daemon from a browser.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Origins {
    Any,
    Listed(Vec<HeaderValue>),
}

/// Who may read the metrics without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MetricsFor {
    ThisMachine,
    Keys,
    Anybody,
}

/// Two keys that contradict each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HttpConflict {
    #[error(
        "http.listen: other machines can reach {0}, and no key is asked of them: set [http] keys \
         (`m40ctl key new NAME` makes one), or insecure = true to serve whoever comes"
    )]
    Exposed(SocketAddr),
    #[error("http.tls_certificate and http.tls_key belong together: set both, or neither")]
    HalfTls,
}

impl RawHttp {
    pub(super) fn resolve(self) -> Result<Http, HttpConflict> {
        let tls = match (self.tls_certificate, self.tls_key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some(Tls { certificate, key }),
            _ => return Err(HttpConflict::HalfTls),
        };
        let seconds = |value: u64| Duration::from_secs(value);
        let http = Http {
            listen: self.listen.0,
            insecure: self.insecure,
            keys: self.keys,
            tls,
            hosts: self.hosts.0,
            cors_origins: self.cors_origins.0,
            metrics: self.metrics,
            connections_max: self.connections_max.to_usize(),
            client_connections_max: self.client_connections_max.to_usize(),
            body_bytes_max: self.body_mib_max.to_usize() << 20,
            header_timeout: seconds(self.header_timeout_s.get()),
            body_timeout: seconds(self.body_timeout_s.get()),
            write_timeout: seconds(self.write_timeout_s.get()),
            allow_model_management: self.allow_model_management,
        };
        http.at(self.listen.0)
    }
}

impl Http {
    /// The same at another address, unless other machines can reach that and nothing says that they may.
    pub(crate) fn at(self, listen: SocketAddr) -> Result<Self, HttpConflict> {
        if self.keys.is_none() && !self.insecure && !is_this_machine(listen.ip()) {
            return Err(HttpConflict::Exposed(listen));
        }
        Ok(Self { listen, ..self })
    }
}

/// Whether only this machine has the address.
pub(crate) fn is_this_machine(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Names of hosts, without ports.
#[derive(Debug, Clone, Serialize)]
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = list(deserializer)?;
        let check = |name: String| {
            let legal = name.parse::<Authority>().is_ok_and(|parsed| parsed.host() == name);
            let text = format!("{name:?} is not the name of a host, such as \"box.lan\"");
            if legal { Ok(name.to_ascii_lowercase()) } else { Err(de::Error::custom(text)) }
        };
        names.into_iter().map(check).collect::<Result<_, _>>().map(Self)
    }
}

#[derive(Debug, Clone)]
struct RawOrigins(Origins);

impl<'de> Deserialize<'de> for RawOrigins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = list(deserializer)?;
        if texts.iter().any(|text| text == "*") {
            return Ok(Self(Origins::Any));
        }
        let check = |text: String| {
            // Browsers send it as it is here: without a path, not even `/`.
            let is_origin = Url::parse(&text).is_ok_and(|url| {
                let path = text.split_once("://").map_or("/", |(_, rest)| rest);
                url.has_host() && !path.contains(['/', '?', '#', '@'])
            });
            HeaderValue::from_str(&text).ok().filter(|_| is_origin).ok_or_else(|| {
                de::Error::custom(format!(
                    "{text:?} is not an origin, such as \"https://chat.example:8080\", nor \"*\""
                ))
            })
        };
        let listed = texts.into_iter().map(check).collect::<Result<_, _>>()?;
        Ok(Self(Origins::Listed(listed)))
    }
}

impl Serialize for RawOrigins {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Origins::Any => serializer.collect_seq(["*"]),
            // Each was text when it was read.
            Origins::Listed(origins) => {
                serializer.collect_seq(origins.iter().filter_map(|origin| origin.to_str().ok()))
            }
        }
    }
}

fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    if texts.len() <= LIST_MAX {
        return Ok(texts);
    }
    Err(de::Error::custom(format!("{} are too many, the most is {LIST_MAX}", texts.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(text: &str) -> Result<Http, String> {
        let raw: RawHttp = toml::from_str(text).map_err(|error| error.message().to_owned())?;
        raw.resolve().map_err(|error| error.to_string())
    }

    #[track_caller]
    fn refused(text: &str, says: &str) {
        let error = http(text).unwrap_err();
        assert!(error.contains(says) && !error.contains('\n'), "{text}: {error}");
    }

    #[test]
    fn other_machines_need_a_key_unless_told_otherwise() {
        for address in ["0.0.0.0:1", "192.168.1.2:1", "[::]:1", "[fe80::1]:1", "[::ffff:8.8.8.8]:1"]
        {
            let listen = format!("listen = {address:?}\n");
            refused(&listen, "insecure = true");
            assert!(http(&format!("{listen}insecure = true")).is_ok());
            assert!(http(&format!("{listen}keys = \"/etc/m40d/keys.toml\"")).is_ok());
        }
        for address in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(http(&format!("listen = {address:?}")).is_ok(), "{address}");
        }
    }

    #[test]
    fn names_and_origins_are_checked() {
        assert_eq!(
            http("hosts = [\"Box.LAN\", \"10.0.0.1\"]").unwrap().hosts,
            ["box.lan", "10.0.0.1"]
        );
        for bad in ["a:80", "a/b", "u@a", "", "a b"] {
            refused(&format!("hosts = [{bad:?}]"), "not the name of a host");
        }
        let origins = |text: &str| http(text).map(|http| http.cors_origins);
        assert_eq!(origins("cors_origins = [\"*\"]"), Ok(Origins::Any));
        let listed = origins("cors_origins = [\"https://a.example:8080\", \"app://obsidian.md\"]");
        assert!(matches!(listed, Ok(Origins::Listed(list)) if list.len() == 2));
        for bad in ["a.example", "https://a.example/", "null", "https://u@a.example"] {
            refused(&format!("cors_origins = [{bad:?}]"), "not an origin");
        }
    }

    #[test]
    fn a_certificate_comes_with_its_key() {
        refused("tls_certificate = \"/c.pem\"", "belong together");
        refused("tls_key = \"/k.pem\"", "belong together");
        assert!(http("tls_certificate = \"/c.pem\"\ntls_key = \"k\"").unwrap().tls.is_some());
    }
}
