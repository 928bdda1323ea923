//! One NVIDIA GPU: driver, memory, streams, kernels. See "crates/cuda" in ARCHITECTURE.md.
//!
//! The driver's library is loaded at run time, so a program with this crate in it starts on any
//! machine; [`probe`] and [`Device::open`] say in a typed error what is missing. NVRTC is, too, and only
//! when a [`Compiler`] is opened. The kernels come as arguments, a [`KernelImage`] and images of
//! [`Module`]s: this crate reads no file but these libraries and embeds nothing.
//!
//! * [`Arena`]: the one allocation on the device, given out as [`DeviceSlice`]s.
//! * [`StagingRing`]: copies through pinned host memory, one buffer filled while another travels.
//! * [`Stream`], [`Event`]: order and time.
//! * [`Kernel`], [`Launch`]: launches whose arguments are checked against a [`Signature`].
//! * [`Compiler`], [`Module`]: kernels of one program, compiled when it is loaded.
//! * [`Graph`]: launches recorded once and enqueued together.
//! * [`Mailbox`]: words that the host shares with a kernel while it runs.
//! * [`Residency`]: held while a kernel that does not end by itself runs. Meanwhile every driver
//!   call that could wait for it is refused.
//!
//! The kernels are trusted as this crate is, whoever compiled them. Callers are not, so no address of
//! the host or the device is visible outside.
#![deny(unsafe_code)]

mod arena;
#[expect(unsafe_code, reason = "calls NVRTC's C functions")]
mod compiler;
mod device;
#[expect(unsafe_code, reason = "calls NVIDIA's C functions")]
mod driver;
#[expect(unsafe_code, reason = "sees pinned bytes as numbers")]
mod element;
mod error;
#[cfg(test)]
#[expect(unsafe_code, reason = "stands in for NVIDIA's C functions")]
mod fake;
mod gate;
mod graph;
#[expect(unsafe_code, reason = "passes arguments to kernels")]
mod kernel;
#[expect(unsafe_code, reason = "sees pinned memory as words of host and device")]
mod mailbox;
mod module;
#[cfg(test)]
mod recorded_tests;
mod self_test;
#[expect(unsafe_code, reason = "hands pinned memory to the device's copy engines")]
mod staging;
mod stream;
mod suballocator;
#[cfg(test)]
mod tests;

pub use arena::{Arena, ArenaUse, DeviceSlice, View, ViewMut};
pub use compiler::{CompileError, Compiler, KernelSource};
pub use device::{Capability, Device, DeviceInfo, ImageForm, Memory, Residency, probe};
pub use driver::{Call, Class};
pub use element::{Element, ElementType};
pub use error::{CudaError, CudaVersion, LaunchError};
pub use gate::Calls;
pub use graph::Graph;
pub use kernel::{Kernel, KernelCost, KernelImage, Launch, ModuleImage, Param, Signature};
pub use mailbox::Mailbox;
pub use module::Module;
pub use self_test::checksum;
pub use staging::{StagingBuffer, StagingRing};
pub use stream::{Event, Priority, Stream};
pub use suballocator::{ALIGNMENT, Block, Exhausted, SubAllocator};
