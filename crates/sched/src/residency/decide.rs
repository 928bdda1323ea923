//! What follows from what is known: the same steps after every event.

use std::cmp::Reverse;

use super::action::{Action, Refusal, Why};
use super::definition::Class;
use super::entry::{Entry, State};
use super::room::{Room, settles};
use super::{Run, Scheduler, leave};
use crate::footprint::ModelName;
use crate::moment::Moment;

/// A model that is to be in memory and is not.
#[derive(Clone, Debug)]
pub(super) struct Demand {
    pub model: ModelName,
    /// Since when somebody waits for it.
    pub since: Moment,
    /// As [`Rules::level`](super::Rules::level); none where it is to be loaded only if that
    /// troubles nobody.
    pub level: Option<u64>,
    priority: i32,
}

impl Scheduler {
    pub(super) fn decide(&mut self, mut actions: Vec<Action>) -> Vec<Action> {
        self.pass_deadlines(&mut actions);
        self.take_back_promises();
        self.start_waiting(&mut actions);
        self.end_idleness();
        self.promise_room(&mut actions);
        self.send_out(&mut actions);
        self.load_where_room_is(&mut actions);
        actions
    }

    /// When to [`tick`](Self::tick) if nothing else happens before; `None`: not at all.
    pub fn next_wake(&self) -> Option<Moment> {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let demands = self.demands();
        let patience = demands.iter().map(|demand| demand.since + self.rules.patience);
        let cooled = |entry: &Entry| Some(entry.failure.as_ref()?.until);
        let wanted = self.models.values().filter(|entry| entry.wanted.is_some());
        let of_models = self.models.values().flat_map(|entry| {
            let settled = settles(entry).filter(|_| !demands.is_empty());
            let times = [
                entry.idle_end(),
                self.drain_end(entry),
                settled.map(|since| since + self.rules.resident_least),
                settled.map(|since| since + self.rules.patience),
            ];
            times.into_iter().flatten()
        });
        let all = deadline.into_iter().chain(patience).chain(wanted.filter_map(cooled));
        all.chain(of_models).filter(|time| *time > self.now).min()
    }

