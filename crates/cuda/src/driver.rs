//! Every function of the CUDA driver that this crate calls, each with its class.
//!
//! A persistent kernel does not end by itself. A driver call that waits for the device, or that
//! may move memory, can then wait for ever; so calls are classed here, and while a
//! [`Residency`](crate::Residency) is held those that allocate or synchronise are refused with a
//! typed error. Nothing outside this module reaches the driver, so the list in `calls` is complete.
//!
//! Functions are looked up once, when the driver is opened: an absent one is an error then and not
//! a panic later. Results are taken as plain numbers, because newer drivers return numbers that no
//! list of today has.

mod calls;
mod graph;

use std::ffi::{CStr, c_int, c_uint, c_void};
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute, CUfunction_attribute, CUjit_option};

pub(crate) use self::calls::Api;
use self::calls::explain;
pub use self::calls::{Call, Class};
use crate::error::{CudaError, CudaVersion};
use crate::gate::Gate;

/// The oldest driver that has every function of `calls`: branch 470. It takes the kernels' PTX 7.0.
pub(crate) const OLDEST_DRIVER: CudaVersion = CudaVersion(11_040);

/// The most parameters of a kernel.
pub(crate) const MAX_PARAMS: usize = 24;

/// What the driver's compiler may say about a module, in bytes.
const JIT_LOG_BYTES: usize = 16 << 10;

const SUCCESS: u32 = 0;
const OUT_OF_MEMORY: u32 = 2;
const NO_DEVICE: u32 = 100;
const NOT_READY: u32 = 600;

/// Errors after which a context answers nothing else: uncorrectable memory errors, a kernel's
/// illegal address or instruction, a launch that failed or timed out, a card off the bus.
const LOST: [u32; 15] = [4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999];

/// A handle that the driver made. It is not copied, so that what was destroyed is not used again.
#[derive(Debug)]
pub(crate) struct Handle<T>(*mut T);

// SAFETY: the driver's objects may be used from any thread; every call of this crate makes the
// context current on its own thread first.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: as above; the driver locks what its functions share.
unsafe impl<T> Sync for Handle<T> {}

pub(crate) type ContextHandle = Handle<sys::CUctx_st>;
pub(crate) type ModuleHandle = Handle<sys::CUmod_st>;
pub(crate) type FunctionHandle = Handle<sys::CUfunc_st>;
pub(crate) type StreamHandle = Handle<sys::CUstream_st>;
pub(crate) type EventHandle = Handle<sys::CUevent_st>;
pub(crate) type GraphHandle = Handle<sys::CUgraph_st>;
pub(crate) type ExecutableHandle = Handle<sys::CUgraphExec_st>;

/// An allocation on the device: its address there, which the host never follows.
#[derive(Debug)]
pub(crate) struct DeviceMemory {
    pub(crate) address: u64,
}

/// Page-locked host memory, which the device's copy engines read and write by themselves.
#[derive(Debug)]
pub(crate) struct PinnedMemory {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory, owned by this value; who reaches it is decided by borrows of the value.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `bytes` zeroed bytes were allocated at `start` and are freed only by value.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }

    /// The memory as words that the device may read and write at the same time.
    ///
    /// # Safety
    /// The memory is never seen otherwise: `bytes` and `bytes_mut` are not used on it.
    pub(crate) unsafe fn words(&self) -> &[AtomicU32] {
        let (start, words) = (self.start.cast::<AtomicU32>(), self.bytes / 4);
        // SAFETY: initialised memory of at least that length, aligned to pages, seen through
        // atomics alone.
        unsafe { std::slice::from_raw_parts(start, words) }
    }
}

/// What is to be destroyed, now or when no kernel is resident any more.
#[derive(Debug)]
pub(crate) enum Garbage {
    Module(ModuleHandle),
    Stream(StreamHandle),
    Event(EventHandle),
    Memory(DeviceMemory),
    Pinned(PinnedMemory),
    Graph(GraphHandle),
    Executable(ExecutableHandle),
}

/// Where blocks go: the sizes of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Dynamic shared memory, bytes a block.
    pub(crate) shared: u32,
}

/// The opened driver.
#[derive(Debug)]
pub(crate) struct Driver {
    api: Api,
    pub(crate) gate: Gate,
}

