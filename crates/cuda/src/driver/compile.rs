//! Modules, and the driver's compiler.

use std::ffi::{CStr, c_void};
use std::{ptr, slice};

use cudarc::driver::sys::{CUjit_option, CUjitInputType, CUlinkState_st};

use super::{Driver, Handle, ModuleHandle, handle};
use crate::error::CudaError;

/// What the driver's compiler may say about a module, in bytes.
const LOG_BYTES: usize = 16 << 10;

/// Where the driver's compiler says what it thinks of a source, and the options that name it.
struct Log {
    text: Vec<u8>,
    options: [CUjit_option; 2],
    values: [*mut c_void; 2],
}

impl Log {
    fn new() -> Self {
        let mut text = vec![0; LOG_BYTES];
        let options = [
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The driver takes the size in the pointer's place and leaves the used bytes there.
        let values = [text.as_mut_ptr().cast(), ptr::without_provenance_mut(text.len())];
        Self { text, options, values }
    }

    /// How many options, and where they and their values are.
    fn options(&mut self) -> (u32, *mut CUjit_option, *mut *mut c_void) {
        (2, self.options.as_mut_ptr(), self.values.as_mut_ptr())
    }

    fn with(self, error: CudaError) -> (CudaError, String) {
        let text = CStr::from_bytes_until_nul(&self.text).unwrap_or_default();
        (error, text.to_string_lossy().trim().to_owned())
    }
}

impl Driver {
    /// `image`: machine code, or PTX that ends in a NUL. On failure also what the driver's compiler
    /// said.
    pub(crate) fn load_module(&self, image: &[u8]) -> Result<ModuleHandle, (CudaError, String)> {
        let mut log = Log::new();
        let (count, options, values) = log.options();
        let image = image.as_ptr().cast();
        let module = handle(|module| {
            // SAFETY: options with a value each; the log has the size passed; the image is whole and
            // of a form that says where it ends.
            unsafe { self.cuModuleLoadDataEx(module, image, count, options, values) }
        });
        module.map_err(|error| log.with(error))
    }

    /// Machine code for the device of the current context. On failure also what the driver's
    /// compiler said.
    pub(crate) fn assemble(&self, ptx: &[u8]) -> Result<Vec<u8>, (CudaError, String)> {
        let mut log = Log::new();
        let (count, options, values) = log.options();
        // SAFETY: options with a value each; the log has the size passed and outlives the state.
        let state = handle(|state| unsafe { self.cuLinkCreate_v2(count, options, values, state) });
        let assembled = state.and_then(|state| {
            let image = self.image_of(&state, ptx);
            // SAFETY: made by the driver, and dropped here.
            let destroyed = unsafe { self.cuLinkDestroy(state.0) };
            image.and_then(|image| destroyed.map(|()| image))
        });
        assembled.map_err(|error| log.with(error))
    }

    fn image_of(&self, state: &Handle<CUlinkState_st>, ptx: &[u8]) -> Result<Vec<u8>, CudaError> {
        const FORM: CUjitInputType = CUjitInputType::CU_JIT_INPUT_PTX;
        let (from, name, none) = (ptx.as_ptr().cast_mut().cast(), c"ptx", ptr::null_mut());
        // SAFETY: the state is alive; the driver copies so many bytes and writes to none of them; no
        // options.
        unsafe {
            let name = name.as_ptr();
            self.cuLinkAddData_v2(state.0, FORM, from, ptx.len(), name, 0, none, ptr::null_mut())
        }?;
        let (mut image, mut bytes) = (ptr::null_mut(), 0);
        // SAFETY: the state is alive; the pointers are to an address and a length.
        unsafe { self.cuLinkComplete(state.0, &mut image, &mut bytes) }?;
        // SAFETY: the driver's memory of that length, which lives until the state is destroyed.
        Ok(unsafe { slice::from_raw_parts(image.cast_const().cast::<u8>(), bytes) }.to_vec())
    }
}
