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
            out.push(q * (max * (1.0 / 127.0)));
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

/// Columns to try with weights of `ty`: less than, exactly and more than a tile.
fn widths(ty: TensorType) -> &'static [usize] {
    match ty.block_len() {
        1 => &[1, 7, 256, 779],
        32 => &[32, 1024, 2080],
        _ => &[256, 1024, 2304],
    }
}

#[test]
fn every_type_equals_dequantised_weights_on_every_isa_alone_and_in_batches() {
    const BATCHES: [usize; 7] = [1, 2, 3, 5, 8, 17, 64];
    let mut random = Random(1);
    let computes = isas();
    for ty in TYPES {
        for &cols in widths(ty) {
            for rows in [1, 3, 16, 37] {
                let data = weights(ty, rows, cols, &mut random, |r| r.next() as u8);
                let x: Vec<f32> = (0..64 * cols).map(|_| random.normal()).collect();
                let used = if is_float(ty) { x.clone() } else { rounded(&x) };
                let values = dequantized(ty, &data);
                let expected = reference(&values, &used, cols);
                let unrounded = reference(&values, &x, cols);
                let w = Matrix { ty, rows, cols, data: &data };
                for compute in &computes {
                    let case = format!("{ty} [{rows}, {cols}] {}", compute.isa());
                    let most = project(compute, w, &x, 64);
                    let exact = error(&most, &expected);
                    assert!(exact < 2e-6, "{case}: {exact:e}");
                    // Half a step of 1/127 of the group's largest activation.
                    let rounding = error(&most, &unrounded);
                    assert!(rounding < 0.01, "{case}: {rounding:e} from rounding");
                    for n in BATCHES {
                        let some = project(compute, w, &x[..n * cols], n);
                        assert_same(&some, &most[..n * rows], &format!("{case} in {n}"));
                        let last = project(compute, w, &x[(n - 1) * cols..n * cols], 1);
                        assert_same(&last, &most[(n - 1) * rows..n * rows], &case);
                    }
                }
            }
        }
    }
}

/// Bit for bit, NaNs included.
fn assert_same(a: &[f32], b: &[f32], case: &str) {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(a) == bits(b), "{case}: {a:?} and {b:?}");
}

