//! Passes over prompts: the calls of [`Prefill`](crate::prefill::Prefill), launched.

use m40_cuda::CudaError;
use m40_repack::Layout;

use super::{Executor, PassError, Row, computed, upload};
use crate::batch::{Ordered, prompt_passes};
use crate::call::BufferId;
use crate::prefill::Shape;
use crate::sequence::Sequence;

impl Executor {
    /// Runs the program over `rows`, as [`forward`](Self::forward) does, but ends before its head:
    /// returns the hidden states after the last norm, `[logit_rows, embedding] f32`, of the rows that
    /// want theirs, in order.
    ///
    /// # Errors
    /// [`PassError`], before anything is computed unless the card fails.
    pub fn hidden(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
    ) -> Result<&[f32], PassError> {
        self.prepare(rows, sequences, 1)?;
        self.rest()?;
        let mut states = std::mem::take(&mut self.logits);
        states.clear();
        for pass in prompt_passes(rows, self.plan.prefill.max_rows(), usize::MAX) {
            self.run_hidden(&rows[pass], sequences, &mut states)?;
        }
        computed(rows, sequences)?;
        self.logits = states;
        Ok(&self.logits)
    }

    /// One pass up to the hidden states. Rows are checked, and there is room for them.
    fn run_hidden(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        states: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        let Ordered { order, counts, wanted } = Ordered::new(rows);
        let shape = self.send_rows(rows, sequences, &order, &counts)?;
        let layouts = self.layouts();
        let (program, lowered) = (&self.plan.program, &self.plan.lowered);
        let (calls, hidden) = self.plan.prefill.hidden_calls(program, lowered, &layouts, shape);
        self.enqueue(&calls)?;
        let Some((first, last)) = wanted.iter().min().zip(wanted.iter().max()) else {
            return self.ring.stream().wait();
        };
        let (first, end) = (*first as usize, *last as usize + 1);
        let words = hidden.words(first..end);
        self.words.resize(words.len(), 0);
        let slice = self.buffers[hidden.buffer.0].as_ref();
        let from = slice.and_then(|slice| slice.view(words));
        self.ring.read(from.expect("as long as was planned"), &mut self.words)?;
        for row in wanted {
            let start = (row as usize - first) * hidden.stride;
            let row = &self.words[start..start + hidden.width];
            states.extend(row.iter().map(|word| f32::from_bits(*word)));
        }
        Ok(())
    }

    /// One pass over many rows. They are checked, and there is room for them.
    pub(super) fn run_prompt(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        logits: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        let Ordered { order, counts, wanted } = Ordered::new(rows);
        let shape = self.send_rows(rows, sequences, &order, &counts)?;
        let shape = Shape { wanted: wanted.len(), ..shape };
        let layouts = self.layouts();
        let (program, lowered) = (&self.plan.program, &self.plan.lowered);
        let calls = self.plan.prefill.calls(program, lowered, &layouts, shape);
        self.send(self.plan.prefill.index, &wanted)?;
        self.enqueue(&calls)?;
        let view = self.plan.lowered.logits;
        let stride = self.plan.lowered.region(view.region).stride;
        if shape.wanted == 0 {
            // So that what is enqueued stays little.
            return self.ring.stream().wait();
        }
        self.words.resize(shape.wanted * stride, 0);
        let slice = self.buffers[self.plan.prefill.logits.0].as_ref();
        let from = slice.and_then(|slice| slice.view(0..shape.wanted * stride));
        self.ring.read(from.expect("as long as was planned"), &mut self.words)?;
        for row in self.words.chunks_exact(stride) {
            logits.extend(row[view.columns()].iter().map(|word| f32::from_bits(*word)));
        }
        Ok(())
    }

    /// Tells the card of the rows of a pass and the tiles in which they attend; nobody wants logits yet.
    fn send_rows(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        order: &[usize],
        counts: &[usize],
    ) -> Result<Shape, CudaError> {
        let mut words = Vec::with_capacity(4 * rows.len());
        for &i in order {
            words.extend(self.row(&rows[i], sequences)?.words());
        }
        let tiles = self.plan.prefill.tiles(counts);
        self.send(self.plan.prefill.rows, &words)?;
        self.send(self.plan.prefill.tiles, &tiles.concat())?;
        Ok(Shape {
            rows: rows.len(),
            wanted: 0,
            tiles: tiles.len(),
            tallest: tiles.iter().map(|tile| tile[1] as usize).max().unwrap_or(0),
        })
    }

    /// Of all matrices.
    pub(super) fn layouts(&self) -> Vec<Layout> {
        self.weights.matrices().iter().map(|matrix| *matrix.layout()).collect()
    }

    fn send(&mut self, buffer: BufferId, words: &[u32]) -> Result<(), CudaError> {
        let slice = self.buffers[buffer.0].as_mut().expect("no launch is prepared");
        upload(&mut self.ring, slice, 0..words.len(), words)
    }
}
