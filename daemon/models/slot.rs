//! One model's place in memory and its state.

use std::path::PathBuf;
use std::sync::Arc;

use m40_control::{ModelEntry, ModelState};
use tokio::sync::watch;

use super::{LoadFailure, Loaded};
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
    /// What is stored of it; `None` for a file used in place.
    manifest: Option<Manifest>,
}

impl Source {
    pub(super) fn in_place(path: PathBuf) -> Self {
        Self { path, manifest: None }
    }

    pub(super) fn stored(path: PathBuf, manifest: Manifest) -> Self {
        Self { path, manifest: Some(manifest) }
    }

    /// Whether the store has it.
    pub(super) fn is_stored(&self) -> bool {
        self.manifest.is_some()
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
        let base = match &self.source.manifest {
            Some(manifest) => stored_entry(manifest),
            None => self.in_place_entry(),
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

    fn in_place_entry(&self) -> ModelEntry {
        ModelEntry {
            name: self.name.clone(),
            state: ModelState::Loading,
            failure: None,
            size_bytes: std::fs::metadata(&self.source.path).map_or(0, |metadata| metadata.len()),
            architecture: String::new(),
            quantization: String::new(),
            parameters: 0,
            source: self.source.path.clone(),
            imported_at_unix_s: None,
            loaded: None,
        }
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
        state: ModelState::Stored,
        failure: None,
        size_bytes: manifest.size_bytes(),
        architecture: manifest.architecture.clone(),
        quantization: manifest.quantization.clone(),
        parameters: manifest.parameters,
        source: manifest.source.clone(),
        imported_at_unix_s: Some(manifest.imported_at_unix_s),
        loaded: None,
    }
}
