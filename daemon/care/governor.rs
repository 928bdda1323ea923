//! How much of the time a card may compute, by how hot it is. Without a clock, and without a card.
//!
//! A card in a case made for another has little air. Before it halves its clocks by itself, or is switched
//! off, it is given pauses: the share of the time in which it computes falls from 1 in a straight line over
//! the [`SPAN_C`] degrees below a limit. Heat follows that share with minutes of delay and the share follows
//! the heat at once, so the two settle. It rises again only where the card is [`BACK_C`] degrees cooler, and
//! slowly, so that a sensor that flickers moves nothing. At the limit new work waits as well.

use std::time::Duration;

/// Degrees below the limit at which the share begins to fall.
pub(super) const SPAN_C: f64 = 10.0;

/// Degrees by which a card has to be cooler for what was taken to be given back.
const BACK_C: f64 = 2.0;

/// The least share: those who wait for answers still get them.
pub(super) const LEAST: f64 = 0.1;

/// How much of the share is given back in a second.
const BACK_PER_S: f64 = 0.05;

/// What is left of the share after a second in which the card has slowed itself down for its heat.
const LEFT_AFTER_S: f64 = 0.8;

/// Longest time between two looks that counts: what was between others is not known.
const GAP_MAX: Duration = Duration::from_secs(5);

/// The limit is as far below the temperature at which the card slows itself down.
const BELOW_SLOWDOWN_C: u32 = 3;

/// The limit of cards that do not say when they slow themselves down.
const USUAL_LIMIT_C: u32 = 83;

/// What is seen of a card at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seen {
    /// Degrees Celsius, if the card says.
    pub temperature_c: Option<u32>,
    /// Whether it slows itself down since it is too hot.
    pub slows_down: bool,
}

/// What follows from all that was seen.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Governor {
    limit_c: f64,
    duty: f64,
    holds: bool,
}

/// The temperature at which new work waits: as configured, if there the card does not slow itself down yet.
pub(super) fn limit_c(configured: Option<u32>, slowdown_c: Option<u32>) -> u32 {
    let of_card = slowdown_c.map(|slowdown| slowdown.saturating_sub(BELOW_SLOWDOWN_C));
    match (configured, slowdown_c) {
        (Some(limit), Some(slowdown)) => limit.min(slowdown),
        (Some(limit), None) => limit,
        (None, _) => of_card.unwrap_or(USUAL_LIMIT_C),
    }
}

impl Governor {
    /// For a card that is to stay below this temperature.
    pub(super) fn new(limit_c: u32) -> Self {
        Self { limit_c: limit_c.into(), duty: 1.0, holds: false }
    }

    /// The share of the time in which passes may run.
    pub(super) fn duty(&self) -> f64 {
        self.duty
    }

    /// Whether new work has to wait.
    pub(super) fn holds(&self) -> bool {
        self.holds
    }

    /// Whether anything is different from how it is with a cool card.
    pub(super) fn limits(&self) -> bool {
        self.holds || self.duty < 1.0
    }

    /// The card was looked at, so long after the last time.
    pub(super) fn see(&mut self, seen: Seen, since: Duration) {
        let seconds = since.min(GAP_MAX).as_secs_f64();
        // What a card does not say changes nothing.
        let (most, back) = match seen.temperature_c {
            Some(degrees) => {
                (self.share_at(degrees.into()), self.share_at(f64::from(degrees) + BACK_C))
            }
            None => (1.0, 1.0),
        };
        if seen.slows_down {
            self.duty *= LEFT_AFTER_S.powf(seconds);
        } else if self.duty < back {
            self.duty = (self.duty + BACK_PER_S * seconds).min(back);
        }
        self.duty = self.duty.min(most).max(LEAST);
        let limit = if self.holds { self.limit_c - BACK_C } else { self.limit_c };
        let too_hot = seen.temperature_c.is_some_and(|degrees| f64::from(degrees) >= limit);
        self.holds = too_hot || (seen.slows_down && self.duty <= LEAST);
    }

