//! The first GPU: its memory, taken once, and the models in it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use m40_cuda::{ALIGNMENT, Arena, Device};
use m40_gguf::Gguf;
use m40_gpu::executor::{Chosen, Executor, ExecutorOptions, Launches, PassError, Plan, Row};
use m40_gpu::weights::{Loader, Weights, WeightsError};
use m40_gpu::{Choice, Sequence};
use m40_program::Program;
use memmap2::Mmap;

use super::{Decode, GpuError, GpuMemory, GpuOptions, VRAM_RESERVE, kernel_image};
use crate::backend::{Output, Want, lock};
use crate::bench::Subject;
use crate::bench::card::CardSubject;
use crate::generate::{GenerateError, GenerateParams};
use crate::model::LoadError;

/// Conversations of a model at a time. They share its KV cache; a place costs little.
const SEQUENCES: u32 = 64;

/// Tokens of a page, the smallest step of the KV cache.
const PAGE_TOKENS: u64 = m40_gpu::ops::PAGE_TOKENS as u64;

/// Tokens that a launch that feeds itself chooses at a time: enough for the host to cost little, few
/// enough that ending early wastes little and streams run smoothly.
const PASSES_AHEAD: usize = 8;

/// Bytes from the arena's start that kernels can name.
const REACH: u64 = 64 << 30;

/// An open GPU.
#[derive(Debug)]
pub(crate) struct Card {
    device: Device,
    /// All memory of models.
    arena: Arena,
    decode: Decode,
    /// Held while a model is loaded, so that no other takes the memory that was counted for it.
    loader: Mutex<Loader>,
    turn: Turn,
}

/// Held during a pass if its launch waits for its own blocks: of two at a time each could hold what
/// the other waits for.
type Turn = Option<Arc<Mutex<()>>>;

impl Card {
    pub(crate) fn open(options: GpuOptions, threads: usize) -> Result<Self, GpuError> {
        Self::on(Device::open(0, kernel_image().ok_or(GpuError::NoKernels)?)?, options, threads)
    }

    /// A card that is open already.
    pub(crate) fn on(
        device: Device,
        options: GpuOptions,
        threads: usize,
    ) -> Result<Self, GpuError> {
        let loader = Mutex::new(Loader::new(&device, threads)?);
        let memory = device.memory()?;
        let bytes = budget(options.vram_bytes, memory.free, memory.total)?;
        let arena = Arena::new(&device, bytes)?;
        let turn = match options.decode {
            Decode::Graph => None,
            Decode::Persistent => Some(Arc::default()),
        };
        Ok(Self { device, arena, decode: options.decode, loader, turn })
    }

    pub(crate) fn describe(&self) -> String {
        let name = &self.device.info().name;
        let mib = self.arena.usage().capacity >> 20;
        format!("cuda, {name}, {mib} MiB for models, decode by {}", self.decode)
    }

    /// Everything of a model but its weights.
    pub(crate) fn plan(
        &self,
        path: &Path,
        program: Program,
        context: u32,
    ) -> Result<(Plan, GpuMemory), LoadError> {
        let multiprocessors = self.device.info().multiprocessors;
        plan(path, program, context, self.decode, multiprocessors)
    }

    pub(crate) fn load(
        &self,
        path: &Path,
        program: Program,
        gguf: &Gguf<Mmap>,
        context: u32,
    ) -> Result<CardModel, LoadError> {
        let (plan, memory) = self.plan(path, program, context)?;
        let mut loader = lock(&self.loader);
        let usage = self.arena.usage();
        let memory = GpuMemory { free: usage.free, capacity: usage.capacity, ..memory };
        if !memory.fits() {
            return Err(LoadError::NoRoom { path: path.into(), memory: Box::new(memory) });
        }
        let page_bytes = plan.kv_bytes(1) as usize;
        let on = &mut |_| ControlFlow::Continue(());
        let executor = Executor::load(plan, gguf, &self.arena, memory.kv, &mut loader, on)
            .map_err(|source| refused(path, source))?;
        Ok(CardModel { executor: Mutex::new(executor), page_bytes, turn: self.turn.clone() })
    }
}

