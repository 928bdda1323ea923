//! Passes over prompts: the calls of [`Prefill`](crate::prefill::Prefill), launched.

use m40_cuda::CudaError;

use super::{Executor, Row, upload};
use crate::batch::Ordered;
use crate::prefill::Shape;
use crate::sequence::Sequence;

impl Executor {
    /// One pass over many rows. They are checked, and there is room for them.
    pub(super) fn run_prompt(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        logits: &mut Vec<f32>,
    ) -> Result<(), CudaError> {
        let Ordered { order, counts, wanted } = Ordered::new(rows);
        let mut words = Vec::with_capacity(4 * rows.len());
        for i in order {
            words.extend(self.row(&rows[i], sequences)?.words());
        }
        let prefill = &self.plan.prefill;
        let tiles = prefill.tiles(&counts);
        let shape = Shape {
            rows: rows.len(),
            wanted: wanted.len(),
            tiles: tiles.len(),
            tallest: tiles.iter().map(|tile| tile[1] as usize).max().unwrap_or(0),
        };
        let uploads =
            [(prefill.rows, words), (prefill.tiles, tiles.concat()), (prefill.index, wanted)];
        let layouts: Vec<_> = self.weights.matrices().iter().map(|m| *m.layout()).collect();
        let calls = prefill.calls(&self.plan.program, &self.plan.lowered, &layouts, shape);
        for (buffer, words) in uploads {
            let slice = self.buffers[buffer.0].as_mut().expect("no launch is prepared");
            upload(&mut self.ring, slice, 0..words.len(), &words)?;
        }
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
}
