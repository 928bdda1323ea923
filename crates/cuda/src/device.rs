//! A device: what it is, its context, and the kernels loaded into it.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fmt;
use std::sync::Arc;
use std::thread::{self, ThreadId};

use cudarc::driver::sys::{CUdevice, CUdevice_attribute as Attribute, CUfunction_attribute};

use crate::driver::{ContextHandle, Driver, FunctionHandle, Garbage, ModuleHandle};
use crate::error::{CudaError, CudaVersion};
use crate::gate::Calls;
use crate::kernel::{Kernel, KernelCost, KernelImage, ModuleImage, Signature};
use crate::module::Module;
use crate::stream::{Event, Priority, Stream};

/// Errors with which a driver refuses machine code that it may yet take as PTX.
const INVALID_IMAGE: u32 = 200;
const NO_BINARY_FOR_GPU: u32 = 209;

/// NVIDIA's version of a device's instruction set: 5.2 is the Tesla M40's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    /// The architecture: 5 is Maxwell.
    pub major: u32,
    /// The chip within it.
    pub minor: u32,
}

impl Capability {
    /// The oldest that the kernels run on, and the one whose machine code the image holds.
    pub const MINIMUM: Self = Self { major: 5, minor: 2 };
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a device is and has.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// Its number among the devices that the driver shows this process.
    pub ordinal: u32,
    /// Its name, as in `Tesla M40 24GB`.
    pub name: String,
    /// Where it is on the PCI bus, as in `0000:03:00.0`: by that other libraries know it.
    pub pci: String,
    /// Its instruction set.
    pub capability: Capability,
    /// The CUDA version of the driver.
    pub driver: CudaVersion,
    /// Its memory, and what of it was free when asked.
    pub memory: Memory,
    /// Whether memory errors are corrected. On a GDDR5 card this costs an eighth of the memory.
    pub ecc: bool,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// The highest core clock, MHz.
    pub clock_mhz: u32,
    /// The highest memory clock, MHz.
    pub memory_clock_mhz: u32,
    /// Width of the memory bus, bits.
    pub memory_bus_bits: u32,
    /// Second-level cache, bytes.
    pub l2_bytes: u32,
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        write!(
            f,
            "{} (compute capability {}), driver of CUDA {}, {:.1} of {:.1} GiB free, ECC {}, {} \
             multiprocessors at {} MHz",
            self.name,
            self.capability,
            self.driver,
            gib(self.memory.free),
            gib(self.memory.total),
            if self.ecc { "on" } else { "off" },
            self.multiprocessors,
            self.clock_mhz,
        )
    }
}

/// Memory of a device, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Not in use by any process.
    pub free: u64,
    /// All that the driver gives out.
    pub total: u64,
}

/// Says what device `ordinal` is, without loading anything into it. Its context is made and
/// dropped, so this also shows that the device takes work from this process.
pub fn probe(ordinal: u32) -> Result<DeviceInfo, CudaError> {
    Ok(Context::retain(Driver::open()?, ordinal)?.info.clone())
}

/// The primary context of a device.
#[derive(Debug)]
struct Context {
    info: DeviceInfo,
    device: CUdevice,
    /// `Some` until dropped.
    handle: Option<ContextHandle>,
    driver: Arc<Driver>,
}

impl Context {
    fn retain(driver: Arc<Driver>, ordinal: u32) -> Result<Self, CudaError> {
        let count = driver.device_count()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let device = driver.device(ordinal)?;
        let attribute = |attribute| driver.device_attribute(attribute, device);
        let mut info = DeviceInfo {
            ordinal,
            name: driver.device_name(device)?,
            pci: format!(
                "{:04x}:{:02x}:{:02x}.0",
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?,
            ),
            capability: Capability {
                major: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                minor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            },
            driver: driver.version()?,
            memory: Memory { free: 0, total: driver.total_memory(device)? },
            ecc: attribute(Attribute::CU_DEVICE_ATTRIBUTE_ECC_ENABLED)? != 0,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            clock_mhz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? / 1000,
            memory_clock_mhz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? / 1000,
            memory_bus_bits: attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
            l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        };
        if info.capability < Capability::MINIMUM {
            let DeviceInfo { name, capability, .. } = info;
            return Err(CudaError::UnsupportedDevice { name, capability });
        }
        let handle = driver.retain_context(device)?;
        let made_current = driver.make_current(&handle);
        let mut context = Self { info: info.clone(), device, handle: Some(handle), driver };
        made_current?;
        (info.memory.free, info.memory.total) = context.driver.memory()?;
        context.info = info;
        Ok(context)
    }

