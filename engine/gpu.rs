//! The GPU: which kernels this build has, whether this machine's GPU runs them, and how much memory
//! models take there. build.rs compiles the kernels and writes `kernels.rs`.

#[cfg(feature = "cuda")]
mod batch;
#[cfg(feature = "cuda")]
pub(crate) mod card;
#[cfg(feature = "cuda")]
mod embed;
#[cfg(feature = "cuda")]
mod going;
#[cfg(feature = "cuda")]
mod kernels;
#[cfg(feature = "cuda")]
mod owner;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests;
#[cfg(feature = "cuda")]
mod turns;

use std::fmt;
use std::sync::LazyLock;

#[cfg(feature = "cuda")]
pub(crate) use batch::failed;
#[cfg(feature = "cuda")]
use m40_cuda::{Arena, CompileError, CudaError, Device, KernelImage};
#[cfg(feature = "cuda")]
use sha2::{Digest, Sha256};

#[cfg(feature = "cuda")]
static IMAGE: Option<KernelImage> = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The GPU kernels in this build; `None` where it was built without a compiler for them.
#[cfg(feature = "cuda")]
pub fn kernel_image() -> Option<&'static KernelImage> {
    IMAGE.as_ref()
}

/// What compiles decode kernels for models, and keeps them, as the environment says.
#[cfg(feature = "cuda")]
pub fn kernel_builder() -> impl m40_gpu::executor::BuildKernels + Send {
    kernels::Kernels::of_environment()
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

/// Bytes of the GPU's memory that are left to the driver and to others, unless the budget is given.
const VRAM_RESERVE: u64 = 512 << 20;

/// How to use the GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuOptions {
    /// Bytes of its memory to take for models; all that is free but 512 MiB when absent.
    pub vram_bytes: Option<u64>,
    /// How tokens are generated.
    pub decode: Decode,
}

/// How the GPU is given the work of generating a token. The tokens are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decode {
    /// A launch for each op, one by one.
    Launch,
    /// A launch for each op, all of them recorded once and enqueued together.
    Graph,
    /// A kernel that stays while there are tokens to generate, and 2 ms longer. Its blocks wait for each
    /// other between ops.
    #[default]
    Persistent,
}

impl fmt::Display for Decode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Launch => "launch",
            Self::Graph => "graph",
            Self::Persistent => "persistent",
        })
    }
}

/// What a model takes of the GPU's memory and what there is, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// Its weights.
    pub weights: u64,
    /// Everything else but the KV cache.
    pub scratch: u64,
    /// KV cache of one whole context.
    pub kv: u64,
    /// KV cache of `step_tokens` tokens, the least that it grows by.
    pub kv_step: u64,
    /// Tokens of a step.
    pub step_tokens: u64,
    /// Tokens of context that were asked for.
    pub context: u32,
    /// Tokens of context that the model was trained for.
    pub context_trained: u32,
    /// Memory for models that none has, in one piece.
    pub free: u64,
    /// Memory for models.
    pub capacity: u64,
}

impl GpuMemory {
    /// All that the model takes.
    pub fn needed(&self) -> u64 {
        self.weights + self.scratch + self.kv
    }

    /// Whether it fits in the piece that is free.
    pub fn fits(&self) -> bool {
        self.needed() <= self.free
    }

    /// The largest context with which it would fit in `memory` bytes; `None` if even the smallest
    /// is too large.
    pub fn context_in(&self, memory: u64) -> Option<u32> {
        let room = memory.checked_sub(self.weights + self.scratch)?;
        let steps = room.checked_div(self.kv_step).unwrap_or(u64::MAX);
        let tokens = steps.saturating_mul(self.step_tokens).min(self.context_trained.into());
        u32::try_from(tokens).ok().filter(|&tokens| tokens > 0)
    }
}

impl fmt::Display for GpuMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded so that what does not fit never looks as if it did.
        let up = |bytes: u64| bytes.div_ceil(1 << 20);
        let sum = up(self.weights) + up(self.scratch) + up(self.kv);
        write!(
            f,
            "{} MiB of weights, {} MiB of working memory and {} MiB of KV cache for {} tokens are \
             {sum} MiB, and {} of {} MiB are free in one piece: ",
            up(self.weights),
            up(self.scratch),
            up(self.kv),
            self.context,
            self.free >> 20,
            self.capacity >> 20,
        )?;
        match (self.context_in(self.free), self.context_in(self.capacity)) {
            (Some(tokens), _) => write!(f, "a context of {tokens} tokens would fit"),
            (None, Some(tokens)) if tokens >= self.context => f.write_str("unload other models"),
            (None, Some(tokens)) => {
                write!(f, "without other models a context of {tokens} tokens would fit")
            }
            (None, None) => f.write_str("no context would fit; run the model on the cpu"),
        }
    }
}

/// Why this build cannot use a GPU of this machine, or why the GPU failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
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
    /// Less memory is free than the models were to have.
    #[error(
        "{} MiB of the GPU's memory were to be taken for models, and {} of {} MiB are free",
        asked >> 20, free >> 20, total >> 20
    )]
    Budget {
        /// Bytes asked for.
        asked: u64,
        /// Bytes that no process uses.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// There is no memory for models at all.
    #[error(
        "{} of the GPU's {} MiB are free, and {} are left to the driver and others: nothing is \
         left for models; end what uses the GPU (`nvidia-smi` shows it)",
        free >> 20, total >> 20, VRAM_RESERVE >> 20
    )]
    NoMemory {
        /// Bytes that no process uses.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// The blocks of a launch waited too long for each other.
    #[error(
        "the blocks of a launch waited in vain for each other: does another program use the GPU? \
         decode = \"graph\" goes on beside it"
    )]
    Stuck,
    /// The system has no thread for a model.
    #[error("no thread could be started to run the model: {reason}")]
    Thread {
        /// What it says.
        reason: String,
    },
    /// The driver says, by itself, that the device failed.
    #[error("its driver reports {reported}")]
    Reported {
        /// What happened.
        reported: String,
    },
    /// The driver or the device.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// What compiles a model's kernels when it is first loaded.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Compiler(#[from] CompileError),
}

impl GpuError {
    /// Whether this build lacks what it takes, whatever the machine has.
    pub fn is_of_build(&self) -> bool {
        matches!(self, Self::NoBackend | Self::NoKernels)
    }

    /// Whether the device stopped working for this process, which then has to be restarted.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Reported { .. } => true,
            #[cfg(feature = "cuda")]
            Self::Cuda(CudaError::DeviceLost { .. }) => true,
            _ => false,
        }
    }
}

/// Has the first GPU load all kernels and compute a checksum of 4 MiB, looks for what compiles a
/// model's kernels, and says what both are, in one line.
#[cfg(feature = "cuda")]
pub fn check_gpu() -> Result<String, GpuError> {
    const ARENA_BYTES: u64 = 8 << 20;
    let device = Device::open(0, kernel_image().ok_or(GpuError::NoKernels)?)?;
    device.self_test(&Arena::new(&device, ARENA_BYTES)?)?;
    let compiler = kernels::open_compiler()?.describe();
    let form = device.image_form();
    Ok(format!(
        "{}; computes, with kernels as {form}; {compiler} for those of models",
        device.info()
    ))
}

/// Has the first GPU compute: this build cannot.
#[cfg(not(feature = "cuda"))]
pub fn check_gpu() -> Result<String, GpuError> {
    Err(GpuError::NoBackend)
}
