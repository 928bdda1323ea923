//! What a Tesla M40 will make of decode passes and prompts, from the machine code of the kernels: a
//! prediction by roofline and issue slots, not a measurement.
//!
//! A pass of decoding takes the sum over its ops of
//!
//! ```text
//! max(bytes / bandwidth, work * slots / lane slots) + barrier, if the op awaits others
//! ```
//!
//! * *bytes*: weights of products, keys and values of attention. Activations stay in the L2 cache.
//! * *work*: weights of a product; multiplications of attention.
//! * *slots*: issue slots of a lane for each, of the loops of `decode_bN_TYPE` and
//!   `decode_bN_attention`, or `_attention_int8` by the type of keys and values
//!   (kernels/reference; kernels/sm52.txt, written by kernels/inspect-sm52); N is
//!   what the pass's rows are rounded up to.
//! * *bandwidth*, *lane slots* and *barrier*: of the [`Card`].
//!
//! A prompt takes the same sum over its products and attentions, without barriers: work is
//! multiplications, slots those of `gemm_TYPE_m128` and `rows_attention_dN`, and weights are read once
//! for each 128 rows. A wide pass takes that with the tile of its rows and the barriers of a pass of
//! decoding: launches that follow each other take about as long.
//!
//! So nothing is counted that loops do not do all the time, nor waiting for memory that other warps
//! do not hide: it is what the code allows at best.

use std::collections::HashMap;

use m40_gguf::TensorType;
use m40_program::{AttentionShape, KvType, MatrixId, Op, Program, RowSet};
use m40_repack::Layout;

use crate::batch::rows_at_once;
use crate::call::{ATTENTION, TILES};
use crate::lower::{Attention, Gating, LowerError, Matvec, Step, Target, lower};
use crate::ops::PASS_ROWS;
use crate::prefill::{LOGIT_ROWS, tile_for};

/// What limits a card.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// Streaming multiprocessors, each with a block.
    pub multiprocessors: u32,
    /// Bytes a second that can be read.
    pub bandwidth: f64,
    /// Issue slots of all lanes a second.
    pub lane_slots: f64,
    /// Seconds of a barrier across all blocks.
    pub barrier: f64,
}

/// The Tesla M40: 24 multiprocessors with 4 schedulers of 32 lanes each at 1.112 GHz. Of its 288 GB/s
/// a copy reaches 83 % on another Maxwell card (GM107). The barrier is three round trips to the L2
/// cache at 200 to 300 cycles and two barriers in a block; neither was measured on an M40.
pub const M40: Card = Card {
    multiprocessors: 24,
    bandwidth: 240e9,
    lane_slots: 24.0 * 4.0 * 32.0 * 1.112e9,
    barrier: 1.2e-6,
};

/// Why there is no prediction.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PredictError {
    /// The card does not run the program.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// The table has no such loop.
    #[error("kernels/sm52.txt has no inner loop of {kernel} for {work}")]
    NoLoop {
        /// The kernel.
        kernel: String,
        /// What the loop is to do.
        work: String,
    },
}

/// Issue slots of inner loops, by kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Slots {
    kernels: HashMap<String, Loops>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Loops {
    /// Slots a weight of the loop that reads weights.
    weight: Option<f64>,
    /// Slots and multiplications of all loops that read no weights.
    others: (f64, f64),
}

impl Slots {
    /// Those of this build's kernels.
    pub fn of_this_build() -> Self {
        Self::parse(include_str!("../../../kernels/sm52.txt"))
    }

    /// Reads the tables of kernels/inspect-sm52; lines of others are passed over.
    pub fn parse(table: &str) -> Self {
        let mut slots = Self::default();
        for line in table.lines() {
            let cells: Vec<_> =
                line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
            let number = |cell: usize| cells.get(cell).and_then(|cell| cell.parse::<f64>().ok());
            // kernel loop bytes instr ffma bits local wide slots ffma% [type weights slots …]
            let (Some(&kernel), Some(ffma), Some(all)) = (cells.first(), number(4), number(8))
            else {
                continue;
            };
            let loops = slots.kernels.entry(kernel.to_owned()).or_default();
            match number(12) {
                Some(each) => loops.weight = Some(each),
                None => loops.others = (loops.others.0 + all, loops.others.1 + ffma),
            }
        }
        slots
    }