    /// The driver, with this context made current on the calling thread.
    fn driver(&self) -> Result<&Driver, CudaError> {
        if let Some(handle) = &self.handle {
            self.driver.make_current(handle)?;
        }
        Ok(&self.driver)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.driver.release_context(handle, self.device);
        }
    }
}

/// What a module was loaded as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageForm {
    /// `sm_52` machine code, as it is.
    MachineCode,
    /// `compute_52` PTX, compiled by the driver.
    Ptx,
}

impl fmt::Display for ImageForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MachineCode => "sm_52 machine code",
            Self::Ptx => "compute_52 PTX",
        })
    }
}

/// A kernel as loaded.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) handle: FunctionHandle,
    pub(crate) cost: KernelCost,
}

/// An open device with its kernels. A cheap handle; the context lives as long as any clone and
/// anything made of it.
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    functions: BTreeMap<String, Function>,
    modules: Vec<ModuleHandle>,
    form: ImageForm,
    context: Context,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.inner.context.info).finish()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.functions.clear();
        // Without the context the device is lost, and its end destroys everything.
        if let Ok(driver) = self.context.driver() {
            for module in self.modules.drain(..) {
                driver.discard(Garbage::Module(module));
            }
        }
    }
}

impl Device {
    /// Opens device `ordinal` and loads all kernels of the image, each of them fully: nothing is
    /// left to be loaded when a kernel is first launched.
    pub fn open(ordinal: u32, image: &KernelImage) -> Result<Self, CudaError> {
        Self::start(Driver::open()?, ordinal, image)
    }

