//! Copies between host and device through pinned memory.

use crate::arena::{View, ViewMut};
use crate::device::Device;
use crate::driver::{Driver, Garbage, PinnedMemory};
use crate::element::{Element, cast, cast_mut};
use crate::error::CudaError;
use crate::stream::{Event, Priority, Stream};

/// Two: one is filled while the other travels. More only help a filler of uneven speed.
const SLOTS: usize = 2;

/// Pinned host memory from which copies to the device leave. The copy engines read pinned memory by
/// themselves, so a copy holds up neither the host nor a kernel.
#[derive(Debug)]
pub struct StagingBuffer {
    /// `Some` until dropped.
    memory: Option<PinnedMemory>,
    /// Reached when the last copy is done.
    copied: Event,
    /// Whether anything was sent that has not been waited for.
    travels: bool,
    device: Device,
}

impl StagingBuffer {
    /// A buffer of `bytes` bytes, at least one page's 4096.
    pub fn new(device: &Device, bytes: usize) -> Result<Self, CudaError> {
        let copied = device.event()?;
        let memory = Some(device.driver()?.allocate_pinned(bytes.max(4096))?);
        Ok(Self { memory, copied, travels: false, device: device.clone() })
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.memory().bytes().len()
    }

    /// Whether it has no bytes, which is never.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory, to be filled. Waits for what travels from it to have left.
    pub fn room(&mut self) -> Result<&mut [u8], CudaError> {
        self.copied.wait()?;
        self.travels = false;
        Ok(self.memory.as_mut().expect("present until dropped").bytes_mut())
    }

    /// Fills each of `parts` with as many bytes from its first byte here on, in a stream. Returns at
    /// once; more may be sent before [`Self::room`] is asked for again.
    pub fn send<'a, T: Element>(
        &mut self,
        parts: impl IntoIterator<Item = (usize, ViewMut<'a, T>)>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        stream.check_not_capturing()?;
        if self.travels {
            // So that the one event tells of all copies, whatever streams they are in.
            stream.wait_for(&self.copied)?;
        }
        self.travels = true;
        let sent = parts.into_iter().try_for_each(|(first, to)| self.send_part(first, to, stream));
        // Of what was enqueued before an error, too.
        mark(stream, &mut self.copied).and(sent)
    }

    /// Enqueues a copy; `copied` is to be recorded after it.
    fn send_part<T: Element>(
        &self,
        first: usize,
        to: ViewMut<'_, T>,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let to = to.into_view();
        let bytes = to.len() * size_of::<T>();
        let range = first..first.saturating_add(bytes);
        if range.end > self.len() {
            let asked = self.len().saturating_sub(first) as u64;
            return Err(CudaError::CopyMismatch { asked, holds: bytes as u64 });
        }
        let (memory, driver) = (self.memory(), stream.device().driver()?);
        // SAFETY: it is written or freed only after `copied`, which is recorded behind the copy.
        // `to` lies in a living slice.
        unsafe { driver.copy_to_device(memory, range, to.address, stream.handle()) }
    }

    /// Fills the first bytes with `from`, in a stream; on return they are there.
    fn fetch<T: Element>(&mut self, from: View<'_, T>, stream: &Stream) -> Result<&[T], CudaError> {
        self.copied.wait()?;
        let driver: &Driver = stream.device().driver()?;
        let memory = self.memory.as_mut().expect("present until dropped");
        let bytes = from.len() * size_of::<T>();
        // SAFETY: the memory is not used before the wait below has seen the copy done; `from` lies
        // in a living slice.
        unsafe { driver.copy_to_host(from.address, memory, bytes, stream.handle()) }?;
        mark(stream, &mut self.copied)?;
        self.copied.wait()?;
        Ok(&cast::<T>(self.memory().bytes())[..from.len()])
    }

    fn memory(&self) -> &PinnedMemory {
        self.memory.as_ref().expect("present until dropped")
    }
}

impl Drop for StagingBuffer {
    fn drop(&mut self) {
        // If the wait fails the device is lost, and nothing travels any more.
        let _ = self.copied.wait();
        if let Some(memory) = self.memory.take() {
            self.device.discard(Garbage::Pinned(memory));
        }
    }
}

/// Notes the copy's end, or waits for it where that cannot be noted: the memory is not used again
/// before.
fn mark(stream: &Stream, copied: &mut Event) -> Result<(), CudaError> {
    stream.record(copied).or_else(|error| stream.wait().and(Err(error)))
}

/// A stream of its own and pinned buffers that its copies go through, one after another.
#[derive(Debug)]
pub struct StagingRing {
    slots: [StagingBuffer; SLOTS],
    /// The slot to use next: the one whose copy is the oldest.
    next: usize,
    stream: Stream,
}

impl StagingRing {
    /// A ring whose buffers have `slot_bytes` bytes each, at least one page's 4096.
    pub fn new(device: &Device, slot_bytes: usize) -> Result<Self, CudaError> {
        let slot = || StagingBuffer::new(device, slot_bytes);
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
        let (mut first, mut rest) = (0, to);
        while !rest.read().is_empty() {
            let slot = &mut self.slots[self.next];
            let room = cast_mut::<T>(slot.room()?);
            let len = room.len().min(rest.read().len());
            fill(first, &mut room[..len])?;
            let (part, others) = rest.split_at(len).expect("no longer than the rest");
            slot.send([(0, part)], &self.stream)?;
            self.next = (self.next + 1) % SLOTS;
            (first, rest) = (first + len, others);
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
        let slot = &mut self.slots[self.next];
        let room = slot.len() / size_of::<T>();
        for (first, to) in (0..).step_by(room).zip(to.chunks_mut(room)) {
            let part = from.narrow(first..first + to.len()).expect("within the whole");
            to.copy_from_slice(slot.fetch(part, &self.stream)?);
        }
        Ok(())
    }
}

/// Whether as many elements are to be copied as there are.
fn fits<T>(asked: usize, holds: usize) -> Result<(), CudaError> {
    let bytes = |elements: usize| elements as u64 * size_of::<T>() as u64;
    if asked == holds {
        return Ok(());
    }
    Err(CudaError::CopyMismatch { asked: bytes(asked), holds: bytes(holds) })
}
