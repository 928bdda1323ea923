//! The rules one by one.

use std::num::NonZeroUsize;

use super::super::*;
use super::world::{Fate, World, definition, ms};

fn agent(name: &str, class: Class) -> Ask {
    Ask { class, ..Ask::new(name) }
}

fn after_loading(world: &mut World, names: &[&str]) {
    for name in names {
        world.ask(name);
        world.settle();
        world.advance(ms(10));
    }
    world.advance(ms(10_000));
    world.news();
}

#[test]
fn the_least_priority_leaves_first_then_the_least_recently_used_then_the_cheapest_to_load() {
    let mut world = World::new(12);
    world.define("old", 3, |definition| definition.priority = 1);
    world.define("plain", 3, |_| {});
    world.define("plainer", 3, |_| {});
    world.define("recent", 3, |_| {});
    world.define("new", 6, |_| {});
    after_loading(&mut world, &["old", "plain", "plainer", "recent"]);
    world.ask("new");
    assert_eq!(world.news(), ["unload plain, Room", "unload plainer, Room"]);

    let mut world = World::new(12);
    world.define("costly", 5, |definition| definition.load_time = ms(2000));
    world.define("thrifty", 5, |_| {});
    world.define("new", 5, |_| {});
    after_loading(&mut world, &["costly", "thrifty"]);
    world.ask("costly");
    world.ask("thrifty");
    world.settle();
    world.news();
    world.ask("new");
    assert_eq!(world.news(), ["unload thrifty, Room"], "both were used last at the same moment");
}

#[test]
fn idle_models_leave_before_busy_ones_of_less_priority() {
    let rules = Rules { resident_least: ms(10_000), ..Rules::default() };
    let mut world = World::with(10, rules);
    world.define("busy", 5, |definition| definition.priority = -1);
    world.define("idle", 5, |_| {});
    world.define("new", 5, |_| {});
    world.ask("idle");
    world.answer = ms(60_000);
    world.ask("busy");
    world.advance(ms(2000));
    world.ask("new");
    world.news();
    world.advance(ms(9000));
    assert_eq!(world.news(), ["unload idle, Room"], "both have been there for as long");
}

#[test]
fn pinned_sets_that_cannot_fit_are_refused_and_the_old_ones_stay() {
    let mut world = World::new(10 << 20);
    world.define("a", 6 << 20, |definition| definition.pinned = true);
    let before = world.definitions.clone();
    let mut pinned = definition(5 << 20);
    pinned.pinned = true;
    world.definitions.insert("b".into(), pinned);
    let error = world.configure().unwrap_err();
    assert_eq!(
        error.to_string(),
        "pinned models need 11 MiB and there are 10: \"a\" 6 MiB, \"b\" 5 MiB; unpin one, or give it \
         a smaller context"
    );
    world.definitions = before;
    assert!(matches!(world.try_ask(Ask::new("b")), Err(Refusal::Unknown(_))));
    let request = world.ask("a");
    world.settle();
    assert_eq!(world.fate(request), &Fate::Done);
}

#[test]
fn a_pin_that_comes_in_time_keeps_a_model_and_whoever_claimed_its_room_is_told() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.define("b", 8, |_| {});
    world.answer = ms(20_000);
    world.ask("a");
    world.advance(ms(2000));
    let other = world.ask("b");
    world.advance(ms(10_000));
    assert!(matches!(world.scheduler.models()[0].residence, Residence::Leaving(Why::Room)));
    world.change("a", |definition| definition.pinned = true);
    assert!(matches!(world.fate(other), Fate::Refused(Refusal::Pinned { needed: 8, .. })));
    let more = world.ask("a");
    world.settle();
    assert_eq!(world.fate(more), &Fate::Done);
    assert_eq!(world.loads(), ["a"]);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_again() {
    let rules = Rules { waiting_max: NonZeroUsize::MIN.saturating_add(1), ..Rules::default() };
    let mut world = World::with(10, rules);
    world.define("a", 8, |_| {});
    world.answer = ms(4000);
    world.ask("a");
    world.settle();
    for _ in 0..3 {
        world.ask("a");
    }
    let refusal = world.try_ask(Ask::new("a")).unwrap_err();
    assert!(matches!(refusal, Refusal::QueueFull { limit: 2, .. }), "{refusal}");
    assert_eq!(refusal.retry_after(), Some(ms(12_000)), "three answers");
    world.settle();
    world.ask("a");
}

