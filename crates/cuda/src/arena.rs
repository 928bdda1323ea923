//! The one allocation on the device, and the buffers in it.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::device::Device;
use crate::driver::{DeviceMemory, Garbage};
use crate::element::Element;
use crate::error::CudaError;
use crate::graph::Keep;
use crate::suballocator::{Block, Exhausted, SubAllocator};

/// The device memory that this process has: taken from the driver once, given out in parts without
/// asking it again, so that memory comes and goes beside a resident kernel. A cheap handle; the
/// memory goes back when the last clone and the last [`DeviceSlice`] are gone.
#[derive(Clone, Debug)]
pub struct Arena {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    blocks: Mutex<SubAllocator>,
    /// Where they begin, an address.
    start: u64,
    memory: Memory,
    device: Device,
}

/// What an arena gives out parts of.
#[derive(Debug)]
enum Memory {
    /// `Some` until dropped.
    Own(Option<DeviceMemory>),
    /// A buffer of another arena.
    Piece(DeviceSlice<u8>),
}

/// How an [`Arena`] is used, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaUse {
    /// All of it.
    pub capacity: u64,
    /// Not given out.
    pub free: u64,
    /// The largest piece that is not: the largest request that succeeds.
    pub largest: u64,
}

impl Arena {
    /// Takes `bytes` bytes of the device's memory.
    pub fn new(device: &Device, bytes: u64) -> Result<Self, CudaError> {
        let memory = device.driver()?.allocate(bytes)?;
        let (start, memory) = (memory.address, Memory::Own(Some(memory)));
        Ok(Self::of(device, start, bytes, memory))
    }

    /// So many of its bytes in one piece, as an arena of their own. What has parts of such a piece leaves
    /// it as one when it goes, however it came beside others. Addresses are counted from the start of the
    /// whole arena all the same, and the piece goes back when its last handle and buffer are gone.
    ///
    /// # Errors
    /// [`CudaError::ArenaExhausted`] if no piece is large enough.
    pub fn piece(&self, bytes: u64) -> Result<Self, CudaError> {
        let block = self.inner.take(bytes)?;
        let bytes = block.bytes();
        let piece = self.buffer(block, bytes as usize);
        Ok(Self::of(self.device(), piece.address, bytes, Memory::Piece(piece)))
    }

    fn of(device: &Device, start: u64, bytes: u64, memory: Memory) -> Self {
        let (blocks, device) = (Mutex::new(SubAllocator::new(bytes)), device.clone());
        Self { inner: Arc::new(Inner { blocks, start, memory, device }) }
    }

    /// The device whose memory this is.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// A buffer of `len` elements, with whatever the memory held before.
    pub fn allocate<T: Element>(&self, len: usize) -> Result<DeviceSlice<T>, CudaError> {
        let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
        Ok(self.buffer(self.inner.take(bytes)?, len))
    }

    fn buffer<T>(&self, block: Block, len: usize) -> DeviceSlice<T> {
        let (address, block) = (self.inner.start + block.offset(), Some(block));
        DeviceSlice { address, len, block, arena: self.inner.clone(), elements: PhantomData }
    }

    /// Where the whole arena begins on the device.
    pub(crate) fn address(&self) -> u64 {
        self.inner.address()
    }

    pub(crate) fn kept(&self) -> &dyn Keep {
        &self.inner
    }

    /// How much is given out and how much is left.
    pub fn usage(&self) -> ArenaUse {
        let blocks = self.inner.blocks();
        let (capacity, free) = (blocks.capacity(), blocks.free());
        ArenaUse { capacity, free, largest: blocks.largest() }
    }
}

impl Inner {
    fn take(&self, bytes: u64) -> Result<Block, CudaError> {
        self.blocks().allocate(bytes).map_err(|Exhausted { asked, free, largest }| {
            CudaError::ArenaExhausted { asked, free, largest }
        })
    }

    fn address(&self) -> u64 {
        match &self.memory {
            Memory::Own(_) => self.start,
            Memory::Piece(piece) => piece.arena.address(),
        }
    }

