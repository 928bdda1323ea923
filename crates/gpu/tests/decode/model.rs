//! A tiny model on an emulated card, and the CPU's oracle beside it.

use std::path::Path;
use std::sync::Arc;

use m40_cpu::{Executor, ExecutorOptions, KvCache, Numerics, Row as CpuRow};
use m40_gguf::{Gguf, dequantize};
use m40_gpu::continuation::{Continuation, States};
use m40_gpu::kv::KvPlan;
use m40_gpu::lower::{Lowered, Places, Target, lower};
use m40_gpu::observe::visible;
use m40_gpu::ops::{NO_SLOT, Next, OP_WORDS, PASS_ROWS, Place, Row};
use m40_gpu::specialize::DecodeSource;
use m40_gpu::{Pool, Sequence as Cache};
use m40_program::diff::{Observer, Output};
use m40_program::{BuildOptions, KvType, Matrix, MatrixId, Program, build};
use m40_repack::{Layout, repack};
use m40_testkit::gguf::TinyModel;

use crate::card::{Card, Launch};

/// Places of a vector's start and end are multiples of these many bytes.
const VECTOR_BYTES: usize = 128;

/// Words of a pass before its rows.
const HEADER_WORDS: usize = 4;

/// A model as a file and as a program.
pub(crate) struct Model {
    pub(crate) program: Arc<Program>,
    gguf: Arc<Gguf<Vec<u8>>>,
}

impl Model {
    pub(crate) fn new(tiny: &TinyModel) -> Self {
        Self::with_kv(tiny, KvType::F16)
    }

    /// With keys and values of this type.
    pub(crate) fn with_kv(tiny: &TinyModel, kv_type: KvType) -> Self {
        let gguf = Gguf::parse(tiny.build()).unwrap();
        let program = build(&gguf, BuildOptions { kv_type, ..BuildOptions::default() }).unwrap();
        Self { program: Arc::new(program), gguf: Arc::new(gguf) }
    }

    /// How far logits, which are of size 2 to 10, may be from the oracle's. Keys and values are rounded
    /// in both: where a rounding falls the other way, an element differs by 5e-4 of itself in f16, by
    /// 8e-3 of the largest one in int8.
    pub(crate) fn tolerance(&self) -> f32 {
        match self.program.kv[0].ty {
            KvType::F16 => 4e-3,
            KvType::Int8 => 4e-2,
        }
    }

    fn blocks(&self, matrix: &Matrix) -> &[u8] {
        let row = matrix.ty.row_bytes(matrix.cols).unwrap();
        let tensor = self.gguf.tensor(&matrix.tensor).unwrap();
        &tensor.data[matrix.first_row * row..][..matrix.rows * row]
    }

    /// Every vector, each at a multiple of [`VECTOR_BYTES`], and where they begin.
    fn vectors(&self) -> (Vec<u8>, Vec<usize>) {
        let mut all = vec![];
        let mut starts = vec![];
        for vector in &self.program.vectors {
            let tensor = self.gguf.tensor(&vector.tensor).unwrap();
            let mut floats = vec![0.0; tensor.dims.cols()];
            dequantize(tensor.ty, tensor.data, &mut floats).unwrap();
            starts.push(all.len());
            let floats = &floats[vector.first..vector.first + vector.len];
            all.extend(floats.iter().flat_map(|x| x.to_le_bytes()));
            all.resize(all.len().next_multiple_of(VECTOR_BYTES), 0xff);
        }
        (all, starts)
    }

    /// The layouts of a lowered program's matrices.
    pub(crate) fn layouts(&self, lowered: &Lowered) -> Vec<Layout> {
        let layout = |parts: &Vec<MatrixId>| {
            let parts = || parts.iter().map(|id| self.program.matrix(*id));
            let first = parts().next().unwrap();
            Layout::of(first.ty, parts().map(|m| m.rows).sum(), first.cols).unwrap()
        };
        lowered.matrices.iter().map(layout).collect()
    }

    /// Bytes of an arena that its weights take.
    pub(crate) fn weight_bytes(&self, lowered: &Lowered) -> usize {
        let matrices = self.layouts(lowered).into_iter().map(|layout| layout.bytes());
        matrices.chain([self.vectors().0.len()]).map(Card::taken).sum()
    }

