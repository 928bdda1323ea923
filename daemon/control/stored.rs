//! What is on disk: shown, removed, and taken over from other programs.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use m40_control::{
    AdoptEvent, AdoptRequest, ApiError, ErrorCode, FileDetails, ModelDetails, ModelState,
    NameRequest, PruneRequest, Pruned, PrunedFile, PullPhase, PullProgress, Removed,
};
use m40_manifest::{Catalog, set_keys};
use m40_store::{AdoptedModel, Kept};
use m40llm::model_files;
use tokio::sync::mpsc::{self, UnboundedSender};
use tracing::info;

use super::pull::{PROGRESS_BYTES, entry, name_of, send};
use super::{Context, Refused, internal, lines, received};
use crate::http::read_json;
use crate::pulls::request_of;
use crate::store::defaults::Defaults;
use crate::store::sources::{Found, Record};
use crate::store::{StoreError, StoredFile, unix_s};

pub(super) async fn show(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<ModelDetails>, Refused> {
    let request: NameRequest = read_json(&headers, body, context.body_limits).await?;
    let model = entry(&context, request.model).await?;
    let catalog = context.manifests.current();
    let definition = catalog.find(&model.name).map(|found| &found.definition);
    let pulls = context.store.pulls();
    let record = definition.and_then(|definition| pulls.record(&request_of(definition)));
    let used = match definition {
        Some(definition) => Some(pulls.complete(definition)),
        None => context.store.usage(&model.name),
    };
    let stored = || context.store.find(&model.name).map(|manifest| manifest.files);
    let files = match (&record, definition) {
        (Some(record), _) if !record.files().is_empty() => record.files().to_vec(),
        (None, None) => stored().unwrap_or_default(),
        _ => Vec::new(),
    };
    let mut files: Vec<FileDetails> = files.iter().map(|file| details(&context, file)).collect();
    if files.is_empty() && model.state != ModelState::Remote {
        let used = model_files(&model.source);
        files.extend(used.iter().map(|path| in_place(path, record.as_deref())));
    }
    // What follows from others, or is shown apart.
    let apart = ["source", "aliases", "sha256", "size_bytes", "capabilities"];
    let settings = used.iter().flat_map(|definition| set_keys(definition));
    let settings = settings.filter(|(key, _)| !apart.contains(key));
    let settings = settings.map(|(key, value)| (key.to_owned(), value)).collect();
    let left_out = record.map(|record| record.left_out.clone()).unwrap_or_default();
    let capabilities = context.models.capabilities(&model.name).await;
    let capabilities = capabilities.map(|all| all.iter().map(ToString::to_string).collect());
    Ok(Json(ModelDetails { model, capabilities, files, settings, left_out }))
}

fn details(context: &Context, file: &StoredFile) -> FileDetails {
    let blobs = context.store.blobs();
    let info = blobs.find(&file.sha256).map(|blob| blob.info);
    let kept = info.as_ref().map(|info| {
        let word = match info.kept {
            Kept::Own => "own",
            Kept::Clone => "clone",
            Kept::HardLink => "hard-link",
            Kept::Reference => "reference",
        };
        word.to_owned()
    });
    FileDetails {
        path: blobs.path(&file.sha256),
        size_bytes: file.size_bytes,
        sha256: Some(file.sha256.to_string()),
        kept,
        verified_unix_s: info.map(|info| info.verified_unix_s).filter(|&time| time > 0),
    }
}

fn in_place(path: &Path, record: Option<&Record>) -> FileDetails {
    FileDetails {
        path: path.to_path_buf(),
        size_bytes: std::fs::metadata(path).map_or(0, |found| found.len()),
        sha256: record.and_then(|record| record.sha256).map(|sha256| sha256.to_string()),
        kept: None,
        verified_unix_s: record.map(|record| record.fetched_at_unix_s),
    }
}

pub(super) async fn remove(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Removed>, Refused> {
    let request: NameRequest = read_json(&headers, body, context.body_limits).await?;
    let (name, catalog) = (request.model, context.manifests.current());
    let conflict = |message: String| ApiError::new(ErrorCode::Conflict, message);
    if let Some(model) = catalog.find(&name) {
        let manifest = model.file.display();
        let message = format!(
            "{name:?} is defined by {manifest}: take it out of there, and `m40ctl prune` removes its file"
        );
        return Err(conflict(message).into());
    }
    check_manifests(&catalog)?;
    let active = context.models.active().into_iter().find(|entry| entry.name == name);
    match active.map(|entry| entry.state) {
        None => {}
        // All that is in memory of it is why it could not be loaded.
        Some(ModelState::Failed) => drop(context.models.unload(&name, true).await),
        Some(_) => {
            let message = format!("{name:?} is in memory: `m40ctl unload {name}` first");
            return Err(conflict(message).into());
        }
    }
    let store = context.store.clone();
    let removed = tokio::task::spawn_blocking(move || store.remove(&name, &catalog)).await;
    let (manifest, freed_bytes) = removed.map_err(|_| internal())??;
    info!(model = manifest.name, freed_bytes, "removed");
    Ok(Json(Removed { model: manifest.name, freed_bytes }))
}

/// Whether it is known what all manifests name.
fn check_manifests(catalog: &Catalog) -> Result<(), ApiError> {
    match catalog.problems() {
        [] => Ok(()),
        [first, ..] => {
            let message = format!(
                "a manifest is wrong, so nobody knows which files it needs: {first}; correct it first"
            );
            Err(ApiError::new(ErrorCode::Conflict, message))
        }
    }
}

pub(super) async fn prune(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Pruned>, Refused> {
    let request: PruneRequest = read_json(&headers, body, context.body_limits).await?;
    let catalog = context.manifests.current();
    check_manifests(&catalog)?;
    let pruned = tokio::task::spawn_blocking(move || {
        // Looked up before they go.
        let known = context.store.blobs().list().map_err(StoreError::from)?;
        let pruned = context.store.prune(&catalog, request.dry_run)?;
        let blobs = known.into_iter().filter(|blob| pruned.blobs.contains(&blob.sha256));
        let file = |blob: m40_store::Blob| PrunedFile {
            sha256: blob.sha256.to_string(),
            size_bytes: blob.size_bytes,
            sources: blob.info.sources.iter().map(ToString::to_string).collect(),
        };
        let files = blobs.map(file).collect();
        let (dry_run, bytes) = (request.dry_run, pruned.bytes);
        if !dry_run {
            info!(bytes, "pruned");
        }
        Ok::<_, ApiError>(Pruned { dry_run, files, leftovers: pruned.leftovers, bytes })
    });
    Ok(Json(pruned.await.map_err(|_| internal())??))
}

pub(super) fn hashing(total_bytes: u64) -> PullProgress {
    let (phase, total_bytes) = (PullPhase::Checking, Some(total_bytes));
    PullProgress { phase, total_bytes, ..PullProgress::default() }
}

pub(super) async fn adopt(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let request: AdoptRequest = read_json(&headers, body, context.body_limits).await?;
    let (sender, receiver) = mpsc::unbounded_channel();
    // Goes on when the client leaves: what was begun is finished.
    tokio::task::spawn_blocking(move || {
        let last = match adopt_all(&context, &request.dir, &sender) {
            Ok((adopted, left)) => AdoptEvent::Done { adopted, left },
            Err(error) => AdoptEvent::Error { error },
        };
        send(&sender, last);
    });
    Ok(lines(received(receiver)))
}

fn adopt_all(
    context: &Context,
    dir: &Path,
    sender: &UnboundedSender<AdoptEvent>,
) -> Result<(u64, u64), ApiError> {
    let mut told = 0;
    let found = context.store.blobs().adopt(dir, &mut |done_bytes, total_bytes| {
        if done_bytes - told >= PROGRESS_BYTES {
            told = done_bytes;
            send(sender, AdoptEvent::Progress(PullProgress { done_bytes, ..hashing(total_bytes) }));
        }
    });
    let found = found.map_err(StoreError::from)?;
    let (mut adopted, mut left) = (0, 0);
    let mut leave = |path: PathBuf, reason: String| {
        left += 1;
        send(sender, AdoptEvent::Left { path, reason });
    };
    for (path, reason) in found.left {
        leave(path, reason);
    }
    for model in found.models {
        let path = PathBuf::from(model.source.to_string());
        match name_adopted(context, model) {
            Ok(name) => {
                let listed = context.models.list().into_iter().find(|entry| entry.name == name);
                let Some(model) = listed else { continue };
                adopted += 1;
                send(sender, AdoptEvent::Adopted { model: Box::new(model) });
            }
            Err(error) => leave(path, error.message),
        }
    }
    info!(adopted, left, dir = %dir.display(), "adopted");
    // What a manifest names may be here now.
    context.store.pulls().look_again();
    Ok((adopted, left))
}

/// Makes what was adopted a model. Pulling its source finds it here from then on.
fn name_adopted(context: &Context, model: AdoptedModel) -> Result<String, ApiError> {
    let name = name_of(&model.source);
    let (sha256, size_bytes) = (model.blob.sha256, model.blob.size_bytes);
    let weights = context.store.blobs().path(&sha256);
    let defaults = |ollama| Defaults::beside(ollama, &weights);
    let (defaults, left_out) = model.ollama.as_ref().map(defaults).unwrap_or_default();
    let record = Record {
        source: model.source,
        sha256: None,
        fetched_at_unix_s: unix_s(SystemTime::now()),
        found: Found::Stored(vec![StoredFile { name: model.name, sha256, size_bytes }]),
        defaults,
        left_out,
    };
    let record = context.store.pulls().sources().keep(record).map_err(StoreError::from)?;
    let describe = |path: &Path| context.models.describe(path);
    Ok(context.store.add(&name, &record, false, &describe)?.name)
}
