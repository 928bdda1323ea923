//! Choosing the next token from a row of logits.
//!
//! The steps, in this order (the order llama.cpp has made users expect):
//!
//! 1. **bias** is added, and -100 or less bans the token;
//! 2. **penalties** for tokens of the window: a positive logit is divided and another multiplied by
//!    the repeat penalty, then `presence + count * frequency` is taken off;
//! 3. temperature 0 takes the largest logit and stops here;
//! 4. **top-k**, 5. **typical**, 6. **top-p**, 7. **min-p**, each on the softmax of what the one
//!    before left (at temperature 1), each leaving at least one token;
//! 8. **temperature** divides the logits that are left;
//! 9. **draw**: with weights `e^((logit - max) / temperature)` summed in ascending token id, the
//!    first token whose running sum exceeds `u * total`, where `u` is a function of (seed,
//!    position) alone ([`philox::uniform`]).
//!
//! Equal logits are ordered by ascending id everywhere. NaN logits count as -inf, +inf as the
//! largest finite number. Nothing is allocated per token once the buffers have grown.

mod exp;
mod logprobs;
mod params;
pub mod philox;
mod select;

use std::collections::{HashMap, VecDeque};

pub use logprobs::top_logprobs;
pub use params::{BAN_BIAS, MAX_LOGIT_BIAS, ParamError, SamplingParams};

use exp::{exp_nonpositive, sum_exp};
use select::{
    Candidate, Selection, argmax, by_deviation, by_likelihood, gather, keep_mass, mass_of,
};

/// Sums over the vocabulary go block by block: partial sums in 32 bits stay short, and the drawn
/// token is found by skipping whole blocks.
const BLOCK: usize = 1024;

/// How far below the largest logit top-p looks first, in nats. Nearly always the wanted mass is
/// found within the first; the last takes everything.
const TOP_P_MARGINS: [f32; 3] = [6.0, 14.0, f32::INFINITY];

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// The probability it was drawn with, after every step; 1 for temperature 0. 0 when no token
    /// had a usable logit (all NaN, -inf or banned), in which case `id` is 0 and means nothing.
    pub probability: f32,
}

impl Sampled {
    const NOTHING: Self = Self { id: 0, probability: 0.0 };
}

/// Chooses the tokens of one sequence. See the module's page for the steps.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    seed: u64,
    /// The number of tokens accepted so far: the position of the next token.
    position: u64,
    /// Sorted by id, one entry a token, bans as -inf.
    bias: Vec<(u32, f32)>,
    window: Window,
    /// Logits changed for this token, to be put back.
    undo: Vec<(u32, f32)>,
    candidates: Vec<Candidate>,
    selection: Selection,
    block_sums: Vec<f64>,
}

impl Sampler {
    /// A sampler at position 0 for rows of `vocab` logits.
    ///
    /// `params` should have passed [`SamplingParams::validate`]; values that would not are used as
    /// far as they make sense, without a panic. `seed` decides the draws; `params.seed` is not
    /// looked at here, the caller has resolved it.
    pub fn new(params: SamplingParams, seed: u64, vocab: usize) -> Self {
        let bias = params.merged_bias(vocab);
        let window = Window::new(if params.penalises() { params.repeat_last_n } else { 0 });
        Self {
            params,
            seed,
            position: 0,
            bias,
            window,
            undo: Vec::new(),
            candidates: Vec::new(),
            selection: Selection::default(),
            block_sums: Vec::new(),
        }
    }

    /// The parameters it was made with.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// The position of the token that the next [`Sampler::sample`] chooses.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Appends a token to the context: every token of the prompt, then every token generated.
    /// Moves the position on by one, which is what makes the next draw another one.
    pub fn accept(&mut self, token: u32) {
        self.position += 1;
        self.window.push(token);
    }

