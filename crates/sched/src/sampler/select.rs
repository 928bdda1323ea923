//! Picking the few tokens that matter out of a large vocabulary without sorting it.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Logits are scanned in blocks of this many: one vectorised maximum says whether a block can hold
/// anything of interest.
const BLOCK: usize = 64;
/// Up to this many kept tokens, a heap beats partitioning the whole vocabulary.
const HEAP_MAX: usize = 1024;
/// Ranges this short are sorted outright.
const SORT_MAX: usize = 32;

/// A token still in the running.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    /// The adjusted logit; never NaN.
    pub(super) logit: f32,
    /// `e^(logit - max)`, once weighed.
    pub(super) weight: f32,
    /// What typical sampling orders by.
    pub(super) deviation: f32,
}

impl Candidate {
    fn new(id: usize, logit: f32) -> Self {
        Self { id: id as u32, logit, weight: 0.0, deviation: 0.0 }
    }
}

/// Likeliest first; equal logits by ascending id.
pub(super) fn by_likelihood(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Most typical first; equal deviations by ascending id.
pub(super) fn by_deviation(a: &Candidate, b: &Candidate) -> Ordering {
    a.deviation.total_cmp(&b.deviation).then(a.id.cmp(&b.id))
}

/// The largest value, ignoring NaN; -inf when there is none.
pub(super) fn maximum(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            // A comparison, not `f32::max`: false for NaN, and a single instruction.
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// The lowest id of the largest logit, or `None` when every logit is -inf or NaN.
pub(super) fn argmax(logits: &[f32]) -> Option<u32> {
    let (mut best, mut best_block) = (f32::NEG_INFINITY, None);
    for (block_idx, block) in logits.chunks(super::BLOCK).enumerate() {
        let max = maximum(block);
        if max > best {
            (best, best_block) = (max, Some((block_idx, block)));
        }
    }
    let (block_idx, block) = best_block?;
    let offset = block.iter().position(|&x| x == best)?;
    Some((block_idx * super::BLOCK + offset) as u32)
}

/// Heap order: the candidate to drop first is on top.
struct Weakest(Candidate);

impl PartialEq for Weakest {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Weakest {}
impl PartialOrd for Weakest {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Weakest {
    fn cmp(&self, other: &Self) -> Ordering {
        by_likelihood(&self.0, &other.0)
    }
}

/// Reusable memory for [`Selection::top_k`], so that a token costs no allocation.
#[derive(Default)]
pub(super) struct Selection {
    heap: BinaryHeap<Weakest>,
}

impl std::fmt::Debug for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Selection").field("capacity", &self.heap.capacity()).finish()
    }
}

impl Selection {
    /// Replaces `out` by the `k` likeliest tokens, in no order, ties to the lowest id. Logits of
    /// -inf and NaN are never taken, so fewer may come.
    pub(super) fn top_k(&mut self, logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
        if k > HEAP_MAX {
            gather(logits, f32::NEG_INFINITY, out);
            if out.len() > k {
                out.select_nth_unstable_by(k - 1, by_likelihood);
                out.truncate(k);
            }
            return;
        }
        self.heap.clear();
        let mut bar = f32::NEG_INFINITY;
        for (block_idx, block) in logits.chunks(BLOCK).enumerate() {
            // Ids only grow, so an equal logit loses to what is there already.
            if maximum(block) <= bar {
                continue;
            }
            for (offset, &logit) in block.iter().enumerate() {
                if logit > bar {
                    bar = self.offer(Candidate::new(block_idx * BLOCK + offset, logit), k);
                }
            }
        }
        out.clear();
        out.extend(self.heap.drain().map(|Weakest(candidate)| candidate));
    }

    /// Takes a candidate better than the weakest kept; returns the logit to beat from now on.
    fn offer(&mut self, candidate: Candidate, k: usize) -> f32 {
        if self.heap.len() < k {
            self.heap.push(Weakest(candidate));
            if self.heap.len() < k {
                return f32::NEG_INFINITY;
            }
        } else if let Some(mut weakest) = self.heap.peek_mut() {
            *weakest = Weakest(candidate);
        }
        self.heap.peek().map_or(f32::NEG_INFINITY, |weakest| weakest.0.logit)
    }
}

/// Replaces `out` by every token whose logit is at least `bar` and above -inf, by ascending id.
pub(super) fn gather(logits: &[f32], bar: f32, out: &mut Vec<Candidate>) {
    out.clear();
    for (block_idx, block) in logits.chunks(BLOCK).enumerate() {
        let max = maximum(block);
        if max < bar || max == f32::NEG_INFINITY {
            continue;
        }
        for (offset, &logit) in block.iter().enumerate() {
            if logit >= bar && logit > f32::NEG_INFINITY {
                out.push(Candidate::new(block_idx * BLOCK + offset, logit));
            }
        }
    }
}

/// Keeps the shortest run of candidates, in `order`, whose weights reach `target`; at least one.
///
/// Equal to sorting and cutting, but by repeated halving: the side that cannot hold the cut is
/// never sorted, so the work is linear in the number of candidates.
pub(super) fn keep_mass(
    candidates: &mut Vec<Candidate>,
    target: f64,
    order: fn(&Candidate, &Candidate) -> Ordering,
) {
    let (mut low, mut high) = (0, candidates.len());
    let mut mass = 0.0;
    while high - low > SORT_MAX {
        let half = (high - low) / 2;
        candidates[low..high].select_nth_unstable_by(half, order);
        let left = mass_of(&candidates[low..low + half]);
        if mass + left >= target {
            high = low + half;
        } else {
            mass += left;
            low += half;
        }
    }
    candidates[low..high].sort_unstable_by(order);
    let cut = candidates[low..high].iter().position(|candidate| {
        mass += f64::from(candidate.weight);
        mass >= target
    });
    candidates.truncate(cut.map_or(high, |i| low + i + 1));
}

/// The sum of the candidates' weights.
pub(super) fn mass_of(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(mut candidates: Vec<Candidate>) -> Vec<u32> {
        candidates.sort_by_key(|candidate| candidate.id);
        candidates.iter().map(|candidate| candidate.id).collect()
    }

    fn plain_top_k(logits: &[f32], k: usize) -> Vec<u32> {
        let mut all: Vec<_> = logits
            .iter()
            .enumerate()
            .filter(|(_, x)| **x > f32::NEG_INFINITY)
            .map(|(id, &x)| Candidate::new(id, x))
            .collect();
        all.sort_by(by_likelihood);
        all.truncate(k);
        ids(all)
    }

    /// Logits with many ties, and the values a broken model makes.
    fn logits(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f32>> {
        let odd = prop_oneof![Just(f32::NAN), Just(f32::NEG_INFINITY), Just(0.0)];
        let value = prop_oneof![4 => -8i32..8, 1 => -80i32..80].prop_map(|x| x as f32 * 0.5);
        prop::collection::vec(prop_oneof![9 => value, 1 => odd], len)
    }

    proptest! {
        #[test]
        fn top_k_equals_sorting(logits in logits(1..3000), k in 1usize..2000) {
            let mut out = Vec::new();
            Selection::default().top_k(&logits, k, &mut out);
            prop_assert_eq!(ids(out), plain_top_k(&logits, k));
        }

        #[test]
        fn keeping_mass_equals_sorting_and_cutting(
            weights in prop::collection::vec(0u32..1000, 1..400),
            fraction in 0.0f64..1.2,
        ) {
            // Whole numbers add up exactly, so both ways must cut at the same place.
            let make = |(id, &w): (usize, &u32)| Candidate {
                weight: w as f32, ..Candidate::new(id, w as f32)
            };
            let mut sorted: Vec<_> = weights.iter().enumerate().map(make).collect();
            let mut halved = sorted.clone();
            let target = mass_of(&sorted) * fraction;
            keep_mass(&mut halved, target, by_likelihood);

            sorted.sort_by(by_likelihood);
            let mut sum = 0.0;
            let cut = sorted.iter().position(|c| { sum += f64::from(c.weight); sum >= target });
            sorted.truncate(cut.map_or(sorted.len(), |i| i + 1));
            prop_assert_eq!(ids(halved), ids(sorted));
        }

        #[test]
        fn argmax_is_the_first_of_the_largest(logits in logits(0..3000)) {
            let best = plain_top_k(&logits, 1).first().copied();
            prop_assert_eq!(argmax(&logits), best);
        }
    }

    #[test]
    fn nothing_usable_has_no_argmax() {
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[f32::NAN, f32::NEG_INFINITY]), None);
        assert_eq!(argmax(&[f32::NAN, f32::INFINITY]), Some(1));
    }
}
