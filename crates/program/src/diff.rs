//! What two runs of one program made of the same tokens, compared op by op.
//!
//! Backends show an [`Output`] to an [`Observer`] as soon as it is computed. A [`Comparison`] is
//! shown those of both runs, and knows where the second first departs from the first.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;

use crate::op::{BufferId, Op};
use crate::program::Program;

/// What an op left in one of the buffers that it writes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Output<'a> {
    /// Index of the op.
    pub op: usize,
    /// The buffer.
    pub buffer: BufferId,
    /// `[rows, width] f32`.
    pub values: &'a [f32],
}

/// Is shown outputs in the order of ops, and may end the pass after any of them.
pub type Observer<'a> = dyn FnMut(Output<'_>) -> ControlFlow<()> + 'a;

/// How far numbers are from those that were expected.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// The largest distance of two numbers; infinite where one is none.
    pub max_abs: f64,
    /// The sum of all distances, relative to the sum of what was expected.
    pub mean_relative: f64,
    /// Index of the largest distance.
    pub at: usize,
}

impl Difference {
    /// Compares as many numbers as both have; infinite if one has more.
    pub fn between(expected: &[f32], found: &[f32]) -> Self {
        let at = expected.len().min(found.len());
        if expected.len() != found.len() {
            return Self { max_abs: f64::INFINITY, mean_relative: f64::INFINITY, at };
        }
        let (mut worst, mut distances, mut size) = (Self::default(), 0.0, 0.0);
        for (i, (e, f)) in expected.iter().zip(found).enumerate() {
            let distance = (f64::from(*e) - f64::from(*f)).abs();
            let distance = if distance.is_nan() { f64::INFINITY } else { distance };
            if distance > worst.max_abs {
                worst = Self { max_abs: distance, at: i, ..worst };
            }
            distances += distance;
            size += f64::from(*e).abs();
        }
        // Of nothing but zeros any distance is too far.
        let mean_relative = if distances == 0.0 { 0.0 } else { distances / size };
        let mean_relative = if mean_relative.is_nan() { f64::INFINITY } else { mean_relative };
        Self { mean_relative, ..worst }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_abs, mean_relative, at } = self;
        write!(f, "mean relative {mean_relative:.2e}, max abs {max_abs:.2e} at {at}")
    }
}

/// Two runs of one program, pass by pass.
#[derive(Debug, Default)]
pub struct Comparison {
    expected: BTreeMap<(usize, BufferId), Vec<f32>>,
    differences: BTreeMap<(usize, BufferId), Difference>,
}

impl Comparison {
    /// No pass yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a pass: forgets what was expected of the one before.
    pub fn begin_pass(&mut self) {
        self.expected.clear();
    }

    /// Takes an output of the first run.
    pub fn expect(&mut self, output: Output<'_>) {
        self.expected.insert((output.op, output.buffer), output.values.to_vec());
    }

    /// Compares an output of the second run with the first's of this pass. What the first has not
    /// shown is not looked at, nor what only the first has shown: a backend may join ops.
    pub fn find(&mut self, output: Output<'_>) {
        let key = (output.op, output.buffer);
        let Some(expected) = self.expected.get(&key) else { return };
        let found = Difference::between(expected, output.values);
        let worst = self.differences.entry(key).or_insert(found);
        if found.mean_relative > worst.mean_relative {
            *worst = found;
        }
    }

    /// The first op, in the program's order, that departs by more than `limit` of mean relative
    /// difference.
    pub fn departs(&self, limit: f64) -> Option<(usize, BufferId, Difference)> {
        self.differences().find(|(_, _, difference)| difference.mean_relative > limit)
    }

    /// What was compared, in the order of ops, each with its worst pass.
    pub fn differences(&self) -> impl Iterator<Item = (usize, BufferId, Difference)> {
        self.differences.iter().map(|(&(op, buffer), &difference)| (op, buffer, difference))
    }
}

impl Program {
    /// How many ops there are up to the end of the `layers`-th layer; all where there are no more
    /// layers than that. Layers are told by their tensors' names, `blk.N.`.
    pub fn ops_of_layers(&self, layers: usize) -> usize {
        let beyond = |op: &Op| {
            self.tensors(op).iter().any(|tensor| block(tensor).is_some_and(|n| n >= layers))
        };
        self.ops.iter().position(beyond).unwrap_or(self.ops.len())
    }

    /// Tensors of an op.
    fn tensors(&self, op: &Op) -> Vec<&str> {
        let matrix = |id| self.matrix(id).tensor.as_str();
        match op {
            Op::Embed { table, .. } | Op::AddRow { table, .. } => vec![matrix(*table)],
            Op::Project { outputs, .. } => outputs.iter().map(|p| matrix(p.weight)).collect(),
            Op::GatedProject { gate, up, .. } => vec![matrix(*gate), matrix(*up)],
            Op::RmsNorm { weight, .. }
            | Op::LayerNorm { weight, .. }
            | Op::HeadNorm { weight, .. } => {
                vec![self.vector(*weight).tensor.as_str()]
            }
            _ => vec![],
        }
    }
}

/// N of `blk.N.…`.
fn block(tensor: &str) -> Option<usize> {
    tensor.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(op: usize, values: &[f32]) -> Output<'_> {
        Output { op, buffer: BufferId(0), values }
    }

    #[test]
    fn a_difference_has_a_size_and_a_place() {
        let found = Difference::between(&[1.0, -2.0, 1.0], &[1.0, -2.5, 1.1]);
        assert_eq!((found.max_abs, found.at), (0.5, 1));
        assert!((found.mean_relative - 0.15).abs() < 1e-6, "{found}");
        assert_eq!(Difference::between(&[0.0, 1.0], &[-0.0, 1.0]), Difference::default());
    }

    #[test]
    fn what_is_no_number_or_not_there_is_infinitely_far() {
        for (expected, found) in [
            (&[1.0, 2.0][..], &[1.0, f32::NAN][..]),
            (&[1.0, f32::INFINITY], &[1.0, f32::INFINITY]),
            (&[0.0, 0.0], &[0.0, 1e-9]),
            (&[1.0, 2.0], &[1.0]),
        ] {
            let difference = Difference::between(expected, found);
            assert_eq!(difference.mean_relative, f64::INFINITY, "{expected:?} {found:?}");
        }
    }

    #[test]
    fn the_first_op_that_departs_in_any_pass_is_named() {
        let mut comparison = Comparison::new();
        for (second, third) in [(2.0, 3.0), (2.0, 3.3), (2.1, 3.0)] {
            comparison.begin_pass();
            (0..3).for_each(|op| comparison.expect(output(op, &[op as f32 + 1.0])));
            comparison.find(output(1, &[second]));
            comparison.find(output(2, &[third]));
            comparison.find(output(7, &[0.0]));
        }
        let ops: Vec<_> = comparison.differences().map(|(op, ..)| op).collect();
        assert_eq!(ops, [1, 2], "only what both runs have shown");
        assert_eq!(comparison.departs(0.01).map(|(op, ..)| op), Some(1));
        assert_eq!(comparison.departs(0.07).map(|(op, ..)| op), Some(2));
        assert_eq!(comparison.departs(0.2), None);
    }

    #[test]
    fn tensors_name_their_layer() {
        assert_eq!(block("blk.17.attn_q.weight"), Some(17));
        assert_eq!([block("token_embd.weight"), block("blk.x.y"), block("blk.")], [None; 3]);
    }
}
