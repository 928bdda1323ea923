//! Kernels: the image they come in, what each takes, and checked launches.

use std::fmt;
use std::sync::Arc;

use crate::arena::{Arena, View, ViewMut};
use crate::device::{Device, Function};
use crate::driver::{Geometry, MAX_PARAMS};
use crate::element::{Element, ElementType};
use crate::error::{CudaError, LaunchError};
use crate::graph::Keep;
use crate::mailbox::Mailbox;
use crate::module::Module;
use crate::stream::Stream;

/// The shared memory that a block may have on every device from Maxwell on, bytes.
const SHARED_BYTES: u64 = 48 << 10;
/// The most blocks along x, and along y and z, on every device from Maxwell on.
const GRID: [u32; 3] = [i32::MAX.cast_unsigned(), 65_535, 65_535];

/// All kernels of a program, compiled.
#[derive(Clone, Copy, Debug)]
pub struct KernelImage {
    /// What compiled them, as in `nvrtc 12.9`.
    pub compiler: &'static str,
    /// One for each source file.
    pub modules: &'static [ModuleImage],
}

/// The kernels of one source file, compiled.
#[derive(Clone, Copy)]
pub struct ModuleImage {
    /// The file's name without extension.
    pub name: &'static str,
    /// For `compute_52`, which the driver compiles for any newer device.
    pub ptx: &'static str,
    /// For `sm_52`, an ELF file; empty where there is none.
    pub machine_code: &'static [u8],
}

impl fmt::Debug for ModuleImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("ModuleImage");
        out.field("name", &self.name).field("ptx_bytes", &self.ptx.len());
        out.field("machine_code_bytes", &self.machine_code.len()).finish()
    }
}

impl ModuleImage {
    /// The names of its kernels, which PTX declares as `.entry NAME(`.
    pub fn kernels(&self) -> impl Iterator<Item = &'static str> {
        let declarations = self.ptx.lines().filter(|line| !line.trim_start().starts_with("//"));
        declarations.filter_map(|line| {
            let name = line.split_once(".entry ")?.1;
            name.split(['(', ' ']).next().filter(|name| !name.is_empty())
        })
    }
}

/// What a kernel takes, as its source declares it.
#[derive(Debug)]
pub struct Signature {
    /// The function's name.
    pub name: &'static str,
    /// Its parameters in order, at most 24.
    pub params: &'static [Param],
}

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// A buffer that it only reads.
    Read(ElementType),
    /// A buffer that it writes, and may read.
    Write(ElementType),
    /// A number.
    Scalar(ElementType),
    /// All of an arena, as `char *`. The kernel finds its data by offsets that it gets in other
    /// parameters or in data, and takes them on trust: whoever computes them makes them of
    /// [`DeviceSlice::offset`](crate::DeviceSlice::offset) and the lengths of slices.
    Arena,
    /// The words of a [`Mailbox`], as `volatile unsigned *`.
    Mailbox,
}

impl fmt::Display for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(element) => write!(f, "read {element}"),
            Self::Write(element) => write!(f, "write {element}"),
            Self::Scalar(element) => write!(f, "scalar {element}"),
            Self::Arena => f.write_str("an arena"),
            Self::Mailbox => f.write_str("a mailbox"),
        }
    }
}

/// What a kernel takes of a device, as compiled for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelCost {
    /// Registers a thread.
    pub registers: u32,
    /// Bytes a thread in memory for what found no register: 0 in any fast kernel.
    pub local_bytes: u32,
    /// Static shared memory a block, bytes.
    pub shared_bytes: u32,
    /// The most threads a block may have.
    pub max_threads: u32,
}

/// A kernel that can be launched.
#[derive(Clone, Debug)]
pub struct Kernel {
    device: Device,
    /// Where it is, unless in the device's image.
    module: Option<Arc<Module>>,
    signature: &'static Signature,
    cost: KernelCost,
}

impl Kernel {
    pub(crate) fn new(
        device: Device,
        module: Option<Arc<Module>>,
        signature: &'static Signature,
    ) -> Result<Self, CudaError> {
        let cost = KernelCost::default();
        let mut kernel = Self { device, module, signature, cost };
        kernel.cost = kernel.function()?.cost;
        Ok(kernel)
    }

    fn function(&self) -> Result<&Function, CudaError> {
        let kernel = self.signature.name;
        let found = match &self.module {
            Some(module) => module.function(kernel),
            None => self.device.function(kernel),
        };
        found.ok_or(CudaError::NoKernel { kernel })
    }

    /// What it takes.
    pub fn cost(&self) -> KernelCost {
        self.cost
    }

    /// How many blocks of `threads` threads and `shared` bytes of dynamic shared memory the whole
    /// device holds at once. With no more blocks than that all of them run, and may wait for each
    /// other, provided that nothing else runs.
    pub fn resident_blocks(&self, threads: u32, shared: u32) -> Result<u32, CudaError> {
        let handle = &self.function()?.handle;
        let blocks = self.device.driver()?.occupancy(handle, threads, shared)?;
        Ok(blocks * self.device.info().multiprocessors)
    }

