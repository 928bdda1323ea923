//! Single ops of a decode pass on an emulated card.

use m40_gpu::executor::idle_ops;
use m40_gpu::ops::{AWAIT, NormOp, OP_WORDS, Op, PASS_ROWS, Place, Row};
use m40_testkit::gguf::Noise;

use crate::card::{Card, Launch};
use crate::passes::emulation;

/// Bytes of a case's memory.
const ARENA: usize = 24 << 20;

/// A card with one op on it.
pub(crate) struct Bench {
    pub(crate) card: Card,
    pub(crate) noise: Noise,
    pub(crate) blocks: u32,
}

impl Bench {
    pub(crate) fn new(seed: u64, blocks: u32) -> Option<Self> {
        let card = Card::start(&emulation()?, ARENA);
        Some(Self { card, noise: Noise::new(seed), blocks })
    }

    pub(crate) fn place(&mut self, values: &[f32]) -> Place {
        let words: Vec<_> = values.iter().map(|x| x.to_bits()).collect();
        let place = self.card.allocate(4 * words.len());
        self.card.write_words(place, &words);
        place
    }

    /// `rows` rows of `width` numbers, `stride` apart: the numbers, and where they are.
    pub(crate) fn rows(&mut self, rows: usize, width: usize, stride: usize) -> (Vec<f32>, Place) {
        let values = self.noise.normals(rows * width, 1.0);
        let mut spread = vec![f32::NAN; (rows - 1) * stride + width];
        for (row, values) in values.chunks_exact(width).enumerate() {
            spread[row * stride..row * stride + width].copy_from_slice(values);
        }
        let place = self.place(&spread);
        (values, place)
    }

    /// A vector of the weights, which are padded with zeros to whole lines.
    pub(crate) fn vector(&mut self, len: usize) -> (Vec<f32>, Place) {
        let values = self.noise.normals(len, 1.0);
        let mut padded = values.clone();
        padded.resize(len.next_multiple_of(32), 0.0);
        let place = self.place(&padded);
        (values, place)
    }

    /// The op alone: a launch whose blocks do not wait for each other.
    pub(crate) fn run(&mut self, op: &Op, rows: &[Row]) {
        self.run_list(&op.words(), Place(0), rows);
    }

    /// The op, and one that waits for it, in one launch.
    pub(crate) fn run_resident(&mut self, op: &Op, rows: &[Row]) {
        let barrier = self.card.allocate(12);
        self.card.write_words(barrier, &[0; 3]);
        let (_, x) = self.rows(PASS_ROWS, 8, 8);
        let (_, gain) = self.vector(8);
        let next = Op::Norm(NormOp {
            kind: Op::NORM,
            flags: AWAIT,
            cols: 8,
            x,
            x_stride: 8,
            gain,
            eps: 1.0,
            residual: Place::NOWHERE,
            residual_stride: 0,
            out: x,
            out_stride: 8,
        });
        let list = [op.words(), next.words()].concat();
        self.run_list(&list, barrier, rows);
        assert_eq!(self.card.read_words(barrier, 3)[2], 0, "blocks waited for ever");
    }

    fn run_list(&mut self, list: &[u32], barrier: Place, rows: &[Row]) {
        let ops = self.card.allocate(4 * list.len());
        self.card.write_words(ops, list);
        let pass = self.card.allocate(4 * (4 + 4 * PASS_ROWS));
        let mut words = vec![rows.len() as u32, 0, 0, 0];
        rows.iter().for_each(|row| words.extend(row.words()));
        self.card.write_words(pass, &words);
        let nowhere = Place(0);
        self.card.run(&Launch {
            rows: rows.len().next_power_of_two(),
            blocks: self.blocks,
            ops,
            first: 0,
            last: list.len() / OP_WORDS,
            pass,
            passes: 1,
            barrier,
            chosen: nowhere,
            cancels: nowhere,
            taken: 0,
        });
    }

    /// `rows` rows of `width` numbers, `stride` apart.
    pub(crate) fn read(
        &mut self,
        place: Place,
        rows: usize,
        width: usize,
        stride: usize,
    ) -> Vec<f32> {
        let all = self.card.read_floats(place, (rows - 1) * stride + width);
        all.chunks(stride).flat_map(|row| row[..width].to_vec()).collect()
    }
}

/// `x * gain / rms(x)`, row by row.
pub(crate) fn normed(x: &[f64], gain: &[f32], eps: f64) -> Vec<f64> {
    let rows = x.chunks_exact(gain.len()).flat_map(|row| {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (mean + eps).sqrt();
        row.iter().zip(gain).map(move |(v, g)| v * scale * f64::from(*g)).collect::<Vec<_>>()
    });
    rows.collect()
}

#[test]
fn ops_that_only_wait_for_each_other_end() {
    let Some(mut bench) = Bench::new(1, 3) else { return };
    const OPS: usize = 50;
    let ops = bench.card.allocate(4 * OPS * OP_WORDS);
    let pass = bench.card.allocate(4 * (4 + 4 * PASS_ROWS));
    bench.card.write_words(pass, &[0; 4 + 4 * PASS_ROWS]);
    let barrier = bench.card.allocate(12);
    for awaits in [true, false] {
        bench.card.write_words(ops, &idle_ops(OPS, awaits));
        bench.card.write_words(barrier, &[0; 3]);
        bench.card.run(&Launch {
            rows: 1,
            blocks: bench.blocks,
            ops,
            first: 0,
            last: OPS,
            pass,
            passes: 1,
            barrier,
            chosen: Place(0),
            cancels: Place(0),
            taken: 0,
        });
        let arrived = if awaits { bench.blocks * OPS as u32 } else { 0 };
        assert_eq!(bench.card.read_words(barrier, 3), [arrived, 0, 0]);
    }
    bench.card.end();
}
