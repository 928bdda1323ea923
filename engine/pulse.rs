//! Whether what an engine computes gets on, for a watchdog to look at.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What is in hand, and when anything of it last got on. Looking and telling take no lock.
#[derive(Debug)]
pub(crate) struct Pulse {
    began: Instant,
    /// Loads, answers, embeddings and benchmarks under way.
    in_hand: AtomicUsize,
    /// The latest step, in milliseconds since the pulse began.
    stepped_ms: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        let (in_hand, stepped_ms) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { began: Instant::now(), in_hand, stepped_ms }
    }
}

impl Pulse {
    /// Something has got on: an op of a pass, a pass, a tensor of a load.
    pub(crate) fn step(&self) {
        self.stepped_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    /// Something is in hand until this is dropped.
    pub(crate) fn work(&self) -> Working<'_> {
        // First, so that nobody sees work that has waited since the work before.
        self.step();
        self.in_hand.fetch_add(1, Ordering::Release);
        Working(self)
    }

    /// How long nothing has got on; none where nothing is in hand.
    pub(crate) fn stalled(&self) -> Option<Duration> {
        if self.in_hand.load(Ordering::Acquire) == 0 {
            return None;
        }
        let since = self.now_ms().saturating_sub(self.stepped_ms.load(Ordering::Relaxed));
        Some(Duration::from_millis(since))
    }

    /// Something is in hand that never gets on and never ends.
    #[cfg(debug_assertions)]
    pub(crate) fn hang(&self) {
        self.in_hand.fetch_add(1, Ordering::Release);
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Something that is in hand.
#[derive(Debug)]
pub(crate) struct Working<'a>(&'a Pulse);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.step();
        self.0.in_hand.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_in_hand_can_stall_and_a_step_of_any_ends_that() {
        let began = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let pulse = Pulse { began, ..Pulse::default() };
        assert_eq!(pulse.stalled(), None);
        let working = pulse.work();
        assert!(pulse.stalled().unwrap() < Duration::from_secs(60));
        pulse.stepped_ms.store(0, Ordering::Relaxed);
        assert!(pulse.stalled().unwrap() >= Duration::from_secs(60));
        drop(pulse.work());
        assert!(pulse.stalled().unwrap() < Duration::from_secs(60));
        drop(working);
        assert_eq!(pulse.stalled(), None);
    }
}
