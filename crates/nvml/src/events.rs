//! Errors of a card, as its driver reports them: Xid errors.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use nvml_wrapper::EventSet;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError as Source;

use crate::{Card, NvmlError};

/// How long a wait for events is at most, in milliseconds: as long may the thread live on when nobody
/// listens any more.
const WAIT_MS: u32 = 5000;

/// An error that the driver reports of a card, by NVIDIA's number
/// (<https://docs.nvidia.com/deploy/xid-errors/>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Xid(pub u64);

impl Xid {
    /// The errors after which nothing that the card computes can be relied on before it is reset, or its
    /// driver loaded anew, whoever caused them.
    ///
    /// Not among them are errors of one process (13, 31, 32, 43, 45: illegal instructions and addresses,
    /// and what follows from them), which that process hears of by CUDA; and what the driver has coped with
    /// (63: a page of memory is taken out of use; 92: many corrected errors).
    const OF_CARD: [(u64, &str); 13] = [
        (48, "memory has an error that cannot be corrected"),
        (54, "auxiliary power is not connected"),
        (61, "the card's controller broke off"),
        (62, "the card's controller halted"),
        (64, "a page of bad memory could not be taken out of use"),
        (74, "the link to another card failed"),
        (79, "the card has fallen off the bus"),
        (94, "memory has an error that cannot be corrected, in one process"),
        (95, "memory has errors that cannot be corrected, in several processes"),
        (119, "the card's system processor does not answer"),
        (120, "the card's system processor failed"),
        (140, "memory has an error that was not recovered from"),
        (154, "the card has to be reset"),
    ];

    /// What it means for all who use the card; `None` for errors after which the card is as before.
    pub fn of_card(self) -> Option<&'static str> {
        Self::OF_CARD.iter().find(|(number, _)| *number == self.0).map(|(_, meaning)| *meaning)
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Xid {}", self.0)?;
        self.of_card().map_or(Ok(()), |meaning| write!(f, ": {meaning}"))
    }
}

/// What is heard of a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CardEvent {
    /// The driver reports an error. Of several at a time only the last may be told.
    Xid(Xid),
    /// The card is not there any more. Nothing follows.
    Lost,
    /// Nothing more will be heard.
    Deaf(NvmlError),
}

/// Somebody listens to a card until this is dropped.
#[derive(Debug)]
pub struct Listening(Arc<AtomicBool>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Card {
    /// Tells `hear`, on a thread of its own, of each error from now on.
    ///
    /// # Errors
    /// When the driver tells none, or the system has no thread.
    pub fn listen(
        &self,
        hear: impl FnMut(CardEvent) + Send + 'static,
    ) -> Result<Listening, NvmlError> {
        let over = Arc::new(AtomicBool::new(false));
        let listening = Listening(Arc::clone(&over));
        let (begun, begins) = sync_channel(1);
        let card = self.clone();
        thread::Builder::new()
            .name("m40-xid".into())
            .spawn(move || card.hear_all(hear, &over, &begun))
            .map_err(|error| NvmlError::Refused { what: LISTEN, reason: error.to_string() })?;
        match begins.recv() {
            Ok(begun) => begun.map(|()| listening),
            Err(_) => Err(NvmlError::Refused { what: LISTEN, reason: "it panicked".into() }),
        }
    }

    fn hear_all(
        &self,
        mut hear: impl FnMut(CardEvent),
        over: &AtomicBool,
        begun: &SyncSender<Result<(), NvmlError>>,
    ) {
        let events = match self.events() {
            Ok(events) => events,
            Err(error) => {
                // Who began this waits for it.
                let _ = begun.send(Err(error));
                return;
            }
        };
        let _ = begun.send(Ok(()));
        while !over.load(Ordering::Relaxed) {
            match events.wait(WAIT_MS) {
                Ok(event) => match event.event_data {
                    Some(XidError::Value(number)) => hear(CardEvent::Xid(Xid(number))),
                    // 999 is NVIDIA's word for an error of which it knows nothing.
                    Some(XidError::Unknown) => hear(CardEvent::Xid(Xid(999))),
                    None => {}
                },
                Err(Source::Timeout) => {}
                Err(Source::GpuLost) => return hear(CardEvent::Lost),
                Err(error) => return hear(CardEvent::Deaf(NvmlError::refused(LISTEN, &error))),
            }
        }
    }

    fn events(&self) -> Result<EventSet<'_>, NvmlError> {
        let refused = |error: &Source| NvmlError::refused(LISTEN, error);
        let set = self.library.0.create_event_set().map_err(|error| refused(&error))?;
        let device = self.device()?;
        let registered = device.register_events(EventTypes::CRITICAL_XID_ERROR, set);
        registered.map_err(|error| refused(&error.error))
    }
}

/// What is asked of the card here.
const LISTEN: &str = "tell of its errors";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_one_process_are_not_those_of_the_card() {
        for number in [13, 31, 32, 43, 45, 63, 92, 999] {
            assert_eq!(Xid(number).of_card(), None, "{number}");
        }
        for number in [48, 62, 64, 74, 79, 94, 95] {
            assert!(Xid(number).of_card().is_some(), "{number}");
        }
        assert_eq!(Xid(79).to_string(), "Xid 79: the card has fallen off the bus");
        assert_eq!(Xid(31).to_string(), "Xid 31");
    }
}
