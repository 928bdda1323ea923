//! What a handler leaves unread of a request's body.
//!
//! The next request of a connection begins behind the body of this one. hyper looks for that end once, when
//! the response is out, and closes a connection where it has not come yet, of which the client, perhaps just
//! asking again, knows nothing. So what is left is read before the response goes out if it is little and comes
//! soon; otherwise the response has to say that the connection closes.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// Bytes that are read for nothing, at most.
const BYTES_MAX: usize = 64 << 10;

/// How long they are waited for: less than a client minds, more than its next packet takes.
const WAIT: Duration = Duration::from_millis(250);

type Place = Arc<Mutex<Option<Incoming>>>;

/// A request's body, which comes back if it is dropped before its end.
#[derive(Debug)]
pub(super) struct LentBody {
    /// `Some` until dropped.
    body: Option<Incoming>,
    left: Place,
}

/// Where a body comes back to.
#[derive(Debug)]
pub(super) struct Leftover(Place);

pub(super) fn lend(body: Incoming) -> (LentBody, Leftover) {
    let left = Place::default();
    (LentBody { body: Some(body), left: Arc::clone(&left) }, Leftover(left))
}

impl Leftover {
    /// Reads what has come back. Whether that was all of it, so that another request may follow.
    pub(super) async fn read(self) -> bool {
        let left = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(body) = left else { return true };
        if body.size_hint().lower() > BYTES_MAX as u64 {
            return false;
        }
        let rest = Limited::new(body, BYTES_MAX).collect();
        matches!(timeout(WAIT, rest).await, Ok(Ok(_)))
    }
}

impl Body for LentBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}

impl Drop for LentBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}
