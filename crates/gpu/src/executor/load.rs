//! Brings a model onto the card: weights, kernels, and what they work on.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::thread::{self, ScopedJoinHandle};

use m40_cuda::{ALIGNMENT, Arena, Device, ElementType, Kernel, KernelSource, Param, Signature};
use m40_gguf::Gguf;

use super::workspace::{WeightPlaces, Workspace};
use super::{BuildKernels, Executor, KERNEL_ROWS, Launches, LoadError, Plan};
use crate::kv::KvPlan;
use crate::ops::{PAGE_TOKENS, Place, decode_threads};
use crate::prefill::{LOGIT_ROWS, Shape, Slots};
use crate::sequence::Pool;
use crate::specialize::{DecodeSource, HEADERS};
use crate::weights::{self, Loader, Progress, Weights};

/// The arena; ops, first and last of them; pass; passes; barrier; chosen; cancels; the desk and the job
/// that was taken from it last.
const DECODE_PARAMS: &[Param] = &[
    Param::Arena,
    Param::Scalar(ElementType::U32),
    Param::Scalar(ElementType::U32),
    Param::Scalar(ElementType::U32),
    Param::Scalar(ElementType::U32),
    Param::Scalar(ElementType::U32),
    Param::Scalar(ElementType::U32),
    Param::Scalar(ElementType::U32),
    Param::Mailbox,
    Param::Mailbox,
    Param::Scalar(ElementType::U32),
];

/// kernels/decode.cuh, in the order of [`KERNEL_ROWS`].
static DECODE: [Signature; 4] = [
    Signature { name: "decode_b1", params: DECODE_PARAMS },
    Signature { name: "decode_b2", params: DECODE_PARAMS },
    Signature { name: "decode_b4", params: DECODE_PARAMS },
    Signature { name: "decode_b8", params: DECODE_PARAMS },
];

impl Executor {
    /// Loads a model into one piece of an arena, with a KV cache of at most `kv_bytes` bytes.
    ///
    /// # Errors
    /// [`LoadError`]; what was taken of the arena has gone back to it.
    pub fn load<B: AsRef<[u8]>>(
        plan: Plan,
        gguf: &Gguf<B>,
        arena: &Arena,
        kv_bytes: u64,
        loader: &mut Loader,
        builder: &mut (dyn BuildKernels + Send),
        progress: &mut (dyn FnMut(Progress) -> ControlFlow<()> + Send),
    ) -> Result<Self, LoadError> {
        let Plan { program, options, lowered, .. } = &plan;
        let (context, sequences) = (options.context as usize, options.sequences as usize);
        let useful = context.div_ceil(PAGE_TOKENS) * sequences;
        let kv = KvPlan::new(&program.kv, kv_bytes, useful);
        if kv.pages() == 0 && !program.kv.is_empty() {
            return Err(LoadError::NoCache { bytes: kv_bytes, tokens: kv.tokens() });
        }
        let device = arena.device().clone();
        let source = plan.decode_source()?;
        let kv_memory = kv.bytes().max(1).next_multiple_of(ALIGNMENT);
        let own = arena.piece(plan.fixed_bytes()? + kv_memory)?;
        let placed = Weights::place(program, gguf, &lowered.matrices, &own)?;
        // Nobody waits for another: one is the work of a compiler, one is the bus's, and one makes what
        // passes work on.
        let (kernels, weights, workspace) = thread::scope(|scope| {
            let kernels = scope.spawn(|| Kernels::of(&plan, &source, &device, builder));
            let at = WeightPlaces::of(placed.weights());
            let weights = scope.spawn(|| placed.fill(loader, progress));
            let workspace = Workspace::new(&plan, &source, &kv, &at, &own);
            (joined(kernels), joined(weights), workspace)
        });
        let (Kernels { decode: kernels, rows: rows_kernels }, weights) = (kernels?, weights?);
        if options.launches == Launches::Whole {
            check_resident(&kernels, lowered.target.blocks)?;
        }
        let Workspace {
            ring,
            cache,
            layers,
            scratch,
            states,
            ops,
            sample_variant,
            buffers,
            pass,
            barrier,
            tables,
            cancels,
            desk,
            stay,
        } = workspace?;
        let mut executor = Self {
            kernels,
            graphs: vec![],
            wide_graphs: HashMap::new(),
            ring,
            pool: Pool::new(kv.pages(), sequences, context),
            scratch,
            ops,
            sample_variant,
            pass,
            barrier,
            tables,
            states,
            cancels,
            desk,
            stay,
            ticket: 0,
            cache,
            layers,
            buffers,
            rows_kernels,
            weights,
            arena: arena.clone(),
            words: vec![],
            logits: vec![],
            plan,
        };
        if executor.plan.options.launches == Launches::Recorded {
            executor.record()?;
        }
        Ok(executor)
    }
}

