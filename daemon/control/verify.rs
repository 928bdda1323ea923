//! `POST /verify`: files are hashed again. Stored ones that are damaged go into quarantine; those that are
//! used where they are belong to somebody else, and stay.

use std::collections::BTreeSet;
use std::path::PathBuf;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use m40_control::{ApiError, Damage, ErrorCode, PullProgress, VerifyEvent, VerifyRequest};
use m40_manifest::{Model, Source};
use m40_store::{Sha256, Verified, hash_file_idly};
use m40llm::model_files;
use tokio::sync::mpsc::{self, UnboundedSender};

use super::pull::{PROGRESS_BYTES, send};
use super::stored::hashing;
use super::{Context, Refused, lines, received};
use crate::http::read_json;
use crate::store::StoreError;

/// A file to be hashed.
enum Target {
    Stored(Sha256),
    /// A file of this machine that is used where it is, and what it should hash to if anybody says so.
    InPlace {
        path: PathBuf,
        sha256: Option<Sha256>,
    },
}

/// What came of a file.
struct Found {
    sha256: String,
    expected: bool,
    damage: Option<Damage>,
}

pub(super) async fn verify(
    State(context): State<Context>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let request: VerifyRequest = read_json(&headers, body, context.body_limits).await?;
    let targets = targets(&context, request.model.as_deref())?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::task::spawn_blocking(move || {
        let last = match verify_all(&context, targets, &sender) {
            Ok((good, bad)) => VerifyEvent::Done { good, bad },
            Err(error) => VerifyEvent::Error { error },
        };
        send(&sender, last);
    });
    Ok(lines(received(receiver)))
}

/// The files of a model, or all that are stored; with the models that need each.
fn targets(context: &Context, name: Option<&str>) -> Result<Vec<(Target, Vec<String>)>, ApiError> {
    let catalog = context.manifests.current();
    let mut needed = context.store.files(&catalog);
    let models = |needed: Option<BTreeSet<String>>| needed.into_iter().flatten().collect();
    let Some(name) = name else {
        let blobs = context.store.blobs().list().map_err(StoreError::from)?;
        let target = |sha256| (Target::Stored(sha256), models(needed.remove(&sha256)));
        return Ok(blobs.iter().map(|blob| blob.sha256).map(target).collect());
    };
    let model = catalog.find(name);
    let own = model.map_or(name, |model| model.definition.name.as_str());
    needed.retain(|_, models| models.contains(own));
    let in_place = model.map(in_place).unwrap_or_default().into_iter();
    let in_place = in_place.map(|target| (target, vec![own.to_owned()]));
    let stored =
        needed.into_iter().map(|(sha256, names)| (Target::Stored(sha256), models(Some(names))));
    let targets: Vec<_> = in_place.chain(stored).collect();
    if targets.is_empty() {
        let message = match model {
            Some(_) => format!("no file of {name:?} is here: there is nothing to verify"),
            None => {
                format!("there is no stored model {name:?}: `m40ctl list` shows which there are")
            }
        };
        return Err(ApiError::new(ErrorCode::NotFound, message));
    }
    Ok(targets)
}

/// The files of a model that are used where they are.
fn in_place(model: &Model) -> Vec<Target> {
    let definition = &model.definition;
    let Source::File(file) = &definition.source else { return vec![] };
    let named = file.path();
    let target = |path: PathBuf| {
        // What a manifest says is of the file that it names.
        let sha256 = definition.sha256.filter(|_| path == named);
        Target::InPlace { path, sha256 }
    };
    model_files(named).into_iter().map(target).collect()
}

fn verify_all(
    context: &Context,
    targets: Vec<(Target, Vec<String>)>,
    sender: &UnboundedSender<VerifyEvent>,
) -> Result<(u64, u64), ApiError> {
    let sizes: Vec<u64> = targets.iter().map(|(target, _)| target.size(context)).collect();
    let mut progress = hashing(sizes.iter().sum());
    let (mut good, mut bad) = (0, 0);
    let mut is_stored = false;
    for ((target, models), size_bytes) in targets.into_iter().zip(sizes) {
        if sender.is_closed() {
            break;
        }
        let Found { sha256, expected, damage } = target.verify(context, &mut progress, sender)?;
        *if damage.is_none() { &mut good } else { &mut bad } += 1;
        is_stored |= matches!(target, Target::Stored(_));
        let path = match target {
            Target::Stored(_) => None,
            Target::InPlace { path, .. } => Some(path),
        };
        send(sender, VerifyEvent::File { sha256, expected, path, size_bytes, models, damage });
    }
    if bad > 0 && is_stored {
        // What a manifest names is fetched again.
        context.store.pulls().look_again();
    }
    Ok((good, bad))
}

impl Target {
    fn size(&self, context: &Context) -> u64 {
        match self {
            Self::Stored(sha256) => {
                context.store.blobs().find(sha256).map_or(0, |blob| blob.size_bytes)
            }
            Self::InPlace { path, .. } => std::fs::metadata(path).map_or(0, |found| found.len()),
        }
    }

    fn verify(
        &self,
        context: &Context,
        progress: &mut PullProgress,
        sender: &UnboundedSender<VerifyEvent>,
    ) -> Result<Found, ApiError> {
        let mut told = progress.done_bytes;
        let mut on_bytes = |bytes| {
            progress.done_bytes += bytes;
            if progress.done_bytes - told >= PROGRESS_BYTES {
                told = progress.done_bytes;
                send(sender, VerifyEvent::Progress(*progress));
            }
        };
        match self {
            Self::Stored(sha256) => {
                let verified = context.store.blobs().verify(sha256, &mut on_bytes);
                let damage = match verified.map_err(StoreError::from)? {
                    Verified::Right => None,
                    Verified::Quarantined { found, path, bad_chunks } => {
                        let (found_sha256, quarantine) = (found.to_string(), Some(path));
                        Some(Damage { found_sha256, quarantine, bad_chunks })
                    }
                };
                Ok(Found { sha256: sha256.to_string(), expected: true, damage })
            }
            Self::InPlace { path, sha256 } => {
                let found = hash_file_idly(path, &mut on_bytes).map_err(StoreError::from)?.0;
                let is_other = sha256.is_some_and(|expected| expected != found);
                let damage = Damage {
                    found_sha256: found.to_string(),
                    quarantine: None,
                    bad_chunks: Vec::new(),
                };
                Ok(Found {
                    sha256: sha256.unwrap_or(found).to_string(),
                    expected: sha256.is_some(),
                    damage: is_other.then_some(damage),
                })
            }
        }
    }
}
