//! `POST /models/pull`: a model comes here, from wherever it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use m40_control::{
    ApiError, ErrorCode, ModelEntry, PullEvent, PullPhase, PullProgress, PullRequest, PullTarget,
    model_name_of_file,
};
use m40_manifest::Model;
use m40_store::{Request, Source, source::Pick};
use tokio::sync::mpsc::{self, UnboundedSender};
use tracing::{info, warn};

use super::resume::forget;
use super::{Context, Refused, internal, lines, received};
use crate::http::read_json;
use crate::models::Models;
use crate::net::Phase;
use crate::pulls::{self, Watching, request_of};
use crate::store::pending::Pending;
use crate::store::sources::Record;
use crate::store::{Import, StoreError};

/// Bytes between two progress events of an import.
pub(super) const PROGRESS_BYTES: u64 = 16 << 20;
/// Time between two progress events of a download.
const PROGRESS_TIME: Duration = Duration::from_millis(100);

/// What a request comes to.
enum Plan {
    /// A file of this machine is stored.
    Import { path: PathBuf, name: Option<String> },
    /// A source is fetched; a manifest defines the model of this name, or gives it one.
    Fetch { request: Request, model: Named },
    /// All is here.
    Here { name: String },
}

/// Which model a source is.
pub(super) enum Named {
    /// Which manifests want too, unless it is here and only a newer one is asked for.
    Defined {
        name: String,
        goes_on: bool,
    },
    Stored {
        name: String,
        replace: bool,
    },
}

impl Named {
    fn begun(&self) -> PullEvent {
        let (model, goes_on) = match self {
            Self::Defined { name, goes_on } => (name, *goes_on),
            Self::Stored { name, .. } => (name, false),
        };
        PullEvent::Begun { model: model.clone(), goes_on }
    }
}

pub(super) async fn pull(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let request: PullRequest = read_json(&headers, body, context.body_limits).await?;
    let plan = plan(&context, &request)?;
    let (sender, receiver) = mpsc::unbounded_channel();
    match plan {
        Plan::Import { path, name } => {
            let (models, replace) = (context.models.clone(), request.replace);
            // Goes on when the client leaves: what was begun is finished.
            tokio::task::spawn_blocking(move || {
                let import = Import { path: &path, name: name.as_deref(), replace };
                let outcome = run_import(&models, &import, &sender);
                send(&sender, ended(outcome.map_err(ApiError::from), false));
            });
        }
        Plan::Fetch { request: wanted, model } => {
            let source = wanted.source.clone();
            let watching = context.store.pulls().watch(wanted, request.update);
            tokio::spawn(follow(context.clone(), watching, source, model, sender));
        }
        Plan::Here { name } => send(&sender, ended(entry(&context, name).await, true)),
    }
    Ok(lines(received(receiver)))
}

fn plan(context: &Context, request: &PullRequest) -> Result<Plan, ApiError> {
    let has_name = || {
        let message = "what has a name already cannot be given one: pull its source instead";
        let asked = request.name.is_some() || request.replace;
        if asked { Err(ApiError::new(ErrorCode::InvalidRequest, message)) } else { Ok(()) }
    };
    match &request.what {
        PullTarget::File(path) => {
            Ok(Plan::Import { path: path.clone(), name: request.name.clone() })
        }
        PullTarget::Name(name) => {
            has_name()?;
            match context.manifests.current().find(name) {
                Some(model) => plan_defined(context, model),
                None => plan_stored(context, name, request.update),
            }
        }
        PullTarget::Source(text) => {
            let source: Source = text.parse().map_err(|error: m40_store::SourceError| {
                ApiError::new(ErrorCode::InvalidRequest, error.to_string())
            })?;
            plan_source(context, source, request)
        }
    }
}

