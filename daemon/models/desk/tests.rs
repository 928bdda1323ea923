//! The desk on real tiny models, with loads that end when a test says.

use std::cell::RefCell;
use std::num::NonZeroU32;

use m40_control::ErrorCode;
use m40_sched::residency::Definition;
use m40_testkit::gguf::TinyModel;
use m40llm::{Engine, EngineOptions, Model, ModelOptions};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::metrics::Metrics;
use crate::models::loaded::Departure;

/// What was begun, as `load a`.
#[derive(Debug, Default)]
struct Log(RefCell<Vec<String>>);

impl Outside for Log {
    fn load(&self, name: ModelName, _: Source) {
        self.0.borrow_mut().push(format!("load {name}"));
    }

    fn drop_loaded(&self, loaded: Arc<Loaded>) {
        self.0.borrow_mut().push(format!("drop {}", loaded.name));
    }
}

impl Log {
    #[track_caller]
    fn check(&self, lines: &[&str]) {
        assert_eq!(*self.0.borrow(), lines);
    }
}

/// A desk for tiny models, all of the same file.
struct Table {
    dir: TempDir,
    desk: Desk,
    log: Log,
    departed: UnboundedReceiver<ModelName>,
    told: UnboundedSender<ModelName>,
}

/// A request, and what it hears.
type Asked = (RequestId, oneshot::Receiver<Told>);

impl Table {
    /// With room for what `bytes` makes of a model's size and what a session takes.
    fn new(bytes: impl FnOnce(u64, u64) -> u64) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let file = TinyModel::new("llama").build();
        std::fs::write(dir.path().join("tiny.gguf"), file).expect("a file");
        let model = model(&dir);
        let rules =
            Rules { patience: Duration::ZERO, resident_least: Duration::ZERO, ..Rules::default() };
        let budget = bytes(model.footprint().total(), model.session_bytes());
        let desk = Desk::new(rules, budget, Metrics::default());
        let (told, departed) = unbounded_channel();
        let mut table = Self { dir, desk, log: Log::default(), departed, told };
        for name in ["a", "b"] {
            table.define(name, &model);
        }
        table
    }

    fn define(&mut self, name: &str, model: &Model) {
        let definition = Definition {
            footprint: *model.footprint(),
            revision: 0,
            slots: NonZeroU32::new(4).expect("not zero"),
            priority: 0,
            pinned: false,
            preload: false,
            idle: None,
            load_time: Duration::ZERO,
        };
        let source = Source::in_place(self.dir.path().join("tiny.gguf"));
        let known = Known::new(source, definition);
        let mut all = self.desk.all_known().clone();
        all.insert(name.into(), known);
        self.desk.adopt(all, &self.log).expect("nothing is pinned");
    }

    fn ask(&mut self, name: &str) -> Asked {
        let asked = self.desk.ask(Ask::new(name), Want::Run, &self.log);
        asked.expect("it may wait").expect("it is to run")
    }

    /// The load of a model ends well.
    fn loaded(&mut self, name: &str) {
        let source = Source::in_place(self.dir.path().join("tiny.gguf"));
        let departure = Departure { name: name.into(), told: self.told.clone() };
        let loaded = Loaded::new(source, model(&self.dir), Duration::ZERO, departure);
        self.desk.loaded(loaded.into(), &self.log);
    }

    /// The desk hears of a model that is out of memory.
    fn departed(&mut self) {
        let name = self.departed.try_recv().expect("a model that has gone");
        self.desk.departed(&name, &self.log);
    }

    fn leave(&mut self, id: RequestId) {
        self.desk.leave(id, &self.log);
    }

    fn held(&self) -> u64 {
        let ledger = self.desk.ledger();
        assert_eq!(ledger.sum().total(), ledger.held());
        ledger.held()
    }

    fn running(&self) -> usize {
        let runs = |seen: &Seen| matches!(seen.stage, Progress::Runs { .. });
        self.desk.requests().into_iter().filter(runs).count()
    }
}

fn model(dir: &TempDir) -> Model {
    let engine = Engine::new(EngineOptions { threads: Some(1), ..EngineOptions::default() });
    let path = dir.path().join("tiny.gguf");
    engine.expect("a CPU").load(&path, &ModelOptions::default()).expect("a good file")
}

#[test]
fn a_model_is_loaded_when_the_other_has_ended_its_requests_and_is_out_of_memory() {
    let mut table = Table::new(|model, session| model + session);
    let (one, mut runs) = table.ask("a");
    table.log.check(&["load a"]);
    table.loaded("a");
    let started = runs.try_recv().unwrap().unwrap();
    let (other, mut waits) = table.ask("b");
    table.log.check(&["load a"]);
    table.leave(one);
    table.log.check(&["load a", "drop a"]);
    assert!(table.departed.try_recv().is_err(), "the request's handle keeps it in memory");
    drop(started);
    table.departed();
    table.log.check(&["load a", "drop a", "load b"]);
    assert!(waits.try_recv().is_err());
    table.loaded("b");
    assert_eq!(waits.try_recv().unwrap().unwrap().loaded.name.as_str(), "b");
    table.leave(other);
}

