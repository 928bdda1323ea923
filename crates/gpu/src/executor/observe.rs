//! Passes whose results can be looked at op by op.

use m40_program::diff::{Observer, Output};

use super::{Executor, PassError, Row, Want, computed, kernel_for};
use crate::batch::decode_passes;
use crate::observe::visible;
use crate::sequence::Sequence;

impl Executor {
    /// Runs a decode pass over `rows`, of different sequences and at most
    /// [`PASS_ROWS`](crate::ops::PASS_ROWS), in launches of one op each, however passes are launched
    /// otherwise, and shows what each leaves in scratch memory. A pass that the observer ends stores
    /// no keys and values of layers that it did not reach, so sequences must be those of
    /// [`begin`](Self::begin).
    ///
    /// # Errors
    /// [`PassError`], before anything is computed unless the card fails.
    pub fn decode_observed(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        observe: &mut Observer<'_>,
    ) -> Result<(), PassError> {
        if rows.is_empty() || decode_passes(rows).len() > 1 {
            return Err(PassError::Rows { rows: rows.len() });
        }
        if let Some(index) = sequences.iter().position(|sequence| !sequence.is_alone()) {
            return Err(PassError::Shared { index });
        }
        self.prepare(rows, sequences, 1)?;
        self.rest()?;
        self.send_pass(rows, sequences, Want::Logits)?;
        computed(rows, sequences)?;
        let kernel = kernel_for(rows.len());
        let visible = visible(&self.plan.program, &self.plan.lowered);
        let mut values = vec![];
        for step in 0..self.plan.lowered.ops.len() {
            self.launch(kernel, step..step + 1)?;
            for seen in visible.iter().filter(|seen| seen.step == step) {
                let stride = self.plan.lowered.region(seen.view.region).stride;
                let words = self.read(seen.view.region, 0..rows.len() * stride)?;
                let columns = words.chunks_exact(stride).flat_map(|row| &row[seen.view.columns()]);
                values.clear();
                values.extend(columns.map(|word| f32::from_bits(*word)));
                let output = Output { op: seen.op, buffer: seen.buffer, values: &values };
                if observe(output).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}
