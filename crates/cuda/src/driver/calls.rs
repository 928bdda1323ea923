//! The functions of the driver that this crate calls: this list is all of them.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::fmt;
use std::ptr;

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUgraph, CUgraphExec, CUjit_option, CUmodule, CUstream,
    CUstreamCaptureMode,
};

use super::{Driver, SUCCESS};
use crate::error::CudaError;

/// What a driver call does to those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Asks or sets host state; returns at once.
    Queries,
    /// Puts work into a stream and returns.
    Enqueues,
    /// Makes the calling thread wait for one stream or event, and nothing else.
    Waits,
    /// Creates or destroys something on the device or in pinned memory: may wait for all of the
    /// device.
    Allocates,
}

impl Class {
    /// Whether calls of this class return in bounded time beside a kernel that stays resident.
    pub fn allowed_beside_resident_kernel(self) -> bool {
        self != Self::Allocates
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queries => "only asks",
            Self::Enqueues => "only enqueues",
            Self::Waits => "waits for a stream",
            Self::Allocates => "may wait for the whole device",
        })
    }
}

/// Makes, of one table: [`Call`], the functions' types, the look-up and a method per function.
macro_rules! driver_calls {
    ($($class:ident { $($symbol:ident($($argument:ident: $type:ty),* $(,)?);)* })*
     ; $($explains:ident;)*) => {
        /// A function of the driver, by its own name.
        #[expect(non_camel_case_types, reason = "the driver's own names")]
        #[expect(missing_docs, reason = "NVIDIA documents them under these names")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Call { $($($symbol,)*)* }

        impl Call {
            /// All that this crate ever calls.
            pub const ALL: &[Self] = &[$($(Self::$symbol,)*)*];

            /// What the call does to those who wait.
            pub fn class(self) -> Class {
                match self { $($(Self::$symbol => Class::$class,)*)* }
            }

            /// The function's name.
            pub fn name(self) -> &'static str {
                match self { $($(Self::$symbol => stringify!($symbol),)*)* }
            }
        }

        /// The addresses of the functions.
        #[expect(non_snake_case, reason = "the driver's own names")]
        pub(crate) struct Api {
            $($(pub(crate) $symbol: unsafe extern "C" fn($($type),*) -> u32,)*)*
            $(pub(crate) $explains: Explains,)*
        }

        // The types above against those of NVIDIA's header, as cudarc has them.
        $($(const _: unsafe fn($($type),*) -> sys::CUresult = sys::$symbol;)*)*

        impl Api {
            /// Looks all functions up in the driver's library, which must be present.
            pub(super) fn load() -> Result<Self, CudaError> {
                Ok(Self {
                    $($($symbol: symbol(stringify!($symbol))?,)*)*
                    $($explains: symbol(stringify!($explains))?,)*
                })
            }
        }

        #[expect(non_snake_case, reason = "the driver's own names")]
        #[expect(clippy::too_many_arguments, reason = "the driver's own functions")]
        impl Driver {
            $($(
                /// # Safety
                /// What NVIDIA's reference says of the function.
                pub(super) unsafe fn $symbol(&self, $($argument: $type),*) -> Result<(), CudaError> {
                    let _pass = self.gate.pass(Call::$symbol)?;
                    // SAFETY: the caller's.
                    let code = unsafe { (self.api.$symbol)($($argument),*) };
                    self.check(Call::$symbol, code)
                }
            )*)*
        }
    };
}

driver_calls! {
    Queries {
        cuInit(flags: c_uint);
        cuDriverGetVersion(version: *mut c_int);
        cuDeviceGetCount(count: *mut c_int);
        cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
        cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
        cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
        cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
        cuCtxSetCurrent(context: CUcontext);
        cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int);
        cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
        cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
        cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
        cuOccupancyMaxActiveBlocksPerMultiprocessor(
            blocks: *mut c_int, function: CUfunction, threads: c_int, shared: usize,
        );
        cuStreamQuery(stream: CUstream);
        cuEventQuery(event: CUevent);
        cuMemHostGetDevicePointer_v2(address: *mut CUdeviceptr, host: *mut c_void, flags: c_uint);
        cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    }
    Enqueues {
        cuLaunchKernel(
            function: CUfunction,
            grid_x: c_uint, grid_y: c_uint, grid_z: c_uint,
            block_x: c_uint, block_y: c_uint, block_z: c_uint,
            shared: c_uint, stream: CUstream,
            parameters: *mut *mut c_void, extra: *mut *mut c_void,
        );
        cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
        cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
        cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
        cuMemsetD8Async(to: CUdeviceptr, value: c_uchar, bytes: usize, stream: CUstream);
        cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
        cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
        cuGraphLaunch(graph: CUgraphExec, stream: CUstream);
        cuEventRecord(event: CUevent, stream: CUstream);
        cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    }
    Waits {
        cuStreamSynchronize(stream: CUstream);
        cuEventSynchronize(event: CUevent);
    }
    Allocates {
        cuDevicePrimaryCtxSetFlags_v2(device: CUdevice, flags: c_uint);
        cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
        cuDevicePrimaryCtxRelease_v2(device: CUdevice);
        cuModuleLoadDataEx(
            module: *mut CUmodule, image: *const c_void,
            count: c_uint, options: *mut CUjit_option, values: *mut *mut c_void,
        );
        cuModuleUnload(module: CUmodule);
        cuStreamCreateWithPriority(stream: *mut CUstream, flags: c_uint, priority: c_int);
        cuStreamDestroy_v2(stream: CUstream);
        cuEventCreate(event: *mut CUevent, flags: c_uint);
        cuEventDestroy_v2(event: CUevent);
        cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
        cuMemFree_v2(address: CUdeviceptr);
        cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: c_uint);
        cuMemFreeHost(address: *mut c_void);
        cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
        cuGraphExecDestroy(executable: CUgraphExec);
        cuGraphDestroy(graph: CUgraph);
    }
    // These put an error's number into words; they ask nothing of the device and pass no gate.
    ;
    cuGetErrorName;
    cuGetErrorString;
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// A function of the driver's library, whose type the caller gives as NVIDIA declares it.
fn symbol<F: Copy>(name: &'static str) -> Result<F, CudaError> {
    // SAFETY: the caller has asked `is_culib_present`; loading it runs NVIDIA's initialisers.
    let library = unsafe { sys::culib() };
    // SAFETY: `F` is a function pointer of the type that the driver's header declares.
    let function = unsafe { library.get::<F>(name.as_bytes()) };
    function.map(|function| *function).map_err(|_| CudaError::MissingSymbol { symbol: name })
}

pub(crate) type Explains = unsafe extern "C" fn(c_uint, *mut *const c_char) -> u32;

/// The driver's own words for an error.
pub(super) fn explain(function: Explains, code: u32) -> String {
    let mut text = ptr::null();
    // SAFETY: the pointer is to a pointer; any number may be asked about.
    if unsafe { function(code, &mut text) } != SUCCESS || text.is_null() {
        return "unknown".to_owned();
    }
    // SAFETY: on success it is one of the driver's constant C strings.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