    /// Slots of a weight of this type.
    fn of_weight(&self, kernel: &str, ty: TensorType) -> Option<f64> {
        self.kernels.get(&format!("{kernel}_{ty}"))?.weight
    }

    /// Slots of a multiplication in loops that read no weights by themselves.
    fn of_multiplication(&self, kernel: &str) -> Option<f64> {
        let (slots, ffma) = self.kernels.get(kernel)?.others;
        (ffma > 0.0).then_some(slots / ffma)
    }
}

/// Seconds of one token of each sequence, or of a prompt, by what they are spent on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Sequences, or tokens of the prompt.
    pub rows: usize,
    /// In ops that memory bounds.
    pub memory: f64,
    /// In ops that issue slots bound.
    pub issue: f64,
    /// In barriers.
    pub barriers: f64,
}

impl Prediction {
    /// All of it.
    pub fn seconds(&self) -> f64 {
        self.memory + self.issue + self.barriers
    }

    /// Of all sequences together.
    pub fn tokens_per_second(&self) -> f64 {
        self.rows as f64 / self.seconds()
    }

    fn add(&mut self, work: Work, card: &Card) {
        let (memory, issue) = (work.bytes / card.bandwidth, work.slots / card.lane_slots);
        if memory >= issue {
            self.memory += memory;
        } else {
            self.issue += issue;
        }
    }
}

/// Predicts a token of each of `rows` sequences that hold `depth` tokens, in the passes that executors
/// run.
///
/// # Errors
/// [`PredictError`].
pub fn predict(
    program: &Program,
    rows: usize,
    depth: usize,
    slots: &Slots,
    card: &Card,
) -> Result<Prediction, PredictError> {
    let context = u32::try_from(depth + 1).unwrap_or(u32::MAX);
    let lowered = lower(program, Target { blocks: card.multiprocessors, context })?;
    let mut prediction = Prediction { rows, ..Prediction::default() };
    let mut left = rows;
    while left > 0 {
        let rows = rows_at_once(left, LOGIT_ROWS);
        left -= rows;
        if rows > PASS_ROWS {
            let seen = Seen::Same(depth + 1);
            let pass = Many { program, slots, rows, logit_rows: rows, tile: tile_for(rows), seen };
            pass.add_to(&mut prediction, card)?;
        } else {
            let pass = Pass { program, slots, rows, seen: depth + 1 };
            let mut ops = lowered.ops.iter();
            ops.try_for_each(|op| pass.work(&op.step).map(|work| prediction.add(work, card)))?;
        }
        let awaiting = lowered.ops.iter().filter(|op| op.awaits).count();
        prediction.barriers += awaiting as f64 * card.barrier;
    }
    Ok(prediction)
}

/// Predicts a prompt of `rows` tokens in an empty sequence, the logits of whose last are wanted.
///
/// # Errors
/// [`PredictError`].
pub fn predict_prompt(
    program: &Program,
    rows: usize,
    slots: &Slots,
    card: &Card,
) -> Result<Prediction, PredictError> {
    let [tile, ..] = TILES;
    let prompt = Many { program, slots, rows, logit_rows: 1, tile, seen: Seen::Before };
    let mut prediction = Prediction { rows, ..Prediction::default() };
    prompt.add_to(&mut prediction, card)?;
    Ok(prediction)
}

/// What an op takes of the card.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    bytes: f64,
    slots: f64,
}

struct Pass<'a> {
    program: &'a Program,
    slots: &'a Slots,
    rows: usize,
    /// Tokens that attention sees.
    seen: usize,
}

