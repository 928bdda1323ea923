//! Passes over prompts, against the CPU's oracle, and decode passes that go on from them.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use m40_gguf::TensorType;
use m40_gpu::call::{Arg, Call};
use m40_gpu::continuation::States;
use m40_gpu::kv::KvPlan;
use m40_gpu::lower::{Lowered, lower};
use m40_gpu::ops::{PAGE_TOKENS, Place, Row};
use m40_gpu::prefill::{Prefill, Shape, Slots};
use m40_program::KvType;
use m40_repack::Layout;
use m40_testkit::emulation::compile;
use m40_testkit::gguf::TinyModel;

use crate::card::Card;
use crate::model::{Model, Placed, Way};
use crate::passes::{self, TARGET, tiny, tokens, worst};

/// Rows of a pass, at most.
const ROWS: usize = 40;

/// The emulation, compiled once for all tests.
pub(crate) fn emulation() -> Option<PathBuf> {
    static PROGRAM: OnceLock<Result<Option<PathBuf>, String>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| compile("prefill", env!("CARGO_TARGET_TMPDIR")))
        .clone()
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A model on a card that runs prompts. Sequences have pages one behind the other.
pub(crate) struct Prompts<'a> {
    model: &'a Model,
    pub(crate) card: Card,
    lowered: Lowered,
    pub(crate) prefill: Prefill,
    layouts: Vec<Layout>,
    matrices: Vec<Place>,
    vectors: Vec<Place>,
    plan: KvPlan,
    cache: Place,
    pub(crate) buffers: Vec<Place>,
    pub(crate) tables: Vec<Place>,
    /// By sequence.
    pub(crate) states: States,
    pub(crate) states_start: Place,
    pub(crate) cancels: Place,
}

/// Some rows of a sequence.
#[derive(Clone, Copy)]
struct Part<'a> {
    sequence: usize,
    /// Position of the first.
    first: usize,
    tokens: &'a [u32],
    /// Whether the last one's logits are wanted.
    last: bool,
}

impl<'a> Prompts<'a> {
    /// For so many sequences of so many pages each.
    pub(crate) fn new(emulation: &Path, model: &'a Model, sequences: usize, pages: usize) -> Self {
        let program = &*model.program;
        let lowered = lower(program, TARGET).unwrap();
        let prefill = Prefill::new(&lowered, ROWS).unwrap();
        let plan = KvPlan::new(&program.kv, u64::MAX, sequences * pages);
        let table_bytes = 4 * pages;
        let buffers = prefill.buffers.iter().map(|buffer| 4 * buffer.words);
        let states_bytes = States::bytes(sequences);
        let others = [plan.bytes() as usize, states_bytes, 4 * sequences];
        let others = vec![table_bytes; sequences].into_iter().chain(others);
        let bytes: usize = buffers.chain(others).map(Card::taken).sum();
        let mut card = Card::start(emulation, bytes + model.weight_bytes(&lowered));
        let (matrices, vectors) = model.place(&mut card, &lowered);
        let (layouts, matrices) = matrices.into_iter().unzip();
        let cache = card.allocate(plan.bytes() as usize);
        let mut places = vec![];
        for buffer in &prefill.buffers {
            let place = card.allocate(4 * buffer.words);
            let words: Vec<_> = buffer.contents.iter().map(|x| x.to_bits()).collect();
            card.write_words(place, &words);
            places.push(place);
        }
        let mut tables = vec![];
        for sequence in 0..sequences {
            let place = card.allocate(table_bytes);
            let first = (sequence * pages) as u32;
            card.write_words(place, &(first..first + pages as u32).collect::<Vec<_>>());
            tables.push(place);
        }
        let buffers = places;
        let states_start = card.allocate(states_bytes);
        let cancels = card.allocate(4 * sequences);
        card.write_words(cancels, &vec![0; sequences]);
        Self {
            model,
            card,
            lowered,
            prefill,
            layouts,
            matrices,
            vectors,
            plan,
            cache,
            buffers,
            tables,
            states: States::new(sequences, states_start),
            states_start,
            cancels,
        }
    }

