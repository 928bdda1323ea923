//! What went worst in other servers, by the reports of their users, told to this scheduler.

use super::super::*;
use super::world::{Fate, World, ms};

fn done(world: &World, requests: &[RequestId]) {
    for request in requests {
        assert_eq!(world.fate(*request), &Fate::Done, "request {}", request.0);
    }
}

fn two_that_exclude_each_other() -> World {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.define("b", 8, |_| {});
    world
}

// ollama#17408: the evicted model was revived by a request, and every later load hung for hours.
#[test]
fn a_model_that_is_asked_for_while_it_is_evicted_goes_and_is_loaded_again() {
    let mut world = two_that_exclude_each_other();
    let first = world.ask("a");
    world.settle();
    world.advance(ms(5000));
    world.news();
    let second = world.ask("b");
    assert_eq!(world.news(), ["unload a, Room"]);
    let third = world.ask("a");
    assert_eq!(world.news(), [""; 0], "it is neither revived nor unloaded twice");
    world.advance(ms(50));
    assert_eq!(world.news(), ["load b"]);
    world.settle();
    done(&world, &[first, second, third]);
    assert_eq!(world.loads(), ["a"]);
}

// ollama#18282: a model that could never fit evicted all others, again and again.
#[test]
fn a_model_that_can_never_fit_is_refused_at_once_and_evicts_nobody() {
    let mut world = World::new(10);
    world.define("small", 4, |_| {});
    world.define("huge", 11, |_| {});
    world.ask("small");
    world.settle();
    world.news();
    let refusal = world.try_ask(Ask::new("huge")).unwrap_err();
    assert!(matches!(&refusal, Refusal::NeverFits(why) if why.ceiling == 10), "{refusal}");
    assert_eq!(refusal.retry_after(), None, "time alone does not help");
    world.settle();
    assert_eq!(world.news(), [""; 0]);
    assert!(world.is_ready("small"));
}

// llama.cpp#21678: the router killed a model in the middle of an answer to load another.
#[test]
fn a_model_that_answers_is_not_evicted_however_long_another_waits() {
    let mut world = two_that_exclude_each_other();
    world.answer = ms(600_000);
    let long = world.ask("a");
    world.advance(ms(2000));
    world.answer = ms(100);
    let waits = world.ask("b");
    world.advance(ms(500_000));
    assert_eq!((world.fate(long), world.fate(waits)), (&Fate::Runs, &Fate::Waits));
    world.settle();
    done(&world, &[long, waits]);
    assert!(world.log.contains(&"unload a, Room".to_owned()));
}

// llama.cpp#28698: a model was evicted between its load and the first request that waited for it.
#[test]
fn a_loaded_model_answers_those_who_waited_before_it_leaves_for_another() {
    let rules = Rules { patience: ms(0), resident_least: ms(0), ..Rules::default() };
    let mut world = World::with(10, rules);
    world.define("a", 8, |_| {});
    world.define("b", 8, |_| {});
    let a = world.ask("a");
    let b = world.ask("b");
    world.settle();
    done(&world, &[a, b]);
    let starts = |id: RequestId, model| format!("start {} on {model}", id.0);
    let (a, b) = (starts(a, "a"), starts(b, "b"));
    assert_eq!(world.log, ["load a", &a, "unload a, Room", "load b", &b]);
}

// llama.cpp#25326: models were evicted by their number, so that the second ran out of memory.
#[test]
fn memory_and_not_the_number_of_models_decides_who_leaves() {
    let mut world = World::new(10);
    for (name, bytes) in [("a", 3), ("b", 3), ("c", 3), ("large", 7)] {
        world.define(name, bytes, |_| {});
    }
    for name in ["a", "b", "c"] {
        world.ask(name);
        world.settle();
    }
    assert_eq!(world.loads(), ["a", "b", "c"], "all fit");
    world.advance(ms(5000));
    world.news();
    world.ask("large");
    world.settle();
    let news = world.news();
    assert_eq!(news[..3], ["unload a, Room", "unload b, Room", "load large"], "and c stays");
}

// llama-swap#612, #588: A B A A C was answered in this order, with four swaps.
#[test]
fn requests_for_the_model_in_memory_go_before_a_swap() {
    let mut world = two_that_exclude_each_other();
    world.define("c", 8, |_| {});
    let requests = ["a", "b", "a", "a", "c"].map(|name| world.ask(name));
    world.settle();
    done(&world, &requests);
    assert_eq!(world.loads(), ["a", "b", "c"]);
}

