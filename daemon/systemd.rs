//! What the daemon tells the service manager. Without one (no `NOTIFY_SOCKET`) nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

/// Start-up takes longer than usual: for what, and how long at most.
pub(crate) fn starting(status: &str, most: Duration) {
    tell(&[NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(micros(most))]);
}

/// Start-up is complete.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The line that `systemctl status` shows.
pub(crate) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Rereading the configuration begins; [`ready`] ends it.
pub(crate) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => warn!(%error, "cannot read the monotonic clock"),
    }
}

/// Stopping begins, and takes so long at most, whatever the unit has for it.
pub(crate) fn stopping(most: Duration) {
    let status = NotifyState::Status("finishing running answers");
    tell(&[NotifyState::Stopping, status, NotifyState::ExtendTimeoutUsec(micros(most))]);
}

/// How often at least the service manager wants [`alive`]; `None` where it does not.
pub(crate) fn watchdog_time() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|time| !time.is_zero())
}

/// The daemon works.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// It does not, for so long.
pub(crate) fn hangs(time: Duration) {
    status(&format!(
        "the engine hangs: it has work and has not got on for {:.1} s",
        time.as_secs_f64()
    ));
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify the service manager");
    }
}
