//! Models that manifests define: from a definition to what is loaded, and what a change of the
//! catalog means for what is in memory.

use std::sync::Arc;

use m40_control::{Change, Effect, ModelChange, ModelEntry, ModelRef, ModelState};
use m40_manifest::{self as manifest, Catalog, Definition, changed_keys};
use m40llm::{KvType, ModelOptions};
use tracing::{info, warn};

use crate::pulls::Pulls;
use crate::store::Manifest;

use super::slot::{Source, defined_entry, remote_entry, stored_entry};
use super::{ModelError, Models};

/// Where a defined model is loaded from.
pub(super) fn source(
    pulls: &Pulls,
    model: manifest::Model,
    wanted: &ModelRef,
) -> Result<Source, ModelError> {
    let definition = &model.definition;
    let name = || definition.name.clone();
    let is_own =
        |path| matches!(&definition.source, manifest::Source::File(own) if own.path() == path);
    match wanted {
        ModelRef::File(path) if !is_own(path.as_path()) => {
            Err(ModelError::NameDefined { name: name(), manifest: model.file })
        }
        _ => match pulls.file_of(definition) {
            Ok(path) => Ok(Source::defined(path, model)),
            Err(why) => Err(ModelError::NotHere { name: name(), why }),
        },
    }
}

/// What a definition asks of a load, but for how keys and values are kept.
pub(super) fn options(definition: &Definition) -> ModelOptions {
    ModelOptions {
        context: definition.context_tokens,
        chat_template: definition.template.as_ref().map(|text| text.content.to_string()),
        tokenizer: definition.tokenizer.clone(),
        ..ModelOptions::default()
    }
}

/// How keys and values are kept, in the engine's terms.
pub(super) fn kv_type(kv_type: manifest::KvType) -> KvType {
    match kv_type {
        manifest::KvType::F16 => KvType::F16,
        manifest::KvType::Int8 => KvType::Int8,
    }
}

impl Models {
    /// What a manifest says of the model of this name or alias, now, or what came with it says. Without
    /// a name: of the one that is loaded.
    pub(crate) fn definition(&self, name: Option<&str>) -> Option<Arc<Definition>> {
        let only = || self.only_loaded().ok();
        let name = name.map(str::to_owned).or_else(only)?;
        let defined = self.defined(&name).map(|model| model.definition);
        defined.or_else(|| self.inner.store.usage(&name))
    }

    pub(super) fn defined(&self, name: &str) -> Option<manifest::Model> {
        let model = self.catalog().find(name).cloned()?;
        let definition = self.inner.store.pulls().complete(&model.definition);
        Some(manifest::Model { definition, ..model })
    }

    /// The name that a model has itself, of one of its names.
    pub(super) fn own_name(&self, name: &str) -> String {
        self.defined(name).map_or_else(|| name.to_owned(), |model| model.definition.name.clone())
    }

    pub(super) fn defined_entries(&self) -> impl Iterator<Item = ModelEntry> {
        let pulls = self.inner.store.pulls();
        let entry = |model: &manifest::Model| match pulls.file_of(&model.definition) {
            Ok(path) => defined_entry(model, &path),
            Err(why) => remote_entry(model, &why),
        };
        self.catalog().models().map(entry).collect::<Vec<_>>().into_iter()
    }

    pub(super) fn stored_entry(&self, manifest: &Manifest) -> ModelEntry {
        let entry = stored_entry(manifest);
        if self.inner.store.is_whole(manifest) {
            return entry;
        }
        let name = &manifest.name;
        let failure = format!("a file of it is missing: `m40ctl pull {name}` gets it again");
        ModelEntry { state: ModelState::Failed, failure: Some(failure), ..entry }
    }

    /// The models that manifests define and whose files are not here.
    pub(crate) fn coming(&self) -> impl Iterator<Item = ModelEntry> {
        self.defined_entries().filter(|entry| entry.state == ModelState::Remote)
    }

    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.inner.catalog.borrow())
    }

    /// Does what the catalog and each change of it ask for: preloads, and lets go of what is
    /// defined otherwise or no more, after its answers. Ends with the manifests.
    pub(crate) async fn follow_catalog(self) {
        let mut catalog = self.inner.catalog.clone();
        let mut old = Arc::new(Catalog::default());
        loop {
            let new = Arc::clone(&catalog.borrow_and_update());
            for change in old.changes(&new) {
                self.apply(&change);
            }
            old = new;
            if catalog.changed().await.is_err() {
                return;
            }
        }
    }

    fn apply(&self, change: &ModelChange) {
        let now = self.defined(&change.model);
        let leaves = self.is_outdated(&change.model, now.as_ref());
        let is_asked = match &change.change {
            Change::Added => true,
            Change::Removed => false,
            Change::Changed { keys } => leaves || keys.iter().any(|key| key.key == "preload"),
        };
        let preloads = is_asked && now.as_ref().is_some_and(|model| model.definition.preload);
        // A file that was loaded where it is, by a name that no longer leads to it.
        let aliases = now.iter().flat_map(|model| model.definition.aliases.clone());
        let hidden = aliases.filter(|alias| self.slots().contains_key(alias));
        let leaving: Vec<String> =
            leaves.then(|| change.model.clone()).into_iter().chain(hidden).collect();
        if leaving.is_empty() && !preloads {
            return;
        }
        let (models, name) = (self.clone(), change.model.clone());
        tokio::spawn(async move {
            for name in leaving {
                // It may have left by itself meanwhile.
                if models.unload_own(&name, false).await.is_ok() {
                    info!(model = name, "out of memory: the name is defined otherwise now");
                }
            }
            if preloads {
                models.preload(name).await;
            }
        });
    }

    /// Loads what is to be in memory before anybody asks, whenever something has come from elsewhere.
    /// Ends with the daemon.
    pub(crate) async fn follow_arrivals(self) {
        let mut arrivals = self.inner.store.pulls().arrivals();
        while arrivals.changed().await.is_ok() {
            let catalog = self.catalog();
            let preloaded = catalog.models().filter(|model| model.definition.preload);
            let absent = |name: &String| !self.slots().contains_key(name);
            let names = preloaded.map(|model| model.definition.name.clone()).filter(absent);
            for name in names.collect::<Vec<_>>() {
                self.preload(name).await;
            }
        }
    }

    async fn preload(&self, name: String) {
        match self.load(&ModelRef::Name(name.clone())).await {
            // It is loaded when it comes.
            Ok(_) | Err(ModelError::NotHere { .. }) => {}
            Err(error) => warn!(model = name, %error, "cannot preload"),
        }
    }

    /// Whether what is in memory by this name is not what the name means now.
    fn is_outdated(&self, name: &str, now: Option<&manifest::Model>) -> bool {
        let Some(slot) = self.slots().get(name).cloned() else { return false };
        match (slot.source().definition(), now) {
            (Some(old), Some(now)) => {
                let keys = changed_keys(old, &now.definition);
                keys.iter().any(|key| key.effect == Effect::Reload)
            }
            (old, now) => old.is_some() || now.is_some(),
        }
    }
}
