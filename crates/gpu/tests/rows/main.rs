//! The kernels of kernels/rows.cu, run on the host (kernels/emulate) against plain arithmetic in
//! f64.
//!
//! Each test leaves its launches and what they wrote in Cargo's folder for test files, as
//! `rows-TEST.input` and `.output`, so that the same can be run on a card.

mod attention;
mod cache;
mod elementwise;
mod emulator;
mod heads;
mod lookup;
mod sums;

use m40_gguf::{TensorType, dequantize};
use m40_testkit::gguf::{Noise, quantize};

/// Bits of f16 numbers, rounded to the nearest, ties to even.
fn halves(x: &[f32]) -> Vec<u16> {
    let bytes = quantize(TensorType::F16, x);
    bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
}

/// The numbers of f16 bits.
fn from_halves(bits: &[u16]) -> Vec<f32> {
    let bytes: Vec<u8> = bits.iter().flat_map(|b| b.to_le_bytes()).collect();
    let mut x = vec![0.0; bits.len()];
    dequantize(TensorType::F16, &bytes, &mut x).expect("two bytes each");
    x
}

/// Rows of `width` numbers at every `stride`, what lies between being NaN.
fn spread(x: &[f32], width: usize, stride: usize) -> Vec<f32> {
    let mut rows = vec![f32::NAN; x.len() / width * stride];
    for (from, to) in x.chunks_exact(width).zip(rows.chunks_exact_mut(stride)) {
        to[..width].copy_from_slice(from);
    }
    rows
}

/// The rows again, after checking that nothing was written between them.
#[track_caller]
fn gathered(rows: &[f32], width: usize, stride: usize) -> Vec<f32> {
    assert!(rows.len().is_multiple_of(stride));
    let mut x = vec![];
    for row in rows.chunks_exact(stride) {
        x.extend_from_slice(&row[..width]);
        assert!(row[width..].iter().all(|v| v.is_nan()), "written behind a row");
    }
    x
}

/// Fails if a number is further than `tolerance * (1 + |expected|)` from what is expected.
#[track_caller]
fn close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*f) - e).abs();
        assert!(error <= tolerance * (1.0 + e.abs()), "{what}: [{i}] is {f}, not {e}");
    }
}

/// A row of a pass, as `Row` of kernels/ops.cuh.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    token: u32,
    position: u32,
    pages: u32,
}

fn row_words(rows: &[Row]) -> Vec<u32> {
    rows.iter().flat_map(|row| [row.token, row.position, row.pages, 0]).collect()
}

/// Numbers around 1 for gains.
fn gains(noise: &mut Noise, n: usize) -> Vec<f32> {
    noise.normals(n, 0.3).into_iter().map(|v| v + 1.0).collect()
}
