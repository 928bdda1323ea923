//! What the daemon tells the service manager. Without one (no `NOTIFY_SOCKET`) nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;
use tracing::warn;

/// Start-up takes longer than usual: for what, and how long at most.
pub(crate) fn starting(status: &str, most: Duration) {
    let most = u32::try_from(most.as_micros()).unwrap_or(u32::MAX);
    tell(&[NotifyState::Status(status), NotifyState::ExtendTimeoutUsec(most)]);
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

/// Stopping begins.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing running answers")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify the service manager");
    }
}