    /// Begins a launch of `grid` blocks with `block` threads each, (x, y, z).
    pub fn launch(&self, grid: [u32; 3], block: [u32; 3]) -> Launch<'_> {
        let geometry = Geometry { grid, block, shared: 0 };
        let wrong = self.check(geometry).err();
        let (arguments, keeps) = ([0; MAX_PARAMS], [None; MAX_PARAMS]);
        Launch { kernel: self, geometry, arguments, keeps, count: 0, wrong }
    }

    fn check(&self, Geometry { grid, block, shared }: Geometry) -> Result<(), LaunchError> {
        if grid.iter().zip(GRID).any(|(&blocks, most)| blocks == 0 || blocks > most) {
            let [x, y, z] = grid;
            return Err(LaunchError::Grid { x, y, z });
        }
        let threads = block.iter().fold(1u32, |product, &n| product.saturating_mul(n));
        let most = self.cost.max_threads;
        if threads == 0 || threads > most {
            return Err(LaunchError::Block { threads, most });
        }
        let bytes = u64::from(shared) + u64::from(self.cost.shared_bytes);
        if bytes > SHARED_BYTES {
            return Err(LaunchError::Shared { bytes, most: SHARED_BYTES });
        }
        Ok(())
    }
}

/// A launch in preparation: the arguments in order, then [`Self::on`]. The first thing that does
/// not fit is the error.
#[derive(Debug)]
#[must_use = "nothing is launched before `on`"]
pub struct Launch<'a> {
    kernel: &'a Kernel,
    geometry: Geometry,
    arguments: [u64; MAX_PARAMS],
    /// What the arguments are addresses of.
    keeps: [Option<&'a dyn Keep>; MAX_PARAMS],
    /// Arguments so far.
    count: usize,
    wrong: Option<LaunchError>,
}

impl<'a> Launch<'a> {
    /// Gives each block `bytes` bytes of dynamic shared memory.
    pub fn shared(mut self, bytes: u32) -> Self {
        self.geometry.shared = bytes;
        self.wrong = self.wrong.or_else(|| self.kernel.check(self.geometry).err());
        self
    }

    /// A buffer that the kernel reads, `elements` elements of it.
    pub fn read<T: Element>(self, buffer: View<'a, T>, elements: usize) -> Self {
        self.buffer(Param::Read(T::TYPE), buffer, elements)
    }

    /// A buffer that the kernel writes, `elements` elements of it.
    pub fn write<T: Element>(self, buffer: ViewMut<'a, T>, elements: usize) -> Self {
        self.buffer(Param::Write(T::TYPE), buffer.into_view(), elements)
    }

    /// The whole arena. The kernel may read and write all of it, whatever slices were given out:
    /// see [`Param::Arena`].
    pub fn arena(mut self, arena: &'a Arena) -> Self {
        self.check_device(arena.device());
        self.argument(Param::Arena, arena.address(), Some(arena.kept()))
    }

    /// Words that the kernel shares with the host, at least `words` of them.
    pub fn mailbox(mut self, mailbox: &'a Mailbox, words: usize) -> Self {
        self.check_length(words, mailbox.words().len());
        self.check_device(mailbox.device());
        self.argument(Param::Mailbox, mailbox.address(), Some(mailbox.kept()))
    }

    /// A number.
    pub fn scalar<T: Element>(self, value: T) -> Self {
        self.argument(Param::Scalar(T::TYPE), value.bits(), None)
    }

    fn buffer<T: Element>(mut self, param: Param, buffer: View<'a, T>, needed: usize) -> Self {
        self.check_length(needed, buffer.len());
        self.check_device(buffer.device());
        self.argument(param, buffer.address, Some(buffer.kept()))
    }

    fn check_length(&mut self, needed: usize, holds: usize) {
        if self.wrong.is_none() && holds < needed {
            self.wrong = Some(LaunchError::Short { position: self.count, needed, holds });
        }
    }

    fn check_device(&mut self, device: &Device) {
        if self.wrong.is_none() && !device.is_same(&self.kernel.device) {
            self.wrong = Some(LaunchError::Elsewhere { position: self.count });
        }
    }

    fn argument(mut self, found: Param, bits: u64, keep: Option<&'a dyn Keep>) -> Self {
        let position = self.count;
        if let Some(expected) = self.kernel.signature.params.get(position)
            && *expected != found
            && self.wrong.is_none()
        {
            let (expected, found) = (expected.to_string(), found.to_string());
            self.wrong = Some(LaunchError::Kind { position, expected, found });
        }
        // What has no place is counted, and refused for its number.
        if position < MAX_PARAMS {
            (self.arguments[position], self.keeps[position]) = (bits, keep);
        }
        self.count += 1;
        self
    }

    /// Enqueues it. The buffers must stay until the stream has passed it: see
    /// [`DeviceSlice`](crate::DeviceSlice).
    pub fn on(mut self, stream: &Stream) -> Result<(), CudaError> {
        let kernel = self.kernel.signature.name;
        let (expected, found) = (self.kernel.signature.params.len(), self.count);
        let count = (expected != found).then_some(LaunchError::Count { expected, found });
        let many = || (found > MAX_PARAMS).then_some(LaunchError::TooMany { found });
        if let Some(reason) = self.wrong.or(count).or_else(many) {
            return Err(CudaError::Launch { kernel, reason });
        }
        let device = &self.kernel.device;
        let function = self.kernel.function()?;
        let driver = device.driver()?;
        stream.keep(self.keeps[..found].iter().flatten().map(|keep| keep.keep()));
        let arguments = &mut self.arguments[..found];
        // SAFETY: number and kinds are the signature's, which is the kernel's; each buffer is a
        // living one of this device and holds what its shape needs.
        unsafe { driver.launch(&function.handle, self.geometry, stream.handle(), arguments) }
    }
}