impl Pass<'_> {
    /// Embeddings, norms and the choice of a token are too small to count.
    fn work(&self, step: &Step) -> Result<Work, PredictError> {
        match step {
            Step::Matvec(matvec) => self.matvec(matvec),
            Step::Attention(attention) => self.attention(attention),
            Step::Embed(_) | Step::Norm(_) | Step::Sample(_) => Ok(Work::default()),
        }
    }

    fn kernel(&self) -> String {
        format!("decode_b{}", self.rows.next_power_of_two())
    }

    fn matvec(&self, matvec: &Matvec) -> Result<Work, PredictError> {
        let matrices = if matches!(matvec.gating, Some(Gating::Up(..))) { 2.0 } else { 1.0 };
        let (ty, rows, cols) = (matvec.ty, matvec.rows, matvec.cols);
        let missing = || PredictError::NoLoop { kernel: self.kernel(), work: ty.to_string() };
        let slots = self.slots.of_weight(&self.kernel(), ty).ok_or_else(missing)?;
        let planes = Layout::of(ty, rows, cols).map_err(|_| missing())?;
        let weights = matrices * (rows * cols) as f64;
        Ok(Work { bytes: matrices * planes.bytes() as f64, slots: weights * slots })
    }

    fn attention(&self, attention: &Attention) -> Result<Work, PredictError> {
        let shape = &attention.shape;
        let seen = shape.window.map_or(self.seen, |window| self.seen.min(window as usize));
        let kv = &self.program.kv[usize::from(attention.layer)];
        let multiplications = seen * shape.heads * (shape.key_dim + shape.value_dim);
        let kernel = format!("{}_attention{}", self.kernel(), kv_suffix(kv.ty));
        let slots = self.slots.of_multiplication(&kernel);
        let work = "attention".to_owned();
        let slots = slots.ok_or(PredictError::NoLoop { kernel, work })?;
        Ok(Work {
            bytes: (self.rows * seen * kv.bytes_per_token()) as f64,
            slots: (self.rows * multiplications) as f64 * slots,
        })
    }
}

/// What names of kernels for such keys and values end with.
fn kv_suffix(ty: KvType) -> &'static str {
    match ty {
        KvType::F16 => "",
        KvType::Int8 => "_int8",
    }
}

/// Tokens that the rows of a pass see.
#[derive(Clone, Copy)]
enum Seen {
    /// All rows are of one sequence, which had no token: each sees those before it and itself.
    Before,
    /// Each is of a sequence of its own, with so many.
    Same(usize),
}

/// A pass of many rows.
struct Many<'a> {
    program: &'a Program,
    slots: &'a Slots,
    rows: usize,
    logit_rows: usize,
    /// Of products.
    tile: usize,
    seen: Seen,
}

impl Many<'_> {
    fn add_to(&self, prediction: &mut Prediction, card: &Card) -> Result<(), PredictError> {
        for op in &self.program.ops {
            self.work(op)?.into_iter().for_each(|work| prediction.add(work, card));
        }
        Ok(())
    }

    fn work(&self, op: &Op) -> Result<Vec<Work>, PredictError> {
        let rows = |buffer| match self.program.buffer(buffer).rows {
            RowSet::All => self.rows,
            RowSet::Logits => self.logit_rows,
        };
        match op {
            Op::Project { x, outputs } => {
                outputs.iter().map(|output| self.product(output.weight, rows(*x))).collect()
            }
            Op::GatedProject { x, gate, up, .. } => {
                [gate, up].into_iter().map(|id| self.product(*id, rows(*x))).collect()
            }
            Op::Attention { layer, shape, .. } => Ok(vec![self.attention(*layer, shape)?]),
            _ => Ok(vec![]),
        }
    }

    fn slots(&self, kernel: String) -> Result<f64, PredictError> {
        let slots = self.slots.of_multiplication(&kernel);
        slots.ok_or_else(|| PredictError::NoLoop { kernel, work: "products".to_owned() })
    }

    fn product(&self, matrix: MatrixId, rows: usize) -> Result<Work, PredictError> {
        let matrix = self.program.matrix(matrix);
        let [.., least] = TILES;
        let name = matrix.ty.name().to_lowercase();
        let slots = self.slots(format!("gemm_{name}_m{}", self.tile))?;
        let multiplications = matrix.rows * matrix.cols * rows.next_multiple_of(least);
        let bytes = matrix.bytes() * rows.div_ceil(self.tile) as u64;
        Ok(Work { bytes: bytes as f64, slots: multiplications as f64 * slots })
    }

    fn attention(&self, layer: u16, shape: &AttentionShape) -> Result<Work, PredictError> {
        let kernel = ATTENTION.iter().find(|kernel| kernel.value_dim >= shape.value_dim);
        let most = kernel.map_or(shape.value_dim, |kernel| kernel.value_dim);
        let kv = &self.program.kv[usize::from(layer)];
        let slots = self.slots(format!("rows_attention_d{most}{}", kv_suffix(kv.ty)))?;
        let window = shape.window.map_or(usize::MAX, |window| window as usize);
        let (seen, read) = match self.seen {
            Seen::Before => ((1..=self.rows).map(|row| row.min(window)).sum(), self.rows),
            Seen::Same(tokens) => (self.rows * tokens.min(window), self.rows * tokens.min(window)),
        };
        let multiplications: usize = seen * shape.heads * (shape.key_dim + shape.value_dim);
        let bytes = read * kv.bytes_per_token();
        Ok(Work { bytes: bytes as f64, slots: multiplications as f64 * slots })
    }
}

