//! The models: which are in memory, and who runs on them.
//!
//! ```text
//!   ask ──▶ Ticket ──turn──▶ Run ──answer──▶ a thread that generates
//!     │        │               │                    │
//!     ▼        ▼ dropped       ▼ dropped            ▼ ends
//!   ┌──────────────────────────────────────────────────┐   load, drop   ┌─────────────────────┐
//!   │ desk: the scheduler, behind one lock             │ ─────────────▶ │ threads that load   │
//!   │ (m40_sched::residency has the states of a model) │ ◀───────────── │ and unload          │
//!   └──────────────────────────────────────────────────┘ loaded, failed └─────────────────────┘
//!        ▲ tick             ▲ departed   ▲ define
//!        └── keeper ────────┘            └── catalog
//! ```
//!
//! * Everything that is in memory was decided by the scheduler, which has the account of every byte.
//! * A load belongs to nobody: whoever needs the model waits for it, and it goes on when they
//!   all leave.
//! * A model is out of memory when its last handle goes; that is told by the drop itself.

mod capabilities;
mod defined;
mod desk;
mod entry;
mod error;
mod facts;
mod job;
mod loaded;
mod look;
mod request;
mod source;
mod tally;
mod weigh;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use m40_control::{ErrorCode, ModelEntry, ModelRef, ModelState, model_name_of_file};
use m40_manifest::Catalog;
use m40_sched::ModelName;
use m40_sched::residency::{Ask, Definition, Rules, Stay};
use m40llm::{Engine, GpuError, KvType, LoadError};
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tracing::{error, info};

use crate::caller::Caller;
use crate::care::Care;
use crate::config;
use crate::manifests::Manifests;
use crate::metrics::Metrics;
use crate::net::Phase;
use crate::store::{Description, Import, Store, StoreError};
use capabilities::Looks;
use desk::{Desk, Known, Outside, Want};
pub(crate) use error::{LoadFailure, ModelError};
pub(crate) use facts::Facts;
pub(crate) use job::{Cut, Job, JobCount, JobError, JobEvent, Reason, lock};
use loaded::Departure;
pub(crate) use loaded::Loaded;
pub(crate) use request::{Run, Ticket, Turn, Urgency};
use source::Source;
use weigh::Opener;

/// What bounds the models, and how they keep their context.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// Bytes that models may have together where the engine does not say.
    pub memory_bytes: u64,
    pub rules: Rules,
    pub context_tokens_max: Option<u32>,
    pub kv_type: KvType,
    /// How the card is looked after that they run on.
    pub care: config::Care,
}

/// All models, stored and loaded. A cheap handle.
#[derive(Debug, Clone)]
pub(crate) struct Models {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    opener: Opener,
    looks: Looks,
    facts: facts::Cache,
    store: Store,
    catalog: watch::Receiver<Arc<Catalog>>,
    desk: Mutex<Desk>,
    departures: mpsc::UnboundedSender<ModelName>,
    jobs: JobCount,
    phase: watch::Receiver<Phase>,
    metrics: Metrics,
    /// Why the GPU no longer works for this process.
    device_lost: watch::Sender<Option<GpuError>>,
    care: Care,
}

impl Models {
    /// Begins to follow `manifests`, within a runtime. Blocking.
    pub(crate) fn new(
        engine: Engine,
        store: Store,
        manifests: &Manifests,
        limits: Limits,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        let budget = engine.capacity().unwrap_or(limits.memory_bytes);
        let metrics = Metrics::default();
        let desk = Desk::new(limits.rules, budget, metrics.clone());
        let wake = desk.wake();
        let (departures, departed) = mpsc::unbounded_channel();
        let (jobs, device_lost) = (JobCount::default(), watch::Sender::new(None));
        let care = Care::begin(&limits.care, &engine, &jobs, device_lost.clone());
        let inner = Inner {
            opener: Opener::new(engine, limits.context_tokens_max, limits.kv_type),
            looks: Looks::default(),
            facts: facts::Cache::default(),
            store,
            catalog: manifests.subscribe(),
            desk: Mutex::new(desk),
            departures,
            jobs,
            phase,
            metrics,
            device_lost,
            care,
        };
        let models = Self { inner: Arc::new(inner) };
        tokio::spawn(models.clone().keep(wake, departed));
        manifests.judged_by(models.clone());
        models
    }

    /// Tells the scheduler the time, and which models are out of memory. Never returns.
    async fn keep(
        self,
        mut wake: watch::Receiver<Option<Instant>>,
        mut departed: mpsc::UnboundedReceiver<ModelName>,
    ) {
        loop {
            let due = *wake.borrow_and_update();
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(name) = departed.recv() => {
                    self.with_desk(|desk, outside| desk.departed(&name, outside));
                }
                _ = wake.changed() => {}
                () = due => self.with_desk(|desk, outside| desk.tick(outside)),
            }
        }
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

