//! Where each buffer lies in one scratch arena, so that a pass allocates nothing.
//!
//! A buffer lives from its first write to its last use. Buffers whose lives do not meet share
//! bytes. Offsets are multiples of [`ALIGN_FLOATS`], so every row block starts on a cache line.

use crate::op::{BufferId, Op, RowSet};
use crate::program::Program;

/// Alignment of each buffer in floats: one 64-byte line, or the widest vector register.
pub const ALIGN_FLOATS: usize = 16;

/// Offsets of every buffer for passes of at most `rows` tokens, `logit_rows` of them with logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Start of each buffer, in floats.
    pub offsets: Vec<usize>,
    /// Length of the arena, in floats.
    pub floats: usize,
    /// Most tokens of a pass.
    pub rows: usize,
    /// Most tokens of a pass that want logits.
    pub logit_rows: usize,
}

impl MemoryPlan {
    /// Plans the arena: largest buffers first, each at the lowest offset where it meets no other
    /// buffer that is alive at the same time.
    pub fn new(program: &Program, rows: usize, logit_rows: usize) -> Self {
        let lives = lifetimes(program, &program.ops, program.result());
        Self::of(program, &lives, rows, logit_rows)
    }

    /// The same for passes that end with the hidden states: what only the head needs has no room.
    pub fn to_hidden(program: &Program, rows: usize, hidden_rows: usize) -> Self {
        let lives = lifetimes(program, program.ops_to_hidden(), program.hidden);
        Self::of(program, &lives, rows, hidden_rows)
    }

    fn of(program: &Program, lives: &[Lifetime], rows: usize, logit_rows: usize) -> Self {
        let size = |i: usize| {
            if lives[i].is_empty() {
                return 0;
            }
            let buffer = &program.buffers[i];
            let n = if buffer.rows == RowSet::All { rows } else { logit_rows };
            (n * buffer.width).next_multiple_of(ALIGN_FLOATS)
        };
        let mut order: Vec<usize> = (0..lives.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(size(i)), i));

        let mut offsets = vec![0; lives.len()];
        let mut placed: Vec<usize> = Vec::with_capacity(lives.len());
        for i in order {
            let mut taken: Vec<(usize, usize)> = placed
                .iter()
                .filter(|&&j| lives[i].meets(&lives[j]))
                .map(|&j| (offsets[j], offsets[j] + size(j)))
                .collect();
            taken.sort_unstable();
            offsets[i] = taken.iter().fold(
                0,
                |at, &(start, end)| {
                    if at + size(i) <= start { at } else { at.max(end) }
                },
            );
            placed.push(i);
        }
        let floats = placed.iter().map(|&i| offsets[i] + size(i)).max().unwrap_or(0);
        Self { offsets, floats, rows, logit_rows }
    }

    /// Start of a buffer in the arena, in floats.
    pub fn offset(&self, id: BufferId) -> usize {
        self.offsets[usize::from(id.0)]
    }

    /// Bytes of the arena.
    pub fn bytes(&self) -> u64 {
        self.floats as u64 * 4
    }
}

/// First and last op that touch a buffer; empty (first > last) when none does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lifetime {
    first: usize,
    last: usize,
}

impl Lifetime {
    fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn is_empty(&self) -> bool {
        self.first > self.last
    }
}

/// Lives of all buffers in a pass of these ops, after which `result` is read.
fn lifetimes(program: &Program, ops: &[Op], result: BufferId) -> Vec<Lifetime> {
    let mut lives = vec![Lifetime { first: usize::MAX, last: 0 }; program.buffers.len()];
    let mut touch = |id: BufferId, at: usize| {
        let life = &mut lives[usize::from(id.0)];
        life.first = life.first.min(at);
        life.last = life.last.max(at);
    };
    for (at, op) in ops.iter().enumerate() {
        for id in op.reads().into_iter().chain(op.writes()) {
            touch(id, at);
        }
    }
    touch(result, ops.len());
    lives
}
