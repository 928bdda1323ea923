//! How much of the time passes may run, so that what computes gets no hotter than it should.
//!
//! Whoever looks after the machine sets the share; a pass that took so long is followed by a pause in
//! proportion before the next one begins, of whichever model. Passes have the same results. Benchmarks have
//! no pauses: they measure what there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[cfg(feature = "cuda")]
use crate::generate::CancelToken;
use crate::pulse::Pulse;

/// All of the time, in the unit in which the share is kept.
const FULL: u32 = 1000;

/// The least share that can be set: a pause of twenty times a pass looks broken to whoever waits.
const LEAST: u32 = 50;

/// How often somebody who waits for a pause to end looks whether the share has changed.
const LOOK: Duration = Duration::from_millis(50);

/// The share of the time in which the passes of an engine's models may run, all of it at first. Clones share
/// it.
#[derive(Clone, Debug)]
pub struct Duty(Arc<Inner>);

// What is kept of the last pass is written by one thread after the other, or by two whose passes ran at the
// same time: either is right then.
#[derive(Debug)]
struct Inner {
    start: Instant,
    share: AtomicU32,
    /// When the last pass ended, microseconds after the start, and how long it took.
    ended: AtomicU64,
    took: AtomicU64,
    /// Whether the next pass has waited.
    waited: AtomicBool,
    /// Microseconds that passes have waited.
    paused: AtomicU64,
    /// A pass that waits does not hang.
    pulse: Arc<Pulse>,
}

impl Default for Duty {
    fn default() -> Self {
        Self::new(&Arc::default())
    }
}

impl Duty {
    /// Of an engine with this pulse.
    pub(crate) fn new(pulse: &Arc<Pulse>) -> Self {
        Self(Arc::new(Inner {
            start: Instant::now(),
            share: AtomicU32::new(FULL),
            ended: AtomicU64::new(0),
            took: AtomicU64::new(0),
            waited: AtomicBool::new(false),
            paused: AtomicU64::new(0),
            pulse: Arc::clone(pulse),
        }))
    }

    /// Has passes run in this share of the time from now on, from 0.05 to 1; what is beyond counts as the
    /// nearest of these.
    pub fn set(&self, share: f64) {
        // A share that is no number becomes 0, and so the least.
        let share = (share * f64::from(FULL)).round() as u32;
        self.0.share.store(share.clamp(LEAST, FULL), Ordering::Relaxed);
    }

    /// The share.
    pub fn share(&self) -> f64 {
        f64::from(self.0.share.load(Ordering::Relaxed)) / f64::from(FULL)
    }

    /// How long passes have waited in all.
    pub fn paused(&self) -> Duration {
        Duration::from_micros(self.0.paused.load(Ordering::Relaxed))
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.share.load(Ordering::Relaxed) == FULL
    }

    /// A pass has ended, which took so long.
    pub(crate) fn ran(&self, time: Duration, ended: Instant) {
        if !self.is_full() {
            self.0.took.store(time.as_micros() as u64, Ordering::Relaxed);
            self.0.ended.store(self.micros(ended), Ordering::Relaxed);
        }
    }

    /// How long to wait before looking again whether the next pass may begin; `None` when it may, and does.
    pub(crate) fn pause(&self, now: Instant) -> Option<Duration> {
        let inner = &*self.0;
        let share = inner.share.load(Ordering::Relaxed);
        let waited = inner.waited.load(Ordering::Relaxed);
        if share == FULL && !waited {
            return None;
        }
        let (now, ended) = (self.micros(now), inner.ended.load(Ordering::Relaxed));
        let took = inner.took.load(Ordering::Relaxed);
        let pause = took.saturating_mul((FULL - share).into()) / u64::from(share);
        let left = ended.saturating_add(pause).saturating_sub(now);
        if left > 0 {
            inner.waited.store(true, Ordering::Relaxed);
            inner.pulse.step();
            return Some(Duration::from_micros(left).min(LOOK));
        }
        if inner.waited.swap(false, Ordering::Relaxed) {
            // Beyond the pause there may have been nothing to do.
            let waited = if share == FULL { now - ended.min(now) } else { pause };
            inner.paused.fetch_add(waited, Ordering::Relaxed);
        }
        inner.took.store(0, Ordering::Relaxed);
        None
    }

    /// Waits until the next pass may begin; false if nobody wants it any more.
    #[cfg(feature = "cuda")]
    pub(crate) fn wait(&self, cancel: &CancelToken) -> bool {
        while !cancel.is_cancelled() {
            match self.pause(Instant::now()) {
                Some(time) => m40_gpu::resident::pause(time),
                None => return true,
            }
        }
        false
    }

    fn micros(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.0.start).as_micros() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn passes_wait_in_proportion_to_the_last_one() {
        let duty = Duty::default();
        let now = Instant::now();
        duty.ran(40 * MS, now);
        assert_eq!(duty.pause(now), None);

        duty.set(0.8);
        assert_eq!(duty.pause(now), None, "what ran before counts for nothing");
        duty.ran(40 * MS, now);
        assert_eq!(duty.pause(now), Some(10 * MS));
        assert_eq!(duty.pause(now + 7 * MS), Some(3 * MS));
        assert_eq!(duty.paused(), Duration::ZERO);
        assert_eq!(duty.pause(now + 12 * MS), None);
        assert_eq!(duty.paused(), 10 * MS);
    }

    #[test]
    fn a_share_that_is_raised_ends_a_pause() {
        let duty = Duty::default();
        duty.set(0.1);
        let now = Instant::now();
        duty.ran(100 * MS, now);
        assert_eq!(duty.pause(now), Some(LOOK));
        duty.set(1.0);
        // 49 of 50 ms.
        assert_eq!(duty.pause(now + 49 * MS), None);
        assert_eq!(duty.paused(), 49 * MS);
        assert_eq!(duty.pause(now + 50 * MS), None);
        assert_eq!(duty.paused(), 49 * MS);
    }

    #[test]
    fn a_card_that_had_nothing_to_do_owes_nothing_more() {
        let duty = Duty::default();
        duty.set(0.5);
        let now = Instant::now();
        duty.ran(10 * MS, now);
        assert_eq!(duty.pause(now + 1000 * MS), None);
        assert_eq!(duty.paused(), Duration::ZERO);
    }

    #[test]
    fn who_waits_does_not_hang() {
        let pulse = Arc::default();
        let duty = Duty::new(&pulse);
        let _working = pulse.work();
        duty.set(0.1);
        duty.ran(3_600_000 * MS, Instant::now());
        while pulse.stalled() < Some(3 * MS) {}
        let asked = Instant::now();
        assert!(duty.pause(asked).is_some());
        // The pulse counts whole milliseconds.
        assert!(pulse.stalled().unwrap() <= asked.elapsed() + MS);
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn who_is_cancelled_waits_no_longer() {
        let duty = Duty::default();
        duty.set(0.1);
        duty.ran(1000 * MS, Instant::now());
        let cancel = CancelToken::new();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| duty.wait(&cancel));
            cancel.cancel();
            assert!(!waiting.join().unwrap());
        });
        duty.set(1.0);
        assert!(duty.wait(&CancelToken::new()));
    }

    #[test]
    fn shares_are_within_reason() {
        let duty = Duty::default();
        for (set, share) in [(0.5, 0.5), (7.0, 1.0), (-1.0, 0.05), (f64::NAN, 0.05), (0.0, 0.05)] {
            duty.set(set);
            assert_eq!(duty.share(), share, "{set}");
        }
    }
}
