//! A rate per minute: what a minute allows may be used at once, and comes back evenly.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(super) struct Bucket {
    per_minute: f64,
    level: Mutex<Level>,
}

#[derive(Debug)]
struct Level {
    /// What may be used now; below zero after more was used than there was.
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(per_minute: NonZeroU32, now: Instant) -> Self {
        let per_minute = f64::from(per_minute.get());
        Self { per_minute, level: Mutex::new(Level { left: per_minute, at: now }) }
    }

    /// Uses one, or says when there will be one.
    pub(super) fn take_one(&self, now: Instant) -> Result<(), Duration> {
        self.with(now, |left| self.wait_for(1.0, *left).map(|()| *left -= 1.0))
    }

    /// Says when there is something to use, if there is nothing now.
    pub(super) fn ready(&self, now: Instant) -> Result<(), Duration> {
        self.with(now, |left| self.wait_for(0.0, *left))
    }

    /// Uses as many, also more than there are.
    pub(super) fn charge(&self, count: u64, now: Instant) {
        self.with(now, |left| *left -= count as f64);
    }

    fn wait_for(&self, wanted: f64, left: f64) -> Result<(), Duration> {
        let short = wanted - left;
        if short <= 0.0 {
            Ok(())
        } else {
            Err(Duration::from_secs_f64(short * 60.0 / self.per_minute))
        }
    }

    fn with<T>(&self, now: Instant, act: impl FnOnce(&mut f64) -> T) -> T {
        // No change of it can panic halfway.
        let mut level = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        let gained = now.saturating_duration_since(level.at).as_secs_f64() * self.per_minute / 60.0;
        level.left = (level.left + gained).min(self.per_minute);
        level.at = level.at.max(now);
        act(&mut level.left)
    }
}
