//! The client side: one connection per request over the Unix socket.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::{
    AdoptEvent, AdoptRequest, ApiError, BenchEvent, BenchRequest, CancelRequest, ErrorBody,
    LoadRequest, LogLevel, LogRequest, ModelDetails, ModelEntry, ModelList, NameRequest, Plan,
    PlanRequest, PruneRequest, Pruned, PullEvent, PullRequest, QueueEntry, QueueList, Reload,
    ReloadRequest, Removed, RunEvent, RunRequest, Status, UnloadRequest, VerifyEvent,
    VerifyRequest, Vram,
};

/// Longest answer, and longest line of a streamed one, that the client takes. Far above what a
/// daemon sends, and a bound on what something else on the socket can make a client hold.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Why a control request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("m40d is not running (nothing listens on {})", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// Why connecting failed.
        source: io::Error,
    },
    /// The socket is there and this user may not open it.
    #[error("no permission to use the control socket {}", socket.display())]
    Permission {
        /// The socket.
        socket: PathBuf,
    },
    /// Connecting failed in another way.
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or what came back is not HTTP.
    #[error("the connection to m40d broke: {0}")]
    Http(#[from] hyper::Error),
    /// The answer is not what this version of the client understands.
    #[error("m40d sent something that this client does not understand: {0}")]
    Protocol(String),
    /// The stream of events ended without its last event.
    #[error("m40d closed the connection before the answer was complete")]
    Closed,
    /// The daemon answered with an error.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Speaks to the daemon behind one control socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon behind `socket`. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The socket that this client uses.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the daemon is doing.
    ///
    /// # Errors
    /// Any [`ClientError`]; so for every method here.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.call::<(), _>(Method::GET, "/status", None).await
    }

    /// All models, stored and loaded.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn models(&self) -> Result<ModelList, ClientError> {
        self.call::<(), _>(Method::GET, "/models", None).await
    }

    /// Gets a model from wherever it is. When the events are dropped, a download ends that no manifest
    /// wants; what came of it is kept.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn pull(&self, request: &PullRequest) -> Result<Events<PullEvent>, ClientError> {
        self.stream("/models/pull", request).await
    }

    /// All that is known of a model.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn show(&self, request: &NameRequest) -> Result<ModelDetails, ClientError> {
        self.call(Method::POST, "/models/show", Some(request)).await
    }

    /// Removes a model from the disk.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn remove(&self, request: &NameRequest) -> Result<Removed, ClientError> {
        self.call(Method::POST, "/models/remove", Some(request)).await
    }

    /// Removes the files that no model needs, or says which those are.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn prune(&self, request: &PruneRequest) -> Result<Pruned, ClientError> {
        self.call(Method::POST, "/prune", Some(request)).await
    }

    /// Hashes stored files again. When the events are dropped, it ends after the file at hand.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn verify(
        &self,
        request: &VerifyRequest,
    ) -> Result<Events<VerifyEvent>, ClientError> {
        self.stream("/verify", request).await
    }

    /// Takes in the models of another program. It goes on when the events are dropped.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn adopt(&self, request: &AdoptRequest) -> Result<Events<AdoptEvent>, ClientError> {
        self.stream("/adopt", request).await
    }

    /// Loads a model and waits for it; it goes on loading when the future is dropped.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn load(&self, request: &LoadRequest) -> Result<ModelEntry, ClientError> {
        self.call(Method::POST, "/models/load", Some(request)).await
    }

    /// Unloads a model and waits until it is out of memory.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn unload(&self, request: &UnloadRequest) -> Result<ModelEntry, ClientError> {
        self.call(Method::POST, "/models/unload", Some(request)).await
    }

    /// What would happen if a model was asked for now.
    ///
    /// # Errors
    /// Any [`ClientError`]. That it would be refused is none: the plan says so.
    pub async fn plan(&self, request: &PlanRequest) -> Result<Plan, ClientError> {
        self.call(Method::POST, "/models/plan", Some(request)).await
    }

    /// The requests that wait or run.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn queue(&self) -> Result<QueueList, ClientError> {
        self.call::<(), _>(Method::GET, "/queue", None).await
    }

    /// Ends a request that waits or runs.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn cancel(&self, request: &CancelRequest) -> Result<QueueEntry, ClientError> {
        self.call(Method::POST, "/queue/cancel", Some(request)).await
    }

    /// Who holds which bytes of the memory that models share.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn vram(&self) -> Result<Vram, ClientError> {
        self.call::<(), _>(Method::GET, "/vram", None).await
    }

    /// Rereads the manifests, or says what that would change.
    ///
    /// # Errors
    /// Any [`ClientError`]. A wrong manifest is none: the answer tells of it.
    pub async fn reload(&self, request: &ReloadRequest) -> Result<Reload, ClientError> {
        self.call(Method::POST, "/reload", Some(request)).await
    }

    /// What the daemon logs.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn log_level(&self) -> Result<LogLevel, ClientError> {
        self.call::<(), _>(Method::GET, "/log", None).await
    }

    /// Has it log something else until it ends.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn set_log_level(&self, request: &LogRequest) -> Result<LogLevel, ClientError> {
        self.call(Method::POST, "/log", Some(request)).await
    }

    /// Measures a model. Dropping the events ends it after the line that is being measured.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn bench(&self, request: &BenchRequest) -> Result<Events<BenchEvent>, ClientError> {
        self.stream("/models/bench", request).await
    }

    /// Asks a model. Dropping the events stops the answer.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn run(&self, request: &RunRequest) -> Result<Events<RunEvent>, ClientError> {
        self.stream("/run", request).await
    }

    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: Method,
        route: &str,
        body: Option<&Q>,
    ) -> Result<A, ClientError> {
        let (response, connection) = self.send(method, route, body).await?;
        let body = collect(response.into_body()).await?;
        drop(connection);
        serde_json::from_slice(&body).map_err(|error| ClientError::Protocol(error.to_string()))
    }

    async fn stream<Q: Serialize, E: DeserializeOwned>(
        &self,
        route: &str,
        body: &Q,
    ) -> Result<Events<E>, ClientError> {
        let (response, connection) = self.send(Method::POST, route, Some(body)).await?;
        Ok(Events {
            body: response.into_body(),
            buffer: BytesMut::new(),
            ended: false,
            _connection: connection,
            _event: PhantomData,
        })
    }

    async fn send<Q: Serialize>(
        &self,
        method: Method,
        route: &str,
        body: Option<&Q>,
    ) -> Result<(Response<Incoming>, Connection), ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // The connection's own error reaches the request or the body as well.
        let connection = Connection(tokio::spawn(async move { drop(connection.await) }));
        let request = build_request(method, route, body)?;
        let response = sender.send_request(request).await?;
        if response.status() == StatusCode::OK {
            return Ok((response, connection));
        }
        let status = response.status();
        let body = collect(response.into_body()).await?;
        Err(match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => ClientError::Api(body.error),
            Err(_) => ClientError::Protocol(format!("status {status} without an error body")),
        })
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let socket = self.socket.clone();
        UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { socket, source }
            }
            io::ErrorKind::PermissionDenied => ClientError::Permission { socket },
            _ => ClientError::Connect { socket, source },
        })
    }
}

