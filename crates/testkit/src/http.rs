//! A small blocking HTTP/1.1 client for tests: one connection per request, everything that came
//! back is kept, and nothing is made right silently.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// How long a test waits for the next byte before it fails.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A whole response.
#[derive(Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Header names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The body, with chunks joined.
    pub body: String,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

/// A response whose body is read line by line as it arrives. Dropping it closes the connection.
#[derive(Debug)]
pub struct Stream {
    /// The status code.
    pub status: u16,
    body: Body,
    pending: Vec<u8>,
}

impl Stream {
    /// The next line that is not empty, or `None` at the end of the body.
    ///
    /// # Panics
    /// When the connection breaks.
    pub fn line(&mut self) -> Option<String> {
        let line = self.try_line()?;
        Some(line.expect("the connection broke in the middle of a body"))
    }

    /// As [`Self::line`], of a connection that may break.
    pub fn try_line(&mut self) -> Option<io::Result<String>> {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if line.is_empty() {
                    continue;
                }
                return Some(Ok(line));
            }
            match self.body.piece() {
                Ok(Some(piece)) => self.pending.extend(piece),
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// All that is left of the body.
    ///
    /// # Panics
    /// When the connection breaks.
    pub fn rest(&mut self) -> String {
        let mut rest = std::mem::take(&mut self.pending);
        while let Some(piece) = self.body.piece().expect("the connection broke in a body") {
            rest.extend(piece);
        }
        String::from_utf8_lossy(&rest).into_owned()
    }

    /// The next server-sent event's data, without comments.
    pub fn event(&mut self) -> Option<String> {
        loop {
            let line = self.line()?;
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(data.to_owned());
            }
            assert!(line.starts_with(':'), "neither data nor a comment: {line:?}");
        }
    }
}

/// Sends a request and reads the whole response.
///
/// # Panics
/// When there is no response or it is not HTTP.
pub fn request(address: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> Reply {
    let text = body.map(Value::to_string);
    let headers: &[(&str, &str)] =
        if body.is_some() { &[("content-type", "application/json")] } else { &[] };
    request_with(address, method, path, headers, text.unwrap_or_default().as_bytes())
}

/// Sends a request with exactly these headers (besides `host`, `content-length` and
/// `connection`) and body, and reads the whole response.
///
/// # Panics
/// When there is no response or it is not HTTP.
pub fn request_with(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let (status, headers, mut rest) = send(address, method, path, headers, body);
    let mut whole = Vec::new();
    while let Some(piece) = rest.piece().expect("the connection broke in the middle of a body") {
        whole.extend(piece);
    }
    Reply { status, headers, body: String::from_utf8_lossy(&whole).into_owned() }
}

/// Posts JSON and leaves the body to be read as it arrives.
///
/// # Panics
/// When there is no response or it is not HTTP.
pub fn stream(address: SocketAddr, path: &str, body: &Value) -> Stream {
    let headers = [("content-type", "application/json")];
    let (status, _, body) = send(address, "POST", path, &headers, body.to_string().as_bytes());
    Stream { status, body, pending: Vec::new() }
}

/// Sends raw bytes and returns what comes back until the other side closes, which may be nothing.
///
/// # Panics
/// When there is no connection, or it is still open after a minute.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    exchange(connect(address), bytes)
}

/// Sends raw bytes, then closes the sending side, which a server may take for a client that left;
/// and returns what comes back, which may be nothing.
///
/// # Panics
/// When there is no connection, or it is still open after a minute.
pub fn raw_and_close(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(address);
    // The other side may hang up on nonsense before all of it is sent.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    exchange(stream, b"")
}

/// Sends raw bytes on a connection and returns what comes back until the other side closes.
///
/// # Panics
/// When the connection is still open after its time limit.
pub fn exchange(mut stream: impl Read + Write, bytes: &[u8]) -> String {
    // The other side may hang up on nonsense before all of it is sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let timeout = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        assert!(!timeout, "the connection is still open, so far: {answer:?}");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Opens a connection with a time limit on every read.
///
/// # Panics
/// When nobody listens.
pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("somebody must listen");
    stream.set_read_timeout(Some(TIMEOUT)).expect("the time is not zero");
    stream
}

fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> (u16, Vec<(String, String)>, Body) {
    let mut stream = connect(address);
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes()).expect("the head must be taken");
    // An early refusal (413) may close the connection while the body is still being sent.
    let _ = stream.write_all(body);
    read_head(BufReader::new(stream))
}

fn read_head(mut reader: BufReader<TcpStream>) -> (u16, Vec<(String, String)>, Body) {
    let status_line = read_line(&mut reader);
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no HTTP status in {status_line:?}"));
    let mut headers = Vec::new();
    loop {
        let line = read_line(&mut reader);
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("bad header {line:?}"));
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let left = match find(&headers, "transfer-encoding") {
        Some("chunked") => Left::Chunked,
        _ => match find(&headers, "content-length").and_then(|length| length.parse().ok()) {
            Some(length) => Left::Bytes(length),
            None => Left::UntilClosed,
        },
    };
    (status, headers, Body { reader, left })
}

fn read_line(reader: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).expect("the connection broke in the head of a response");
    assert!(line.ends_with('\n'), "the connection ended in the head of a response: {line:?}");
    line.trim_end().to_owned()
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

#[derive(Debug)]
struct Body {
    reader: BufReader<TcpStream>,
    left: Left,
}

#[derive(Debug)]
enum Left {
    Chunked,
    Bytes(usize),
    UntilClosed,
    Nothing,
}

impl Body {
    fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.left {
            Left::Nothing => Ok(None),
            Left::Chunked => self.chunk(),
            Left::Bytes(length) => {
                self.left = Left::Nothing;
                let mut piece = vec![0; length];
                self.reader.read_exact(&mut piece)?;
                Ok(Some(piece))
            }
            Left::UntilClosed => {
                self.left = Left::Nothing;
                let mut piece = Vec::new();
                self.reader.read_to_end(&mut piece)?;
                Ok(Some(piece))
            }
        }
    }

    fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut size = String::new();
        self.reader.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16).map_err(|error| {
            io::Error::new(io::ErrorKind::UnexpectedEof, format!("{size:?}: {error}"))
        })?;
        let mut piece = vec![0; size + 2];
        self.reader.read_exact(&mut piece)?;
        piece.truncate(size);
        if size == 0 {
            self.left = Left::Nothing;
            return Ok(None);
        }
        Ok(Some(piece))
    }
}
