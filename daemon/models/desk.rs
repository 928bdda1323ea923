//! The scheduler, and what is begun on its word.
//!
//! One lock is around all of this, and nothing under it waits: a load or the end of a model is begun on
//! a thread of its own, a request is told through a channel. So what was decided first is begun first,
//! and what is in memory is what the scheduler says. What was begun comes back as an event:
//! `loaded`, `load_failed`, `departed`, `leave`.

mod known;
mod sessions;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use m40_sched::residency::{
    Action, Ask, Class, ModelStatus, NotLoaded, PinnedTooLarge, Plan, Refusal, Residence, Rules,
    Waiting,
};
use m40_sched::{Ledger, ModelName, Moment, RequestId, Scheduler};
use tokio::sync::{oneshot, watch};
use tracing::{info, warn};

pub(super) use known::Known;
use known::definitions;

use super::error::{LoadFailure, ModelError};
use super::job::{Cut, Reason};
use super::loaded::Loaded;
use super::source::Source;
use crate::metrics::Metrics;

/// A model that has an account in the ledger: it is being loaded, is in memory, or still goes.
#[derive(Debug)]
struct Resident {
    /// Absent until it is loaded, and from when it is to go.
    loaded: Option<Arc<Loaded>>,
    /// Requests that run, each in a session.
    sessions: u32,
    /// What a session takes beside another; see [`sessions`].
    session_bytes: u64,
    /// Closed when it is out of memory.
    gone: watch::Sender<()>,
}

/// What a request wants of its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// To run on it.
    Run,
    /// That it is in memory, even if that failed lately.
    Load,
}

/// What a request that may begin has.
#[derive(Debug)]
pub(super) struct Started {
    pub loaded: Arc<Loaded>,
    pub cut: Arc<Cut>,
}

/// How a request's wait ended.
pub(super) type Told = Result<Started, ModelError>;

#[derive(Debug)]
struct Request {
    model: ModelName,
    class: Class,
    want: Want,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Waits(oneshot::Sender<Told>),
    /// It may run, and waits for memory for its session.
    Held {
        since: Moment,
        teller: oneshot::Sender<Told>,
    },
    Runs {
        since: Moment,
        cut: Arc<Cut>,
        /// Bytes that it has beyond those of a session.
        lent: u64,
    },
}

/// A request as it is now.
#[derive(Debug)]
pub(super) struct Seen {
    pub id: RequestId,
    pub model: ModelName,
    pub class: Class,
    pub stage: Progress,
}

#[derive(Debug)]
pub(super) enum Progress {
    /// Requests of the model that are before it, since when it waits, and how long it may take.
    Waits {
        ahead: usize,
        since: Duration,
        wait: Option<Duration>,
    },
    Runs {
        since: Duration,
    },
}

/// What is begun under the lock and goes on outside of it.
pub(super) trait Outside {
    /// Loads a model.
    fn load(&self, name: ModelName, source: Source);
    /// Drops what may be the last handle of a model.
    fn drop_loaded(&self, loaded: Arc<Loaded>);
}

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Desk {
    scheduler: Scheduler,
    known: BTreeMap<ModelName, Known>,
    /// Why known names that the scheduler has no definition of cannot be loaded.
    faults: BTreeMap<ModelName, (Source, Arc<LoadFailure>)>,
    /// Whether models that are to be pinned are.
    pins_count: bool,
    residents: BTreeMap<ModelName, Resident>,
    requests: BTreeMap<RequestId, Request>,
    started: Instant,
    metrics: Metrics,
    /// When the scheduler is to be told the time.
    wake: watch::Sender<Option<Instant>>,
}

impl Desk {
    pub(super) fn new(rules: Rules, budget: u64, metrics: Metrics) -> Self {
        Self {
            scheduler: Scheduler::new(rules, budget),
            known: BTreeMap::new(),
            faults: BTreeMap::new(),
            pins_count: true,
            residents: BTreeMap::new(),
            requests: BTreeMap::new(),
            started: Instant::now(),
            metrics,
            wake: watch::Sender::new(None),
        }
    }

    /// When to [`tick`](Self::tick).
    pub(super) fn wake(&self) -> watch::Receiver<Option<Instant>> {
        self.wake.subscribe()
    }