fn build_request<Q: Serialize>(
    method: Method,
    route: &str,
    body: Option<&Q>,
) -> Result<Request<Full<Bytes>>, ClientError> {
    let protocol = |error: &dyn std::fmt::Display| ClientError::Protocol(error.to_string());
    let body = match body {
        Some(body) => serde_json::to_vec(body).map_err(|error| protocol(&error))?,
        None => Vec::new(),
    };
    Request::builder()
        .method(method)
        .uri(route)
        .header(HOST, "m40d")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| protocol(&error))
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    let limited = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    match limited {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(error) => ClientError::Http(*error),
            Err(error) => ClientError::Protocol(error.to_string()),
        }),
    }
}

/// The task that drives a connection; ends with it.
#[derive(Debug)]
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The events of a streamed answer, in order. Dropping it closes the connection.
#[derive(Debug)]
pub struct Events<E> {
    body: Incoming,
    buffer: BytesMut,
    ended: bool,
    _connection: Connection,
    _event: PhantomData<E>,
}

impl<E: DeserializeOwned> Events<E> {
    /// The next event, or `None` after the last.
    ///
    /// # Errors
    /// [`ClientError::Http`] when the connection breaks, [`ClientError::Protocol`] for a line
    /// that is not an event.
    pub async fn next(&mut self) -> Result<Option<E>, ClientError> {
        loop {
            if let Some(line) = self.take_line() {
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| ClientError::Protocol(error.to_string()));
            }
            if self.ended {
                return Ok(None);
            }
            self.fill().await?;
        }
    }

    fn take_line(&mut self) -> Option<BytesMut> {
        match self.buffer.iter().position(|&byte| byte == b'\n') {
            Some(at) => Some(self.buffer.split_to(at + 1)),
            None if self.ended && !self.buffer.is_empty() => Some(self.buffer.split()),
            None => None,
        }
    }

    async fn fill(&mut self) -> Result<(), ClientError> {
        match self.body.frame().await {
            None => self.ended = true,
            Some(frame) => {
                if let Ok(data) = frame?.into_data() {
                    self.buffer.extend_from_slice(&data);
                }
            }
        }
        if self.buffer.len() > ANSWER_BYTES_MAX {
            return Err(ClientError::Protocol(format!("a line over {ANSWER_BYTES_MAX} bytes")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::ErrorCode;

    /// Answers one connection with these bytes, then closes it.
    fn serve_once(answer: &'static str) -> (Client, PathBuf) {
        let name = format!("m40-control-{}-{:p}.sock", std::process::id(), answer);
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        (Client::new(&path), path)
    }

    #[tokio::test]
    async fn a_missing_socket_means_not_running() {
        let client = Client::new("/nonexistent/control.sock");
        let error = client.status().await.unwrap_err();
        assert!(matches!(error, ClientError::NotRunning { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn errors_arrive_with_their_code() {
        let (client, path) = serve_once(
            "HTTP/1.1 404 Not Found\r\ncontent-length: 48\r\n\r\n\
             {\"error\":{\"code\":\"not_found\",\"message\":\"no x\"}}  ",
        );
        let error = client.models().await.unwrap_err();
        std::fs::remove_file(path).unwrap();
        let ClientError::Api(error) = error else { panic!("{error:?}") };
        assert_eq!(error, ApiError::new(ErrorCode::NotFound, "no x"));
    }

    #[tokio::test]
    async fn events_are_split_at_line_ends_wherever_chunks_end() {
        let (client, path) = serve_once(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
             10\r\n{\"event\":\"text\",\r\n\
             2b\r\n\"text\":\"a\"}\n\n{\"event\":\"text\",\"text\":\"b\"}  \n\r\n0\r\n\r\n",
        );
        let request = RunRequest {
            model: crate::ModelRef::Name("x".into()),
            messages: Vec::new(),
            params: crate::RunParams::default(),
        };
        let mut events = client.run(&request).await.unwrap();
        let mut texts = Vec::new();
        while let Some(RunEvent::Text { text }) = events.next().await.unwrap() {
            texts.push(text);
        }
        std::fs::remove_file(path).unwrap();
        assert_eq!(texts, ["a", "b"]);
    }

    #[tokio::test]
    async fn something_else_on_the_socket_is_a_protocol_error() {
        let (client, path) = serve_once("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi\n");
        let error = client.status().await.unwrap_err();
        std::fs::remove_file(path).unwrap();
        assert!(matches!(error, ClientError::Protocol(_)), "{error:?}");
    }
}
