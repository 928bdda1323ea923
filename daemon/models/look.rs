//! What there is and what would happen: for those who look.

use std::collections::BTreeMap;
use std::time::Duration;

use m40_control::{
    ErrorCode, Evicted, MemoryParts, ModelEntry, ModelMemory, ModelRef, ModelState, Outcome, Plan,
    QueueEntry, Vram,
};
use m40_sched::residency::{self, Ask, Class, Residence};
use m40_sched::{Account, ModelName, Parts};
use m40llm::DecodePasses;

use super::desk::{Desk, Known, Progress, Seen};
use super::{ModelError, Models, entry, serves};
use crate::metrics::Look;

impl Models {
    /// Every model, stored or not, by name.
    pub(crate) fn list(&self) -> Vec<ModelEntry> {
        let stored = self.inner.store.list();
        let mut entries: BTreeMap<String, ModelEntry> = stored
            .iter()
            .map(|manifest| (manifest.name.clone(), self.stored_entry(manifest)))
            .collect();
        let more = self.defined_entries().into_iter().chain(self.active());
        entries.extend(more.map(|entry| (entry.name.clone(), entry)));
        entries.into_values().collect()
    }

    /// The models that are not merely stored, by name.
    pub(crate) fn active(&self) -> Vec<ModelEntry> {
        self.with_desk(|desk, _| {
            let statuses = desk.statuses();
            let is_active = |status: &&residency::ModelStatus| {
                let known = desk.known(status.model.as_str());
                // A path that was never a model has no name to keep its failure under.
                let failed =
                    status.failure.is_some() && known.is_some_and(|known| known.source.is_known());
                let at_rest = matches!(status.residence, Residence::Stored | Residence::Failed);
                !at_rest || failed || status.waiting > 0
            };
            let entries = statuses.iter().filter(is_active).filter_map(|status| of(desk, status));
            // Whether a file is there is looked up when it is listed.
            let faults = desk
                .faults()
                .iter()
                .filter(|(_, (_, failure))| failure.code != ErrorCode::NotFound);
            let faults = faults.map(|(name, (source, failure))| ModelEntry {
                state: ModelState::Failed,
                failure: Some(failure.message.clone()),
                ..entry::entry(name.as_str(), source)
            });
            let by_name = entries.chain(faults).map(|entry| (entry.name.clone(), entry));
            by_name.collect::<BTreeMap<_, _>>().into_values().collect()
        })
    }

    /// The models that answer, by name, with how long each stays if nobody asks for it any more; for ever
    /// when absent.
    pub(crate) fn in_memory(&self) -> Vec<(ModelEntry, Option<Duration>)> {
        self.with_desk(|desk, _| {
            let is_ready = |status: &residency::ModelStatus| status.residence == Residence::Ready;
            let found = |status: residency::ModelStatus| {
                let stays = status.idle_end.map(|end| desk.until(end)).or(status.idle_time);
                Some((of(desk, &status)?, stays))
            };
            desk.statuses().into_iter().filter(is_ready).filter_map(found).collect()
        })
    }

    /// Whether models are in memory of their own, not in the machine's.
    pub(crate) fn are_on_gpu(&self) -> bool {
        self.inner.opener.engine().capacity().is_some()
    }

    /// A model by one of its names, for whoever may use it.
    pub(crate) async fn look_up(&self, name: &str) -> Result<ModelEntry, ModelError> {
        let own = self.own_name(name);
        self.check_allowed(&own)?;
        let found = self.listed().await?.into_iter().find(|entry| entry.name == own);
        found.ok_or_else(|| ModelError::Unknown { name: name.to_owned() })
    }

    /// Every model that whoever asks may use, by name.
    pub(crate) async fn listed(&self) -> Result<Vec<ModelEntry>, ModelError> {
        let models = self.clone();
        // Listing reads files.
        let listed = tokio::task::spawn_blocking(move || models.list()).await;
        let mut listed = listed.map_err(|_| ModelError::Internal)?;
        listed.retain(|entry| self.check_allowed(&entry.name).is_ok());
        Ok(listed)
    }

    /// How things are, for the metrics. Blocking.
    pub(crate) fn look(&self) -> Look {
        Look {
            models: self.active().into_iter().chain(self.coming()).collect(),
            passes: self.decode_passes(),
            memory: Some(self.vram()),
            card: self.care().status(),
            fetched_bytes: self.inner.store.pulls().fetched_bytes(),
        }
    }

    /// Passes of the models in memory that generate.
    fn decode_passes(&self) -> Vec<(String, DecodePasses)> {
        self.with_desk(|desk, _| {
            let passes = |status: residency::ModelStatus| {
                let model = &desk.loaded_of(status.model.as_str())?.model;
                let passes = model.info().generates.then(|| model.decode_passes())?;
                Some((status.model.to_string(), passes))
            };
            desk.statuses().into_iter().filter_map(passes).collect()
        })
    }

    /// A model that the scheduler knows, or that cannot be loaded.
    pub(super) fn entry(&self, name: &str) -> Option<ModelEntry> {
        self.with_desk(|desk, _| {
            let fault = desk.faults().get(name).map(|(source, _)| entry::entry(name, source));
            desk.status(name).and_then(|status| of(desk, &status)).or(fault)
        })
    }