fn plan_defined(context: &Context, model: &Model) -> Result<Plan, ApiError> {
    let (request, name) = (request_of(&model.definition), model.definition.name.clone());
    if pulls::needs_fetch(&request) {
        let goes_on = context.store.pulls().record(&request).is_none();
        return Ok(Plan::Fetch { request, model: Named::Defined { name, goes_on } });
    }
    match context.store.pulls().file_of(&model.definition) {
        Ok(path) if path.is_file() => Ok(Plan::Here { name }),
        Ok(path) => {
            let message =
                format!("{name:?} is to be loaded from {}, which is not there", path.display());
            Err(ApiError::new(ErrorCode::NotFound, message))
        }
        Err(why) => Err(ApiError::new(why.code(), format!("the file of the model {name:?} {why}"))),
    }
}

fn plan_stored(context: &Context, name: &str, update: bool) -> Result<Plan, ApiError> {
    let Some(manifest) = context.store.find(name) else {
        let message = format!(
            "there is no model {name:?}: `m40ctl list` shows which there are; a source begins with \
             https://, hf:, ollama:, zip+ or /"
        );
        return Err(ApiError::new(ErrorCode::NotFound, message));
    };
    let is_whole = context.store.is_whole(&manifest);
    let source = manifest.source.to_str().and_then(|text| text.parse().ok());
    match source {
        Some(Source::File(file)) if !is_whole => {
            Ok(Plan::Import { path: file.path().to_path_buf(), name: Some(manifest.name) })
        }
        Some(Source::File(_)) | None => Ok(Plan::Here { name: manifest.name }),
        Some(_) if is_whole && !update => Ok(Plan::Here { name: manifest.name }),
        Some(source) => {
            let model = Named::Stored { name: manifest.name, replace: true };
            Ok(Plan::Fetch { request: Request::new(source), model })
        }
    }
}

fn plan_source(context: &Context, source: Source, request: &PullRequest) -> Result<Plan, ApiError> {
    if let Source::File(file) = &source {
        let path = file.path().to_path_buf();
        return Ok(Plan::Import { path, name: request.name.clone() });
    }
    let name = request.name.clone().unwrap_or_else(|| name_of(&source));
    if let Some(model) = context.manifests.current().find(&name) {
        if model.definition.source == source {
            return plan_defined(context, model);
        }
        let manifest = model.file.display();
        let message = format!("{name:?} is defined by {manifest}: use --name for another name");
        return Err(ApiError::new(ErrorCode::Conflict, message));
    }
    let text = source.to_string();
    context.store.check_free(&name, Path::new(&text), request.replace)?;
    let model = Named::Stored { name, replace: request.replace };
    Ok(Plan::Fetch { request: Request::new(source), model })
}

/// A model's name, of where it comes from.
pub(super) fn name_of(source: &Source) -> String {
    let text = match source {
        Source::Ollama(name) => format!("{}:{}", name.name(), name.tag()),
        Source::HuggingFace(found) => match found.pick() {
            Pick::File(path) => path.rsplit('/').next().unwrap_or(path).to_owned(),
            Pick::Quantization(quantization) => {
                let repository = found.repository();
                let name = repository.rsplit('/').next().unwrap_or(&repository);
                let name = name.strip_suffix("-GGUF").unwrap_or(name);
                format!("{name}:{quantization}")
            }
        },
        Source::Parts(parts) => return parts.as_slice().first().map(name_of).unwrap_or_default(),
        other => other.file_name().unwrap_or("model").to_owned(),
    };
    model_name_of_file(&text)
}

fn run_import(
    models: &Models,
    import: &Import<'_>,
    sender: &UnboundedSender<PullEvent>,
) -> Result<ModelEntry, StoreError> {
    let mut told = 0;
    models.import(import, &mut |done_bytes, total_bytes| {
        if done_bytes - told >= PROGRESS_BYTES {
            told = done_bytes;
            let (phase, total_bytes) = (PullPhase::Checking, Some(total_bytes));
            let progress = PullProgress { phase, done_bytes, total_bytes, bytes_per_s: 0 };
            send(sender, PullEvent::Progress(progress));
        }
    })
}

