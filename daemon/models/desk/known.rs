//! What the scheduler is told of models, and what is known of those that it cannot be told of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use m40_control::ErrorCode;
use m40_sched::ModelName;
use m40_sched::residency::{Definition, PinnedTooLarge, check_pinned};
use tracing::warn;

use super::{Desk, Outside};
use crate::models::error::LoadFailure;
use crate::models::source::Source;

/// What the scheduler was told of a model, and where its file is.
#[derive(Debug, Clone)]
pub(in crate::models) struct Known {
    pub source: Source,
    pub definition: Definition,
    /// What the latest load that failed came to, for programs.
    pub(super) failure: Option<ErrorCode>,
}

impl Known {
    pub(in crate::models) fn new(source: Source, definition: Definition) -> Self {
        Self { source, definition, failure: None }
    }
}

/// The definitions alone.
pub(super) fn definitions(known: &BTreeMap<ModelName, Known>) -> BTreeMap<ModelName, Definition> {
    known.iter().map(|(name, known)| (name.clone(), known.definition.clone())).collect()
}

impl Desk {
    pub(in crate::models) fn known(&self, name: &str) -> Option<&Known> {
        self.known.get(name)
    }

    /// All that the scheduler was told.
    pub(in crate::models) fn all_known(&self) -> &BTreeMap<ModelName, Known> {
        &self.known
    }

    /// Why a name is of no model that could be loaded.
    pub(in crate::models) fn faults(&self) -> &BTreeMap<ModelName, (Source, Arc<LoadFailure>)> {
        &self.faults
    }

    /// Replaces what is known of all models. If the pinned ones do not fit together, none is pinned until
    /// the next time.
    pub(in crate::models) fn adopt(
        &mut self,
        mut known: BTreeMap<ModelName, Known>,
        outside: &impl Outside,
    ) -> Result<(), PinnedTooLarge> {
        self.pins_count = true;
        let fits = self.define_all(known.clone(), outside);
        if fits.is_err() {
            self.pins_count = false;
            known.values_mut().for_each(|known| known.definition.pinned = false);
            self.define_all(known, outside)?;
        }
        fits
    }

    /// Replaces what is known of all models. What is told of a model in a new way has no failures.
    fn define_all(
        &mut self,
        known: BTreeMap<ModelName, Known>,
        outside: &impl Outside,
    ) -> Result<(), PinnedTooLarge> {
        let is_new = |(name, known): &(&ModelName, &Known)| {
            let before = self.known.get(*name);
            before.is_some_and(|before| !before.source.is_as(&known.source))
        };
        let anew = known.iter().filter(is_new).map(|(name, _)| name.clone()).collect();
        self.configure(known, anew, outside)
    }

    /// As [`Self::define_all`]; those of `anew` that could not be loaded, and for which nobody waits, are
    /// as if nobody had tried.
    fn configure(
        &mut self,
        mut known: BTreeMap<ModelName, Known>,
        mut anew: BTreeSet<ModelName>,
        outside: &impl Outside,
    ) -> Result<(), PinnedTooLarge> {
        let all = definitions(&known);
        check_pinned(&all, self.ledger().budget())?;
        anew.retain(|name| self.is_at_rest_after_failure(name));
        for (name, known) in known.iter_mut().filter(|(name, _)| !anew.contains(*name)) {
            known.failure = self.known.get(name).and_then(|before| before.failure);
        }
        let mut actions = vec![];
        if !anew.is_empty() {
            let mut others = all.clone();
            others.retain(|name, _| !anew.contains(name));
            actions.extend(self.scheduler.configure(self.now(), others)?);
        }
        actions.extend(self.scheduler.configure(self.now(), all)?);
        self.known = known;
        self.faults.retain(|name, _| !self.known.contains_key(name));
        self.carry_out(actions, outside);
        Ok(())
    }

    fn is_at_rest_after_failure(&self, name: &ModelName) -> bool {
        let status = self.status(name.as_str());
        let failed = status.is_some_and(|status| status.failure.is_some() && status.waiting == 0);
        failed && !self.residents.contains_key(name)
    }

    /// Adds a model to what is known, or changes it.
    pub(in crate::models) fn define(
        &mut self,
        name: &ModelName,
        mut new: Known,
        outside: &impl Outside,
    ) -> Result<(), PinnedTooLarge> {
        new.definition.pinned &= self.pins_count;
        let is_same =
            |known: &Known| known.definition == new.definition && known.source.is_as(&new.source);
        if self.known.get(name).is_some_and(is_same) {
            return Ok(());
        }
        let mut known = self.known.clone();
        // Files that are where they are have no name to keep once they are out of memory.
        known.retain(|name, known| {
            known.source.is_known()
                || self.residents.contains_key(name)
                || self.requests.values().any(|request| request.model == *name)
        });
        known.insert(name.clone(), new);
        self.define_all(known, outside)
    }

    /// Notes why a known name is of no model that could be loaded.
    pub(in crate::models) fn note_fault(
        &mut self,
        name: ModelName,
        source: Source,
        why: Arc<LoadFailure>,
    ) {
        self.faults.insert(name, (source, why));
    }

    /// Replaces the faults of what manifests define.
    pub(in crate::models) fn replace_faults(
        &mut self,
        new: Vec<(ModelName, Source, Arc<LoadFailure>)>,
    ) {
        self.faults.retain(|_, (source, _)| source.definition().is_none());
        self.faults.extend(new.into_iter().map(|(name, source, why)| (name, (source, why))));
    }

    /// Forgets why a model could not be loaded; says whether there was something to forget.
    pub(in crate::models) fn forget_failure(
        &mut self,
        name: &ModelName,
        outside: &impl Outside,
    ) -> bool {
        let had_fault = self.faults.remove(name).is_some();
        let failed = self.is_at_rest_after_failure(name);
        if failed
            && let Err(error) = self.configure(self.known.clone(), [name.clone()].into(), outside)
        {
            warn!(model = name.as_str(), %error, "cannot define the model again");
        }
        had_fault || failed
    }
}
