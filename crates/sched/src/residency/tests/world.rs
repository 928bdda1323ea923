//! A world for a scheduler: models take time to load and requests to end, and every action is checked
//! when it is done.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use super::super::*;
use crate::footprint::Footprint;

/// Steps after which a world that has not come to rest never will.
const STEPS_MAX: usize = 200_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Loaded,
    LoadFailed,
    FoundNoPlace,
    Unloaded,
    Shrunk(u64),
    Ends(RequestId),
}

/// What is in memory of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Loading,
    Ready,
    Unloading,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Waits,
    Runs,
    Done,
    Refused(Refusal),
    Cancelled,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) scheduler: Scheduler,
    pub(super) definitions: BTreeMap<ModelName, Definition>,
    /// What was done, as `load a`.
    pub(super) log: Vec<String>,
    pub(super) fates: BTreeMap<RequestId, Fate>,
    /// How long requests waited until they ran.
    pub(super) waits: BTreeMap<RequestId, Duration>,
    /// Whether the next loads of a model fail.
    pub(super) failures: BTreeMap<ModelName, VecDeque<bool>>,
    /// How many of the next loads of a model find no place.
    pub(super) no_places: BTreeMap<ModelName, u32>,
    /// How long the next request of a model takes.
    pub(super) answer: Duration,
    now: Moment,
    events: BTreeMap<(Moment, u64), (ModelName, Event)>,
    numbers: u64,
    memory: BTreeMap<ModelName, (Presence, u64)>,
    waiting: BTreeMap<RequestId, ModelName>,
    running: BTreeMap<RequestId, ModelName>,
    asked: BTreeMap<RequestId, (ModelName, Moment, Duration)>,
}

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A model of so many bytes, with a slot, that loads in a second.
pub(super) fn definition(bytes: u64) -> Definition {
    let page_tokens = NonZeroU32::MIN;
    let footprint =
        Footprint { weights: bytes, scratch: 0, page_bytes: 0, page_tokens, context: 1 };
    Definition {
        footprint,
        revision: 0,
        slots: NonZeroU32::MIN,
        priority: 0,
        pinned: false,
        preload: false,
        idle: None,
        load_time: ms(1000),
    }
}

impl World {
    pub(super) fn new(budget: u64) -> Self {
        Self::with(budget, Rules::default())
    }

