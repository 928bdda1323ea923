//! Models as people and programs see them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use m40_control::{LoadedModel, ModelEntry, ModelState};
use m40_manifest as manifest;
use m40_sched::residency::{ModelStatus, Residence};
use m40llm::model_files;

use super::loaded::Loaded;
use super::source::{Origin, Source};
use crate::pulls::NotHere;
use crate::store::Manifest;

/// The entry of a model that is not loaded.
pub(super) fn entry(name: &str, source: &Source) -> ModelEntry {
    match &source.origin {
        Origin::Stored(manifest) => stored_entry(manifest),
        Origin::Defined(model) => defined_entry(model, &source.path),
        Origin::InPlace => in_place_entry(name, &source.path),
    }
}

/// The same, as it is now; `leaves_in` is when it leaves if nobody asks for it.
pub(super) fn current(
    base: ModelEntry,
    status: &ModelStatus,
    loaded: Option<&Loaded>,
    leaves_in: Option<Duration>,
) -> ModelEntry {
    let (state, failure) = match (status.residence, &status.failure) {
        (Residence::Stored | Residence::Failed, Some((reason, _))) => {
            (ModelState::Failed, Some(reason.to_string()))
        }
        (Residence::Stored, None) if status.waiting > 0 => (ModelState::Waiting, None),
        (Residence::Stored | Residence::Failed, None) => (base.state, base.failure),
        (Residence::Claiming, _) => (ModelState::Waiting, None),
        (Residence::Loading, _) => (ModelState::Loading, None),
        (Residence::Ready, _) => (ModelState::Ready, None),
        (Residence::Leaving(_) | Residence::Unloading, _) => (ModelState::Unloading, None),
    };
    let base = ModelEntry { state, failure, ..base };
    let Some(loaded) = loaded else { return base };
    let info = loaded.model.info();
    ModelEntry {
        architecture: info.architecture.clone(),
        quantization: info.quantization.clone(),
        parameters: info.parameters,
        loaded: Some(LoadedModel {
            context_tokens: info.context,
            context_tokens_used: loaded.tally().context_tokens(),
            weight_bytes: info.weight_bytes,
            kv_type: info.kv_type.name().to_owned(),
            kv_bytes_per_token: info.kv_bytes_per_token,
            memory_bytes: status.parts.total(),
            load_ms: loaded.load_time.as_millis() as u64,
            jobs: (status.running + status.waiting) as u64,
            running: status.running as u64,
            waiting: status.waiting as u64,
            jobs_done: loaded.jobs_done(),
            leaves_in_s: leaves_in.map(|time| time.as_secs()),
            work: loaded.tally().work(),
        }),
        ..base
    }
}

/// The entry of a file that nothing is known of yet.
fn in_place_entry(name: &str, path: &Path) -> ModelEntry {
    ModelEntry {
        name: name.to_owned(),
        aliases: Vec::new(),
        manifest: None,
        state: ModelState::Stored,
        failure: None,
        progress: None,
        size_bytes: model_files(path).iter().map(|file| size(file)).sum(),
        architecture: String::new(),
        quantization: String::new(),
        parameters: 0,
        source: path.to_path_buf(),
        imported_at_unix_s: None,
        loaded: None,
    }
}

/// Bytes of a file, none of one that is not there.
fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// The entry of a model that a manifest defines and whose file is here, or should be.
pub(super) fn defined_entry(model: &manifest::Model, path: &Path) -> ModelEntry {
    let definition = &model.definition;
    let failure = (!path.exists()).then(|| format!("there is no file {}", path.display()));
    ModelEntry {
        aliases: definition.aliases.clone(),
        manifest: Some(model.file.clone()),
        source: PathBuf::from(definition.source.to_string()),
        state: if failure.is_some() { ModelState::Failed } else { ModelState::Stored },
        failure,
        ..in_place_entry(&definition.name, path)
    }
}

/// The entry of a model that a manifest defines and whose file is not here yet.
pub(super) fn remote_entry(model: &manifest::Model, why: &NotHere) -> ModelEntry {
    let definition = &model.definition;
    let (progress, failure) = match why {
        NotHere::Coming(progress) => (Some(*progress), None),
        NotHere::Failed(failure) => (None, Some(failure.to_string())),
    };
    let total_bytes = progress.and_then(|progress| progress.total_bytes);
    ModelEntry {
        state: ModelState::Remote,
        failure,
        progress,
        size_bytes: definition.size_bytes.or(total_bytes).unwrap_or(0),
        ..defined_entry(model, Path::new(""))
    }
}

/// The entry of a model that is stored and nothing else.
pub(super) fn stored_entry(manifest: &Manifest) -> ModelEntry {
    ModelEntry {
        name: manifest.name.clone(),
        aliases: Vec::new(),
        manifest: None,
        state: ModelState::Stored,
        failure: None,
        progress: None,
        size_bytes: manifest.size_bytes(),
        architecture: manifest.architecture.clone(),
        quantization: manifest.quantization.clone(),
        parameters: manifest.parameters,
        source: manifest.source.clone(),
        imported_at_unix_s: Some(manifest.imported_at_unix_s),
        loaded: None,
    }
}