    fn blocks(&self) -> MutexGuard<'_, SubAllocator> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Memory::Own(memory) = &mut self.memory
            && let Some(memory) = memory.take()
        {
            self.device.discard(Garbage::Memory(memory));
        }
    }
}

/// A buffer of `len` elements in an [`Arena`], which begins at a multiple of
/// [`ALIGNMENT`](crate::ALIGNMENT) and goes back when dropped. It goes back at once: who dropped it
/// with work enqueued on it gives the next owner that work's writes, so wait for that work first.
#[must_use = "it goes back when dropped"]
pub struct DeviceSlice<T> {
    address: u64,
    len: usize,
    /// `Some` until dropped.
    block: Option<Block>,
    arena: Arc<Inner>,
    elements: PhantomData<T>,
}

impl<T: Element> DeviceSlice<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it begins, counted in bytes from the start of the whole arena: a multiple of
    /// [`ALIGNMENT`](crate::ALIGNMENT), thus of 16. Kernels that get the whole arena
    /// ([`Launch::arena`](crate::Launch::arena)) find it by this number.
    pub fn offset(&self) -> u64 {
        self.address - self.arena.address()
    }

    /// All of it, for reading.
    pub fn all(&self) -> View<'_, T> {
        let Self { address, len, .. } = *self;
        View { address, len, arena: &self.arena, elements: PhantomData }
    }

    /// All of it, for writing.
    pub fn all_mut(&mut self) -> ViewMut<'_, T> {
        ViewMut { view: self.all(), exclusive: PhantomData }
    }

    /// These elements, for reading; `None` if there are not that many.
    pub fn view(&self, elements: Range<usize>) -> Option<View<'_, T>> {
        self.all().narrow(elements)
    }

    /// These elements, for writing; `None` if there are not that many.
    pub fn view_mut(&mut self, elements: Range<usize>) -> Option<ViewMut<'_, T>> {
        Some(ViewMut { view: self.view(elements)?, exclusive: PhantomData })
    }
}

impl<T> fmt::Debug for DeviceSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("DeviceSlice");
        out.field("len", &self.len).field("block", &self.block).finish_non_exhaustive()
    }
}

impl<T> Drop for DeviceSlice<T> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.arena.blocks().release(block);
        }
    }
}

/// Elements on the device, to be read.
#[derive(Clone, Copy, Debug)]
pub struct View<'a, T> {
    pub(crate) address: u64,
    len: usize,
    arena: &'a Arc<Inner>,
    elements: PhantomData<&'a [T]>,
}

impl<'a, T: Element> View<'a, T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Some of these elements; `None` if there are not that many.
    pub fn narrow(self, elements: Range<usize>) -> Option<Self> {
        let len = elements.end.checked_sub(elements.start)?;
        let skipped = elements.start as u64 * size_of::<T>() as u64;
        let address = self.address + skipped;
        (elements.end <= self.len).then_some(Self { address, len, ..self })
    }

    pub(crate) fn device(&self) -> &'a Device {
        &self.arena.device
    }

    pub(crate) fn kept(&self) -> &'a dyn Keep {
        self.arena
    }
}

/// Elements on the device, to be written.
#[derive(Debug)]
pub struct ViewMut<'a, T> {
    view: View<'a, T>,
    exclusive: PhantomData<&'a mut [T]>,
}

impl<'a, T: Element> ViewMut<'a, T> {
    /// The same, for reading.
    pub fn read(&self) -> View<'_, T> {
        self.view
    }

    /// The first `elements` elements and the others; `None` if there are not that many.
    pub fn split_at(self, elements: usize) -> Option<(Self, Self)> {
        let (first, rest) = (0..elements, elements..self.view.len);
        let part = |range| Some(Self { view: self.view.narrow(range)?, exclusive: PhantomData });
        Some((part(first)?, part(rest)?))
    }

    pub(crate) fn into_view(self) -> View<'a, T> {
        self.view
    }
}
