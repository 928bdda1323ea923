//! The card is looked after: it gets pauses before it gets too hot, lower clocks while it has nothing to do,
//! and its errors end the daemon, so that a new process gets it back.
//!
//! Whoever computes knows of this by a [`Duty`] alone, and new work by [`Care::admit`]. [`governor`] decides
//! how much there may be, [`keeper`] looks at the card, as long as there is work or something is limited: an
//! idle daemon does not wake up for it. Where NVIDIA's library is not there, or models run on no card, there
//! is nothing to look after.

mod governor;
mod keeper;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use m40_control::{CardCare, CardStatus, PciAddress};
use m40_nvml::{Card, CardEvent, Library, Listening, NvmlError, Parked};
use m40llm::{Duty, Engine, GpuError};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::config::{Care as Settings, Watched};
use crate::models::{JobCount, Reason, lock};
use crate::net::Phase;
use keeper::Keeper;

/// Whom to tell that the card is lost.
type Lost = watch::Sender<Option<GpuError>>;

/// The card that is looked after, if there is one. A cheap handle.
#[derive(Debug, Clone, Default)]
pub(crate) struct Care(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    card: Card,
    duty: Duty,
    limit_c: u32,
    /// Whether new work waits.
    holds: watch::Sender<bool>,
    /// How many wait for that.
    held: AtomicU64,
    parked: Mutex<Option<Parked>>,
    errors: Arc<Errors>,
    /// None where the driver tells no errors.
    _listening: Option<Listening>,
}

/// What was heard of the card's errors.
#[derive(Debug)]
struct Errors {
    lost: Lost,
    /// The last one, if any was heard.
    xid: AtomicU64,
    heard: AtomicBool,
}

impl Care {
    /// Begins to look after the card of an engine, within a runtime. Blocking.
    pub(crate) fn begin(settings: &Settings, engine: &Engine, jobs: &JobCount, lost: Lost) -> Self {
        let Some(address) = address(settings.card, engine) else { return Self::default() };
        match Inner::new(settings, address, engine.duty().clone(), lost) {
            Ok(inner) => {
                let inner = Arc::new(inner);
                let keeper = Keeper::new(Arc::clone(&inner), settings.park_after);
                tokio::spawn(keeper.keep(jobs.subscribe()));
                Self(Some(inner))
            }
            Err(error @ NvmlError::NoLibrary { .. }) => {
                debug!(%error, "the card is not looked after");
                Self::default()
            }
            Err(error) => {
                warn!(%error, "the card is not looked after");
                Self::default()
            }
        }
    }

    /// How the card is; `None` where there is none, or it says nothing. Blocking.
    pub(crate) fn status(&self) -> Option<CardStatus> {
        let inner = self.0.as_ref()?;
        let reading =
            inner.card.reading().inspect_err(|error| debug!(%error, "no reading")).ok()?;
        let heard = inner.errors.heard.load(Ordering::Acquire);
        let care = CardCare {
            duty: inner.duty.share(),
            limit_c: inner.limit_c,
            holds: *inner.holds.borrow(),
            held: inner.held.load(Ordering::Relaxed),
            parked: lock(&inner.parked).is_some(),
            paused_ms: inner.duty.paused().as_millis() as u64,
            xid: heard.then(|| inner.errors.xid.load(Ordering::Relaxed)),
        };
        Some(CardStatus { reading, care })
    }

    /// Waits until the card is cool enough for more work, and returns what is left of its time.
    ///
    /// # Errors
    /// When the time is over before, or the daemon stops.
    pub(crate) async fn admit(
        &self,
        time: Option<Duration>,
        mut phase: watch::Receiver<Phase>,
    ) -> Result<Option<Duration>, Reason> {
        let Some(inner) = self.0.as_ref().filter(|inner| *inner.holds.borrow()) else {
            return Ok(time);
        };
        let (begun, mut holds) = (Instant::now(), inner.holds.subscribe());
        let _held = Held::new(&inner.held);
        tokio::select! {
            // The sender is alive in inner.
            _ = holds.wait_for(|holds| !holds) => {
                Ok(time.map(|time| time.saturating_sub(begun.elapsed())))
            }
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => Err(Reason::Stopping),
            () = keeper::at(time.map(|time| begun + time)) => Err(Reason::Deadline),
        }
    }

    /// Leaves the card as it was found. Blocking.
    pub(crate) fn end(&self) {
        if let Some(inner) = &self.0 {
            inner.unpark();
        }
    }
}

/// The card to look after.
fn address(watched: Watched, engine: &Engine) -> Option<PciAddress> {
    match watched {
        Watched::Off => None,
        Watched::At(address) => Some(address),
        Watched::Auto => {
            let place = engine.pci_address()?;
            place.parse().inspect_err(|error| warn!(%error, "the card is not looked after")).ok()
        }
    }
}

impl Inner {
    fn new(
        settings: &Settings,
        address: PciAddress,
        duty: Duty,
        lost: Lost,
    ) -> Result<Self, NvmlError> {
        let card = Library::open(settings.library.as_deref())?.card(address)?;
        let limit_c = governor::limit_c(settings.limit_c, card.heat()?.slowdown_c);
        let (xid, heard) = (AtomicU64::new(0), AtomicBool::new(false));
        let errors = Arc::new(Errors { lost, xid, heard });
        let told = Arc::clone(&errors);
        let listening = card.listen(move |event| told.hear(event));
        let listening = listening.inspect_err(|error| debug!(%error, "errors are not heard")).ok();
        let inner = Self {
            card,
            duty,
            limit_c,
            holds: watch::Sender::new(false),
            held: AtomicU64::new(0),
            parked: Mutex::default(),
            errors,
            _listening: listening,
        };
        *lock(&inner.parked) = inner.card.found_parked();
        info!(%address, limit_c, "looking after the card");
        Ok(inner)
    }

    /// Has the clocks of an idle card as low as they go. Blocking.
    fn park(&self) -> Result<(), NvmlError> {
        let mut parked = lock(&self.parked);
        if parked.is_none() {
            *parked = Some(self.card.park()?);
            info!("the card has nothing to do: its clocks are lowered");
        }
        Ok(())
    }

    /// Has them as they were before. Blocking.
    fn unpark(&self) {
        let Some(parked) = lock(&self.parked).take() else { return };
        match parked.unpark() {
            Ok(()) => info!("the card's clocks are as they were"),
            Err(error) => {
                warn!(%error, "the card's clocks stay low: `nvidia-smi -rac` resets them");
            }
        }
    }
}

impl Errors {
    fn hear(&self, event: CardEvent) {
        match event {
            CardEvent::Xid(xid) => {
                self.xid.store(xid.0, Ordering::Relaxed);
                self.heard.store(true, Ordering::Release);
                match xid.of_card() {
                    Some(_) => self.lose(xid.to_string()),
                    None => warn!(xid = xid.0, "the driver reports an error of a process"),
                }
            }
            CardEvent::Lost => self.lose("that the card is not there any more".to_owned()),
            CardEvent::Deaf(error) => debug!(%error, "errors of the card are not heard any more"),
        }
    }

    fn lose(&self, reported: String) {
        let reported = GpuError::Reported { reported };
        error!(error = %reported, "the GPU is lost");
        self.lost.send_replace(Some(reported));
    }
}

/// Somebody waits.
struct Held<'a>(&'a AtomicU64);

impl<'a> Held<'a> {
    fn new(held: &'a AtomicU64) -> Self {
        held.fetch_add(1, Ordering::Relaxed);
        Self(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
