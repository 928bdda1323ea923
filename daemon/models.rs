//! The models in memory.
//!
//! ```text
//!              get or load                    loaded
//!   (none) ───────────────────▶ Loading ───────────────────▶ Ready
//!      ▲                          │  ▲                         │ unload, or stop
//!      │                   failed │  │ get or load             ▼
//!      │                          ▼  │                      Unloading
//!      │                         Failed ◀── worker panicked ── │
//!      └───────────────────────────────────────────────────────┘ worker ended
//! ```
//!
//! * A load belongs to nobody: whoever needs the model waits for it, and it goes on when they
//!   all leave. Loading runs on a blocking thread.
//! * A ready model has one [`worker`], which answers its queue in order; several jobs at a time if the
//!   model runs on a GPU.
//! * Only a ready model takes jobs. One that is unloading first ends its jobs (finished, or cut
//!   short when forced), and who asks for it meanwhile waits and loads it again.

mod defined;
mod error;
mod slot;
mod tally;
pub(crate) mod worker;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use m40_control::{ErrorCode, LoadedModel, ModelEntry, ModelRef, ModelState, model_name_of_file};
use m40_manifest::{Catalog, Definition};
use m40llm::{Engine, GpuError, KvType, LoadError, Model, ModelOptions};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::manifests::Manifests;
use crate::net::{Phase, reached};
use crate::store::{Description, Import, Store, StoreError};
pub(crate) use error::{LoadFailure, ModelError};
use slot::{Slot, Source, State};
pub(crate) use worker::JobCount;
use worker::{Ending, Reason, Worker};

/// A model that is ready, and the way to its worker.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub name: String,
    pub model: Model,
    pub worker: Worker,
    load_time: Duration,
}

/// What bounds the models, and how they keep their context.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub loaded_max: usize,
    pub queued_jobs_max: usize,
    pub context_tokens_max: Option<u32>,
    pub kv_type: KvType,
}

/// All models, stored and loaded. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Models {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    store: Store,
    catalog: watch::Receiver<Arc<Catalog>>,
    limits: Limits,
    slots: Mutex<BTreeMap<String, Arc<Slot>>>,
    jobs: JobCount,
    phase: watch::Receiver<Phase>,
    /// Why the GPU no longer works for this process.
    device_lost: watch::Sender<Option<GpuError>>,
}

impl Models {
    pub(crate) fn new(
        engine: Engine,
        store: Store,
        manifests: &Manifests,
        limits: Limits,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        let catalog = manifests.subscribe();
        let slots = Mutex::default();
        let jobs = JobCount::default();
        let device_lost = watch::Sender::new(None);
        let inner = Inner { engine, store, catalog, limits, slots, jobs, phase, device_lost };
        Self { inner: Arc::new(inner) }
    }

    /// Returns when the GPU no longer works for this process, with the reason.
    pub(crate) async fn device_lost(&self) -> GpuError {
        let mut lost = self.inner.device_lost.subscribe();
        loop {
            if let Some(error) = lost.borrow_and_update().clone() {
                return error;
            }
            if lost.changed().await.is_err() {
                // The sender is alive in self.
                std::future::pending::<()>().await;
            }
        }
    }

    /// What computes, in words.
    pub(crate) fn device(&self) -> String {
        self.inner.engine.device().to_string()
    }

    /// The model of this name, loaded when it is not. Without a name: the one that is loaded.
    pub(crate) async fn get(&self, name: Option<&str>) -> Result<Arc<Loaded>, ModelError> {
        match name {
            Some(name) => self.load(&ModelRef::Name(name.to_owned())).await,
            None => {
                let name = self.only_loaded()?;
                self.load(&ModelRef::Name(name)).await
            }
        }
    }

    /// Loads a model, or waits for its load, and returns it when it is ready.
    pub(crate) async fn load(&self, wanted: &ModelRef) -> Result<Arc<Loaded>, ModelError> {
        let name = match wanted {
            ModelRef::Name(name) => self.own_name(name),
            ModelRef::File(path) => self.own_name(&name_of_file(path)?),
        };
        loop {
            let slot = self.slot(&name, wanted)?;
            match self.settled(&slot).await? {
                State::Ready(loaded) => return Ok(loaded),
                State::Failed(failure) => return Err(ModelError::Load(failure)),
                // It was on its way out when it was asked for.
                State::Gone | State::Loading | State::Unloading(_) => {}
            }
        }
    }

    /// Ends a model: after its jobs, or now when forced. Returns when it is out of memory.
    pub(crate) async fn unload(&self, name: &str, force: bool) -> Result<ModelEntry, ModelError> {
        self.unload_own(&self.own_name(name), force).await
    }