#[test]
fn vector_isas_agree_bit_for_bit() {
    let mut random = Random(2);
    let computes = isas();
    for ty in TYPES {
        let (rows, cols, n) = (37, 2304, 5);
        let data = weights(ty, rows, cols, &mut random, |r| r.next() as u8);
        let x: Vec<f32> = (0..n * cols).map(|_| random.normal()).collect();
        let w = Matrix { ty, rows, cols, data: &data };
        // The portable one multiplies and adds in two roundings.
        let results: Vec<Vec<f32>> =
            computes.iter().skip(1).map(|compute| project(compute, w, &x, n)).collect();
        for pair in results.windows(2) {
            assert_same(&pair[0], &pair[1], ty.name());
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut random = Random(3);
    for ty in [TensorType::Q4_1, TensorType::Q6K, TensorType::F16] {
        for (rows, cols, n) in [(515, 768, 1), (515, 768, 6), (64, 256, 1)] {
            let data = weights(ty, rows, cols, &mut random, |r| r.next() as u8);
            let x: Vec<f32> = (0..n * cols).map(|_| random.normal()).collect();
            let w = Matrix { ty, rows, cols, data: &data };
            let run = |threads| {
                let compute = Compute::new(ThreadPool::new(threads), Isa::detect()).unwrap();
                project(&compute, w, &x, n)
            };
            let alone = run(1);
            for threads in [2, 3, 7, 20] {
                assert_same(&run(threads), &alone, &format!("{ty} on {threads} threads"));
            }
        }
    }
}

#[test]
fn extreme_weights_and_activations_do_not_overflow() {
    let mut random = Random(4);
    let computes = isas();
    for ty in TYPES.into_iter().filter(|ty| !is_float(*ty)) {
        for byte in [0x00, 0x0f, 0x7f, 0x80, 0x81, 0xf0, 0xff] {
            let (rows, cols) = (17, 512);
            let data = weights(ty, rows, cols, &mut random, |_| byte);
            let values = dequantized(ty, &data);
            let signs: [fn(usize) -> f32; 3] =
                [|_| 1.0, |_| -1.0, |i| if i.is_multiple_of(2) { 1.0 } else { -1.0 }];
            for sign in signs {
                // All activations become 127 or -127.
                let x: Vec<f32> = (0..cols).map(|i| 3.0 * sign(i)).collect();
                let expected = reference(&values, &rounded(&x), cols);
                for compute in &computes {
                    let w = Matrix { ty, rows, cols, data: &data };
                    let error = error(&project(compute, w, &x, 1), &expected);
                    assert!(error < 2e-6, "{ty} {byte:#x} {}: {error:e}", compute.isa());
                }
            }
        }
    }
}

#[test]
fn any_bits_in_the_floats_of_blocks_give_what_dequantising_gives() {
    let mut random = Random(5);
    let computes = isas();
    for ty in TYPES {
        let (rows, cols) = (48, 256);
        let bytes: Vec<u8> =
            (0..rows * ty.row_bytes(cols).unwrap()).map(|_| random.next() as u8).collect();
        let values = dequantized(ty, &bytes);
        let x: Vec<f32> = (0..cols).map(|_| random.normal()).collect();
        let used = if is_float(ty) { x.clone() } else { rounded(&x) };
        let expected = reference(&values, &used, cols);
        for compute in &computes {
            let got = project(compute, Matrix { ty, rows, cols, data: &bytes }, &x, 1);
            for (got, (sum, size)) in got.iter().zip(&expected) {
                if size.is_finite() && *size < 1e37 {
                    let error = (f64::from(*got) - sum).abs() / size.max(1e-30);
                    assert!(error < 2e-6, "{ty} {}: {got} for {sum}", compute.isa());
                } else if !sum.is_finite() && ty != TensorType::MXFP4 {
                    // MXFP4's largest weights overflow one by one where scaled sums may not.
                    assert!(!got.is_finite(), "{ty} {}: {got} for {sum}", compute.isa());
                }
            }
        }
    }
}

#[test]
fn zero_activations_give_zero_and_non_finite_ones_are_not_lost() {
    let mut random = Random(6);
    for compute in isas() {
        for ty in TYPES {
            let (rows, cols) = (16, 256);
            let data = weights(ty, rows, cols, &mut random, |r| r.next() as u8);
            let w = Matrix { ty, rows, cols, data: &data };
            let mut x = vec![0.0; cols];
            assert!(project(&compute, w, &x, 1).iter().all(|out| *out == 0.0), "{ty}");
            x[3] = 1e-40;
            assert!(project(&compute, w, &x, 1).iter().all(|out| out.abs() < 1e-36), "{ty}");
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                x[70] = bad;
                assert!(project(&compute, w, &x, 1).iter().all(|out| !out.is_finite()), "{ty}");
            }
        }
    }
}

#[test]
fn matrices_that_share_activations_are_each_multiplied() {
    let mut random = Random(7);
    let (cols, n) = (256, 3);
    let x: Vec<f32> = (0..n * cols).map(|_| random.normal()).collect();
    // More than one region takes, of different types and sizes, one of no rows.
    let shapes: Vec<(TensorType, usize)> =
        TYPES.into_iter().zip([1, 100, 0, 33, 64, 7].into_iter().cycle()).collect();
    let data: Vec<Vec<u8>> = shapes
        .iter()
        .map(|&(ty, rows)| weights(ty, rows, cols, &mut random, |r| r.next() as u8))
        .collect();
    for compute in isas() {
        let mut acts = Activations::new();
        acts.prepare(&compute, &x, n, cols, Forms { quantised: true, float: true });
        let mut outs: Vec<Vec<f32>> =
            shapes.iter().map(|(_, rows)| vec![f32::NAN; n * rows]).collect();
        let mut projections: Vec<Projection<'_>> = outs
            .iter_mut()
            .zip(shapes.iter().zip(&data))
            .map(|(out, (&(ty, rows), data))| Projection {
                weight: Matrix { ty, rows, cols, data },
                out,
            })
            .collect();
        compute.project(&acts, &mut projections);
        for (out, (&(ty, rows), data)) in outs.iter().zip(shapes.iter().zip(&data)) {
            let alone = project(&compute, Matrix { ty, rows, cols, data }, &x, n);
            assert_same(out, &alone, ty.name());
        }
    }
}

#[test]
fn activations_can_be_prepared_again_and_again() {
    let mut random = Random(8);
    let data = weights(TensorType::Q8_0, 20, 1024, &mut random, |r| r.next() as u8);
    let compute = Compute::new(ThreadPool::new(2), Isa::detect()).unwrap();
    let mut acts = Activations::new();
    for (n, cols) in [(64, 1024), (1, 32), (9, 512), (0, 512), (2, 1024)] {
        let w = Matrix {
            ty: TensorType::Q8_0,
            rows: 20,
            cols,
            data: &data[..20 * TensorType::Q8_0.row_bytes(cols).unwrap()],
        };
        let x: Vec<f32> = (0..n * cols).map(|_| random.normal()).collect();
        acts.prepare(&compute, &x, n, cols, Forms::of([w.ty]));
        assert_eq!((acts.n(), acts.cols()), (n, cols));
        let mut out = vec![f32::NAN; n * w.rows];
        compute.project(&acts, &mut [Projection { weight: w, out: &mut out }]);
        assert_same(&out, &project(&compute, w, &x, n), &format!("[{n}, {cols}]"));
    }
}

#[test]
fn the_oracle_is_the_dequantised_dot_product() {
    let mut random = Random(9);
    let compute = Compute::new(ThreadPool::new(2), Isa::Scalar).unwrap();
    for ty in TYPES {
        let (rows, cols, n) = (5, 512, 3);
        let data = weights(ty, rows, cols, &mut random, |r| r.next() as u8);
        let x: Vec<f32> = (0..n * cols).map(|_| random.normal()).collect();
        let mut acts = Activations::new();
        acts.prepare(&compute, &x, n, cols, Forms { quantised: false, float: true });
        let mut out = vec![f32::NAN; n * rows];
        let weight = Matrix { ty, rows, cols, data: &data };
        project_oracle(compute.pool(), &acts, &mut [Projection { weight, out: &mut out }]);
        let expected = reference(&dequantized(ty, &data), &x, cols);
        let rounded: Vec<f32> = expected.iter().map(|(sum, _)| *sum as f32).collect();
        assert_same(&out, &rounded, ty.name());
    }
}

#[test]
fn isas_this_cpu_lacks_are_refused() {
    for isa in [Isa::Avx2, Isa::Avx512Vnni] {
        let made = Compute::new(ThreadPool::new(1), isa);
        assert_eq!(made.is_ok(), Isa::available().any(|available| available == isa));
    }
}

/// Activations `[1, cols]` in the given forms, and a matrix `[2, 64]` of Q8_0.
fn mismatched(cols: usize, forms: Forms, bytes: usize) {
    let compute = Compute::new(ThreadPool::new(1), Isa::Scalar).unwrap();
    let mut acts = Activations::new();
    acts.prepare(&compute, &vec![1.0; cols], 1, cols, forms);
    let weight = Matrix { ty: TensorType::Q8_0, rows: 2, cols: 64, data: &vec![0; bytes] };
    compute.project(&acts, &mut [Projection { weight, out: &mut [0.0; 2] }]);
}

#[test]
#[should_panic(expected = "other columns than the activations")]
fn panics_on_other_columns() {
    mismatched(96, Forms { quantised: true, float: false }, 136);
}

#[test]
#[should_panic(expected = "for Q8_0 weights")]
fn panics_on_activations_in_another_form() {
    mismatched(64, Forms { quantised: false, float: true }, 136);
}

#[test]
#[should_panic(expected = "a Q8_0 matrix [2, 64] of 135 bytes")]
fn panics_on_missing_weights() {
    mismatched(64, Forms { quantised: true, float: false }, 135);
}
