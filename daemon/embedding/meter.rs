//! What vectors come to, in tokens and time: for the metrics, the request's line in the log and the rate
//! of its key. Tokens count before they are computed, so that who leaves meanwhile pays for them; the
//! request counts when it is over for whoever asked and for the model.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::caller::Caller;
use crate::metrics::{Ended, Metrics};
use crate::models::Ticket;

#[derive(Debug)]
pub(super) struct Meter {
    metrics: Metrics,
    caller: Option<Caller>,
    model: String,
    asked: Instant,
    /// Until its turn.
    waited: OnceLock<Duration>,
    tokens: AtomicU64,
    /// Whether there are vectors; whoever asked has left as long as nobody says.
    done: OnceLock<bool>,
}

impl Meter {
    pub(super) fn new(ticket: &Ticket) -> Self {
        let (caller, model) = (Caller::current(), ticket.model().to_owned());
        if let Some(caller) = &caller {
            caller.note(|record| {
                record.model = Some(model.clone());
                record.finish = Some("abort");
            });
        }
        Self {
            metrics: ticket.metrics(),
            caller,
            model,
            asked: Instant::now(),
            waited: OnceLock::new(),
            tokens: AtomicU64::new(0),
            done: OnceLock::new(),
        }
    }

    /// It has its turn.
    pub(super) fn began(&self, waited: Duration) {
        let _ = self.waited.set(waited);
    }

    /// So many tokens are about to be computed.
    pub(super) fn due(&self, tokens: u64) {
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
        if let Some(caller) = &self.caller {
            caller.charge(tokens);
            caller.note(|record| record.prompt_tokens += tokens);
        }
    }

    /// Whoever asked hears of it.
    pub(super) fn ended(&self, done: bool) {
        let _ = self.done.set(done);
        if let Some(caller) = &self.caller {
            caller.note(|record| record.finish = Some(if done { "stop" } else { "error" }));
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let finish = match self.done.get() {
            None => Some("abort"),
            Some(true) => Some("stop"),
            Some(false) => None,
        };
        self.metrics.ended(&Ended {
            model: &self.model,
            finish,
            prompt_tokens: self.tokens.load(Ordering::Relaxed),
            cached_tokens: None,
            completion_tokens: 0,
            queue: self.waited.get().copied(),
            whole: self.asked.elapsed(),
        });
    }
}
