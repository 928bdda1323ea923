//! When something that failed is tried again, and how fast bytes may come.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::host::Host;
use crate::settings::Settings;

/// Counts what failed in a row.
#[derive(Debug, Default)]
pub(crate) struct Tries {
    failed: u32,
}

impl Tries {
    /// Something got further.
    pub(crate) fn reset(&mut self) {
        self.failed = 0;
    }

    pub(crate) fn count(&self) -> u32 {
        self.failed
    }

    /// How long to wait before the next try; `None` when there is none. `chance` is from 0 to 1.
    pub(crate) fn next(
        &mut self,
        settings: &Settings,
        asked_for: Option<Duration>,
        chance: f64,
    ) -> Option<Duration> {
        self.failed += 1;
        if self.failed >= settings.tries_max {
            return None;
        }
        let doubled = settings.backoff.saturating_mul(1 << (self.failed - 1).min(20));
        // Many that failed together should not come back together.
        let wait = doubled.min(settings.backoff_max).mul_f64(1.0 - chance / 2.0);
        Some(asked_for.map_or(wait, |asked| asked.max(wait)).min(settings.backoff_max))
    }
}

/// Bounds the bytes per second of all downloads together.
#[derive(Debug, Default)]
pub(crate) struct Limiter {
    /// When the next byte may be taken.
    free_at: Mutex<Option<Instant>>,
}

impl Limiter {
    /// How long to wait until so many bytes more may be taken.
    pub(crate) fn wait(&self, host: &dyn Host, bytes: u64, bytes_per_s: u64) -> Duration {
        let now = host.now();
        let mut free_at = self.free_at.lock().unwrap_or_else(|poison| poison.into_inner());
        let from = free_at.map_or(now, |free_at| free_at.max(now));
        *free_at = Some(from + Duration::from_secs_f64(bytes as f64 / bytes_per_s.max(1) as f64));
        from - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            tries_max: 6,
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(5),
            ..Settings::default()
        }
    }

    #[test]
    fn waits_double_up_to_a_bound_and_chance_shortens_them() {
        let mut tries = Tries::default();
        let mut waits = Vec::new();
        while let Some(wait) = tries.next(&settings(), None, 0.0) {
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 5, 5]);
        tries.reset();
        assert_eq!(tries.next(&settings(), None, 1.0), Some(Duration::from_millis(500)));
    }

    #[test]
    fn an_origin_may_ask_for_a_longer_wait_within_the_bound() {
        let wait = |seconds| {
            Tries::default().next(&settings(), Some(Duration::from_secs(seconds)), 0.0).unwrap()
        };
        assert_eq!(wait(0).as_secs(), 1);
        assert_eq!(wait(3).as_secs(), 3);
        assert_eq!(wait(86_400).as_secs(), 5);
    }

    #[test]
    fn bytes_come_no_faster_than_allowed() {
        let limiter = Limiter::default();
        let host = crate::host::Machine;
        assert_eq!(limiter.wait(&host, 1_000_000, 1000), Duration::ZERO);
        let wait = limiter.wait(&host, 1, 1000);
        assert!(wait > Duration::from_secs(900) && wait <= Duration::from_secs(1000), "{wait:?}");
    }
}
