//! What can go wrong between this process and the device.

use std::fmt;

use crate::Capability;
use crate::driver::Call;

/// A version of CUDA as the driver reports it: 12020 is 12.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CudaVersion(pub u32);

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// A failure of the device, the driver, or a request that was made of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The driver's library is not on this machine.
    #[error(
        "no NVIDIA driver here: libcuda.so.1 cannot be loaded; install a driver that knows the \
         card (for a Tesla M40 branch 470 to 580)"
    )]
    NoDriver,
    /// The driver lacks what this crate calls.
    #[error("the NVIDIA driver is of CUDA {found}, at least {needed} is needed")]
    DriverTooOld {
        /// What the driver says it is.
        found: CudaVersion,
        /// The oldest that will do.
        needed: CudaVersion,
    },
    /// The driver's library lacks a function.
    #[error("the NVIDIA driver has no {symbol}: it is too old, or a stub")]
    MissingSymbol {
        /// The function that was looked for.
        symbol: &'static str,
    },
    /// There is no device of this number.
    #[error("there is no CUDA device {ordinal}: the driver sees {count}")]
    NoDevice {
        /// The number asked for.
        ordinal: u32,
        /// How many the driver sees.
        count: u32,
    },
    /// The device is older than the kernels.
    #[error("{name} has compute capability {capability}, the kernels need {}", Capability::MINIMUM)]
    UnsupportedDevice {
        /// The device's name.
        name: String,
        /// What it can do.
        capability: Capability,
    },
    /// The driver refused a module of the kernel image.
    #[error("the driver refuses kernel module {module} ({name}): {log}")]
    BadImage {
        /// The kernel file's name without extension.
        module: String,
        /// The driver's name of the error.
        name: String,
        /// What the driver's compiler said; empty if nothing.
        log: String,
    },
    /// A kernel is not in the image.
    #[error("the kernel image has no {kernel}")]
    NoKernel {
        /// The function looked for.
        kernel: &'static str,
    },
    /// The device, or the host's pinned memory, has no room left.
    #[error("{call} found no room for {asked} bytes: {free} of the device's {total} are free")]
    OutOfMemory {
        /// The driver's function.
        call: Call,
        /// Bytes asked for.
        asked: u64,
        /// Bytes of the device that were free just after, 0 if unknown.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// The arena has no gap of this size.
    #[error(
        "the arena has no room for {asked} bytes: {free} are free, the largest gap has {largest}"
    )]
    ArenaExhausted {
        /// Bytes asked for.
        asked: u64,
        /// Free bytes in all gaps.
        free: u64,
        /// Bytes of the largest gap.
        largest: u64,
    },
    /// The device stopped working for this process: nothing on it can be used again.
    #[error("the device is lost: {name} ({code}) during {call}; the process must be restarted")]
    DeviceLost {
        /// The call that reported it, perhaps much later than the cause.
        call: Call,
        /// The driver's number of the error.
        code: u32,
        /// The driver's name of the error.
        name: String,
    },
    /// The call could wait for a kernel that does not end by itself.
    #[error("{call} is not allowed while a kernel stays resident: it {}", call.class())]
    Resident {
        /// The refused function.
        call: Call,
    },
    /// The stream records a graph, of which a copy from or to pinned memory cannot be a part.
    #[error("the stream records a graph: copy through another stream, or after the recording")]
    Capturing,
    /// A launch does not fit the kernel's signature or the device.
    #[error("launch of {kernel}: {reason}")]
    Launch {
        /// The kernel's name.
        kernel: &'static str,
        /// What does not fit.
        reason: LaunchError,
    },
    /// The two sides of a copy differ in length.
    #[error("a copy of {asked} bytes to or from {holds} bytes")]
    CopyMismatch {
        /// Bytes on the source's side.
        asked: u64,
        /// Bytes on the other side.
        holds: u64,
    },
    /// The device computed something else than the host.
    #[error("{device} computes wrongly: checksum {found:#010x}, expected {expected:#010x}")]
    WrongResult {
        /// The device's name.
        device: String,
        /// What it should have been.
        expected: u32,
        /// What the device made of it.
        found: u32,
    },
    /// Any other error of the driver.
    #[error("{call} failed: {name} ({code}): {text}")]
    Driver {
        /// The function that failed.
        call: Call,
        /// The driver's number of the error.
        code: u32,
        /// The driver's name of the error.
        name: String,
        /// The driver's explanation.
        text: String,
    },
}

/// Why a launch was refused before the driver saw it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// More or fewer arguments than the kernel has.
    #[error("{found} arguments, the kernel has {expected}")]
    Count {
        /// The kernel's.
        expected: usize,
        /// The launch's.
        found: usize,
    },
    /// More parameters than a launch has places for.
    #[error("{found} arguments, there are places for {}", crate::driver::MAX_PARAMS)]
    TooMany {
        /// The kernel's parameters.
        found: usize,
    },
    /// An argument is of another kind than the kernel's.
    #[error("argument {position} is {found}, the kernel's is {expected}")]
    Kind {
        /// From 0.
        position: usize,
        /// The kernel's, as in `write u32`.
        expected: String,
        /// The launch's.
        found: String,
    },
    /// A buffer is shorter than its shape.
    #[error("argument {position} holds {holds} elements, its shape has {needed}")]
    Short {
        /// From 0.
        position: usize,
        /// Elements that the kernel touches.
        needed: usize,
        /// Elements in the buffer.
        holds: usize,
    },
    /// A buffer lies on another device.
    #[error("argument {position} lies on another device")]
    Elsewhere {
        /// From 0.
        position: usize,
    },
    /// The grid is empty or larger than any device takes.
    #[error("a grid of {x} x {y} x {z} blocks is outside 1..=2147483647 x 65535 x 65535")]
    Grid {
        /// Blocks along x.
        x: u32,
        /// Blocks along y.
        y: u32,
        /// Blocks along z.
        z: u32,
    },
    /// A block has more threads than the kernel was compiled for, or none.
    #[error("{threads} threads a block, the kernel takes 1 to {most}")]
    Block {
        /// Threads asked for.
        threads: u32,
        /// The most the kernel takes on this device.
        most: u32,
    },
    /// More shared memory than every device has.
    #[error("{bytes} bytes of shared memory a block, {most} are there")]
    Shared {
        /// Static and dynamic bytes.
        bytes: u64,
        /// What a block may have.
        most: u64,
    },
}
