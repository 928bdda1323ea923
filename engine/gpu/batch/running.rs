//! What is heard and said while a launch runs.

use std::ops::ControlFlow;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use m40_gpu::executor::{Attend, Chosen};
use m40_gpu::ops::{End, PASS_ROWS};
use m40_gpu::resident::pause;

use super::passes::Passes;
use super::{Answer, Hear, Job, Message, PASSES_OF_TURN};

/// A launch that runs: sessions hear what it chooses, and it hears what they say.
pub(super) struct Running<'a, P: Passes> {
    pub(super) jobs: &'a mut [Box<Job<P>>],
    pub(super) heard: &'a mut Vec<Message<P>>,
    pub(super) hear: &'a mut Hear<'a, P>,
    /// Passes so far.
    pub(super) ran: u32,
    /// As [`Batcher::short`](super::Batcher::short).
    pub(super) short: bool,
    /// Passes after which it is to end.
    pub(super) most: u32,
}

impl<P: Passes> Running<'_, P> {
    /// After how many passes the launch is to end for what somebody says.
    fn most_for(&self, message: &Message<P>) -> u32 {
        match message {
            // Those with a row who have enough.
            Message::Rest(session) => {
                let has_row = self.jobs.iter().any(|job| job.session == *session);
                if has_row { 0 } else { u32::MAX }
            }
            // A prompt that was reckoned with.
            Message::Ask(job) if job.text.len() - job.position > 1 && self.short => u32::MAX,
            // A row, if there is one; else sessions take turns.
            Message::Ask(_) if self.jobs.len() == PASS_ROWS => PASSES_OF_TURN,
            Message::Ask(_) | Message::Do(_) => 0,
        }
    }
}

impl<P: Passes> Attend for Running<'_, P> {
    fn chosen(&mut self, chosen: &[Chosen]) {
        self.ran += 1;
        for (job, chosen) in self.jobs.iter_mut().zip(chosen) {
            if chosen.end == Some(End::Before) {
                continue;
            }
            job.chosen += 1;
            job.text.push(chosen.token);
            job.goes_on = chosen.end.is_none();
            // Whoever is gone needs no more tokens, and will be missed when the launch ends.
            let _ = job.back.send(Answer::Chosen(*chosen));
        }
    }

    fn pause(&mut self, time: Duration) -> ControlFlow<()> {
        match (self.hear)(time) {
            Ok(message) => {
                self.most = self.most.min(self.most_for(&message));
                self.heard.push(message);
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Nobody is left to hear of it.
            Err(RecvTimeoutError::Disconnected) => {
                pause(time);
                self.most = 0;
            }
        }
        // It ends with the pass that runs, which is not among those that ran.
        if self.ran + 1 < self.most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }
}