    /// What computes.
    pub(crate) fn engine(&self) -> &Engine {
        self.inner.opener.engine()
    }

    /// As [`Engine::stalled`].
    pub(crate) fn stalled(&self) -> Option<Duration> {
        self.engine().stalled()
    }

    /// The card, as it is looked after.
    pub(crate) fn care(&self) -> &Care {
        &self.inner.care
    }

    /// What computes, in words.
    pub(crate) fn device(&self) -> String {
        self.inner.opener.engine().device()
    }

    /// Answers of one model that are given at a time.
    pub(crate) fn side_by_side(&self) -> u32 {
        self.inner.opener.engine().sessions_side_by_side()
    }

    /// Asks for a model, to run on it; without a name for the one that is loaded. It is loaded if
    /// need be.
    pub(crate) async fn ask(
        &self,
        name: Option<&str>,
        urgency: Urgency,
    ) -> Result<Ticket, ModelError> {
        let name = name.map_or_else(|| self.only_loaded(), |name| Ok(name.to_owned()))?;
        self.ask_for(&ModelRef::Name(name), urgency).await
    }

    /// As [`Self::ask`], for a model by name or file.
    pub(crate) async fn ask_for(
        &self,
        wanted: &ModelRef,
        urgency: Urgency,
    ) -> Result<Ticket, ModelError> {
        let (_, ticket) = self.enter(wanted, Want::Run, urgency).await?;
        ticket.ok_or(ModelError::Internal)
    }

    /// Loads a model, or waits for its load, and says what it is when it is ready.
    pub(crate) async fn load(&self, wanted: &ModelRef) -> Result<ModelEntry, ModelError> {
        let (name, ticket) = self.enter(wanted, Want::Load, Urgency::default()).await?;
        let _run = match ticket {
            Some(ticket) => Some(ticket.turn().await?),
            None => None,
        };
        self.entry(&name).ok_or_else(|| self.not_loaded(&name))
    }

    /// Ends a model: after its requests, or now when forced. Returns when it is out of memory.
    pub(crate) async fn unload(&self, name: &str, force: bool) -> Result<ModelEntry, ModelError> {
        let name = ModelName::from(&*self.own_name(name));
        self.check_allowed(name.as_str())?;
        let before = self.entry(name.as_str());
        let asked = self.with_desk(|desk, outside| match desk.unload(&name, force, outside) {
            Err(_) if desk.forget_failure(&name, outside) => Ok(None),
            asked => asked.map(Some),
        });
        let before = match (asked, before) {
            (Ok(gone), Some(before)) => {
                if let Some(mut gone) = gone {
                    // It has nothing to say but that it ends.
                    while gone.changed().await.is_ok() {}
                }
                before
            }
            _ if self.is_known(name.as_str()) => return Err(self.not_loaded(name.as_str())),
            _ => return Err(ModelError::Unknown { name: name.to_string() }),
        };
        Ok(ModelEntry { state: ModelState::Stored, loaded: None, failure: None, ..before })
    }

    /// Has a model that is in memory stay there for so long without a request.
    pub(crate) fn keep_for(&self, name: &str, stay: Stay) {
        let name = ModelName::from(&*self.own_name(name));
        self.with_desk(|desk, outside| desk.keep(&name, stay, outside));
    }

    /// Whether there is a model of this name or alias.
    pub(crate) fn has(&self, name: &str) -> bool {
        let is_in_place = |known: &Known| !known.source.is_known();
        self.is_known(name) || self.with_desk(|desk, _| desk.known(name).is_some_and(is_in_place))
    }

    /// Ends a model now, with its requests.
    fn end_now(&self, name: &ModelName) {
        // It may have left by itself.
        let _ = self.with_desk(|desk, outside| desk.unload(name, true, outside));
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
        Ok(entry::stored_entry(&manifest))
    }

    // A matter of milliseconds, since weights are mapped, and it finds every mistake that would
    // otherwise be met on first use.
    pub(crate) fn describe(&self, path: &Path) -> Result<Description, String> {
        let info = self.inner.opener.inspect(path).map_err(|error| error.to_string())?;
        Ok(Description {
            architecture: info.architecture,
            quantization: info.quantization,
            parameters: info.parameters,
        })
    }

    /// A count of all requests.
    pub(crate) fn jobs(&self) -> &JobCount {
        &self.inner.jobs
    }

    /// Ends the wait of all who wait for a load, because the daemon stops.
    pub(crate) fn drain(&self) {
        self.with_desk(|desk, outside| desk.stop(false, outside));
    }

