//! Log-probabilities of a logits row, for clients that ask to see them.

use super::exp::sum_exp;
use super::select::{Selection, by_likelihood, maximum};

/// Log-probability of `chosen` and of the `n` likeliest tokens, under the plain softmax of
/// `logits` (no temperature, filter or penalty).
///
/// `logits`: `[vocab]`. The list is likeliest first, ties by ascending id, and shorter than `n` when
/// fewer tokens have a finite logit. A `chosen` outside the vocabulary, or without a usable logit,
/// has -inf.
pub fn top_logprobs(logits: &[f32], n: usize, chosen: u32) -> (f32, Vec<(u32, f32)>) {
    let max = maximum(logits).min(f32::MAX);
    let normaliser = f64::from(max) + sum_exp_all(logits, max).ln();
    let logprob = |logit: f32| {
        let value = (f64::from(logit.min(f32::MAX)) - normaliser) as f32;
        if logit.is_nan() || value.is_nan() { f32::NEG_INFINITY } else { value }
    };
    let mut top = Vec::new();
    if n > 0 {
        Selection::default().top_k(logits, n, &mut top);
        top.sort_unstable_by(by_likelihood);
    }
    let chosen = logits.get(chosen as usize).map_or(f32::NEG_INFINITY, |&x| logprob(x));
    (chosen, top.iter().map(|candidate| (candidate.id, logprob(candidate.logit))).collect())
}

fn sum_exp_all(logits: &[f32], max: f32) -> f64 {
    logits.chunks(super::BLOCK).map(|block| sum_exp(block, max, 1.0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_small_row_by_hand() {
        let (chosen, top) = top_logprobs(&[0.0, 3.0f32.ln(), 0.0], 2, 2);
        assert!((chosen - 0.2f32.ln()).abs() < 1e-6);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 0]);
        assert!((top[0].1 - 0.6f32.ln()).abs() < 1e-6);
        assert!((top[1].1 - 0.2f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn unusable_logits_have_no_probability() {
        let logits = [f32::NAN, 1.0, f32::NEG_INFINITY];
        let (chosen, top) = top_logprobs(&logits, 5, 0);
        assert_eq!(chosen, f32::NEG_INFINITY);
        assert_eq!(top, [(1, 0.0)]);
        assert_eq!(top_logprobs(&logits, 0, 99), (f32::NEG_INFINITY, vec![]));
        assert_eq!(top_logprobs(&[], 3, 0), (f32::NEG_INFINITY, vec![]));
        assert_eq!(top_logprobs(&[f32::NAN; 3], 3, 0).0, f32::NEG_INFINITY);
        assert_eq!(top_logprobs(&[1.0, f32::INFINITY], 1, 1), (0.0, vec![(1, 0.0)]));
    }

    proptest! {
        #[test]
        fn equals_a_softmax_in_double_precision(
            logits in prop::collection::vec(-40.0f32..40.0, 1..3000)
        ) {
            let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            let (_, top) = top_logprobs(&logits, 5, 0);
            for (id, logprob) in top {
                let exact = (f64::from(logits[id as usize]).exp() / sum).ln();
                prop_assert!((f64::from(logprob) - exact).abs() < 1e-5);
            }
        }
    }
}
