//! Words that the host and a running kernel both see.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::device::Device;
use crate::driver::{Garbage, PinnedMemory};
use crate::error::CudaError;

/// Zeroed words in the host's pinned memory that kernels read and write in place: how the host
/// talks to a kernel that is running. A cheap handle; the memory goes back with the last clone and
/// the last [`Graph`](crate::Graph) that has it.
///
/// An access of the device crosses the bus and takes about a microsecond, so keep few words, and
/// poll them with few threads. A kernel makes its writes visible in order with a system-wide fence;
/// the host pairs acquire loads and release stores with those.
#[derive(Clone)]
pub struct Mailbox {
    inner: Arc<Inner>,
}

struct Inner {
    /// `Some` until dropped; seen through [`PinnedMemory::words`] alone.
    memory: Option<PinnedMemory>,
    address: u64,
    device: Device,
}

impl Mailbox {
    /// `words` words, all 0.
    pub fn new(device: &Device, words: usize) -> Result<Self, CudaError> {
        // The driver gives out whole pages, and nothing for nothing.
        let bytes = words.max(1).saturating_mul(4);
        let (memory, address) = device.driver()?.allocate_mapped(bytes)?;
        let device = device.clone();
        Ok(Self { inner: Arc::new(Inner { memory: Some(memory), address, device }) })
    }

    /// All words. Words 0, 32, 64 and so on begin lines of 128 bytes.
    pub fn words(&self) -> &[AtomicU32] {
        let memory = self.inner.memory.as_ref().expect("present until dropped");
        // SAFETY: nothing here sees this memory otherwise.
        unsafe { memory.words() }
    }

    /// The word of this number.
    ///
    /// # Panics
    /// If there are not that many words.
    pub fn word(&self, number: usize) -> &AtomicU32 {
        &self.words()[number]
    }

    /// Where the device finds the words.
    pub(crate) fn address(&self) -> u64 {
        self.inner.address
    }

    pub(crate) fn device(&self) -> &Device {
        &self.inner.device
    }

    pub(crate) fn kept(&self) -> &dyn crate::graph::Keep {
        &self.inner
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            self.device.discard(Garbage::Pinned(memory));
        }
    }
}
