//! Streams and events.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::arena::{View, ViewMut};
use crate::device::Device;
use crate::driver::{EventHandle, Garbage, StreamHandle};
use crate::element::Element;
use crate::error::CudaError;
use crate::graph::Kept;

/// Which of several streams' blocks the device starts first. Running blocks are never interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Work that nobody waits for in that moment: prefill, copies.
    Low,
    /// Work that somebody waits for: decoding.
    High,
}

/// A queue of work on the device, in order in itself and in none with other streams.
#[derive(Debug)]
pub struct Stream {
    /// `Some` until dropped.
    handle: Option<StreamHandle>,
    /// What recorded launches address; `None` while nothing is recorded.
    recorded: Mutex<Option<Vec<Kept>>>,
    device: Device,
}

impl Stream {
    pub(crate) fn new(device: Device, priority: Priority) -> Result<Self, CudaError> {
        let driver = device.driver()?;
        let (least, greatest) = driver.priorities()?;
        let handle = driver.create_stream(match priority {
            Priority::Low => least,
            Priority::High => greatest,
        })?;
        Ok(Self { handle: Some(handle), recorded: Mutex::new(None), device })
    }

    /// The device whose stream this is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether all work enqueued so far is done.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        self.device.driver()?.stream_is_done(self.handle())
    }

    /// Blocks the calling thread until all work enqueued so far is done.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.device.driver()?.wait_for_stream(self.handle())
    }

    /// Work enqueued from now on starts after the event was reached.
    pub fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        self.device.driver()?.stream_wait(self.handle(), event.handle())
    }

    /// Notes the event as reached when all work enqueued so far is done.
    pub fn record(&self, event: &mut Event) -> Result<(), CudaError> {
        self.device.driver()?.record(event.handle(), self.handle())
    }

    /// Fills a buffer with bits of zero, after all work enqueued so far.
    pub fn zero<T: Element>(&self, buffer: ViewMut<'_, T>) -> Result<(), CudaError> {
        let buffer = buffer.into_view();
        if buffer.is_empty() {
            return Ok(());
        }
        let driver = self.device.driver()?;
        self.keep([buffer.kept().keep()]);
        // SAFETY: the view lies in a living slice.
        #[expect(unsafe_code, reason = "writes device memory")]
        unsafe {
            driver.zero(buffer.address, buffer.len() * size_of::<T>(), self.handle())
        }
    }

    /// Copies a buffer to another of the same length, after all work enqueued so far.
    pub fn copy<T: Element>(&self, from: View<'_, T>, to: ViewMut<'_, T>) -> Result<(), CudaError> {
        let to = to.into_view();
        let bytes = |elements: usize| elements as u64 * size_of::<T>() as u64;
        let (asked, holds) = (bytes(from.len()), bytes(to.len()));
        if asked != holds {
            return Err(CudaError::CopyMismatch { asked, holds });
        }
        if from.is_empty() {
            return Ok(());
        }
        let driver = self.device.driver()?;
        self.keep([from.kept().keep(), to.kept().keep()]);
        // SAFETY: both views lie in living slices, and nothing that is written is seen twice.
        #[expect(unsafe_code, reason = "writes device memory")]
        unsafe {
            driver.copy(from.address, to.address, asked as usize, self.handle())
        }
    }

    /// Keeps, if a graph is being recorded, what its launches address.
    pub(crate) fn keep(&self, more: impl IntoIterator<Item = Kept>) {
        if let Some(kept) = &mut *self.recorded() {
            for one in more {
                if !kept.iter().any(|other| Arc::ptr_eq(other, &one)) {
                    kept.push(one);
                }
            }
        }
    }

    /// Begins or ends to note what launches address; returns what was noted.
    pub(crate) fn set_capturing(&self, capturing: bool) -> Vec<Kept> {
        std::mem::replace(&mut *self.recorded(), capturing.then(Vec::new)).unwrap_or_default()
    }

    /// Refuses what must not become a part of a graph.
    pub(crate) fn check_not_capturing(&self) -> Result<(), CudaError> {
        if self.recorded().is_some() { Err(CudaError::Capturing) } else { Ok(()) }
    }

    fn recorded(&self) -> MutexGuard<'_, Option<Vec<Kept>>> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn handle(&self) -> &StreamHandle {
        self.handle.as_ref().expect("present until dropped")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.device.discard(Garbage::Stream(handle));
        }
    }
}

/// A point in a stream. One that was never recorded counts as reached.
#[derive(Debug)]
pub struct Event {
    /// `Some` until dropped.
    handle: Option<EventHandle>,
    device: Device,
}

impl Event {
    pub(crate) fn new(device: Device) -> Result<Self, CudaError> {
        let handle = device.driver()?.create_event()?;
        Ok(Self { handle: Some(handle), device })
    }

    /// Whether the stream has reached it.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        self.device.driver()?.event_is_done(self.handle())
    }

    /// Blocks the calling thread until the stream has reached it.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.device.driver()?.wait_for_event(self.handle())
    }

    /// Time on the device from `start` to this, both reached; half a microsecond exact.
    pub fn since(&self, start: &Self) -> Result<Duration, CudaError> {
        let milliseconds = self.device.driver()?.elapsed(start.handle(), self.handle())?;
        Ok(Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) / 1e3))
    }

    fn handle(&self) -> &EventHandle {
        self.handle.as_ref().expect("present until dropped")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.device.discard(Garbage::Event(handle));
        }
    }
}
