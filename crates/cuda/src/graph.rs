//! Graphs: many launches recorded once, then enqueued with one call.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::device::Device;
use crate::driver::{ExecutableHandle, Garbage};
use crate::error::CudaError;
use crate::stream::Stream;

/// Something that launches address, and that can be kept from going away.
pub(crate) trait Keep: fmt::Debug {
    fn keep(&self) -> Kept;
}

impl<T: Any + fmt::Debug + Send + Sync> Keep for Arc<T> {
    fn keep(&self) -> Kept {
        self.clone()
    }
}

/// What [`Keep::keep`] returns: it only has to be there.
pub(crate) type Kept = Arc<dyn Any + Send + Sync>;

/// Launches that [`Stream::capture`] recorded, arguments and all. The arenas and mailboxes that
/// they address stay while the graph lives; a [`DeviceSlice`](crate::DeviceSlice) that is dropped
/// goes back to its arena all the same, so keep those, too.
#[must_use = "nothing of it runs before `launch`"]
pub struct Graph {
    /// `Some` until dropped.
    executable: Option<ExecutableHandle>,
    device: Device,
    kept: Vec<Kept>,
}

impl Graph {
    /// Enqueues all of it, as if it were one launch: work of the stream before it ends first, work
    /// after it begins after.
    pub fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        stream.keep(self.kept.iter().cloned());
        let executable = self.executable.as_ref().expect("present until dropped");
        // SAFETY: each launch in it was checked when recorded; the allocations of its buffers live.
        #[expect(unsafe_code, reason = "enqueues recorded launches")]
        unsafe {
            self.device.driver()?.launch_graph(executable, stream.handle())
        }
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(executable) = self.executable.take() {
            self.device.discard(Garbage::Executable(executable));
        }
    }
}

impl Stream {
    /// Has `record` enqueue launches in this stream and makes a graph of them instead of running
    /// them. What it does elsewhere is done at once. Copies through a
    /// [`StagingRing`](crate::StagingRing) cannot be recorded, and waiting for the stream meanwhile
    /// is an error of the driver's that spoils the recording.
    ///
    /// Making a graph allocates: beside a resident kernel it is refused, unlike
    /// [`Graph::launch`].
    pub fn capture<E: From<CudaError>>(
        &self,
        record: impl FnOnce() -> Result<(), E>,
    ) -> Result<Graph, E> {
        self.device().driver()?.begin_capture(self.handle())?;
        self.set_capturing(true);
        let capture = Capture { stream: self, ended: false };
        record()?;
        Ok(capture.end()?)
    }
}

/// A recording under way. It ends in any case: a stream that records does no work.
struct Capture<'a> {
    stream: &'a Stream,
    ended: bool,
}

impl Capture<'_> {
    fn end(mut self) -> Result<Graph, CudaError> {
        let device = self.stream.device();
        let driver = device.driver()?;
        self.ended = true;
        let kept = self.stream.set_capturing(false);
        let graph = driver.end_capture(self.stream.handle())?;
        let executable = driver.instantiate(&graph);
        driver.discard(Garbage::Graph(graph));
        Ok(Graph { executable: Some(executable?), device: device.clone(), kept })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        self.stream.set_capturing(false);
        // What was recorded is unwanted: the caller hears of what went wrong before.
        if let Ok(driver) = self.stream.device().driver()
            && let Ok(graph) = driver.end_capture(self.stream.handle())
        {
            driver.discard(Garbage::Graph(graph));
        }
    }
}
