//! A real HTTP origin for tests of downloads: files with ranges and validators, what Hugging Face
//! and Ollama's registry answer about them, and everything that can go wrong on the way.
//!
//! A fault that was put on a path is for one request to it; of several each has its turn.

mod registries;
mod reply;

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use registries::Layer;
use reply::Body;

/// How long a test waits for something to happen at the origin before it fails.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection breaks after so many bytes of the body.
    ResetAfter(u64),
    /// Nothing more comes after so many bytes of the body, until [`Origin::release`].
    HoldAfter(u64),
    /// The whole file with status 200, whatever was asked for.
    IgnoreRange,
    /// Status 206 and the right headers with bytes of another place of the file.
    LieAboutBytes,
    /// Status 206 with a range in its headers that was not asked for.
    LieAboutRange,
    /// A page for people, with status 200.
    Html,
    /// The file with only so many bytes.
    Short(u64),
    /// The file with so many more bytes.
    Long(u64),
    /// The byte at this place of the file is another.
    Corrupt(u64),
    /// No length is said beforehand.
    Chunked,
    /// A status and perhaps `Retry-After`.
    Status(u16, Option<&'static str>),
    /// Another address.
    Redirect(String),
    /// None: a turn that goes well.
    Nothing,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its method.
    pub method: String,
    /// Its path, without a query.
    pub path: String,
    /// Header names in lower case, with their values.
    pub headers: Vec<(String, String)>,
}

impl Seen {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A file at the origin.
#[derive(Debug, Clone)]
struct Content {
    bytes: Bytes,
    etag: Option<String>,
    content_type: &'static str,
    headers: Vec<(&'static str, String)>,
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<String, Content>,
    faults: BTreeMap<String, VecDeque<Fault>>,
    always: BTreeMap<String, Fault>,
    seen: Vec<Seen>,
    holding: usize,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    happened: Condvar,
    released: watch::Sender<u64>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// A running origin. It is gone when this is dropped.
#[derive(Debug)]
pub struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Origin {
    /// Starts one on a free port of this machine.
    ///
    /// # Panics
    /// When there is no port or thread to be had; so for every method here.
    pub fn start() -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            happened: Condvar::new(),
            released: watch::Sender::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let served = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, served) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Its address and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a path here.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Puts a file at a path, in the place of what was there.
    pub fn file(&self, path: &str, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        let etag = Some(format!("\"{}-{}\"", path.len(), bytes.len()));
        self.put(path, bytes, etag, "application/octet-stream", Vec::new());
    }

    /// Gives the file at a path another validator, or none.
    pub fn set_etag(&self, path: &str, etag: Option<&str>) {
        let mut state = self.shared.state();
        let content = state.files.get_mut(path).expect("the file must be there");
        content.etag = etag.map(str::to_owned);
    }

    fn put(
        &self,
        path: &str,
        bytes: Bytes,
        etag: Option<String>,
        content_type: &'static str,
        headers: Vec<(&'static str, String)>,
    ) {
        let content = Content { bytes, etag, content_type, headers };
        self.shared.state().files.insert(path.to_owned(), content);
    }

    /// Puts a fault on the next request to a path that has none yet.
    pub fn fault(&self, path: &str, fault: Fault) {
        self.shared.state().faults.entry(path.to_owned()).or_default().push_back(fault);
    }

    /// Puts a fault on every request to a path.
    pub fn always(&self, path: &str, fault: Fault) {
        self.shared.state().always.insert(path.to_owned(), fault);
    }

    /// Takes all faults back.
    pub fn heal(&self) {
        let mut state = self.shared.state();
        state.faults.clear();
        state.always.clear();
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state().seen.clone()
    }

    /// The requests to a path so far.
    pub fn seen_at(&self, path: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.path == path).collect()
    }

    /// Waits until so many replies are held.
    pub fn wait_for_held(&self, count: usize) {
        self.wait_for("held replies", |state| state.holding >= count);
    }

    /// Replies that have been held so far.
    pub fn held(&self) -> usize {
        self.shared.state().holding
    }

    /// Waits until so many requests came to a path.
    pub fn wait_for_requests(&self, path: &str, count: usize) {
        let to_path = |state: &State| state.seen.iter().filter(|seen| seen.path == path).count();
        self.wait_for("requests", |state| to_path(state) >= count);
    }

    fn wait_for(&self, what: &str, happened: impl Fn(&State) -> bool) {
        let state = self.shared.state();
        let wait =
            self.shared.happened.wait_timeout_while(state, TIMEOUT, |state| !happened(state));
        let (state, timeout) = wait.unwrap_or_else(|poison| poison.into_inner());
        assert!(!timeout.timed_out(), "no {what} within {TIMEOUT:?}: {:?}", *state);
    }

    /// Lets all replies that are held go on.
    pub fn release(&self) {
        self.shared.released.send_modify(|times| *times += 1);
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, &request)) }
            });
            // A connection ends with an error where that is the fault.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

fn answer(shared: &Arc<Shared>, request: &Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let headers = request.headers().iter();
    let headers: Vec<(String, String)> = headers
        .map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        })
        .collect();
    let seen = Seen { method: request.method().to_string(), path: path.clone(), headers };
    let mut state = shared.state();
    state.seen.push(seen.clone());
    let fault = state.faults.get_mut(&path).and_then(VecDeque::pop_front);
    let fault = fault.or_else(|| state.always.get(&path).cloned()).unwrap_or(Fault::Nothing);
    let content = state.files.get(&path).cloned();
    drop(state);
    shared.happened.notify_all();
    reply::reply(shared, &seen, content, &fault, request.method() == Method::HEAD)
}
