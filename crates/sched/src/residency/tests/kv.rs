//! KV cache beyond what models were loaded with.

use super::super::*;
use super::world::{Fate, World, ms};

/// A world of 20 bytes with idle models of 5 in memory, 2 of them KV cache.
fn world_with(names: &[&str]) -> World {
    let mut world = World::new(20);
    for name in names {
        define(&mut world, name, 5);
        world.ask(name);
        world.settle();
        world.advance(ms(10));
    }
    world.advance(ms(10_000));
    world.news();
    world
}

fn define(world: &mut World, name: &str, bytes: u64) {
    world.define(name, bytes - 2, |definition| {
        definition.footprint.page_bytes = 1;
        definition.footprint.context = 2;
    });
}

#[test]
fn it_is_given_back_before_anybody_leaves() {
    let mut world = world_with(&["a", "b"]);
    define(&mut world, "new", 8);
    world.change("a", |a| a.pinned = true);
    assert!(world.grow("a", 6) && world.grow("b", 3));
    assert!(!world.grow("b", 2), "one byte is free");
    let plan = world.scheduler.plan(world.now(), Ask::new("new"));
    assert_eq!((plan.evicts, plan.shrinks.len()), (vec![], 2));
    world.ask("new");
    assert_eq!(world.news(), ["shrink a by 6", "shrink b by 1"], "a was used before b");
    assert!(!world.grow("b", 1), "what comes back is promised");
    world.settle();
    assert_eq!(world.loads(), ["new"]);
    assert_eq!(world.scheduler.ledger().free(), 0);
}

#[test]
fn what_leaves_need_not_give_back_before() {
    let mut world = world_with(&["a", "b"]);
    define(&mut world, "new", 14);
    assert!(world.grow("a", 3) && world.grow("b", 3));
    world.ask("new");
    assert_eq!(world.news(), ["shrink b by 2", "unload a, Room"]);
    world.settle();
    assert!(world.is_ready("b") && world.is_ready("new"));
}

#[test]
fn a_pinned_model_is_in_nobodys_way_with_what_it_gives_back() {
    let mut world = world_with(&["a"]);
    world.change("a", |a| a.pinned = true);
    define(&mut world, "new", 15);
    define(&mut world, "newer", 16);
    assert!(world.grow("a", 15));
    assert!(matches!(world.try_ask(Ask::new("newer")), Err(Refusal::Pinned { needed: 16, .. })));
    let request = world.ask("new");
    assert_eq!(world.news(), ["shrink a by 15"], "it keeps what it was loaded with");
    world.settle();
    assert_eq!(world.fate(request), &Fate::Done);
}

#[test]
fn nobody_grows_while_somebody_waits_for_room() {
    let mut world = world_with(&["a"]);
    define(&mut world, "new", 18);
    world.answer = ms(60_000);
    world.ask("a");
    let waits = world.ask("new");
    assert!(!world.grow("a", 1), "15 bytes are free, and 18 are waited for");
    world.cancel(waits);
    assert!(world.grow("a", 15));
}

#[test]
fn it_is_asked_back_once() {
    let mut world = world_with(&["a", "b"]);
    define(&mut world, "new", 8);
    define(&mut world, "newer", 7);
    world.change("a", |a| a.priority = 1);
    assert!(world.grow("a", 10));
    world.ask("new");
    assert_eq!(world.news(), ["shrink a by 8"]);
    world.ask("newer");
    assert_eq!(world.news(), ["shrink a by 2", "unload b, Room"]);
    world.settle();
    assert!(world.is_ready("a") && world.is_ready("new"));
}

#[test]
fn what_is_promised_to_one_is_not_gained_again_when_its_holder_leaves() {
    let mut world = world_with(&["a", "b"]);
    define(&mut world, "new", 8);
    define(&mut world, "newer", 8);
    assert!(world.grow("a", 10));
    world.ask("new");
    world.ask("newer");
    assert_eq!(
        world.news(),
        ["shrink a by 8", "unload a, Room", "unload b, Room"],
        "a has 7 bytes for it"
    );
    world.settle();
    assert!(world.is_ready("new") && world.is_ready("newer"));
}

#[test]
fn what_a_model_was_to_give_back_is_forgotten_when_it_is_gone() {
    for breaks in [false, true] {
        let mut world = world_with(&["a"]);
        define(&mut world, "new", 10);
        define(&mut world, "other", 12);
        assert!(world.grow("a", 15));
        world.ask("new");
        assert_eq!(world.news(), ["shrink a by 10"]);
        if breaks {
            assert!(world.break_down("a"));
            world.advance(ms(10_000));
        } else {
            world.unload("a", false).unwrap();
        }
        world.settle();
        world.ask("a");
        world.settle();
        assert!(world.grow("a", 5), "all that is free");
        assert!(!world.grow("a", 1));
        world.settle();
        world.advance(ms(10_000));
        world.news();
        world.ask("other");
        assert_eq!(world.news(), ["shrink a by 2", "unload new, Room"]);
        world.settle();
    }
}
