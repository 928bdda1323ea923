//! Copies between host and device through pinned memory.

use crate::arena::{View, ViewMut};
use crate::device::Device;
use crate::driver::{Garbage, PinnedMemory};
use crate::element::{Element, cast, cast_mut};
use crate::error::CudaError;
use crate::stream::{Event, Priority, Stream};

/// Two: one is filled while the other travels. More only help a filler of uneven speed.
const SLOTS: usize = 2;

/// A stream of its own and pinned buffers that its copies go through. The copy engines read pinned
/// memory by themselves, so a copy holds up neither the host nor a kernel.
#[derive(Debug)]
pub struct StagingRing {
    slots: [Slot; SLOTS],
    /// The slot to use next: the one whose copy is the oldest.
    next: usize,
    stream: Stream,
}

#[derive(Debug)]
struct Slot {
    /// `Some` until dropped.
    memory: Option<PinnedMemory>,
    /// Reached when the slot's last copy is done.
    copied: Event,
    device: Device,
}

impl StagingRing {
    /// A ring whose buffers have `slot_bytes` bytes each, at least one page's 4096.
    pub fn new(device: &Device, slot_bytes: usize) -> Result<Self, CudaError> {
        let slot = || Slot::new(device, slot_bytes.max(4096));
        Ok(Self { slots: [slot()?, slot()?], next: 0, stream: device.stream(Priority::Low)? })
    }

    /// The stream of the copies.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Fills `to`, piece by piece: `fill` gets the number of the first element and the room for a
    /// piece, writes all of it, and is called again while that piece travels. On return the last
    /// pieces may still travel; work of other streams waits for an event recorded in
    /// [`Self::stream`]. After an error of `fill` part of `to` is written.
    pub fn upload<T: Element, E: From<CudaError>>(
        &mut self,
        to: ViewMut<'_, T>,
        mut fill: impl FnMut(usize, &mut [T]) -> Result<(), E>,
    ) -> Result<(), E> {
        let to = to.into_view();
        let mut first = 0;
        while first < to.len() {
            let slot = self.slots.get_mut(self.next).expect("below the number of slots");
            // What travels from it must have left before it is written again.
            slot.copied.wait()?;
            let memory = slot.memory.as_mut().expect("present until dropped");
            let room = cast_mut::<T>(memory.bytes_mut());
            let len = room.len().min(to.len() - first);
            fill(first, &mut room[..len])?;
            let part = to.narrow(first..first + len).expect("within the whole");
            // SAFETY: the range was just filled; it is written or freed only after `copied`, which
            // is recorded behind the copy. `part` lies in a living slice.
            unsafe {
                self.stream.device().driver()?.copy_to_device(
                    memory,
                    0..len * size_of::<T>(),
                    part.address,
                    self.stream.handle(),
                )
            }?;
            mark(&self.stream, &mut slot.copied)?;
            self.next = (self.next + 1) % SLOTS;
            first += len;
        }
        Ok(())
    }

    /// Fills `to` with `from`; on return it has arrived.
    pub fn write<T: Element>(&mut self, to: ViewMut<'_, T>, from: &[T]) -> Result<(), CudaError> {
        fits::<T>(from.len(), to.read().len())?;
        self.upload(to, |first, room| {
            room.copy_from_slice(&from[first..first + room.len()]);
            Ok::<_, CudaError>(())
        })?;
        self.stream.wait()
    }

    /// Reads `from` into `to`, after all work enqueued in [`Self::stream`]; on return it is there.
    pub fn read<T: Element>(&mut self, from: View<'_, T>, to: &mut [T]) -> Result<(), CudaError> {
        fits::<T>(from.len(), to.len())?;
        let mut first = 0;
        while first < to.len() {
            let slot = self.slots.get_mut(self.next).expect("below the number of slots");
            slot.copied.wait()?;
            let memory = slot.memory.as_mut().expect("present until dropped");
            let room = cast::<T>(memory.bytes()).len();
            let len = room.min(to.len() - first);
            let part = from.narrow(first..first + len).expect("within the whole");
            // SAFETY: the slot is not used before the wait below has seen the copy done; `part`
            // lies in a living slice.
            unsafe {
                self.stream.device().driver()?.copy_to_host(
                    part.address,
                    memory,
                    len * size_of::<T>(),
                    self.stream.handle(),
                )
            }?;
            mark(&self.stream, &mut slot.copied)?;
            slot.copied.wait()?;
            to[first..first + len].copy_from_slice(&cast::<T>(memory.bytes())[..len]);
            first += len;
        }
        Ok(())
    }
}

/// Notes the copy's end, or waits for it where that cannot be noted: no slot is used again before.
fn mark(stream: &Stream, copied: &mut Event) -> Result<(), CudaError> {
    stream.record(copied).or_else(|error| stream.wait().and(Err(error)))
}

/// Whether as many elements are to be copied as there are.
fn fits<T>(asked: usize, holds: usize) -> Result<(), CudaError> {
    let bytes = |elements: usize| elements as u64 * size_of::<T>() as u64;
    if asked == holds {
        return Ok(());
    }
    Err(CudaError::CopyMismatch { asked: bytes(asked), holds: bytes(holds) })
}

impl Slot {
    fn new(device: &Device, bytes: usize) -> Result<Self, CudaError> {
        let copied = device.event()?;
        let memory = Some(device.driver()?.allocate_pinned(bytes)?);
        Ok(Self { memory, copied, device: device.clone() })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // If the wait fails the device is lost, and nothing travels any more.
        let _ = self.copied.wait();
        if let Some(memory) = self.memory.take() {
            self.device.discard(Garbage::Pinned(memory));
        }
    }
}
