//! Graphs: work that is recorded once and put into streams many times.

use cudarc::driver::sys::CUstreamCaptureMode;

use super::{Driver, ExecutableHandle, GraphHandle, StreamHandle, handle};
use crate::error::CudaError;

impl Driver {
    /// From here on work put into the stream is recorded and not done. Other calls of this and
    /// other threads go on as ever: what they must not do with the stream is an error of theirs.
    pub(crate) fn begin_capture(&self, stream: &StreamHandle) -> Result<(), CudaError> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the handle is alive.
        unsafe { self.cuStreamBeginCapture_v2(stream.0, mode) }
    }

    /// What was recorded. After any error nothing is recorded any more.
    pub(crate) fn end_capture(&self, stream: &StreamHandle) -> Result<GraphHandle, CudaError> {
        // SAFETY: the handle is alive; the pointer is to a handle.
        handle(|graph| unsafe { self.cuStreamEndCapture(stream.0, graph) })
    }

    pub(crate) fn instantiate(&self, graph: &GraphHandle) -> Result<ExecutableHandle, CudaError> {
        // SAFETY: the handle is alive; the pointer is to a handle; no flags.
        handle(|executable| unsafe { self.cuGraphInstantiateWithFlags(executable, graph.0, 0) })
    }

    /// # Safety
    /// What the recorded work addresses is there and large enough.
    pub(crate) unsafe fn launch_graph(
        &self,
        executable: &ExecutableHandle,
        stream: &StreamHandle,
    ) -> Result<(), CudaError> {
        // SAFETY: handles are alive, the rest is the caller's.
        unsafe { self.cuGraphLaunch(executable.0, stream.0) }
    }

    pub(super) fn destroy_graph(&self, graph: &GraphHandle) -> Result<(), CudaError> {
        // SAFETY: made by the driver, and dropped unless refused.
        unsafe { self.cuGraphDestroy(graph.0) }
    }

    pub(super) fn destroy_executable(&self, it: &ExecutableHandle) -> Result<(), CudaError> {
        // SAFETY: as above; the driver keeps it until its last launch is done.
        unsafe { self.cuGraphExecDestroy(it.0) }
    }
}
