//! What is known of one model.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::action::Why;
use super::definition::{Definition, RequestId};
use super::queue::Queue;
use crate::footprint::ModelName;
use crate::moment::Moment;

/// Share of the latest time in the time that answers are reckoned to take.
const LATEST: u32 = 4;

/// See the diagram in [`super`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Stored,
    /// Room is promised to it; who has the lower number was first.
    Claiming {
        number: u64,
    },
    /// It leaves as soon as it is there where there is a reason, but for requests that waited.
    Loading {
        since: Moment,
        then: Option<Why>,
    },
    Ready {
        since: Moment,
    },
    /// It takes no more requests. `loaded` is when it came, `since` when it was to leave.
    Leaving {
        loaded: Moment,
        since: Moment,
        why: Why,
    },
    Unloading {
        cut_short: bool,
    },
}

/// Why and until when a model is not loaded.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub reason: Arc<str>,
    pub in_a_row: u32,
    pub until: Moment,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub definition: Definition,
    /// It is forgotten once it is out of memory.
    pub removed: bool,
    pub state: State,
    pub waiting: Queue,
    pub running: BTreeSet<RequestId>,
    /// When it was loaded, or a request began or ended.
    pub last_used: Moment,
    /// Since when it is to be in memory although nobody asks.
    pub wanted: Option<Moment>,
    pub failure: Option<Failure>,
    /// Bytes of KV cache that it was loaded with, and keeps.
    pub kv_least: u64,
    /// Bytes of KV cache that it is to give back while it stays.
    pub owes: u64,
    /// Whether its latest load found no place, although enough was free.
    pub crowded: bool,
    /// While it has a claim: those that must be gone before it is loaded, whoever has the bytes.
    pub awaited: Vec<ModelName>,
    /// What the latest load took.
    pub load_took: Option<Duration>,
    answer_time: Option<Duration>,
}

impl Entry {
    pub(super) fn new(definition: Definition, now: Moment) -> Self {
        Self {
            wanted: definition.preload.then_some(now),
            definition,
            removed: false,
            state: State::Stored,
            waiting: Queue::default(),
            running: BTreeSet::new(),
            last_used: now,
            failure: None,
            kv_least: 0,
            owes: 0,
            crowded: false,
            awaited: vec![],
            load_took: None,
            answer_time: None,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.definition.footprint.total()
    }

    pub(super) fn load_time(&self) -> Duration {
        self.load_took.unwrap_or(self.definition.load_time)
    }

    /// Whether it holds memory that it will give back by itself.
    pub(super) fn is_going(&self) -> bool {
        matches!(self.state, State::Leaving { .. } | State::Unloading { .. })
    }

    /// Whether it holds memory that others may have one day.
    pub(super) fn may_make_way(&self) -> bool {
        match self.state {
            State::Leaving { .. } | State::Unloading { .. } => true,
            State::Loading { .. } | State::Ready { .. } => !self.definition.pinned,
            State::Stored | State::Claiming { .. } => false,
        }
    }

    /// Whether it holds or is to hold memory that nobody can have.
    pub(super) fn is_held_by_pin(&self) -> bool {
        let here = matches!(
            self.state,
            State::Claiming { .. } | State::Loading { .. } | State::Ready { .. }
        );
        self.definition.pinned && here
    }

    /// Whether a request could start at once.
    pub(super) fn has_place(&self) -> bool {
        let slots = self.definition.slots.get() as usize;
        matches!(self.state, State::Ready { .. }) && self.running.len() < slots
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Whether it may not be loaded for now.
    pub(super) fn cools(&self, now: Moment) -> bool {
        self.failure.as_ref().is_some_and(|failure| now < failure.until)
    }

    pub(super) fn answered_in(&mut self, time: Duration) {
        let step = |mean: Duration| mean - mean / LATEST + time / LATEST;
        self.answer_time = Some(self.answer_time.map_or(time, step));
    }

    /// How long a request waits that has so many before it, from what others took; `None` if nothing
    /// is known.
    pub(super) fn wait(&self, ahead: usize) -> Option<Duration> {
        let loads = if matches!(self.state, State::Ready { .. }) {
            Duration::ZERO
        } else {
            self.load_time()
        };
        let rounds = u32::try_from(ahead).unwrap_or(u32::MAX) / self.definition.slots;
        let rounds = rounds.saturating_add(1);
        Some(self.answer_time?.saturating_mul(rounds).saturating_add(loads))
    }

    /// When it is to leave because nobody asks.
    pub(super) fn idle_end(&self) -> Option<Moment> {
        let State::Ready { .. } = self.state else { return None };
        let rests = self.is_idle() && !self.definition.pinned;
        self.definition.idle.filter(|_| rests).map(|idle| self.last_used + idle)
    }
}