/// What launches run, made while weights travel.
struct Kernels {
    /// In the order of [`KERNEL_ROWS`].
    decode: [Kernel; 4],
    /// Those that passes of every other shape may call, by name.
    rows: HashMap<&'static str, Kernel>,
}

impl Kernels {
    fn of(
        plan: &Plan,
        source: &DecodeSource,
        device: &Device,
        builder: &mut (dyn BuildKernels + Send),
    ) -> Result<Self, LoadError> {
        let decode = decode_kernels(device, &plan.program.description.name, source, builder)?;
        Ok(Self { decode, rows: rows_kernels(plan, device)? })
    }
}

/// The program's decode kernels, in the order of [`KERNEL_ROWS`].
fn decode_kernels(
    device: &Device,
    model: &str,
    source: &DecodeSource,
    builder: &mut (dyn BuildKernels + Send),
) -> Result<[Kernel; 4], LoadError> {
    let text = source.kernels();
    let kernels = KernelSource { name: model, text: &text, headers: HEADERS };
    let names = DECODE.each_ref().map(|signature| signature.name);
    let module = builder.build(kernels, device, &names)?;
    let [a, b, c, d] = DECODE.each_ref().map(|signature| module.kernel(signature));
    Ok([a?, b?, c?, d?])
}

fn rows_kernels(plan: &Plan, device: &Device) -> Result<HashMap<&'static str, Kernel>, LoadError> {
    let Plan { program, lowered, prefill, .. } = plan;
    let layouts = weights::layouts(program, &lowered.matrices)?;
    // Which kernels are called depends on no place.
    let slots = Slots { choices: Place(0), endings: Place(0) };
    let mut kernels = HashMap::new();
    for rows in (1..=prefill.max_rows().div_ceil(8)).map(|n| prefill.max_rows().min(8 * n)) {
        let wanted = rows.min(LOGIT_ROWS);
        let shape = Shape { rows, wanted, tiles: 1, tallest: 1 };
        let mut calls = prefill.calls(program, lowered, &layouts, shape);
        // More rows than that have no other wide passes.
        if rows == wanted {
            calls.extend(prefill.wide_calls(program, lowered, &layouts, wanted, slots));
        }
        for call in calls {
            let signature = call.kernel.signature();
            if !kernels.contains_key(signature.name) {
                kernels.insert(signature.name, device.kernel(signature)?);
            }
        }
    }
    Ok(kernels)
}

/// What a thread of a load has come to.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Whether the blocks of a pass can all run at once.
fn check_resident(kernels: &[Kernel; 4], blocks: u32) -> Result<(), LoadError> {
    for (kernel, rows) in kernels.iter().zip(KERNEL_ROWS) {
        let resident = kernel.resident_blocks(decode_threads(rows), 0)?;
        if resident < blocks {
            return Err(LoadError::NotResident { blocks, resident });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_named_by_their_rows() {
        for (rows, signature) in KERNEL_ROWS.iter().zip(&DECODE) {
            assert_eq!(signature.name, format!("decode_b{rows}"));
        }
    }
}