// llama-swap#612 too: and yet nobody is to wait for ever.
#[test]
fn a_stream_of_requests_for_one_model_keeps_another_out_for_a_bounded_time_only() {
    let mut world = two_that_exclude_each_other();
    world.answer = ms(300);
    world.ask("a");
    world.advance(ms(2500));
    let other = world.ask("b");
    for _ in 0..100 {
        world.ask("a");
        world.advance(ms(150));
    }
    world.settle();
    assert!(world.waits[&other] < ms(8000), "{:?}", world.waits[&other]);
    assert!(world.waits[&other] >= ms(4500), "requests in memory went first for a time");
    assert!(world.fates.values().all(|fate| *fate == Fate::Done));
}

// llama-swap#19: a client that calls two models at once had both requests die in a swap ping-pong.
#[test]
fn two_models_called_at_once_are_both_answered_with_a_load_each() {
    let mut world = two_that_exclude_each_other();
    let both = [world.ask("a"), world.ask("b")];
    world.settle();
    done(&world, &both);
    assert_eq!(world.loads(), ["a", "b"]);
}

// llama-swap#92: a model whose load had failed stayed failed until a restart.
#[test]
fn a_model_that_failed_to_load_says_why_and_is_tried_again_later() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.failures.insert("a".into(), [true, true, false].into());
    let waits = [world.ask("a"), world.ask("a")];
    world.advance(ms(1000));
    for request in waits {
        let Fate::Refused(refusal) = world.fate(request) else { panic!("it was not told") };
        assert_eq!(refusal.retry_after(), Some(ms(5000)));
    }
    let refusal = world.try_ask(Ask::new("a")).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "the model \"a\" could not be loaded: no such file (failures in a row: 1; it is tried again \
         when asked for in 5 s)"
    );
    world.advance(ms(5000));
    world.ask("a");
    world.advance(ms(1000));
    let refusal = world.try_ask(Ask::new("a")).unwrap_err();
    assert_eq!(refusal.retry_after(), Some(ms(10_000)), "twice as long");
    let operator = world.try_ask(Ask { insists: true, ..Ask::new("a") }).unwrap();
    world.settle();
    done(&world, &[operator]);
}

// ollama#9625: each client that came back after a disconnect loaded the model once more.
#[test]
fn clients_that_leave_and_come_back_join_the_load_that_runs() {
    let mut world = World::new(100);
    world.define("a", 8, |_| {});
    for _ in 0..10 {
        let gone = world.ask("a");
        world.advance(ms(50));
        world.cancel(gone);
    }
    let stays = world.ask("a");
    world.settle();
    done(&world, &[stays]);
    assert_eq!((world.loads(), world.scheduler.ledger().held()), (vec!["a"], 8));
}

// ollama#7779: "Stopping..." for ever, with no way to force it.
#[test]
fn a_model_that_never_ends_its_answer_can_be_sent_out_by_force() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.answer = ms(1 << 40);
    let endless = world.ask("a");
    world.advance(ms(1000));
    world.unload("a", false).unwrap();
    let waits = world.ask("a");
    world.advance(ms(100_000));
    assert_eq!(world.fate(endless), &Fate::Runs, "nothing was cut short yet");
    world.news();
    world.unload("a", true).unwrap();
    assert_eq!(world.news()[1], "unload a, Asked, cut short");
    assert_eq!(world.fate(waits), &Fate::Refused(Refusal::Unloaded("a".into())));
    world.advance(ms(50));
    assert_eq!((world.fate(endless), world.scheduler.ledger().held()), (&Fate::Done, 0));
}

#[test]
fn an_unload_that_waits_for_too_long_cuts_short_where_the_rules_say_so() {
    let rules = Rules { drain_most: Some(ms(3000)), ..Rules::default() };
    let mut world = World::with(10, rules);
    world.define("a", 8, |_| {});
    world.answer = ms(1 << 40);
    world.ask("a");
    world.advance(ms(1000));
    world.unload("a", false).unwrap();
    world.advance(ms(2999));
    assert!(world.is_ready("a"));
    world.news();
    world.advance(ms(1));
    assert_eq!(world.news(), ["unload a, Asked, cut short"]);
}