    /// Chooses a token from `logits` (`[vocab]`). They are changed while it works and are again as
    /// they were when it returns, so that [`top_logprobs`] can be asked afterwards.
    ///
    /// Does not accept the token: the caller does, once it is part of the context.
    pub fn sample(&mut self, logits: &mut [f32]) -> Sampled {
        self.adjust(logits);
        let sampled = if self.params.temperature > 0.0 {
            self.draw(logits)
        } else {
            argmax(logits).map_or(Sampled::NOTHING, |id| Sampled { id, probability: 1.0 })
        };
        for (id, logit) in self.undo.drain(..).rev() {
            logits[id as usize] = logit;
        }
        sampled
    }

    /// Steps 1 and 2, noting what to undo.
    fn adjust(&mut self, logits: &mut [f32]) {
        let mut change = |id: u32, new: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.get_mut(id as usize) {
                self.undo.push((id, *logit));
                *logit = new(*logit);
            }
        };
        for &(id, bias) in &self.bias {
            change(id, &|logit| logit + bias);
        }
        let SamplingParams { repeat_penalty, presence_penalty, frequency_penalty, .. } =
            self.params;
        for (&id, &count) in &self.window.counts {
            change(id, &|logit| {
                let repeated =
                    if logit > 0.0 { logit / repeat_penalty } else { logit * repeat_penalty };
                repeated - presence_penalty - count as f32 * frequency_penalty
            });
        }
    }

    /// Steps 4 to 9.
    fn draw(&mut self, logits: &[f32]) -> Sampled {
        let max = select::maximum(logits).min(f32::MAX);
        if max == f32::NEG_INFINITY {
            return Sampled::NOTHING;
        }
        let u = philox::uniform(self.seed, self.position);
        // Finite even for a subnormal temperature: the largest logit's 0 must stay 0 when scaled.
        let inverse_temperature = (1.0 / self.params.temperature).min(f32::MAX);
        let top_k = match self.params.top_k as usize {
            0 => logits.len(),
            k => k.min(logits.len()),
        };
        let (typical, top_p) = (self.params.typical_p < 1.0, self.params.top_p < 1.0);
        if top_k < logits.len() {
            self.selection.top_k(logits, top_k, &mut self.candidates);
            self.weigh(max);
        } else if typical {
            gather(logits, f32::NEG_INFINITY, &mut self.candidates);
            self.weigh(max);
        } else if top_p {
            self.gather_for_top_p(logits, max);
        } else if self.params.min_p > 0.0 {
            gather(logits, min_p_bar(max, self.params.min_p), &mut self.candidates);
            self.weigh(max);
        } else {
            return self.draw_from_all(logits, max, inverse_temperature, u);
        }
        if typical {
            self.keep_typical(max);
        }
        // Where nothing but top-p has cut, its cut is made against the whole vocabulary's mass.
        if top_p && (typical || top_k < logits.len()) {
            let target = mass_of(&self.candidates) * f64::from(self.params.top_p);
            keep_mass(&mut self.candidates, target, by_likelihood);
        }
        self.keep_min_p();
        self.draw_from_candidates(inverse_temperature, u)
    }

    fn weigh(&mut self, max: f32) {
        for candidate in &mut self.candidates {
            candidate.logit = candidate.logit.min(f32::MAX);
            candidate.weight = exp_nonpositive(candidate.logit - max);
        }
    }

    /// Top-p over the whole vocabulary: only the candidates near the top are looked at, unless
    /// their mass is too small.
    fn gather_for_top_p(&mut self, logits: &[f32], max: f32) {
        let total: f64 = logits.chunks(BLOCK).map(|block| sum_exp(block, max, 1.0)).sum();
        let target = total * f64::from(self.params.top_p);
        for margin in TOP_P_MARGINS {
            gather(logits, max - margin, &mut self.candidates);
            self.weigh(max);
            if mass_of(&self.candidates) >= target {
                break;
            }
        }
        keep_mass(&mut self.candidates, target, by_likelihood);
    }

    fn keep_typical(&mut self, max: f32) {
        let total = mass_of(&self.candidates);
        let log_total = total.ln();
        let surprise = |candidate: &Candidate| log_total - f64::from(candidate.logit - max);
        let entropy: f64 = self
            .candidates
            .iter()
            .filter(|candidate| candidate.weight > 0.0)
            .map(|candidate| f64::from(candidate.weight) / total * surprise(candidate))
            .sum();
        for candidate in &mut self.candidates {
            candidate.deviation = (surprise(candidate) - entropy).abs() as f32;
        }
        let target = total * f64::from(self.params.typical_p);
        keep_mass(&mut self.candidates, target, by_deviation);
    }

    fn keep_min_p(&mut self) {
        if self.params.min_p > 0.0 {
            let bar = min_p_bar(self.candidates_max(), self.params.min_p);
            self.candidates.retain(|candidate| candidate.logit >= bar);
        }
    }

    fn candidates_max(&self) -> f32 {
        self.candidates.iter().map(|candidate| candidate.logit).fold(f32::NEG_INFINITY, f32::max)
    }

    fn draw_from_candidates(&mut self, inverse_temperature: f32, u: f64) -> Sampled {
        self.candidates.sort_unstable_by_key(|candidate| candidate.id);
        let max = self.candidates_max();
        for candidate in &mut self.candidates {
            candidate.weight = exp_nonpositive((candidate.logit - max) * inverse_temperature);
        }
        let total = mass_of(&self.candidates);
        let weights = self.candidates.iter().map(|candidate| (candidate.id, candidate.weight));
        pick(weights, u * total, total)
    }

    /// No filter is on: the vocabulary itself is the list of candidates.
    fn draw_from_all(&mut self, logits: &[f32], max: f32, scale: f32, u: f64) -> Sampled {
        self.block_sums.clear();
        self.block_sums.extend(logits.chunks(BLOCK).map(|block| sum_exp(block, max, scale)));
        let total: f64 = self.block_sums.iter().sum();
        let mut target = u * total;
        let last = self.block_sums.iter().rposition(|&sum| sum > 0.0).unwrap_or(0);
        let mut block_idx = 0;
        while block_idx < last && target >= self.block_sums[block_idx] {
            target -= self.block_sums[block_idx];
            block_idx += 1;
        }
        let start = block_idx * BLOCK;
        let end = logits.len().min(start + BLOCK);
        let weights =
            (start..end).map(|id| (id as u32, exp_nonpositive((logits[id] - max) * scale)));
        pick(weights, target, total)
    }
}

