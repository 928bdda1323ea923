//! How the answers of sessions go on where the card chooses their tokens.

use m40_gpu::Choice;
use m40_gpu::continuation::Continuation;
use m40_gpu::ops::MOST_STOPS;

use crate::backend::Start;
use crate::generate::CancelToken;

/// What one answer goes on by.
#[derive(Debug)]
pub(super) struct Going {
    /// Has accepted all tokens that are known.
    choice: Choice,
    /// Tokens that end the answer. Of more than the card knows it stops at some, and the session at
    /// the others.
    stops: Vec<u32>,
    /// Tokens of prompt and answer together, at most.
    most: usize,
    cancel: CancelToken,
}

/// What the executor has to be told of a sequence.
#[derive(Debug)]
pub(super) struct Tell {
    pub(super) continuation: Continuation,
    pub(super) cancel: CancelToken,
}

impl Going {
    /// From a prompt on, with a vocabulary of `vocab` in a context of `context` tokens.
    pub(super) fn new(start: &Start<'_>, vocab: usize, context: usize) -> Self {
        let Start { prompt, params, seed, cancel, .. } = start;
        let mut choice = Choice::new(&params.sampling, *seed, vocab);
        prompt.iter().for_each(|token| choice.accept(*token));
        let mut stops = start.stops.clone();
        stops.truncate(MOST_STOPS);
        let answer = params.max_tokens.map_or(usize::MAX, |max| max as usize);
        let most = prompt.len().saturating_add(answer).min(context);
        Self { choice, stops, most, cancel: (*cancel).clone() }
    }

    /// Accepts those of `tokens`, which follow `base` others, that are new.
    pub(super) fn learn(&mut self, base: usize, tokens: &[u32]) {
        let known = (self.choice.position() as usize).saturating_sub(base);
        tokens.iter().skip(known).for_each(|token| self.choice.accept(*token));
    }

    pub(super) fn tell(&self) -> Tell {
        let left = self.most.saturating_sub(self.choice.position() as usize);
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        let continuation = Continuation::new(self.choice.clone(), self.stops.clone(), left)
            .expect("there are no more stops than the card knows");
        Tell { continuation, cancel: self.cancel.clone() }
    }
}
