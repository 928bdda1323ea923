//! Loads that find no place, although enough is free.

use super::super::*;
use super::world::{Fate, World, ms};

/// A world of 20 bytes with idle models of 5 in memory, and a model `new` of 8 whose next loads find no
/// place so often.
fn world_with(names: &[&str], times: u32) -> World {
    let mut world = World::new(20);
    for name in names {
        world.define(name, 5, |_| {});
        world.ask(name);
        world.settle();
        world.advance(ms(10));
    }
    world.advance(ms(10_000));
    world.define("new", 8, |_| {});
    world.no_places.insert("new".into(), times);
    world.news();
    world
}

#[test]
fn one_more_leaves_each_time_until_there_is_a_place() {
    let mut world = world_with(&["a", "b"], 1);
    let request = world.ask("new");
    world.settle();
    assert_eq!(world.fate(request), &Fate::Done);
    let begins = world.news();
    assert_eq!(begins[..3], ["load new", "unload a, Room", "load new"], "b was used later");
    assert!(world.is_ready("b"));

    let mut world = world_with(&["a", "b"], 2);
    let request = world.ask("new");
    world.settle();
    assert_eq!(world.fate(request), &Fate::Done);
    assert!(!world.is_ready("a") && !world.is_ready("b"));
}

#[test]
fn where_nobody_is_left_to_make_way_it_has_failed() {
    for pins in [false, true] {
        let mut world = world_with(&["a"], 9);
        world.change("a", |a| a.pinned = pins);
        let request = world.ask("new");
        world.settle();
        assert!(matches!(
            world.fate(request),
            Fate::Refused(Refusal::LoadFailed { failures: 1, reason, .. })
                if &**reason == "no piece is large enough"
        ));
        assert_eq!(world.is_ready("a"), pins);
        assert!(matches!(world.try_ask(Ask::new("new")), Err(Refusal::LoadFailed { .. })));
    }
}

#[test]
fn who_is_busy_is_not_cut_short_for_it() {
    let mut world = world_with(&["a"], 1);
    world.answer = ms(4000);
    let busy = world.ask("a");
    let request = world.ask("new");
    world.advance(ms(2000));
    assert_eq!(world.fate(request), &Fate::Waits);
    assert!(!world.news().iter().any(|line| line.starts_with("unload")));
    world.settle();
    assert_eq!((world.fate(busy), world.fate(request)), (&Fate::Done, &Fate::Done));
}

#[test]
fn nobody_leaves_for_a_model_that_nobody_asks_for() {
    let mut world = world_with(&["a"], 1);
    world.change("new", |new| new.preload = true);
    world.settle();
    assert!(world.is_ready("a") && !world.is_ready("new"));
    let status = world.scheduler.model("new").unwrap();
    assert_eq!(status.residence, Residence::Failed);
}