    /// As [`Self::unload`], for a name that is a model's own.
    async fn unload_own(&self, name: &str, force: bool) -> Result<ModelEntry, ModelError> {
        let slot = self.slots().get(name).cloned();
        let Some(slot) = slot else {
            let known = self.defined(name).is_some() || self.inner.store.find(name).is_some();
            return Err(if known { self.not_loaded(name) } else { self.unknown(name) });
        };
        let mut state = slot.subscribe();
        // A load cannot be interrupted; it is waited for.
        let _ = state.wait_for(|state| !matches!(state, State::Loading)).await;
        let entry = slot.entry();
        info!(model = name, force, "unloading");
        match slot.begin_unload() {
            Some(loaded) => loaded.worker.end(force.then_some(Reason::Unloaded)),
            None => self.forget(name, &slot),
        }
        let gone = |state: &State| matches!(state, State::Gone | State::Failed(_));
        let _ = state.wait_for(gone).await;
        self.forget(name, &slot);
        info!(model = name, "unloaded");
        Ok(ModelEntry { state: ModelState::Stored, loaded: None, failure: None, ..entry })
    }

    /// Checks a file and stores it. Blocking.
    pub(crate) fn import(
        &self,
        import: &Import<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ModelEntry, StoreError> {
        let describe = |path: &Path| self.describe(path);
        let manifest = self.inner.store.import(import, &describe, progress)?;
        info!(model = manifest.name, source = %manifest.source.display(), "imported");
        Ok(slot::stored_entry(&manifest))
    }

    // A matter of milliseconds, since weights are mapped, and it finds every mistake that would
    // otherwise be met on first use.
    fn describe(&self, path: &Path) -> Result<Description, String> {
        let inspect = |options: &_| self.inner.engine.inspect(path, options);
        let info = self.inner.with_options(None, inspect).map_err(|error| error.to_string())?;
        Ok(Description {
            architecture: info.architecture,
            quantization: info.quantization,
            parameters: info.parameters,
        })
    }

    /// Every model, stored or not, by name.
    pub(crate) fn list(&self) -> Vec<ModelEntry> {
        let stored = self.inner.store.list();
        let mut entries: BTreeMap<String, ModelEntry> = stored
            .iter()
            .map(|manifest| (manifest.name.clone(), slot::stored_entry(manifest)))
            .collect();
        entries.extend(self.defined_entries().map(|entry| (entry.name.clone(), entry)));
        entries.extend(self.active().into_iter().map(|entry| (entry.name.clone(), entry)));
        entries.into_values().collect()
    }

    /// The models that are not merely stored, by name.
    pub(crate) fn active(&self) -> Vec<ModelEntry> {
        self.slots().values().map(|slot| slot.entry()).collect()
    }

    /// A token that counts as a running job while it lives.
    pub(crate) fn jobs(&self) -> &JobCount {
        &self.inner.jobs
    }

    /// Cuts every job short and ends every worker, because the daemon stops.
    pub(crate) fn stop(&self) {
        for slot in self.slots().values() {
            if let State::Ready(loaded) | State::Unloading(loaded) = slot.state() {
                loaded.worker.end(Some(Reason::Stopping));
            }
        }
    }

    /// The phase of the daemon.
    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.inner.phase.clone()
    }

    fn slot(&self, name: &str, wanted: &ModelRef) -> Result<Arc<Slot>, ModelError> {
        if *self.inner.phase.borrow() != Phase::Serving {
            return Err(ModelError::Stopping);
        }
        let source = self.source(name, wanted)?;
        let mut slots = self.slots();
        if let Some(slot) = slots.get(name) {
            // A name means whatever has it; a path must not be answered by another file.
            let other = matches!(wanted, ModelRef::File(_))
                && source.as_ref().is_some_and(|source| source.path != slot.source().path);
            if other {
                return Err(ModelError::NameTaken {
                    name: name.to_owned(),
                    path: slot.source().path.clone(),
                });
            }
            // Its manifest is gone, and it is on its way out.
            if source.is_none() && slot.source().definition().is_some() {
                return Err(self.unknown(name));
            }
            if !matches!(slot.state(), State::Failed(_)) {
                return Ok(Arc::clone(slot));
            }
        }
        let in_memory = slots.values().filter(|slot| !matches!(slot.state(), State::Failed(_)));
        if in_memory.count() >= self.inner.limits.loaded_max {
            return Err(ModelError::TooManyLoaded { limit: self.inner.limits.loaded_max });
        }
        let earlier = slots.get(name).map(|slot| slot.source().clone());
        let Some(source) = source.or(earlier) else { return Err(self.unknown(name)) };
        let slot = Arc::new(Slot::new(name.to_owned(), source));
        slots.insert(name.to_owned(), Arc::clone(&slot));
        drop(slots);
        self.spawn_load(Arc::clone(&slot));
        Ok(slot)
    }