    /// The one model that is in memory, or on its way there.
    pub(super) fn only_loaded(&self) -> Result<String, ModelError> {
        let statuses = self.with_desk(|desk, _| desk.statuses());
        let is_here = |status: &&residency::ModelStatus| {
            matches!(status.residence, Residence::Claiming | Residence::Loading | Residence::Ready)
        };
        let names: Vec<&str> =
            statuses.iter().filter(is_here).map(|status| status.model.as_str()).collect();
        match names.as_slice() {
            [name] => Ok((*name).to_owned()),
            [] => Err(ModelError::NoneLoaded),
            several => Err(ModelError::SeveralLoaded { names: several.join(", ") }),
        }
    }

    /// What would happen if a model was asked for now. Nothing changes.
    pub(crate) async fn plan(&self, wanted: &ModelRef) -> Result<Plan, ModelError> {
        let name = self.name_of(wanted)?;
        let source = self.source(&name, wanted)?;
        let known = if self.with_desk(|desk, _| serves(desk, &name, source.as_ref())) {
            None
        } else {
            let Some(source) = source else { return Err(ModelError::Unknown { name }) };
            let definition = self.weigh(&name, &source).await?;
            Some(Known::new(source, definition))
        };
        let plan = self.with_desk(|desk, _| desk.plan(Ask::new(&*name), known))?;
        Ok(told(plan))
    }

    /// The requests that wait or run, in the order in which they came.
    pub(crate) fn queue(&self) -> Vec<QueueEntry> {
        self.with_desk(|desk, _| desk.requests()).into_iter().map(queue_entry).collect()
    }

    /// Ends a request that waits or runs, and says which that was.
    pub(crate) fn cancel(&self, request: u64) -> Option<QueueEntry> {
        self.with_desk(|desk, outside| desk.cancel(request, outside)).map(queue_entry)
    }

    /// Who holds which bytes of the memory.
    pub(crate) fn vram(&self) -> Vram {
        let engine = self.inner.opener.engine();
        self.with_desk(|desk, _| {
            let ledger = desk.ledger();
            let model = |(name, account): (&ModelName, &Account)| ModelMemory {
                model: name.to_string(),
                reserved: matches!(account, Account::Reserved(_)),
                memory: parts(account.parts()),
            };
            Vram {
                device: engine.device(),
                budget_bytes: ledger.budget(),
                held_bytes: ledger.held(),
                free_bytes: ledger.free(),
                device_free_bytes: engine.free(),
                sum: parts(&ledger.sum()),
                models: ledger.accounts().map(model).collect(),
            }
        })
    }
}

fn of(desk: &Desk, status: &residency::ModelStatus) -> Option<ModelEntry> {
    let name = status.model.as_str();
    let loaded = desk.loaded_of(name);
    let known = desk.known(name).map(|known| &known.source);
    // What is in memory, which may be defined otherwise by now.
    let source = loaded.map(|loaded| &loaded.source).or(known)?;
    let leaves_in = status.idle_end.map(|end| desk.until(end));
    let loaded = loaded.map(AsRef::as_ref);
    Some(entry::current(entry::entry(name, source), status, loaded, leaves_in))
}

fn parts(&Parts { weights, kv, scratch }: &Parts) -> MemoryParts {
    MemoryParts { weight_bytes: weights, kv_bytes: kv, scratch_bytes: scratch }
}

fn queue_entry(seen: Seen) -> QueueEntry {
    let ms = |time: Duration| time.as_millis() as u64;
    let (running, since, ahead, wait) = match seen.stage {
        Progress::Runs { since } => (true, since, None, None),
        Progress::Waits { ahead, since, wait } => (false, since, Some(ahead as u64), wait),
    };
    QueueEntry {
        request: seen.id.number(),
        model: seen.model.to_string(),
        urgency: urgency_name(seen.class).to_owned(),
        running,
        since_ms: ms(since),
        ahead,
        wait_ms: wait.map(ms),
    }
}

/// The word for how urgent a request is; the same on the wire.
fn urgency_name(class: Class) -> &'static str {
    match class {
        Class::Batch => "batch",
        Class::Agent => "agent",
        Class::Interactive => "interactive",
    }
}

fn told(plan: residency::Plan) -> Plan {
    use residency::Outcome as Found;
    let bytes = |(model, bytes): (ModelName, u64)| Evicted { model: model.to_string(), bytes };
    let awaits = |(model, running): (ModelName, usize)| (model.to_string(), running as u64);
    let (outcome, reason) = match plan.outcome {
        Found::Starts => (Outcome::Starts, None),
        Found::WaitsForPlace => (Outcome::WaitsForPlace, None),
        Found::JoinsLoad => (Outcome::JoinsLoad, None),
        Found::LoadsAgain => (Outcome::LoadsAgain, None),
        Found::Loads => (Outcome::Loads, None),
        Found::WaitsForRoom => (Outcome::WaitsForRoom, None),
        Found::Refused(refusal) => (Outcome::Refused, Some(refusal.to_string())),
    };
    Plan {
        model: plan.model.to_string(),
        outcome,
        reason,
        needs: parts(&plan.needs),
        free_bytes: plan.free,
        evicts: plan.evicts.into_iter().map(bytes).collect(),
        shrinks: plan.shrinks.into_iter().map(bytes).collect(),
        awaits: plan.awaits.into_iter().map(awaits).collect(),
        load_ms: plan.load_time.map(|time| time.as_millis() as u64),
        ahead: plan.ahead as u64,
    }
}
