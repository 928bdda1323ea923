//! One model's place in memory and its state.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use m40_control::{ModelEntry, ModelState};
use m40_manifest::{self as manifest, Definition};
use tokio::sync::watch;

use super::{LoadFailure, Loaded};
use crate::pulls::NotHere;
use crate::store::Manifest;

/// See the diagram in [`super`].
#[derive(Debug, Clone)]
pub(super) enum State {
    Loading,
    Ready(Arc<Loaded>),
    Unloading(Arc<Loaded>),
    Failed(Arc<LoadFailure>),
    Gone,
}

/// Where a model comes from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The file to load.
    pub path: PathBuf,
    origin: Origin,
}

/// Who knows of a model.
#[derive(Debug, Clone)]
enum Origin {
    /// Whoever asked for its file.
    InPlace,
    /// The store.
    Stored(Manifest),
    /// A manifest.
    Defined(manifest::Model),
}

impl Source {
    pub(super) fn in_place(path: PathBuf) -> Self {
        Self { path, origin: Origin::InPlace }
    }

    pub(super) fn stored(path: PathBuf, manifest: Manifest) -> Self {
        Self { path, origin: Origin::Stored(manifest) }
    }

    pub(super) fn defined(path: PathBuf, model: manifest::Model) -> Self {
        Self { path, origin: Origin::Defined(model) }
    }

    /// Whether its name is known without its file having been asked for.
    pub(super) fn is_known(&self) -> bool {
        !matches!(self.origin, Origin::InPlace)
    }

    /// What a manifest said of it when it was loaded.
    pub(super) fn definition(&self) -> Option<&Definition> {
        match &self.origin {
            Origin::Defined(model) => Some(&model.definition),
            Origin::InPlace | Origin::Stored(_) => None,
        }
    }
}

/// A model that is more than a file.
#[derive(Debug)]
pub(super) struct Slot {
    name: String,
    source: Source,
    state: watch::Sender<State>,
}

impl Slot {
    pub(super) fn new(name: String, source: Source) -> Self {
        Self { name, source, state: watch::Sender::new(State::Loading) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(super) fn set(&self, state: State) {
        self.state.send_replace(state);
    }

    /// Ready becomes unloading. Returns the model that is on its way out, by this call or an
    /// earlier one.
    pub(super) fn begin_unload(&self) -> Option<Arc<Loaded>> {
        let mut leaving = None;
        self.state.send_if_modified(|state| {
            let (State::Ready(loaded) | State::Unloading(loaded)) = &*state else { return false };
            leaving = Some(Arc::clone(loaded));
            let changes = matches!(state, State::Ready(_));
            if let Some(loaded) = leaving.clone().filter(|_| changes) {
                *state = State::Unloading(loaded);
            }
            changes
        });
        leaving
    }

    pub(super) fn entry(&self) -> ModelEntry {
        let base = match &self.source.origin {
            Origin::Stored(manifest) => stored_entry(manifest),
            Origin::Defined(model) => defined_entry(model, &self.source.path),
            Origin::InPlace => in_place_entry(&self.name, &self.source.path),
        };
        let (state, loaded, failure) = match self.state() {
            State::Loading => (ModelState::Loading, None, None),
            State::Ready(loaded) => (ModelState::Ready, Some(loaded), None),
            State::Unloading(loaded) => (ModelState::Unloading, Some(loaded), None),
            State::Failed(failure) => (ModelState::Failed, None, Some(failure.message.clone())),
            State::Gone => (ModelState::Stored, None, None),
        };
        match loaded {
            None => ModelEntry { state, failure, ..base },
            Some(loaded) => describe_loaded(&loaded, ModelEntry { state, failure, ..base }),
        }
    }
}

/// The entry of a file that nothing is known of yet.
fn in_place_entry(name: &str, path: &Path) -> ModelEntry {
    ModelEntry {
        name: name.to_owned(),
        aliases: Vec::new(),
        manifest: None,
        state: ModelState::Loading,
        failure: None,
        progress: None,
        size_bytes: std::fs::metadata(path).map_or(0, |metadata| metadata.len()),
        architecture: String::new(),
        quantization: String::new(),
        parameters: 0,
        source: path.to_path_buf(),
        imported_at_unix_s: None,
        loaded: None,
    }
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

fn describe_loaded(loaded: &Loaded, base: ModelEntry) -> ModelEntry {
    let info = loaded.model.info();
    ModelEntry {
        architecture: info.architecture.clone(),
        quantization: info.quantization.clone(),
        parameters: info.parameters,
        loaded: Some(loaded.figures()),
        ..base
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