    pub(super) fn with(budget: u64, rules: Rules) -> Self {
        Self {
            scheduler: Scheduler::new(rules, budget),
            definitions: BTreeMap::new(),
            log: vec![],
            fates: BTreeMap::new(),
            waits: BTreeMap::new(),
            failures: BTreeMap::new(),
            no_places: BTreeMap::new(),
            answer: ms(100),
            now: Moment::START,
            events: BTreeMap::new(),
            numbers: 0,
            memory: BTreeMap::new(),
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    /// Defines a model, or defines it anew.
    pub(super) fn define(&mut self, name: &str, bytes: u64, change: impl FnOnce(&mut Definition)) {
        let mut new = definition(bytes);
        change(&mut new);
        self.definitions.insert(name.into(), new);
        self.configure().expect("the pinned models of a test fit");
    }

    pub(super) fn change(&mut self, name: &str, change: impl FnOnce(&mut Definition)) {
        change(self.definitions.get_mut(name).expect("tests change what they defined"));
        self.configure().expect("the pinned models of a test fit");
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.definitions.remove(name);
        self.configure().expect("fewer pinned models fit too");
    }

    pub(super) fn configure(&mut self) -> Result<(), PinnedTooLarge> {
        let actions = self.scheduler.configure(self.now, self.definitions.clone())?;
        self.act(actions);
        Ok(())
    }

    pub(super) fn ask(&mut self, name: &str) -> RequestId {
        self.try_ask(Ask::new(name)).expect("it is not refused at once")
    }

    pub(super) fn try_ask(&mut self, ask: Ask) -> Result<RequestId, Refusal> {
        let name = ask.model.clone();
        let (id, actions) = self.scheduler.request(self.now, ask)?;
        self.fates.insert(id, Fate::Waits);
        self.waiting.insert(id, name.clone());
        self.asked.insert(id, (name, self.now, self.answer));
        self.act(actions);
        Ok(id)
    }

    pub(super) fn cancel(&mut self, id: RequestId) {
        let waits = self.fates[&id] == Fate::Waits;
        let actions = self.scheduler.cancel(self.now, id);
        if waits {
            self.waiting.remove(&id);
            self.fates.insert(id, Fate::Cancelled);
        }
        self.act(actions);
    }

    pub(super) fn unload(&mut self, name: &str, force: bool) -> Result<(), NotLoaded> {
        let actions = self.scheduler.unload(self.now, &name.into(), force)?;
        self.act(actions);
        Ok(())
    }

    /// A model in memory breaks; says whether there was one.
    pub(super) fn break_down(&mut self, name: &str) -> bool {
        let name = ModelName::from(name);
        let here = self.memory.get(&name).is_some_and(|(presence, _)| *presence == Presence::Ready);
        if here {
            self.vanish(&name);
            let actions = self.scheduler.broke(self.now, &name, "broken");
            self.act(actions);
        }
        here
    }

    /// A model has more KV cache, if there is room; says whether there was.
    pub(super) fn grow(&mut self, name: &str, bytes: u64) -> bool {
        let name = ModelName::from(name);
        let grows = self.scheduler.grow_kv(self.now, &name, bytes).is_ok();
        if grows {
            let (presence, held) = self.memory.get_mut(&name).expect("it is there");
            assert_eq!(*presence, Presence::Ready);
            *held += bytes;
        }
        self.check();
        grows
    }

    pub(super) fn now(&self) -> Moment {
        self.now
    }

    pub(super) fn fate(&self, id: RequestId) -> &Fate {
        &self.fates[&id]
    }

    pub(super) fn is_ready(&self, name: &str) -> bool {
        self.memory.get(name).is_some_and(|(presence, _)| *presence == Presence::Ready)
    }

    /// What was done since the last time that this was asked.
    pub(super) fn news(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    /// Models that were loaded, in order.
    pub(super) fn loads(&self) -> Vec<&str> {
        self.log.iter().filter_map(|line| line.strip_prefix("load ")).collect()
    }

    /// Lets time pass.
    pub(super) fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        while self.next().is_some_and(|next| next <= end) {
            self.step();
        }
        self.now = end;
    }

    pub(super) fn tick(&mut self) {
        let actions = self.scheduler.tick(self.now);
        self.act(actions);
    }

    /// Lets time pass until nothing is left to happen but what time alone brings about, and nobody
    /// waits or runs.
    pub(super) fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            if self.waiting.is_empty() && self.running.is_empty() && self.events.is_empty() {
                return;
            }
            assert!(self.step(), "nothing will happen, and there is work: {:#?}", self.scheduler);
        }
        panic!("it goes on for ever: {:#?}", self.scheduler);
    }

    fn next(&self) -> Option<Moment> {
        let event = self.events.keys().next().map(|(time, _)| *time);
        event.into_iter().chain(self.scheduler.next_wake()).min()
    }

    /// Goes to the next moment at which something happens.
    fn step(&mut self) -> bool {
        let Some(next) = self.next() else { return false };
        self.now = self.now.max(next);
        let due = self.events.first_key_value().is_some_and(|((time, _), _)| *time <= self.now);
        match due.then(|| self.events.pop_first()).flatten() {
            Some((_, (model, event))) => self.happen(&model, event),
            None => self.tick(),
        }
        true
    }

    fn happen(&mut self, model: &ModelName, event: Event) {
        let actions = match event {
            Event::Loaded => {
                let (presence, _) = self.memory.get_mut(model).expect("it takes memory");
                *presence = Presence::Ready;
                let account = self.scheduler.ledger().account(model);
                let parts = *account.expect("it was reserved").parts();
                self.scheduler.loaded(self.now, model, parts)
            }
            Event::LoadFailed => {
                self.memory.remove(model);
                self.scheduler.load_failed(self.now, model, "no such file")
            }
            Event::FoundNoPlace => {
                self.memory.remove(model);
                self.scheduler.found_no_place(self.now, model, "no piece is large enough")
            }
            Event::Unloaded => {
                self.vanish(model);
                self.scheduler.unloaded(self.now, model)
            }
            Event::Shrunk(bytes) => {
                let (_, held) = self.memory.get_mut(model).expect("it takes memory");
                *held -= bytes;
                let actions = self.scheduler.shrink_kv(self.now, model, bytes);
                actions.expect("it has had so much")
            }
            Event::Ends(id) => {
                if self.running.remove(&id).is_none() {
                    return;
                }
                self.fates.insert(id, Fate::Done);
                self.scheduler.finished(self.now, id)
            }
        };
        self.act(actions);
    }