    /// A pass over parts of sequences: for each that wants them, logits.
    fn pass(&mut self, parts: &[Part<'_>]) -> Vec<Vec<f32>> {
        let shape = self.send(parts);
        let program = &*self.model.program;
        for call in self.prefill.calls(program, &self.lowered, &self.layouts, shape) {
            self.call(&call);
        }
        let view = self.lowered.logits;
        let stride = self.lowered.region(view.region).stride;
        let place = self.buffers[self.prefill.logits.0];
        let logits = self.card.read_floats(place, shape.wanted * stride);
        logits.chunks_exact(stride).map(|row| row[view.columns()].to_vec()).collect()
    }

    /// The same pass up to the hidden states, of all rows.
    fn hidden(&mut self, parts: &[Part<'_>]) -> Vec<Vec<f32>> {
        let shape = self.send(parts);
        let program = &*self.model.program;
        let (calls, hidden) =
            self.prefill.hidden_calls(program, &self.lowered, &self.layouts, shape);
        calls.iter().for_each(|call| self.call(call));
        let words = hidden.words(0..shape.rows);
        let floats = self.card.read_floats(self.buffers[hidden.buffer.0], words.end);
        let rows = floats[words.start..].chunks(hidden.stride);
        rows.map(|row| row[..hidden.width].to_vec()).collect()
    }

    /// Writes the rows and their tiles.
    fn send(&mut self, parts: &[Part<'_>]) -> Shape {
        let mut rows = vec![];
        let mut wanted = vec![];
        for part in parts {
            let slot = part.sequence as u32;
            for (&token, position) in part.tokens.iter().zip(part.first as u32..) {
                let row = Row { token, position, pages: self.tables[part.sequence], slot };
                rows.extend(row.words());
            }
            wanted.extend(part.last.then_some((rows.len() / 4 - 1) as u32));
        }
        let counts: Vec<_> = parts.iter().map(|part| part.tokens.len()).collect();
        let tiles = self.prefill.tiles(&counts);
        assert_eq!(tiles.iter().map(|tile| tile[1] as usize).sum::<usize>(), rows.len() / 4);
        let shape = Shape {
            rows: rows.len() / 4,
            wanted: wanted.len(),
            tiles: tiles.len(),
            tallest: tiles.iter().map(|tile| tile[1] as usize).max().unwrap(),
        };
        let [at_rows, at_tiles, at_index] =
            [self.prefill.rows, self.prefill.tiles, self.prefill.index].map(|b| self.buffers[b.0]);
        self.card.write_words(at_rows, &rows);
        self.card.write_words(at_tiles, &tiles.concat());
        self.card.write_words(at_index, &wanted);
        shape
    }

    /// Some wide passes over rows that lie there, each launch as the executor has it.
    pub(crate) fn wide(&mut self, rows: usize, passes: usize) {
        let program = &*self.model.program;
        let slots = Slots { choices: self.states.choices(), endings: self.states.endings() };
        let calls = self.prefill.wide_calls(program, &self.lowered, &self.layouts, rows, slots);
        for _ in 0..passes {
            calls.iter().for_each(|call| self.call(call));
        }
    }

    fn call(&mut self, call: &Call) {
        let caches = self.plan.caches(self.cache);
        let arguments = call.args.iter().map(|arg| match *arg {
            Arg::Arena => 0,
            Arg::Read(buffer, words) | Arg::Write(buffer, words) => {
                let buffer_words = self.prefill.buffers[buffer.0].words;
                assert!(words.first + words.len <= buffer_words, "{call:?}");
                self.buffers[buffer.0].bytes() + 4 * words.first as u64
            }
            Arg::Matrix(id) => self.matrices[id.0].bytes(),
            Arg::Vector(id) => self.vectors[id.0 as usize].bytes(),
            Arg::Cache(layer) | Arg::CacheMut(layer) => caches[usize::from(layer)].bytes(),
            Arg::Cancels => self.cancels.bytes(),
            Arg::U32(number) => number.into(),
            Arg::U64(number) => number,
            Arg::F32(number) => number.to_bits().into(),
        });
        let arguments: Vec<_> = arguments.collect();
        assert_eq!(arguments.len(), call.kernel.signature().params.len(), "{call:?}");
        // A launch writes what it does not read, as far as buffers go.
        for arg in &call.args {
            let Arg::Write(written, _) = arg else { continue };
            let read = call.args.iter().any(|arg| matches!(arg, Arg::Read(b, _) if b == written));
            assert!(!read, "{call:?}");
        }
        let geometry = [call.grid, call.threads, call.shared];
        self.card.call(call.kernel.signature().name, geometry, &arguments);
    }
}

#[test]
fn prompts_in_pieces_are_what_the_oracle_computes_and_decoding_goes_on_from_them() {
    for architecture in TinyModel::architectures() {
        goes_on_from_prompts(architecture, &Model::new(&tiny(architecture)));
    }
}

#[test]
fn prompts_of_int8_and_with_sinks_are_what_the_oracle_computes() {
    for architecture in ["gemma2", "qwen3"] {
        for kv_type in KvType::ALL {
            let model = tiny(architecture).sinks(true);
            goes_on_from_prompts(architecture, &Model::with_kv(&model, kv_type));
        }
    }
}

fn goes_on_from_prompts(architecture: &str, model: &Model) {
    let Some(emulation) = emulation() else { return };
    let Some(decode) = passes::emulation() else { return };
    let mut prompts = Prompts::new(&emulation, model, 2, 2);
    let texts = [tokens(PAGE_TOKENS + 5, 20), tokens(9, 21)];
    let mut oracle = model.oracle();
    let expected = texts.each_ref().map(|text| oracle.logits(text));
    let part = |sequence: usize, first: usize, end: usize, last: bool| Part {
        sequence,
        first,
        tokens: &texts[sequence][first..end],
        last,
    };
    // A piece without logits; then the rest beside another sequence, which begins.
    assert!(prompts.pass(&[part(0, 0, 20, false)]).is_empty());
    let end = texts[0].len();
    let found = prompts.pass(&[part(0, 20, end, true), part(1, 0, 9, true)]);
    for (i, logits) in found.iter().enumerate() {
        let worst = worst(logits, &expected[i][texts[i].len() - 1]);
        assert!(worst < model.tolerance(), "{architecture}, sequence {i}: {worst}");
    }
    // The next token by a decode pass, over the same pages.
    let words = prompts.plan.bytes() as usize / 4;
    let pages = prompts.card.read_words(prompts.cache, words);
    prompts.card.end();
    let mut placed = Placed::new(&decode, model, TARGET, 4);
    let mut sequence = placed.sequence_of(end, &pages);
    let (logits, _) = placed.pass(Way::OpByOp, &mut [(&mut sequence, 77)]).remove(0);
    let text = [&texts[0][..], &[77]].concat();
    let worst = worst(&logits, &oracle.logits(&text)[end]);
    assert!(worst < model.tolerance(), "{architecture}, decoding: {worst}");
    placed.release(sequence);
    placed.end();
}

#[test]
fn hidden_states_are_what_the_oracle_computes() {
    // Norms before blocks, and also after them.
    for architecture in ["llama", "gemma2"] {
        let model = Model::new(&tiny(architecture));
        let Some(emulation) = emulation() else { return };
        let mut prompts = Prompts::new(&emulation, &model, 2, 2);
        let texts = [tokens(PAGE_TOKENS + 3, 23), tokens(4, 24)];
        let mut oracle = model.oracle();
        let expected = texts.each_ref().map(|text| oracle.hidden(text));
        let part = |sequence: usize, first: usize, end: usize| {
            let tokens = &texts[sequence][first..end];
            Part { sequence, first, tokens, last: false }
        };
        let mut found = prompts.hidden(&[part(0, 0, 20)]);
        found.extend(prompts.hidden(&[part(0, 20, texts[0].len()), part(1, 0, 4)]));
        prompts.card.end();
        let expected = expected.concat();
        assert_eq!(found.len(), expected.len());
        for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let worst = worst(found, expected);
            assert!(worst < model.tolerance(), "{architecture}, row {row}: {worst}");
        }
    }
}

#[test]
fn mixed_types_go_through_prompts_too() {
    let Some(emulation) = emulation() else { return };
    let mixed = tiny("qwen2")
        .weights(TensorType::Q4K)
        .weights_of("attn_v", TensorType::Q6K)
        .weights_of("ffn_gate", TensorType::Q5_0)
        .weights_of("ffn_down", TensorType::Q8_0)
        .embedding(TensorType::F16);
    let model = Model::new(&mixed);
    let mut prompts = Prompts::new(&emulation, &model, 1, 2);
    let text = tokens(ROWS, 22);
    let expected = model.oracle().logits(&text);
    let found = prompts.pass(&[Part { sequence: 0, first: 0, tokens: &text, last: true }]);
    let worst = worst(&found[0], &expected[ROWS - 1]);
    assert!(worst < model.tolerance(), "{worst}");
    prompts.card.end();
}
