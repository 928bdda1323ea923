//! A model on the card, and passes over it.

mod choose;
mod enqueue;
mod error;
mod load;
mod measure;
mod observe;
mod prompt;
mod resident;
mod wide;
mod workspace;

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use m40_cuda::{
    Arena, CudaError, Device, DeviceSlice, Element, Graph, Kernel, KernelSource, Mailbox, Module,
    StagingRing, Stream,
};
use m40_program::Program;
use m40_sched::pages::{PagesError, Rank};

pub use self::choose::{Attend, Canceller, Chosen, Unattended};
pub use self::error::{LoadError, PassError};
pub use self::measure::{KernelTime, idle_ops};
use self::resident::Stay;
use crate::batch::{decode_passes, is_prompt, prompt_passes};
use crate::continuation::States;
use crate::desk;
use crate::kv::KvPlan;
use crate::lower::{LowerError, Lowered, RegionId, Target, lower};
use crate::ops::{self, NO_SLOT, OP_WORDS, PAGE_TOKENS, PASS_ROWS, Place, decode_threads};
use crate::prefill::{LOGIT_ROWS, Prefill};
use crate::sequence::{Pool, Sequence, TooManySequences};
use crate::specialize::DecodeSource;
use crate::weights::{self, Weights, WeightsError};

/// Words of a pass: its number of rows, three that are not used, and the rows.
const PASS_WORDS: usize = 4 + 4 * PASS_ROWS;

/// Words of the barrier: its counter, the count that the next launch begins from, and whether blocks
/// have given up waiting.
const BARRIER_WORDS: usize = 3;

/// Rows of a pass over a prompt, at most: enough to read weights seldom, few enough that others do
/// not wait long.
const PROMPT_ROWS: usize = 512;

/// Rows of the decode kernels.
const KERNEL_ROWS: [usize; 4] = [1, 2, 4, 8];

/// Makes decode kernels: compiles them, or has them from before.
pub trait BuildKernels {
    /// A module with the named kernels, compiled as [`Device::image_form`] says; or one that was loaded
    /// of the same source before.
    ///
    /// # Errors
    /// [`LoadError::Compile`], or [`LoadError::Cuda`] where the driver does not load it.
    fn build(
        &mut self,
        source: KernelSource<'_>,
        device: &Device,
        kernels: &[&'static str],
    ) -> Result<Arc<Module>, LoadError>;
}

/// How a model is to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecutorOptions {
    /// Tokens that a sequence may have.
    pub context: u32,
    /// Sequences at a time.
    pub sequences: u32,
    /// How passes are launched.
    pub launches: Launches,
}

/// How a pass is launched. The results are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Launches {
    /// A launch for each op, enqueued one by one.
    #[default]
    OpByOp,
    /// The same, recorded once as a graph and enqueued together.
    Recorded,
    /// One launch for all ops, whose blocks wait for each other. All of them have to run at once:
    /// nothing else may. Where tokens are chosen the kernel stays between passes, and for what is
    /// chosen next: see [`Executor::rest`].
    Whole,
}

/// A model's memory, known before anything is read.
#[derive(Clone, Debug)]
pub struct Plan {
    program: Arc<Program>,
    options: ExecutorOptions,
    lowered: Lowered,
    prefill: Prefill,
}

/// One token of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Id in the vocabulary.
    pub token: u32,
    /// Position in its sequence.
    pub position: usize,
    /// Index of its sequence among those given with the pass.
    pub sequence: usize,
    /// Whether its logits are wanted.
    pub logits: bool,
}

/// What a launch of ops is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// The logits of one pass. What is chosen is not looked at, and no sequence's state changes.
    Logits,
    /// What one pass chooses.
    Tokens,
}

