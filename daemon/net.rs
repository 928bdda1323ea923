//! Accepting and serving connections, over TCP and the control socket alike, and ending them.
//!
//! ```text
//!   Serving ──SIGTERM──▶ Draining ──all done, or the grace is over──▶ Closing
//!   accept, keep alive   no accept, finish each open response         drop what is left
//! ```

mod leftover;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::UCred;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use crate::config::is_this_machine;

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
    Tcp(IpAddr),
    Unix(UCred),
}

impl Peer {
    /// Whether it is on this machine.
    pub(crate) fn is_here(&self) -> bool {
        match self {
            Self::Tcp(address) => is_this_machine(*address),
            Self::Unix(_) => true,
        }
    }

    /// Whose connections are counted together. One machine has as many addresses of a network of IPv6
    /// as it likes.
    fn client(&self) -> Option<IpAddr> {
        let Self::Tcp(address) = self else { return None };
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                Some(Ipv6Addr::from(network).into())
            }
            address => Some(address),
        }
    }
}

/// Something to accept connections from.
pub(crate) trait Accept: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// What is to be done with the client before there is a stream.
    type Opening: Future<Output = io::Result<Self::Stream>> + Send + 'static;
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Opening, Peer)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;
    type Opening = Ready<io::Result<TcpStream>>;
    async fn accept(&self) -> io::Result<(Self::Opening, Peer)> {
        let (stream, address) = Self::accept(self).await?;
        // Tokens are small writes that must leave at once.
        stream.set_nodelay(true)?;
        Ok((ready(Ok(stream)), Peer::Tcp(address.ip())))
    }
}

/// TCP connections that begin with TLS.
pub(crate) struct TlsListener {
    pub tcp: TcpListener,
    pub acceptor: TlsAcceptor,
}

impl Accept for TlsListener {
    type Stream = TlsStream<TcpStream>;
    type Opening = tokio_rustls::Accept<TcpStream>;
    async fn accept(&self) -> io::Result<(Self::Opening, Peer)> {
        let (stream, address) = self.tcp.accept().await?;
        stream.set_nodelay(true)?;
        Ok((self.acceptor.accept(stream), Peer::Tcp(address.ip())))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;
    type Opening = Ready<io::Result<UnixStream>>;
    async fn accept(&self) -> io::Result<(Self::Opening, Peer)> {
        let (stream, _) = Self::accept(self).await?;
        let credentials = stream.peer_cred()?;
        Ok((ready(Ok(stream)), Peer::Unix(credentials)))
    }
}

/// What bounds the connections of one listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub connections_max: usize,
    /// Most connections of one client.
    pub client_connections_max: usize,
    /// How long TLS may take to begin, and each head of a request to come.
    pub header_timeout: Duration,
    /// How long a client may take nothing of what is sent to it; `None` means as long as it likes.
    pub write_timeout: Option<Duration>,
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
    let clients = Clients::new(limits.client_connections_max);
    loop {
        let accepted = tokio::select! {
            // What comes after the end began is for whoever listens on the socket then.
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
            accepted = accept_one(&listener, &permits) => accepted,
        };
        let Some((opening, peer, permit)) = accepted else { continue };
        let Some(counted) = clients.count(&peer) else {
            debug!(?peer, "a client has too many connections");
            continue;
        };
        let (router, phase, alive) = (router.clone(), phase.clone(), alive.clone());
        tokio::spawn(async move {
            match timeout(limits.header_timeout, opening).await {
                Ok(Ok(stream)) => serve_connection(stream, peer, router, limits, phase).await,
                Ok(Err(error)) => debug!(%error, "a connection did not begin"),
                Err(_) => debug!("a connection did not begin in time"),
            }
            drop((permit, counted, alive));
        });
    }
}

/// How many connections each client has.
#[derive(Debug, Clone)]
struct Clients {
    max: usize,
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

impl Clients {
    fn new(max: usize) -> Self {
        Self { max, counts: Arc::default() }
    }

    /// Counts one more until what this returns is dropped; `None` when the client has as many as it may.
    fn count(&self, peer: &Peer) -> Option<CountedClient> {
        let client = peer.client();
        if let Some(client) = client {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(client).or_default();
            if *count >= self.max {
                return None;
            }
            *count += 1;
        }
        Some(CountedClient { clients: self.clone(), client })
    }
}

/// A connection that counts.
#[derive(Debug)]
struct CountedClient {
    clients: Clients,
    /// Absent where connections are not counted by client.
    client: Option<IpAddr>,
}

impl Drop for CountedClient {
    fn drop(&mut self) {
        let Some(client) = self.client else { return };
        let mut counts = self.clients.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut entry) = counts.entry(client) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

async fn accept_one<L: Accept>(
    listener: &L,
    permits: &Arc<Semaphore>,
) -> Option<(L::Opening, Peer, OwnedSemaphorePermit)> {
    // Taken before accepting, so that connections over the limit wait in the kernel's queue.
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((opening, peer)) => Some((opening, peer, permit)),
        Err(error) => {
            warn!(%error, "cannot accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn serve_connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    peer: Peer,
    router: Router,
    limits: Limits,
    mut phase: watch::Receiver<Phase>,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(limits.write_timeout);
    let (asked, mut was_asked) = watch::channel(false);
    let router = TowerToHyperService::new(router);
    let now = phase.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        asked.send_replace(true);
        let (head, body) = request.into_parts();
        let (body, leftover) = leftover::lend(body);
        let mut request = Request::from_parts(head, body);
        // As a layer of the router it would be put around each of its routes, for every connection.
        request.extensions_mut().insert(peer.clone());
        let (response, now) = (router.call(request), now.clone());
        async move {
            let mut response = response.await?;
            if !leftover.read().await || *now.borrow() != Phase::Serving {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        // Who was accepted is answered, and be it that the daemon stops: hyper would close a connection
        // on which nothing has come yet.
        () = async {
            reached(&mut phase, Phase::Draining).await;
            let _ = was_asked.wait_for(|asked| *asked).await;
        } => {
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
