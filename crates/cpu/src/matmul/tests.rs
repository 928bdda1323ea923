//! Every type on every instruction set against dequantised weights.

use super::activations::GROUP;
use super::*;
use half::f16;

const TYPES: [TensorType; 16] = {
    use TensorType as T;
    [
        T::F32,
        T::F16,
        T::BF16,
        T::Q4_0,
        T::Q4_1,
        T::Q5_0,
        T::Q5_1,
        T::Q8_0,
        T::Q2K,
        T::Q3K,
        T::Q4K,
        T::Q5K,
        T::Q6K,
        T::IQ4NL,
        T::IQ4XS,
        T::MXFP4,
    ]
};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Roughly normal, mean 0, deviation 1.
    fn normal(&mut self) -> f32 {
        let uniform: f32 = (0..12).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32).sum();
        uniform - 6.0
    }
}

fn isas() -> Vec<Compute> {
    Isa::available().map(|isa| Compute::new(ThreadPool::new(2), isa).unwrap()).collect()
}

/// Where a block of `ty` has its f16 numbers.
fn f16_fields(ty: TensorType) -> &'static [usize] {
    use TensorType as T;
    match ty {
        T::Q4_0 | T::Q5_0 | T::Q8_0 | T::IQ4NL | T::IQ4XS => &[0],
        T::Q4_1 | T::Q5_1 | T::Q4K | T::Q5K => &[0, 2],
        T::Q2K => &[80, 82],
        T::Q3K => &[108],
        T::Q6K => &[208],
        _ => &[],
    }
}

/// `rows * cols` weights: blocks of `fill()` bytes with reasonable numbers where they are floats.
fn weights(
    ty: TensorType,
    rows: usize,
    cols: usize,
    random: &mut Random,
    fill: impl Fn(&mut Random) -> u8,
) -> Vec<u8> {
    let mut data: Vec<u8> = (0..ty.row_bytes(cols).unwrap() * rows).map(|_| fill(random)).collect();
    for block in data.chunks_exact_mut(ty.block_bytes()) {
        let x = random.normal() * 0.05;
        match ty {
            TensorType::F32 => block.copy_from_slice(&x.to_le_bytes()),
            TensorType::F16 => block.copy_from_slice(&f16::from_f32(x).to_le_bytes()),
            TensorType::BF16 => block.copy_from_slice(&x.to_le_bytes()[2..]),
            TensorType::MXFP4 => block[0] = 118 + (random.next() % 8) as u8,
            _ => {}
        }
        for &at in f16_fields(ty) {
            let x = f16::from_f32(random.normal() * 0.01);
            block[at..at + 2].copy_from_slice(&x.to_le_bytes());
        }
    }
    data
}

fn dequantized(ty: TensorType, data: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; data.len() / ty.block_bytes() * ty.block_len()];
    m40_gguf::dequantize(ty, data, &mut out).unwrap();
    out
}

fn project(compute: &Compute, w: Matrix<'_>, x: &[f32], n: usize) -> Vec<f32> {
    let mut acts = Activations::new();
    acts.prepare(compute, x, n, w.cols, Forms::of([w.ty]));
    let mut out = vec![f32::NAN; n * w.rows];
    compute.project(&acts, &mut [Projection { weight: w, out: &mut out }]);
    out
}

/// What int8 activations stand for: written out again, one number at a time.
fn rounded(x: &[f32]) -> Vec<f32> {
    let mut out = Vec::with_capacity(x.len());
    for group in x.chunks(GROUP) {
        let max = group.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let inverse = 127.0 / max;
        for x in group {
            let q = if max == 0.0 { 0.0 } else { (x * inverse).round_ties_even() };
            out.push(q * (max / 127.0));
        }
    }
    out
}

/// f64 dot products, and the sums of the magnitudes of their terms.
fn reference(w: &[f32], x: &[f32], cols: usize) -> Vec<(f64, f64)> {
    let rows = w.chunks_exact(cols);
    x.chunks_exact(cols)
        .flat_map(|x| {
            rows.clone().map(move |w| {
                let terms = w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x));
                terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
            })
        })
        .collect()
}

/// The largest error, relative to the sums of magnitudes.
fn error(got: &[f32], expected: &[(f64, f64)]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let errors = got.iter().zip(expected).map(|(&got, &(sum, size))| {
        let error = (f64::from(got) - sum).abs();
        if error == 0.0 { 0.0 } else { error / size }
    });
    errors.fold(0.0, |max, error| if error > max || error.is_nan() { error } else { max })
}

fn is_float(ty: TensorType) -> bool {
    Forms::of([ty]).float
}

#[test]
fn every_type_equals_dequantised_weights_on_every_isa() {
    let mut random = Random(1);
    for ty in TYPES {
        let cols_tried: &[usize] = match ty.block_len() {
            1 => &[1, 7, 8, 33, 256, 576, 779],
            32 => &[32, 64, 576, 1056, 2080],
            _ => &[256, 768, 1024, 2304],
        };
        for &cols in cols_tried {
            for (rows, n) in [(1, 1), (3, 5), (16, 8), (17, 1), (37, 3), (48, 17), (31, 64), (9, 2)]
            {
                let data = weights(ty, rows, cols, &mut random, |r| r.next() as u8);
                let x: Vec<f32> = (0..n * cols).map(|_| random.normal()).collect();
                let used = if is_float(ty) { x.clone() } else { rounded(&x) };
                let expected = reference(&dequantized(ty, &data), &used, cols);
                let w = Matrix { ty, rows, cols, data: &data };
                for compute in isas() {
                    let error = error(&project(&compute, w, &x, n), &expected);
                    let isa = compute.isa();
                    assert!(error < 2e-6, "{ty} [{rows}, {cols}] n {n} {isa}: {error:e}");
                }
            }
        }
    }
}
