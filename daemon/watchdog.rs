//! Feeds the service manager's watchdog while the engine gets on, or has nothing to do. One that hangs
//! with work in hand is no longer vouched for, and the service manager ends the daemon and starts it again.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};
use tracing::error;

use crate::models::Models;
use crate::systemd;

/// Feeds it, if there is one, as long as the runtime does.
pub(crate) fn start(models: &Models) {
    if let Some(time) = systemd::watchdog_time() {
        tokio::spawn(feed(models.clone(), time));
    }
}

/// At half of its time. What the engine has in hand may be without a step for all of it: then it hangs.
async fn feed(models: Models, time: Duration) {
    let mut ticks = interval(time / 2);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let hangs = models.stalled().filter(|stalled| *stalled > time);
        if let Some(stalled) = hangs {
            error!(seconds = stalled.as_secs_f64(), "the engine hangs; the watchdog is not fed");
        }
        // A service manager that does not listen must hold up nothing else.
        let _ = spawn_blocking(move || match hangs {
            None => systemd::alive(),
            Some(stalled) => systemd::hangs(stalled),
        })
        .await;
    }
}