/// The first token whose running sum exceeds `target`; the last one with any weight when rounding
/// leaves the sum short.
fn pick(weights: impl Iterator<Item = (u32, f32)>, target: f64, total: f64) -> Sampled {
    let mut sum = 0.0;
    let mut picked = Sampled::NOTHING;
    for (id, weight) in weights {
        if weight > 0.0 {
            sum += f64::from(weight);
            picked = Sampled { id, probability: (f64::from(weight) / total) as f32 };
            if sum > target {
                break;
            }
        }
    }
    picked
}

/// The smallest logit that min-p keeps.
fn min_p_bar(max: f32, min_p: f32) -> f32 {
    max + min_p.ln()
}

/// The latest tokens and how often each is among them.
#[derive(Debug)]
struct Window {
    length: usize,
    tokens: VecDeque<u32>,
    counts: HashMap<u32, u32>,
}

impl Window {
    fn new(length: u32) -> Self {
        Self { length: length as usize, tokens: VecDeque::new(), counts: HashMap::new() }
    }

    fn push(&mut self, token: u32) {
        if self.length == 0 {
            return;
        }
        if self.tokens.len() == self.length {
            self.forget_oldest();
        }
        self.tokens.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.tokens.pop_front() else { return };
        if let Some(count) = self.counts.get_mut(&oldest) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
