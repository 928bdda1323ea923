//! The first GPU: its memory, taken once, and the models in it.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use m40_cuda::{ALIGNMENT, Arena, Device, KernelSource, Module};
use m40_gguf::Gguf;
use m40_gpu::continuation::Continuation;
use m40_gpu::executor::{
    Attend, BuildKernels, Canceller, Chosen, Executor, ExecutorOptions, Launches, PassError, Plan,
    Row,
};
use m40_gpu::ops::{PAGE_TOKENS, PASSES_AT_ONCE};
use m40_gpu::resident::IDLE_MICROS;
use m40_gpu::weights::{Loader, Weights, WeightsError};
use m40_gpu::{Sequence, TooManySequences, samples};
use m40_program::Program;
use m40_sched::pages::{PagesError, Rank};
use memmap2::Mmap;

use super::batch::Passes;
use super::going::Going;
use super::kernels::Kernels;
use super::owner::{Lent, Owner, Seat};
use super::turns::{Turn, Turns};
use super::{Decode, GpuError, GpuMemory, GpuOptions, VRAM_RESERVE, kernel_image};
use crate::backend::{Output, Start, lock};
use crate::bench::card::CardSubject;
use crate::bench::{BenchOptions, OnLine, bench};
use crate::duty::Duty;
use crate::generate::{Cancel, GenerateError};
use crate::model::LoadError;
use crate::passes::DecodePasses;
use crate::pulse::Pulse;

/// Conversations of a model at a time. They share its KV cache; a place costs little.
pub(crate) const SEQUENCES: u32 = 64;

/// How often whoever holds an idle card looks whether others want it.
const LOOK: Duration = Duration::from_micros(200);

/// How long an idle card is held: as long as a kernel stays on it without a job.
const HELD: Duration = Duration::from_micros(IDLE_MICROS as u64);

/// Passes of a launch while there have to be pauses: so few that pauses are short as well.
const SLOWED_PASSES: u32 = 4;

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
    turns: Option<Arc<Turns>>,
    /// Of the CPU.
    threads: usize,
    duty: Duty,
}

impl Card {
    pub(crate) fn open(options: GpuOptions, threads: usize, duty: &Duty) -> Result<Self, GpuError> {
        let device = Device::open(0, kernel_image().ok_or(GpuError::NoKernels)?)?;
        Self::on(device, options, threads, duty)
    }

    /// A card that is open already.
    pub(crate) fn on(
        device: Device,
        options: GpuOptions,
        threads: usize,
        duty: &Duty,
    ) -> Result<Self, GpuError> {
        let loader = Mutex::new((Loader::new(&device, threads)?, Kernels::of_environment()));
        let memory = device.memory()?;
        let bytes = budget(options.vram_bytes, memory.free, memory.total)?;
        let arena = Arena::new(&device, bytes)?;
        let turns = match options.decode {
            Decode::Launch | Decode::Graph => None,
            Decode::Persistent => Some(Arc::default()),
        };
        let duty = duty.clone();
        Ok(Self { device, arena, decode: options.decode, loader, turns, threads, duty })
    }

    pub(crate) fn describe(&self) -> String {
        let name = &self.device.info().name;
        let mib = self.arena.usage().capacity >> 20;
        format!("cuda, {name}, {mib} MiB for models, decode by {}", self.decode)
    }

    /// Where it is on the PCI bus.
    pub(crate) fn pci_address(&self) -> String {
        self.device.info().pci.clone()
    }

    /// Threads of the CPU that models beside the card's may have.
    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Bytes that all models have together.
    pub(crate) fn capacity(&self) -> u64 {
        self.arena.usage().capacity
    }

