//! The steps of sampling the plain way: sorted, in double precision, with a margin for rounding.

use std::collections::HashMap;

use m40_sched::sampler::{BAN_BIAS, philox};

use crate::case;

/// What masses may be off, as a share of the total: weights of 32 bits are within 2.5e-7, and the
/// host adds up to 128 of them in 32 bits.
const MARGIN: f64 = 2e-6;

/// One row after biases and penalties.
pub(crate) struct Row<'a> {
    row: &'a case::Row,
    /// By likelihood, usable ones only.
    sorted: Vec<(u32, f32)>,
    /// In `[0, 1)`, what the token is drawn with.
    number: f64,
}

impl<'a> Row<'a> {
    /// logits: `[vocab]`; history: every token so far
    pub(crate) fn new(logits: &[f32], row: &'a case::Row, history: &[u32]) -> Self {
        let params = &row.params;
        let mut logits = logits.to_vec();
        let mut biases: HashMap<u32, f32> = HashMap::new();
        for &(token, bias) in &params.logit_bias {
            let bias = if bias <= BAN_BIAS { f32::NEG_INFINITY } else { bias };
            *biases.entry(token).or_insert(0.0) += bias;
        }
        for (token, bias) in biases {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        let latest = &history[history.len().saturating_sub(params.repeat_last_n as usize)..];
        for (token, logit) in logits.iter_mut().enumerate() {
            let count = latest.iter().filter(|&&seen| seen as usize == token).count();
            if count > 0 {
                let repeat = params.repeat_penalty;
                let repeated = if *logit > 0.0 { *logit / repeat } else { *logit * repeat };
                let frequency = count as f32 * params.frequency_penalty;
                *logit = repeated - params.presence_penalty - frequency;
            }
        }
        let mut sorted: Vec<_> = (0..)
            .zip(logits)
            .filter(|(_, logit)| *logit > f32::NEG_INFINITY)
            .map(|(token, logit)| (token, logit.min(f32::MAX)))
            .collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let number = philox::uniform(row.seed, history.len() as u64);
        Self { row, sorted, number }
    }

    /// Whether `token` may come of it with about this probability.
    pub(crate) fn allows(&self, token: u32, probability: f32) -> bool {
        let params = &self.row.params;
        let Some(&(likeliest, largest)) = self.sorted.first() else {
            return (token, probability) == (0, 0.0);
        };
        if params.temperature == 0.0 {
            return (token, probability) == (likeliest, 1.0);
        }
        let mut kept = self.sorted.len();
        if params.top_k > 0 {
            kept = kept.min(params.top_k as usize);
        }
        let mut cuts = (kept, kept);
        if params.top_p < 1.0 {
            let weights = self.sorted[..kept]
                .iter()
                .map(|(_, logit)| (f64::from(*logit) - f64::from(largest)).exp());
            let total: f64 = weights.clone().sum();
            let mut sum = 0.0;
            let sums: Vec<f64> = weights
                .map(|weight| {
                    sum += weight;
                    sum
                })
                .collect();
            let cut = |share: f64| {
                let reached = sums.iter().position(|&sum| sum >= share * total);
                reached.map_or(kept, |n| n + 1)
            };
            let share = f64::from(params.top_p);
            // Equal sums must cut at the same place, so without a margin too.
            cuts = (cut(share - MARGIN).min(cut(share)), cut(share + MARGIN));
        }
        // The bar of min-p is the same number on both sides.
        let bar = largest + params.min_p.ln();
        (cuts.0..=cuts.1).any(|cut| {
            let left = self.sorted[..cut].iter().filter(|(_, logit)| *logit >= bar);
            self.draws(left.copied().collect(), largest, token, probability)
        })
    }

    fn draws(&self, mut left: Vec<(u32, f32)>, largest: f32, token: u32, probability: f32) -> bool {
        left.sort_by_key(|(token, _)| *token);
        let temperature = f64::from(self.row.params.temperature);
        let weight = |logit: f32| ((f64::from(logit) - f64::from(largest)) / temperature).exp();
        let total: f64 = left.iter().map(|(_, logit)| weight(*logit)).sum();
        let mut before = 0.0;
        for (candidate, logit) in left {
            let own = weight(logit) / total;
            if candidate == token {
                let within = self.number >= before - MARGIN && self.number <= before + own + MARGIN;
                // Differences of logits are rounded before they are multiplied.
                let slack = own * 2e-5 + 1e-12;
                return within && (f64::from(probability) - own).abs() <= slack;
            }
            before += own;
        }
        false
    }
}
