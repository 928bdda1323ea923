//! The listening sockets that a service manager hands over (socket activation, sd_listen_fds(3)).
//!
//! They stay the manager's: connections that come while no daemon runs wait in the kernel for the next
//! one, and the control socket's file is neither made nor removed here.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use crate::config::HttpConflict;

/// The name of the socket for clients (`FileDescriptorName=`).
const HTTP: &str = "http";

/// The name of the socket for `m40ctl`.
const CONTROL: &str = "control";

/// What was handed over. None blocks.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    pub http: Option<(TcpListener, SocketAddr)>,
    pub control: Option<(UnixListener, PathBuf)>,
}

/// Why sockets of a service manager cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InheritedError {
    #[error(
        "the sockets that the service manager hands over cannot be told: {0} (LISTEN_FDS and \
         LISTEN_FDNAMES say which there are)"
    )]
    Untold(io::Error),
    #[error(
        "the service manager hands over a socket named {name:?}, and m40d knows \"http\" and \
         \"control\": set FileDescriptorName= to one of them in its socket unit"
    )]
    UnknownName { name: String },
    #[error(
        "the service manager hands over two sockets named {name:?}, and m40d serves one: leave one \
         ListenStream= in the socket unit (\"[::]:11434\" is for IPv4 as well)"
    )]
    Twice { name: &'static str },
    #[error(
        "the socket {name:?} of the service manager does not listen for {kind} streams: set \
         ListenStream= to {wanted} in its socket unit, without Accept=yes"
    )]
    WrongKind { name: &'static str, kind: &'static str, wanted: &'static str },
    #[error("the socket \"http\" of the service manager: {0}")]
    Exposed(HttpConflict),
}

impl Inherited {
    /// Takes over what the environment tells of. Before any thread is started, as it is told to this
    /// process only and forgotten.
    pub(crate) fn take() -> Result<Self, InheritedError> {
        let mut taken = Self::default();
        // Names may be there that are for another process.
        if sd_notify::listen_fds().map_err(InheritedError::Untold)?.len() == 0 {
            return Ok(taken);
        }
        let named = sd_notify::listen_fds_with_names().map_err(InheritedError::Untold)?;
        // Each of these descriptors is open, or there was an error.
        let mut sockets = ListenFd::from_env();
        for (index, (_, name)) in named.enumerate() {
            match name.as_str() {
                HTTP => taken.take_http(&mut sockets, index)?,
                CONTROL => taken.take_control(&mut sockets, index)?,
                _ => return Err(InheritedError::UnknownName { name }),
            }
        }
        Ok(taken)
    }

    fn take_http(&mut self, sockets: &mut ListenFd, index: usize) -> Result<(), InheritedError> {
        let wrong =
            InheritedError::WrongKind { name: HTTP, kind: "TCP", wanted: "an address and port" };
        let listener = sockets.take_tcp_listener(index).ok().flatten().filter(listens);
        let with_address = listener.and_then(|listener| {
            listener.set_nonblocking(true).ok()?;
            let address = listener.local_addr().ok()?;
            Some((listener, address))
        });
        match self.http.replace(with_address.ok_or(wrong)?) {
            None => Ok(()),
            Some(_) => Err(InheritedError::Twice { name: HTTP }),
        }
    }

    fn take_control(&mut self, sockets: &mut ListenFd, index: usize) -> Result<(), InheritedError> {
        let wrong =
            InheritedError::WrongKind { name: CONTROL, kind: "Unix", wanted: "an absolute path" };
        let listener = sockets.take_unix_listener(index).ok().flatten().filter(listens);
        let with_path = listener.and_then(|listener| {
            listener.set_nonblocking(true).ok()?;
            let path = listener.local_addr().ok()?.as_pathname()?.to_path_buf();
            Some((listener, path))
        });
        match self.control.replace(with_path.ok_or(wrong)?) {
            None => Ok(()),
            Some(_) => Err(InheritedError::Twice { name: CONTROL }),
        }
    }
}

fn listens(socket: &impl AsFd) -> bool {
    socket_acceptconn(socket).unwrap_or(false)
}
