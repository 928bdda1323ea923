//! Which GPU kernels this build has, and whether this machine's GPU runs them. build.rs compiles
//! them and writes `kernels.rs`.

use std::sync::LazyLock;

#[cfg(feature = "cuda")]
use m40_cuda::{Arena, CudaError, Device, KernelImage};
#[cfg(feature = "cuda")]
use sha2::{Digest, Sha256};

#[cfg(feature = "cuda")]
static IMAGE: Option<KernelImage> = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The GPU kernels in this build; `None` where it was built without a compiler for them.
#[cfg(feature = "cuda")]
pub fn kernel_image() -> Option<&'static KernelImage> {
    IMAGE.as_ref()
}

/// This build: its version and its GPU kernels, as in `0.1.0 (GPU kernels 59c2d4f0a1b7 by nvrtc
/// 12.9)`. The number is the start of the SHA-256 of all of them.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> =
        LazyLock::new(|| format!("{} ({})", env!("CARGO_PKG_VERSION"), kernels()));
    &VERSION
}

#[cfg(feature = "cuda")]
fn kernels() -> String {
    let Some(image) = kernel_image() else {
        return "no GPU kernels: built without a compiler for them".to_owned();
    };
    let mut hash = Sha256::new();
    for module in image.modules {
        // Lengths first, so that no two images hash the same bytes.
        for part in [module.name.as_bytes(), module.ptx.as_bytes(), module.machine_code] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    }
    let start: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("GPU kernels {start} by {}", image.compiler)
}

#[cfg(not(feature = "cuda"))]
fn kernels() -> String {
    "no GPU backend".to_owned()
}

/// Why this build cannot use a GPU of this machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// Built with `--no-default-features`.
    #[error("this build has no GPU backend")]
    NoBackend,
    /// Built without a compiler for the kernels.
    #[error(
        "this build has no GPU kernels: no CUDA 12 compiler was found (`make nvrtc` fetches one)"
    )]
    NoKernels,
    /// The driver or the device.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Has the first GPU load all kernels and compute a checksum of 4 MiB, and says what it is, in one
/// line.
#[cfg(feature = "cuda")]
pub fn check_gpu() -> Result<String, GpuError> {
    const ARENA_BYTES: u64 = 8 << 20;
    let device = Device::open(0, kernel_image().ok_or(GpuError::NoKernels)?)?;
    device.self_test(&Arena::new(&device, ARENA_BYTES)?)?;
    Ok(format!("{}; computes, with kernels as {}", device.info(), device.image_form()))
}

/// Has the first GPU compute: this build cannot.
#[cfg(not(feature = "cuda"))]
pub fn check_gpu() -> Result<String, GpuError> {
    Err(GpuError::NoBackend)
}