#[test]
fn deadlines_end_requests_that_wait_and_requests_that_run() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.answer = ms(60_000);
    let deadline = |at| Some(Moment::START + ms(at));
    let runs = world.try_ask(Ask { deadline: deadline(5000), ..Ask::new("a") }).unwrap();
    let waits = world.try_ask(Ask { deadline: deadline(3000), ..Ask::new("a") }).unwrap();
    world.advance(ms(2999));
    assert_eq!((world.fate(runs), world.fate(waits)), (&Fate::Runs, &Fate::Waits));
    world.advance(ms(1));
    let Fate::Refused(refusal) = world.fate(waits) else { panic!("it waits on") };
    assert_eq!(
        refusal.to_string(),
        "the request's time was over after it had waited 3 s for the model \"a\""
    );
    world.advance(ms(2001));
    assert_eq!(world.fate(runs), &Fate::Done);
    assert_eq!(world.log.iter().filter(|line| line.starts_with("stop")).count(), 1);
    let late = world.try_ask(Ask { deadline: deadline(0), ..Ask::new("a") }).unwrap();
    assert!(matches!(world.fate(late), Fate::Refused(Refusal::DeadlinePassed { .. })));
}

#[test]
fn urgent_requests_start_first_and_have_others_make_room_without_patience() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.define("b", 8, |_| {});
    world.answer = ms(1000);
    let batch: Vec<_> =
        (0..9).map(|_| world.try_ask(agent("a", Class::Batch)).expect("it may wait")).collect();
    let person = world.ask("a");
    world.advance(ms(1000));
    assert_eq!(world.fate(person), &Fate::Runs);
    world.advance(ms(2500));
    let other = world.ask("b");
    world.settle();
    assert!(world.waits[&other] < ms(2100), "the request that ran, and the load");
    assert!(batch.iter().all(|request| world.fate(*request) == &Fate::Done));
}

#[test]
fn small_models_do_not_keep_a_large_one_out_for_ever() {
    let mut world = World::new(10);
    let names: Vec<String> = (0..14).map(|n| format!("small{n:02}")).collect();
    names.iter().for_each(|name| world.define(name, 1, |_| {}));
    world.define("large", 10, |_| {});
    let mut large = None;
    for round in 0..40 {
        for name in &names[round % 3..] {
            let _ = world.try_ask(Ask::new(name.as_str()));
            world.advance(ms(137));
        }
        if round == 5 {
            large = Some(world.ask("large"));
        }
    }
    world.settle();
    let large = large.expect("it was asked for");
    assert!(world.waits[&large] < ms(30_000), "{:?}", world.waits[&large]);
}

#[test]
fn what_fits_beside_a_claim_does_not_wait_for_it() {
    let mut world = World::new(12);
    world.define("busy", 8, |_| {});
    world.define("large", 8, |_| {});
    world.define("small", 3, |_| {});
    world.answer = ms(100_000);
    world.ask("busy");
    world.advance(ms(2000));
    let large = world.ask("large");
    world.advance(ms(10_000));
    let small = world.ask("small");
    world.advance(ms(1000));
    assert_eq!((world.fate(small), world.fate(large)), (&Fate::Runs, &Fate::Waits));
}