impl Driver {
    /// Loads the driver's library, initialises it and checks its version. There is one in a
    /// process, as a resident kernel concerns every caller.
    pub(crate) fn open() -> Result<Arc<Self>, CudaError> {
        static OPENED: Mutex<Option<Arc<Driver>>> = Mutex::new(None);
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = &*opened {
            return Ok(driver.clone());
        }
        // SAFETY: loading the library runs NVIDIA's initialisers, which demand nothing.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        let driver = Self::start(Api::load()?)?;
        *opened = Some(driver.clone());
        Ok(driver)
    }

    /// Initialises the driver behind these functions and checks its version.
    pub(crate) fn start(api: Api) -> Result<Arc<Self>, CudaError> {
        let driver = Self { api, gate: Gate::default() };
        let found = driver.version()?;
        if found < OLDEST_DRIVER {
            return Err(CudaError::DriverTooOld { found, needed: OLDEST_DRIVER });
        }
        // SAFETY: flags must be 0 and are.
        match unsafe { driver.cuInit(0) } {
            Err(CudaError::Driver { code: NO_DEVICE, .. }) => {
                Err(CudaError::NoDevice { ordinal: 0, count: 0 })
            }
            Err(error) => Err(error),
            Ok(()) => Ok(Arc::new(driver)),
        }
    }

    fn check(&self, call: Call, code: u32) -> Result<(), CudaError> {
        match code {
            SUCCESS => Ok(()),
            // Polls meet it all the time: it needs no explanation.
            NOT_READY => {
                Err(CudaError::Driver { call, code, name: String::new(), text: String::new() })
            }
            // Before there is a context there is nothing to lose.
            _ if LOST.contains(&code) && call != Call::cuInit => {
                Err(self.gate.lose(call, code, explain(self.api.cuGetErrorName, code)))
            }
            _ => {
                let name = explain(self.api.cuGetErrorName, code);
                let text = explain(self.api.cuGetErrorString, code);
                Err(CudaError::Driver { call, code, name, text })
            }
        }
    }

    pub(crate) fn version(&self) -> Result<CudaVersion, CudaError> {
        // SAFETY: the pointer is to an integer.
        let version = out(|version| unsafe { self.cuDriverGetVersion(version) })?;
        Ok(CudaVersion(version.unsigned_abs()))
    }

    pub(crate) fn device_count(&self) -> Result<u32, CudaError> {
        // SAFETY: the pointer is to an integer.
        Ok(out(|count| unsafe { self.cuDeviceGetCount(count) })?.unsigned_abs())
    }

    /// The device of this number, which must be below [`Self::device_count`].
    pub(crate) fn device(&self, ordinal: u32) -> Result<CUdevice, CudaError> {
        // SAFETY: the pointer is to an integer; a wrong ordinal is an error of the driver's.
        out(|device| unsafe { self.cuDeviceGet(device, ordinal as c_int) })
    }

    pub(crate) fn device_name(&self, device: CUdevice) -> Result<String, CudaError> {
        let mut name = [0u8; 256];
        // SAFETY: the buffer has the length that is passed; the driver ends the name with a NUL.
        unsafe { self.cuDeviceGetName(name.as_mut_ptr().cast(), 256, device) }?;
        Ok(text_of(&name))
    }

    pub(crate) fn device_attribute(
        &self,
        attribute: CUdevice_attribute,
        device: CUdevice,
    ) -> Result<u32, CudaError> {
        // SAFETY: the pointer is to an integer.
        let value = out(|value| unsafe { self.cuDeviceGetAttribute(value, attribute, device) })?;
        Ok(value.unsigned_abs())
    }

    pub(crate) fn total_memory(&self, device: CUdevice) -> Result<u64, CudaError> {
        // SAFETY: the pointer is to an integer.
        Ok(out(|bytes| unsafe { self.cuDeviceTotalMem_v2(bytes, device) })? as u64)
    }

    /// The device's primary context, the one that libraries of this process share: a second context
    /// would take turns with the first, and never get one beside a resident kernel.
    pub(crate) fn retain_context(&self, device: CUdevice) -> Result<ContextHandle, CudaError> {
        let flags = sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as c_uint;
        // SAFETY: flags of the driver's own list.
        unsafe { self.cuDevicePrimaryCtxSetFlags_v2(device, flags) }?;
        // SAFETY: the pointer is to a handle.
        handle(|context| unsafe { self.cuDevicePrimaryCtxRetain(context, device) })
    }

    pub(crate) fn release_context(&self, _: ContextHandle, device: CUdevice) {
        // Nobody is left to hear of a failure, and the process's end releases all of it.
        // SAFETY: retained once, released once, since the handle is consumed.
        let _ = unsafe { self.cuDevicePrimaryCtxRelease_v2(device) };
    }