    /// Ends every request, because the daemon stops.
    pub(crate) fn stop(&self) {
        self.with_desk(|desk, outside| desk.stop(true, outside));
    }

    /// What is counted of them.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// The phase of the daemon.
    pub(crate) fn phase(&self) -> watch::Receiver<Phase> {
        self.inner.phase.clone()
    }

    /// Notes an error of the GPU, which may be its loss.
    pub(crate) fn device_failed(&self, error: GpuError) {
        if error.is_lost() {
            error!(%error, "the GPU is lost");
            self.inner.device_lost.send_replace(Some(error));
        }
    }

    /// Asks the scheduler for a model, which is told first what that is unless it knows. Returns the
    /// model's own name; no ticket where it is in memory and that is all that was wanted.
    async fn enter(
        &self,
        wanted: &ModelRef,
        want: Want,
        urgency: Urgency,
    ) -> Result<(String, Option<Ticket>), ModelError> {
        let name = self.name_of(wanted)?;
        self.check_allowed(&name)?;
        let mut urgency = urgency;
        if let Some(caller) = Caller::current() {
            urgency.class = caller.cap(urgency.class);
        }
        let admitted = self.inner.care.admit(urgency.time, self.phase()).await;
        urgency.time = admitted.map_err(ModelError::Ended)?;
        loop {
            if *self.inner.phase.borrow() != Phase::Serving {
                return Err(ModelError::Ended(Reason::Stopping));
            }
            let source = self.source(&name, wanted)?;
            if self.with_desk(|desk, _| serves(desk, &name, source.as_ref())) {
                let ticket = self.take_place(&name, want, urgency, |_, _| Ok(()))?;
                return Ok((name, ticket));
            }
            let Some(source) = source else { return Err(ModelError::Unknown { name }) };
            let definition = self.define(&name, &source).await?;
            // A manifest may have changed meanwhile.
            if !self.source(&name, wanted)?.is_some_and(|now| now.is_as(&source)) {
                continue;
            }
            let known = Known::new(source, definition);
            let ticket = self.take_place(&name, want, urgency, |desk, outside| {
                Ok(desk.define(&ModelName::from(&*name), known, outside)?)
            })?;
            return Ok((name, ticket));
        }
    }

    /// Does this and asks for the model, in one step.
    fn take_place(
        &self,
        name: &str,
        want: Want,
        urgency: Urgency,
        before: impl FnOnce(&mut Desk, &Self) -> Result<(), ModelError>,
    ) -> Result<Option<Ticket>, ModelError> {
        let counted = self.inner.jobs.count();
        let asked = self.with_desk(|desk, outside| {
            before(desk, outside)?;
            let deadline = urgency.time.map(|time| desk.deadline(time));
            let insists = want == Want::Load;
            let ask = Ask { class: urgency.class, deadline, insists, ..Ask::new(name) };
            desk.ask(ask, want, outside)
        })?;
        let ticket = |(id, told)| {
            Ticket::new(self.clone(), name.to_owned(), urgency.class, id, told, counted)
        };
        Ok(asked.map(ticket))
    }

    /// What the scheduler has to know of a model; where that cannot be told, why is kept.
    async fn define(&self, name: &str, source: &Source) -> Result<Definition, ModelError> {
        let weighed = self.weigh(name, source).await;
        if let Err(ModelError::Load(failure)) = &weighed
            && source.is_known()
        {
            let (source, failure) = (source.clone(), Arc::clone(failure));
            self.with_desk(|desk, _| desk.note_fault(name.into(), source, failure));
        }
        weighed
    }

    /// What the scheduler has to know of a model.
    async fn weigh(&self, name: &str, source: &Source) -> Result<Definition, ModelError> {
        let (models, own, from) = (self.clone(), name.to_owned(), source.clone());
        let weighed = spawn_blocking(move || models.inner.opener.define(&own, &from)).await;
        let weighed = weighed.map_err(|error| {
            error!(model = name, %error, "reading the model's file panicked");
            ModelError::Internal
        })?;
        weighed.map_err(|error| ModelError::Load(Arc::new(LoadFailure::from(&error))))
    }

    /// Whether who asks may use a model, by its own name.
    pub(crate) fn check_allowed(&self, name: &str) -> Result<(), ModelError> {
        let caller = Caller::current();
        let Some(key) = caller.as_ref().and_then(Caller::key) else { return Ok(()) };
        match &key.models {
            Some(allowed) if !allowed.iter().any(|listed| self.own_name(listed) == name) => {
                Err(ModelError::NotAllowed { name: name.to_owned(), key: key.name.clone() })
            }
            _ => Ok(()),
        }
    }

    fn name_of(&self, wanted: &ModelRef) -> Result<String, ModelError> {
        match wanted {
            ModelRef::Name(name) => Ok(self.own_name(name)),
            ModelRef::File(path) => Ok(self.own_name(&name_of_file(path)?)),
        }
    }

