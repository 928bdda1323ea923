//! Why the daemon did not start or did not end well, and the one place where that becomes an
//! exit code. The codes are those of sysexits.h, so that systemd prints their names.
//!
//! | code | when |
//! |---|---|
//! | 0 | stopped as asked, or `--version`, `--help`, `--check-config` of a good file, `--check-gpu` of a good GPU |
//! | 64 | wrong command line |
//! | 69 | the HTTP address, the control socket or the state folder is in use by another process; no usable GPU for `--check-gpu` or `engine.device = "cuda"` |
//! | 70 | a bug |
//! | 71 | the GPU stopped working for the process: a restart may help |
//! | 73 | a folder, file or socket cannot be created |
//! | 75 | the machine does not have the HTTP address, which may come yet |
//! | 77 | not permitted to bind the address |
//! | 78 | the configuration, or for `--check-config` a manifest, is wrong; or it asks for a device that this build does not have; or a socket of the service manager cannot be used |

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use m40_control::ManifestProblem;
use m40_control::paths::PathError;

use crate::config::ConfigError;
use crate::inherited::InheritedError;
use crate::keys::KeysError;
use crate::tls::TlsError;

/// What ended the daemon.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("{}", listed(.0))]
    Manifests(Vec<ManifestProblem>),
    #[error("{0}")]
    Paths(#[from] PathError),
    #[error("engine.device is \"cuda\": {0}; set it to \"cpu\" to do without a GPU")]
    Device(m40llm::GpuError),
    #[error("the GPU failed: {0}")]
    DeviceLost(m40llm::GpuError),
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    #[error(transparent)]
    Gpu(#[from] m40llm::GpuError),
    #[error("control.group: there is no group {group:?}: create it or name another")]
    NoGroup { group: String },
    #[error("cannot look up the group {group:?}: {source}")]
    GroupLookup { group: String, source: nix::Error },
    #[error(
        "http.listen: {address} is in use by another process: stop it, or set another address \
         in [http] listen (`ss -ltnp` shows who has it)"
    )]
    AddressInUse { address: SocketAddr },
    #[error("store.tokens: the token for {host}: {reason}")]
    Token { host: String, reason: String },
    #[error(
        "{key}: {name:?} is the name of a credential, and there are none: name an absolute \
         path, or set LoadCredential= in the unit"
    )]
    NoCredentials { key: &'static str, name: String },
    #[error("http.keys: {0}")]
    Keys(#[from] KeysError),
    #[error("http.tls_certificate: {0}")]
    Tls(#[from] TlsError),
    #[error("http.listen: not permitted to listen on {address}: use a port above 1023")]
    AddressForbidden { address: SocketAddr },
    #[error(
        "http.listen: this machine does not have the address of {address}: set another one in [http] \
         listen, or try again when it has (`ip address` lists them)"
    )]
    AddressAbsent { address: SocketAddr },
    #[error("http.listen: cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("another m40d answers on {}: stop it first, or set [control] socket", socket.display())]
    SocketInUse { socket: PathBuf },
    #[error("{} is in the way of the control socket and is no socket: remove it", path.display())]
    NotASocket { path: PathBuf },
    #[error("the state folder {} is in use by another m40d: stop it, or set [paths] state_dir", dir.display())]
    StateInUse { dir: PathBuf },
    #[error("cannot {action} {}: {source}", path.display())]
    Create { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {action}: {source}")]
    System { action: &'static str, source: io::Error },
}

impl Failure {
    /// What is wrong with the configuration, for programs; of anything else it names no file.
    pub(crate) fn problem(&self) -> ManifestProblem {
        match self {
            Self::Config(error) => error.problem(),
            other => ManifestProblem {
                file: PathBuf::new(),
                place: None,
                message: other.to_string(),
                serving_old: false,
            },
        }
    }

    fn code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Manifests(_)
            | Self::Paths(_)
            | Self::Inherited(_)
            | Self::NoGroup { .. }
            | Self::Token { .. }
            | Self::NoCredentials { .. }
            | Self::Keys(_)
            | Self::Tls(_) => 78,
            Self::Device(error) if error.is_of_build() => 78,
            Self::AddressInUse { .. }
            | Self::SocketInUse { .. }
            | Self::StateInUse { .. }
            | Self::Device(_)
            | Self::Gpu(_) => 69,
            Self::DeviceLost(_) => 71,
            Self::AddressAbsent { .. } => 75,
            Self::AddressForbidden { .. } => 77,
            Self::Listen { .. } | Self::NotASocket { .. } | Self::Create { .. } => 73,
            Self::GroupLookup { .. } | Self::System { .. } => 70,
        }
    }
}

/// Each problem in a line.
fn listed(problems: &[ManifestProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        Self::from(failure.code())
    }
}

/// The exit code of a wrong command line.
pub(crate) const USAGE: u8 = 64;

#[cfg(test)]
mod tests {
    use m40llm::GpuError;

    use super::*;

    #[test]
    fn a_gpu_that_is_not_there_does_not_come_by_trying_again_and_a_lost_one_may() {
        let absent = GpuError::NoMemory { free: 0, total: 1 << 30 };
        assert_eq!(Failure::Device(GpuError::NoKernels).code(), 78);
        assert_eq!(Failure::Device(GpuError::NoBackend).code(), 78);
        assert_eq!(Failure::Device(absent.clone()).code(), 69);
        assert_eq!(Failure::Gpu(GpuError::NoKernels).code(), 69);
        assert_eq!(Failure::DeviceLost(absent).code(), 71);
    }

    #[test]
    fn systemd_tries_again_what_may_be_better_then() {
        let address = SocketAddr::from(([192, 0, 2, 1], 80));
        let unit = include_str!("../packaging/systemd/m40d.service");
        let prevented =
            unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus="));
        let prevented: Vec<_> = prevented.expect("it is there").split(' ').collect();
        let is_tried = |failure: Failure| !prevented.contains(&failure.code().to_string().as_str());
        assert!(is_tried(Failure::AddressAbsent { address }));
        assert!(is_tried(Failure::DeviceLost(GpuError::NoKernels)));
        assert!(!is_tried(Failure::AddressInUse { address }));
        assert!(!is_tried(Failure::AddressForbidden { address }));
        assert!(!is_tried(Failure::NotASocket { path: PathBuf::new() }));
        assert!(!is_tried(Failure::NoGroup { group: String::new() }));
    }
}