#[test]
fn idle_models_leave_after_their_time_but_not_while_they_answer_or_are_pinned() {
    let mut world = World::new(20);
    world.define("a", 8, |definition| definition.idle = Some(ms(3000)));
    world.define("b", 8, |definition| {
        definition.idle = Some(ms(3000));
        definition.pinned = true;
    });
    world.answer = ms(10_000);
    world.ask("a");
    world.ask("b");
    world.advance(ms(11_000 + 2999));
    assert!(world.is_ready("a"));
    world.advance(ms(1));
    assert_eq!(world.log.last().unwrap(), "unload a, Idle");
    world.change("b", |definition| definition.pinned = false);
    assert_eq!(world.log.last().unwrap(), "unload b, Idle", "a change counts at once");
}

#[test]
fn who_uses_a_model_says_how_long_it_stays_and_it_forgets_that_when_it_leaves() {
    let mut world = World::new(20);
    world.define("a", 8, |definition| definition.idle = Some(ms(3000)));
    world.answer = ms(1000);
    world.ask("a");
    world.advance(ms(1500));
    world.keep("a", Stay::For(ms(0)));
    assert!(world.is_ready("a"), "it answers");
    world.advance(ms(500));
    assert_eq!(world.log.last().unwrap(), "unload a, Idle");

    world.ask("a");
    world.advance(ms(2050));
    world.keep("a", Stay::Forever);
    world.advance(ms(60_000));
    assert!(world.is_ready("a"));
    world.keep("a", Stay::For(ms(0)));
    assert_eq!(world.log.last().unwrap(), "unload a, Idle");

    world.advance(ms(1000));
    world.ask("a");
    world.advance(ms(2000 + 2999));
    assert!(world.is_ready("a"), "what was said before it left is forgotten");
    world.advance(ms(1));
    assert_eq!(world.log.last().unwrap(), "unload a, Idle");
}

#[test]
fn nobody_can_have_a_pinned_model_leave_or_be_kept_that_is_not_there() {
    let mut world = World::new(20);
    world.define("a", 8, |definition| definition.pinned = true);
    world.define("b", 8, |definition| definition.idle = Some(ms(3000)));
    world.keep("b", Stay::Forever);
    world.ask("a");
    world.ask("b");
    world.advance(ms(1500));
    world.keep("a", Stay::For(ms(0)));
    world.advance(ms(3000));
    assert!(world.is_ready("a") && !world.is_ready("b"));
}

#[test]
fn a_preloaded_model_that_nobody_used_leaves_and_stays_away_until_it_is_asked_for() {
    let mut world = World::new(10);
    world.define("a", 8, |definition| {
        definition.preload = true;
        definition.idle = Some(ms(3000));
    });
    world.advance(ms(60_000));
    assert_eq!(world.news(), ["load a", "unload a, Idle"]);
    world.ask("a");
    world.settle();
    assert!(world.is_ready("a"));
}

#[test]
fn a_new_revision_leaves_when_its_requests_are_done_and_others_are_not_touched() {
    let mut world = World::new(20);
    world.define("a", 8, |_| {});
    world.define("b", 8, |_| {});
    world.answer = ms(5000);
    let running = [world.ask("a"), world.ask("b")];
    world.advance(ms(1000));
    world.change("a", |definition| definition.revision = 1);
    let next = world.ask("a");
    world.news();
    world.settle();
    assert!(running.iter().all(|request| world.fate(*request) == &Fate::Done));
    assert_eq!(world.fate(next), &Fate::Done);
    assert_eq!(world.loads(), ["a"]);
    assert!(world.is_ready("b"));
}

#[test]
fn a_definition_that_comes_back_in_time_keeps_its_model() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.answer = ms(5000);
    world.ask("a");
    world.advance(ms(1000));
    let kept = world.definitions.clone();
    world.remove("a");
    world.definitions = kept.clone();
    world.configure().unwrap();
    assert_eq!(world.scheduler.models()[0].residence, Residence::Ready);

    world.change("a", |definition| definition.revision = 1);
    let changed = world.definitions.clone();
    world.remove("a");
    world.definitions = changed;
    world.configure().unwrap();
    assert_eq!(world.scheduler.models()[0].residence, Residence::Leaving(Why::Changed));
}