    /// Bytes of them that nothing has.
    pub(crate) fn free(&self) -> u64 {
        self.arena.usage().free
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
        pulse: &Arc<Pulse>,
    ) -> Result<(CardModel, GpuMemory), LoadError> {
        let (plan, memory) = self.plan(path, program, context)?;
        let mut held = lock(&self.loader);
        let (loader, kernels) = &mut *held;
        let usage = self.arena.usage();
        let memory = GpuMemory { free: usage.largest, capacity: usage.capacity, ..memory };
        if !memory.fits() {
            return Err(LoadError::NoRoom { path: path.into(), memory: Box::new(memory) });
        }
        let page_bytes = plan.kv_bytes(1) as usize;
        let on = &mut |_| {
            pulse.step();
            ControlFlow::Continue(())
        };
        let mut kernels = Watched { kernels, pulse };
        let executor = Executor::load(plan, gguf, &self.arena, memory.kv, loader, &mut kernels, on)
            .map_err(|source| refused(path, source))?;
        let vocab = executor.program().description.vocab;
        let (turns, duty) = (self.turns.clone(), self.duty.clone());
        let passes = OnCard { executor, turns, turn: None, busy: Instant::now(), duty };
        let ahead = if self.turns.is_some() { PASSES_AT_ONCE as u32 } else { 1 };
        let owner = Owner::start(passes, ahead)
            .map_err(|error| GpuError::Thread { reason: error.to_string() })
            .map_err(|source| LoadError::Gpu { path: path.into(), source })?;
        let (context, pulse) = (context as usize, Arc::clone(pulse));
        let duty = self.duty.clone();
        let model = CardModel { owner, vocab, context, page_bytes, pulse, duty };
        Ok((model, memory))
    }
}

/// Kernels whose compiler shows no steps.
struct Watched<'a> {
    kernels: &'a mut Kernels,
    pulse: &'a Pulse,
}

impl BuildKernels for Watched<'_> {
    fn build(
        &mut self,
        source: KernelSource<'_>,
        device: &Device,
        kernels: &[&'static str],
    ) -> Result<Arc<Module>, m40_gpu::executor::LoadError> {
        let _compiling = self.pulse.opaque();
        self.kernels.build(source, device, kernels)
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
    pub(super) pulse: Arc<Pulse>,
    pub(super) duty: Duty,
}

/// Keys and values of a conversation while an answer is computed.
#[derive(Debug)]
pub(crate) struct CardCache {
    seat: Seat<OnCard>,
    page_bytes: usize,
}

impl CardCache {
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
        let needs_logits = params.logprobs.is_some() || params.constraint.is_some();
        let chooses = !needs_logits && samples(&params.sampling, self.vocab);
        let going = chooses.then(|| Going::new(start, self.vocab, self.context));
        self.owner.begin(&mut cache.seat, going, params.priority, start.cancel);
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

    /// As [`Runner::decode_passes`](crate::backend::Runner::decode_passes).
    pub(crate) fn decode_passes(&self) -> DecodePasses {
        self.owner.decode_passes()
    }

    /// As [`Runner::bench`](crate::backend::Runner::bench): on the model's thread, which hears after
    /// each line whether to go on.
    pub(crate) fn bench(
        &self,
        options: &BenchOptions,
        on_line: &mut OnLine<'_>,
    ) -> Result<(), GenerateError> {
        let (options, pulse) = (options.clone(), Arc::clone(&self.pulse));
        let (lines, told) = sync_channel(0);
        let (answers, answered) = sync_channel(0);
        let result = self.in_turn(move |executor| {
            let on_line = &mut |line| match lines.send(line) {
                Ok(()) => answered.recv().unwrap_or(ControlFlow::Break(())),
                Err(_) => ControlFlow::Break(()),
            };
            bench(&mut CardSubject::new(executor, pulse), &options, on_line)
        })?;
        for line in told {
            // The thread waits for it, unless it has ended.
            let _ = answers.send(on_line(line));
        }
        result.wait()
    }
}

impl CardModel {
    /// Has the model's thread do something else than passes of sessions, while no other model runs.
    pub(super) fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Executor) -> T + Send + 'static,
    ) -> Result<Lent<T>, GenerateError> {
        self.owner.lend(move |on_card| {
            on_card.take_turn();
            let done = work(&mut on_card.executor);
            on_card.end_turn();
            done
        })
    }
}

