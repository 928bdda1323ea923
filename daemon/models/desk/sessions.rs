//! Memory for the sessions in which requests run.
//!
//! Where each session has a KV cache of its own, a model is loaded with memory for one. Another that is
//! to run beside it has as much from the ledger for as long as it runs; where that is not to be had the
//! request is held until it is, or until one of the others has ended.

use std::sync::Arc;

use m40_sched::residency::Action;
use m40_sched::{LedgerError, ModelName, RequestId};

use super::{Cut, Desk, Request, Stage, Started, Want};

impl Desk {
    /// Holds a request that may run, to begin when there is memory for it; false where it is over, as
    /// nobody waits for it any more or all that was wanted is done.
    pub(super) fn start(&mut self, id: RequestId, model: &ModelName) -> bool {
        let wants_load = |request: &Request| request.want == Want::Load;
        if self.requests.get(&id).is_some_and(wants_load) {
            if let Some(loaded) = self.loaded_of(model.as_str()).cloned() {
                self.tell(id, Ok(Started { loaded, cut: Arc::default() }));
            }
            return false;
        }
        let Some(request) = self.requests.remove(&id) else { return false };
        let stage = match request.stage {
            Stage::Waits(teller) => Stage::Held { since: self.now(), teller },
            stage => stage,
        };
        self.requests.insert(id, Request { stage, ..request });
        true
    }

    /// Lets those of the held requests begin for which there is memory, of each model the first first.
    pub(super) fn begin_held(&mut self) {
        let held = |request: &Request| matches!(request.stage, Stage::Held { .. });
        let held = self.requests.iter().filter(|(_, request)| held(request));
        let held: Vec<_> = held.map(|(id, request)| (*id, request.model.clone())).collect();
        let mut short = vec![];
        for (id, model) in held {
            if !short.contains(&model) && !self.begin(id, &model) {
                short.push(model);
            }
        }
    }

    /// Lets a held request begin, if there is memory for its session.
    fn begin(&mut self, id: RequestId, model: &ModelName) -> bool {
        let now = self.now();
        let Some(resident) = self.residents.get_mut(model) else { return false };
        let Some(loaded) = resident.loaded.clone() else { return false };
        let more = if resident.sessions > 0 { resident.session_bytes } else { 0 };
        if more > 0 && self.scheduler.grow_kv(now, model, more).is_err() {
            return false;
        }
        let Some(request) = self.requests.remove(&id) else { return false };
        resident.sessions += 1;
        let cut = Arc::<Cut>::default();
        if let Stage::Held { teller, .. } = request.stage {
            // Who does not listen any more is about to say so.
            drop(teller.send(Ok(Started { loaded, cut: Arc::clone(&cut) })));
        }
        let stage = Stage::Runs { since: now, cut, lent: 0 };
        self.requests.insert(id, Request { stage, ..request });
        true
    }

    /// Has a request that runs have up to `bytes` more until it ends; returns how many.
    pub(in crate::models) fn lend(&mut self, id: RequestId, bytes: u64) -> u64 {
        let now = self.now();
        let Some(request) = self.requests.get_mut(&id) else { return 0 };
        let Stage::Runs { lent, .. } = &mut request.stage else { return 0 };
        let model = &request.model;
        let more = match self.scheduler.grow_kv(now, model, bytes) {
            Ok(()) => bytes,
            Err(LedgerError::Overdraft { free, .. })
                if self.scheduler.grow_kv(now, model, free).is_ok() =>
            {
                free
            }
            Err(_) => 0,
        };
        *lent += more;
        more
    }

    /// A session has ended, and what it took is free, with what its request was lent.
    pub(super) fn end_session(&mut self, model: &ModelName, lent: u64) -> Vec<Action> {
        let now = self.now();
        let Some(resident) = self.residents.get_mut(model) else { return vec![] };
        resident.sessions -= 1;
        let back = lent + if resident.sessions > 0 { resident.session_bytes } else { 0 };
        // A model that leaves gives all of it back at once.
        if back == 0 || resident.loaded.is_none() {
            return vec![];
        }
        // It was taken when the session began.
        self.scheduler.shrink_kv(now, model, back).unwrap_or_default()
    }
}
