//! The matvec kernels on planes made here, against f64.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use m40_gguf::{TensorType, dequantize};
use m40_repack::{Layout, Role, repack};
use m40_testkit::gguf::{Noise, quantize};

use crate::compile;

/// Types, their names in kernels, and the error allowed, as a share of the sum of |weight * x|.
///
/// What remains is the rounding of sums to which the powers of `kernels/README.md` were added: about
/// 2^-24 times the largest power, divided by a usual weight before its scale.
const TYPES: [(TensorType, &str, f64); 16] = [
    (TensorType::F32, "f32", 4e-7),
    (TensorType::F16, "f16", 4e-7),
    (TensorType::BF16, "bf16", 4e-7),
    (TensorType::Q4_0, "q4_0", 1e-5),
    (TensorType::Q4_1, "q4_1", 1e-5),
    (TensorType::Q5_0, "q5_0", 1e-5),
    (TensorType::Q5_1, "q5_1", 1e-5),
    (TensorType::Q8_0, "q8_0", 4e-6),
    (TensorType::Q2K, "q2_k", 4e-5),
    (TensorType::Q3K, "q3_k", 4e-5),
    (TensorType::Q4K, "q4_k", 1e-5),
    (TensorType::Q5K, "q5_k", 1e-5),
    (TensorType::Q6K, "q6_k", 1e-5),
    (TensorType::IQ4NL, "iq4_nl", 1e-4),
    (TensorType::IQ4XS, "iq4_xs", 1e-4),
    (TensorType::MXFP4, "mxfp4", 4e-6),
];

/// Rows, blocks of columns, batch, groups of a chunk (0: all), grid, threads of a block.
type Size = (usize, usize, usize, usize, u32, u32);

/// One row, odd rows, more rows than warps, fewer; whole and partial warps of groups; every batch.
const SIZES: [Size; 12] = [
    (1, 1, 1, 0, 1, 32),
    (3, 2, 2, 0, 1, 64),
    (5, 5, 3, 0, 2, 32),
    (33, 3, 1, 0, 2, 64),
    (33, 9, 4, 0, 1, 96),
    (3, 4, 5, 0, 2, 32),
    (5, 2, 6, 0, 1, 32),
    (1, 3, 7, 0, 3, 64),
    (33, 5, 8, 32, 2, 32),
    (9, 33, 1, 32, 1, 64),
    (5, 70, 1, 0, 1, 32),
    (5, 40, 2, 32, 1, 32),
];

#[derive(Clone, Copy, PartialEq)]
enum Epilogue {
    Plain,
    Bias,
    Residual,
    BiasAndResidualInPlace,
}

struct Case {
    name: String,
    tolerance: f64,
    input: Vec<u8>,
    /// What y should be, and the sum of |weight * x| behind it.
    expected: Vec<(f64, f64)>,
}

fn case(ty: TensorType, kernel: &str, tolerance: f64, size: Size, epilogue: Epilogue) -> Case {
    let (rows, blocks, batch, chunk, grid, threads) = size;
    // Super-blocks have 8 groups: as many columns as of other types would make tests slow.
    let cols = match ty.block_len() {
        256 => blocks.div_ceil(8) * 256,
        _ => blocks * 32,
    };
    let layout = Layout::of(ty, rows, cols).expect("the type has a layout");
    let mut noise = Noise::new((rows * cols + batch) as u64);
    let data = quantize(ty, &noise.normals(rows * cols, 0.05));
    let mut planes = vec![0; layout.bytes()];
    repack(&layout, &data, &mut planes).expect("the lengths agree");
    let mut weights = vec![0.0; rows * cols];
    dequantize(ty, &data, &mut weights).expect("the lengths agree");
    let x = noise.normals(batch * cols, 1.0);
    let bias = noise.normals(rows, 0.5);
    let residual = noise.normals(batch * rows, 0.5);
    let has_bias = matches!(epilogue, Epilogue::Bias | Epilogue::BiasAndResidualInPlace);
    let has_residual = matches!(epilogue, Epilogue::Residual | Epilogue::BiasAndResidualInPlace);
    let mut expected = Vec::new();
    for b in 0..batch {
        for row in 0..rows {
            let terms = weights[row * cols..].iter().zip(&x[b * cols..][..cols]);
            let terms = terms.map(|(w, x)| f64::from(*w) * f64::from(*x));
            let mut sum: f64 = terms.clone().sum();
            let mut size: f64 = terms.map(f64::abs).sum();
            for (used, term) in [(has_bias, bias[row]), (has_residual, residual[b * rows + row])] {
                sum += if used { f64::from(term) } else { 0.0 };
                size += if used { f64::from(term).abs() } else { 0.0 };
            }
            expected.push((sum, size));
        }
    }
    let kernel_batch = batch.next_power_of_two();
    let chunk = if chunk == 0 { layout.groups() } else { chunk };
    let mut name = format!("{kernel}_b{kernel_batch}");
    let mut input = format!(
        "{name} {grid} {threads} {rows} {cols} {batch} {chunk} {} {} {} {} {} {} {} {}\n",
        planes.len(),
        layout.plane(Role::High).offset,
        layout.plane(Role::Scales).offset,
        layout.plane(Role::ScaleTops).offset,
        layout.plane(Role::Supers).offset,
        u8::from(has_bias),
        u8::from(has_residual),
        u8::from(epilogue == Epilogue::BiasAndResidualInPlace),
    )
    .into_bytes();
    input.extend(&planes);
    let mut floats = |values: &[f32]| input.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    floats(&x);
    if has_bias {
        floats(&bias);
    }
    if has_residual {
        floats(&residual);
    }
    write!(name, " on {rows}x{cols}, batch {batch}, chunks of {chunk}").expect("to a string");
    Case { name, tolerance, input, expected }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (ty, kernel, tolerance) in TYPES {
        for (i, &size) in SIZES.iter().enumerate() {
            let epilogue = [
                Epilogue::Plain,
                Epilogue::Bias,
                Epilogue::Residual,
                Epilogue::BiasAndResidualInPlace,
            ][i % 4];
            cases.push(case(ty, kernel, tolerance, size, epilogue));
        }
    }
    cases
}

#[test]
fn matvec_kernels_agree_with_plain_arithmetic() {
    let Some(program) = compile("matvec") else { return };
    let cases = cases();
    let input = Path::new(env!("CARGO_TARGET_TMPDIR")).join("matvec.input");
    fs::write(&input, cases.iter().flat_map(|case| case.input.iter().copied()).collect::<Vec<_>>())
        .unwrap();
    let output = Command::new(program).stdin(File::open(input).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (results, rest) = output.stdout.as_chunks::<4>();
    let expected: usize = cases.iter().map(|case| case.expected.len()).sum();
    assert_eq!(results.len(), expected);
    assert!(rest.is_empty());
    let mut results = results.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
    for case in &cases {
        let mut worst = 0.0_f64;
        for (i, ((want, size), got)) in case.expected.iter().zip(&mut results).enumerate() {
            let error = (got - want).abs() / size;
            assert!(error < case.tolerance, "{}: y[{i}] is {got}, not {want}", case.name);
            worst = worst.max(error);
        }
        println!("{}: {worst:.1e}", case.name);
    }
}
