//! Which models are in memory, and which requests run on them.
//!
//! ```text
//!              asked for, and             the room              loaded
//!              room can be made           is free
//!   Stored ─────────────────▶ Claiming ─────────────▶ Loading ─────────▶ Ready ◀─┐
//!     ▲ ▲                                               │                  │     │ pinned
//!     │ └───────────────────── failed ──────────────────┘  to make room,   │     │ in time
//!     │                                                    idle, unload,   ▼     │
//!     └──────────────── Unloading ◀─────────────────────────────────── Leaving ──┘
//!          unloaded                 the last request has ended, or is cut short
//! ```
//!
//! A [`Scheduler`] is told what happens and says what is to be done. It relies on being asked for
//! everything: a request runs from [`Action::Start`] to [`Scheduler::finished`] and no longer, and
//! nothing else is loaded. Each call takes the time and returns [`Action`]s, to be done in their
//! order; [`Scheduler::next_wake`] says when to [`tick`](Scheduler::tick) if nothing happens before.
//! What comes too late (a request ends that was forgotten with its model) changes nothing.
//!
//! * The [`Ledger`] has every byte. A load begins when all its memory is free and reserved. Models
//!   that leave free memory, claims promise it, and never is more promised than will be free.
//! * Who waits for memory is served by urgency, which grows with time. Whoever has waited for
//!   `patience` lets nobody else pass, so memory comes together for large models too.
//! * Only models without requests are sent out for another, and none that is pinned or has just
//!   come: least priority first, then least recently used, then cheapest to load again. One that is
//!   always busy takes no more requests once another has waited for `patience`, or if that is more
//!   urgent; until then requests of models in memory go first, so that a swap serves many.
//! * A model that is on its way out goes, whoever asks for it meanwhile: they wait, and it is loaded
//!   again. Requests that waited for a load start with it, before anything else is decided.
//! * A load belongs to nobody. Everybody who needs the model waits for the same one, and it goes on
//!   when they leave.
//! * What cannot be is refused at once and with its arithmetic; what failed, with the reason and a
//!   time after which it is tried again.
//!
//! ```
//! use std::num::NonZeroU32;
//! use std::time::Duration;
//!
//! use m40_sched::residency::{Action, Ask, Definition, Rules, Scheduler};
//! use m40_sched::{Footprint, ModelName, Moment};
//!
//! let name = ModelName::from("small");
//! let page_tokens = NonZeroU32::new(32).unwrap();
//! let definition = Definition {
//!     footprint: Footprint { weights: 600, scratch: 50, page_bytes: 10, page_tokens, context: 64 },
//!     revision: 0,
//!     slots: NonZeroU32::new(4).unwrap(),
//!     priority: 0,
//!     pinned: false,
//!     preload: false,
//!     idle: None,
//!     load_time: Duration::from_secs(1),
//! };
//! let mut scheduler = Scheduler::new(Rules::default(), 1000);
//! scheduler.configure(Moment::START, [(name.clone(), definition)].into())?;
//!
//! let (request, actions) = scheduler.request(Moment::START, Ask::new("small"))?;
//! assert_eq!(actions, [Action::Load { model: name.clone() }]);
//! let parts = *scheduler.ledger().account(&name).unwrap().parts();
//! let later = Moment::START + Duration::from_secs(1);
//! let actions = scheduler.loaded(later, &name, parts);
//! assert_eq!(actions, [Action::Start { request, model: name }]);
//! assert_eq!(scheduler.ledger().free(), 330);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod action;
mod decide;
mod definition;
mod entry;
mod plan;
mod queue;
mod room;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

pub use action::{Action, Refusal, Why};
pub use definition::{Ask, Class, Definition, PinnedTooLarge, RequestId, Rules, check_pinned};
use entry::{Entry, Failure, State};
pub use plan::{ModelStatus, Outcome, Plan, Residence, Waiting};

use crate::footprint::{ModelName, Parts};
use crate::ledger::Ledger;
use crate::moment::Moment;

/// Bounds of the time after which who met a full queue is to come again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Models, their requests, and the memory that they share.
#[derive(Clone, Debug)]
pub struct Scheduler {
    rules: Rules,
    ledger: Ledger,
    models: BTreeMap<ModelName, Entry>,
    requests: BTreeMap<RequestId, Request>,
    deadlines: BTreeSet<(Moment, RequestId)>,
    /// Requests and claims so far.
    numbers: u64,
    /// The latest time that was heard of.
    now: Moment,
}