/// Follows a fetch, which goes on after a restart if that ends it.
async fn follow(
    context: Context,
    watching: Watching,
    source: Source,
    model: Named,
    sender: UnboundedSender<PullEvent>,
) {
    let name = match &model {
        Named::Defined { .. } => return listen(&context, watching, model, &sender).await,
        Named::Stored { name, replace } => {
            let pending = Pending { name: name.clone(), source, replace: *replace };
            let pulls = context.store.pending();
            let noted = tokio::task::spawn_blocking(move || pulls.note(&pending)).await;
            if let Ok(Err(error)) = noted {
                warn!(%error, "a restart would end this pull");
            }
            name.clone()
        }
    };
    listen(&context, watching, model, &sender).await;
    // Who leaves because the daemon does wants it still.
    if *context.models.phase().borrow() == Phase::Serving || !sender.is_closed() {
        forget(&context, name).await;
    }
}

/// Tells how far a fetch is until its end, as long as somebody listens.
async fn listen(
    context: &Context,
    mut watching: Watching,
    model: Named,
    sender: &UnboundedSender<PullEvent>,
) {
    let mut was_here = true;
    loop {
        match watching.state() {
            pulls::State::Coming(progress) => {
                if was_here {
                    was_here = false;
                    send(sender, model.begun());
                }
                send(sender, PullEvent::Progress(progress));
            }
            pulls::State::Here(record) => {
                return send(sender, ended(settle(context, &record, model).await, was_here));
            }
            pulls::State::Failed(failure) => {
                let error = ApiError::new(failure.code, failure.to_string());
                return send(sender, PullEvent::Error { error });
            }
        }
        tokio::select! {
            () = sender.closed() => return,
            () = async {
                watching.changed().await;
                if matches!(watching.state(), pulls::State::Coming(_)) {
                    // What happens meanwhile is told at once after it.
                    tokio::time::sleep(PROGRESS_TIME).await;
                }
            } => {}
        }
    }
}

/// What came is a model from here on.
pub(super) async fn settle(
    context: &Context,
    record: &Record,
    model: Named,
) -> Result<ModelEntry, ApiError> {
    let name = match model {
        Named::Defined { name, .. } => name,
        Named::Stored { name, replace } => {
            let (context, added) = (context.clone(), record.clone());
            let manifest = tokio::task::spawn_blocking(move || {
                let describe = |path: &Path| context.models.describe(path);
                context.store.add(&name, &added, replace, &describe)
            });
            let manifest = manifest.await.map_err(|_| internal())??;
            info!(model = manifest.name, source = record.source.shown(), "added");
            manifest.name
        }
    };
    entry(context, name).await
}

/// What lists say of a model.
pub(super) async fn entry(context: &Context, name: String) -> Result<ModelEntry, ApiError> {
    let models = context.models.clone();
    let listed = tokio::task::spawn_blocking(move || models.list()).await;
    let mut entries = listed.map_err(|_| internal())?.into_iter();
    entries.find(|entry| entry.name == name || entry.aliases.contains(&name)).ok_or_else(|| {
        let message = format!("there is no model {name:?}: `m40ctl list` shows which there are");
        ApiError::new(ErrorCode::NotFound, message)
    })
}

fn ended(outcome: Result<ModelEntry, ApiError>, was_here: bool) -> PullEvent {
    match outcome {
        Ok(model) => PullEvent::Done { model: Box::new(model), was_here },
        Err(error) => PullEvent::Error { error },
    }
}

// A client that left does not want the events.
pub(super) fn send<E>(sender: &UnboundedSender<E>, event: E) {
    let _ = sender.send(event);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_has_no_name_gets_one_that_says_what_it_is() {
        for (source, name) in [
            ("https://h.example/a/some%20model.Q4_K_M.gguf?x=y", "some-20model.Q4_K_M"),
            ("https://h.example/", "model"),
            ("hf:org/Some-3B-GGUF/q/some-q8_0.gguf@v1", "some-q8_0"),
            ("hf:org/Some-3B-GGUF:Q4_K_M", "Some-3B:Q4_K_M"),
            ("ollama:llama3.2", "llama3.2:latest"),
            ("ollama:h.example/me/m:7b", "m:7b"),
            ("zip+/w.whl!/d/m.gguf", "m"),
            ("https://h/m-00001-of-00002.gguf + https://h/b", "m"),
        ] {
            assert_eq!(name_of(&source.parse().unwrap()), name, "{source}");
        }
    }
}
