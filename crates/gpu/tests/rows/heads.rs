//! Angles, per-head norms and rotations.

use m40_program::rope::RopeScaling;
use m40_program::{RopeStyle, RopeTable};
use m40_testkit::gguf::Noise;

use crate::emulator::{Launch, floats, run};
use crate::{Row, close, gains, gathered, row_words, spread};

/// What `HeadOps` of kernels/rows.cu says.
const NORM: usize = 1;
const ROTATE: usize = 2;
const INTERLEAVED: usize = 4;

/// A treatment of heads.
#[derive(Clone, Debug)]
pub(crate) struct Treatment {
    pub(crate) dim: usize,
    /// `HeadOps`.
    pub(crate) ops: usize,
    pub(crate) gain: Vec<f32>,
    pub(crate) eps: f32,
    pub(crate) pairs: usize,
}

impl Treatment {
    pub(crate) fn new(noise: &mut Noise, dim: usize, ops: usize, pairs: usize) -> Self {
        Self { dim, ops, gain: gains(noise, dim), eps: 1e-6, pairs }
    }

    /// Angles of `rows` rows, any.
    pub(crate) fn angles(&self, noise: &mut Noise, rows: usize) -> Vec<f32> {
        (0..rows * self.pairs)
            .flat_map(|_| {
                let (sin, cos) = (f64::from(noise.normal()) * 3.0).sin_cos();
                [cos as f32, sin as f32]
            })
            .collect()
    }

    /// A head in f64; `angles`: of its row.
    pub(crate) fn apply(&self, x: &[f32], angles: &[f32]) -> Vec<f64> {
        let mut head: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        if self.ops & NORM != 0 {
            let squares: f64 = head.iter().map(|v| v * v).sum();
            let scale = 1.0 / (squares / self.dim as f64 + f64::from(self.eps)).sqrt();
            head.iter_mut().zip(&self.gain).for_each(|(v, gain)| *v *= scale * f64::from(*gain));
        }
        let pairs = if self.ops & ROTATE == 0 { 0 } else { self.pairs };
        for i in 0..pairs {
            let (first, second) =
                if self.ops & INTERLEAVED == 0 { (i, i + pairs) } else { (2 * i, 2 * i + 1) };
            let (cos, sin) = (f64::from(angles[2 * i]), f64::from(angles[2 * i + 1]));
            let (a, b) = (head[first], head[second]);
            (head[first], head[second]) = (a * cos - b * sin, a * sin + b * cos);
        }
        head
    }
}

/// Every treatment of heads of some sizes.
pub(crate) fn treatments(noise: &mut Noise) -> Vec<Treatment> {
    let mut all = vec![];
    for (dim, pairs) in [(8, 4), (64, 32), (80, 40), (96, 20), (128, 64), (320, 33)] {
        for ops in
            [0, NORM, ROTATE, NORM | ROTATE, ROTATE | INTERLEAVED, NORM | ROTATE | INTERLEAVED]
        {
            all.push(Treatment::new(noise, dim, ops, pairs));
        }
    }
    all
}

#[test]
fn heads_are_normed_and_rotated_in_place() {
    let mut noise = Noise::new(11);
    let mut launches = vec![];
    let mut expected = vec![];
    for (i, treatment) in treatments(&mut noise).into_iter().enumerate() {
        let (rows, heads, threads) = [(1, 1, 32), (5, 3, 64), (3, 8, 256), (17, 1, 128)][i % 4];
        let width = heads * treatment.dim;
        let x = noise.normals(rows * width, 1.5);
        let angles = treatment.angles(&mut noise, rows);
        let grid = (rows * heads).div_ceil(threads as usize / 32);
        launches.push(
            Launch::new("rows_heads", grid, threads, 0)
                .write_floats(&spread(&x, width, width + 7))
                .number(width + 7)
                .number(rows)
                .number(heads)
                .number(treatment.dim)
                .number(treatment.ops)
                .read_floats(&treatment.gain)
                .float(treatment.eps)
                .read_floats(&angles)
                .number(treatment.pairs),
        );
        let rows = x.chunks(width).zip(angles.chunks(2 * treatment.pairs));
        let heads: Vec<f64> = rows
            .flat_map(|(row, angles)| {
                row.chunks(treatment.dim)
                    .flat_map(|head| treatment.apply(head, angles))
                    .collect::<Vec<_>>()
            })
            .collect();
        expected.push((format!("{treatment:?}"), width, heads));
    }
    let Some(outputs) = run("heads", &launches) else { return };
    for (output, (what, width, expected)) in outputs.iter().zip(expected) {
        close(&what, &gathered(&floats(&output[0]), width, width + 7), &expected, 1e-6);
    }
}

#[test]
fn angles_are_those_of_f64_up_to_the_largest_positions() {
    const POSITIONS: [u32; 12] =
        [0, 1, 2, 3, 31, 4095, 65_535, 131_071, 999_999, 1_048_576, 300_000_007, u32::MAX];
    let mut launches = vec![];
    let mut expected = vec![];
    for (dims, base, scaling) in [
        (128, 500_000.0, RopeScaling::None),
        (2, 10_000.0, RopeScaling::None),
        (66, 10_000.0, RopeScaling::Linear { factor: 7.0 }),
    ] {
        let table = RopeTable::new(RopeStyle::Halves, dims, base, &scaling);
        let rows: Vec<Row> =
            POSITIONS.iter().map(|&position| Row { position, ..Row::default() }).collect();
        let (pairs, magnitude) = (dims / 2, 1.25f32);
        launches.push(
            Launch::new("rows_angles", (rows.len() * pairs).div_ceil(64), 64, 0)
                .read_words(&row_words(&rows))
                .number(rows.len())
                .read_floats(&table.inv_freq)
                .number(pairs)
                .float(magnitude)
                .write_floats(&vec![f32::NAN; rows.len() * pairs * 2]),
        );
        let turn = |position: u32| {
            let angles = table.inv_freq.iter().map(move |f| f64::from(position) * f64::from(*f));
            angles.flat_map(|a| [a.cos(), a.sin()].map(|v| v * f64::from(magnitude)))
        };
        expected.push((format!("{pairs} pairs"), POSITIONS.into_iter().flat_map(turn).collect()));
    }
    let Some(outputs) = run("angles", &launches) else { return };
    for (output, (what, expected)) in outputs.iter().zip(expected) {
        let expected: Vec<f64> = expected;
        close(&what, &floats(&output[0]), &expected, 1.2e-7);
    }
}
