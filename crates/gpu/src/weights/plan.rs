//! Which bytes of the file become which planes.

use m40_gguf::{Gguf, Tensor, dequantize};
use m40_program::{Matrix, MatrixId, Program, Vector};
use m40_repack::Layout;

use super::{WeightsError, shape};

/// Rows that planes hold together.
const QUAD: usize = 4;

/// Every vector begins at a multiple of this many bytes: a place, and a line of the card's cache.
const VECTOR_ALIGNMENT: usize = 128;

/// Part of a fused matrix: rows of one tensor.
#[derive(Debug)]
pub(super) struct Part<'a> {
    pub(super) tensor: &'a str,
    /// The fused matrix.
    pub(super) matrix: usize,
    /// The part's first row there, a multiple of 4.
    pub(super) first_row: usize,
    pub(super) rows: usize,
    /// The rows in the file.
    pub(super) blocks: &'a [u8],
}

/// All that goes to the card.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// Of the fused matrices.
    pub(super) layouts: Vec<Layout>,
    pub(super) parts: Vec<Part<'a>>,
    /// All vectors, padding between them zero.
    pub(super) vectors: Vec<f32>,
    /// Where each begins in `vectors`, in bytes.
    pub(super) vector_offsets: Vec<usize>,
}

impl<'a> Plan<'a> {
    pub(super) fn new<B: AsRef<[u8]>>(
        program: &'a Program,
        gguf: &'a Gguf<B>,
        fused: &[Vec<MatrixId>],
    ) -> Result<Self, WeightsError> {
        let layouts = layouts(program, fused)?;
        let mut parts = Vec::with_capacity(fused.iter().map(Vec::len).sum());
        for (matrix, ids) in fused.iter().enumerate() {
            let mut first_row = 0;
            for &id in ids {
                let part = program.matrix(id);
                let blocks = blocks(gguf, part)?;
                let (tensor, rows) = (part.tensor.as_str(), part.rows);
                parts.push(Part { tensor, matrix, first_row, rows, blocks });
                first_row += rows;
            }
        }
        let (vector_offsets, bytes) = vector_offsets(program);
        let mut vectors = vec![0.0; bytes / size_of::<f32>()];
        for (vector, &offset) in program.vectors.iter().zip(&vector_offsets) {
            let first = offset / size_of::<f32>();
            floats(gguf, vector, &mut vectors[first..first + vector.len])?;
        }
        Ok(Self { layouts, parts, vectors, vector_offsets })
    }

    /// Bytes that are copied or repacked.
    pub(super) fn total(&self) -> u64 {
        let blocks = self.parts.iter().map(|part| part.blocks.len() as u64);
        blocks.sum::<u64>() + size_of_val(self.vectors.as_slice()) as u64
    }
}

/// The layouts of fused matrices, after a check that they can be fused.
pub(crate) fn layouts(
    program: &Program,
    fused: &[Vec<MatrixId>],
) -> Result<Vec<Layout>, WeightsError> {
    let layout = |(index, ids): (usize, &Vec<MatrixId>)| {
        let wrong = |position: usize, tensor: &str, why: String| WeightsError::Fusion {
            index,
            position,
            tensor: tensor.to_owned(),
            why,
        };
        let mut parts = Vec::with_capacity(ids.len());
        for (position, id) in ids.iter().enumerate() {
            let part = program.matrices.get(id.0 as usize).ok_or_else(|| {
                let count = program.matrices.len();
                wrong(position, "", format!("the program has {count} matrices, no {}th", id.0))
            })?;
            parts.push(part);
        }
        let Some((last, before)) = parts.split_last() else {
            return Err(wrong(0, "", "there is none to be fused".to_owned()));
        };
        for (position, part) in parts.iter().enumerate() {
            let first = parts[0];
            if (part.ty, part.cols) != (first.ty, first.cols) {
                let found = shape(part.ty, part.rows, part.cols);
                let other = shape(first.ty, first.rows, first.cols);
                return Err(wrong(position, &part.tensor, format!("{found} below {other}")));
            }
        }
        for (position, part) in parts.iter().enumerate() {
            if part.rows == 0 {
                return Err(wrong(position, &part.tensor, "it has no rows".to_owned()));
            }
        }
        for (position, part) in before.iter().enumerate() {
            if !part.rows.is_multiple_of(QUAD) {
                let why = format!("below its {} rows others cannot begin", part.rows);
                return Err(wrong(position, &part.tensor, why));
            }
        }
        let rows = parts.iter().map(|part| part.rows).sum();
        Layout::of(last.ty, rows, last.cols)
            .map_err(|source| WeightsError::Repack { tensor: last.tensor.clone(), source })
    };
    fused.iter().enumerate().map(layout).collect()
}

/// Where vectors begin, and the end of the last, in bytes.
pub(super) fn vector_offsets(program: &Program) -> (Vec<usize>, usize) {
    let mut end = 0;
    let offsets = program.vectors.iter().map(|vector| {
        let offset = end;
        end = (offset + vector.len * size_of::<f32>()).next_multiple_of(VECTOR_ALIGNMENT);
        offset
    });
    (offsets.collect(), end)
}

fn tensor<'a, B: AsRef<[u8]>>(gguf: &'a Gguf<B>, tensor: &str) -> Result<Tensor<'a>, WeightsError> {
    gguf.tensor(tensor).ok_or_else(|| WeightsError::Missing { tensor: tensor.to_owned() })
}

/// The bytes of a matrix in the file.
fn blocks<'a, B: AsRef<[u8]>>(
    gguf: &'a Gguf<B>,
    matrix: &Matrix,
) -> Result<&'a [u8], WeightsError> {
    let found = tensor(gguf, &matrix.tensor)?;
    let Matrix { ty, first_row, rows, cols, .. } = *matrix;
    let mismatch = || WeightsError::Mismatch {
        tensor: matrix.tensor.clone(),
        found: shape(found.ty, found.dims.rows(), found.dims.cols()),
        expected: shape(ty, first_row.saturating_add(rows), cols),
    };
    if (found.ty, found.dims.cols()) != (ty, cols) {
        return Err(mismatch());
    }
    let row = ty.row_bytes(cols).ok_or_else(mismatch)?;
    let range = first_row.checked_mul(row).zip(rows.checked_mul(row));
    let bytes = range.and_then(|(start, bytes)| found.data.get(start..)?.get(..bytes));
    bytes.ok_or_else(mismatch)
}

/// A vector of the file as floats.
fn floats<B: AsRef<[u8]>>(
    gguf: &Gguf<B>,
    vector: &Vector,
    out: &mut [f32],
) -> Result<(), WeightsError> {
    let found = tensor(gguf, &vector.tensor)?;
    let count = found.dims.rows() * found.dims.cols();
    let range = vector.first..vector.first.saturating_add(vector.len);
    if range.end > count {
        return Err(WeightsError::Mismatch {
            tensor: vector.tensor.clone(),
            found: shape(found.ty, found.dims.rows(), found.dims.cols()),
            expected: format!("{} numbers", range.end),
        });
    }
    let mut whole = vec![0.0; count];
    dequantize(found.ty, found.data, &mut whole)
        .map_err(|source| WeightsError::Dequantize { tensor: vector.tensor.clone(), source })?;
    out.copy_from_slice(&whole[range]);
    Ok(())
}