impl Plan {
    /// Plans a program for a card of so many multiprocessors.
    ///
    /// # Errors
    /// [`LowerError`] when the card does not run it.
    pub fn new(
        program: Arc<Program>,
        options: ExecutorOptions,
        multiprocessors: u32,
    ) -> Result<Self, LowerError> {
        let target = Target { blocks: multiprocessors, context: options.context };
        let lowered = lower(&program, target)?;
        let rows = PROMPT_ROWS.min(options.context as usize).max(1);
        let prefill = Prefill::new(&lowered, rows)?;
        Ok(Self { program, options, lowered, prefill })
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// The program as ops of the card.
    pub fn lowered(&self) -> &Lowered {
        &self.lowered
    }

    /// The source of its decode kernels.
    ///
    /// # Errors
    /// [`LoadError::Weights`] when its weights have no planes.
    pub fn decode_source(&self) -> Result<DecodeSource, LoadError> {
        let layouts = weights::layouts(&self.program, &self.lowered.matrices)?;
        Ok(DecodeSource::new(&self.lowered, &self.program, &layouts)?)
    }

    /// Bytes of the arena that the model takes beside its KV cache.
    ///
    /// # Errors
    /// [`WeightsError`] when its weights have no planes.
    pub fn fixed_bytes(&self) -> Result<u64, WeightsError> {
        let slices = [
            self.lowered.scratch_bytes(),
            4 * (self.lowered.ops.len() * OP_WORDS) as u64,
            4 * self.table_words() as u64,
            4 * PASS_WORDS as u64,
            4 * BARRIER_WORDS as u64,
            States::bytes(self.options.sequences as usize) as u64,
        ];
        let whole = |bytes: u64| bytes.max(1).next_multiple_of(m40_cuda::ALIGNMENT);
        let buffers = self.prefill.buffers.iter().map(|buffer| 4 * buffer.words as u64);
        let slices: u64 = slices.into_iter().chain(buffers).map(whole).sum();
        Ok(slices + Weights::bytes(&self.program, &self.lowered.matrices)?)
    }

    /// Bytes of KV cache for so many tokens of one sequence.
    pub fn kv_bytes(&self, tokens: usize) -> u64 {
        tokens.div_ceil(PAGE_TOKENS) as u64 * KvPlan::page_bytes(&self.program.kv)
    }

    /// Entries of a sequence's page table, a multiple of a place's words.
    fn table_entries(&self) -> usize {
        (self.options.context as usize).div_ceil(PAGE_TOKENS).next_multiple_of(4)
    }

    fn table_words(&self) -> usize {
        self.table_entries() * self.options.sequences as usize
    }
}

/// A model on the card.
pub struct Executor {
    plan: Plan,
    kernels: [Kernel; 4],
    /// Launches of a pass, recorded, for each kernel; none where a pass is one launch.
    graphs: Vec<Graph>,
    /// Those of a wide pass, by its rows; made when first needed.
    wide_graphs: HashMap<usize, Graph>,
    /// Launches run in its stream, behind the copies.
    ring: StagingRing,
    pool: Arc<Pool>,
    scratch: DeviceSlice<u32>,
    ops: DeviceSlice<u32>,
    /// The number by which kernels know the op that chooses tokens.
    sample_variant: u32,
    pass: DeviceSlice<u32>,
    barrier: DeviceSlice<u32>,
    tables: DeviceSlice<u32>,
    /// What sequences go on by, as [`States`] has it.
    states: DeviceSlice<u8>,
    /// A word for each slot, by which the host ends a sequence while a launch runs.
    cancels: Mailbox,
    /// How the host talks with a kernel that stays.
    desk: Mailbox,
    stay: Stay,
    /// The ticket given last.
    ticket: u32,
    cache: DeviceSlice<u8>,
    /// Bytes of the cache that belong to each layer.
    layers: Vec<Range<usize>>,
    /// Of the prefill; `None` while a launch is prepared that writes it.
    buffers: Vec<Option<DeviceSlice<u32>>>,
    /// By name.
    rows_kernels: HashMap<&'static str, Kernel>,
    weights: Weights,
    arena: Arena,
    /// Words that have come from the card.
    words: Vec<u32>,
    logits: Vec<f32>,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model = &self.plan.program.description.name;
        f.debug_struct("Executor").field("model", model).finish_non_exhaustive()
    }
}

impl Executor {
    /// The program it runs.
    pub fn program(&self) -> &Program {
        &self.plan.program
    }

    /// The program as ops of the card.
    pub fn lowered(&self) -> &Lowered {
        &self.plan.lowered
    }

    /// The card.
    pub fn device(&self) -> &Device {
        self.arena.device()
    }

