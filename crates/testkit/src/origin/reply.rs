//! One reply of the origin, with what goes wrong in it.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::{Content, Fault, Seen, Shared};

/// Bytes that are sent at a time.
const PIECE_BYTES: usize = 256 << 10;

pub(super) fn reply(
    shared: &Arc<Shared>,
    seen: &Seen,
    content: Option<Content>,
    fault: &Fault,
    is_head: bool,
) -> Response<Body> {
    match fault {
        Fault::Status(status, retry_after) => {
            let mut reply = Response::builder().status(*status);
            if let Some(time) = retry_after {
                reply = reply.header("retry-after", *time);
            }
            return finish(reply, Body::of(Bytes::from_static(b"no")));
        }
        Fault::Redirect(to) => {
            let reply = Response::builder().status(302).header("location", to);
            return finish(reply, Body::of(Bytes::new()));
        }
        Fault::Html => {
            let reply = Response::builder().header("content-type", "text/html; charset=utf-8");
            return finish(reply, Body::of(Bytes::from_static(b"<html>Please log in</html>")));
        }
        _ => {}
    }
    let Some(content) = content else {
        let reply = Response::builder().status(404);
        return finish(reply, Body::of(Bytes::from_static(b"nothing here")));
    };
    let bytes = changed(&content.bytes, fault);
    let mut reply = Response::builder().header("content-type", content.content_type);
    if let Some(etag) = &content.etag {
        reply = reply.header("etag", etag);
    }
    for (name, value) in &content.headers {
        reply = reply.header(*name, value);
    }
    let asked = match fault {
        Fault::IgnoreRange => None,
        _ if seen.header("if-range").is_some_and(|tag| Some(tag) != content.etag.as_deref()) => {
            None
        }
        _ => seen.header("range").and_then(parse_range),
    };
    let total = bytes.len() as u64;
    let mut part = bytes.clone();
    if let Some((start, last)) = asked {
        if start >= total {
            let reply = reply.status(416).header("content-range", format!("bytes */{total}"));
            return finish(reply, Body::of(Bytes::new()));
        }
        let end = last.map_or(total, |last| (last + 1).min(total));
        part = bytes.slice(start as usize..end as usize);
        let said = match fault {
            Fault::LieAboutRange => 0..part.len() as u64,
            _ => start..end,
        };
        reply = reply.status(206).header("content-range", content_range(&said, total));
        if matches!(fault, Fault::LieAboutBytes) {
            let other = total - (end - start);
            part =
                if start == 0 { bytes.slice(other as usize..) } else { bytes.slice(..part.len()) };
        }
    }
    let mut body = Body::of(if is_head { Bytes::new() } else { part });
    body.is_length_said = !matches!(fault, Fault::Chunked);
    body.reset_at = match fault {
        Fault::ResetAfter(at) => Some(*at),
        _ => None,
    };
    if let Fault::HoldAfter(at) = fault {
        // A body that is sent whole is not asked for more.
        let at = (*at).min((body.rest.len() as u64).saturating_sub(1));
        body.hold = Some(Hold::new(at, Arc::clone(shared)));
    }
    finish(reply, body)
}

fn finish(reply: hyper::http::response::Builder, body: Body) -> Response<Body> {
    reply.body(body).expect("the headers are valid")
}

fn content_range(range: &Range<u64>, total: u64) -> String {
    format!("bytes {}-{}/{total}", range.start, range.end - 1)
}

fn changed(bytes: &Bytes, fault: &Fault) -> Bytes {
    match fault {
        Fault::Short(length) => bytes.slice(..*length as usize),
        Fault::Long(more) => {
            let mut longer = bytes.to_vec();
            longer.resize(longer.len() + *more as usize, 0);
            longer.into()
        }
        Fault::Corrupt(at) => {
            let mut other = bytes.to_vec();
            other[*at as usize] ^= 0x20;
            other.into()
        }
        _ => bytes.clone(),
    }
}

fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (start, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() { None } else { Some(last.parse().ok()?) };
    Some((start.parse().ok()?, last))
}

/// A body that can break or wait on its way.
pub(super) struct Body {
    rest: Bytes,
    sent: u64,
    is_length_said: bool,
    reset_at: Option<u64>,
    hold: Option<Hold>,
}

struct Hold {
    at: u64,
    shared: Arc<Shared>,
    is_told: bool,
    release: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Hold {
    fn new(at: u64, shared: Arc<Shared>) -> Self {
        let mut released = shared.released.subscribe();
        let release = Box::pin(async move {
            // The sender is gone when the origin is.
            let _ = released.changed().await;
        });
        Self { at, shared, is_told: false, release }
    }
}

impl Body {
    pub(super) fn of(bytes: Bytes) -> Self {
        Self { rest: bytes, sent: 0, is_length_said: true, reset_at: None, hold: None }
    }

    fn left_until(&self, at: Option<u64>) -> usize {
        at.map_or(usize::MAX, |at| at.saturating_sub(self.sent) as usize)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = &mut *self;
        if this.reset_at.is_some_and(|at| this.sent >= at) {
            return Poll::Ready(Some(Err(io::Error::other("the connection breaks here"))));
        }
        if let Some(hold) = this.hold.as_mut().filter(|hold| this.sent >= hold.at) {
            if !hold.is_told {
                hold.is_told = true;
                hold.shared.state().holding += 1;
                hold.shared.happened.notify_all();
            }
            std::task::ready!(hold.release.as_mut().poll(context));
            hold.shared.state().holding -= 1;
            this.hold = None;
        }
        if this.rest.is_empty() {
            return Poll::Ready(None);
        }
        let bound = this.left_until(this.reset_at);
        let bound = bound.min(this.left_until(this.hold.as_ref().map(|hold| hold.at)));
        let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES).min(bound.max(1)));
        this.sent += piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_length_said {
            SizeHint::with_exact(self.rest.len() as u64)
        } else {
            SizeHint::default()
        }
    }
}
