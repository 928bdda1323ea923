//! Bounds-checked little-endian reading.

/// Why a read failed; the parser adds where in the file's structure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Short {
    pub(crate) offset: usize,
    pub(crate) needed: u64,
    pub(crate) available: usize,
}

/// A position in a file. Reads move it forward or fail and leave it where it was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Cursor<'a> {
    /// A cursor at `pos`; reads fail when it lies behind the end.
    pub(crate) fn at(bytes: &'a [u8], pos: usize) -> Self {
        Self { bytes, pos }
    }

    pub(crate) fn pos(&self) -> usize {
        self.pos
    }

    /// Bytes from here to the end.
    pub(crate) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.pos)
    }

    pub(crate) fn take(&mut self, n: u64) -> Result<&'a [u8], Short> {
        let short = Short { offset: self.pos, needed: n, available: self.left() };
        let n = usize::try_from(n).map_err(|_| short)?;
        let end = self.pos.checked_add(n).ok_or(short)?;
        let taken = self.bytes.get(self.pos..end).ok_or(short)?;
        self.pos = end;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let short = Short { offset: self.pos, needed: N as u64, available: self.left() };
        let chunk = self.bytes.get(self.pos..).and_then(<[u8]>::first_chunk::<N>).ok_or(short)?;
        self.pos += N;
        Ok(*chunk)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }

    /// A string's bytes: a `u64` length, then that many bytes.
    #[inline]
    pub(crate) fn string(&mut self) -> Result<&'a [u8], Short> {
        let start = self.pos;
        let length = self.u64()?;
        self.take(length).inspect_err(|_| self.pos = start)
    }
}