    /// Bytes of weights on the card.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.device_bytes()
    }

    /// Pages of the KV cache that no sequence has, and all, of
    /// [`PAGE_TOKENS`](crate::ops::PAGE_TOKENS) tokens each.
    pub fn pages(&self) -> (usize, usize) {
        self.pool.pages()
    }

    /// An empty sequence that shares no pages with others, ever.
    ///
    /// # Errors
    /// [`TooManySequences`] when as many as were planned for are in use.
    pub fn begin(&self) -> Result<Sequence, TooManySequences> {
        self.pool.begin()
    }

    /// A sequence that will hold `tokens`, and holds as many of them as are in full pages of the
    /// cache, but never the last. It may take pages of those that are weaker than `rank`
    /// ([`Sequence::reserve`]), and lose its own to stronger ones.
    ///
    /// # Errors
    /// [`TooManySequences`] when as many as were planned for are in use.
    pub fn begin_with(&self, rank: Rank, tokens: &[u32]) -> Result<Sequence, TooManySequences> {
        self.pool.begin_with(rank, tokens)
    }

    /// Runs the program over `rows` and returns the logits, `[logit_rows, vocab] f32`, of the rows
    /// that want them, in order. Rows of one sequence follow each other by position, beginning
    /// where the sequence ends.
    ///
    /// # Errors
    /// [`PassError`], before anything is computed unless the card fails.
    pub fn forward(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
    ) -> Result<&mut [f32], PassError> {
        self.prepare(rows, sequences, 1)?;
        self.rest()?;
        let mut logits = std::mem::take(&mut self.logits);
        logits.clear();
        if is_prompt(rows) {
            for pass in prompt_passes(rows, self.plan.prefill.max_rows(), LOGIT_ROWS) {
                self.run_prompt(&rows[pass], sequences, &mut logits)?;
            }
        } else {
            for pass in decode_passes(rows) {
                let rows = &rows[pass];
                self.run(rows, sequences, Want::Logits)?;
                self.read_logits(rows, &mut logits)?;
            }
        }
        computed(rows, sequences)?;
        self.logits = logits;
        Ok(&mut self.logits)
    }

    /// Checks rows, and makes room for them and what follows them in `passes` passes, unless their
    /// sequences end before.
    fn prepare(
        &self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        passes: u32,
    ) -> Result<(), PassError> {
        let vocab = self.plan.program.description.vocab;
        let before: Vec<_> = sequences.iter().map(|sequence| sequence.len()).collect();
        let mut ends = before.clone();
        for row in rows {
            let (index, count) = (row.sequence, sequences.len());
            let of_this = sequences.get(index).is_some_and(|s| s.is_of(&self.pool));
            if !of_this {
                return Err(PassError::Sequence { index, count });
            }
            let Row { token, position, .. } = *row;
            if token as usize >= vocab {
                return Err(PassError::Token { token, vocab });
            }
            if position != ends[index] {
                return Err(PassError::Position { position, len: ends[index] });
            }
            ends[index] += 1;
        }
        for ((sequence, end), before) in sequences.iter().zip(&mut ends).zip(&before) {
            let context = sequence.context();
            if *end > *before {
                *end += sequence.passes(passes).saturating_sub(1) as usize;
            }
            if *end > context {
                return Err(PassError::Context { position: *end - 1, context });
            }
        }
        Ok(self.pool.grow(sequences, &ends)?)
    }

    /// One pass. Rows are checked, and there is room for them.
    fn run(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        want: Want,
    ) -> Result<(), PassError> {
        self.send_pass(rows, sequences, want)?;
        let kernel = kernel_for(rows.len());
        match self.plan.options.launches {
            Launches::OpByOp => {
                let mut ops = 0..self.plan.lowered.ops.len();
                Ok(ops.try_for_each(|op| self.launch(kernel, op..op + 1))?)
            }
            Launches::Recorded => Ok(self.graphs[kernel].launch(self.ring.stream())?),
            Launches::Whole => {
                self.ring.stream().zero(self.barrier.all_mut())?;
                self.launch(kernel, 0..self.plan.lowered.ops.len())?;
                let mut words = [0; BARRIER_WORDS];
                self.ring.read(self.barrier.all(), &mut words)?;
                if words[2] == 0 {
                    return Ok(());
                }
                // Blocks that gave up may have left anything there.
                self.write_scratch()?;
                Err(PassError::Stuck)
            }
        }
    }

    /// Tells the card of the rows of a pass, and what for.
    fn send_pass(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        want: Want,
    ) -> Result<(), CudaError> {
        let mut words = vec![rows.len() as u32, 0, 0, 0];
        words.extend(self.row_words(rows, sequences, want)?);
        upload(&mut self.ring, &mut self.pass, 0..words.len(), &words)
    }

    /// Rows for kernels, with slots where tokens are to be chosen as sequences go on.
    fn row_words(
        &mut self,
        rows: &[Row],
        sequences: &mut [&mut Sequence],
        want: Want,
    ) -> Result<Vec<u32>, CudaError> {
        let mut words = Vec::with_capacity(ops::Row::WORDS * rows.len());
        for row in rows {
            let row = match want {
                Want::Logits => self.row(row, sequences)?,
                Want::Tokens => self.chosen_row(row, sequences)?,
            };
            words.extend(row.words());
        }
        Ok(words)
    }

    fn write_scratch(&mut self) -> Result<(), CudaError> {
        write_scratch(&self.plan.lowered, &mut self.ring, &mut self.scratch)
    }

    /// A row for kernels, without a slot, after its sequence's page table was sent.
    fn row(&mut self, row: &Row, sequences: &mut [&mut Sequence]) -> Result<ops::Row, CudaError> {
        let sequence = &mut *sequences[row.sequence];
        let start = self.plan.table_entries() * sequence.slot() as usize;
        let (first, news) = sequence.take_news();
        if !news.is_empty() {
            let range = start + first..start + first + news.len();
            upload(&mut self.ring, &mut self.tables, range, &news)?;
        }
        let pages = place_of(&self.tables).0 + (4 * start as u64 / Place::BYTES) as u32;
        let (token, position) = (row.token, row.position as u32);
        Ok(ops::Row { token, position, pages: Place(pages), slot: NO_SLOT })
    }

    /// The same of a sequence that goes on by itself, with its slot.
    fn chosen_row(
        &mut self,
        row: &Row,
        sequences: &mut [&mut Sequence],
    ) -> Result<ops::Row, CudaError> {
        let found = self.row(row, sequences)?;
        let sequence = &sequences[row.sequence];
        let slot = if sequence.accepted().is_some() { sequence.slot() } else { found.slot };
        Ok(ops::Row { slot, ..found })
    }

    /// Enqueues some ops of a pass, while no kernel stays.
    fn launch(&self, kernel: usize, ops: Range<usize>) -> Result<(), CudaError> {
        debug_assert!(!self.stays(), "it would wait for the kernel that stays");
        self.decode().launch(kernel, ops, 1, 0, self.ring.stream())
    }

    fn decode(&self) -> Decode<'_> {
        let Self { kernels, arena, plan, cancels, desk, .. } = self;
        Decode { kernels, arena, plan, cancels, desk, places: self.decode_places() }
    }

    fn decode_places(&self) -> DecodePlaces {
        DecodePlaces {
            ops: place_of(&self.ops),
            pass: place_of(&self.pass),
            barrier: place_of(&self.barrier),
            chosen: self.region(self.plan.lowered.chosen),
        }
    }

    /// Records the launches of a pass for each kernel: enqueued together, they follow each other
    /// without the host.
    fn record(&mut self) -> Result<(), CudaError> {
        let ops = self.plan.lowered.ops.len();
        for kernel in 0..KERNEL_ROWS.len() {
            let graph = self
                .ring
                .stream()
                .capture(|| (0..ops).try_for_each(|op| self.launch(kernel, op..op + 1)))?;
            self.graphs.push(graph);
        }
        Ok(())
    }

    fn region(&self, id: RegionId) -> Place {
        let offset = self.plan.lowered.region(id).offset / Place::BYTES;
        Place(place_of(&self.scratch).0 + offset as u32)
    }

    /// Words of a region's rows.
    fn read(&mut self, id: RegionId, words: Range<usize>) -> Result<&[u32], CudaError> {
        let first = (self.plan.lowered.region(id).offset / 4) as usize;
        self.words.resize(words.len(), 0);
        let range = first + words.start..first + words.end;
        let view = self.scratch.view(range).expect("regions lie in scratch memory");
        self.ring.read(view, &mut self.words)?;
        Ok(&self.words)
    }

    fn read_logits(&mut self, rows: &[Row], to: &mut Vec<f32>) -> Result<(), CudaError> {
        let view = self.plan.lowered.logits;
        let stride = self.plan.lowered.region(view.region).stride;
        let mut next = 0;
        while next < rows.len() {
            let wanted = rows[next..].iter().take_while(|row| row.logits).count();
            if wanted > 0 {
                let words = self.read(view.region, next * stride..(next + wanted) * stride)?;
                for row in words.chunks_exact(stride) {
                    to.extend(row[view.columns()].iter().map(|word| f32::from_bits(*word)));
                }
            }
            next += wanted.max(1);
        }
        Ok(())
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // If it does not leave the card is lost, or as good as lost.
        let _ = self.rest();
        // Memory must not go back while work on it is enqueued. If the wait fails the card is lost.
        let _ = self.ring.stream().wait();
    }
}

