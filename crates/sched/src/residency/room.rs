//! Where room for a model comes from.

use std::sync::Arc;

use super::Scheduler;
use super::action::{Action, Refusal};
use super::decide::Demand;
use super::entry::{Entry, State};
use crate::footprint::ModelName;
use crate::ledger::LedgerError;
use crate::moment::Moment;

/// What makes room for a model beside what is free.
#[derive(Clone, Debug, Default)]
pub(super) struct Room {
    /// Models that leave.
    pub victims: Vec<ModelName>,
    /// Models that give back KV cache, and how many bytes.
    pub returns: Vec<(ModelName, u64)>,
    /// Models that must be gone before, whether or not their bytes are needed.
    pub awaited: Vec<ModelName>,
}

impl Room {
    /// Whether nobody has to do anything for it.
    pub(super) fn is_free(&self) -> bool {
        self.victims.is_empty() && self.returns.is_empty()
    }
}

impl Scheduler {
    /// A model in memory has `bytes` more for its KV cache from now on. It keeps them until it leaves,
    /// or is to give them back ([`Action::ShrinkKv`]).
    ///
    /// # Errors
    /// [`LedgerError::NoAccount`] if it is not in memory, or is to leave; [`LedgerError::Overdraft`]
    /// if they are not free, are promised, or somebody waits for room.
    pub fn grow_kv(
        &mut self,
        now: Moment,
        model: &ModelName,
        bytes: u64,
    ) -> Result<(), LedgerError> {
        self.now = self.now.max(now);
        let ready = |entry: &Entry| matches!(entry.state, State::Ready { .. });
        if !self.models.get(model).is_some_and(ready) {
            return Err(LedgerError::NoAccount(model.clone()));
        }
        let waits = self.demands().iter().any(|demand| demand.level.is_some());
        let free = if waits { 0 } else { self.spare().min(self.ledger.free()) };
        if bytes > free {
            let (model, budget) = (model.clone(), self.ledger.budget());
            return Err(LedgerError::Overdraft { model, asked: bytes, free, budget });
        }
        self.ledger.grow_kv(model, bytes)
    }

    /// A model has given back `bytes` of its KV cache, asked or not.
    ///
    /// # Errors
    /// [`LedgerError`] if it does not have them.
    pub fn shrink_kv(
        &mut self,
        now: Moment,
        model: &ModelName,
        bytes: u64,
    ) -> Result<Vec<Action>, LedgerError> {
        let actions = self.begin(now);
        self.ledger.shrink_kv(model, bytes)?;
        if let Some(entry) = self.models.get_mut(model) {
            entry.owes = entry.owes.saturating_sub(bytes);
        }
        Ok(self.decide(actions))
    }

    /// A model that was to be loaded found no place: enough is free, but not in one piece. Who waits for it
    /// waits on, until one more of the others has left and it is tried again. Where nobody waits, or no other
    /// may ever leave, it counts as [failed](Self::load_failed).
    pub fn found_no_place(
        &mut self,
        now: Moment,
        model: &ModelName,
        reason: impl Into<Arc<str>>,
    ) -> Vec<Action> {
        let others = self.models.iter().filter(|(name, _)| *name != model);
        let may_help = others.into_iter().any(|(_, other)| other.may_make_way());
        let tries_again = |entry: &&mut Entry| {
            let loads = matches!(entry.state, State::Loading { then: None, .. });
            loads && may_help && !entry.waiting.is_empty()
        };
        let Some(entry) = self.models.get_mut(model).filter(tries_again) else {
            return self.load_failed(now, model, reason);
        };
        entry.crowded = true;
        let actions = self.begin(now);
        self.put_away(model);
        self.decide(actions)
    }

    /// Whether a model fits if everything leaves that may.
    pub(super) fn check_room(&self, name: &ModelName, entry: &Entry) -> Result<(), Refusal> {
        let budget = self.ledger.budget();
        entry.definition.footprint.check(name, budget)?;
        let pinned =
            |(other, entry): &(&ModelName, &Entry)| *other != name && entry.is_held_by_pin();
        let bytes = |(name, entry): (&ModelName, &Entry)| (name.clone(), self.keeps(name, entry));
        let pinned: Vec<_> = self.models.iter().filter(pinned).map(bytes).collect();
        let held = pinned.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let needed = entry.bytes();
        if needed.saturating_add(held) <= budget {
            return Ok(());
        }
        Err(Refusal::Pinned { model: name.clone(), needed, budget, pinned })
    }

    /// Bytes that a model has, or will have, for as long as it is in memory.
    fn keeps(&self, name: &ModelName, entry: &Entry) -> u64 {
        match self.ledger.account(name) {
            Some(account) => account.parts().total() - self.grown(name, entry),
            None => entry.bytes(),
        }
    }