    /// Brings the weights onto a card: matrices, and where each vector lies.
    pub(crate) fn place(
        &self,
        card: &mut Card,
        lowered: &Lowered,
    ) -> (Vec<(Layout, Place)>, Vec<Place>) {
        let mut matrices = vec![];
        for (layout, parts) in self.layouts(lowered).into_iter().zip(&lowered.matrices) {
            let parts = parts.iter().map(|id| self.blocks(self.program.matrix(*id)));
            let mut planes = vec![0; layout.bytes()];
            repack(&layout, &parts.collect::<Vec<_>>().concat(), &mut planes).unwrap();
            let place = card.allocate(planes.len());
            card.write(place, &planes);
            matrices.push((layout, place));
        }
        let (vectors, starts) = self.vectors();
        let start = card.allocate(vectors.len());
        card.write(start, &vectors);
        let places = starts.iter().map(|at| Place(start.0 + (at / 16) as u32));
        (matrices, places.collect())
    }

    /// Decode kernels for this model alone.
    pub(crate) fn source(&self, target: Target) -> DecodeSource {
        let lowered = lower(&self.program, target).unwrap();
        DecodeSource::new(&lowered, &self.program, &self.layouts(&lowered)).unwrap()
    }

    /// The oracle, for one sequence at a time.
    pub(crate) fn oracle(&self) -> Oracle {
        let options =
            ExecutorOptions { threads: Some(1), numerics: Numerics::Oracle, ..Default::default() };
        let (program, gguf) = (Arc::clone(&self.program), Arc::clone(&self.gguf));
        Oracle { executor: Executor::new(program, gguf, options).unwrap() }
    }
}

/// A row for each token of a sequence, all wanted.
fn all(tokens: &[u32]) -> Vec<CpuRow> {
    let row = |(position, &token)| CpuRow { token, position, cache: 0, segment: 0, logits: true };
    tokens.iter().enumerate().map(row).collect()
}

/// What every op means.
pub(crate) struct Oracle {
    executor: Executor<Vec<u8>>,
}

impl Oracle {
    /// Logits after each token of a sequence.
    pub(crate) fn logits(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut cache: KvCache = self.executor.cache(tokens.len());
        let vocab = self.executor.program().description.vocab;
        let logits = self.executor.forward(&all(tokens), &mut [&mut cache]);
        logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect()
    }

    /// Hidden states of each token of a sequence.
    pub(crate) fn hidden(&mut self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut cache: KvCache = self.executor.cache(tokens.len());
        let width = self.executor.program().description.embedding;
        let states = self.executor.hidden(&all(tokens), &mut [&mut cache]);
        states.chunks_exact(width).map(<[f32]>::to_vec).collect()
    }

    /// A cache for [`observed`](Self::observed).
    pub(crate) fn cache(&self, tokens: usize) -> KvCache {
        self.executor.cache(tokens)
    }

    /// A pass of a token, showing what each op computes.
    pub(crate) fn observed(&mut self, cache: &mut KvCache, token: u32, observe: &mut Observer<'_>) {
        let row = CpuRow { token, position: cache.len(), cache: 0, segment: 0, logits: true };
        self.executor.forward_observed(&[row], &mut [cache], observe);
    }
}

/// How a pass is launched.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Way {
    /// A launch for each op.
    OpByOp,
    /// One launch for all ops, with barriers between blocks.
    Resident,
}

/// A sequence on the card.
pub(crate) struct Sequence {
    pub(crate) cache: Cache,
    /// Of its table, and its slot once it has one.
    number: u32,
    slot: u32,
    pub(crate) tokens: usize,
}

/// A model on the card.
pub(crate) struct Placed {
    card: Card,
    lowered: Lowered,
    ops: Place,
    scratch: Place,
    pass: Place,
    barrier: Place,
    /// All pages.
    cache: Place,
    pub(crate) pool: Arc<Pool>,
    tables: Vec<Place>,
    /// Tables that no sequence has.
    free: Vec<u32>,
    states: States,
    /// Where they are.
    states_start: Place,
    /// A word for each slot.
    cancels: Place,
    target: Target,
}

impl Placed {
    pub(crate) fn new(emulation: &Path, model: &Model, target: Target, pages: usize) -> Self {
        Self::with(emulation, model, target, pages, None)
    }

