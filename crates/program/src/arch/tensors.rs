//! The file's tensors as matrices and vectors of a program; remembers what was taken, so that a
//! file with weights nobody uses is refused instead of answering wrongly.

use std::collections::{HashMap, HashSet};

use m40_gguf::TensorInfo;

use super::BuildError;
use super::hyper::Source;
use crate::op::{MatrixId, VectorId};
use crate::program::{Matrix, Vector};

/// Rotary frequencies as data: read into a table when needed, or (old converters) redundant.
const ROPE_DATA: &[&str] = &[
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
    "attn_rot_embd.weight",
    "rotary_emb.inv_freq",
];

pub(super) struct Tensors<'a> {
    source: &'a dyn Source,
    taken: HashSet<&'a str>,
    matrices: Vec<Matrix>,
    matrix_ids: HashMap<Matrix, MatrixId>,
    vectors: Vec<Vector>,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(source: &'a dyn Source) -> Self {
        Self {
            source,
            taken: HashSet::new(),
            matrices: vec![],
            matrix_ids: HashMap::new(),
            vectors: vec![],
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.source.tensor_info(name).is_some()
    }

    /// Rows of a tensor the metadata gives no figure for (the vocabulary).
    pub(super) fn rows(&self, name: &str) -> Result<usize, BuildError> {
        self.source
            .tensor_info(name)
            .map(|info| info.dims.rows())
            .ok_or_else(|| BuildError::MissingTensor { tensor: name.into() })
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<&'a TensorInfo, BuildError> {
        let info = self
            .source
            .tensor_info(name)
            .ok_or_else(|| BuildError::MissingTensor { tensor: name.into() })?;
        let [cols, rows] = [shape[0], shape.get(1).copied().unwrap_or(1)];
        if (info.dims.cols(), info.dims.rows()) != (cols, rows) {
            return Err(BuildError::TensorShape {
                tensor: name.into(),
                expected: format!("[{cols}, {rows}]"),
                found: format!("[{}, {}]", info.dims.cols(), info.dims.rows()),
            });
        }
        self.taken.insert(info.name.as_str());
        Ok(info)
    }

    /// The whole tensor, `[rows, cols]`.
    pub(super) fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        cols: usize,
    ) -> Result<MatrixId, BuildError> {
        self.slice(name, rows, cols, 0, rows)
    }

    /// `rows` rows from `first_row` of a tensor `[total_rows, cols]`.
    pub(super) fn slice(
        &mut self,
        name: &str,
        total_rows: usize,
        cols: usize,
        first_row: usize,
        rows: usize,
    ) -> Result<MatrixId, BuildError> {
        let info = self.take(name, &[cols, total_rows])?;
        let matrix = Matrix { tensor: name.into(), ty: info.ty, first_row, rows, cols };
        let next = MatrixId(u32::try_from(self.matrices.len()).expect("files hold < 2^32 tensors"));
        let id = *self.matrix_ids.entry(matrix.clone()).or_insert(next);
        if id == next {
            self.matrices.push(matrix);
        }
        Ok(id)
    }

    /// The whole tensor, `len` elements.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<VectorId, BuildError> {
        self.vector_slice(name, len, 0, len)
    }

    /// `len` elements from `first` of a tensor of `total`.
    pub(super) fn vector_slice(
        &mut self,
        name: &str,
        total: usize,
        first: usize,
        len: usize,
    ) -> Result<VectorId, BuildError> {
        self.take(name, &[total])?;
        let id = u32::try_from(self.vectors.len()).expect("files hold < 2^32 tensors");
        self.vectors.push(Vector { tensor: name.into(), first, len });
        Ok(VectorId(id))
    }

    /// As [`Self::vector_slice`], `None` when the file has no such tensor.
    pub(super) fn optional_vector_slice(
        &mut self,
        name: &str,
        total: usize,
        first: usize,
        len: usize,
    ) -> Result<Option<VectorId>, BuildError> {
        if self.has(name) { self.vector_slice(name, total, first, len).map(Some) } else { Ok(None) }
    }

    /// What was taken, once nothing of weight is left over.
    pub(super) fn finish(self) -> Result<(Vec<Matrix>, Vec<Vector>), BuildError> {
        let left_over: Vec<&str> = self
            .source
            .tensors()
            .iter()
            .map(|info| info.name.as_str())
            .filter(|name| !self.taken.contains(name))
            .filter(|name| !ROPE_DATA.iter().any(|known| name.ends_with(known)))
            .collect();
        match left_over.first() {
            Some(first) => {
                Err(BuildError::UnusedTensors { first: (*first).into(), count: left_over.len() })
            }
            None => Ok((self.matrices, self.vectors)),
        }
    }
}