/// Decode kernels, and all that they are launched with.
#[derive(Clone, Copy)]
struct Decode<'a> {
    kernels: &'a [Kernel; 4],
    arena: &'a Arena,
    plan: &'a Plan,
    cancels: &'a Mailbox,
    desk: &'a Mailbox,
    places: DecodePlaces,
}

#[derive(Clone, Copy)]
struct DecodePlaces {
    ops: Place,
    pass: Place,
    barrier: Place,
    chosen: Place,
}

impl Decode<'_> {
    /// Enqueues some ops; of all of them so many passes, or as jobs say that follow the job `taken`
    /// where there are none.
    fn launch(
        self,
        kernel: usize,
        ops: Range<usize>,
        passes: u32,
        taken: u32,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let blocks = self.plan.lowered.target.blocks;
        self.kernels[kernel]
            .launch([blocks, 1, 1], [decode_threads(KERNEL_ROWS[kernel]), 1, 1])
            .arena(self.arena)
            .scalar(self.places.ops.0)
            .scalar(ops.start as u32)
            .scalar(ops.end as u32)
            .scalar(self.places.pass.0)
            .scalar(passes)
            .scalar(self.places.barrier.0)
            .scalar(self.places.chosen.0)
            .mailbox(self.cancels, self.plan.options.sequences as usize)
            .mailbox(self.desk, desk::WORDS)
            .scalar(taken)
            .on(stream)
    }
}