    /// On an emulation of kernels for this program, which `source` describes.
    pub(crate) fn with(
        emulation: &Path,
        model: &Model,
        target: Target,
        pages: usize,
        source: Option<&DecodeSource>,
    ) -> Self {
        let program = &*model.program;
        let lowered = lower(program, target).unwrap();
        let plan = KvPlan::new(&program.kv, u64::MAX, pages);
        let table_bytes = 4 * target.context.div_ceil(32) as usize;
        let ops_bytes = 4 * OP_WORDS * lowered.ops.len();
        let pass_bytes = 4 * (HEADER_WORDS + 4 * PASS_ROWS);
        let states_bytes = States::bytes(PASS_ROWS);
        let sizes = [plan.bytes() as usize, lowered.scratch_bytes() as usize, ops_bytes];
        let sizes = sizes.into_iter().chain([pass_bytes, 16, states_bytes, 4 * PASS_ROWS]);
        let sizes = sizes.chain([table_bytes; PASS_ROWS]).map(Card::taken);
        let bytes = model.weight_bytes(&lowered) + sizes.sum::<usize>();
        let mut card = Card::start(emulation, bytes);
        let (matrices, vectors) = model.place(&mut card, &lowered);
        let cache = card.allocate(plan.bytes() as usize);
        let caches = plan.caches(cache);
        let scratch = card.allocate(lowered.scratch_bytes() as usize);
        place_scratch(&mut card, &lowered, scratch);
        let states_start = card.allocate(states_bytes);
        let states = States::new(PASS_ROWS, states_start);
        let cancels = card.allocate(4 * PASS_ROWS);
        card.write_words(cancels, &[0; PASS_ROWS]);
        let places = Places {
            matrices: &matrices,
            vectors: &vectors,
            caches: &caches,
            scratch,
            choices: states.choices(),
            endings: states.endings(),
        };
        let mut words = lowered.assemble(program, &places).unwrap();
        source.into_iter().for_each(|source| source.number(&mut words));
        let ops = card.allocate(ops_bytes);
        card.write_words(ops, &words);
        let pass = card.allocate(pass_bytes);
        let barrier = card.allocate(16);
        card.write_words(barrier, &[0; 4]);
        let tables = (0..PASS_ROWS).map(|_| card.allocate(table_bytes)).collect();
        let free = (0..PASS_ROWS as u32).rev().collect();
        let pool = Pool::new(plan.pages(), PASS_ROWS, target.context as usize);
        Self {
            card,
            lowered,
            ops,
            scratch,
            pass,
            barrier,
            cache,
            pool,
            tables,
            free,
            states,
            states_start,
            cancels,
            target,
        }
    }

    pub(crate) fn sequence(&mut self) -> Sequence {
        let cache = self.pool.begin().unwrap();
        self.sequence_with(cache)
    }

    /// A sequence that holds what is in these pages.
    pub(crate) fn sequence_with(&mut self, cache: Cache) -> Sequence {
        let number = self.free.pop().expect("no more sequences than rows");
        Sequence { tokens: cache.len(), cache, number, slot: NO_SLOT }
    }

    /// Makes room for so many tokens, and tells the card where it is.
    fn grow(&mut self, sequence: &mut Sequence, tokens: usize) -> Place {
        self.pool.grow(&mut [&mut sequence.cache], &[tokens]).unwrap();
        let pages = self.tables[sequence.number as usize];
        self.card.write_words(pages, &sequence.cache.table());
        pages
    }

    /// Has a sequence go on so; it is cancelled by this ticket.
    pub(crate) fn continue_with(
        &mut self,
        sequence: &mut Sequence,
        continuation: &Continuation,
        ticket: u32,
    ) {
        sequence.slot = sequence.number;
        for (at, bytes) in self.states.contents(sequence.slot, continuation, ticket) {
            self.card.write(Place(self.states_start.0 + (at / 16) as u32), &bytes);
        }
    }

    /// Has the host write a ticket into a sequence's word once it has been polled `polls` times.
    pub(crate) fn cancel_after(&mut self, polls: u32, sequence: &Sequence, ticket: u32) {
        let word = self.cancels.bytes() + 4 * u64::from(sequence.slot);
        self.card.cancel(word, polls, ticket);
    }

