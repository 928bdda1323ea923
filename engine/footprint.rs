//! What a model takes of the memory that models share.

use std::num::NonZeroU32;

use m40_cpu::kv;
use m40_gguf::Gguf;
use m40_program::{MemoryPlan, Program};
use m40_sched::Footprint;
use memmap2::Mmap;

use crate::backend::PROMPT_ROWS;
use crate::cpu::SIDE_BY_SIDE;
#[cfg(feature = "cuda")]
use crate::gpu::GpuMemory;

/// On the CPU: the weights, which are mapped; a session's KV cache of `context` tokens; and the buffers
/// of a pass over as much of a prompt as is computed at a time. That is a whole text where tokens see
/// those after them.
pub(crate) fn on_cpu(program: &Program, gguf: &Gguf<Mmap>, context: u32) -> Footprint {
    let page_tokens = const { NonZeroU32::new(kv::PAGE_TOKENS as u32).unwrap() };
    let page_bytes = program.kv_bytes_per_token() as u64 * kv::PAGE_TOKENS as u64;
    let (rows, logit_rows) = if program.is_causal() {
        (PROMPT_ROWS, SIDE_BY_SIDE)
    } else {
        let whole = (context as usize).next_multiple_of(kv::PAGE_TOKENS);
        (whole, whole)
    };
    let bytes = |info: &m40_gguf::TensorInfo| gguf.tensor_data(info).len() as u64;
    Footprint {
        weights: gguf.tensors().iter().map(bytes).sum(),
        scratch: MemoryPlan::new(program, rows, logit_rows).bytes(),
        page_bytes,
        page_tokens,
        context,
    }
}

/// Of the GPU's memory, for a model that runs on the CPU beside it: nothing.
#[cfg(feature = "cuda")]
pub(crate) fn beside_gpu(context: u32) -> Footprint {
    Footprint { weights: 0, scratch: 0, page_bytes: 0, page_tokens: NonZeroU32::MIN, context }
}

#[cfg(feature = "cuda")]
impl GpuMemory {
    /// As the ledger counts it.
    pub(crate) fn footprint(&self) -> Footprint {
        let page_tokens = u32::try_from(self.step_tokens).ok().and_then(NonZeroU32::new);
        let mut footprint = Footprint {
            weights: self.weights,
            scratch: self.scratch,
            page_bytes: self.kv_step,
            page_tokens: page_tokens.unwrap_or(NonZeroU32::MIN),
            context: self.context,
        };
        // What the cache takes beyond its pages, as it begins and ends where the arena has it.
        footprint.scratch += self.kv.saturating_sub(footprint.parts().kv);
        footprint
    }
}