    /// Bytes that nobody holds, or that will come back.
    pub(super) fn coming_free(&self) -> u64 {
        let back = |(name, entry): (&ModelName, &Entry)| {
            if entry.is_going() { self.ledger.held_by(name) } else { entry.owes }
        };
        self.ledger.free() + self.models.iter().map(back).sum::<u64>()
    }

    /// Bytes that are promised.
    pub(super) fn promised(&self) -> u64 {
        let claiming = |entry: &&Entry| matches!(entry.state, State::Claiming { .. });
        let claims = self.models.values().filter(claiming);
        claims.fold(0u64, |sum, entry| sum.saturating_add(entry.bytes()))
    }

    /// Bytes that are free, or will be, and are promised to nobody.
    fn spare(&self) -> u64 {
        self.coming_free().saturating_sub(self.promised())
    }

    /// Bytes of KV cache that a model has beyond those that it was loaded with.
    fn grown(&self, name: &ModelName, entry: &Entry) -> u64 {
        let State::Ready { .. } = entry.state else { return 0 };
        let kv = self.ledger.account(name).map_or(0, |account| account.parts().kv);
        kv.saturating_sub(entry.kv_least)
    }

    /// Where room comes from for the one that is asked for: KV cache that others have beyond what they
    /// were loaded with, then the place of others; `None` if that is not enough yet.
    pub(super) fn room_for(&self, demand: &Demand) -> Option<Room> {
        let wanted = self.models.get(&demand.model)?;
        let missing = wanted.bytes().saturating_sub(self.spare());
        let going = self.models.iter().filter(|(_, entry)| entry.is_going());
        let mut awaited: Vec<_> = going.map(|(name, _)| name.clone()).collect();
        // Without a free piece bytes do not count, but only that somebody leaves.
        let one_leaves =
            wanted.crowded && awaited.is_empty() && self.models.values().any(Entry::may_make_way);
        let least = usize::from(one_leaves);
        let mut order: Vec<_> = self.models.iter().collect();
        order.sort_by_key(|(name, entry)| {
            let worth = (entry.definition.priority, entry.last_used, entry.load_time());
            (!entry.running.is_empty(), worth, *name)
        });
        let owns = |(name, entry): (&ModelName, &Entry)| {
            self.grown(name, entry).saturating_sub(entry.owes)
        };
        let mut gained: u64 = order.iter().copied().map(owns).sum();
        // What leaving gains beyond what it would give back anyway.
        let gain = |(name, entry): (&ModelName, &Entry)| {
            self.ledger.held_by(name).saturating_sub(entry.owes + owns((name, entry)))
        };
        let mut victims: Vec<(&ModelName, &Entry)> = vec![];
        for one in order.iter().copied().filter(|(_, entry)| self.may_leave(entry, demand)) {
            if gained >= missing && victims.len() >= least {
                break;
            }
            gained += gain(one);
            victims.push(one);
        }
        if gained < missing || victims.len() < least {
            return None;
        }
        // Who was chosen later may make earlier ones needless; the most valuable are last.
        for at in (0..victims.len()).rev() {
            let less = gain(victims[at]);
            if gained - less >= missing && victims.len() > least {
                gained -= less;
                victims.remove(at);
            }
        }
        let victims: Vec<_> = victims.into_iter().map(|(name, _)| name.clone()).collect();
        let left: u64 =
            victims.iter().map(|name| self.ledger.held_by(name) - self.models[name].owes).sum();
        let mut missing = missing.saturating_sub(left);
        let mut returns = vec![];
        for (name, entry) in order {
            let bytes = owns((name, entry)).min(missing);
            if bytes > 0 && !victims.contains(name) {
                missing -= bytes;
                returns.push((name.clone(), bytes));
            }
        }
        awaited.extend(victims.iter().cloned());
        awaited.retain(|_| wanted.crowded);
        Some(Room { victims, returns, awaited })
    }

    /// Whether a model may be sent out for one that is asked for.
    fn may_leave(&self, entry: &Entry, demand: &Demand) -> bool {
        let Some(since) = settles(entry) else { return false };
        if self.now.since(since) < self.rules.resident_least {
            return false;
        }
        let had_its_turn = self.now.since(since.max(demand.since)) >= self.rules.patience;
        entry.is_idle() || had_its_turn || self.level(entry) < demand.level
    }

    /// How urgent the most urgent request of a model is.
    fn level(&self, entry: &Entry) -> Option<u64> {
        let running = entry.running.iter().filter_map(|id| self.requests.get(id));
        let running = running.map(|request| request.class as u64).max();
        running.max(entry.waiting.head(&self.rules, self.now).map(|head| head.level))
    }
}

/// Since when a model is in memory that others may have leave one day.
pub(super) fn settles(entry: &Entry) -> Option<Moment> {
    match entry.state {
        State::Ready { since } if !entry.definition.pinned => Some(since),
        _ => None,
    }
}