    pub(crate) fn start(
        driver: Arc<Driver>,
        ordinal: u32,
        image: &KernelImage,
    ) -> Result<Self, CudaError> {
        let context = Context::retain(driver, ordinal)?;
        let native = context.info.capability == Capability::MINIMUM;
        let form = if native { ImageForm::MachineCode } else { ImageForm::Ptx };
        let mut inner = Inner { functions: BTreeMap::new(), modules: Vec::new(), form, context };
        for module in image.modules {
            inner.load(module)?;
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What the device is and has; its free memory as it was when opened.
    pub fn info(&self) -> &DeviceInfo {
        &self.inner.context.info
    }

    /// What its kernels were loaded as.
    pub fn image_form(&self) -> ImageForm {
        self.inner.form
    }

    /// Its memory, as the driver says now.
    pub fn memory(&self) -> Result<Memory, CudaError> {
        let (free, total) = self.driver()?.memory()?;
        Ok(Memory { free, total })
    }

    /// The kernels that were loaded, by name, with what each takes.
    pub fn kernels(&self) -> impl Iterator<Item = (&str, KernelCost)> {
        self.inner.functions.iter().map(|(name, function)| (name.as_str(), function.cost))
    }

    /// A kernel of the image by its signature.
    pub fn kernel(&self, signature: &'static Signature) -> Result<Kernel, CudaError> {
        if !self.inner.functions.contains_key(signature.name) {
            return Err(CudaError::NoKernel { kernel: signature.name });
        }
        Kernel::new(self.clone(), None, signature)
    }

    /// Loads a module that was compiled for this device: machine code, or PTX with a NUL behind, as
    /// [`image_form`](Self::image_form) says. The named kernels are loaded fully; there are no others.
    ///
    /// # Errors
    /// [`CudaError::BadImage`] when the driver refuses them; [`CudaError::Resident`] while a kernel
    /// stays resident.
    pub fn load(
        &self,
        name: &str,
        image: &[u8],
        kernels: &[&'static str],
    ) -> Result<Arc<Module>, CudaError> {
        Module::load(self.clone(), name, image, kernels).map(Arc::new)
    }

    /// A new stream, which the legacy default stream does not hold up.
    pub fn stream(&self, priority: Priority) -> Result<Stream, CudaError> {
        Stream::new(self.clone(), priority)
    }

    /// A new event.
    pub fn event(&self) -> Result<Event, CudaError> {
        Event::new(self.clone())
    }

    /// Begins a time in which a kernel stays resident on a device of this process. Waits for
    /// driver calls that allocate to end; until the result is dropped those of this thread are refused,
    /// and those of others wait some seconds for it: see [`Residency::is_wanted`].
    pub fn begin_residency(&self) -> Residency {
        let before = self.inner.context.driver.gate.close();
        Residency { device: self.clone(), thread: thread::current().id(), before }
    }

    /// The error that lost the device, if one did. All its calls fail with it from then on.
    pub fn lost(&self) -> Option<&CudaError> {
        self.inner.context.driver.gate.lost()
    }

    /// The driver, with this device's context current on the calling thread.
    pub(crate) fn driver(&self) -> Result<&Driver, CudaError> {
        self.inner.context.driver()
    }

    /// Destroys something of this device, now or once no kernel is resident.
    pub(crate) fn discard(&self, garbage: Garbage) {
        // Without the context the device is lost, and its end destroys everything.
        if let Ok(driver) = self.driver() {
            driver.discard(garbage);
        }
    }

    pub(crate) fn function(&self, name: &str) -> Option<&Function> {
        self.inner.functions.get(name)
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }
}

impl Inner {
    fn load(&mut self, image: &ModuleImage) -> Result<(), CudaError> {
        let driver = self.context.driver()?;
        let mut loaded = match self.form {
            ImageForm::MachineCode if !image.machine_code.is_empty() => {
                driver.load_module(image.machine_code)
            }
            _ => load_ptx(driver, image),
        };
        // A driver older than the compiler may refuse its machine code, not PTX 7.0.
        if self.form == ImageForm::MachineCode
            && let Err((CudaError::Driver { code: INVALID_IMAGE | NO_BINARY_FOR_GPU, .. }, _)) =
                loaded
        {
            self.form = ImageForm::Ptx;
            loaded = load_ptx(driver, image);
        }
        let module = loaded.map_err(|said| refused(image.name, said))?;
        let functions = image
            .kernels()
            .map(|name| Ok((name.to_owned(), load_function(driver, &module, name)?)));
        let functions = functions.collect::<Result<Vec<_>, CudaError>>();
        self.modules.push(module);
        self.functions.extend(functions?);
        Ok(())
    }
}

/// Why a module is not there, given the driver's error and what its compiler said.
pub(crate) fn refused(module: &str, (error, log): (CudaError, String)) -> CudaError {
    match error {
        CudaError::Driver { name, .. } => {
            CudaError::BadImage { module: module.to_owned(), name, log }
        }
        other => other,
    }
}

fn load_ptx(driver: &Driver, image: &ModuleImage) -> Result<ModuleHandle, (CudaError, String)> {
    let ptx = [image.ptx.as_bytes(), b"\0"].concat();
    driver.load_module(&ptx)
}

pub(crate) fn load_function(
    driver: &Driver,
    module: &ModuleHandle,
    name: &str,
) -> Result<Function, CudaError> {
    let name = CString::new(name).unwrap_or_default();
    let handle = driver.function(module, &name)?;
    let attribute = |attribute| driver.function_attribute(&handle, attribute);
    let cost = KernelCost {
        registers: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
        local_bytes: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        shared_bytes: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
        max_threads: attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
    };
    Ok(Function { handle, cost })
}

/// Held from before the launch of a kernel that does not end by itself until after its end.
#[derive(Debug)]
#[must_use = "the time ends when this is dropped"]
pub struct Residency {
    device: Device,
    /// Whose it is, wherever it is dropped.
    thread: ThreadId,
    before: Calls,
}

impl Residency {
    /// The driver calls since this began, of all threads.
    pub fn calls(&self) -> Calls {
        self.device.inner.context.driver.gate.calls() - self.before
    }

    /// Whether a driver call of another thread waits for the kernel to leave.
    pub fn is_wanted(&self) -> bool {
        self.device.inner.context.driver.gate.is_wanted()
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        self.device.inner.context.driver.gate.open(self.thread);
        if let Ok(driver) = self.device.driver() {
            driver.destroy_garbage();
        }
    }
}