// ollama#4443: a deleted model stayed in memory.
#[test]
fn a_model_whose_manifest_is_removed_leaves_memory_when_its_answers_are_done() {
    let mut world = World::new(10);
    world.define("a", 8, |definition| definition.pinned = true);
    let runs = world.ask("a");
    world.advance(ms(1000));
    let waits = world.ask("a");
    world.remove("a");
    assert_eq!(world.fate(waits), &Fate::Refused(Refusal::Removed("a".into())));
    assert_eq!(world.fate(runs), &Fate::Runs);
    assert!(matches!(world.try_ask(Ask::new("a")), Err(Refusal::Unknown(_))));
    world.settle();
    done(&world, &[runs]);
    assert!(world.scheduler.models().is_empty());
    assert_eq!(world.scheduler.ledger().held(), 0);
}

// magic-lists#34: the client's time-out during a load ended the load, so that no retry succeeded.
#[test]
fn a_load_survives_the_client_that_asked_for_it() {
    let mut world = two_that_exclude_each_other();
    world.define("a", 8, |definition| definition.load_time = ms(10_000));
    world.ask("b");
    world.settle();
    world.advance(ms(5000));
    let gone = world.ask("a");
    world.cancel(gone);
    world.advance(ms(3000));
    assert_eq!(world.loads(), ["b", "a"], "also one that waited for room");
    let retry = world.ask("a");
    world.advance(ms(3000));
    world.cancel(retry);
    world.settle();
    assert!(world.is_ready("a"));
    let third = world.ask("a");
    assert_eq!(world.fate(third), &Fate::Runs);
}

// ollama#8903: a request with another num_ctx reloaded the model, each time.
#[test]
fn another_context_length_is_for_the_next_load_and_reloads_nothing() {
    let mut world = World::new(10);
    world.define("a", 4, |_| {});
    world.ask("a");
    world.settle();
    world.news();
    world.change("a", |definition| definition.footprint.weights = 6);
    let request = world.ask("a");
    world.settle();
    done(&world, &[request]);
    assert_eq!((world.loads(), world.scheduler.ledger().held()), (vec![], 4));
    world.unload("a", false).unwrap();
    world.ask("a");
    world.settle();
    assert_eq!(world.scheduler.ledger().held(), 6);
}

// llama.cpp#18153: what happens when all is pinned was never said.
#[test]
fn what_does_not_fit_beside_pinned_models_is_refused_with_the_arithmetic() {
    let mut world = World::new(10 << 20);
    world.define("pinned", 6 << 20, |definition| definition.pinned = true);
    world.define("other", 5 << 20, |_| {});
    world.ask("pinned");
    world.settle();
    assert_eq!(
        world.try_ask(Ask::new("other")).unwrap_err().to_string(),
        "the model \"other\" needs 5 MiB, and pinned models leave 4 of 10 MiB: \"pinned\" 6 MiB; \
         unpin or unload one"
    );
    world.change("pinned", |definition| definition.pinned = false);
    let request = world.ask("other");
    world.settle();
    done(&world, &[request]);
}

// llama-swap#413: after a large model had gone, nobody brought the small default model back.
#[test]
fn a_preloaded_model_that_had_to_leave_returns_when_there_is_room() {
    let mut world = World::new(10);
    world.define("default", 3, |definition| definition.preload = true);
    world.define("large", 9, |definition| definition.idle = Some(ms(60_000)));
    world.advance(ms(10_000));
    assert!(world.is_ready("default"), "nobody had to ask");
    let request = world.ask("large");
    world.settle();
    done(&world, &[request]);
    world.advance(ms(59_000));
    assert!(!world.is_ready("default"), "it sends nobody out");
    world.advance(ms(3000));
    assert!(world.is_ready("default"));
    world.unload("default", false).unwrap();
    world.advance(ms(10_000));
    assert!(!world.is_ready("default"), "an operator's word stands until somebody asks");
}

// ollama#13227: models left although there was room.
#[test]
fn nobody_leaves_without_need() {
    let mut world = World::new(10);
    world.define("tiny", 1, |_| {});
    world.define("large", 6, |definition| definition.priority = 1);
    world.define("new", 8, |_| {});
    world.ask("tiny");
    world.ask("large");
    world.settle();
    world.advance(ms(5000));
    world.news();
    world.ask("new");
    world.settle();
    assert_eq!(world.news()[..2], ["unload large, Room", "load new"], "without it tiny may stay");
}
