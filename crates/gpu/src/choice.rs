//! What the device keeps of a sequence to choose its tokens: the structures `Choice`, `SampleBias`
//! and `SampleSeen` of `kernels/choice.cuh`, field by field.

use m40_sched::SamplingParams;
use m40_sched::sampler::MAX_LOGIT_BIAS;

use crate::ops::Place;

/// The longest window of penalties that the device keeps, in tokens.
pub const MAX_WINDOW: u32 = 4096;

/// The largest vocabulary whose rows the device samples: sums of weights stay below 2^63.
pub const MAX_VOCAB: usize = 1 << 18;

/// Top-p keeps all.
const TOP_P_OFF: u64 = u64::MAX;

/// No token: what entries of the window hold that were never taken.
const NO_TOKEN: u32 = u32::MAX;

/// Whether the device can choose tokens with these parameters.
///
/// It cannot with typical sampling, which orders tokens otherwise than by likelihood, nor with
/// penalties over more than [`MAX_WINDOW`] tokens (`repeat_last_n` of `u32::MAX`, all tokens, among
/// them), nor with more than [`MAX_LOGIT_BIAS`] biases. The host then takes the logits.
pub fn runs_on_device(params: &SamplingParams) -> bool {
    let greedy = !is_positive(params.temperature);
    (greedy || !is_below_one(params.typical_p))
        && (!params.penalises() || params.repeat_last_n <= MAX_WINDOW)
        && params.logit_bias.len() <= MAX_LOGIT_BIAS
}

/// Whether the device chooses tokens with these parameters out of a vocabulary of `vocab`.
pub fn samples(params: &SamplingParams, vocab: usize) -> bool {
    let largest = || Choice::new(params, 0, vocab).takes_largest();
    runs_on_device(params) && (vocab <= MAX_VOCAB || largest())
}

/// How the next tokens of a sequence are chosen, and how far it is.
///
/// The device moves its own copy on with every token it accepts; this one is for the tokens that
/// the host knows of before, and to write the state from.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    params: SamplingParams,
    seed: u64,
    position: u64,
    /// One entry a token, ascending; bans are -inf.
    biases: Vec<(u32, f32)>,
    /// Token and count: the count of a token is at its latest entry, 0 at earlier ones.
    window: Vec<(u32, u32)>,
    /// The entry that the next token takes: the oldest one, once all are taken.
    next: usize,
}

impl Choice {
    /// Bytes of the state itself, [`Choice::state`].
    pub const BYTES: usize = 80;

    /// The state of a sequence without tokens, in a vocabulary of `vocab`; `params.seed` is not
    /// looked at. With parameters that the device cannot do ([`runs_on_device`]), what it can do of
    /// them.
    pub fn new(params: &SamplingParams, seed: u64, vocab: usize) -> Self {
        let length = if params.penalises() { params.repeat_last_n.min(MAX_WINDOW) } else { 0 };
        Self {
            params: params.clone(),
            seed,
            position: 0,
            biases: params.merged_bias(vocab),
            window: vec![(NO_TOKEN, 0); length as usize],
            next: 0,
        }
    }

    /// What it was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Tokens accepted so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether the largest logit is what is asked for, whatever the sequence: then it can be taken
    /// from the largest of each part of the row.
    pub fn takes_largest(&self) -> bool {
        !is_positive(self.params.temperature) && self.biases.is_empty() && self.window.is_empty()
    }

    /// Appends a token, as the device does with those it chooses: every token of the prompt has to
    /// be appended too.
    pub fn accept(&mut self, token: u32) {
        self.position += 1;
        let Some(&(oldest, _)) = self.window.get(self.next) else { return };
        let mut earlier = 0;
        for (seen, count) in &mut self.window {
            if *count == 0 || (*seen != oldest && *seen != token) {
                continue;
            }
            *count -= u32::from(*seen == oldest);
            if *seen == token {
                earlier = std::mem::take(count);
            }
        }
        self.window[self.next] = (token, earlier + 1);
        self.next = (self.next + 1) % self.window.len();
    }

    /// The biases as they lie on the device: `[count]` {u32 token, f32 bias}; may be empty.
    pub fn biases(&self) -> Vec<u8> {
        self.biases.iter().flat_map(|&(token, bias)| pair(token, bias.to_bits())).collect()
    }

    /// The window as it lies on the device: `[repeat_last_n]` {u32 token, u32 count}; empty without
    /// penalties.
    pub fn window(&self) -> Vec<u8> {
        self.window.iter().flat_map(|&(token, count)| pair(token, count)).collect()
    }

