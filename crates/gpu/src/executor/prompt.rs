//! Passes over prompts: the calls of [`Prefill`](crate::prefill::Prefill), launched.

use m40_cuda::CudaError;

use super::{Executor, Plan, Row, upload};
use crate::batch::Ordered;
use crate::prefill::{LOGIT_ROWS, Shape};
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

    /// Looks up the kernels that passes of every shape may call.
    pub(super) fn find_kernels(&mut self) -> Result<(), CudaError> {
        let Plan { program, lowered, prefill, .. } = &self.plan;
        let layouts: Vec<_> = self.weights.matrices().iter().map(|m| *m.layout()).collect();
        let slots = self.slots();
        for rows in (1..=prefill.max_rows().div_ceil(8)).map(|n| prefill.max_rows().min(8 * n)) {
            let wanted = rows.min(LOGIT_ROWS);
            let shape = Shape { rows, wanted, tiles: 1, tallest: 1 };
            let calls = prefill.calls(program, lowered, &layouts, shape);
            let wide = prefill.wide_calls(program, lowered, &layouts, wanted, slots);
            for call in calls.into_iter().chain(wide) {
                let signature = call.kernel.signature();
                if !self.rows_kernels.contains_key(signature.name) {
                    let kernel = self.arena.device().kernel(signature)?;
                    self.rows_kernels.insert(signature.name, kernel);
                }
            }
        }
        Ok(())
    }
}
