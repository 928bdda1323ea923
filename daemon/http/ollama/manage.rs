//! Models come, go and get other names, as if `m40ctl` had asked.

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Json, http::StatusCode};
use futures_util::stream;
use m40_control::{ApiError, PullEvent, PullPhase, PullProgress, PullRequest, PullTarget};
use m40_store::Sha256;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::VecDeque;

use super::create::{Base, put};
use super::reply::{line, respond};
use super::{HttpError, names, parse, read};
use crate::control;
use crate::http::Context;
use crate::http::error::ErrorShape;

#[derive(Debug, Deserialize)]
struct Named {
    #[serde(default, alias = "name")]
    model: Option<String>,
    #[serde(default)]
    stream: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Copied {
    source: String,
    destination: String,
}

pub(super) async fn pull(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let request: Named = parse(&read(&context, headers, body).await?)?;
    let asked = request.model.unwrap_or_default();
    let what = match names::find(&context.models, &asked).await {
        Ok(name) => PullTarget::Name(name),
        Err(_) => PullTarget::Source(names::source_of(&asked)?.to_string()),
    };
    let wanted = PullRequest { what, name: None, replace: false, update: true };
    let mut events = control::begin_pull(&context.control, &wanted).await?;
    if !request.stream.unwrap_or(true) {
        while let Some(event) = events.recv().await {
            if let PullEvent::Error { error } = event {
                return Err(error.into());
            }
        }
        return Ok(Json(json!({"status": "success"})).into_response());
    }
    let first = VecDeque::from([json!({"status": "pulling manifest"})]);
    let state = (events, Told::of(&asked), first);
    let lines = stream::unfold(state, async |(mut events, mut told, mut pending)| {
        while pending.is_empty() {
            pending.extend(told.lines(events.recv().await?));
        }
        Some((line(&pending.pop_front()?), (events, told, pending)))
    });
    Ok(respond(Body::from_stream(lines)))
}

pub(super) async fn push() -> HttpError {
    HttpError::not_implemented("models cannot be pushed to a registry from here".to_owned())
}

pub(super) async fn copy(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, HttpError> {
    let request: Copied = parse(&read(&context, headers, body).await?)?;
    let from = names::find(&context.models, &request.source).await?;
    let base = Base::model(&context, from, &request.destination).await?;
    put(&context, &request.destination, base).await?;
    Ok(StatusCode::OK)
}

pub(super) async fn delete(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, HttpError> {
    let request: Named = parse(&read(&context, headers, body).await?)?;
    let name = names::find(&context.models, &request.model.unwrap_or_default()).await?;
    if context.control.manifests.current().find(&name).is_none() {
        // One that is not in memory cannot leave it.
        let _ = context.models.unload(&name, true).await;
    }
    control::remove_model(&context.control, name).await?;
    Ok(StatusCode::OK)
}

/// How a pull is told in Ollama's words.
#[derive(Debug)]
struct Told {
    /// What clients tell progress bars apart by. What a file hashes to is known when it is here, so
    /// this is the hash of what was asked for.
    digest: Sha256,
    /// What was done when it was told last.
    phase: Option<PullPhase>,
}

impl Told {
    fn of(asked: &str) -> Self {
        Self { digest: Sha256::of(asked.as_bytes()), phase: None }
    }

    fn lines(&mut self, event: PullEvent) -> Vec<Value> {
        let status = |text: &str| json!({"status": text});
        match event {
            PullEvent::Progress(progress) => self.progress(progress).into_iter().collect(),
            PullEvent::Done { .. } => {
                let last = ["verifying sha256 digest", "writing manifest", "success"];
                last.into_iter().map(status).collect()
            }
            PullEvent::Error { error } => vec![failure(error)],
            _ => Vec::new(),
        }
    }

    fn progress(&mut self, progress: PullProgress) -> Option<Value> {
        let is_new = self.phase.replace(progress.phase) != Some(progress.phase);
        let Some(total) = progress.total_bytes.filter(|&total| total > 0) else {
            return is_new.then(|| json!({"status": progress.phase.words()}));
        };
        let digest = self.digest.to_string();
        let mut value = json!({
            "status": format!("pulling {}", &digest[..12]),
            "digest": format!("sha256:{digest}"),
            "total": total,
        });
        if progress.done_bytes > 0 {
            value["completed"] = json!(progress.done_bytes);
        }
        Some(value)
    }
}

fn failure(error: ApiError) -> Value {
    ErrorShape::Ollama.body(&error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_told_as_ollama_tells_it() {
        let mut told = Told::of("a");
        let progress = |phase, done_bytes, total_bytes| {
            PullEvent::Progress(PullProgress { phase, done_bytes, total_bytes, bytes_per_s: 0 })
        };
        let asking = progress(PullPhase::Resolving, 0, None);
        assert_eq!(told.lines(asking.clone()), [json!({"status": "asking for it"})]);
        assert!(told.lines(asking).is_empty(), "once is enough");
        let come = told.lines(progress(PullPhase::Downloading, 7, Some(9)));
        let digest = Sha256::of(b"a").to_string();
        let want = json!({"status": format!("pulling {}", &digest[..12]),
            "digest": format!("sha256:{digest}"), "total": 9, "completed": 7});
        assert_eq!(come, [want]);
        let error = ApiError::new(m40_control::ErrorCode::Origin, "it is down");
        assert_eq!(told.lines(PullEvent::Error { error }), [json!({"error": "it is down"})]);
    }
}