    /// A sequence whose first tokens are in pages that were filled elsewhere, from page 0 on.
    pub(crate) fn sequence_of(&mut self, tokens: usize, pages: &[u32]) -> Sequence {
        self.card.write_words(self.cache, pages);
        let mut sequence = self.sequence();
        self.grow(&mut sequence, tokens);
        let first: Vec<_> = (0..sequence.cache.pages() as u32).collect();
        assert_eq!(sequence.cache.table(), first);
        sequence.tokens = tokens;
        sequence
    }

    pub(crate) fn release(&mut self, sequence: Sequence) {
        self.free.push(sequence.number);
    }

    fn region(&self, id: m40_gpu::lower::RegionId) -> Place {
        Place(self.scratch.0 + (self.lowered.region(id).offset / 16) as u32)
    }

    /// Feeds each sequence a token; for each row its logits, and the token chosen.
    pub(crate) fn pass(
        &mut self,
        way: Way,
        rows: &mut [(&mut Sequence, u32)],
    ) -> Vec<(Vec<f32>, u32)> {
        self.passes(way, rows, 1)
    }

    /// As [`pass`](Self::pass), several times over, each with the tokens that the one before has
    /// chosen; results are those of the last.
    pub(crate) fn passes(
        &mut self,
        way: Way,
        rows: &mut [(&mut Sequence, u32)],
        passes: u32,
    ) -> Vec<(Vec<f32>, u32)> {
        self.write_pass(rows, passes);
        self.launch(way, rows.len(), passes);
        self.results(rows.len(), passes)
    }

    /// As [`passes`](Self::passes), launched as executors do: what each row was given until its
    /// sequence has ended.
    pub(crate) fn choose(
        &mut self,
        way: Way,
        rows: Vec<(&mut Sequence, u32)>,
        passes: u32,
    ) -> Vec<Vec<[u32; Next::WORDS]>> {
        let mut texts: Vec<Vec<[u32; Next::WORDS]>> = vec![vec![]; rows.len()];
        let mut going: Vec<_> = (0..).zip(rows).collect();
        let at_once = if way == Way::Resident { passes } else { 1 };
        for _ in 0..passes / at_once {
            let (numbers, mut rows): (Vec<usize>, Vec<_>) = going.into_iter().unzip();
            if rows.is_empty() {
                break;
            }
            self.write_pass(&mut rows, at_once);
            self.launch(way, rows.len(), at_once);
            let nexts = self.nexts(at_once);
            going = vec![];
            for (place, (i, (sequence, _))) in numbers.into_iter().zip(rows).enumerate() {
                let of_row = nexts.iter().skip(place).step_by(PASS_ROWS);
                let end = of_row.clone().position(|[.., end, _]| *end != 0);
                let fed = end.map_or(at_once as usize, |end| end + 1);
                texts[i].extend(of_row.take(fed));
                sequence.tokens -= at_once as usize - fed;
                if end.is_none() {
                    going.push((i, (sequence, texts[i][texts[i].len() - 1][0])));
                }
            }
        }
        texts
    }

    /// Feeds a sequence a token for its logits alone: whatever it goes on by, it is where it was.
    pub(crate) fn pass_for_logits(&mut self, sequence: &mut Sequence, token: u32) {
        let slot = std::mem::replace(&mut sequence.slot, NO_SLOT);
        self.pass(Way::Resident, &mut [(&mut *sequence, token)]);
        sequence.slot = slot;
        sequence.tokens -= 1;
    }

    /// Writes rows, and makes room for them.
    fn write_pass(&mut self, rows: &mut [(&mut Sequence, u32)], passes: u32) {
        let mut words = vec![rows.len() as u32, 0, 0, 0];
        for (sequence, token) in rows {
            let position = sequence.tokens as u32;
            sequence.tokens += passes as usize;
            let pages = self.grow(sequence, sequence.tokens);
            words.extend(Row { token: *token, position, pages, slot: sequence.slot }.words());
        }
        self.card.write_words(self.pass, &words);
    }