/// Notes what sequences hold after passes over rows.
fn computed(rows: &[Row], sequences: &mut [&mut Sequence]) -> Result<(), PagesError> {
    let mut tokens = vec![vec![]; sequences.len()];
    rows.iter().for_each(|row| tokens[row.sequence].push(row.token));
    sequences.iter_mut().zip(tokens).try_for_each(|(sequence, tokens)| sequence.computed(&tokens))
}

/// The smallest kernel for so many rows, an index into [`KERNEL_ROWS`].
fn kernel_for(rows: usize) -> usize {
    KERNEL_ROWS.iter().position(|most| *most >= rows).expect("a pass has 8 rows at most")
}

/// Where a slice lies; [`LoadError::TooFar`] was ruled out when it was allocated.
fn place_of<T: m40_cuda::Element>(slice: &DeviceSlice<T>) -> Place {
    Place((slice.offset() / Place::BYTES) as u32)
}

fn place<T: m40_cuda::Element>(slice: &DeviceSlice<T>) -> Result<Place, LoadError> {
    let end = slice.offset() + slice.len() as u64 * size_of::<T>() as u64;
    let nameable = Place::of_bytes(end.next_multiple_of(Place::BYTES)).is_some();
    let offset = slice.offset();
    if nameable { Ok(place_of(slice)) } else { Err(LoadError::TooFar { offset }) }
}

/// Scratch memory as passes expect it: constants, and zeros.
fn write_scratch(
    lowered: &Lowered,
    ring: &mut StagingRing,
    scratch: &mut DeviceSlice<u32>,
) -> Result<(), CudaError> {
    ring.stream().zero(scratch.all_mut())?;
    for region in &lowered.regions {
        let first = (region.offset / size_of::<u32>() as u64) as usize;
        write_constants(ring, scratch, first, &region.contents)?;
    }
    Ok(())
}

/// Writes numbers over a buffer's words from `first` on; on return they are there.
fn write_constants(
    ring: &mut StagingRing,
    slice: &mut DeviceSlice<u32>,
    first: usize,
    constants: &[f32],
) -> Result<(), CudaError> {
    if constants.is_empty() {
        return Ok(());
    }
    let words: Vec<_> = constants.iter().map(|x| x.to_bits()).collect();
    let to = slice.view_mut(first..first + words.len()).expect("as long as was planned");
    ring.write(to, &words)
}

/// Enqueues a copy.
fn upload<T: Element>(
    ring: &mut StagingRing,
    slice: &mut DeviceSlice<T>,
    range: Range<usize>,
    from: &[T],
) -> Result<(), CudaError> {
    let to = slice.view_mut(range).expect("as long as was planned");
    ring.upload(to, |first, room| {
        room.copy_from_slice(&from[first..first + room.len()]);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_kernel_that_has_room_runs() {
        let found: Vec<_> = (1..=8).map(|rows| KERNEL_ROWS[kernel_for(rows)]).collect();
        assert_eq!(found, [1, 2, 4, 4, 8, 8, 8, 8]);
    }
}
