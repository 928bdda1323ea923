//! What would happen, and what there is: for those who look.

use std::sync::Arc;
use std::time::Duration;

use super::Scheduler;
use super::action::{Action, Refusal, Why};
use super::decide::Demand;
use super::definition::{Ask, Class, RequestId};
use super::entry::{Entry, State};
use super::room::Room;
use crate::footprint::{ModelName, Parts};
use crate::moment::Moment;

/// What would happen if a model was asked for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The model.
    pub model: ModelName,
    /// What would come of the request.
    pub outcome: Outcome,
    /// What the model takes.
    pub needs: Parts,
    /// Bytes that are free now.
    pub free: u64,
    /// Models that would leave for it, and the bytes that each frees.
    pub evicts: Vec<(ModelName, u64)>,
    /// Models that would give back KV cache for it, and how many bytes.
    pub shrinks: Vec<(ModelName, u64)>,
    /// Of those that would leave, the ones whose requests are awaited first, and how many run.
    pub awaits: Vec<(ModelName, usize)>,
    /// How long the load is thought to take, if there would be one.
    pub load_time: Option<Duration>,
    /// Requests for the same model that would be answered before.
    pub ahead: usize,
}

/// What would come of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It would run at once.
    Starts,
    /// The model is in memory, and others have all places.
    WaitsForPlace,
    /// The model is being loaded already, or will be as soon as there is room.
    JoinsLoad,
    /// The model is on its way out, and would be loaded again.
    LoadsAgain,
    /// The model would be loaded now, or once idle models have left.
    Loads,
    /// Others would have to end their requests first, or to have been in memory for longer.
    WaitsForRoom,
    /// It would not be answered.
    Refused(Refusal),
}

/// A model's place in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residence {
    /// Not in memory.
    Stored,
    /// Not in memory, and not loaded for now because that failed.
    Failed,
    /// About to be loaded, once others have left.
    Claiming,
    /// Being loaded.
    Loading,
    /// In memory.
    Ready,
    /// In memory until its requests have ended.
    Leaving(Why),
    /// Being taken out of memory.
    Unloading,
}

/// A model as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelStatus {
    /// Its name.
    pub model: ModelName,
    /// Where it is.
    pub residence: Residence,
    /// What it holds.
    pub parts: Parts,
    /// Requests that run.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// When it leaves if nobody asks for it.
    pub idle_end: Option<Moment>,
    /// Why it could not be loaded, and how often in a row.
    pub failure: Option<(Arc<str>, u32)>,
    /// What its latest load took.
    pub load_took: Option<Duration>,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Which.
    pub request: RequestId,
    /// For this model.
    pub model: ModelName,
    /// How urgent it is.
    pub class: Class,
    /// Since when it waits.
    pub since: Moment,
    /// Requests for the same model that are before it.
    pub ahead: usize,
    /// When it may run, as far as that can be told from earlier answers.
    pub wait: Option<Duration>,
}

impl Scheduler {
    /// What would happen if this was asked for now. It is tried on a copy, so it is what would happen.
    pub fn plan(&self, now: Moment, ask: Ask) -> Plan {
        let model = ask.model.clone();
        let mut before = self.clone();
        // What time alone brings about is not because of the request.
        before.tick(now);
        let mut trial = before.clone();
        let entry = before.models.get(&model);
        let mut plan = Plan {
            needs: entry.map(|entry| entry.definition.footprint.parts()).unwrap_or_default(),
            free: before.ledger.free(),
            evicts: vec![],
            shrinks: vec![],
            awaits: vec![],
            load_time: None,
            ahead: 0,
            outcome: Outcome::Starts,
            model,
        };
        match trial.request(now, ask) {
            Err(refusal) => plan.outcome = Outcome::Refused(refusal),
            Ok((id, actions)) => plan.follow(&before, &trial, id, &actions),
        }
        plan
    }

    /// All models, by name.
    pub fn models(&self) -> Vec<ModelStatus> {
        self.models.iter().map(|(name, entry)| self.status(name, entry)).collect()
    }

    /// The model of this name.
    pub fn model(&self, name: &str) -> Option<ModelStatus> {
        self.models.get_key_value(name).map(|(name, entry)| self.status(name, entry))
    }

    fn status(&self, name: &ModelName, entry: &Entry) -> ModelStatus {
        ModelStatus {
            model: name.clone(),
            residence: self.residence(entry),
            parts: self.ledger.account(name).map(|account| *account.parts()).unwrap_or_default(),
            running: entry.running.len(),
            waiting: entry.waiting.len(),
            idle_end: entry.idle_end(),
            failure: entry.failure.as_ref().map(|f| (Arc::clone(&f.reason), f.in_a_row)),
            load_took: entry.load_took,
        }
    }

