//! Barriers between steps.

use super::{Gating, Input, LoweredOp, Marks, Matvec, Memory, RegionId, Step};

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
        writes.extend(self.sums.map(whole));
    }
}

/// Puts barriers where a step touches what steps since the last one have written, or writes what
/// they have read.
pub(super) fn order(steps: Vec<Step>, blocks: u32) -> Vec<LoweredOp> {
    let mut ops: Vec<LoweredOp> = Vec::with_capacity(steps.len());
    let (mut read, mut written): (Vec<Memory>, Vec<Memory>) = (vec![], vec![]);
    for step in steps {
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
        }
        read.extend(reads);
        written.extend(writes);
        ops.push(LoweredOp {
            awaits,
            announces: false,
            open: false,
            marks: Marks::default(),
            blocks: 0..blocks,
            step,
        });
    }
    ops.last_mut().into_iter().for_each(|last| last.announces = true);
    for together in ops.chunk_by_mut(|_, next| !next.awaits) {
        share(together, blocks);
    }
    ops
}

/// Has products that wait for nothing between them done side by side, each by some of the blocks. Not those
/// that have a barrier within.
fn share(together: &mut [LoweredOp], blocks: u32) {
    let rows = |op: &LoweredOp| match &op.step {
        Step::Matvec(matvec) if matvec.sums.is_none() => Some(matvec.rows as u64),
        _ => None,
    };
    let Some(rows) = together.iter().map(rows).collect::<Option<Vec<_>>>() else { return };
    let count = rows.len() as u32;
    if count < 2 || blocks < count {
        return;
    }
    let (all, mut done, mut first) = (rows.iter().sum::<u64>(), 0, 0);
    for (i, (op, rows)) in (1..).zip(together.iter_mut().zip(rows)) {
        done += rows;
        let end = ((done * u64::from(blocks) + all / 2) / all) as u32;
        let end = end.clamp(first + 1, blocks - (count - i));
        op.blocks = first..end;
        first = end;
    }
}
