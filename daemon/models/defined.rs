//! Models that manifests define: what a catalog means for the scheduler.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use m40_control::{ModelEntry, ModelRef, ModelState};
use m40_manifest::{self as manifest, Catalog, Definition};
use m40_sched::ModelName;
use m40_sched::residency::{self, check_pinned};
use tracing::{info, warn};

use super::desk::{Desk, Known};
use super::entry::{defined_entry, remote_entry, stored_entry};
use super::error::LoadFailure;
use super::source::Source;
use super::{ModelError, Models};
use crate::manifests::Judge;
use crate::pulls::Pulls;
use crate::store::Manifest;

/// Where a defined model is loaded from.
pub(super) fn source(
    pulls: &Pulls,
    model: manifest::Model,
    wanted: &ModelRef,
) -> Result<Source, ModelError> {
    let definition = &model.definition;
    let name = || definition.name.clone();
    let is_own = |path: &Path| matches!(&definition.source, manifest::Source::File(own) if own.path() == path);
    match wanted {
        ModelRef::File(path) if !is_own(path) => {
            Err(ModelError::NameDefined { name: name(), manifest: model.file })
        }
        _ => match pulls.file_of(definition) {
            Ok(path) => Ok(Source::defined(path, model)),
            Err(why) => Err(ModelError::NotHere { name: name(), why }),
        },
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
        self.catalog().find(name).map(|model| self.complete(model))
    }

    /// A model with what its source says where its manifest says nothing.
    fn complete(&self, model: &manifest::Model) -> manifest::Model {
        let definition = self.inner.store.pulls().complete(&model.definition);
        manifest::Model { definition, file: model.file.clone() }
    }

    /// The name that a model has itself, of one of its names.
    pub(super) fn own_name(&self, name: &str) -> String {
        self.defined(name).map_or_else(|| name.to_owned(), |model| model.definition.name.clone())
    }

    pub(super) fn defined_entries(&self) -> Vec<ModelEntry> {
        let pulls = self.inner.store.pulls();
        let entry = |model: &manifest::Model| match pulls.file_of(&model.definition) {
            Ok(path) => defined_entry(model, &path),
            Err(why) => remote_entry(model, &why),
        };
        self.catalog().models().map(entry).collect()
    }

    /// The models that manifests define and whose files are not here.
    pub(crate) fn coming(&self) -> impl Iterator<Item = ModelEntry> {
        self.defined_entries().into_iter().filter(|entry| entry.state == ModelState::Remote)
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

    fn catalog(&self) -> Arc<Catalog> {
        Arc::clone(&self.inner.catalog.borrow())
    }

    /// What a model in memory goes on with whose file is not what it was, or gone: as it is mapped, that
    /// does not matter before the next load.
    fn as_loaded(
        &self,
        desk: &Desk,
        name: &ModelName,
        source: &Source,
        failure: Arc<LoadFailure>,
    ) -> Weighed {
        let before = desk.known(name.as_str()).filter(|before| {
            desk.is_coming(name.as_str()) && before.source.revision() == source.revision()
        });
        let footprint = before.map(|before| before.definition.footprint).ok_or(failure)?;
        Ok(self.inner.opener.definition(source, footprint))
    }

    /// Each model of a catalog whose file is here, with what the scheduler has to know of it or why
    /// that cannot be told. Blocking.
    fn weigh_all(&self, catalog: &Catalog) -> Vec<(ModelName, Source, Weighed)> {
        let weigh = |model: &manifest::Model| {
            let path = self.inner.store.pulls().file_of(&model.definition).ok()?;
            let name = model.definition.name.as_str();
            let source = Source::defined(path, self.complete(model));
            let weighed = self.inner.opener.define(name, &source);
            let weighed = weighed.map_err(|error| Arc::new(LoadFailure::from(&error)));
            Some((name.into(), source, weighed))
        };
        catalog.models().filter_map(weigh).collect()
    }
}

/// What the scheduler has to know of a model, or why that cannot be told.
type Weighed = Result<residency::Definition, Arc<LoadFailure>>;

impl Judge for Models {
    fn check(&self, catalog: &Catalog) -> Result<(), String> {
        let weighed = self.weigh_all(catalog).into_iter();
        let definitions =
            weighed.filter_map(|(name, _, weighed)| Some((name, weighed.ok()?))).collect();
        let budget = self.with_desk(|desk, _| desk.ledger().budget());
        check_pinned(&definitions, budget).map_err(|error| error.to_string())
    }

    fn adopt(&self, catalog: &Catalog) {
        let weighed = self.weigh_all(catalog);
        self.with_desk(|desk, outside| {
            let mut known = others(desk, catalog);
            let mut faults = vec![];
            for (name, source, weighed) in weighed {
                match weighed.or_else(|failure| self.as_loaded(desk, &name, &source, failure)) {
                    Ok(definition) => {
                        known.insert(name, Known::new(source, definition));
                    }
                    Err(failure) => faults.push((name, source, failure)),
                }
            }
            if let Err(error) = desk.adopt(known, outside) {
                warn!(%error, "until they fit, no model is pinned");
            }
            desk.replace_faults(faults);
        });
        let catalog = self.catalog();
        self.with_desk(|desk, _| {
            let is_known = |name: &str| desk.known(name).is_some() || catalog.find(name).is_some();
            self.inner.opener.keep_only(is_known);
            self.inner.looks.keep_only(is_known);
        });
    }
}

/// What is known of models that no manifest defines, and whose names no manifest has.
fn others(desk: &Desk, catalog: &Catalog) -> BTreeMap<ModelName, Known> {
    let is_other = |(name, known): &(&ModelName, &Known)| {
        if known.source.definition().is_some() {
            return false;
        }
        let hidden = catalog.find(name.as_str()).is_some();
        if hidden && desk.is_coming(name.as_str()) {
            info!(model = name.as_str(), "leaves memory: the name is defined otherwise now");
        }
        !hidden
    };
    let others = desk.all_known().iter().filter(is_other);
    others.map(|(name, known)| (name.clone(), known.clone())).collect()
}