    /// A request that waits; `None` if it does not, or not any more.
    pub fn waiting(&self, request: RequestId) -> Option<Waiting> {
        let (model, entry) = self.models.get_key_value(&self.requests.get(&request)?.model)?;
        self.waiting_for(model, entry).find(|waiting| waiting.request == request)
    }

    /// All requests that wait, in the order in which they came.
    pub fn queue(&self) -> Vec<Waiting> {
        let of_model = |(model, entry)| self.waiting_for(model, entry);
        let mut all: Vec<_> = self.models.iter().flat_map(of_model).collect();
        all.sort_unstable_by_key(|waiting| waiting.request);
        all
    }

    /// The requests that wait for a model, the next first.
    fn waiting_for<'a>(
        &self,
        model: &'a ModelName,
        entry: &'a Entry,
    ) -> impl Iterator<Item = Waiting> + 'a {
        let places = entry.waiting.in_order(&self.rules, self.now);
        places.into_iter().enumerate().map(|(ahead, place)| Waiting {
            request: place.request,
            model: model.clone(),
            class: place.class,
            since: place.since,
            ahead,
            wait: entry.wait(ahead),
        })
    }

    fn residence(&self, entry: &Entry) -> Residence {
        match entry.state {
            State::Stored if entry.cools(self.now) => Residence::Failed,
            State::Stored => Residence::Stored,
            State::Claiming { .. } => Residence::Claiming,
            State::Loading { .. } => Residence::Loading,
            State::Ready { .. } => Residence::Ready,
            State::Leaving { why, .. } => Residence::Leaving(why),
            State::Unloading { .. } => Residence::Unloading,
        }
    }
}

impl Plan {
    /// Reads what came of the request from what is different after it.
    fn follow(&mut self, before: &Scheduler, after: &Scheduler, id: RequestId, actions: &[Action]) {
        let refused = actions.iter().find_map(|action| match action {
            Action::Refuse { request, refusal } if *request == id => Some(refusal.clone()),
            _ => None,
        });
        if let Some(refusal) = refused {
            self.outcome = Outcome::Refused(refusal);
            return;
        }
        let (Some(was), Some(is)) = (before.models.get(&self.model), after.models.get(&self.model))
        else {
            return;
        };
        self.ahead = after.waiting(id).map_or(0, |waiting| waiting.ahead);
        self.outcome = match (was.state, is.state) {
            (State::Ready { .. }, _) if is.running.contains(&id) => Outcome::Starts,
            (State::Ready { .. }, _) => Outcome::WaitsForPlace,
            (State::Claiming { .. } | State::Loading { .. }, _) => Outcome::JoinsLoad,
            (State::Leaving { .. } | State::Unloading { .. }, _) => Outcome::LoadsAgain,
            (State::Stored, State::Stored) => Outcome::WaitsForRoom,
            (State::Stored, _) => Outcome::Loads,
        };
        let stays = matches!(self.outcome, Outcome::Starts | Outcome::WaitsForPlace);
        self.load_time = Some(is.load_time()).filter(|_| !stays);
        let room = match self.outcome {
            Outcome::Loads => Room {
                victims: after.left_since(before),
                returns: shrunk(actions),
                ..Room::default()
            },
            Outcome::WaitsForRoom => after.room_in_time(&self.model),
            _ => Room::default(),
        };
        self.shrinks = room.returns;
        for name in room.victims {
            let running = after.models.get(&name).map_or(0, |entry| entry.running.len());
            self.awaits.extend((running > 0).then(|| (name.clone(), running)));
            let bytes = after.ledger.held_by(&name);
            self.evicts.push((name, bytes));
        }
    }
}

impl Scheduler {
    /// Models that are on their way out, and were not before.
    fn left_since(&self, before: &Self) -> Vec<ModelName> {
        let went = |name: &ModelName| before.models.get(name).is_some_and(Entry::is_going);
        let going = self.models.iter().filter(|(name, entry)| entry.is_going() && !went(name));
        going.map(|(name, _)| name.clone()).collect()
    }

    /// Where room for a model would come from if it had waited for as long as it has to and nothing
    /// else changed.
    fn room_in_time(&self, model: &ModelName) -> Room {
        let mut later = self.clone();
        let demand = |demand: &Demand| demand.model == *model;
        let Some(demand) = later.demands().into_iter().find(demand) else { return Room::default() };
        later.now = later.now + later.rules.patience.max(later.rules.resident_least);
        later.room_for(&demand).unwrap_or_default()
    }
}

/// Models that are to give back KV cache.
fn shrunk(actions: &[Action]) -> Vec<(ModelName, u64)> {
    let shrinks = |action: &Action| match action {
        Action::ShrinkKv { model, bytes } => Some((model.clone(), *bytes)),
        _ => None,
    };
    actions.iter().filter_map(shrinks).collect()
}
