//! How sequences go on by themselves: how their tokens are chosen and when they end, and where the
//! device keeps that (`Choice` of `kernels/choice.cuh`, `Ending` of `kernels/ops.cuh`).

use m40_sched::sampler::MAX_LOGIT_BIAS;

use crate::choice::{Choice, MAX_WINDOW};
use crate::ops::{Ending, MOST_STOPS, Place};

/// How a sequence goes on by itself, until it is told otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    choice: Choice,
    stops: Vec<u32>,
    most: u32,
}

/// More tokens to end with than the device keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{stops} tokens are to end a sequence, and the gpu knows {MOST_STOPS} at most")]
pub struct TooManyStops {
    /// Tokens given.
    pub stops: usize,
}

impl Continuation {
    /// Tokens chosen by `choice`, which has accepted all tokens of the sequence and the one to be fed
    /// next; until one of `stops` is chosen, which is chosen too, or `most` tokens are, at least 1.
    ///
    /// # Errors
    /// [`TooManyStops`] for more than [`MOST_STOPS`].
    pub fn new(choice: Choice, stops: Vec<u32>, most: u32) -> Result<Self, TooManyStops> {
        let count = stops.len();
        if count > MOST_STOPS {
            return Err(TooManyStops { stops: count });
        }
        Ok(Self { choice, stops, most: most.max(1) })
    }

    /// How tokens are chosen.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// Tokens that end the sequence.
    pub fn stops(&self) -> &[u32] {
        &self.stops
    }

    /// Tokens that are chosen, at most.
    pub fn most(&self) -> u32 {
        self.most
    }

    fn ending(&self, ticket: u32) -> Ending {
        let mut stops = [0; MOST_STOPS];
        stops[..self.stops.len()].copy_from_slice(&self.stops);
        Ending { ticket, left: self.most, stop_count: self.stops.len() as u32, unused: 0, stops }
    }
}

/// The memory in which a model's sequences have what they go on by: the states and the endings of
/// all slots, then the biases and the penalties' window of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States {
    slots: usize,
    start: Place,
}

impl States {
    const ENDING_BYTES: usize = 4 * Ending::WORDS;
    const BIAS_BYTES: usize = 8 * MAX_LOGIT_BIAS;
    const WINDOW_BYTES: usize = 8 * MAX_WINDOW as usize;

    /// Of so many slots, with memory that begins there.
    pub fn new(slots: usize, start: Place) -> Self {
        Self { slots, start }
    }

    /// Bytes of memory for so many slots.
    pub fn bytes(slots: usize) -> usize {
        slots * (Choice::BYTES + Self::ENDING_BYTES + Self::BIAS_BYTES + Self::WINDOW_BYTES)
    }

    /// The states: `[slots]` [`Choice::state`].
    pub fn choices(self) -> Place {
        self.start
    }

    /// The endings: `[slots]` [`Ending`].
    pub fn endings(self) -> Place {
        self.place(self.slots * Choice::BYTES)
    }

    /// What a slot's memory is to hold: offsets from the start, and the bytes there.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn contents(
        self,
        slot: u32,
        continuation: &Continuation,
        ticket: u32,
    ) -> [(usize, Vec<u8>); 4] {
        let slot = slot as usize;
        assert!(slot < self.slots, "slot {slot} of {}", self.slots);
        let endings = self.slots * Choice::BYTES;
        let biases = endings + self.slots * Self::ENDING_BYTES;
        let own = biases + slot * (Self::BIAS_BYTES + Self::WINDOW_BYTES);
        let window = own + Self::BIAS_BYTES;
        let choice = &continuation.choice;
        let state = choice.state(self.place(own), self.place(window));
        let ending = continuation.ending(ticket).words();
        [
            (slot * Choice::BYTES, state.to_vec()),
            (
                endings + slot * Self::ENDING_BYTES,
                ending.iter().flat_map(|word| word.to_le_bytes()).collect(),
            ),
            (own, choice.biases()),
            (window, choice.window()),
        ]
    }

    fn place(self, bytes: usize) -> Place {
        Place(self.start.0 + (bytes as u64 / Place::BYTES) as u32)
    }
}

#[cfg(test)]
mod tests {
    use m40_sched::SamplingParams;

    use super::*;

    fn continuation() -> Continuation {
        let params = SamplingParams {
            repeat_penalty: 1.2,
            repeat_last_n: MAX_WINDOW,
            logit_bias: (0..MAX_LOGIT_BIAS as u32).map(|token| (token, 1.0)).collect(),
            ..SamplingParams::default()
        };
        let choice = Choice::new(&params, 7, MAX_LOGIT_BIAS);
        Continuation::new(choice, vec![3, 9], 0).unwrap()
    }

    #[test]
    fn slots_share_no_byte_and_leave_none_out() {
        let states = States::new(3, Place(10));
        let mut taken = vec![0; States::bytes(3)];
        for slot in 0..3 {
            for (at, bytes) in states.contents(slot, &continuation(), 1) {
                assert_eq!(at % 16, 0);
                taken[at..at + bytes.len()].iter_mut().for_each(|times| *times += 1);
            }
        }
        assert!(taken.iter().all(|times| *times == 1));
        assert_eq!(states.choices(), Place(10));
        assert_eq!(states.endings(), Place(10 + 3 * Choice::BYTES as u32 / 16));
    }

    #[test]
    fn an_ending_has_a_token_at_least_and_no_more_stops_than_fit() {
        let Ending { ticket, left, stop_count, stops, .. } = continuation().ending(5);
        assert_eq!((ticket, left, stop_count, &stops[..3]), (5, 1, 2, &[3, 9, 0][..]));
        let choice = Choice::new(&SamplingParams::greedy(), 0, 100);
        let refused = Continuation::new(choice, vec![1; MOST_STOPS + 1], 1);
        assert_eq!(refused, Err(TooManyStops { stops: MOST_STOPS + 1 }));
    }
}