/// An executor that takes turns with those of other models.
#[derive(Debug)]
struct OnCard {
    executor: Executor,
    /// Where launches wait for their own blocks: of two at a time each could hold what the other waits
    /// for.
    turns: Option<Arc<Turns>>,
    /// Held during a pass, and while a kernel of the model stays.
    turn: Option<Turn>,
    /// When something was last computed.
    busy: Instant,
    duty: Duty,
}

impl OnCard {
    fn take_turn(&mut self) {
        if self.turn.is_none() {
            self.turn = self.turns.as_ref().map(Turns::wait);
        }
    }

    fn is_wanted(&self) -> bool {
        self.turn.as_ref().is_some_and(Turn::is_wanted) || self.executor.is_wanted()
    }

    /// Leaves the card to others.
    fn end_turn(&mut self) {
        // What went wrong goes wrong again in the next pass, and is told there.
        let _ = self.executor.rest();
        self.turn = None;
    }
}

impl Drop for OnCard {
    fn drop(&mut self) {
        self.end_turn();
    }
}

/// Attends to a launch, and ends it when another model wants the card.
struct InTurn<'a> {
    attend: &'a mut dyn Attend,
    turn: Option<&'a Turn>,
}

impl Attend for InTurn<'_> {
    fn chosen(&mut self, chosen: &[Chosen]) {
        self.attend.chosen(chosen);
    }

    fn pause(&mut self, time: Duration) -> ControlFlow<()> {
        let flow = self.attend.pause(time);
        if self.turn.is_some_and(Turn::is_wanted) { ControlFlow::Break(()) } else { flow }
    }
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

    fn begin(&mut self, rank: Rank, text: &[u32]) -> Result<Sequence, TooManySequences> {
        self.executor.begin_with(rank, text)
    }

    fn len(sequence: &Sequence) -> usize {
        sequence.len()
    }

    fn truncate(sequence: &mut Sequence, len: usize) {
        sequence.truncate(len);
    }

    fn resume(sequence: &mut Sequence, text: &[u32]) -> usize {
        sequence.resume(text)
    }

    fn reserve(sequence: &mut Sequence, end: usize) -> Result<bool, PagesError> {
        sequence.reserve(end)
    }

    fn fits(sequence: &Sequence, end: usize) -> bool {
        sequence.fits(end)
    }

    fn has_room(sequence: &Sequence, end: usize) -> bool {
        sequence.has_room(end)
    }

    fn forward(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
    ) -> Result<&mut [f32], PassError> {
        self.take_turn();
        let begun = Instant::now();
        let logits = self.executor.forward(rows, sequences);
        self.turn = None;
        let ended = Instant::now();
        self.duty.ran(ended - begun, ended);
        logits
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
        attend: &mut dyn Attend,
    ) -> Result<(), PassError> {
        self.take_turn();
        let passes = if self.duty.is_full() { passes } else { passes.min(SLOWED_PASSES) };
        let begun = Instant::now();
        let mut attend = InTurn { attend, turn: self.turn.as_ref() };
        let chosen = self.executor.choose_attended(rows, sequences, passes, &mut attend);
        self.busy = Instant::now();
        self.duty.ran(self.busy - begun, self.busy);
        if chosen.is_err() || !self.executor.stays() || self.is_wanted() {
            self.end_turn();
        }
        chosen.map(drop)
    }

    fn idle(&mut self) -> Option<Duration> {
        let held = self.turn.is_some();
        if held && (self.is_wanted() || self.busy.elapsed() >= HELD) {
            self.end_turn();
        }
        self.turn.as_ref().map(|_| LOOK)
    }

    fn pause(&mut self) -> Option<Duration> {
        self.duty.pause(Instant::now())
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}