#[test]
fn what_is_defined_while_a_model_loads_decides_whether_it_stays() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.ask("a");
    let kept = world.definitions.clone();
    world.remove("a");
    world.definitions = kept;
    world.configure().unwrap();
    world.advance(ms(1000));
    assert!(world.is_ready("a"), "it is what it was");
    assert_eq!(world.scheduler.models()[0].residence, Residence::Ready);

    world.unload("a", true).unwrap();
    world.settle();
    world.ask("a");
    world.change("a", |definition| definition.revision = 1);
    let changed = world.definitions.clone();
    world.remove("a");
    world.definitions = changed;
    world.configure().unwrap();
    world.news();
    world.settle();
    assert_eq!(world.news(), ["unload a, Changed"], "it is another one");
}

#[test]
fn failures_in_a_row_are_counted_from_the_latest_success() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.failures.insert("a".into(), [true, false, true].into());
    let mut failures = vec![];
    for _ in 0..3 {
        let request = world.ask("a");
        world.settle();
        if let Fate::Refused(Refusal::LoadFailed { failures: in_a_row, .. }) = world.fate(request) {
            failures.push(*in_a_row);
        }
        world.advance(ms(10_000));
        let _ = world.unload("a", false);
        world.settle();
    }
    assert_eq!(failures, [1, 1]);
}

#[test]
fn a_model_that_takes_more_than_it_said_is_sent_out_where_there_is_no_room_for_that() {
    let mut scheduler = Scheduler::new(Rules::default(), 10);
    let name = ModelName::from("a");
    scheduler.configure(Moment::START, [(name.clone(), definition(8))].into()).unwrap();
    let (_, actions) = scheduler.request(Moment::START, Ask::new("a")).unwrap();
    assert_eq!(actions, [Action::Load { model: name.clone() }]);
    let parts = Parts { weights: 11, kv: 0, scratch: 0 };
    let actions = scheduler.loaded(Moment::START, &name, parts);
    assert!(matches!(actions[0], Action::Refuse { .. }));
    assert!(matches!(actions[1], Action::Unload { why: Why::TooLarge, cut_short: false, .. }));
    let refusal = scheduler.request(Moment::START, Ask::new("a")).unwrap_err();
    assert!(matches!(refusal, Refusal::LoadFailed { failures: 1, .. }), "{refusal}");
    scheduler.unloaded(Moment::START, &name);
    assert_eq!(scheduler.ledger().held(), 0);
    let smaller = [(name.clone(), definition(7))].into();
    scheduler.configure(Moment::START, smaller).unwrap();
    assert!(scheduler.request(Moment::START, Ask::new("a")).is_ok(), "it is another load");
}

#[test]
fn a_plan_says_what_the_request_then_brings_about() {
    let mut world = World::new(10);
    world.define("a", 4, |_| {});
    world.define("b", 4, |definition| definition.priority = 1);
    world.define("c", 9, |_| {});
    world.define("huge", 11, |_| {});
    after_loading(&mut world, &["a", "b"]);
    let plan = |world: &World, name: &str| world.scheduler.plan(world.now(), Ask::new(name));
    let c = plan(&world, "c");
    assert_eq!((c.outcome, c.free, c.load_time), (Outcome::Loads, 2, Some(ms(1000))));
    assert_eq!(c.evicts, [("a".into(), 4), ("b".into(), 4)]);
    assert_eq!(world.news(), [""; 0], "nothing was done");
    assert_eq!(plan(&world, "a").outcome, Outcome::Starts);
    let huge = plan(&world, "huge");
    assert!(matches!(huge.outcome, Outcome::Refused(Refusal::NeverFits(_))));
    assert!(matches!(plan(&world, "x").outcome, Outcome::Refused(Refusal::Unknown(_))));

    world.answer = ms(20_000);
    world.ask("a");
    world.ask("a");
    let a = plan(&world, "a");
    assert_eq!((a.outcome, a.ahead, a.load_time), (Outcome::WaitsForPlace, 1, None));
    let c = plan(&world, "c");
    assert_eq!(c.outcome, Outcome::WaitsForRoom);
    assert_eq!((c.evicts.len(), c.awaits), (2, vec![("a".into(), 1)]));
    world.ask("c");
    world.advance(ms(6000));
    assert_eq!(plan(&world, "c").outcome, Outcome::JoinsLoad);
    assert_eq!(plan(&world, "a").outcome, Outcome::LoadsAgain);
}

