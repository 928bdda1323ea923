//! Rotary position embedding from tables of sines and cosines made once per pass.

use m40_program::{RopeStyle, RopeTable};

/// Sines and cosines of one frequency table for the positions of a pass.
#[derive(Debug, Default)]
pub(crate) struct Angles {
    /// `[n, pairs]`, times the table's magnitude.
    cos: Vec<f32>,
    /// `[n, pairs]`, times the table's magnitude.
    sin: Vec<f32>,
}

impl Angles {
    /// Recomputes for `positions`; angles are formed in f64, as an f32 product loses whole
    /// hundredths of a turn at positions in the thousands.
    pub(crate) fn fill(&mut self, table: &RopeTable, positions: impl Iterator<Item = u32>) {
        self.cos.clear();
        self.sin.clear();
        for position in positions {
            for freq in &table.inv_freq {
                let (sin, cos) = (f64::from(position) * f64::from(*freq)).sin_cos();
                self.cos.push(cos as f32 * table.magnitude);
                self.sin.push(sin as f32 * table.magnitude);
            }
        }
    }

    /// Rotates every head of the rows of `x`, `[n, heads, dim]`, in place; the first row of `x` is
    /// row `first` of the pass.
    pub(crate) fn rotate(
        &self,
        table: &RopeTable,
        x: &mut [f32],
        heads: usize,
        first: usize,
        width: usize,
    ) {
        let pairs = table.inv_freq.len();
        let dim = width / heads;
        for (i, row) in x.chunks_exact_mut(width).enumerate() {
            let at = (first + i) * pairs;
            let (cos, sin) = (&self.cos[at..at + pairs], &self.sin[at..at + pairs]);
            for head in row.chunks_exact_mut(dim) {
                match table.style {
                    RopeStyle::Halves => rotate_halves(&mut head[..2 * pairs], cos, sin),
                    RopeStyle::Interleaved => rotate_interleaved(&mut head[..2 * pairs], cos, sin),
                }
            }
        }
    }
}

fn rotate_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
    }
}

fn rotate_interleaved(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
        (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c);
    }
}

#[cfg(test)]
mod tests {
    use m40_program::rope::RopeScaling;

    use super::*;

    #[test]
    fn a_quarter_turn_swaps_the_pair() {
        let quarter = std::f32::consts::FRAC_PI_2;
        for (style, expected) in [
            (RopeStyle::Halves, [-3.0, 2.0, 1.0, 4.0, 9.0]),
            (RopeStyle::Interleaved, [-2.0, 1.0, 3.0, 4.0, 9.0]),
        ] {
            let table = RopeTable { style, inv_freq: vec![quarter, 0.0], magnitude: 1.0 };
            let mut angles = Angles::default();
            angles.fill(&table, [1].into_iter());
            let mut x = [1.0, 2.0, 3.0, 4.0, 9.0];
            angles.rotate(&table, &mut x, 1, 0, 5);
            for (x, e) in x.iter().zip(expected) {
                assert!((x - e).abs() < 1e-6, "{style:?}: {x} != {e}");
            }
        }
    }

    #[test]
    fn scores_depend_only_on_the_distance_of_positions() {
        let table = RopeTable::new(RopeStyle::Halves, 64, 10_000.0, &RopeScaling::None);
        let q: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
        let k: Vec<f32> = (0..64).map(|i| (i as f32 * 0.11).cos()).collect();
        let score = |a: u32, b: u32| -> f32 {
            let mut angles = Angles::default();
            angles.fill(&table, [a, b].into_iter());
            let mut rows = [q.clone(), k.clone()].concat();
            angles.rotate(&table, &mut rows, 1, 0, 64);
            rows[..64].iter().zip(&rows[64..]).map(|(q, k)| q * k).sum()
        };
        assert!((score(7, 3) - score(4007, 4003)).abs() < 1e-3);
    }
}
