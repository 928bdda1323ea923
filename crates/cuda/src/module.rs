//! Kernels beside the device's image: those of one program.

use std::fmt;
use std::sync::Arc;

use crate::device::{Device, Function, load_function, refused};
use crate::driver::{Garbage, ModuleHandle};
use crate::error::CudaError;
use crate::kernel::{Kernel, Signature};

/// A loaded module; its kernels keep it.
pub struct Module {
    name: String,
    /// By name, as they have been asked for when it was loaded.
    functions: Vec<(&'static str, Function)>,
    handle: Option<ModuleHandle>,
    device: Device,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Module").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        self.functions.clear();
        self.handle.take().into_iter().for_each(|h| self.device.discard(Garbage::Module(h)));
    }
}

impl Module {
    /// image: machine code, or PTX that ends in a NUL
    pub(crate) fn load(
        device: Device,
        name: &str,
        image: &[u8],
        kernels: &[&'static str],
    ) -> Result<Self, CudaError> {
        let loaded = device.driver()?.load_module(image);
        let handle = loaded.map_err(|said| refused(name, said))?;
        let mut module =
            Self { name: name.to_owned(), functions: vec![], handle: Some(handle), device };
        for kernel in kernels {
            let handle = module.handle.as_ref().expect("it is taken by the drop alone");
            let function = load_function(module.device.driver()?, handle, kernel)?;
            module.functions.push((kernel, function));
        }
        Ok(module)
    }

    pub(crate) fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|(known, _)| *known == name).map(|(_, function)| function)
    }

    /// Whether it was loaded on this device.
    pub fn is_of(&self, device: &Device) -> bool {
        self.device.is_same(device)
    }

    /// One of its kernels by its signature.
    ///
    /// # Errors
    /// [`CudaError::NoKernel`] unless it was loaded with the module.
    pub fn kernel(self: &Arc<Self>, signature: &'static Signature) -> Result<Kernel, CudaError> {
        Kernel::new(self.device.clone(), Some(Arc::clone(self)), signature)
    }
}