    /// A pass of a token, op by op, showing what each leaves to be looked at.
    pub(crate) fn observed(
        &mut self,
        program: &Program,
        (sequence, token): (&mut Sequence, u32),
        observe: &mut dyn FnMut(Output<'_>),
    ) {
        self.write_pass(&mut [(sequence, token)], 1);
        let visible = visible(program, &self.lowered);
        for step in 0..self.lowered.ops.len() {
            self.card.run(&Launch { first: step, last: step + 1, ..self.whole(1, 1) });
            for seen in visible.iter().filter(|seen| seen.step == step) {
                let region = self.region(seen.view.region);
                let stride = self.lowered.region(seen.view.region).stride;
                let values = &self.card.read_floats(region, stride)[seen.view.columns()];
                observe(Output { op: seen.op, buffer: seen.buffer, values });
            }
        }
    }

    /// All ops in one launch.
    fn whole(&self, rows: usize, passes: u32) -> Launch {
        Launch {
            rows: rows.next_power_of_two(),
            blocks: self.target.blocks,
            ops: self.ops,
            first: 0,
            last: self.lowered.ops.len(),
            pass: self.pass,
            passes,
            barrier: self.barrier,
            chosen: self.region(self.lowered.chosen),
            cancels: self.cancels,
            taken: 0,
        }
    }

    /// Makes room for so many tokens of a sequence, and says where its rows find it.
    pub(crate) fn reserve(&mut self, sequence: &mut Sequence, tokens: usize) -> Row {
        let pages = self.grow(sequence, tokens);
        Row { token: 0, position: sequence.tokens as u32, pages, slot: sequence.slot }
    }

    /// Kernels have this file for a desk.
    pub(crate) fn open_desk(&mut self, file: &Path) {
        self.card.open_desk(file);
    }

    /// Launches the kernel for so many rows; it stays. Nothing else can be done before it has left.
    pub(crate) fn launch_to_stay(&mut self, rows: usize, taken: u32) {
        self.card.write_words(self.barrier, &[0; 3]);
        self.card.run(&Launch { taken, ..self.whole(rows, 0) });
        self.card.begin();
    }

    fn launch(&mut self, way: Way, rows: usize, passes: u32) {
        let launch = self.whole(rows, passes);
        match way {
            Way::Resident => {
                // The counter and what it is awaited from.
                self.card.write_words(self.barrier, &[0; 2]);
                self.card.run(&launch);
            }
            Way::OpByOp => {
                for first in 0..self.lowered.ops.len() {
                    self.card.run(&Launch { first, last: first + 1, ..launch });
                }
            }
        }
    }

    fn results(&mut self, rows: usize, passes: u32) -> Vec<(Vec<f32>, u32)> {
        let logits = self.lowered.logits;
        let stride = self.lowered.region(logits.region).stride;
        let floats = self.card.read_floats(self.region(logits.region), rows * stride);
        let chosen: Vec<_> = (0..rows).map(|row| self.chosen(passes - 1, row)).collect();
        let logits = floats.chunks_exact(stride).map(|row| row[logits.columns()].to_vec());
        logits.zip(chosen).collect()
    }

    /// The token that a pass of the last launch has chosen for a row.
    pub(crate) fn chosen(&mut self, pass: u32, row: usize) -> u32 {
        self.nexts(pass + 1)[PASS_ROWS * pass as usize + row][0]
    }

    /// The words of what the last launch has chosen, `[passes][PASS_ROWS]` [`Next`].
    pub(crate) fn nexts(&mut self, passes: u32) -> Vec<[u32; Next::WORDS]> {
        let words = Next::WORDS * PASS_ROWS * passes as usize;
        let words = self.card.read_words(self.region(self.lowered.chosen), words);
        words.as_chunks().0.to_vec()
    }

    /// Nothing is chosen, as before the first launch.
    pub(crate) fn forget_chosen(&mut self) {
        let region = self.lowered.region(self.lowered.chosen);
        let words = vec![u32::MAX; region.rows * region.stride];
        self.card.write_words(self.region(self.lowered.chosen), &words);
    }

    pub(crate) fn end(self) {
        self.card.end();
    }
}

/// Scratch memory as it is before the first pass: constants and counters as they are to be, all
/// else NaNs, and nothing between regions.
fn place_scratch(card: &mut Card, lowered: &Lowered, scratch: Place) {
    let image = lowered.scratch_image();
    for region in &lowered.regions {
        let start = region.offset as usize;
        let bytes = 4 * region.rows * region.stride;
        if !region.contents.is_empty() || region.name == "arrivals" {
            let place = Place(scratch.0 + (start / 16) as u32);
            card.write(place, &image[start..start + bytes]);
        }
        let guarded = (start + bytes).next_multiple_of(8);
        let end = start + region.padded_bytes() as usize;
        card.guard(scratch.bytes() as usize + guarded, end - guarded);
    }
}
