//! What every family's ops are emitted with: buffers by name, the three projections of attention, and
//! the program around it all.

use super::BuildError;
use super::hyper::Hyper;
use super::tensors::Tensors;
use crate::op::{BufferId, Op, Projection, RowSet};
use crate::program::{Buffer, Description, Head, KvLayer, Program};
use crate::rope::RopeTable;

/// A buffer's name: that of all tokens, or of those that want logits.
pub(super) fn name(rows: RowSet, all: &'static str, last: &'static str) -> &'static str {
    if rows == RowSet::All { all } else { last }
}

/// A program that grows.
pub(super) struct Emitter<'a> {
    pub(super) hyper: &'a Hyper<'a>,
    pub(super) tensors: Tensors<'a>,
    /// Rows of the embedding table.
    pub(super) vocab: usize,
    pub(super) buffers: Vec<Buffer>,
    pub(super) ops: Vec<Op>,
}

impl<'a> Emitter<'a> {
    pub(super) fn new(hyper: &'a Hyper<'a>) -> Result<Self, BuildError> {
        let tensors = Tensors::new(hyper.source);
        let vocab = tensors.rows("token_embd.weight")?;
        Ok(Self { hyper, tensors, vocab, buffers: vec![], ops: vec![] })
    }

    /// The program, if it uses every tensor of the file.
    pub(super) fn program(
        self,
        ropes: &[RopeTable],
        hidden: BufferId,
        head: Head,
    ) -> Result<Program, BuildError> {
        let hyper = self.hyper;
        let (matrices, vectors) = self.tensors.finish()?;
        let kv = (0..hyper.layers).map(|i| KvLayer {
            kv_heads: hyper.kv_heads[i],
            key_dim: hyper.key_dim,
            value_dim: hyper.value_dim,
            ty: hyper.kv_type,
        });
        Ok(Program {
            description: Description {
                architecture: hyper.architecture.clone(),
                name: hyper.name.clone(),
                layers: hyper.layers,
                embedding: hyper.embedding,
                vocab: self.vocab,
                context: hyper.context_trained,
                pooling: hyper.pooling,
            },
            buffers: self.buffers,
            matrices,
            vectors,
            ropes: ropes.to_vec(),
            kv: kv.collect(),
            ops: self.ops,
            hidden,
            head,
        })
    }

    pub(super) fn buffer(&mut self, name: &'static str, width: usize, rows: RowSet) -> BufferId {
        let found = self
            .buffers
            .iter()
            .position(|b| b.name == name && b.width == width && b.rows == rows)
            .unwrap_or_else(|| {
                self.buffers.push(Buffer { name, width, rows });
                self.buffers.len() - 1
            });
        BufferId(u16::try_from(found).expect("a handful of buffers per layer shape"))
    }

    /// Q, K and V of `x`, from three tensors or from the row ranges of a fused one; and where they are.
    pub(super) fn project_qkv(
        &mut self,
        layer: usize,
        x: BufferId,
    ) -> Result<[BufferId; 3], BuildError> {
        let hyper = self.hyper;
        let (heads, kv_heads) = (hyper.heads[layer], hyper.kv_heads[layer]);
        let widths = [heads * hyper.key_dim, kv_heads * hyper.key_dim, kv_heads * hyper.value_dim];
        let names = ["q", "k", "v"];
        let outs = [0, 1, 2].map(|i| self.buffer(names[i], widths[i], RowSet::All));
        let cols = self.hyper.embedding;
        let fused = format!("blk.{layer}.attn_qkv");
        let is_fused = self.tensors.has(&format!("{fused}.weight"));
        let total: usize = widths.iter().sum();
        let mut first = 0;
        let mut outputs = vec![];
        for ((part, width), out) in names.into_iter().zip(widths).zip(outs) {
            let (stem, total, start) = if is_fused {
                (fused.clone(), total, first)
            } else {
                (format!("blk.{layer}.attn_{part}"), width, 0)
            };
            let weight =
                self.tensors.slice(&format!("{stem}.weight"), total, cols, start, width)?;
            let bias =
                self.tensors.optional_vector_slice(&format!("{stem}.bias"), total, start, width)?;
            outputs.push(Projection { weight, bias, residual: None, out });
            first += width;
        }
        self.ops.push(Op::Project { x, outputs });
        Ok(outs)
    }
}
