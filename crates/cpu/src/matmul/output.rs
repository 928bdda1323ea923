//! Where several threads write one result.

use std::marker::PhantomData;

/// A result `[n, rows]`, row-major, whose columns are shared out over threads.
pub(super) struct Output<'a> {
    start: *mut f32,
    n: usize,
    rows: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is the only way to the floats while the borrow lasts, and `part` hands out
// pieces under a contract that keeps those of different threads apart.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    /// # Panics
    /// When `out` is not `n * rows` long.
    pub(super) fn new(out: &'a mut [f32], n: usize, rows: usize) -> Self {
        assert_eq!(out.len(), n * rows, "a result is [{n}, {rows}]");
        Self { start: out.as_mut_ptr(), n, rows, borrow: PhantomData }
    }

    /// Columns `first..first + count` of row `i`.
    ///
    /// # Safety
    /// While the part lives, no other part that overlaps it may.
    ///
    /// # Panics
    /// When there are no such columns or row.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the contract keeps parts disjoint")]
    pub(super) unsafe fn part(&self, i: usize, first: usize, count: usize) -> &mut [f32] {
        assert!(i < self.n && first <= self.rows && count <= self.rows - first);
        // The assertion keeps the address inside the borrowed slice.
        let part = self.start.wrapping_add(i * self.rows + first);
        // SAFETY: inside the slice, which stays mutably borrowed for 'a; not aliased, as promised.
        unsafe { std::slice::from_raw_parts_mut(part, count) }
    }
}