#[test]
fn a_session_beside_others_takes_memory_while_it_runs_and_waits_where_there_is_none() {
    let mut table = Table::new(|model, session| model + 2 * session + session / 2);
    let (model, session) = {
        let tiny = model(&table.dir);
        (tiny.footprint().total(), tiny.session_bytes())
    };
    let mut asked: Vec<Asked> = (0..4).map(|_| table.ask("a")).collect();
    table.loaded("a");
    assert_eq!((table.running(), table.held()), (3, model + 2 * session));
    let (last, mut waits) = asked.pop().unwrap();
    assert!(waits.try_recv().is_err());
    table.leave(asked[0].0);
    assert_eq!((table.running(), table.held()), (3, model + 2 * session));
    assert!(waits.try_recv().unwrap().is_ok(), "it has the place of who left");
    table.leave(asked[1].0);
    assert_eq!((table.running(), table.held()), (2, model + session));
    table.leave(asked[2].0);
    table.leave(last);
    assert_eq!((table.running(), table.held()), (0, model), "the model has room for one");
}

#[test]
fn a_request_that_is_held_can_be_cancelled_and_hears_that_its_model_is_unloaded() {
    let mut table = Table::new(|model, _| model);
    let (first, runs) = table.ask("a");
    let (second, mut cancelled) = table.ask("a");
    let (_, mut unloaded) = table.ask("a");
    table.loaded("a");
    assert_eq!(table.running(), 1);
    let seen = table.desk.cancel(second.number(), &table.log).unwrap();
    assert!(matches!(seen.stage, Progress::Waits { .. }));
    let told = cancelled.try_recv().unwrap().map(|_| ());
    assert!(matches!(told, Err(ModelError::Ended(Reason::Cancelled))), "{told:?}");

    let gone = table.desk.unload(&"a".into(), true, &table.log).unwrap();
    let told = unloaded.try_recv().unwrap().map(|_| ());
    assert!(matches!(told, Err(ModelError::Ended(Reason::Unloaded))), "{told:?}");
    table.log.check(&["load a", "drop a"]);
    assert!(!gone.has_changed().unwrap());
    drop(runs);
    table.departed();
    assert!(gone.has_changed().is_err(), "who waits for that hears of it");
    table.leave(first);
    assert_eq!(table.held(), 0);
}

#[test]
fn who_wants_no_more_than_a_load_takes_no_place_and_no_memory() {
    let mut table = Table::new(|model, _| model);
    let (_, _runs) = table.ask("a");
    let ask = Ask { insists: true, ..Ask::new("a") };
    let (_, mut loads) =
        table.desk.ask(ask.clone(), Want::Load, &table.log).unwrap().expect("it is not loaded");
    table.loaded("a");
    assert!(loads.try_recv().unwrap().is_ok());
    assert_eq!((table.running(), table.desk.requests().len()), (1, 1));
    assert!(table.desk.ask(ask, Want::Load, &table.log).unwrap().is_none(), "it is loaded");
}

#[test]
fn a_model_that_finds_no_place_is_loaded_when_another_has_left() {
    let mut table = Table::new(|model, _| 2 * model);
    let (id, told) = table.ask("a");
    table.loaded("a");
    drop(told);
    table.leave(id);
    let (_, mut told) = table.ask("b");
    let failure = || LoadFailure { code: ErrorCode::Busy, message: "no piece is free".to_owned() };
    table.desk.load_failed(&"b".into(), failure(), &table.log);
    table.log.check(&["load a", "load b", "drop a"]);
    table.departed();
    table.log.check(&["load a", "load b", "drop a", "load b"]);
    assert!(told.try_recv().is_err(), "it waits");
    table.desk.load_failed(&"b".into(), failure(), &table.log);
    let refused = told.try_recv().unwrap().unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Busy, "nobody is left: {refused}");
    assert_eq!(table.held(), 0);
}

#[test]
fn a_request_is_lent_what_is_free_until_it_ends() {
    let mut table = Table::new(|model, _| model + 100);
    let (id, _told) = table.ask("a");
    table.loaded("a");
    let before = table.held();
    assert_eq!((table.desk.lend(id, 70), table.held()), (70, before + 70));
    assert_eq!((table.desk.lend(id, 70), table.held()), (30, before + 100));
    assert_eq!(table.desk.lend(id, 1), 0);
    table.leave(id);
    assert_eq!((table.held(), table.desk.lend(id, 1)), (before, 0));
}
