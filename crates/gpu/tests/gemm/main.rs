//! The kernels of kernels/gemm.cu, compiled for the host with sanitizers, against f64.

mod case;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use case::{Case, Epilogue, Size};
use m40_gguf::TensorType;
use m40_testkit::emulation::compile;

/// Types and their names in kernels.
const TYPES: [(TensorType, &str); 16] = [
    (TensorType::F32, "f32"),
    (TensorType::F16, "f16"),
    (TensorType::BF16, "bf16"),
    (TensorType::Q4_0, "q4_0"),
    (TensorType::Q4_1, "q4_1"),
    (TensorType::Q5_0, "q5_0"),
    (TensorType::Q5_1, "q5_1"),
    (TensorType::Q8_0, "q8_0"),
    (TensorType::Q2K, "q2_k"),
    (TensorType::Q3K, "q3_k"),
    (TensorType::Q4K, "q4_k"),
    (TensorType::Q5K, "q5_k"),
    (TensorType::Q6K, "q6_k"),
    (TensorType::IQ4NL, "iq4_nl"),
    (TensorType::IQ4XS, "iq4_xs"),
    (TensorType::MXFP4, "mxfp4"),
];

/// The error allowed, as a share of the sum of |weight * x|: that of a sum in f32 of weights that
/// were rounded once.
const TOLERANCE: f64 = 4e-7;
/// What the functions of the card add, of a result after a gate or a soft cap.
const FUNCTION_TOLERANCE: f64 = 2e-6;

/// Every tile; one row and column, whole tiles and parts of them; odd and even groups; columns that
/// fill no group (of plain numbers); rows of y that no 4 divides; one to five splits, more than
/// there are columns for too.
const SIZES: [Size; 11] = [
    Size { tile: 16, m: 1, rows: 1, groups: 1, cut: 3, x_gap: 0, y_gap: 0, splits: 1 },
    Size { tile: 16, m: 16, rows: 130, groups: 2, cut: 0, x_gap: 4, y_gap: 2, splits: 1 },
    Size { tile: 16, m: 19, rows: 7, groups: 9, cut: 0, x_gap: 0, y_gap: 1, splits: 5 },
    Size { tile: 32, m: 33, rows: 129, groups: 3, cut: 0, x_gap: 1, y_gap: 0, splits: 1 },
    Size { tile: 32, m: 9, rows: 36, groups: 1, cut: 31, x_gap: 31, y_gap: 4, splits: 2 },
    Size { tile: 32, m: 32, rows: 64, groups: 11, cut: 4, x_gap: 0, y_gap: 0, splits: 3 },
    Size { tile: 64, m: 64, rows: 33, groups: 2, cut: 0, x_gap: 0, y_gap: 3, splits: 1 },
    Size { tile: 64, m: 70, rows: 131, groups: 1, cut: 0, x_gap: 8, y_gap: 1, splits: 1 },
    Size { tile: 64, m: 5, rows: 128, groups: 10, cut: 2, x_gap: 2, y_gap: 0, splits: 4 },
    Size { tile: 128, m: 129, rows: 10, groups: 3, cut: 8, x_gap: 0, y_gap: 2, splits: 1 },
    Size { tile: 128, m: 97, rows: 140, groups: 1, cut: 0, x_gap: 0, y_gap: 4, splits: 2 },
];

const EPILOGUES: [Epilogue; 9] = [
    Epilogue::Plain,
    Epilogue::Bias,
    Epilogue::Residual,
    Epilogue::BiasAndResidualInPlace,
    Epilogue::Silu,
    Epilogue::SiluInPlace,
    Epilogue::Gelu,
    Epilogue::Softcap,
    Epilogue::BiasAndSoftcap,
];

#[test]
fn gemm_kernels_agree_with_plain_arithmetic() {
    let Some(program) = compile("gemm", env!("CARGO_TARGET_TMPDIR")).unwrap() else { return };
    let mut cases = Vec::new();
    for (ty, name) in TYPES {
        for size in SIZES {
            // As there are two sizes more than epilogues, types begin at different ones.
            let epilogue = EPILOGUES[cases.len() % EPILOGUES.len()];
            // Of smaller tiles a launch may take two, for several splits.
            let matrices = if size.tile <= 32 && size.splits > 2 { 2 } else { 1 };
            cases.push(Case::new(ty, name, size, matrices, epilogue));
        }
    }
    let input = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gemm.input");
    fs::write(&input, cases.iter().flat_map(|case| case.input.iter().copied()).collect::<Vec<_>>())
        .unwrap();
    let output = Command::new(program).stdin(File::open(input).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (results, rest) = output.stdout.as_chunks::<4>();
    let expected: usize = cases.iter().map(|case| case.expected.len()).sum();
    assert_eq!(results.len(), expected);
    assert!(rest.is_empty());
    let mut rest = results;
    for case in &cases {
        let (results, others) = rest.split_at(case.expected.len());
        rest = others;
        let mut worst = 0.0_f64;
        for (i, (expected, &bits)) in case.expected.iter().zip(results).enumerate() {
            let Some((want, size)) = expected else {
                assert_eq!(bits, case::UNTOUCHED, "{}: y[{i}] is no result", case.name);
                continue;
            };
            let got = f64::from(f32::from_le_bytes(bits));
            // A row of weights may be all zeros.
            let error = (got - want).abs() / size.max(f64::MIN_POSITIVE);
            let tolerance = TOLERANCE + if case.rounds_more { FUNCTION_TOLERANCE } else { 0.0 };
            assert!(error < tolerance, "{}: y[{i}] is {got}, not {want}: {error:e}", case.name);
            worst = worst.max(error);
        }
        println!("{}: {worst:.1e}", case.name);
    }
}