#[cfg(test)]
mod tests {
    use m40_gguf::Gguf;
    use m40_program::cost::PassShape;
    use m40_program::{BuildOptions, build};
    use m40_testkit::gguf::TinyModel;

    use super::*;

    const TABLE: &str = "\
kernel               registers  shared  local  bytes  read-only  L2  plain
decode_b1_F16               64   48976      0   5568         12  12      0

kernel            loop  bytes  instr  ffma  bits  local  wide  slots  ffma  type    weights  slots  budget   use
decode_b1_F16        1   1856    174    64     1      0     8     96  67 %  f16          64   1.50    23.7   6 %
decode_b1_Q4_0       1   2176    202    66    89      0     2    189  35 %  q4_0         64   2.95     6.7  44 %
decode_b1_attention  1   7680    710   256     0      0     0    512  50 %
decode_b1_attention_int8  1  7680  710  256   128      0     0    640  40 %

gemm_f16_m128        1  12768   1197  1000    18      0     1   1250  90 %
rows_attention_d64     1   1824    171   100     0      0     2    300  92 %
";

    fn program(model: &TinyModel) -> Program {
        build(&Gguf::parse(model.build()).unwrap(), BuildOptions::default()).unwrap()
    }

    #[test]
    fn slots_come_from_the_table() {
        let slots = Slots::parse(TABLE);
        let of = |ty| slots.of_weight("decode_b1", ty);
        let types = [TensorType::F16, TensorType::Q4_0, TensorType::Q8_0];
        assert_eq!(types.map(of), [Some(1.5), Some(2.95), None]);
        assert_eq!(slots.of_weight("decode_b2", TensorType::F16), None);
        assert_eq!(slots.of_multiplication("decode_b1_attention"), Some(2.0));
    }

    #[test]
    fn the_table_of_this_build_has_every_type_at_every_number_of_rows() {
        use TensorType::*;
        let slots = Slots::of_this_build();
        for kernel in ["decode_b1", "decode_b2", "decode_b4", "decode_b8"] {
            for ty in KvType::ALL {
                let attention = format!("{kernel}_attention{}", kv_suffix(ty));
                assert!(slots.of_multiplication(&attention).is_some(), "{kernel}, {ty}");
            }
            for ty in [
                F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, IQ4NL,
                IQ4XS, MXFP4,
            ] {
                let found = slots.of_weight(kernel, ty);
                assert!(found.is_some_and(|slots| slots > 1.0), "{kernel}: {ty}: {found:?}");
            }
        }
    }

    /// A program of one type, and its weights in products.
    fn one_type() -> (Program, f64) {
        let model = TinyModel::new("llama").weights(TensorType::F16).embedding(TensorType::F16);
        let program = program(&model);
        let lowered = lower(&program, Target { blocks: 24, context: 1 }).unwrap();
        let weights = lowered.ops.iter().map(|op| match &op.step {
            Step::Matvec(m) if m.gating.is_some() => 2 * m.rows * m.cols,
            Step::Matvec(m) => m.rows * m.cols,
            _ => 0,
        });
        let weights = weights.sum::<usize>() as f64;
        (program, weights)
    }