    /// Where a model's file is; `None` for a name that is neither defined nor stored, nor loaded.
    /// What a manifest defines comes before what is stored.
    fn source(&self, name: &str, wanted: &ModelRef) -> Result<Option<Source>, ModelError> {
        if let Some(model) = self.defined(name) {
            return defined::source(self.inner.store.pulls(), model, wanted).map(Some);
        }
        let stored = self.inner.store.find(name);
        match (wanted, stored) {
            (ModelRef::File(path), Some(manifest)) if manifest.source != *path => {
                Err(ModelError::NameStored { name: name.to_owned(), path: manifest.source })
            }
            (_, Some(manifest)) => {
                Ok(Some(Source::stored(self.inner.store.path_of(&manifest), manifest)))
            }
            (ModelRef::File(path), None) => self.in_place(name, path).map(Some),
            (ModelRef::Name(_), None) => Ok(self.with_desk(|desk, _| {
                let known = desk.known(name).filter(|known| !known.source.is_known());
                known.map(|known| known.source.clone())
            })),
        }
    }

    /// A file where it is. A name means whatever has it; a path must not be answered by another file.
    fn in_place(&self, name: &str, path: &Path) -> Result<Source, ModelError> {
        let taken = self.with_desk(|desk, _| {
            let other = desk.known(name).map(|known| known.source.path.clone());
            other.filter(|other| other != path && desk.is_coming(name))
        });
        match taken {
            Some(path) => Err(ModelError::NameTaken { name: name.to_owned(), path }),
            None => Ok(Source::in_place(path.to_path_buf())),
        }
    }

    fn is_known(&self, name: &str) -> bool {
        self.defined(name).is_some() || self.inner.store.find(name).is_some()
    }

    fn not_loaded(&self, name: &str) -> ModelError {
        ModelError::NotLoaded { name: name.to_owned() }
    }

    /// Does something at the desk. Nothing that waits, and never from within.
    fn with_desk<T>(&self, at: impl FnOnce(&mut Desk, &Self) -> T) -> T {
        at(&mut lock(&self.inner.desk), self)
    }
}

/// Whether a model is in memory, or on its way there, and is what is asked for.
fn serves(desk: &Desk, name: &str, source: Option<&Source>) -> bool {
    let same = |known: &Known| source.is_some_and(|source| known.source.is_as(source));
    desk.is_coming(name) && desk.known(name).is_some_and(same)
}

impl Outside for Models {
    fn load(&self, name: ModelName, source: Source) {
        let models = self.clone();
        spawn_blocking(move || {
            let started = Instant::now();
            let load = || models.inner.opener.load(&source);
            let failure = match catch_unwind(AssertUnwindSafe(load)) {
                Ok(Ok(model)) => {
                    let told = models.inner.departures.clone();
                    let departure = Departure { name, told };
                    let loaded = Loaded::new(source, model, started.elapsed(), departure);
                    return models.with_desk(|desk, outside| desk.loaded(loaded.into(), outside));
                }
                Ok(Err(error)) => {
                    let failure = LoadFailure::from(&error);
                    if let LoadError::Gpu { source, .. } = error {
                        models.device_failed(source);
                    }
                    failure
                }
                Err(_) => LoadFailure {
                    code: ErrorCode::Internal,
                    message: "loading it panicked, see the log of m40d".to_owned(),
                },
            };
            models.with_desk(|desk, outside| desk.load_failed(&name, failure, outside));
        });
    }

    fn drop_loaded(&self, loaded: Arc<Loaded>) {
        // To give back a large model's memory takes a while.
        spawn_blocking(move || drop(loaded));
    }
}

fn name_of_file(path: &Path) -> Result<String, ModelError> {
    match path.file_name().and_then(|name| name.to_str()) {
        Some(name) if path.is_absolute() => Ok(model_name_of_file(name)),
        _ => Err(ModelError::BadPath { path: PathBuf::from(path) }),
    }
}

#[cfg(test)]
impl Models {
    /// Those of a folder, with room for tiny ones.
    pub(crate) fn of_folder(
        dir: &Path,
        options: m40llm::EngineOptions,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        let limits = Limits {
            memory_bytes: 4 << 30,
            rules: Rules::default(),
            context_tokens_max: None,
            kv_type: KvType::F16,
            care: config::Care::default(),
        };
        let store = Store::open(dir, m40_store::Settings::default()).unwrap();
        let manifests = Manifests::open(&dir.join("models.d"));
        Self::new(Engine::new(options).unwrap(), store, &manifests, limits, phase)
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
        let models = Models::of_folder(dir.path(), EngineOptions::default(), phase);
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
