//! The plain twin of [`Compute::project`](super::Compute::project).

use super::{Activations, Matrix, Projection};
use crate::pool::ThreadPool;

/// Multiplies the f32 form of `acts` with each matrix: weights dequantised to f32, f64 sums, one
/// column after the other.
///
/// # Panics
/// When a matrix or its result does not fit the activations, its type is not
/// [supported](Matrix::supported), or `acts` was not prepared as f32.
pub fn project_oracle(pool: &ThreadPool, acts: &Activations, projections: &mut [Projection<'_>]) {
    let n = acts.n();
    for Projection { weight, out } in projections {
        weight.check(acts.cols());
        assert_eq!(out.len(), n * weight.rows, "a result is [{n}, {}]", weight.rows);
        if out.is_empty() {
            continue;
        }
        // Transposed, so that each weight row is dequantised once.
        let mut by_row = vec![0.0; out.len()];
        pool.for_each_chunk(&mut by_row, n, |row, dots| dot_all(weight, row, acts, dots));
        for (i, out) in out.chunks_exact_mut(weight.rows).enumerate() {
            for (row, out) in out.iter_mut().enumerate() {
                *out = by_row[row * n + i];
            }
        }
    }
}

/// Dot products of one weight row with every activation row.
fn dot_all(weight: &Matrix<'_>, row: usize, acts: &Activations, dots: &mut [f32]) {
    let bytes = weight.data.len() / weight.rows;
    let mut values = vec![0.0; weight.cols];
    m40_gguf::dequantize(weight.ty, &weight.data[row * bytes..(row + 1) * bytes], &mut values)
        .expect("the caller checked the type and the lengths");
    for (i, dot) in dots.iter_mut().enumerate() {
        let terms = values.iter().zip(acts.row(i));
        *dot = terms.map(|(&w, &x)| f64::from(w) * f64::from(x)).sum::<f64>() as f32;
    }
}
