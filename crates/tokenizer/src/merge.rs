//! Merging adjacent symbols, best pair first: what byte-pair encoding and SentencePiece's greedy
//! encoder have in common.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No token.
pub(crate) const NONE: u32 = u32::MAX;

/// No neighbour.
const END: usize = usize::MAX;

/// A stretch of the text being encoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Symbol {
    /// Byte offset in the text.
    pub(crate) start: usize,
    /// Bytes; 0 once merged into its left neighbour.
    pub(crate) len: usize,
    /// The token of this stretch, [`NONE`] when it has none.
    pub(crate) id: u32,
    prev: usize,
    next: usize,
}

/// What may be merged.
pub(crate) trait Pairs {
    /// The token that `left` and `right`, neighbours, merge into, and the merge's rank: the lowest
    /// rank goes first, the leftmost of equals.
    fn pair(&self, left: &Symbol, right: &Symbol) -> Option<(u32, u32)>;
}

/// A possible merge: rank, index of the left symbol, bytes of both together, resulting token.
type Candidate = Reverse<(u32, usize, usize, u32)>;

/// The merge loop and its memory, kept from text to text. O(n log n) in the number of symbols: each
/// merge removes a symbol and offers at most two new pairs.
#[derive(Debug, Default)]
pub(crate) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

impl Merger {
    /// Merges `symbols` (start, length, token) until no pair can be, then gives what is left, in
    /// order.
    pub(crate) fn run(
        &mut self,
        symbols: impl Iterator<Item = (usize, usize, u32)>,
        pairs: &impl Pairs,
        mut each: impl FnMut(&Symbol),
    ) {
        self.symbols.clear();
        self.queue.clear();
        for (start, len, id) in symbols {
            let index = self.symbols.len();
            let prev = index.checked_sub(1).unwrap_or(END);
            self.symbols.push(Symbol { start, len, id, prev, next: index + 1 });
        }
        let Some(last) = self.symbols.last_mut() else { return };
        last.next = END;
        for right in 1..self.symbols.len() {
            self.offer(right - 1, right, pairs);
        }
        while let Some(Reverse((_, left, len, id))) = self.queue.pop() {
            self.merge(left, len, id, pairs);
        }
        self.symbols.iter().filter(|symbol| symbol.len > 0).for_each(&mut each);
    }

    fn offer(&mut self, left: usize, right: usize, pairs: &impl Pairs) {
        if left == END || right == END {
            return;
        }
        let (left_symbol, right_symbol) = (&self.symbols[left], &self.symbols[right]);
        if let Some((rank, id)) = pairs.pair(left_symbol, right_symbol) {
            let len = left_symbol.len + right_symbol.len;
            self.queue.push(Reverse((rank, left, len, id)));
        }
    }

    /// Carries out a candidate unless one of its symbols has changed since. Symbols only grow or
    /// vanish, so the same total length means the same two symbols.
    fn merge(&mut self, left: usize, len: usize, id: u32, pairs: &impl Pairs) {
        let Symbol { len: left_len, prev, next: right, .. } = self.symbols[left];
        if left_len == 0 || right == END {
            return;
        }
        let Symbol { len: right_len, next, .. } = self.symbols[right];
        if left_len + right_len != len {
            return;
        }
        self.symbols[right].len = 0;
        let merged = &mut self.symbols[left];
        (merged.len, merged.id, merged.next) = (len, id, next);
        if next != END {
            self.symbols[next].prev = left;
        }
        self.offer(prev, left, pairs);
        self.offer(left, next, pairs);
    }
}