    /// Where a model's file is; `None` for a name that is neither defined nor stored (but may be
    /// loaded). What a manifest defines comes before what is stored.
    fn source(&self, name: &str, wanted: &ModelRef) -> Result<Option<Source>, ModelError> {
        if let Some(model) = self.defined(name) {
            return defined::source(model, wanted).map(Some);
        }
        let stored = self.inner.store.find(name);
        match (wanted, stored) {
            (ModelRef::File(path), Some(manifest)) if manifest.source != *path => {
                Err(ModelError::NameStored { name: name.to_owned(), path: manifest.source })
            }
            (_, Some(manifest)) => {
                Ok(Some(Source::stored(self.inner.store.path_of(&manifest), manifest)))
            }
            (ModelRef::File(path), None) => Ok(Some(Source::in_place(path.clone()))),
            (ModelRef::Name(_), None) => Ok(None),
        }
    }

    async fn settled(&self, slot: &Slot) -> Result<State, ModelError> {
        let mut state = slot.subscribe();
        let mut phase = self.inner.phase.clone();
        let settled = |state: &State| !matches!(state, State::Loading | State::Unloading(_));
        tokio::select! {
            state = state.wait_for(settled) => Ok(state.map_or(State::Gone, |s| s.clone())),
            () = reached(&mut phase, Phase::Draining) => Err(ModelError::Stopping),
        }
    }

    fn spawn_load(&self, slot: Arc<Slot>) {
        let models = self.clone();
        tokio::task::spawn_blocking(move || {
            let started = Instant::now();
            let path = &slot.source().path;
            info!(model = slot.name(), path = %path.display(), "loading");
            match models.inner.load(slot.source()) {
                Ok(model) => models.start_worker(&slot, model, started.elapsed()),
                Err(error) => {
                    let failure = LoadFailure::from(&error);
                    warn!(model = slot.name(), %error, "cannot load");
                    if let LoadError::Gpu { source, .. } = error {
                        models.device_failed(source);
                    }
                    slot.set(State::Failed(Arc::new(failure)));
                    // Whoever asked has the reason; a path that was never a model has no name to
                    // keep it under.
                    if !slot.source().is_known() {
                        models.forget(slot.name(), &slot);
                    }
                }
            }
        });
    }

    fn start_worker(&self, slot: &Arc<Slot>, model: Model, load_time: Duration) {
        let (models, ending_slot) = (self.clone(), Arc::clone(slot));
        let ended = move |ending| models.worker_ended(&ending_slot, ending);
        let limit = self.inner.limits.queued_jobs_max;
        let most = slot.source().definition().and_then(|definition| definition.sequences_max);
        let most = most.map_or(usize::MAX, |most| most as usize);
        let side_by_side = model.sessions_side_by_side().min(most);
        match Worker::spawn(slot.name(), &model, side_by_side, limit, ended) {
            Ok(worker) => {
                info!(model = slot.name(), ms = load_time.as_millis() as u64, "loaded");
                let name = slot.name().to_owned();
                slot.set(State::Ready(Arc::new(Loaded { name, model, worker, load_time })));
            }
            Err(error) => {
                error!(model = slot.name(), %error, "cannot start a thread");
                slot.set(State::Failed(Arc::new(LoadFailure {
                    code: ErrorCode::Internal,
                    message: format!("cannot start a thread for the model: {error}"),
                })));
            }
        }
    }

    fn worker_ended(&self, slot: &Arc<Slot>, ending: Ending) {
        match ending {
            Ending::Asked => {
                self.forget(slot.name(), slot);
                slot.set(State::Gone);
            }
            Ending::DeviceLost(error) => {
                let failure = LoadFailure { code: ErrorCode::Internal, message: error.to_string() };
                slot.set(State::Failed(Arc::new(failure)));
                self.device_failed(error);
            }
            Ending::Panicked => {
                error!(model = slot.name(), "the model's worker panicked; it loads again on use");
                slot.set(State::Failed(Arc::new(LoadFailure {
                    code: ErrorCode::Internal,
                    message: "the model's worker panicked, see the log of m40d".to_owned(),
                })));
            }
        }
    }

    /// Notes an error of the GPU, which may be its loss.
    pub(crate) fn device_failed(&self, error: GpuError) {
        if error.is_lost() {
            error!(%error, "the GPU is lost");
            self.inner.device_lost.send_replace(Some(error));
        }
    }