/// Bytes of the arena: what was asked for, or what is free but for a reserve.
pub(super) fn budget(asked: Option<u64>, free: u64, total: u64) -> Result<u64, GpuError> {
    let bytes = match asked {
        Some(asked) if asked > free => return Err(GpuError::Budget { asked, free, total }),
        Some(asked) => asked,
        None => free.saturating_sub(VRAM_RESERVE).min(REACH),
    };
    let bytes = bytes / ALIGNMENT * ALIGNMENT;
    if bytes == 0 { Err(GpuError::NoMemory { free, total }) } else { Ok(bytes) }
}

/// A model's plan and what it takes; how much memory there is is for the caller to say.
pub(super) fn plan(
    path: &Path,
    program: Program,
    context: u32,
    decode: Decode,
    multiprocessors: u32,
) -> Result<(Plan, GpuMemory), LoadError> {
    let launches = match decode {
        Decode::Graph => Launches::OpByOp,
        Decode::Persistent => Launches::Whole,
    };
    let options = ExecutorOptions { context, sequences: SEQUENCES, launches };
    let program = Arc::new(program);
    let plan = Plan::new(Arc::clone(&program), options, multiprocessors)
        .map_err(|source| refused(path, source.into()))?;
    let bytes = || -> Result<_, WeightsError> {
        let weights = Weights::bytes(&program, &plan.lowered().matrices)?;
        Ok((weights, plan.fixed_bytes()? - weights))
    };
    let (weights, scratch) = bytes().map_err(|source| refused(path, source.into()))?;
    let memory = GpuMemory {
        weights,
        scratch,
        kv: plan.kv_bytes(context as usize).next_multiple_of(ALIGNMENT),
        kv_step: plan.kv_bytes(1),
        step_tokens: PAGE_TOKENS,
        context,
        context_trained: program.description.context,
        free: 0,
        capacity: 0,
    };
    Ok((plan, memory))
}

fn refused(path: &Path, source: m40_gpu::executor::LoadError) -> LoadError {
    use m40_gpu::executor::LoadError as Source;
    match source {
        Source::Cuda(source) | Source::Weights(WeightsError::Cuda(source)) => {
            LoadError::Gpu { path: path.into(), source: source.into() }
        }
        source => LoadError::Place { path: path.into(), source: Box::new(source) },
    }
}

/// A model on the card.
#[derive(Debug)]
pub(crate) struct CardModel {
    executor: Mutex<Executor>,
    /// Bytes of KV cache that a page takes.
    page_bytes: usize,
    turn: Turn,
}

/// Keys and values of a conversation, from its first pass on.
#[derive(Debug)]
pub(crate) struct CardCache {
    sequence: Option<Sequence>,
    page_bytes: usize,
    ahead: Ahead,
}

/// What the card has chosen beyond what it was asked for: a launch that feeds itself waits for nobody
/// between two tokens. Its keys and values are in the sequence already.
#[derive(Debug, Default)]
struct Ahead {
    /// Position of the first one's token.
    position: usize,
    /// Tokens that passes were over, and what was chosen after each.
    passes: VecDeque<(u32, Chosen)>,
}

impl Ahead {
    /// What was chosen after this token, if it is the next.
    fn take(&mut self, position: usize, token: u32) -> Option<Chosen> {
        let next = self.passes.front().is_some_and(|(over, _)| *over == token);
        if !next || self.position != position {
            return None;
        }
        self.position += 1;
        self.passes.pop_front().map(|(_, chosen)| chosen)
    }
}

impl CardCache {
    pub(crate) fn truncate(&mut self, len: usize) {
        self.ahead = Ahead::default();
        if let Some(sequence) = &mut self.sequence {
            sequence.truncate(len);
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.sequence.as_ref().map_or(0, |sequence| sequence.pages() * self.page_bytes)
    }
}

impl CardModel {
    pub(crate) fn cache(&self) -> CardCache {
        CardCache { sequence: None, page_bytes: self.page_bytes, ahead: Ahead::default() }
    }

