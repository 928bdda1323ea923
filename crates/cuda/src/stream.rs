//! Streams and events.

use std::time::Duration;

use crate::device::Device;
use crate::driver::{EventHandle, Garbage, StreamHandle};
use crate::error::CudaError;

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
        Ok(Self { handle: Some(handle), device })
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