    fn forget(&self, name: &str, slot: &Arc<Slot>) {
        let mut slots = self.slots();
        if slots.get(name).is_some_and(|current| Arc::ptr_eq(current, slot)) {
            slots.remove(name);
        }
    }

    fn only_loaded(&self) -> Result<String, ModelError> {
        let slots = self.slots();
        let loaded = |slot: &&Arc<Slot>| matches!(slot.state(), State::Ready(_) | State::Loading);
        let names: Vec<&str> = slots.values().filter(loaded).map(|slot| slot.name()).collect();
        match names.as_slice() {
            [name] => Ok((*name).to_owned()),
            [] => Err(ModelError::NoneLoaded),
            several => Err(ModelError::SeveralLoaded { names: several.join(", ") }),
        }
    }

    fn unknown(&self, name: &str) -> ModelError {
        ModelError::Unknown { name: name.to_owned() }
    }

    fn not_loaded(&self, name: &str) -> ModelError {
        ModelError::NotLoaded { name: name.to_owned() }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Slot>>> {
        // Every change to the map is one insert or remove, so a panic elsewhere leaves it whole.
        self.inner.slots.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl Inner {
    fn load(&self, source: &Source) -> Result<Model, LoadError> {
        let load = |options: &_| self.engine.load(&source.path, options);
        self.with_options(source.definition(), load)
    }

    /// With what a definition asks for, and else as is configured; with the context that the
    /// definition says, or else that the file was trained for, within the configured limit.
    fn with_options<T>(
        &self,
        definition: Option<&Definition>,
        open: impl Fn(&ModelOptions) -> Result<T, LoadError>,
    ) -> Result<T, LoadError> {
        let options = definition.map(defined::options).unwrap_or_default();
        let kv_type = definition.and_then(|definition| definition.kv_type);
        let kv_type = kv_type.map_or(self.limits.kv_type, defined::kv_type);
        let with = |context| open(&ModelOptions { context, kv_type, ..options.clone() });
        let limit = self.limits.context_tokens_max;
        if let Some(asked) = options.context {
            return with(Some(limit.map_or(asked, |limit| limit.min(asked))));
        }
        match with(limit) {
            Err(LoadError::Context { trained, .. }) => with(Some(trained)),
            result => result,
        }
    }
}

impl Loaded {
    fn figures(&self) -> LoadedModel {
        let info = self.model.info();
        let tally = self.worker.tally();
        let (jobs, running) = (self.worker.jobs(), tally.running());
        let kv_bytes = tally.context_tokens().saturating_mul(info.kv_bytes_per_token);
        LoadedModel {
            context_tokens: info.context,
            weight_bytes: info.weight_bytes,
            kv_type: info.kv_type.name().to_owned(),
            kv_bytes_per_token: info.kv_bytes_per_token,
            load_ms: self.load_time.as_millis() as u64,
            memory_bytes: info.weight_bytes.saturating_add(kv_bytes),
            context_tokens_used: tally.context_tokens(),
            jobs,
            running,
            waiting: jobs.saturating_sub(running),
            jobs_done: self.worker.jobs_done(),
            work: tally.work(),
        }
    }
}

fn name_of_file(path: &Path) -> Result<String, ModelError> {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) if path.is_absolute() => Ok(model_name_of_file(name)),
        _ => Err(ModelError::BadPath { path: PathBuf::from(path) }),
    }
}

#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests {
    use std::future::{Future, poll_fn};
    use std::pin::pin;
    use std::task::Poll;

    use m40_cuda::{Call, CudaError};
    use m40llm::EngineOptions;

    use super::*;

    #[tokio::test]
    async fn a_lost_gpu_is_told_of_and_other_failures_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let (_serving, phase) = watch::channel(Phase::Serving);
        let limits = Limits {
            loaded_max: 1,
            queued_jobs_max: 1,
            context_tokens_max: None,
            kv_type: KvType::F16,
        };
        let engine = Engine::new(EngineOptions::default()).unwrap();
        let manifests = Manifests::open(&dir.path().join("models.d"));
        let store = Store::open(dir.path()).unwrap();
        let models = Models::new(engine, store, &manifests, limits, phase);
        let mut lost = pin!(models.device_lost());

        models.device_failed(CudaError::NoDriver.into());
        let still = poll_fn(|context| Poll::Ready(lost.as_mut().poll(context).is_pending()));
        assert!(still.await);

        let call = Call::cuStreamSynchronize;
        let error = CudaError::DeviceLost { call, code: 719, name: "LAUNCH_FAILED".into() };
        models.device_failed(error.clone().into());
        assert_eq!(lost.await, error.into());
    }
}
