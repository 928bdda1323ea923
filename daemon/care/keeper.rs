//! The task that looks at the card.

use std::sync::Arc;
use std::time::{Duration, Instant};

use m40_nvml::{Heat, NvmlError};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{debug, info, warn};

use super::Inner;
use super::governor::{Governor, Seen};

/// How often the card is looked at while something is computed. Its heat takes many seconds to change.
const LOOK: Duration = Duration::from_millis(500);

pub(super) struct Keeper {
    inner: Arc<Inner>,
    governor: Governor,
    /// When the card was last looked at.
    looked: Option<Instant>,
    rest: Rest,
    /// None once that was refused.
    park_after: Option<Duration>,
}

/// What a card does that nobody needs.
#[derive(Debug, Clone, Copy)]
enum Rest {
    /// There is work.
    Works,
    /// There has been none since then.
    Idle(Instant),
    /// Its clocks are low, or could not be lowered.
    Parked,
}

impl Keeper {
    pub(super) fn new(inner: Arc<Inner>, park_after: Option<Duration>) -> Self {
        let governor = Governor::new(inner.limit_c);
        Self { inner, governor, looked: None, rest: Rest::Idle(Instant::now()), park_after }
    }

    /// Looks at the card while there are jobs, or while anything is limited. Ends with the daemon.
    pub(super) async fn keep(mut self, mut jobs: watch::Receiver<usize>) {
        loop {
            let works = *jobs.borrow_and_update() > 0;
            if let (false, Rest::Works) = (works, self.rest) {
                self.rest = Rest::Idle(Instant::now());
            }
            let looks = works || self.governor.limits();
            if looks && self.next_look() <= Instant::now() {
                self.look().await;
            }
            let look = looks.then(|| self.next_look());
            let park = match self.rest {
                Rest::Idle(since) => self.park_after.map(|after| since + after),
                Rest::Works | Rest::Parked => None,
            };
            tokio::select! {
                changed = jobs.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // There was work, even if it is done by now.
                    self.rest = Rest::Works;
                    self.unpark().await;
                }
                () = at(look) => {}
                () = at(park) => self.park().await,
            }
        }
    }

    fn next_look(&self) -> Instant {
        self.looked.map_or_else(Instant::now, |looked| looked + LOOK)
    }

    async fn look(&mut self) {
        let card = self.inner.card.clone();
        let heat = spawn_blocking(move || card.heat()).await;
        let now = Instant::now();
        let since = self.looked.replace(now).map_or(Duration::ZERO, |looked| now - looked);
        match heat {
            Ok(Ok(heat)) => self.see(&heat, since),
            Ok(Err(error @ NvmlError::Lost { .. })) => self.inner.errors.lose(error.to_string()),
            Ok(Err(error)) => debug!(%error, "the card does not say how hot it is"),
            Err(_) => debug!("looking at the card was cut short"),
        }
    }

    fn see(&mut self, heat: &Heat, since: Duration) {
        let (limited, held) = (self.governor.limits(), self.governor.holds());
        let slows_down = heat.throttle.iter().flatten().any(|reason| reason.is_heat());
        self.governor.see(Seen { temperature_c: heat.temperature_c, slows_down }, since);
        let (duty, holds) = (self.governor.duty(), self.governor.holds());
        self.inner.duty.set(duty);
        self.inner.holds.send_if_modified(|now| std::mem::replace(now, holds) != holds);
        let (temperature_c, limit_c) = (heat.temperature_c, self.inner.limit_c);
        match (limited, self.governor.limits()) {
            (false, true) => warn!(temperature_c, limit_c, duty, "the card is hot: it gets pauses"),
            (true, false) => {
                info!(temperature_c, "the card is cool enough to compute all the time");
            }
            _ => {}
        }
        match (held, holds) {
            (false, true) => warn!(temperature_c, limit_c, "the card is too hot: new work waits"),
            (true, false) => info!(temperature_c, "the card takes new work again"),
            _ => {}
        }
    }

    async fn park(&mut self) {
        let inner = Arc::clone(&self.inner);
        let parked = spawn_blocking(move || inner.park()).await;
        self.rest = Rest::Parked;
        match parked {
            Ok(Ok(())) => {}
            Ok(Err(error @ NvmlError::NotPermitted { .. })) => {
                self.park_after = None;
                info!(
                    %error,
                    "an idle card keeps its clocks: `nvidia-smi -acp UNRESTRICTED`, as root, lets m40d lower them"
                );
            }
            Ok(Err(error)) => {
                self.park_after = None;
                debug!(%error, "an idle card keeps its clocks");
            }
            Err(_) => debug!("lowering the card's clocks was cut short"),
        }
    }

    async fn unpark(&self) {
        let inner = Arc::clone(&self.inner);
        if super::lock(&inner.parked).is_some() {
            // It says itself what went wrong.
            let _ = spawn_blocking(move || inner.unpark()).await;
        }
    }
}

/// Returns then, or never.
pub(super) async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
