//! Everything that listens: as a service manager handed it over, or bound here as is configured.

use std::io;

use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::config::{Config, Control, Http};
use crate::exit::Failure;
use crate::inherited::{Inherited, InheritedError};
use crate::socket::{self, Access, SocketFile};

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 1024;

/// Sockets that listen.
#[derive(Debug)]
pub(crate) struct Listeners {
    pub http: TcpListener,
    pub control: UnixListener,
    /// Absent where the file is the service manager's.
    pub control_file: Option<SocketFile>,
    /// The configuration with the addresses of these sockets.
    pub config: Config,
}

impl Listeners {
    /// Within a runtime.
    pub(crate) fn new(
        config: &Config,
        access: &Access,
        inherited: Inherited,
    ) -> Result<Self, Failure> {
        let (http, at) = match inherited.http {
            Some((listener, address)) => {
                let at = config.http.clone().at(address).map_err(InheritedError::Exposed)?;
                (TcpListener::from_std(listener).map_err(unusable)?, at)
            }
            None => bind_http(&config.http)?,
        };
        let (control, socket, control_file) = match inherited.control {
            Some((listener, path)) => {
                (UnixListener::from_std(listener).map_err(unusable)?, path, None)
            }
            None => {
                let (listener, file) = socket::bind(&config.control, access)?;
                (listener, config.control.socket.clone(), Some(file))
            }
        };
        let control_at = Control { socket, ..config.control.clone() };
        let config = Config { http: at, control: control_at, ..config.clone() };
        Ok(Self { http, control, control_file, config })
    }
}

fn unusable(source: io::Error) -> Failure {
    Failure::System { action: "wait for connections", source }
}

fn bind_http(config: &Http) -> Result<(TcpListener, Http), Failure> {
    let address = config.listen;
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // So that a restart need not wait for old connections to time out.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let listener = bind().map_err(|source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => Failure::AddressInUse { address },
        io::ErrorKind::AddrNotAvailable => Failure::AddressAbsent { address },
        io::ErrorKind::PermissionDenied => Failure::AddressForbidden { address },
        _ => Failure::Listen { address, source },
    })?;
    let listen = listener
        .local_addr()
        .map_err(|source| Failure::System { action: "read the bound address", source })?;
    let mut at = config.clone();
    at.listen = listen;
    Ok((listener, at))
}