    fn vanish(&mut self, model: &ModelName) {
        self.memory.remove(model);
        self.events.retain(|_, (of, event)| of != model || matches!(event, Event::Ends(_)));
        for (&id, _) in self.running.iter().filter(|(_, of)| *of == model) {
            self.fates.insert(id, Fate::Done);
        }
        self.running.retain(|_, of| of != model);
    }

    fn at(&mut self, after: Duration, model: &ModelName, event: Event) {
        self.numbers += 1;
        self.events.insert((self.now + after, self.numbers), (model.clone(), event));
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Start { request, model } => self.start(request, &model),
                Action::Refuse { request, refusal } => {
                    self.waiting.remove(&request);
                    let before = self.fates.insert(request, Fate::Refused(refusal.clone()));
                    assert_eq!(before, Some(Fate::Waits), "who was refused had no answer");
                    self.log.push(format!("refuse {}: {refusal}", request.0));
                }
                Action::Stop { request } => {
                    let model = self.running[&request].clone();
                    self.log.push(format!("stop {}", request.0));
                    self.at(ms(1), &model, Event::Ends(request));
                }
                Action::ShrinkKv { model, bytes } => {
                    self.log.push(format!("shrink {model} by {bytes}"));
                    assert!(bytes > 0);
                    self.at(ms(20), &model, Event::Shrunk(bytes));
                }
                Action::Load { model } => self.load(&model),
                Action::Unload { model, why, cut_short } => self.send_out(&model, why, cut_short),
            }
        }
        self.check();
    }

    fn start(&mut self, request: RequestId, model: &ModelName) {
        self.log.push(format!("start {} on {model}", request.0));
        assert!(self.is_ready(model.as_str()), "it runs on what is in memory");
        assert_eq!(self.fates.insert(request, Fate::Runs), Some(Fate::Waits));
        let (of, since, time) = self.asked[&request].clone();
        assert_eq!(of, *model);
        self.waits.insert(request, self.now.since(since));
        self.waiting.remove(&request);
        self.running.insert(request, model.clone());
        self.at(time, model, Event::Ends(request));
    }

    fn load(&mut self, model: &ModelName) {
        self.log.push(format!("load {model}"));
        let definition = &self.definitions[model];
        let (bytes, time) = (definition.footprint.total(), definition.load_time);
        let before = self.memory.insert(model.clone(), (Presence::Loading, bytes));
        assert_eq!(before, None, "a model is there once");
        let no_places = self.no_places.entry(model.clone()).or_default();
        let fails = self.failures.get_mut(model).and_then(VecDeque::pop_front) == Some(true);
        let event = match (fails, no_places.checked_sub(1)) {
            (true, _) => Event::LoadFailed,
            (false, Some(left)) => {
                *no_places = left;
                Event::FoundNoPlace
            }
            (false, None) => Event::Loaded,
        };
        self.at(time, model, event);
    }

    fn send_out(&mut self, model: &ModelName, why: Why, cut_short: bool) {
        self.log
            .push(format!("unload {model}, {why:?}{}", if cut_short { ", cut short" } else { "" }));
        let busy = self.running.values().filter(|of| *of == model).count();
        assert_eq!(busy > 0, cut_short, "what runs is not ended unless that is said");
        assert!(!cut_short || why == Why::Asked, "nobody but an operator ends what runs");
        let pinned = self.definitions.get(model).is_some_and(|definition| definition.pinned);
        assert!(!pinned || !matches!(why, Why::Room | Why::Idle), "a pinned model stays");
        let (presence, _) = self.memory.get_mut(model).expect("it is there");
        assert_eq!(*presence, Presence::Ready);
        *presence = Presence::Unloading;
        self.at(ms(50), model, Event::Unloaded);
    }

    /// What must be true at all times.
    fn check(&self) {
        let ledger = self.scheduler.ledger();
        let taken: u64 = self.memory.values().map(|(_, bytes)| bytes).sum();
        assert!(taken <= ledger.budget(), "{taken} bytes are taken");
        assert_eq!((ledger.held(), ledger.sum().total()), (taken, taken));
        for status in self.scheduler.models() {
            let running = self.running.values().filter(|of| **of == status.model).count();
            assert_eq!(status.running, running);
            let waiting = self.waiting.values().filter(|of| **of == status.model).count();
            assert_eq!(status.waiting, waiting);
            if let Some(definition) = self.definitions.get(&status.model) {
                let slots = definition.slots.get() as usize;
                let ready = status.residence == Residence::Ready;
                assert!(!ready || status.waiting == 0 || running >= slots, "no place stays empty");
            }
        }
    }
}
