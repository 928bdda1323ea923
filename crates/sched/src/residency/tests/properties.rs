//! Random worlds: whatever happens in them, the world's checks hold and everybody has an answer.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::super::*;
use super::world::{Fate, World, definition, ms};

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const BUDGET: u64 = 100;

#[derive(Clone, Debug)]
enum Happening {
    Ask { class: usize, answer: u64, deadline: Option<u64> },
    Cancel(usize),
    Unload { force: bool },
    Break,
    Grow(u64),
    FailNext,
    NoPlaceNext(u32),
    Pin(bool),
    Resize(u64),
    Revise,
    Remove,
    Define(Definition),
}

fn definitions() -> impl Strategy<Value = Definition> {
    let shape = (1u64..=110, 1u32..4, -1i32..2, prop::bool::weighted(0.2));
    let habits = (any::<bool>(), prop::option::weighted(0.3, 100u64..5000), 10u64..3000);
    (shape, habits).prop_map(|((bytes, slots, priority, pinned), (preload, idle, load))| {
        let slots = std::num::NonZeroU32::new(slots).expect("it is above 0");
        let idle = idle.map(ms);
        Definition {
            slots,
            priority,
            pinned,
            preload,
            idle,
            load_time: ms(load),
            ..definition(bytes)
        }
    })
}

fn happenings() -> impl Strategy<Value = Happening> {
    let ask = (0usize..3, 1u64..4000, prop::option::weighted(0.2, 0u64..8000));
    prop_oneof![
        20 => ask.prop_map(|(class, answer, deadline)| Happening::Ask { class, answer, deadline }),
        3 => any::<prop::sample::Index>().prop_map(|at| Happening::Cancel(at.index(1000))),
        1 => any::<bool>().prop_map(|force| Happening::Unload { force }),
        1 => Just(Happening::Break),
        3 => (1u64..30).prop_map(Happening::Grow),
        1 => Just(Happening::FailNext),
        1 => (1u32..4).prop_map(Happening::NoPlaceNext),
        1 => any::<bool>().prop_map(Happening::Pin),
        1 => (1u64..=110).prop_map(Happening::Resize),
        1 => Just(Happening::Revise),
        1 => Just(Happening::Remove),
        1 => definitions().prop_map(Happening::Define),
    ]
}

fn rules() -> impl Strategy<Value = Rules> {
    let times = (0u64..4000, 0u64..3000, 1u64..20_000, 1u64..4000);
    (times, 1usize..20, prop::option::of(0u64..5000)).prop_map(
        |((patience, resident, aging, cooldown), waiting_max, drain)| Rules {
            waiting_max: NonZeroUsize::new(waiting_max).expect("it is above 0"),
            patience: ms(patience),
            resident_least: ms(resident),
            aging: ms(aging),
            cooldown: ms(cooldown),
            cooldown_most: ms(8 * cooldown),
            drain_most: drain.map(ms),
        },
    )
}

/// Defines what there is to be, unless that cannot be.
fn configure(world: &mut World, change: impl FnOnce(&mut World)) {
    let before = world.definitions.clone();
    change(world);
    if world.configure().is_err() {
        world.definitions = before;
    }
}