    #[test]
    fn each_op_takes_what_bounds_it() {
        let (program, weights) = one_type();
        let slots = Slots::parse(TABLE);
        let free = Card { multiprocessors: 24, bandwidth: 1e9, lane_slots: 1e18, barrier: 0.0 };
        let near = |found: f64, expected: f64| {
            assert!((found / expected - 1.0).abs() < 0.05, "{found}, expected {expected}");
        };
        let found = predict(&program, 1, 0, &slots, &free).unwrap();
        near(found.memory, 2.0 * weights / 1e9);
        assert_eq!((found.issue, found.barriers), (0.0, 0.0));
        let busy = Card { bandwidth: 1e18, lane_slots: 1e9, ..free };
        let found = predict(&program, 1, 0, &slots, &busy).unwrap();
        near(found.issue, 1.5 * weights / 1e9);
        // Embedding, five ops a layer, head and choice.
        let waits = Card { barrier: 1.0, ..free };
        let found = predict(&program, 1, 0, &slots, &waits).unwrap();
        assert_eq!(found.barriers, (5 * program.description.layers + 3) as f64);
        assert!((found.tokens_per_second() - 1.0 / found.seconds()).abs() < 1e-12);
    }

    #[test]
    fn prompts_take_what_multiplications_do() {
        let (program, weights) = one_type();
        let slots = Slots::parse(TABLE);
        let busy = Card { multiprocessors: 24, bandwidth: 1e18, lane_slots: 1e9, barrier: 1.0 };
        let seconds = |rows| {
            let found = predict_prompt(&program, rows, &slots, &busy).unwrap();
            assert_eq!((found.barriers, found.rows), (0.0, rows));
            found.issue * 1e9
        };
        // After the last attention one row goes on, and 16 are computed.
        let late = program.ops.iter().map(|op| match op {
            Op::Project { x, .. } | Op::GatedProject { x, .. }
                if program.buffer(*x).rows == RowSet::Logits =>
            {
                let shape = PassShape { rows: 1, logit_rows: 1, context: 1 };
                program.cost(op, shape).flops / 2
            }
            _ => 0,
        });
        let late = late.sum::<u64>() as f64;
        let attention = |rows: f64| {
            let all = program.ops.iter().filter_map(|op| match op {
                Op::Attention { shape, .. } => {
                    Some((shape.heads * (shape.key_dim + shape.value_dim)) as f64)
                }
                _ => None,
            });
            3.0 * rows * (rows + 1.0) / 2.0 * all.sum::<f64>()
        };
        let products = |rows: f64| (weights - late) * rows + late * 16.0;
        let expected = |rows: f64| 1.25 * products(rows) + attention(rows);
        for rows in [16, 512] {
            assert!((seconds(rows) / expected(rows as f64) - 1.0).abs() < 1e-9, "{rows} rows");
        }
        for model in [TinyModel::new("gemma3"), TinyModel::new("phi3").weights(TensorType::Q4K)] {
            let prediction =
                predict_prompt(&self::program(&model), 64, &Slots::of_this_build(), &M40);
            assert!(prediction.unwrap().tokens_per_second() > 0.0);
        }
    }

    #[test]
    fn depth_costs_what_its_keys_and_values_are() {
        let (mut program, _) = one_type();
        let slots = Slots::parse(TABLE);
        let card = Card { multiprocessors: 24, bandwidth: 1e9, lane_slots: 1e18, barrier: 0.0 };
        for ty in KvType::ALL {
            program.kv.iter_mut().for_each(|kv| kv.ty = ty);
            let [near, far] =
                [0, 1000].map(|depth| predict(&program, 1, depth, &slots, &card).unwrap());
            let bytes = 1000.0 * program.kv_bytes_per_token() as f64;
            assert!(((far.memory - near.memory) * 1e9 - bytes).abs() < 1.0, "{ty}");
        }
    }

    #[test]
    fn rows_beyond_a_pass_take_a_wide_one_and_those_beyond_that_another() {
        let (program, _) = one_type();
        let slots = Slots::of_this_build();
        let seconds = |rows| predict(&program, rows, 0, &slots, &M40).unwrap().seconds();
        assert!(seconds(32) < 3.0 * seconds(8));
        assert!((seconds(2 * LOGIT_ROWS) / seconds(LOGIT_ROWS) - 2.0).abs() < 1e-9);
        assert!(seconds(8) < 4.0 * seconds(1));
        let missing = predict(&program, 2, 0, &Slots::parse(TABLE), &M40).unwrap_err();
        assert!(missing.to_string().contains("decode_b2"), "{missing}");
    }
}