    /// Whether the card chooses tokens as these parameters say: the likeliest, whatever came
    /// before.
    pub(crate) fn chooses(&self, params: &GenerateParams) -> bool {
        let vocab = lock(&self.executor).program().description.vocab;
        params.logprobs.is_none() && Choice::new(&params.sampling, 0, vocab).takes_largest()
    }

    /// As [`Runner::pass`](crate::backend::Runner::pass).
    pub(crate) fn pass<T>(
        &self,
        cache: &mut CardCache,
        base: usize,
        tokens: &[u32],
        want: Want,
        take: impl FnOnce(Output<'_>) -> T,
    ) -> Result<T, GenerateError> {
        if let (Want::Likeliest, [token]) = (want, tokens)
            && let Some(Chosen { token, probability }) = cache.ahead.take(base, *token)
        {
            return Ok(take(Output::Chosen { token, probability }));
        }
        cache.truncate(base);
        let mut executor = lock(&self.executor);
        let _turn = self.turn.as_ref().map(|turn| lock(turn));
        let sequence = match &mut cache.sequence {
            Some(sequence) => sequence,
            none => none.insert(
                executor
                    .begin()
                    .map_err(|error| GenerateError::TooManySessions { most: error.most })?,
            ),
        };
        let last = base + tokens.len() - 1;
        let row = |(position, &token)| {
            let logits = want == Want::Logits && position == last;
            Row { token, position, sequence: 0, logits }
        };
        let rows: Vec<_> = (base..).zip(tokens).map(row).collect();
        let chosen_after = if want == Want::Likeliest { rows.len() - 1 } else { rows.len() };
        let (rows, chosen_after) = rows.split_at(chosen_after);
        let mut logits: &mut [f32] = &mut [];
        if !rows.is_empty() {
            logits = executor.forward(rows, &mut [sequence]).map_err(failed)?;
        }
        match want {
            Want::Nothing => Ok(take(Output::Nothing)),
            Want::Logits => Ok(take(Output::Logits(logits))),
            Want::Likeliest => {
                // The first token after a prompt is wanted as soon as it can be had.
                let several = self.turn.is_some() && tokens.len() == 1;
                let passes = if several { PASSES_AHEAD.min(sequence.context() - base) } else { 1 };
                let mut choose = |passes| executor.choose(chosen_after, &mut [sequence], passes);
                let chosen = match choose(passes as u32) {
                    Err(PassError::Pages(_)) if passes > 1 => choose(1),
                    result => result,
                };
                let chosen = chosen.map_err(failed)?;
                let fed = chosen.iter().map(|chosen| chosen.token);
                let passes = fed.zip(chosen[1..].iter().copied()).collect();
                cache.ahead = Ahead { position: base + tokens.len(), passes };
                let Chosen { token, probability } = chosen[0];
                Ok(take(Output::Chosen { token, probability }))
            }
        }
    }

    /// As [`Runner::measure`](crate::backend::Runner::measure).
    pub(crate) fn measure<T>(&self, with: impl FnOnce(&mut dyn Subject) -> T) -> T {
        let mut executor = lock(&self.executor);
        let _turn = self.turn.as_ref().map(|turn| lock(turn));
        with(&mut CardSubject::new(&mut executor))
    }

    #[cfg(test)]
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self.executor.try_lock(), Err(std::sync::TryLockError::WouldBlock))
    }
}

pub(crate) fn failed(error: PassError) -> GenerateError {
    match error {
        PassError::Pages(full) => GenerateError::CacheFull {
            needed: full.needed as u64 * PAGE_TOKENS,
            free: full.free as u64 * PAGE_TOKENS,
            capacity: full.capacity as u64 * PAGE_TOKENS,
        },
        PassError::Cuda(error) => GenerateError::Gpu(error.into()),
        // Sessions check what comes from users, and keep count of positions.
        error => GenerateError::Pass { reason: error.to_string() },
    }
}
