//! Accepting and serving connections, over TCP and the control socket alike, and ending them.
//!
//! ```text
//!   Serving ──SIGTERM──▶ Draining ──all done, or the grace is over──▶ Closing
//!   accept, keep alive   no accept, finish each open response         drop what is left
//! ```

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Extension;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::{debug, warn};

/// How long to wait after a failed `accept` (such as too many open files) before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Most header lines of a request, hyper's own default made explicit.
const HEADERS_MAX: usize = 100;

/// Most bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Where the daemon is in its life, as connections see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    Draining,
    Closing,
}

/// Who is at the other end of a connection; in the request's extensions.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    Tcp,
    Unix(UCred),
}

/// Something to accept connections from.
pub(crate) trait Accept: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, _) = Self::accept(self).await?;
        // Tokens are small writes that must leave at once.
        stream.set_nodelay(true)?;
        Ok((stream, Peer::Tcp))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = Self::accept(self).await?;
        let credentials = stream.peer_cred()?;
        Ok((stream, Peer::Unix(credentials)))
    }
}

/// What bounds the connections of one listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub connections_max: usize,
    pub header_timeout: Duration,
}

/// Serves `listener` until the phase leaves [`Phase::Serving`]. Every connection holds a clone of
/// `alive`, so that the channel's end means that the last one is gone.
pub(crate) async fn serve<L: Accept>(
    listener: L,
    router: Router,
    limits: Limits,
    mut phase: watch::Receiver<Phase>,
    alive: mpsc::Sender<()>,
) {
    let permits = Arc::new(Semaphore::new(limits.connections_max));
    loop {
        let accepted = tokio::select! {
            accepted = accept_one(&listener, &permits) => accepted,
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        let router = router.clone().layer(Extension(peer));
        let (phase, alive) = (phase.clone(), alive.clone());
        tokio::spawn(async move {
            serve_connection(stream, router, limits, phase).await;
            drop((permit, alive));
        });
    }
}

async fn accept_one<L: Accept>(
    listener: &L,
    permits: &Arc<Semaphore>,
) -> Option<(L::Stream, Peer, tokio::sync::OwnedSemaphorePermit)> {
    // Taken before accepting, so that connections over the limit wait in the kernel's queue.
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, permit)),
        Err(error) => {
            warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    router: Router,
    limits: Limits,
    mut phase: watch::Receiver<Phase>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = reached(&mut phase, Phase::Draining) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = reached(&mut phase, Phase::Closing) => return,
            }
        }
    };
    if let Err(error) = ended {
        // A client that goes away or talks nonsense is none of the operator's concern.
        debug!(%error, "a connection ended early");
    }
}

/// Waits until the daemon is at least in this phase.
pub(crate) async fn reached(phase: &mut watch::Receiver<Phase>, at_least: Phase) {
    // An error means that the daemon's state is gone, which is past every phase.
    let _ = phase.wait_for(|phase| *phase >= at_least).await;
}
