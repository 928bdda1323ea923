//! Products of a decode pass, with all that is done before and after them, against f64.

use m40_gguf::{TensorType, dequantize};
use m40_gpu::ops::{
    ANNOUNCE, AWAIT, MatvecOp, Op, PASS_ROWS, Place, Row, SPLIT_HEADER, STEP_COLUMNS, weight_type,
};
use m40_repack::{Layout, Role, repack};
use m40_testkit::gguf::{Noise, quantize};

use crate::bench::{Bench, normed};

const EPS: f32 = 1e-5;
const BLOCK_EPS: f32 = 1e-2;
const CAP: f32 = 3.0;

/// How far results, which are of size 1, may be from those of f64.
fn tolerance(ty: TensorType) -> f64 {
    match ty {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => 2e-6,
        // Values that a byte permutation looked up are 2^15 too high until a group is summed up.
        TensorType::IQ4NL | TensorType::IQ4XS => 8e-4,
        _ => 1e-4,
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Prologue {
    Nothing,
    Norm,
    /// A block's norm is added before, and what comes of it stored.
    AddNorm,
    /// The same; another op stores it.
    AddNormUnstored,
}

/// What else the result is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gate {
    Nothing,
    /// The product of a second matrix; this one's goes through the activation.
    Up,
    /// What another op left, through the activation.
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Activation {
    Nothing,
    Silu,
    Gelu,
}

impl Activation {
    fn of(self, x: f64) -> f64 {
        match self {
            Self::Nothing => x,
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::Gelu => {
                0.5 * x * (1.0 + (0.797_884_560_802_865 * (x + 0.044715 * x * x * x)).tanh())
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Residual {
    Nothing,
    /// The results take its place.
    InPlace,
    Apart,
}

/// A product of all that a matvec can be asked for.
#[derive(Clone, Copy, Debug)]
struct Case {
    ty: TensorType,
    rows: usize,
    cols: usize,
    prologue: Prologue,
    gate: Gate,
    activation: Activation,
    bias: bool,
    residual: Residual,
    softcap: bool,
    maxima: bool,
}

impl Case {
    fn plain(ty: TensorType, rows: usize, cols: usize) -> Self {
        Self {
            ty,
            rows,
            cols,
            prologue: Prologue::Nothing,
            gate: Gate::Nothing,
            activation: Activation::Nothing,
            bias: false,
            residual: Residual::Nothing,
            softcap: false,
            maxima: true,
        }
    }

    /// Floats between rows of activations; what is between is no number.
    fn x_stride(&self) -> usize {
        self.cols.next_multiple_of(4) + 8
    }

    fn y_stride(&self) -> usize {
        self.rows + 3
    }
}

/// What a launch leaves of a row, as bits.
#[derive(Clone, Debug, PartialEq)]
struct Left {
    y: Vec<u32>,
    stream: Vec<u32>,
    largest: (u32, u32),
}

/// The rows of a full pass, one behind another.
struct Inputs {
    x: Vec<f32>,
    block: Vec<f32>,
    gate: Vec<f32>,
    residual: Vec<f32>,
}

/// How kernels of many rows share a product's work.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Shared {
    /// Each block has whole rows.
    Rows,
    /// Columns are dealt to blocks, and the last block adds up.
    Columns,
    /// Columns are dealt to blocks that wait for each other, and each adds up a part.
    ColumnsWaiting,
}

/// A case on a card, and what it is computed from.
struct Placed {
    bench: Bench,
    case: Case,
    shared: Shared,
    layout: Layout,
    inputs: Inputs,
    matrices: [(Vec<f32>, Place); 2],
    gain: (Vec<f32>, Place),
    block_gain: (Vec<f32>, Place),
    bias: (Vec<f32>, Place),
}

impl Placed {
    fn new(seed: u64, case: Case) -> Option<Self> {
        let mut bench = Bench::new(seed, 1)?;
        let Case { ty, rows, cols, .. } = case;
        let layout = Layout::of(ty, rows, cols).unwrap();
        let matrices = [(); 2].map(|()| {
            let deviation = 1.0 / (cols as f32).sqrt();
            let data = quantize(ty, &bench.noise.normals(rows * cols, deviation));
            let mut planes = vec![0; layout.bytes()];
            repack(&layout, &data, &mut planes).unwrap();
            let place = bench.card.allocate(planes.len());
            bench.card.write(place, &planes);
            let mut weights = vec![0.0; rows * cols];
            dequantize(ty, &data, &mut weights).unwrap();
            (weights, place)
        });
        let mut all = |width: usize| bench.noise.normals(PASS_ROWS * width, 1.0);
        let inputs =
            Inputs { x: all(cols), block: all(cols), gate: all(rows), residual: all(rows) };
        let gain = bench.vector(cols);
        let block_gain = bench.vector(cols);
        let bias = bench.vector(rows);
        let shared = Shared::Rows;
        Some(Self { bench, case, shared, layout, inputs, matrices, gain, block_gain, bias })
    }

    /// Some rows of an input, `stride` apart.
    fn place_rows(&mut self, from: &[f32], which: &[usize], stride: usize) -> Place {
        let width = from.len() / PASS_ROWS;
        let mut spread = vec![f32::NAN; (which.len() - 1) * stride + width];
        for (i, row) in which.iter().enumerate() {
            spread[i * stride..][..width].copy_from_slice(&from[row * width..][..width]);
        }
        self.bench.place(&spread)
    }

    /// Runs the op on these rows, on so many blocks.
    fn launch(&mut self, which: &[usize], blocks: u32) -> Vec<Left> {
        let case = self.case;
        let inputs = std::mem::replace(
            &mut self.inputs,
            Inputs { x: vec![], block: vec![], gate: vec![], residual: vec![] },
        );
        let x = self.place_rows(&inputs.x, which, case.x_stride());
        let block = self.place_rows(&inputs.block, which, case.x_stride());
        let gate = self.place_rows(&inputs.gate, which, case.rows + 1);
        let apart = self.place_rows(&inputs.residual, which, case.rows + 2);
        let y = match case.residual {
            Residual::InPlace => self.place_rows(&inputs.residual, which, case.y_stride()),
            _ => {
                let floats = (which.len() - 1) * case.y_stride() + case.rows;
                self.bench.card.allocate(4 * floats)
            }
        };
        self.inputs = inputs;
        let stream = self.bench.card.allocate(4 * which.len() * case.x_stride());
        let maxima = self.bench.card.allocate(8 * which.len() * blocks as usize);
        let sums = SPLIT_HEADER + 2 * case.rows * case.cols.div_ceil(STEP_COLUMNS) * PASS_ROWS;
        let sums = self.bench.card.allocate(4 * sums);
        // No block has arrived.
        self.bench.card.write_words(sums, &[0; 4]);
        let some = |wanted: bool, place: Place| if wanted { place } else { Place::NOWHERE };
        let plane = |role| (self.layout.plane(role).offset / 16) as u32;
        let op = MatvecOp {
            kind: if case.gate == Gate::Up { Op::GATED_MATVEC } else { Op::MATVEC },
            flags: AWAIT | ANNOUNCE,
            r#type: weight_type(case.ty).unwrap(),
            rows: case.rows as u32,
            cols: case.cols as u32,
            weights: self.matrices[0].1,
            up: some(case.gate == Gate::Up, self.matrices[1].1),
            high: plane(Role::High),
            scales: plane(Role::Scales),
            tops: plane(Role::ScaleTops),
            supers: plane(Role::Supers),
            prologue: match case.prologue {
                Prologue::Nothing => 0,
                Prologue::Norm => 1,
                Prologue::AddNorm | Prologue::AddNormUnstored => 2,
            },
            x,
            x_stride: case.x_stride() as u32,
            gain: self.gain.1,
            block,
            block_gain: self.block_gain.1,
            stream: some(case.prologue == Prologue::AddNorm, stream),
            eps: EPS,
            block_eps: BLOCK_EPS,
            activation: case.activation as u32,
            bias: some(case.bias, self.bias.1),
            residual: match case.residual {
                Residual::Nothing => Place::NOWHERE,
                Residual::InPlace => y,
                Residual::Apart => apart,
            },
            residual_stride: match case.residual {
                Residual::Apart => case.rows + 2,
                _ => case.y_stride(),
            } as u32,
            y,
            y_stride: case.y_stride() as u32,
            softcap: if case.softcap { CAP } else { 0.0 },
            maxima: some(case.maxima, maxima),
            gate: some(case.gate == Gate::Left, gate),
            gate_stride: case.rows as u32 + 1,
            sums: some(self.shared != Shared::Rows, sums),
            first_block: 0,
            blocks,
        };
        let row = Row { token: 0, position: 0, pages: Place(0), slot: 0 };
        self.bench.blocks = blocks;
        let rows = vec![row; which.len()];
        match self.shared {
            Shared::ColumnsWaiting => self.bench.run_resident(&Op::Matvec(op), &rows),
            _ => self.bench.run(&Op::Matvec(op), &rows),
        }

        let count = which.len();
        let words = (count - 1) * case.y_stride() + case.rows;
        let y = self.bench.card.read_words(y, words);
        let stream = self.bench.card.read_words(stream, count * case.x_stride());
        let maxima = self.bench.card.read_words(maxima, 2 * count * blocks as usize);
        let rows = y.chunks(case.y_stride()).zip(stream.chunks(case.x_stride()));
        let rows = rows.zip(maxima.chunks(2 * blocks as usize));
        let rows = rows.map(|((y, stream), maxima)| {
            let (y, between) = y.split_at(case.rows);
            let untouched = |word: &u32| f32::from_bits(*word).is_nan();
            assert!(between.iter().all(untouched), "{case:?}: written between rows");
            let (stream, behind) = stream.split_at(case.cols);
            assert!(behind.iter().all(untouched), "{case:?}: written between rows of the stream");
            let largest = maxima.chunks(2).map(|part| (f32::from_bits(part[0]), part[1]));
            let largest = largest.reduce(|best, part| {
                let above = part.0 > best.0 || part.0 == best.0 && part.1 < best.1;
                if above { part } else { best }
            });
            let (value, row) = largest.unwrap();
            Left { y: y.to_vec(), stream: stream.to_vec(), largest: (value.to_bits(), row) }
        });
        rows.collect()
    }

    /// A row of the pass in f64: the stream and the results.
    fn expected(&self, row: usize) -> (Vec<f64>, Vec<f64>) {
        let case = self.case;
        let wide = |values: &[f32], width: usize| -> Vec<f64> {
            values[row * width..][..width].iter().map(|v| f64::from(*v)).collect()
        };
        let mut input = wide(&self.inputs.x, case.cols);
        if matches!(case.prologue, Prologue::AddNorm | Prologue::AddNormUnstored) {
            let block = wide(&self.inputs.block, case.cols);
            let added = normed(&block, &self.block_gain.0, BLOCK_EPS.into());
            input.iter_mut().zip(added).for_each(|(x, added)| *x += added);
        }
        let stream = input.clone();
        if case.prologue != Prologue::Nothing {
            input = normed(&input, &self.gain.0, EPS.into());
        }
        let (gate, residual) =
            (wide(&self.inputs.gate, case.rows), wide(&self.inputs.residual, case.rows));
        let result = |r: usize| {
            let dot = |matrix: usize| {
                let weights = &self.matrices[matrix].0[r * case.cols..];
                weights.iter().zip(&input).map(|(w, x)| f64::from(*w) * x).sum::<f64>()
            };
            let mut value = dot(0);
            if case.bias {
                value += f64::from(self.bias.0[r]);
            }
            match case.gate {
                Gate::Nothing => {}
                Gate::Up => value = case.activation.of(value) * dot(1),
                Gate::Left => value *= case.activation.of(gate[r]),
            }
            if case.residual != Residual::Nothing {
                value += residual[r];
            }
            let cap = f64::from(CAP);
            if case.softcap { cap * (value / cap).tanh() } else { value }
        };
        (stream, (0..case.rows).map(result).collect())
    }

    /// Compares what was left of a row with what it should be.
    fn check(&self, row: usize, left: &Left) {
        let case = self.case;
        let compare = |what: &str, found: &[u32], expected: &[f64]| {
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let found = f32::from_bits(*found);
                let error = (f64::from(found) - expected).abs();
                let most = tolerance(case.ty) * expected.abs().max(1.0);
                assert!(error < most, "{case:?}: {what}[{row}][{i}] is {found}, not {expected}");
            }
        };
        let (stream, y) = self.expected(row);
        compare("y", &left.y, &y);
        if case.prologue == Prologue::AddNorm {
            compare("stream", &left.stream, &stream);
        } else {
            assert!(left.stream.iter().all(|word| *word == u32::MAX), "{case:?}: stream {row}");
        }
        if case.maxima {
            let all = left.y.iter().map(|bits| f32::from_bits(*bits)).zip(0..);
            let largest = all.reduce(|best, y| if y.0 > best.0 { y } else { best }).unwrap();
            let found = (f32::from_bits(left.largest.0), left.largest.1);
            assert_eq!(found, largest, "{case:?}: largest of row {row}");
        } else {
            assert_eq!(left.largest, (u32::MAX, u32::MAX), "{case:?}: largest of row {row}");
        }
    }
}

/// Rows of passes of every size, the largest first.
const PASSES: [&[usize]; 8] = [
    &[0, 1, 2, 3, 4, 5, 6, 7],
    &[1, 2, 3, 4, 5, 6, 7],
    &[5, 4, 3, 2, 1, 0],
    &[0, 2, 4, 6, 1],
    &[4, 5, 6, 7],
    &[1, 0, 3],
    &[7, 2],
    &[6],
];

/// Passes of which each row must be what f64 makes of it, and the same bits in all of them, on any
/// number of blocks.
fn check(seed: usize, case: Case, passes: impl IntoIterator<Item = &'static [usize]>) {
    let Some(mut placed) = Placed::new(seed as u64, case) else { return };
    let mut known: Vec<Option<Left>> = vec![None; PASS_ROWS];
    for (i, which) in passes.into_iter().enumerate() {
        let blocks = (seed + i) as u32 % 3 + 1;
        for (row, left) in which.iter().zip(placed.launch(which, blocks)) {
            match &known[*row] {
                Some(known) => assert!(
                    *known == left,
                    "{case:?}: row {row} of {which:?} on {blocks} blocks differs from before"
                ),
                None => {
                    placed.check(*row, &left);
                    known[*row] = Some(left);
                }
            }
        }
    }
    placed.bench.card.end();
}

const TYPES: [TensorType; 16] = {
    use TensorType::*;
    [F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, IQ4NL, IQ4XS, MXFP4]
};

#[test]
fn every_type_multiplies_rows_and_columns_of_any_number() {
    for (i, ty) in TYPES.into_iter().enumerate() {
        // Of less than a step, of steps and a part, and of more than are staged at once for 8 rows.
        let cols = match ty.block_len() {
            1 => [40, 1096, 2088],
            32 => [32, 1120, 2080],
            _ => [256, 768, 2304],
        };
        let rows = [[1, 33, 5], [5, 3, 33]][i % 2];
        for (j, (rows, cols)) in rows.into_iter().zip(cols).enumerate() {
            let case = Case::plain(ty, rows, cols);
            let second = PASSES[1 + (i + 3 * j) % 7];
            check(3 * i + j, case, [PASSES[0], second]);
        }
    }
}

#[test]
fn a_row_is_the_same_in_passes_of_all_sizes() {
    let everything = Case {
        prologue: Prologue::AddNorm,
        gate: Gate::Up,
        activation: Activation::Gelu,
        bias: true,
        residual: Residual::InPlace,
        softcap: true,
        ..Case::plain(TensorType::Q4K, 21, 2304)
    };
    check(1, everything, PASSES);
    check(2, Case { ty: TensorType::Q5_1, cols: 288, ..everything }, PASSES);
    check(3, Case { ty: TensorType::F16, cols: 1000, ..everything }, PASSES);
}

#[test]
fn all_that_comes_before_and_after_a_product_goes_with_all_else() {
    use Prologue::{AddNorm, AddNormUnstored, Norm};
    let shapes =
        [(TensorType::Q8_0, 37, 288), (TensorType::Q6K, 70, 512), (TensorType::BF16, 9, 200)];
    let activations = [Activation::Nothing, Activation::Silu, Activation::Gelu];
    let mut noise = Noise::new(1);
    for prologue in [Prologue::Nothing, Norm, AddNorm, AddNormUnstored] {
        for gate in [Gate::Nothing, Gate::Up, Gate::Left] {
            for residual in [Residual::Nothing, Residual::InPlace, Residual::Apart] {
                let (ty, rows, cols) = shapes[noise.below(3)];
                let case = Case {
                    prologue,
                    gate,
                    activation: activations[noise.below(3)],
                    bias: noise.below(2) == 0,
                    residual,
                    softcap: noise.below(2) == 0,
                    maxima: noise.below(4) > 0,
                    ..Case::plain(ty, rows, cols)
                };
                let passes = [(); 2].map(|()| PASSES[noise.below(8)]);
                check(noise.below(1000), case, passes);
            }
        }
    }
}

/// More columns than are staged at once, of one row and of eight, and several rounds of units: what is
/// staged again must be what it was, and sums of squares those of all columns.
#[test]
fn long_rows_are_staged_piece_by_piece() {
    let normed = |ty, rows, cols| Case {
        prologue: Prologue::AddNorm,
        residual: Residual::InPlace,
        ..Case::plain(ty, rows, cols)
    };
    check(0, normed(TensorType::Q4_0, 900, 1056), [PASSES[0], PASSES[7]]);
    check(1, normed(TensorType::Q6K, 33, 5376), [PASSES[7], PASSES[6], PASSES[0]]);
    let gated = Case {
        gate: Gate::Up,
        activation: Activation::Silu,
        ..Case::plain(TensorType::IQ4XS, 70, 5632)
    };
    check(2, gated, [PASSES[5], PASSES[6], PASSES[7]]);
    check(3, normed(TensorType::F32, 9, 8168), [PASSES[7], PASSES[6]]);
    // More than one row has room for.
    check(4, Case::plain(TensorType::Q8_0, 70, 13_344), [PASSES[0], PASSES[7]]);
}

#[test]
fn columns_that_are_dealt_to_blocks_make_the_same_sums() {
    let everything = Case {
        prologue: Prologue::AddNorm,
        gate: Gate::Up,
        activation: Activation::Silu,
        bias: true,
        residual: Residual::InPlace,
        softcap: true,
        ..Case::plain(TensorType::Q4K, 64, 2304)
    };
    let cases = [
        everything,
        Case { ty: TensorType::Q4_0, cols: 3104, gate: Gate::Nothing, ..everything },
        Case { ty: TensorType::Q8_0, rows: 136, prologue: Prologue::Norm, ..everything },
        Case { maxima: false, ..Case::plain(TensorType::F16, 72, 5000) },
        Case { prologue: Prologue::AddNormUnstored, ..Case::plain(TensorType::Q6K, 200, 2304) },
    ];
    for (i, case) in cases.into_iter().enumerate() {
        let Some(mut placed) = Placed::new(i as u64, case) else { return };
        for (j, which) in [PASSES[0], PASSES[3], PASSES[4], PASSES[7]].into_iter().enumerate() {
            let blocks = (i + j) as u32 % 4 + 1;
            placed.shared = Shared::Rows;
            let expected = placed.launch(which, blocks);
            which.iter().zip(&expected).for_each(|(row, left)| placed.check(*row, left));
            for shared in [Shared::Columns, Shared::ColumnsWaiting] {
                placed.shared = shared;
                let found = placed.launch(which, blocks);
                assert_eq!(found, expected, "{case:?}: {which:?} on {blocks} blocks, {shared:?}");
            }
        }
        placed.bench.card.end();
    }
}
