//! A line of the log for each request, when all of its answer is sent, or nobody is left to take it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tracing::{Span, debug, info};

use crate::caller::Caller;

/// Runs a request for a caller of its own.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    let caller = Caller::default();
    let mut line = Line {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        asked: Instant::now(),
        status: None,
        caller: caller.clone(),
        span: Span::current(),
    };
    let response = caller.scope(next.run(request)).await;
    line.status = Some(response.status());
    response.map(|body| Body::new(Recorded { body, _line: line }))
}

/// Logs the request when it is dropped.
struct Line {
    method: Method,
    path: String,
    asked: Instant,
    /// Absent where the client left before there was one.
    status: Option<StatusCode>,
    caller: Caller,
    span: Span,
}

impl Drop for Line {
    fn drop(&mut self) {
        let record = self.caller.record();
        let status = self.status.map(|status| status.as_u16());
        let ms = self.asked.elapsed().as_millis() as u64;
        let first_token_ms = record.first_token.map(|time| time.as_millis() as u64);
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    parent: &self.span,
                    status,
                    ms,
                    key = record.key,
                    model = record.model,
                    prompt_tokens = record.prompt_tokens,
                    completion_tokens = record.completion_tokens,
                    first_token_ms,
                    finish = record.finish,
                    "answered"
                )
            };
        }
        // What looks at the daemon again and again says nothing new.
        let looks = matches!(self.path.as_str(), "/" | "/health" | "/ready" | "/metrics");
        if looks && self.method != Method::POST { line!(debug) } else { line!(info) }
    }
}

/// A body that ends its request's line.
struct Recorded {
    body: Body,
    _line: Line,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