fn happen(world: &mut World, name: &str, happening: Happening) {
    match happening {
        Happening::Ask { class, answer, deadline } => {
            world.answer = ms(answer);
            let deadline = deadline.map(|after| world.now() + ms(after));
            let class = Class::ALL[class];
            // A refusal is an answer.
            let _ = world.try_ask(Ask { class, deadline, ..Ask::new(name) });
        }
        Happening::Cancel(at) => {
            let open = |fate: &Fate| matches!(fate, Fate::Waits | Fate::Runs);
            let open: Vec<_> = world.fates.iter().filter(|(_, fate)| open(fate)).collect();
            if !open.is_empty() {
                let id = *open[at % open.len()].0;
                world.cancel(id);
            }
        }
        Happening::Unload { force } => {
            let _ = world.unload(name, force);
        }
        Happening::Break => {
            world.break_down(name);
        }
        Happening::Grow(bytes) => {
            world.grow(name, bytes);
        }
        Happening::FailNext => {
            world.failures.entry(name.into()).or_default().push_back(true);
        }
        Happening::NoPlaceNext(times) => {
            world.no_places.insert(name.into(), times);
        }
        Happening::Pin(pinned) => configure(world, |world| {
            world.definitions.entry(name.into()).and_modify(|d| d.pinned = pinned);
        }),
        Happening::Resize(bytes) => configure(world, |world| {
            world.definitions.entry(name.into()).and_modify(|d| d.footprint.weights = bytes);
        }),
        Happening::Revise => configure(world, |world| {
            world.definitions.entry(name.into()).and_modify(|d| d.revision += 1);
        }),
        Happening::Remove => configure(world, |world| {
            world.definitions.remove(name);
        }),
        Happening::Define(definition) => configure(world, |world| {
            world.definitions.insert(name.into(), definition);
        }),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_happens_everybody_is_answered_and_no_rule_is_broken(
        rules in rules(),
        models in prop::collection::vec(definitions(), NAMES.len()),
        trace in prop::collection::vec((0..NAMES.len(), 0u64..3000, happenings()), 1..120),
    ) {
        let mut world = World::with(BUDGET, rules);
        for (name, model) in NAMES.into_iter().zip(models) {
            configure(&mut world, |world| {
                world.definitions.insert(name.into(), model);
            });
        }
        for (model, pause, happening) in trace {
            world.advance(ms(pause));
            happen(&mut world, NAMES[model], happening);
        }
        world.settle();
        for (id, fate) in &world.fates {
            prop_assert!(!matches!(fate, Fate::Waits | Fate::Runs), "{:?}: {:?}", id, fate);
        }
    }

    #[test]
    fn plans_come_true(
        models in prop::collection::vec(definitions(), NAMES.len()),
        trace in prop::collection::vec((0..NAMES.len(), 0u64..2000), 1..60),
    ) {
        let mut world = World::new(BUDGET);
        for (name, model) in NAMES.into_iter().zip(models) {
            configure(&mut world, |world| {
                world.definitions.insert(name.into(), model);
            });
        }
        for (model, pause) in trace {
            world.advance(ms(pause));
            world.tick();
            world.news();
            let ask = Ask::new(NAMES[model]);
            let plan = world.scheduler.plan(world.now(), ask.clone());
            let asked = world.try_ask(ask);
            let loads = world.loads().contains(&NAMES[model]);
            let evicts = world.log.iter().filter(|line| line.ends_with(", Room")).count();
            match (plan.outcome, asked) {
                (Outcome::Refused(planned), Err(refusal)) => prop_assert_eq!(planned, refusal),
                (Outcome::Starts, Ok(id)) => prop_assert_eq!(world.fate(id), &Fate::Runs),
                (Outcome::Loads, Ok(_)) => {
                    prop_assert!(loads || !plan.evicts.is_empty() || world.scheduler.ledger().free() < plan.needs.total());
                    prop_assert_eq!(evicts + plan.awaits.len(), plan.evicts.len());
                }
                (Outcome::Refused(planned), Ok(id)) => {
                    prop_assert_eq!(world.fate(id), &Fate::Refused(planned));
                }
                (outcome, Ok(id)) => {
                    prop_assert_eq!(world.fate(id), &Fate::Waits, "{:?}", outcome);
                    prop_assert!(!loads);
                }
                (outcome, Err(refusal)) => prop_assert!(false, "{:?}, {}", outcome, refusal),
            }
        }
    }

    #[test]
    fn nobody_waits_longer_than_turns_of_all_others_take(
        sizes in prop::collection::vec(10u64..=100, NAMES.len()),
        trace in prop::collection::vec((0..NAMES.len(), 0u64..120, 1u64..500, 0usize..3), 300..600),
    ) {
        // Fewer wait for a model than fit in the time, so what keeps them is the other models.
        let rules = Rules { waiting_max: NonZeroUsize::MIN.saturating_add(3), aging: ms(10_000), ..Rules::default() };
        let mut world = World::with(BUDGET, rules);
        for (name, bytes) in NAMES.into_iter().zip(sizes) {
            world.define(name, bytes, |definition| definition.load_time = ms(300));
        }
        for (model, pause, answer, class) in trace {
            world.advance(ms(pause));
            world.answer = ms(answer);
            let _ = world.try_ask(Ask { class: Class::ALL[class], ..Ask::new(NAMES[model]) });
        }
        world.settle();
        // A turn: patience, what runs, leaving, loading and the least stay. Urgent ones may come
        // between for as long as it takes to be as urgent as they are.
        let turn = ms(5000 + 500 + 50 + 300 + 2000);
        let most = turn * (2 * NAMES.len() as u32) + ms(30_000);
        for (id, wait) in &world.waits {
            prop_assert!(*wait <= most, "request {:?} waited {:?}", id, wait);
        }
    }
}
