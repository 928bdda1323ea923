//! What an op costs: the fewest bytes it must move and the operations it must do.
//!
//! Feeds roofline reports, the memory plan of a device and load-time estimates. Activations count
//! once per read and once per write; weights once per pass, whatever the rows.

use std::ops::Add;

use crate::op::{BufferId, MatrixId, Op, RowSet};
use crate::program::Program;

/// Size of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassShape {
    /// Tokens.
    pub rows: u64,
    /// Tokens whose logits are wanted.
    pub logit_rows: u64,
    /// Tokens in the KV cache that a row attends to, on average.
    pub context: u64,
}

/// Bytes and operations of an op or a program; costs add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Weight bytes read.
    pub weight_bytes: u64,
    /// Activation bytes read and written.
    pub activation_bytes: u64,
    /// KV cache bytes read and written.
    pub kv_bytes: u64,
    /// Multiplications and additions; a fused multiply-add is two.
    pub flops: u64,
}

impl Cost {
    /// All bytes moved.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes + self.kv_bytes
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            weight_bytes: self.weight_bytes + other.weight_bytes,
            activation_bytes: self.activation_bytes + other.activation_bytes,
            kv_bytes: self.kv_bytes + other.kv_bytes,
            flops: self.flops + other.flops,
        }
    }
}

impl Program {
    /// Cost of one op in a pass of this shape.
    pub fn cost(&self, op: &Op, pass: PassShape) -> Cost {
        let touched = op.reads().into_iter().chain(op.writes());
        let activation_bytes = touched.map(|id| self.floats(id, pass) * 4).sum();
        let base = Cost { activation_bytes, ..Cost::default() };
        match op {
            Op::Embed { table, .. } | Op::AddRow { table, .. } => {
                let matrix = self.matrix(*table);
                let weight_bytes = pass.rows * (matrix.bytes() / matrix.rows.max(1) as u64);
                Cost { weight_bytes, ..base }
            }
            Op::Project { x, outputs } => outputs
                .iter()
                .map(|p| self.matmul(p.weight, self.rows(*x, pass)))
                .fold(base, Cost::add),
            Op::GatedProject { x, gate, up, .. } => {
                let rows = self.rows(*x, pass);
                base + self.matmul(*gate, rows) + self.matmul(*up, rows)
            }
            Op::KvAppend { layer, .. } => {
                let of_token = self.kv[usize::from(*layer)].bytes_per_token() as u64;
                Cost { kv_bytes: pass.rows * of_token, ..base }
            }
            Op::Attention { layer, shape, .. } => {
                let seen = shape.window.map_or(pass.context, |w| pass.context.min(u64::from(w)));
                let of_token = self.kv[usize::from(*layer)].bytes_per_token() as u64;
                let per_head = (shape.key_dim + shape.value_dim) as u64;
                Cost {
                    kv_bytes: seen * of_token,
                    flops: 2 * pass.rows * seen * shape.heads as u64 * per_head,
                    ..base
                }
            }
            Op::Gather { .. } => base,
            Op::RmsNorm { x, .. }
            | Op::LayerNorm { x, .. }
            | Op::HeadNorm { x, .. }
            | Op::Activate { x, .. }
            | Op::Softcap { x, .. } => Cost { flops: 4 * self.floats(*x, pass), ..base },
            Op::Rope { x, .. } => Cost { flops: 3 * self.floats(*x, pass), ..base },
        }
    }

    /// Cost of a whole pass.
    pub fn pass_cost(&self, pass: PassShape) -> Cost {
        self.ops.iter().map(|op| self.cost(op, pass)).fold(Cost::default(), Cost::add)
    }

    fn rows(&self, id: BufferId, pass: PassShape) -> u64 {
        match self.buffer(id).rows {
            RowSet::All => pass.rows,
            RowSet::Logits => pass.logit_rows,
        }
    }

    fn floats(&self, id: BufferId, pass: PassShape) -> u64 {
        self.rows(id, pass) * self.buffer(id).width as u64
    }

    fn matmul(&self, id: MatrixId, rows: u64) -> Cost {
        let matrix = self.matrix(id);
        Cost {
            weight_bytes: matrix.bytes(),
            flops: 2 * rows * matrix.rows as u64 * matrix.cols as u64,
            ..Cost::default()
        }
    }
}
