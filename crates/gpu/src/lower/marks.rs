//! Barriers that need no fence.
//!
//! A block that announces an op waits first until what it wrote is where others see it, which on a small
//! model is a tenth of the time. Instead the last bit of each number that a product or attention writes is a
//! *mark*: another one than that of the number before in its place, so that a reader knows an old number,
//! and reads again. A barrier is *open*, without a fence, if all that was written since the one before is read
//! so, and if it is known which marks were there before: in each pass the first write to a place is not open.
//! What a pass leaves to the next one is behind its last barrier, which never is.
//!
//! A place is written again only behind a barrier that its readers announce; who has seen a number knows that
//! it has arrived, so that an old number never arrives after a new one.

use std::ops::Range;

use super::{Input, LoweredOp, Memory, RegionId, Step, View};

/// Last bits of an op's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Of what a product or attention writes.
    pub written: bool,
    /// Of inputs, if they have any: of a product, rows and residual; of attention, queries, keys and values.
    pub inputs: [Option<bool>; 3],
}

impl Step {
    /// What has marks when it is written.
    fn marked(&self) -> Option<View> {
        match self {
            Self::Matvec(matvec) => Some(matvec.y),
            Self::Attention(attention) => Some(attention.out),
            Self::Embed(_) | Self::Norm(_) | Self::Sample(_) => None,
        }
    }

    /// What is read by its marks, if it has any: see [`Marks::inputs`].
    fn inputs(&self) -> [Option<View>; 3] {
        match self {
            Self::Matvec(matvec) => {
                let rows = match matvec.input {
                    Input::Plain(x) | Input::RmsNorm { x, .. } => Some(x),
                    Input::AddRmsNorm { .. } => None,
                };
                [rows, matvec.residual, None]
            }
            Self::Attention(attention) => [attention.q, attention.k, attention.v].map(Some),
            Self::Embed(_) | Self::Norm(_) | Self::Sample(_) => [None; 3],
        }
    }
}

/// A stretch of memory that was written last by one op, and its marks if they are known.
struct Held {
    region: RegionId,
    columns: Range<usize>,
    mark: Option<bool>,
}

/// What memory holds at some op.
#[derive(Default)]
struct Contents(Vec<Held>);

impl Contents {
    /// The mark of all of a view.
    fn mark(&self, view: View) -> Option<bool> {
        let meets =
            |held: &&Held| Memory::Region(held.region, held.columns.clone()).meets(&view.into());
        let mut parts = self.0.iter().filter(meets);
        let first = parts.next()?;
        let covered = |held: &Held| {
            let (from, to) = (held.columns.start, held.columns.end);
            to.min(view.columns().end) - from.max(view.columns().start)
        };
        let mut width = covered(first);
        for part in parts {
            width += covered(part);
            (part.mark == first.mark).then_some(())?;
        }
        first.mark.filter(|_| width == view.width)
    }

    /// Something was written.
    fn write(&mut self, memory: &Memory, mark: Option<bool>) {
        let Memory::Region(region, columns) = memory else { return };
        let mut kept = vec![];
        for held in self.0.drain(..) {
            if held.region != *region {
                kept.push(held);
                continue;
            }
            let rest = outside(held.columns, columns);
            kept.extend(rest.map(|rest| Held { columns: rest, ..held }));
        }
        kept.push(Held { region: *region, columns: columns.clone(), mark });
        self.0 = kept;
    }
}

/// Gives each op its marks, and says which barriers are open.
pub(super) fn mark(ops: &mut [LoweredOp]) {
    let mut contents = Contents::default();
    let accesses: Vec<_> = ops.iter().map(|op| op.step.accesses()).collect();
    let mut turned = vec![false; ops.len()];
    for ((op, (_, writes)), turned) in ops.iter_mut().zip(&accesses).zip(&mut turned) {
        op.marks.inputs = op.step.inputs().map(|view| view.and_then(|view| contents.mark(view)));
        let marked = op.step.marked();
        let before = marked.and_then(|view| contents.mark(view));
        *turned = before.is_some();
        op.marks.written = before.is_some_and(|mark| !mark);
        for memory in writes {
            let is_marked = marked.is_some_and(|view| *memory == view.into());
            contents.write(memory, is_marked.then_some(op.marks.written));
        }
    }
    let arrives: Vec<bool> =
        (0..ops.len()).map(|at| turned[at] && is_seen(ops, &accesses, at)).collect();
    let mut first = 0;
    for at in 0..ops.len() {
        if ops[at].announces {
            ops[at].open = at + 1 < ops.len() && arrives[first..=at].iter().all(|arrives| *arrives);
            first = at + 1;
        }
    }
}

/// Whether all that an op writes is read by its marks, all of it, before something else is written there.
/// accesses: of each op, what it reads and writes
fn is_seen(ops: &[LoweredOp], accesses: &[(Vec<Memory>, Vec<Memory>)], at: usize) -> bool {
    let Some(view) = ops[at].step.marked() else { return false };
    let marked = Memory::from(view);
    let mut others = accesses[at].1.iter().filter(|write| **write != marked);
    let later = at + 1..ops.len();
    let is_read = |write: &Memory| {
        accesses[later.clone()].iter().any(|(reads, _)| reads.iter().any(|read| read.meets(write)))
    };
    if others.any(is_read) {
        return false;
    }
    let mut unseen = vec![view.columns()];
    for (op, (reads, writes)) in ops[later.clone()].iter().zip(&accesses[later.clone()]) {
        for read in reads.iter().filter(|read| read.meets(&marked)) {
            let Memory::Region(_, columns) = read else { continue };
            if !op.reads_by_marks(read) {
                return false;
            }
            unseen = unseen.into_iter().flat_map(|rest| outside(rest, columns)).collect();
        }
        if writes.iter().any(|write| write.meets(&marked)) {
            break;
        }
    }
    unseen.is_empty()
}

impl LoweredOp {
    fn reads_by_marks(&self, read: &Memory) -> bool {
        let mut inputs = self.step.inputs().into_iter().zip(self.marks.inputs);
        inputs.any(|(input, mark)| mark.is_some() && input.map(Memory::from).as_ref() == Some(read))
    }
}

/// What is left of columns without others.
fn outside(columns: Range<usize>, others: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let (start, end) = (columns.start, columns.end);
    let rest = [start..end.min(others.start), start.max(others.end)..end];
    rest.into_iter().filter(|rest| !rest.is_empty())
}
