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
        let meets = |held: &&Held| {
            held.region == view.region
                && held.columns.start < view.columns().end
                && view.columns().start < held.columns.end
        };
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
            let (start, end) = (held.columns.start, held.columns.end);
            for rest in [start..end.min(columns.start), start.max(columns.end)..end] {
                if !rest.is_empty() {
                    kept.push(Held { columns: rest, ..held });
                }
            }
        }
        kept.push(Held { region: *region, columns: columns.clone(), mark });
        self.0 = kept;
    }
}

/// Gives each op its marks, and says which barriers are open.
pub(super) fn mark(ops: &mut [LoweredOp]) {
    let mut contents = Contents::default();
    let mut turned = vec![false; ops.len()];
    for (op, turned) in ops.iter_mut().zip(&mut turned) {
        op.marks.inputs = op.step.inputs().map(|view| view.and_then(|view| contents.mark(view)));
        let marked = op.step.marked();
        let before = marked.and_then(|view| contents.mark(view));
        *turned = before.is_some();
        op.marks.written = before.is_some_and(|mark| !mark);
        for memory in op.step.accesses().1 {
            let is_marked = marked.is_some_and(|view| memory == view.into());
            contents.write(&memory, is_marked.then_some(op.marks.written));
        }
    }
    let arrives: Vec<bool> = (0..ops.len()).map(|at| turned[at] && is_seen(ops, at)).collect();
    let mut first = 0;
    for at in 0..ops.len() {
        if ops[at].announces {
            ops[at].open = at + 1 < ops.len() && arrives[first..=at].iter().all(|arrives| *arrives);
            first = at + 1;
        }
    }
}

/// Whether all that an op writes is read by its marks, all of it, before something else is written there.
fn is_seen(ops: &[LoweredOp], at: usize) -> bool {
    let Some(view) = ops[at].step.marked() else { return false };
    let writes = ops[at].step.accesses().1;
    let mut unseen = vec![view.columns()];
    for op in &ops[at + 1..] {
        let (reads, overwrites) = op.step.accesses();
        for (input, mark) in op.step.inputs().iter().zip(op.marks.inputs) {
            let read = input.filter(|input| mark.is_some() && input.region == view.region);
            unseen = unseen.into_iter().flat_map(|rest| without(rest, read)).collect();
        }
        let by_marks = |read: &Memory| {
            let inputs = op.step.inputs().into_iter().zip(op.marks.inputs);
            inputs
                .into_iter()
                .any(|(input, mark)| mark.is_some() && input.map(Into::into) == Some(read.clone()))
        };
        if reads.iter().any(|read| writes.iter().any(|write| write.meets(read)) && !by_marks(read))
        {
            return false;
        }
        if overwrites.iter().any(|write| write.meets(&view.into())) {
            return unseen.is_empty();
        }
    }
    unseen.is_empty()
}

/// What is left of columns without those of a view.
fn without(columns: Range<usize>, view: Option<View>) -> Vec<Range<usize>> {
    let read = view.map_or(0..0, |view| view.columns());
    if read.is_empty() {
        return vec![columns];
    }
    let rest =
        [columns.start..columns.end.min(read.start), columns.start.max(read.end)..columns.end];
    rest.into_iter().filter(|rest| !rest.is_empty()).collect()
}
