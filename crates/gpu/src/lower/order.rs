//! Barriers between steps, and how a matvec's rows are dealt to warps and blocks.

use super::{Gating, Input, LoweredOp, Matvec, Memory, RegionId, Step};

/// Warps of a block.
const WARPS: u32 = crate::ops::DECODE_THREADS / 32;

/// Rows of a quad.
const QUAD_ROWS: usize = 4;

/// Quads that a warp takes at a time, W's and U's together.
const UNIT_QUADS: usize = 2;

/// Columns that a warp takes in a step: 8 groups of 32.
const STEP_COLUMNS: u32 = 256;

/// Warps that may share a row.
const SPLITS: [u32; 4] = [1, 2, 4, 8];

/// How a matvec's rows are dealt out. It depends on the matrix and the number of blocks alone, so
/// that sums are formed in the same order whatever is in a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MatvecShare {
    /// Units of two quads, dealt to blocks one by one.
    pub units: u32,
    /// Warps that share a unit, each a part of its columns.
    pub split: u32,
    /// The block that takes the first unit.
    pub start: u32,
}

impl MatvecShare {
    /// The share of a matrix of so many rows and columns, one of two when `gated`.
    pub fn of(rows: usize, cols: usize, gated: bool, blocks: u32) -> Self {
        let quads = rows.div_ceil(QUAD_ROWS) * if gated { 2 } else { 1 };
        let units = quads.div_ceil(UNIT_QUADS) as u32;
        let steps = (cols as u32).div_ceil(STEP_COLUMNS);
        let warps = WARPS * blocks.max(1);
        // What the busiest warp takes, in tenths of a step: its steps, and what it costs to finish a
        // unit, of one warp or of several that meet for it. From measurements on an H200.
        let cost = |split: &u32| {
            let rounds = units.div_ceil((warps / split).max(1));
            rounds * (10 * steps.div_ceil(*split) + if *split > 1 { 25 } else { 7 })
        };
        let splits = SPLITS.into_iter().filter(|split| *split < 2 * steps.max(1));
        let split = splits.min_by_key(cost).expect("1 is below twice any number of steps");
        Self { units, split, start: 0 }
    }
}

fn whole(region: RegionId) -> Memory {
    Memory::Region(region, 0..usize::MAX)
}

impl Step {
    /// What it reads and what it writes. A matvec's residual, which may be where its results go, is
    /// read by the threads that write there.
    pub fn accesses(&self) -> (Vec<Memory>, Vec<Memory>) {
        let mut reads = vec![];
        let mut writes = vec![];
        match self {
            Self::Embed(embed) => {
                writes.push(embed.out.into());
                writes.extend(embed.ropes.iter().map(|rope| whole(rope.angles)));
            }
            Self::Matvec(matvec) => matvec.accesses(&mut reads, &mut writes),
            Self::Attention(attention) => {
                let rows = [attention.q, attention.k, attention.v];
                reads.extend(rows.map(Memory::from));
                reads.extend(attention.angles.map(whole));
                writes.push(attention.out.into());
                writes.push(Memory::Cache(attention.layer));
                writes.extend([attention.partials, attention.arrivals].map(whole));
            }
            Self::Norm(norm) => {
                reads.push(norm.x.into());
                reads.extend(norm.residual.map(Memory::from));
                writes.push(norm.out.into());
            }
            Self::Sample(sample) => {
                reads.extend([sample.logits.into(), whole(sample.maxima)]);
                writes.extend([whole(sample.chosen), Memory::Choices]);
            }
        }
        (reads, writes)
    }
}

impl Matvec {
    fn accesses(&self, reads: &mut Vec<Memory>, writes: &mut Vec<Memory>) {
        match self.input {
            Input::Plain(x) | Input::RmsNorm { x, .. } => reads.push(x.into()),
            Input::AddRmsNorm { x, block, stream, .. } => {
                reads.extend([x, block].map(Memory::from));
                writes.extend(stream.map(Memory::from));
            }
        }
        if let Some(Gating::By(gate, _)) = self.gating {
            reads.push(gate.into());
        }
        reads.extend(self.residual.map(Memory::from));
        writes.push(self.y.into());
        writes.extend(self.maxima.map(whole));
    }
}

/// Puts barriers where a step touches what steps since the last one have written, or writes what
/// they have read; and deals rows to blocks so that steps without a barrier between them go on
/// where the one before has ended.
pub(super) fn order(steps: Vec<Step>, blocks: u32) -> Vec<LoweredOp> {
    let mut ops: Vec<LoweredOp> = Vec::with_capacity(steps.len());
    let (mut read, mut written): (Vec<Memory>, Vec<Memory>) = (vec![], vec![]);
    let mut next = 0;
    for mut step in steps {
        let (reads, writes) = step.accesses();
        let meets = |ours: &[Memory], theirs: &[Memory]| {
            ours.iter().any(|a| theirs.iter().any(|b| a.meets(b)))
        };
        // The pass before has ended when the first op begins.
        let awaits = ops.is_empty()
            || meets(&reads, &written)
            || meets(&writes, &written)
            || meets(&writes, &read);
        if awaits {
            ops.last_mut().into_iter().for_each(|last| last.announces = true);
            (read, written) = (vec![], vec![]);
            next = 0;
        }
        read.extend(reads);
        written.extend(writes);
        if let Step::Matvec(matvec) = &mut step {
            let gated = matches!(matvec.gating, Some(Gating::Up(..)));
            let share = MatvecShare::of(matvec.rows, matvec.cols, gated, blocks);
            matvec.share = MatvecShare { start: next, ..share };
            next = (next + share.units) % blocks.max(1);
        }
        ops.push(LoweredOp { awaits, announces: false, step });
    }
    ops.last_mut().into_iter().for_each(|last| last.announces = true);
    ops
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_split_only_where_warps_would_be_idle() {
        // 24 blocks have 384 warps.
        let split = |rows, cols| MatvecShare::of(rows, cols, false, 24).split;
        assert_eq!(split(384 * 8, 4096), 1, "one unit for each warp");
        assert_eq!(split(152_064, 4096), 1, "the head of a large vocabulary");
        assert_eq!(split(1024, 4096), 2, "128 units for 384 warps: 3 fit, 2 and 4 do not");
        assert_eq!(split(256, 4096), 8);
        assert_eq!(split(256, 512), 1, "of few steps, meeting costs more than it saves");
        assert_eq!(split(256, 32), 1);
    }

    #[test]
    fn gated_rows_take_twice_the_units() {
        assert_eq!(MatvecShare::of(512, 256, true, 24).units, 128);
        assert_eq!(MatvecShare::of(513, 256, false, 24).units, 65);
    }
}