    pub(super) fn ledger(&self) -> &Ledger {
        self.scheduler.ledger()
    }

    pub(super) fn statuses(&self) -> Vec<ModelStatus> {
        self.scheduler.models()
    }

    /// How long from now until then.
    pub(super) fn until(&self, then: Moment) -> Duration {
        then.since(self.now())
    }

    pub(super) fn status(&self, name: &str) -> Option<ModelStatus> {
        self.scheduler.model(name)
    }

    pub(super) fn loaded_of(&self, name: &str) -> Option<&Arc<Loaded>> {
        self.residents.get(name)?.loaded.as_ref()
    }

    /// Whether a model is in memory, or on its way there.
    pub(super) fn is_coming(&self, name: &str) -> bool {
        let coming = |status: ModelStatus| {
            matches!(status.residence, Residence::Claiming | Residence::Loading | Residence::Ready)
        };
        self.status(name).is_some_and(coming)
    }

    /// All requests, in the order in which they came.
    pub(super) fn requests(&self) -> Vec<Seen> {
        let waiting = self.scheduler.queue().into_iter();
        let waiting: BTreeMap<RequestId, Waiting> =
            waiting.map(|waiting| (waiting.request, waiting)).collect();
        let now = self.now();
        let seen = |(&id, request): (&RequestId, &Request)| {
            let stage = match (&request.stage, waiting.get(&id)) {
                (Stage::Runs { since, .. }, _) => Progress::Runs { since: now.since(*since) },
                (Stage::Held { since, .. }, _) => {
                    Progress::Waits { ahead: 0, since: now.since(*since), wait: None }
                }
                (Stage::Waits(_), Some(waiting)) => {
                    let &Waiting { ahead, since, wait, .. } = waiting;
                    Progress::Waits { ahead, since: now.since(since), wait }
                }
                // It was told to begin, or why not, and has not heard yet.
                (Stage::Waits(_), None) => return None,
            };
            let (model, class) = (request.model.clone(), request.class);
            Some(Seen { id, model, class, stage })
        };
        self.requests.iter().filter_map(seen).collect()
    }

    /// What would come of a request, for a model that may not be known yet. Nothing changes.
    pub(super) fn plan(&self, ask: Ask, known: Option<Known>) -> Result<Plan, PinnedTooLarge> {
        let Some(known) = known else { return Ok(self.scheduler.plan(self.now(), ask)) };
        let mut trial = self.scheduler.clone();
        let mut definitions = definitions(&self.known);
        definitions.insert(ask.model.clone(), known.definition);
        trial.configure(self.now(), definitions)?;
        Ok(trial.plan(self.now(), ask))
    }

    /// Somebody asks for a model. `None`: it is in memory, and that is all that was wanted.
    pub(super) fn ask(
        &mut self,
        ask: Ask,
        want: Want,
        outside: &impl Outside,
    ) -> Result<Option<(RequestId, oneshot::Receiver<Told>)>, ModelError> {
        let (model, class) = (ask.model.clone(), ask.class);
        if want == Want::Load && self.is_ready(&model) {
            return Ok(None);
        }
        let asked = self.scheduler.request(self.now(), ask);
        let (id, actions) = asked.map_err(|refusal| self.refused(refusal))?;
        let (teller, told) = oneshot::channel();
        self.requests.insert(id, Request { model, class, want, stage: Stage::Waits(teller) });
        self.carry_out(actions, outside);
        Ok(Some((id, told)))
    }

    /// After how long a request is to be over, as a moment.
    pub(super) fn deadline(&self, time: Duration) -> Moment {
        self.now() + time
    }

    /// A request has ended, or nobody wants its answer any more.
    pub(super) fn leave(&mut self, id: RequestId, outside: &impl Outside) {
        let Some(request) = self.requests.remove(&id) else { return };
        let actions = match request.stage {
            Stage::Waits(_) => self.scheduler.cancel(self.now(), id),
            Stage::Held { .. } => self.scheduler.finished(self.now(), id),
            Stage::Runs { lent, .. } => {
                let mut actions = self.end_session(&request.model, lent);
                actions.extend(self.scheduler.finished(self.now(), id));
                actions
            }
        };
        self.carry_out(actions, outside);
    }