    /// The share of a card that has always been as hot.
    fn share_at(&self, degrees: f64) -> f64 {
        ((self.limit_c - degrees) / SPAN_C).clamp(LEAST, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: u32 = 88;
    const SECOND: Duration = Duration::from_secs(1);

    fn at(degrees: u32) -> Seen {
        Seen { temperature_c: Some(degrees), slows_down: false }
    }

    fn seen() -> impl Strategy<Value = Seen> {
        let degrees = prop_oneof![1 => Just(None), 9 => (0..150u32).prop_map(Some)];
        (degrees, prop::bool::weighted(0.2))
            .prop_map(|(temperature_c, slows_down)| Seen { temperature_c, slows_down })
    }

    fn after(looks: &[(Seen, u64)]) -> Governor {
        let mut governor = Governor::new(LIMIT);
        for (seen, ms) in looks {
            governor.see(*seen, Duration::from_millis(*ms));
        }
        governor
    }

    /// A card and its air: degrees above the air at full load, and how fast it gets there.
    struct Card {
        degrees: f64,
        air: f64,
        rise: f64,
        minutes: f64,
    }

    impl Card {
        fn second(&mut self, duty: f64) {
            let towards = self.air + self.rise * duty;
            self.degrees += (towards - self.degrees) / (self.minutes * 60.0);
        }
    }

    #[test]
    fn limits_are_below_where_the_card_slows_down() {
        assert_eq!(limit_c(None, Some(91)), 88);
        assert_eq!(limit_c(None, None), 83);
        assert_eq!(limit_c(Some(70), Some(91)), 70);
        assert_eq!(limit_c(Some(95), Some(91)), 91);
        assert_eq!(limit_c(Some(95), None), 95);
    }

    #[test]
    fn a_card_that_gets_hot_gets_pauses_then_no_new_work_and_all_back_when_it_is_cool() {
        let mut governor = Governor::new(LIMIT);
        governor.see(at(78), SECOND);
        assert!(!governor.limits());
        governor.see(at(83), SECOND);
        assert_eq!((governor.duty(), governor.holds()), (0.5, false));
        // No more than it was cooled by gives anything back.
        governor.see(at(82), SECOND);
        assert_eq!(governor.duty(), 0.5);
        governor.see(at(88), SECOND);
        assert_eq!((governor.duty(), governor.holds()), (LEAST, true));
        governor.see(at(87), SECOND);
        assert!(governor.holds());
        governor.see(at(85), SECOND);
        assert_eq!((governor.duty(), governor.holds()), (LEAST, false));
        governor.see(at(75), SECOND);
        assert!((governor.duty() - LEAST - BACK_PER_S).abs() < 1e-9);
        (0..20).for_each(|_| governor.see(at(75), SECOND));
        assert!(!governor.limits());
    }

    #[test]
    fn a_card_that_slows_itself_down_unseen_gets_less_until_it_stops() {
        let hot = Seen { temperature_c: None, slows_down: true };
        let mut governor = Governor::new(LIMIT);
        governor.see(hot, SECOND);
        assert_eq!((governor.duty(), governor.holds()), (LEFT_AFTER_S, false));
        (0..20).for_each(|_| governor.see(hot, SECOND));
        assert_eq!((governor.duty(), governor.holds()), (LEAST, true));
        governor.see(Seen { slows_down: false, ..hot }, SECOND);
        assert!(!governor.holds() && governor.duty() > LEAST);
    }

    proptest! {
        #[test]
        fn the_share_is_within_bounds_and_never_rises_quickly_or_while_the_card_slows_down(
            looks in prop::collection::vec((seen(), 0..20_000u64), 1..40),
        ) {
            let mut governor = Governor::new(LIMIT);
            for (seen, ms) in looks {
                let before = governor.clone();
                let since = Duration::from_millis(ms);
                governor.see(seen, since);
                prop_assert!((LEAST..=1.0).contains(&governor.duty()));
                let most = BACK_PER_S * since.min(GAP_MAX).as_secs_f64() + 1e-9;
                prop_assert!(governor.duty() - before.duty() <= most);
                if seen.slows_down {
                    prop_assert!(governor.duty() <= before.duty());
                }
                if seen.temperature_c.is_some_and(|degrees| degrees >= LIMIT) {
                    prop_assert!(governor.holds() && governor.duty() == LEAST);
                }
            }
        }

        #[test]
        fn who_sees_a_hotter_card_allows_no_more(
            looks in prop::collection::vec((seen(), 0..20_000u64), 0..20),
            degrees in 0..120u32,
            more in 0..30u32,
        ) {
            let (mut cooler, mut hotter) = (after(&looks), after(&looks));
            cooler.see(at(degrees), SECOND);
            hotter.see(at(degrees + more), SECOND);
            prop_assert!(hotter.duty() <= cooler.duty());
            prop_assert!(hotter.holds() || !cooler.holds());
        }

        #[test]
        fn whatever_was_seen_a_cool_card_is_given_everything_back_within_a_minute(
            looks in prop::collection::vec((seen(), 0..20_000u64), 0..20),
            degrees in 0..(LIMIT - 12),
        ) {
            let mut governor = after(&looks);
            (0..60).for_each(|_| governor.see(at(degrees), SECOND));
            prop_assert!(!governor.limits());
        }

        #[test]
        fn a_card_with_little_air_settles_below_its_limit(
            air in 20.0..45.0f64,
            rise in 20.0..200.0f64,
            minutes in 0.5..5.0f64,
        ) {
            let mut card = Card { degrees: air, air, rise, minutes };
            let mut governor = Governor::new(LIMIT);
            let (mut hottest, mut changes) = (0.0f64, 0);
            for second in 0..3600 {
                let before = governor.duty();
                governor.see(at(card.degrees.round() as u32), SECOND);
                card.second(governor.duty());
                hottest = hottest.max(card.degrees);
                changes += usize::from(second >= 1800 && governor.duty() != before);
            }
            prop_assert!(hottest < f64::from(LIMIT), "{hottest}");
            prop_assert!(!governor.holds());
            // It does not hunt: a sensor of whole degrees leaves few steps.
            prop_assert!(changes < 600, "{changes}");
            if air + rise < f64::from(LIMIT) - SPAN_C - BACK_C {
                prop_assert_eq!(governor.duty(), 1.0);
            }
        }
    }
}