    /// Ends what has a deadline that is past.
    fn pass_deadlines(&mut self, actions: &mut Vec<Action>) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > self.now {
                return;
            }
            self.deadlines.pop_first();
            let waits = |request: &&_| matches!(request, super::Request { run: Run::Waits, .. });
            let Some(request) = self.requests.get(&id).filter(waits) else {
                self.stop(id, actions);
                continue;
            };
            let (model, waited) = (request.model.clone(), self.now.since(request.since));
            self.forget(id);
            let refusal = Refusal::DeadlinePassed { model, waited };
            actions.push(Action::Refuse { request: id, refusal });
        }
    }

    /// Lets requests run that wait for models in memory, as many as there are places.
    pub(super) fn start_waiting(&mut self, actions: &mut Vec<Action>) {
        for (name, entry) in &mut self.models {
            while entry.has_place()
                && let Some(head) = entry.waiting.head(&self.rules, self.now)
            {
                entry.waiting.remove(head.request, head.class);
                entry.running.insert(head.request);
                entry.last_used = self.now;
                if let Some(request) = self.requests.get_mut(&head.request) {
                    request.run = Run::Since(self.now);
                }
                actions.push(Action::Start { request: head.request, model: name.clone() });
            }
        }
    }

    /// Has models leave that nobody has asked for as long as they were to stay.
    fn end_idleness(&mut self) {
        for entry in self.models.values_mut() {
            if entry.idle_end().is_some_and(|end| end <= self.now) {
                leave(entry, self.now, Why::Idle);
                entry.wanted = None;
            }
        }
    }

    /// Has models leave in favour of those that are asked for, and refuses what cannot be. Who is
    /// asked for most urgently comes first; later ones may have what that leaves, unless it has waited
    /// for too long.
    fn promise_room(&mut self, actions: &mut Vec<Action>) {
        let mut all_have_room = true;
        for demand in self.demands() {
            let Demand { model, since, level, .. } = &demand;
            let modest = level.is_none();
            let Some(entry) = self.models.get(model) else { continue };
            if let Err(refusal) = self.check_room(model, entry) {
                self.refuse_waiting(model, &refusal, actions);
                continue;
            }
            let fits = |room: &Room| !modest || (room.is_free() && all_have_room);
            match self.room_for(&demand).filter(fits) {
                Some(room) => self.promise(model, room, actions),
                None if !modest && self.now.since(*since) >= self.rules.patience => return,
                None => all_have_room = false,
            }
        }
    }

    fn promise(&mut self, model: &ModelName, room: Room, actions: &mut Vec<Action>) {
        for victim in &room.victims {
            if let Some(entry) = self.models.get_mut(victim) {
                leave(entry, self.now, Why::Room);
            }
        }
        for (model, bytes) in room.returns {
            if let Some(entry) = self.models.get_mut(&model) {
                entry.owes += bytes;
                actions.push(Action::ShrinkKv { model, bytes });
            }
        }
        let number = self.number();
        if let Some(entry) = self.models.get_mut(model) {
            entry.state = State::Claiming { number };
            entry.awaited = room.awaited;
        }
    }

    /// Takes models out of memory that were to leave and have no requests any more, or had too long
    /// to end them.
    fn send_out(&mut self, actions: &mut Vec<Action>) {
        let late = |entry: &Entry| self.drain_end(entry).is_some_and(|end| end <= self.now);
        let late = self.models.iter().filter(|(_, entry)| late(entry));
        for name in late.map(|(name, _)| name.clone()).collect::<Vec<_>>() {
            self.cut_short(&name, actions);
        }
        for (name, entry) in &mut self.models {
            if let State::Leaving { why, .. } = entry.state
                && entry.running.is_empty()
            {
                entry.state = State::Unloading { cut_short: false };
                let model = name.clone();
                actions.push(Action::Unload { model, why, cut_short: false });
            }
        }
    }

    /// Takes a model that was to leave out of memory with what runs on it.
    pub(super) fn cut_short(&mut self, name: &ModelName, actions: &mut Vec<Action>) {
        let Some(entry) = self.models.get_mut(name) else { return };
        if let State::Leaving { why, .. } = entry.state
            && !entry.running.is_empty()
        {
            entry.state = State::Unloading { cut_short: true };
            actions.push(Action::Unload { model: name.clone(), why, cut_short: true });
        }
    }

    /// Begins loads for which all memory is free. Later claims may come first: what earlier ones wait
    /// for is promised to them.
    fn load_where_room_is(&mut self, actions: &mut Vec<Action>) {
        for name in self.claims() {
            let goes = |awaited: &ModelName| self.models.get(awaited).is_some_and(Entry::is_going);
            if self.models.get(&name).is_some_and(|entry| entry.awaited.iter().any(goes)) {
                continue;
            }
            let Some(entry) = self.models.get_mut(&name) else { continue };
            if self.ledger.reserve(&name, entry.definition.footprint.parts()).is_ok() {
                entry.state = State::Loading { since: self.now, then: None };
                actions.push(Action::Load { model: name });
            }
        }
    }

    /// Models to which room is promised, the first first.
    pub(super) fn claims(&self) -> Vec<ModelName> {
        let claim = |(name, entry): (&ModelName, &Entry)| match entry.state {
            State::Claiming { number } => Some((number, name.clone())),
            _ => None,
        };
        let mut claims: Vec<_> = self.models.iter().filter_map(claim).collect();
        claims.sort_unstable();
        claims.into_iter().map(|(_, name)| name).collect()
    }

    /// No more is promised than will be free: a definition may have changed, or a model that was to
    /// leave stays.
    fn take_back_promises(&mut self) {
        let mut claims = self.claims();
        while self.promised() > self.coming_free()
            && let Some(last) = claims.pop()
        {
            if let Some(entry) = self.models.get_mut(&last) {
                entry.state = State::Stored;
            }
        }
    }

    /// Models that are to be in memory and are not, the most urgent first.
    pub(super) fn demands(&self) -> Vec<Demand> {
        let demand = |(name, entry): (&ModelName, &Entry)| {
            let State::Stored = entry.state else { return None };
            let (model, priority) = (name.clone(), entry.definition.priority);
            match (entry.waiting.oldest(), entry.waiting.head(&self.rules, self.now)) {
                (Some(since), Some(head)) => {
                    Some(Demand { model, since, level: Some(head.level), priority })
                }
                _ if entry.cools(self.now) => None,
                _ => {
                    let since = entry.wanted?;
                    let stays = entry.definition.pinned;
                    let level =
                        stays.then(|| self.rules.level(Class::Interactive, since, self.now));
                    Some(Demand { model, since, level, priority })
                }
            }
        };
        let mut demands: Vec<_> = self.models.iter().filter_map(demand).collect();
        let urgency = |demand: &Demand| {
            let &Demand { since, level, priority, ref model } = demand;
            (Reverse((level, priority)), since, model.clone())
        };
        demands.sort_by_cached_key(urgency);
        demands
    }

    /// When a model has had the time that it has for ending its requests.
    fn drain_end(&self, entry: &Entry) -> Option<Moment> {
        match entry.state {
            State::Leaving { since, why: Why::Asked, .. } => {
                self.rules.drain_most.map(|most| since + most)
            }
            _ => None,
        }
    }
}