#[test]
fn whoever_waits_can_see_the_place_in_the_queue() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.ask("a");
    world.settle();
    world.answer = ms(1000);
    let first = world.ask("a");
    let second = world.ask("a");
    let batch = world.try_ask(agent("a", Class::Batch)).unwrap();
    let third = world.ask("a");
    let place = |id| world.scheduler.waiting(id).map(|waiting| (waiting.ahead, waiting.wait));
    assert_eq!(place(first), None, "it runs");
    assert_eq!(place(second), Some((0, Some(ms(100)))));
    assert_eq!(place(third), Some((1, Some(ms(200)))));
    assert_eq!(place(batch), Some((2, Some(ms(300)))));
    let queue: Vec<_> = world.scheduler.queue().iter().map(|waiting| waiting.request).collect();
    assert_eq!(queue, [second, batch, third]);
}

#[test]
fn what_is_told_of_the_wrong_model_or_too_late_changes_nothing() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    let request = world.ask("a");
    world.settle();
    let now = world.now();
    let scheduler = &mut world.scheduler;
    let (a, x) = (ModelName::from("a"), ModelName::from("x"));
    for name in [&a, &x] {
        assert_eq!(scheduler.loaded(now, name, Parts::default()), []);
        assert_eq!(scheduler.load_failed(now, name, "late"), []);
        assert_eq!(scheduler.unloaded(now, name), []);
    }
    assert_eq!(scheduler.finished(now, request), []);
    assert_eq!(scheduler.cancel(now, request), []);
    assert_eq!(scheduler.unload(now, &x, true), Err(NotLoaded(x)));
    assert_eq!(scheduler.ledger().held(), 8);
}

#[test]
fn ten_thousand_requests_of_64_clients_for_4_models_are_all_answered() {
    let mut world = World::new(10);
    let names = ["a", "b", "c", "d"];
    for (name, bytes) in names.into_iter().zip([3, 4, 5, 6]) {
        world.define(name, bytes, |definition| {
            definition.slots = std::num::NonZeroU32::new(8).expect("it is above 0");
            definition.load_time = ms(200);
        });
    }
    let mut clients = [None; 64];
    let mut asked = 0usize;
    while asked < 10_000 {
        for (number, client) in clients.iter_mut().enumerate() {
            if client.is_none_or(|request| *world.fate(request) == Fate::Done) {
                world.answer = ms(20 + (asked * 7 % 60) as u64);
                *client = Some(world.ask(names[(number + asked / 64) % names.len()]));
                asked += 1;
            }
        }
        world.advance(ms(25));
    }
    world.settle();
    assert!(world.fates.values().all(|fate| *fate == Fate::Done));
    let swaps = world.loads().len();
    assert!(swaps < asked / 50, "a load serves many: {swaps} loads");
}

#[test]
fn a_pinned_model_that_is_to_be_preloaded_comes_in_spite_of_requests_for_others() {
    let mut world = World::new(10);
    world.define("a", 8, |_| {});
    world.define("b", 8, |_| {});
    let definition = |definition: &mut Definition| {
        definition.pinned = true;
        definition.preload = true;
    };
    for round in 0..400 {
        let _ = world.try_ask(Ask::new(["a", "b"][round % 2]));
        world.advance(ms(150));
        if round == 50 {
            world.define("pinned", 3, definition);
        }
    }
    assert!(world.is_ready("pinned"));
    world.settle();
    assert!(matches!(world.try_ask(Ask::new("a")), Err(Refusal::Pinned { .. })));
}
