//! `/api/blobs/{digest}`: files that a client sends, to make models of.

use std::io::{self, Read};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use m40_control::ApiError;
use m40_store::Sha256;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tracing::info;

use super::HttpError;
use crate::http::Context;
use crate::store::StoreError;

/// Pieces of a body that wait for the disk.
const PIECES_MAX: usize = 8;

pub(super) async fn look(State(context): State<Context>, Path(digest): Path<String>) -> StatusCode {
    let store = context.control.store.blobs();
    match read_digest(&digest).ok().and_then(|sha256| store.find(&sha256)) {
        Some(_) => StatusCode::OK,
        None => StatusCode::NOT_FOUND,
    }
}

pub(super) async fn receive(
    State(context): State<Context>,
    Path(digest): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, HttpError> {
    let sha256 = read_digest(&digest)?;
    let store = context.control.store.blobs().clone();
    if store.find(&sha256).is_some() {
        return Ok(StatusCode::OK);
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let size_bytes = length.and_then(|length| length.parse().ok());
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let mut arriving = Arriving { pieces, piece: Bytes::new() };
    let stored = spawn_blocking(move || store.receive(&sha256, size_bytes, &mut arriving));
    forward(body, context.body_limits.timeout, sender).await;
    let blob = stored.await.map_err(|_| HttpError::internal())?;
    let blob = blob.map_err(|error| ApiError::from(StoreError::from(error)))?;
    info!(%sha256, bytes = blob.size_bytes, "received");
    Ok(StatusCode::CREATED)
}

fn read_digest(digest: &str) -> Result<Sha256, HttpError> {
    Sha256::from_digest(digest)
        .map_err(|error| HttpError::bad_request(format!("the digest of a blob {error}")))
}

/// Hands a body on until it ends, breaks, stalls for so long, or nobody wants more of it.
async fn forward(body: Body, stall: Duration, sender: mpsc::Sender<io::Result<Bytes>>) {
    let mut pieces = body.into_data_stream();
    loop {
        let piece = match timeout(stall, pieces.next()).await {
            Ok(None) => return,
            Ok(Some(piece)) => piece.map_err(io::Error::other),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "no more of it came")),
        };
        let is_broken = piece.is_err();
        if sender.send(piece).await.is_err() || is_broken {
            return;
        }
    }
}

/// A body for who reads on a thread.
struct Arriving {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Arriving {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(into.len());
        self.piece.copy_to_slice(&mut into[..count]);
        Ok(count)
    }
}