    /// The state as it lies on the device, with the biases and the window at these places, any if
    /// they are empty.
    pub fn state(&self, biases: Place, window: Place) -> [u8; Self::BYTES] {
        let params = &self.params;
        let greedy = !is_positive(params.temperature);
        // As the sampler of the host has them, so that both cut at the same bar.
        let min_p_log = if params.min_p > 0.0 { params.min_p.ln() } else { f32::NEG_INFINITY };
        let inverse_temperature =
            if greedy { 1.0 } else { (1.0 / params.temperature).min(f32::MAX) };
        let longs = [self.seed, self.position, top_p_fraction(params.top_p)];
        let words = [
            params.top_k,
            min_p_log.to_bits(),
            u32::from(greedy),
            inverse_temperature.to_bits(),
            params.repeat_penalty.to_bits(),
            params.presence_penalty.to_bits(),
            params.frequency_penalty.to_bits(),
            biases.0,
            window.0,
            self.biases.len() as u32,
            self.window.len() as u32,
            self.next as u32,
        ];
        let mut bytes = [0; Self::BYTES];
        let (head, rest) = bytes.split_at_mut(longs.len() * 8);
        for (to, from) in head.chunks_exact_mut(8).zip(longs) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        for (to, from) in rest.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        bytes
    }
}

fn pair(first: u32, second: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_le_bytes());
    bytes[4..].copy_from_slice(&second.to_le_bytes());
    bytes
}

/// False for a NaN.
fn is_positive(x: f32) -> bool {
    x > 0.0
}

/// False for a NaN.
fn is_below_one(x: f32) -> bool {
    x < 1.0
}

/// Of 2^64, exactly; all ones: keep all.
fn top_p_fraction(top_p: f32) -> u64 {
    // Below 1 a float is at most 1 - 2^-24, so the product is below 2^64; negative ones become 0.
    if is_below_one(top_p) { (f64::from(top_p) * 2.0f64.powi(64)) as u64 } else { TOP_P_OFF }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalising(repeat_last_n: u32) -> SamplingParams {
        SamplingParams { repeat_penalty: 1.1, repeat_last_n, ..SamplingParams::default() }
    }

    /// How often each token is in the window, as the device adds it up.
    fn counts(choice: &Choice) -> Vec<(u32, u32)> {
        let mut counts: Vec<_> =
            choice.window.iter().filter(|(_, count)| *count > 0).copied().collect();
        counts.sort_unstable();
        counts
    }

    #[test]
    fn counts_are_those_of_the_latest_tokens() {
        for length in [1, 2, 3, 7, 64] {
            let mut choice = Choice::new(&penalising(length), 0, 100);
            let mut history = Vec::new();
            for i in 0..500u32 {
                let token = i * i * 7 % 11 % 5;
                choice.accept(token);
                history.push(token);
                let latest = &history[history.len().saturating_sub(length as usize)..];
                let expected: Vec<_> = (0..5)
                    .map(|t| (t, latest.iter().filter(|&&seen| seen == t).count() as u32))
                    .filter(|(_, count)| *count > 0)
                    .collect();
                assert_eq!(counts(&choice), expected, "{length} of {history:?}");
            }
            assert_eq!(choice.position(), 500);
        }
    }

    #[test]
    fn without_penalties_there_is_no_window() {
        let mut choice = Choice::new(&SamplingParams::default(), 0, 100);
        choice.accept(3);
        assert!(choice.window().is_empty());
        assert_eq!(choice.position(), 1);
        assert_eq!(Choice::new(&penalising(9), 0, 100).window().len(), 9 * 8);
    }

    #[test]
    fn biases_of_a_token_are_added_and_bans_stay() {
        let logit_bias = vec![(7, 1.5), (2, -100.0), (7, 2.0), (500, 3.0), (2, 50.0), (0, -1.0)];
        let params = SamplingParams { logit_bias, ..SamplingParams::greedy() };
        let choice = Choice::new(&params, 0, 100);
        assert_eq!(choice.biases, [(0, -1.0), (2, f32::NEG_INFINITY), (7, 3.5)]);
        assert!(!choice.takes_largest());
        assert!(Choice::new(&SamplingParams::greedy(), 0, 100).takes_largest());
        assert!(!Choice::new(&SamplingParams::default(), 0, 100).takes_largest());
    }

    #[test]
    fn what_the_device_cannot_do_is_left_to_the_host() {
        let neutral = SamplingParams::default();
        assert!(runs_on_device(&neutral));
        assert!(!runs_on_device(&SamplingParams { typical_p: 0.9, ..neutral.clone() }));
        assert!(runs_on_device(&SamplingParams { typical_p: 0.9, ..SamplingParams::greedy() }));
        assert!(runs_on_device(&penalising(MAX_WINDOW)));
        assert!(!runs_on_device(&penalising(u32::MAX)));
        assert!(runs_on_device(&SamplingParams { repeat_last_n: u32::MAX, ..neutral.clone() }));
        let logit_bias = vec![(1, 1.0); MAX_LOGIT_BIAS + 1];
        assert!(!runs_on_device(&SamplingParams { logit_bias, ..neutral }));
    }

    #[test]
    fn fractions_are_exact() {
        assert_eq!(top_p_fraction(1.0), TOP_P_OFF);
        assert_eq!(top_p_fraction(0.5), 1 << 63);
        assert_eq!(top_p_fraction(0.0), 0);
        assert_eq!(top_p_fraction(-1.0), 0);
        assert_eq!(top_p_fraction(1.0 - f32::EPSILON / 2.0), u64::MAX - (1 << 40) + 1);
    }
}
