//! A checked view of the same block of several weight rows.

/// The block at one column position of `count` consecutive rows.
///
/// Having a `Rows` means: `bytes` bytes may be read at `start + r * stride` for every `r < count`.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    start: &'a [u8],
    stride: usize,
    count: usize,
    bytes: usize,
}

impl<'a> Rows<'a> {
    /// The `bytes` bytes at `at` of each of the `count` rows of `stride` bytes in `data`.
    ///
    /// # Panics
    /// When the last one would end past `data`.
    #[inline(always)]
    pub(super) fn new(
        data: &'a [u8],
        stride: usize,
        count: usize,
        at: usize,
        bytes: usize,
    ) -> Self {
        let start = &data[at..];
        assert!(count >= 1 && (count - 1) * stride + bytes <= start.len());
        Self { start, stride, count, bytes }
    }

    /// The first row, if `len` bytes at `at` of each of `count` rows may be read; row `r`'s are
    /// `r * stride()` bytes further.
    ///
    /// # Panics
    /// When they may not. Folded away where `at`, `len` and the block's size are constants.
    #[inline(always)]
    pub(super) fn pointer(&self, at: usize, len: usize, count: usize) -> *const u8 {
        assert!(count <= self.count && at + len <= self.bytes);
        self.start[at..].as_ptr()
    }

    /// Bytes from one row to the next.
    #[inline(always)]
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// `N` bytes at `at` of row `row`.
    #[inline(always)]
    pub(super) fn bytes<const N: usize>(&self, row: usize, at: usize) -> [u8; N] {
        let start = row * self.stride + at;
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.start[start..start + N]);
        bytes
    }
}