    pub(crate) fn make_current(&self, context: &ContextHandle) -> Result<(), CudaError> {
        // SAFETY: the handle is alive.
        unsafe { self.cuCtxSetCurrent(context.0) }
    }

    /// Free and total bytes of the current context's device.
    pub(crate) fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers are to integers.
        unsafe { self.cuMemGetInfo_v2(&mut free, &mut total) }?;
        Ok((free as u64, total as u64))
    }

    pub(crate) fn allocate(&self, bytes: u64) -> Result<DeviceMemory, CudaError> {
        let call = Call::cuMemAlloc_v2;
        let size = usize::try_from(bytes).map_err(|_| self.out_of_memory(call, bytes))?;
        // SAFETY: the pointer is to an address.
        let address = out(|address| unsafe { self.cuMemAlloc_v2(address, size) });
        let address = address.map_err(|error| self.explain_memory(error, call, bytes))?;
        Ok(DeviceMemory { address })
    }

    /// Zeroed pinned memory that every context and thread may use.
    pub(crate) fn allocate_pinned(&self, bytes: usize) -> Result<PinnedMemory, CudaError> {
        self.allocate_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE)
    }

    /// As [`Self::allocate_pinned`], and kernels may reach it: with its address there.
    pub(crate) fn allocate_mapped(&self, bytes: usize) -> Result<(PinnedMemory, u64), CudaError> {
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        let memory = self.allocate_host(bytes, flags)?;
        let host = memory.start.cast();
        // SAFETY: the memory was just allocated as mapped; flags must be 0 and are.
        let address = out(|address| unsafe { self.cuMemHostGetDevicePointer_v2(address, host, 0) });
        match address {
            Ok(address) => Ok((memory, address)),
            Err(error) => {
                self.discard(Garbage::Pinned(memory));
                Err(error)
            }
        }
    }

    fn allocate_host(&self, bytes: usize, flags: c_uint) -> Result<PinnedMemory, CudaError> {
        let call = Call::cuMemHostAlloc;
        let mut start = ptr::null_mut();
        // SAFETY: the pointer is to an address; flags of the driver's own list.
        unsafe { self.cuMemHostAlloc(&mut start, bytes, flags) }
            .map_err(|error| self.explain_memory(error, call, bytes as u64))?;
        let start: *mut u8 = start.cast();
        // SAFETY: the driver has just given `bytes` bytes there.
        unsafe { start.write_bytes(0, bytes) };
        Ok(PinnedMemory { start, bytes })
    }

    fn explain_memory(&self, error: CudaError, call: Call, asked: u64) -> CudaError {
        match error {
            CudaError::Driver { code: OUT_OF_MEMORY, .. } => self.out_of_memory(call, asked),
            other => other,
        }
    }

    fn out_of_memory(&self, call: Call, asked: u64) -> CudaError {
        let (free, total) = self.memory().unwrap_or_default();
        CudaError::OutOfMemory { call, asked, free, total }
    }

    /// `image`: machine code, or PTX that ends in a NUL. On failure also what the driver's compiler
    /// said.
    pub(crate) fn load_module(&self, image: &[u8]) -> Result<ModuleHandle, (CudaError, String)> {
        let mut log = vec![0u8; JIT_LOG_BYTES];
        let mut options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The driver takes the size in the pointer's place and leaves the used bytes there.
        let mut values =
            [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(log.len())];
        let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
        let image = image.as_ptr().cast();
        // SAFETY: two options with a value each; the log has the size passed; the image is whole
        // and of a form that says where it ends.
        let module =
            handle(|module| unsafe { self.cuModuleLoadDataEx(module, image, 2, options, values) });
        module.map_err(|error| (error, text_of(&log).trim().to_owned()))
    }

    /// A kernel of the module, loaded by being asked for: under lazy loading the driver would do so
    /// at the first launch, which beside a resident kernel is too late.
    pub(crate) fn function(
        &self,
        module: &ModuleHandle,
        name: &CStr,
    ) -> Result<FunctionHandle, CudaError> {
        // SAFETY: the handle is alive; the pointers are to a handle and a C string.
        handle(|function| unsafe { self.cuModuleGetFunction(function, module.0, name.as_ptr()) })
    }

    pub(crate) fn function_attribute(
        &self,
        function: &FunctionHandle,
        attribute: CUfunction_attribute,
    ) -> Result<u32, CudaError> {
        // SAFETY: the function's module is alive; the pointer is to an integer.
        let value = out(|value| unsafe { self.cuFuncGetAttribute(value, attribute, function.0) })?;
        Ok(value.unsigned_abs())
    }

    /// How many blocks of a kernel one multiprocessor holds at once.
    pub(crate) fn occupancy(
        &self,
        function: &FunctionHandle,
        threads: u32,
        shared: u32,
    ) -> Result<u32, CudaError> {
        let (threads, shared) = (threads as c_int, shared as usize);
        // SAFETY: the function's module is alive; the pointer is to an integer.
        let blocks = out(|blocks| unsafe {
            self.cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function.0, threads, shared)
        })?;
        Ok(blocks.unsigned_abs())
    }

    /// # Safety
    /// `arguments` are those of the kernel in number, at most [`MAX_PARAMS`], and type, and what they address on the device
    /// is there and large enough.
    pub(crate) unsafe fn launch(
        &self,
        function: &FunctionHandle,
        geometry: Geometry,
        stream: &StreamHandle,
        arguments: &mut [u64],
    ) -> Result<(), CudaError> {
        let Geometry { grid: [gx, gy, gz], block: [bx, by, bz], shared } = geometry;
        // The driver reads as many bytes at each pointer as the parameter has, before it returns;
        // on a little-endian host the low bytes come first.
        let mut pointers = [ptr::null_mut::<c_void>(); MAX_PARAMS];
        for (pointer, argument) in pointers.iter_mut().zip(arguments) {
            *pointer = ptr::from_mut(argument).cast();
        }
        let (pointers, none) = (pointers.as_mut_ptr(), ptr::null_mut());
        // SAFETY: handles are alive, arguments as the caller says.
        unsafe {
            self.cuLaunchKernel(
                function.0, gx, gy, gz, bx, by, bz, shared, stream.0, pointers, none,
            )
        }
    }

    /// The lowest and the highest priority of streams; lower numbers come first.
    pub(crate) fn priorities(&self) -> Result<(i32, i32), CudaError> {
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: both pointers are to integers.
        unsafe { self.cuCtxGetStreamPriorityRange(&mut least, &mut greatest) }?;
        Ok((least, greatest))
    }

    /// A stream that the legacy default stream does not wait for, nor it for that one.
    pub(crate) fn create_stream(&self, priority: i32) -> Result<StreamHandle, CudaError> {
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        // SAFETY: the pointer is to a handle; flags of the driver's own list.
        handle(|stream| unsafe { self.cuStreamCreateWithPriority(stream, flags, priority) })
    }

    pub(crate) fn stream_is_done(&self, stream: &StreamHandle) -> Result<bool, CudaError> {
        // SAFETY: the handle is alive.
        ready(unsafe { self.cuStreamQuery(stream.0) })
    }

    pub(crate) fn wait_for_stream(&self, stream: &StreamHandle) -> Result<(), CudaError> {
        // SAFETY: the handle is alive.
        unsafe { self.cuStreamSynchronize(stream.0) }
    }

    pub(crate) fn stream_wait(
        &self,
        stream: &StreamHandle,
        event: &EventHandle,
    ) -> Result<(), CudaError> {
        // SAFETY: handles are alive; flags must be 0 and are.
        unsafe { self.cuStreamWaitEvent(stream.0, event.0, 0) }
    }

    /// An event whose waiters sleep instead of spinning.
    pub(crate) fn create_event(&self) -> Result<EventHandle, CudaError> {
        let flags = sys::CUevent_flags::CU_EVENT_BLOCKING_SYNC as c_uint;
        // SAFETY: the pointer is to a handle; flags of the driver's own list.
        handle(|event| unsafe { self.cuEventCreate(event, flags) })
    }

    pub(crate) fn record(
        &self,
        event: &EventHandle,
        stream: &StreamHandle,
    ) -> Result<(), CudaError> {
        // SAFETY: handles are alive.
        unsafe { self.cuEventRecord(event.0, stream.0) }
    }

    pub(crate) fn event_is_done(&self, event: &EventHandle) -> Result<bool, CudaError> {
        // SAFETY: the handle is alive.
        ready(unsafe { self.cuEventQuery(event.0) })
    }

    pub(crate) fn wait_for_event(&self, event: &EventHandle) -> Result<(), CudaError> {
        // SAFETY: the handle is alive.
        unsafe { self.cuEventSynchronize(event.0) }
    }

    /// Milliseconds between two recorded and reached events.
    pub(crate) fn elapsed(&self, start: &EventHandle, end: &EventHandle) -> Result<f32, CudaError> {
        // SAFETY: handles are alive; the pointer is to a float.
        out(|milliseconds| unsafe { self.cuEventElapsedTime(milliseconds, start.0, end.0) })
    }

    /// # Safety
    /// `range` of `from` exists and is neither written nor freed before the stream has passed the
    /// copy; `to` and as many bytes after it lie in a living allocation.
    pub(crate) unsafe fn copy_to_device(
        &self,
        from: &PinnedMemory,
        range: std::ops::Range<usize>,
        to: u64,
        stream: &StreamHandle,
    ) -> Result<(), CudaError> {
        let bytes = &from.bytes()[range];
        // SAFETY: the caller's.
        unsafe { self.cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), stream.0) }
    }

    /// # Safety
    /// The first `bytes` of `to` exist and are neither used nor freed before the stream has passed
    /// the copy; `from` and as many bytes after it lie in a living allocation.
    pub(crate) unsafe fn copy_to_host(
        &self,
        from: u64,
        to: &mut PinnedMemory,
        bytes: usize,
        stream: &StreamHandle,
    ) -> Result<(), CudaError> {
        let to = to.bytes_mut()[..bytes].as_mut_ptr();
        // SAFETY: the caller's.
        unsafe { self.cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, stream.0) }
    }

    /// Copies `bytes` bytes.
    ///
    /// # Safety
    /// `from` and `to`, and as many bytes after each, lie in living allocations and do not overlap.
    pub(crate) unsafe fn copy(
        &self,
        from: u64,
        to: u64,
        bytes: usize,
        stream: &StreamHandle,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        unsafe { self.cuMemcpyDtoDAsync_v2(to, from, bytes, stream.0) }
    }

    /// Zeroes `bytes` bytes.
    ///
    /// # Safety
    /// `to` and as many bytes after it lie in a living allocation.
    pub(crate) unsafe fn zero(
        &self,
        to: u64,
        bytes: usize,
        stream: &StreamHandle,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        unsafe { self.cuMemsetD8Async(to, 0, bytes, stream.0) }
    }

    /// Destroys, now or once no kernel is resident.
    pub(crate) fn discard(&self, garbage: Garbage) {
        self.gate.keep(garbage);
        self.destroy_garbage();
    }

    /// Destroys what was kept, unless a kernel is resident.
    pub(crate) fn destroy_garbage(&self) {
        while let Some(garbage) = self.gate.next_garbage() {
            // A kernel may have become resident in between. Of other failures nobody is left to
            // hear, and the end of the context destroys everything.
            if let Err(CudaError::Resident { .. }) = self.destroy(&garbage) {
                self.gate.keep(garbage);
                return;
            }
        }
    }

    fn destroy(&self, garbage: &Garbage) -> Result<(), CudaError> {
        match garbage {
            // SAFETY: here and below: made by the driver, and dropped unless refused.
            Garbage::Module(module) => unsafe { self.cuModuleUnload(module.0) },
            // SAFETY: as above.
            Garbage::Stream(stream) => unsafe { self.cuStreamDestroy_v2(stream.0) },
            // SAFETY: as above.
            Garbage::Event(event) => unsafe { self.cuEventDestroy_v2(event.0) },
            // SAFETY: as above.
            Garbage::Memory(memory) => unsafe { self.cuMemFree_v2(memory.address) },
            // SAFETY: as above.
            Garbage::Pinned(memory) => unsafe { self.cuMemFreeHost(memory.start.cast()) },
            Garbage::Graph(graph) => self.destroy_graph(graph),
            Garbage::Executable(executable) => self.destroy_executable(executable),
        }
    }
}

/// Calls `f` with the place for its result, and returns that.
fn out<T: Default>(f: impl FnOnce(*mut T) -> Result<(), CudaError>) -> Result<T, CudaError> {
    let mut value = T::default();
    f(&mut value)?;
    Ok(value)
}

/// As [`out`], for a handle.
fn handle<T>(f: impl FnOnce(*mut *mut T) -> Result<(), CudaError>) -> Result<Handle<T>, CudaError> {
    let mut value = ptr::null_mut();
    f(&mut value)?;
    Ok(Handle(value))
}

/// Turns "not ready" into `false`.
fn ready(result: Result<(), CudaError>) -> Result<bool, CudaError> {
    match result {
        Ok(()) => Ok(true),
        Err(CudaError::Driver { code: NOT_READY, .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What the driver wrote to a buffer: up to the first NUL, or, where it left no room for one, all of it.
fn text_of(buffer: &[u8]) -> String {
    let end = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..end]).into_owned()
}
