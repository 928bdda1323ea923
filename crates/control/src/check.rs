//! What `m40d --check-config=json` says of a configuration. It needs no running daemon.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ManifestProblem;

/// A configuration and its manifests, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigCheck {
    /// The configuration file; absent where there is none, and the defaults count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<PathBuf>,
    /// What it says; absent where it is wrong. Then the manifests were not checked, as it says where
    /// they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<Settings>,
    /// The same as a file would say it that leaves no key out, in TOML: what a start would go by. Of
    /// secrets it has the files' names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Names of the models that manifests define.
    pub models: Vec<String>,
    /// All that is wrong, with the configuration file first. Nothing serves instead of what is wrong.
    pub problems: Vec<ManifestProblem>,
}

/// What a configuration says of where things are and who may use them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What computes: `cpu` or `cuda`.
    pub device: String,
    /// Where HTTP listens.
    pub http_listen: SocketAddr,
    /// Whether clients need keys.
    pub http_keys: bool,
    /// Whether HTTP takes TLS.
    pub http_tls: bool,
    /// The control socket.
    pub control_socket: PathBuf,
    /// Where models are kept.
    pub state_dir: PathBuf,
    /// The folder of the manifests.
    pub manifests_dir: PathBuf,
}
