//! Who reads what an op of a program wrote.

use m40_program::{BufferId, Op, Program};

/// Answers from one program.
pub(super) struct Uses<'a> {
    program: &'a Program,
}

impl<'a> Uses<'a> {
    pub(super) fn new(program: &'a Program) -> Self {
        Self { program }
    }

    /// The ops that read what `buffer` holds after op `index`, in order; the number of ops stands
    /// for whoever reads the program's result.
    pub(super) fn readers(&self, index: usize, buffer: BufferId) -> Vec<usize> {
        let mut readers = vec![];
        for (later, op) in self.program.ops.iter().enumerate().skip(index + 1) {
            if op.reads().contains(&buffer) {
                readers.push(later);
            }
            if op.writes().contains(&buffer) {
                return readers;
            }
        }
        if buffer == self.program.result() {
            readers.push(self.program.ops.len());
        }
        readers
    }

    /// The op that alone reads what `buffer` holds after op `index`.
    pub(super) fn sole_reader(&self, index: usize, buffer: BufferId) -> Option<usize> {
        match self.readers(index, buffer)[..] {
            [reader] if reader < self.program.ops.len() => Some(reader),
            _ => None,
        }
    }

    /// The product that alone takes in the rows normed by op `index`, with nothing between that
    /// would change what the norm reads.
    pub(super) fn product_of_norm(&self, index: usize) -> Option<usize> {
        let Op::RmsNorm { x, residual: None, out, .. } = &self.program.ops[index] else {
            return None;
        };
        let reader = self.sole_reader(index, *out)?;
        let takes_in = match &self.program.ops[reader] {
            Op::Project { x, outputs } => {
                x == out && outputs.iter().all(|output| output.residual != Some(*out))
            }
            Op::GatedProject { x, .. } => x == out,
            _ => false,
        };
        (takes_in && x != out && !self.changes_between(index, reader, &[*x])).then_some(reader)
    }

    /// The norm whose input is the sum that op `index` makes of a stream and a normed block, and
    /// which goes into a product, before anything else reads that sum.
    pub(super) fn norm_of_sum(&self, index: usize) -> Option<usize> {
        let Op::RmsNorm { x, residual: Some(stream), out, .. } = &self.program.ops[index] else {
            return None;
        };
        let first = *self.readers(index, *out).first()?;
        let Some(Op::RmsNorm { x: normed, residual: None, .. }) = self.program.ops.get(first)
        else {
            return None;
        };
        let product = self.product_of_norm(first)?;
        let early = |reader: usize| reader != first && reader <= product;
        let read_early = self.readers(index, *out).into_iter().any(early);
        let changed = self.changes_between(index, product, &[*x, *stream, *out]);
        (normed == out && !read_early && !changed).then_some(first)
    }

    /// Whether an op between two writes one of these buffers, or any that may share their memory:
    /// gathered rows do.
    fn changes_between(&self, first: usize, last: usize, buffers: &[BufferId]) -> bool {
        self.program.ops[first + 1..last].iter().any(|op| {
            matches!(op, Op::Gather { .. })
                || op.writes().iter().any(|written| buffers.contains(written))
        })
    }
}