/// A request that waits or runs.
#[derive(Clone, Debug)]
struct Request {
    model: ModelName,
    class: Class,
    since: Moment,
    deadline: Option<Moment>,
    run: Run,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Waits,
    Since(Moment),
    /// It was told to end.
    Stopped,
}

/// A model is not in memory, nor on its way there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the model {:?} is not loaded", .0.as_str())]
pub struct NotLoaded(pub ModelName);

impl Scheduler {
    /// For `budget` bytes, all of them free, and no models yet.
    pub fn new(rules: Rules, budget: u64) -> Self {
        Self {
            rules,
            ledger: Ledger::new(budget),
            models: BTreeMap::new(),
            requests: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            numbers: 0,
            now: Moment::START,
        }
    }

    /// Who holds which bytes.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Replaces all definitions. A model that is defined as before is not touched; priority, pin,
    /// idle time, slots and preload change at once, a footprint with the next load. A model with
    /// another revision, or without a definition, leaves when its requests are done; those that wait
    /// for it wait for the new one, or are refused if there is none.
    ///
    /// # Errors
    /// [`PinnedTooLarge`]; everything is as before.
    pub fn configure(
        &mut self,
        now: Moment,
        definitions: BTreeMap<ModelName, Definition>,
    ) -> Result<Vec<Action>, PinnedTooLarge> {
        check_pinned(&definitions, self.ledger.budget())?;
        let mut actions = self.begin(now);
        let gone = self.models.keys().filter(|name| !definitions.contains_key(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.remove(&name, &mut actions);
        }
        for (name, definition) in definitions {
            match self.models.get_mut(&name) {
                Some(entry) => redefine(entry, definition, self.now),
                None => {
                    self.models.insert(name, Entry::new(definition, self.now));
                }
            }
        }
        Ok(self.decide(actions))
    }

    /// Somebody asks for a model. The request starts or is refused by an [`Action`], of these or of
    /// later ones.
    ///
    /// # Errors
    /// Why it is refused at once. Nothing else has changed.
    pub fn request(&mut self, now: Moment, ask: Ask) -> Result<(RequestId, Vec<Action>), Refusal> {
        let actions = self.begin(now);
        self.check(&ask)?;
        let Ask { model, class, deadline, .. } = ask;
        let id = RequestId(self.number());
        if let Some(entry) = self.models.get_mut(&model) {
            entry.waiting.push(id, class, self.now);
            entry.wanted = entry.definition.preload.then_some(entry.wanted.unwrap_or(self.now));
        }
        self.deadlines.extend(deadline.map(|deadline| (deadline, id)));
        let request = Request { model, class, since: self.now, deadline, run: Run::Waits };
        self.requests.insert(id, request);
        Ok((id, self.decide(actions)))
    }

    /// A request that was started has ended, however it did.
    pub fn finished(&mut self, now: Moment, request: RequestId) -> Vec<Action> {
        let actions = self.begin(now);
        let runs = self.requests.get(&request).is_some_and(|request| request.run != Run::Waits);
        if runs
            && let Some(ended) = self.forget(request)
            && let Some(entry) = self.models.get_mut(&ended.model)
        {
            entry.running.remove(&request);
            entry.last_used = self.now;
            if let Run::Since(start) = ended.run {
                entry.answered_in(self.now.since(start));
            }
        }
        self.decide(actions)
    }

    /// Whoever asked wants no answer any more. A request that waits is forgotten; of one that runs
    /// [`Action::Stop`] follows. The load of its model goes on.
    pub fn cancel(&mut self, now: Moment, request: RequestId) -> Vec<Action> {
        let mut actions = self.begin(now);
        if self.requests.get(&request).is_some_and(|request| request.run == Run::Waits) {
            self.forget(request);
        } else {
            self.stop(request, &mut actions);
        }
        self.decide(actions)
    }

    /// A model that was to be loaded is in memory and holds `parts` of it. If that is more than was
    /// reserved and is free, the model is sent out again and counts as failed.
    pub fn loaded(&mut self, now: Moment, model: &ModelName, parts: Parts) -> Vec<Action> {
        let mut actions = self.begin(now);
        let Some(entry) = self.models.get_mut(model) else { return self.decide(actions) };
        let State::Loading { since, then } = entry.state else { return self.decide(actions) };
        entry.load_took = Some(self.now.since(since));
        entry.last_used = self.now;
        let here = self.now;
        let leaving = |why| State::Leaving { loaded: here, since: here, why };
        if let Err(error) = self.ledger.settle(model, parts) {
            entry.state = leaving(Why::TooLarge);
            self.fail(model, error.to_string().into(), &mut actions);
            return self.decide(actions);
        }
        entry.failure = None;
        entry.crowded = false;
        entry.kv_least = parts.kv;
        entry.state = State::Ready { since: self.now };
        if let Some(why) = then {
            self.start_waiting(&mut actions);
            if let Some(entry) = self.models.get_mut(model) {
                entry.state = leaving(why);
            }
        }
        self.decide(actions)
    }

    /// A model that was to be loaded could not be, and holds no memory. Who waits for it is refused
    /// with the reason, and so is who asks before the time to try again.
    pub fn load_failed(
        &mut self,
        now: Moment,
        model: &ModelName,
        reason: impl Into<Arc<str>>,
    ) -> Vec<Action> {
        let mut actions = self.begin(now);
        let Some(entry) = self.models.get_mut(model) else { return self.decide(actions) };
        let State::Loading { then, .. } = entry.state else { return self.decide(actions) };
        self.put_away(model);
        // It says nothing about the definition that there is now.
        if then != Some(Why::Changed) {
            self.fail(model, reason.into(), &mut actions);
        }
        self.decide(actions)
    }

    /// A model that was to leave holds no memory any more, and none of its requests runs.
    pub fn unloaded(&mut self, now: Moment, model: &ModelName) -> Vec<Action> {
        let actions = self.begin(now);
        let goes = |entry: &Entry| matches!(entry.state, State::Unloading { .. });
        if self.models.get(model).is_some_and(goes) {
            self.put_away(model);
        }
        self.decide(actions)
    }

    /// A model in memory broke: it holds none any more, and none of its requests runs. Who waits for
    /// it is refused with the reason, and it may be loaded again after a time.
    pub fn broke(
        &mut self,
        now: Moment,
        model: &ModelName,
        reason: impl Into<Arc<str>>,
    ) -> Vec<Action> {
        let mut actions = self.begin(now);
        let Some(entry) = self.models.get(model) else { return self.decide(actions) };
        match entry.state {
            State::Ready { .. } => {
                self.put_away(model);
                self.fail(model, reason.into(), &mut actions);
            }
            State::Leaving { .. } | State::Unloading { .. } => self.put_away(model),
            State::Stored | State::Claiming { .. } | State::Loading { .. } => {}
        }
        self.decide(actions)
    }

    /// An operator sends a model out of memory: after the requests that run, or by `force` without
    /// waiting for them, and then who waits for it is refused. A load is not interrupted, the model
    /// leaves after it. It is not loaded again before somebody asks, but who waits has asked.
    ///
    /// # Errors
    /// [`NotLoaded`].
    pub fn unload(
        &mut self,
        now: Moment,
        model: &ModelName,
        force: bool,
    ) -> Result<Vec<Action>, NotLoaded> {
        let mut actions = self.begin(now);
        let not_loaded = || NotLoaded(model.clone());
        let entry = self.models.get_mut(model).ok_or_else(not_loaded)?;
        if matches!(entry.state, State::Stored | State::Claiming { .. }) {
            return Err(not_loaded());
        }
        leave(entry, self.now, Why::Asked);
        entry.wanted = None;
        if force {
            self.refuse_waiting(model, &Refusal::Unloaded(model.clone()), &mut actions);
            self.cut_short(model, &mut actions);
        }
        Ok(self.decide(actions))
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Moment) -> Vec<Action> {
        let actions = self.begin(now);
        self.decide(actions)
    }

    fn begin(&mut self, now: Moment) -> Vec<Action> {
        self.now = self.now.max(now);
        vec![]
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Whether a request may wait at all.
    fn check(&self, ask: &Ask) -> Result<(), Refusal> {
        let name = &ask.model;
        let entry = self.models.get(name).filter(|entry| !entry.removed);
        let entry = entry.ok_or_else(|| Refusal::Unknown(name.clone()))?;
        if matches!(entry.state, State::Stored) || entry.is_going() {
            self.check_room(name, entry)?;
            if let Some(failure) = entry.failure.as_ref().filter(|_| !ask.insists)
                && entry.cools(self.now)
            {
                return Err(self.load_refusal(name, failure));
            }
        }
        let (limit, model) = (self.rules.waiting_max.get(), name.clone());
        if entry.waiting.len() >= limit {
            let retry_after = entry.wait(limit).unwrap_or_default().clamp(RETRY.0, RETRY.1);
            return Err(Refusal::QueueFull { model, limit, retry_after });
        }
        Ok(())
    }

    fn load_refusal(&self, model: &ModelName, failure: &Failure) -> Refusal {
        Refusal::LoadFailed {
            model: model.clone(),
            reason: Arc::clone(&failure.reason),
            failures: failure.in_a_row,
            retry_after: failure.until.since(self.now),
        }
    }

    /// Takes a model out of the definitions.
    fn remove(&mut self, name: &ModelName, actions: &mut Vec<Action>) {
        self.refuse_waiting(name, &Refusal::Removed(name.clone()), actions);
        let Some(entry) = self.models.get_mut(name) else { return };
        entry.removed = true;
        entry.wanted = None;
        leave(entry, self.now, Why::Removed);
        if matches!(entry.state, State::Stored | State::Claiming { .. }) {
            self.models.remove(name);
        }
    }

    /// A model holds no memory any more, and its requests that ran are over.
    fn put_away(&mut self, name: &ModelName) {
        // An account was opened when its load began.
        let _ = self.ledger.close(name);
        let Some(entry) = self.models.get_mut(name) else { return };
        entry.state = State::Stored;
        entry.owes = 0;
        let over = std::mem::take(&mut entry.running);
        if entry.removed {
            self.models.remove(name);
        }
        for request in over {
            self.forget(request);
        }
    }

    /// Notes that a load failed, and tells who waits.
    fn fail(&mut self, name: &ModelName, reason: Arc<str>, actions: &mut Vec<Action>) {
        let Some(entry) = self.models.get_mut(name) else { return };
        let in_a_row = entry.failure.as_ref().map_or(1, |last| last.in_a_row.saturating_add(1));
        let until = self.now + self.rules.cooldown_after(in_a_row);
        let failure = Failure { reason, in_a_row, until };
        entry.crowded = false;
        entry.failure = Some(failure.clone());
        let refusal = self.load_refusal(name, &failure);
        self.refuse_waiting(name, &refusal, actions);
    }

    fn refuse_waiting(&mut self, name: &ModelName, refusal: &Refusal, actions: &mut Vec<Action>) {
        let Some(entry) = self.models.get(name) else { return };
        for place in entry.waiting.in_order(&self.rules, self.now) {
            self.forget(place.request);
            actions.push(Action::Refuse { request: place.request, refusal: refusal.clone() });
        }
    }

    /// Has a running request end, unless it was told already.
    fn stop(&mut self, request: RequestId, actions: &mut Vec<Action>) {
        if let Some(running) = self.requests.get_mut(&request)
            && running.run != Run::Stopped
        {
            running.run = Run::Stopped;
            actions.push(Action::Stop { request });
        }
    }

    /// Knows nothing of a request any more, but that it runs if it does.
    fn forget(&mut self, id: RequestId) -> Option<Request> {
        let request = self.requests.remove(&id)?;
        if let Some(entry) = self.models.get_mut(&request.model) {
            entry.waiting.remove(id, request.class);
        }
        if let Some(deadline) = request.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        Some(request)
    }
}

/// A model in memory, or on its way there, is to leave when its requests are done, unless there is a
/// better reason already.
fn leave(entry: &mut Entry, now: Moment, why: Why) {
    match &mut entry.state {
        State::Loading { then, .. } => *then = (*then).max(Some(why)),
        State::Ready { since: loaded } => {
            entry.state = State::Leaving { loaded: *loaded, since: now, why };
        }
        State::Leaving { since, why: before, .. } if *before < why => {
            (*since, *before) = (now, why);
        }
        State::Stored
        | State::Claiming { .. }
        | State::Leaving { .. }
        | State::Unloading { .. } => {}
    }
}

/// Gives a model that is known another definition.
fn redefine(entry: &mut Entry, definition: Definition, now: Moment) {
    let returns = std::mem::take(&mut entry.removed);
    if definition.preload != entry.definition.preload || returns {
        entry.wanted = definition.preload.then_some(now);
    }
    if (definition.revision, definition.footprint)
        != (entry.definition.revision, entry.definition.footprint)
    {
        entry.failure = None;
    }
    if definition.revision != entry.definition.revision {
        leave(entry, now, Why::Changed);
    } else {
        stay(entry, definition.pinned);
    }
    entry.definition = definition;
}

/// Keeps a model that was to leave if the reason is none any more.
fn stay(entry: &mut Entry, pinned: bool) {
    let is_none = |why| match why {
        Why::Removed => true,
        Why::Room | Why::Idle => pinned,
        Why::Asked | Why::Changed | Why::TooLarge => false,
    };
    match &mut entry.state {
        State::Leaving { loaded, why, .. } if is_none(*why) => {
            entry.state = State::Ready { since: *loaded };
        }
        State::Loading { then, .. } => *then = then.filter(|why| !is_none(*why)),
        _ => {}
    }
}