    /// An operator ends a request.
    pub(super) fn cancel(&mut self, number: u64, outside: &impl Outside) -> Option<Seen> {
        let seen = self.requests().into_iter().find(|seen| seen.id.number() == number)?;
        self.end(seen.id, Reason::Cancelled, outside);
        Some(seen)
    }

    /// Ends all requests because the daemon stops, or only those that wait for a load.
    pub(super) fn stop(&mut self, all: bool, outside: &impl Outside) {
        let ready: Vec<ModelName> =
            self.residents.keys().filter(|name| self.is_ready(name)).cloned().collect();
        let ends = |request: &Request| {
            all || (matches!(request.stage, Stage::Waits(_)) && !ready.contains(&request.model))
        };
        let ends = self.requests.iter().filter(|(_, request)| ends(request));
        for id in ends.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.end(id, Reason::Stopping, outside);
        }
    }

    fn end(&mut self, id: RequestId, reason: Reason, outside: &impl Outside) {
        match self.requests.get(&id).map(|request| &request.stage) {
            None => return,
            Some(Stage::Runs { cut, .. }) => cut.short(reason),
            Some(Stage::Waits(_)) => self.tell(id, Err(ModelError::Ended(reason))),
            Some(Stage::Held { .. }) => {
                self.tell(id, Err(ModelError::Ended(reason)));
                let actions = self.scheduler.finished(self.now(), id);
                return self.carry_out(actions, outside);
            }
        }
        let actions = self.scheduler.cancel(self.now(), id);
        self.carry_out(actions, outside);
    }

    /// An operator sends a model out of memory. Whoever waits for that is told by the end of what is
    /// returned.
    pub(super) fn unload(
        &mut self,
        name: &ModelName,
        force: bool,
        outside: &impl Outside,
    ) -> Result<watch::Receiver<()>, NotLoaded> {
        let resident = self.residents.get(name).ok_or_else(|| NotLoaded(name.clone()))?;
        let gone = resident.gone.subscribe();
        let actions = self.scheduler.unload(self.now(), name, force)?;
        self.carry_out(actions, outside);
        Ok(gone)
    }

    /// A load is done.
    pub(super) fn loaded(&mut self, loaded: Arc<Loaded>, outside: &impl Outside) {
        let (name, parts) = (loaded.name.clone(), loaded.model.footprint().parts());
        // It has been there since the load began.
        let Some(resident) = self.residents.get_mut(&name) else { return };
        info!(model = name.as_str(), ms = loaded.load_time.as_millis() as u64, "loaded");
        self.metrics.loaded(name.as_str(), loaded.load_time);
        resident.session_bytes = loaded.model.session_bytes();
        resident.loaded = Some(loaded);
        if let Some(known) = self.known.get_mut(&name) {
            known.failure = None;
        }
        let actions = self.scheduler.loaded(self.now(), &name, parts);
        self.carry_out(actions, outside);
        self.tell_loaders(&name, outside);
    }

    /// Whoever wanted no more than that a model is in memory need not wait for a place.
    fn tell_loaders(&mut self, name: &ModelName, outside: &impl Outside) {
        let Some(loaded) = self.loaded_of(name.as_str()).cloned() else { return };
        let loads = |request: &Request| {
            let waits = matches!(request.stage, Stage::Waits(_));
            waits && request.want == Want::Load && request.model == *name
        };
        let loaders = self.requests.iter().filter(|(_, request)| loads(request));
        for id in loaders.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.tell(id, Ok(Started { loaded: Arc::clone(&loaded), cut: Arc::default() }));
            let actions = self.scheduler.cancel(self.now(), id);
            self.carry_out(actions, outside);
        }
    }

    /// A load failed and left nothing in memory.
    pub(super) fn load_failed(
        &mut self,
        name: &ModelName,
        failure: LoadFailure,
        outside: &impl Outside,
    ) {
        let found_no_place = failure.found_no_place();
        let LoadFailure { code, message } = failure;
        warn!(model = name.as_str(), error = message, "cannot load");
        self.metrics.load_failed(name.as_str());
        self.residents.remove(name);
        if let Some(known) = self.known.get_mut(name) {
            known.failure = Some(code);
        }
        let now = self.now();
        let actions = if found_no_place {
            self.scheduler.found_no_place(now, name, message)
        } else {
            self.scheduler.load_failed(now, name, message)
        };
        self.carry_out(actions, outside);
    }

    /// A model is out of memory.
    pub(super) fn departed(&mut self, name: &ModelName, outside: &impl Outside) {
        info!(model = name.as_str(), "unloaded");
        let resident = self.residents.remove(name);
        let actions = self.scheduler.unloaded(self.now(), name);
        self.carry_out(actions, outside);
        drop(resident);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self, outside: &impl Outside) {
        let actions = self.scheduler.tick(self.now());
        self.carry_out(actions, outside);
    }

    fn now(&self) -> Moment {
        Moment::after_start(self.started.elapsed())
    }

    fn is_ready(&self, name: &ModelName) -> bool {
        let status = self.status(name.as_str());
        status.is_some_and(|status| status.residence == Residence::Ready)
    }

    fn carry_out(&mut self, actions: Vec<Action>, outside: &impl Outside) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Start { request, model } => {
                    if !self.start(request, &model) {
                        actions.extend(self.scheduler.finished(self.now(), request));
                    }
                }
                Action::Refuse { request, refusal } => {
                    let refusal = self.refused(refusal);
                    self.tell(request, Err(refusal));
                }
                Action::Stop { request } => match self.requests.get(&request) {
                    Some(Request { stage: Stage::Runs { cut, .. }, .. }) => {
                        cut.short(Reason::Deadline);
                    }
                    Some(Request { stage: Stage::Held { .. }, .. }) => {
                        self.tell(request, Err(ModelError::Ended(Reason::Deadline)));
                        actions.extend(self.scheduler.finished(self.now(), request));
                    }
                    _ => {}
                },
                Action::Load { model } => self.begin_load(model, outside),
                Action::Unload { model, why, cut_short } => {
                    info!(model = model.as_str(), ?why, cut_short, "unloading");
                    self.metrics.evicted(model.as_str(), why);
                    self.begin_unload(&model, outside);
                }
                // What a model has beyond its load is all in use, and goes back as its requests end.
                Action::ShrinkKv { .. } => {}
            }
        }
        self.begin_held();
        let wake = self.scheduler.next_wake();
        let wake = wake.map(|wake| self.started + wake.since(Moment::START));
        self.wake.send_if_modified(|before| std::mem::replace(before, wake) != wake);
    }

    /// Ends a request's wait. Nothing more is heard of it.
    fn tell(&mut self, id: RequestId, told: Told) {
        let stage = self.requests.remove(&id).map(|request| request.stage);
        if let Some(Stage::Waits(teller) | Stage::Held { teller, .. }) = stage {
            // Who does not listen any more has left.
            drop(teller.send(told));
        }
    }

    fn begin_load(&mut self, model: ModelName, outside: &impl Outside) {
        // Only what is defined is loaded.
        let Some(known) = self.known.get(&model) else { return };
        info!(model = model.as_str(), path = %known.source.path.display(), "loading");
        let resident =
            Resident { loaded: None, sessions: 0, session_bytes: 0, gone: watch::Sender::new(()) };
        self.residents.insert(model.clone(), resident);
        outside.load(model, known.source.clone());
    }

    fn begin_unload(&mut self, model: &ModelName, outside: &impl Outside) {
        let mut held = vec![];
        for (id, request) in self.requests.iter().filter(|(_, request)| request.model == *model) {
            match &request.stage {
                Stage::Runs { cut, .. } => cut.short(Reason::Unloaded),
                Stage::Held { .. } => held.push(*id),
                Stage::Waits(_) => {}
            }
        }
        for id in held {
            self.tell(id, Err(ModelError::Ended(Reason::Unloaded)));
        }
        let resident = self.residents.get_mut(model);
        if let Some(loaded) = resident.and_then(|resident| resident.loaded.take()) {
            outside.drop_loaded(loaded);
        }
    }

    fn refused(&self, refusal: Refusal) -> ModelError {
        let failure = match &refusal {
            Refusal::LoadFailed { model, .. } => self.known.get(model).and_then(|k| k.failure),
            _ => None,
        };
        ModelError::Refused { refusal: Box::new(refusal), failure }
    }
}
