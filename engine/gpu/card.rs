//! The first GPU: its memory, taken once, and the models in it.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use m40_cuda::{ALIGNMENT, Arena, Device};
use m40_gguf::Gguf;
use m40_gpu::continuation::Continuation;
use m40_gpu::executor::{
    Canceller, Chosen, Executor, ExecutorOptions, Launches, PassError, Plan, Row,
};
use m40_gpu::ops::PAGE_TOKENS;
use m40_gpu::weights::{Loader, Weights, WeightsError};
use m40_gpu::{Sequence, TooManySequences, samples};
use m40_program::Program;
use memmap2::Mmap;

use super::batch::Passes;
use super::going::Going;
use super::kernels::Kernels;
use super::owner::{Owner, Seat};
use super::turns::Turns;
use super::{Decode, GpuError, GpuMemory, GpuOptions, VRAM_RESERVE, kernel_image};
use crate::backend::{Output, Start, lock};
use crate::bench::card::CardSubject;
use crate::bench::{BenchOptions, OnLine, bench};
use crate::generate::{Cancel, GenerateError};
use crate::model::LoadError;

/// Conversations of a model at a time. They share its KV cache; a place costs little.
pub(crate) const SEQUENCES: u32 = 64;

/// Tokens that a launch that feeds itself chooses at a time: enough for the host to cost little, few
/// enough that ending early wastes little and streams run smoothly.
const PASSES_AHEAD: u32 = 8;

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
    loader: Mutex<(Loader, Kernels)>,
    turn: Turn,
}

/// Held during a pass if its launch waits for its own blocks: of two at a time each could hold what
/// the other waits for.
type Turn = Option<Arc<Turns>>;

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
        let loader = Mutex::new((Loader::new(&device, threads)?, Kernels::of_environment()));
        let memory = device.memory()?;
        let bytes = budget(options.vram_bytes, memory.free, memory.total)?;
        let arena = Arena::new(&device, bytes)?;
        let turn = match options.decode {
            Decode::Launch | Decode::Graph => None,
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
        let mut held = lock(&self.loader);
        let (loader, kernels) = &mut *held;
        let usage = self.arena.usage();
        let memory = GpuMemory { free: usage.free, capacity: usage.capacity, ..memory };
        if !memory.fits() {
            return Err(LoadError::NoRoom { path: path.into(), memory: Box::new(memory) });
        }
        let page_bytes = plan.kv_bytes(1) as usize;
        let on = &mut |_| ControlFlow::Continue(());
        let executor = Executor::load(plan, gguf, &self.arena, memory.kv, loader, kernels, on)
            .map_err(|source| refused(path, source))?;
        let vocab = executor.program().description.vocab;
        let passes = OnCard { executor, turn: self.turn.clone() };
        let ahead = if self.turn.is_some() { PASSES_AHEAD } else { 1 };
        let owner = Owner::start(passes, ahead)
            .map_err(|error| GpuError::Thread { reason: error.to_string() })
            .map_err(|source| LoadError::Gpu { path: path.into(), source })?;
        Ok(CardModel { owner, vocab, context: context as usize, page_bytes })
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
        Decode::Launch => Launches::OpByOp,
        Decode::Graph => Launches::Recorded,
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
        step_tokens: PAGE_TOKENS as u64,
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

/// A model on the card, whose sessions share passes.
#[derive(Debug)]
pub(crate) struct CardModel {
    owner: Owner<OnCard>,
    vocab: usize,
    /// Tokens that a conversation may have.
    context: usize,
    /// Bytes of KV cache that a page takes.
    page_bytes: usize,
}

/// Keys and values of a conversation, from its first pass on.
#[derive(Debug)]
pub(crate) struct CardCache {
    seat: Seat<OnCard>,
    page_bytes: usize,
}

impl CardCache {
    pub(crate) fn truncate(&mut self, len: usize) {
        self.seat.truncate(len);
    }

    pub(crate) fn bytes(&self) -> usize {
        self.seat.sequence().map_or(0, |sequence| sequence.pages() * self.page_bytes)
    }
}

impl CardModel {
    pub(crate) fn cache(&self) -> CardCache {
        CardCache { seat: self.owner.seat(), page_bytes: self.page_bytes }
    }

    /// As [`Runner::begin`](crate::backend::Runner::begin). The card chooses tokens where nobody
    /// needs their logits.
    pub(crate) fn begin(&self, cache: &mut CardCache, start: &Start<'_>) {
        let params = start.params;
        let chooses = params.logprobs.is_none() && samples(&params.sampling, self.vocab);
        cache.seat.begin(chooses.then(|| Going::new(start, self.vocab, self.context)));
    }

    /// As [`Runner::pass`](crate::backend::Runner::pass).
    pub(crate) fn pass<T>(
        &self,
        cache: &mut CardCache,
        base: usize,
        tokens: &[u32],
        take: impl FnOnce(Output<'_>) -> T,
    ) -> Result<(usize, T), GenerateError> {
        self.owner.pass(&mut cache.seat, base, tokens, take)
    }

    /// As [`Runner::rest`](crate::backend::Runner::rest).
    pub(crate) fn rest(&self, cache: &mut CardCache) {
        self.owner.rest(&mut cache.seat);
    }

    /// As [`Runner::bench`](crate::backend::Runner::bench): on the model's thread, which hears after
    /// each line whether to go on.
    pub(crate) fn bench(
        &self,
        options: &BenchOptions,
        on_line: &mut OnLine<'_>,
    ) -> Result<(), GenerateError> {
        let options = options.clone();
        let (lines, told) = sync_channel(0);
        let (answers, answered) = sync_channel(0);
        let result = self.owner.lend(move |on_card| {
            let _turn = on_card.turn.as_deref().map(Turns::wait);
            let on_line = &mut |line| match lines.send(line) {
                Ok(()) => answered.recv().unwrap_or(ControlFlow::Break(())),
                Err(_) => ControlFlow::Break(()),
            };
            bench(&mut CardSubject::new(&mut on_card.executor), &options, on_line)
        })?;
        for line in told {
            // The thread waits for it, unless it has ended.
            let _ = answers.send(on_line(line));
        }
        result.wait()
    }
}

/// An executor that takes turns with those of other models.
#[derive(Debug)]
struct OnCard {
    executor: Executor,
    turn: Turn,
}

impl Cancel for Canceller {
    fn cancel(&self) {
        Self::cancel(self);
    }
}

impl Passes for OnCard {
    type Sequence = Sequence;
    type Canceller = Canceller;

    fn pages(&self) -> (usize, usize) {
        self.executor.pages()
    }

    fn begin(&mut self) -> Result<Sequence, TooManySequences> {
        self.executor.begin()
    }

    fn truncate(sequence: &mut Sequence, len: usize) {
        sequence.truncate(len);
    }

    fn forward(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
    ) -> Result<&mut [f32], PassError> {
        let _turn = self.turn.as_deref().map(Turns::wait);
        self.executor.forward(rows, sequences)
    }

    fn continue_with(
        &mut self,
        sequence: &mut Sequence,
        continuation: &Continuation,
    ) -> Result<Canceller, PassError> {
        self.executor.continue_with(sequence, continuation)
    }

    fn rows_at_once(&self, waiting: usize) -> usize {
        self.executor.rows_at_once(waiting)
    }

    fn choose(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        passes: u32,
    ) -> Result<Vec<Chosen>, PassError> {
        let _turn = self.turn.as_deref().map(Turns::wait);
        self.executor.choose(rows, sequences, passes)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}
