//! Engines: what computes.
#![expect(unsafe_code, reason = "functions have names for C")]

use std::mem;

use ::engine::{Decode, Device, Engine, EngineOptions, GpuOptions};

use crate::boundary::{Caller, Failure, Versioned, call, free, init, m40llm_status};

/// Models run on the CPU.
pub const M40LLM_DEVICE_CPU: u32 = 0;
/// Models run on the first NVIDIA GPU. The CPU never stands in for it.
pub const M40LLM_DEVICE_GPU: u32 = 1;

/// What computes, and what it may have.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct m40llm_engine_options {
    /// sizeof(m40llm_engine_options).
    pub size: usize,
    /// M40LLM_DEVICE_*; the CPU by default.
    pub device: u32,
    /// CPU threads; 0, the default, for as many as the process may use.
    pub threads: u32,
    /// Bytes of the GPU's memory to take for models; 0, the default, for all that is free but 512 MiB.
    pub vram_bytes: u64,
}

impl Default for m40llm_engine_options {
    fn default() -> Self {
        let size = mem::size_of::<Self>();
        Self { size, device: M40LLM_DEVICE_CPU, threads: 0, vram_bytes: 0 }
    }
}

// SAFETY: plain numbers, the first its size.
unsafe impl Versioned for m40llm_engine_options {}

/// Loads models.
#[derive(Debug)]
pub struct m40llm_engine(pub(crate) Engine);

/// Fills in the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_engine_options_init(options: *mut m40llm_engine_options) {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { init(options) };
}

/// Makes an engine. A GPU is opened and its memory taken here. `options` may be NULL for the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_engine_new(
    options: *const m40llm_engine_options,
    engine: *mut *mut m40llm_engine,
) -> m40llm_status {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe {
        call(|caller| {
            caller.hand_out(engine, || {
                Ok(m40llm_engine(Engine::new(engine_options(caller, options)?)?))
            })
        })
    }
}

/// Frees an engine. Models that it loaded stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn m40llm_engine_free(engine: *mut m40llm_engine) {
    // SAFETY: whoever calls keeps the rules of the header.
    unsafe { free(engine) };
}

fn engine_options(
    caller: Caller,
    from: *const m40llm_engine_options,
) -> Result<EngineOptions, Failure> {
    let m40llm_engine_options { device, threads, vram_bytes, .. } = caller.options(from)?;
    let device = match device {
        M40LLM_DEVICE_CPU => Device::Cpu,
        M40LLM_DEVICE_GPU => Device::Gpu(GpuOptions {
            vram_bytes: (vram_bytes > 0).then_some(vram_bytes),
            decode: Decode::default(),
        }),
        other => return Err(Failure::argument("device", format!("{other} is none"))),
    };
    let threads = (threads > 0).then_some(threads as usize);
    Ok(EngineOptions { threads, device, ..EngineOptions::default() })
}
