//! An encoder as ops: attention that sees the whole text and a feed-forward block per layer, each
//! followed by a layer norm, around one residual stream.
//!
//! Names of tensors are those that GGUF converters write. The tensors present decide between learnt
//! positions and none, a gated feed-forward block and a plain one, and whether there is a classifier.

use super::BuildError;
use super::emitter::{Emitter, name};
use super::hyper::Hyper;
use crate::op::{
    Activation, AttentionShape, BufferId, Index, Op, Projection, RopeId, RowSet, VectorId,
};
use crate::program::{Head, Program};
use crate::rope::RopeTable;

/// What distinguishes one family from another.
#[derive(Clone, Debug)]
pub(super) struct Encoder {
    /// Rotates queries and keys, if there is one.
    pub(super) rope: Option<RopeTable>,
    /// Of the feed-forward block, or of its gate.
    pub(super) activation: Activation,
}

/// The buffers of one residual stream: all tokens, or those whose hidden states are wanted.
#[derive(Clone, Copy)]
struct Stream {
    residual: BufferId,
    /// Concatenated value heads, input of the output projection.
    attended: BufferId,
    rows: RowSet,
}

/// Emits the program and checks that every tensor of the file has its place in it.
pub(super) fn emit(hyper: &Hyper<'_>, encoder: &Encoder) -> Result<Program, BuildError> {
    let mut emitter = Emitter::new(hyper)?;
    let hidden = emitter.encoder(encoder)?;
    let head = emitter.classifier(hidden)?;
    emitter.program(encoder.rope.as_slice(), hidden, head)
}

impl Emitter<'_> {
    /// Everything up to the hidden states after the last layer's norm.
    fn encoder(&mut self, encoder: &Encoder) -> Result<BufferId, BuildError> {
        let mut stream = self.encoder_stream(0, RowSet::All);
        self.embeddings(stream.residual)?;
        for layer in 0..self.hyper.layers {
            stream = self.encoder_stream(layer, RowSet::All);
            self.attend(encoder, layer, stream)?;
            if layer + 1 == self.hyper.layers {
                let last = self.encoder_stream(layer, RowSet::Logits);
                self.ops.push(Op::Gather { x: stream.residual, out: last.residual });
                self.ops.push(Op::Gather { x: stream.attended, out: last.attended });
                stream = last;
            }
            self.attended_block(layer, stream)?;
            self.feed_forward_block(encoder, layer, stream)?;
        }
        Ok(stream.residual)
    }

    fn encoder_stream(&mut self, layer: usize, rows: RowSet) -> Stream {
        let attended = self.hyper.heads[layer] * self.hyper.value_dim;
        let [residual, of_heads] = [("residual", "last_residual"), ("attended", "last_attended")]
            .map(|(all, last)| name(rows, all, last));
        Stream {
            residual: self.buffer(residual, self.hyper.embedding, rows),
            attended: self.buffer(of_heads, attended, rows),
            rows,
        }
    }

    /// The sum of what token, position and segment say, normed.
    fn embeddings(&mut self, out: BufferId) -> Result<(), BuildError> {
        let (width, context) = (self.hyper.embedding, self.hyper.context_trained as usize);
        let table = self.tensors.matrix("token_embd.weight", self.vocab, width)?;
        self.ops.push(Op::Embed { table, scale: 1.0, out });
        if self.tensors.has("token_types.weight") {
            let segments = self.tensors.rows("token_types.weight")?;
            let table = self.tensors.matrix("token_types.weight", segments, width)?;
            self.ops.push(Op::AddRow { table, index: Index::Segment, x: out });
        }
        if self.tensors.has("position_embd.weight") {
            let table = self.tensors.matrix("position_embd.weight", context, width)?;
            self.ops.push(Op::AddRow { table, index: Index::Position, x: out });
        }
        self.layer_norm(out, "token_embd_norm")
    }

    fn layer_norm(&mut self, x: BufferId, stem: &str) -> Result<(), BuildError> {
        let width = self.hyper.embedding;
        let weight = self.tensors.vector(&format!("{stem}.weight"), width)?;
        let bias = self.tensors.vector(&format!("{stem}.bias"), width)?;
        self.ops.push(Op::LayerNorm { x, weight, bias, eps: self.hyper.norm_eps });
        Ok(())
    }

    fn bias(&mut self, stem: &str, len: usize) -> Result<Option<VectorId>, BuildError> {
        self.tensors.optional_vector_slice(&format!("{stem}.bias"), len, 0, len)
    }

    /// Q, K, V, rotation, and attention over the whole text.
    fn attend(
        &mut self,
        encoder: &Encoder,
        layer: usize,
        stream: Stream,
    ) -> Result<(), BuildError> {
        let hyper = self.hyper;
        let (heads, kv_heads) = (hyper.heads[layer], hyper.kv_heads[layer]);
        let [q, k, v] = self.project_qkv(layer, stream.residual)?;
        if encoder.rope.is_some() {
            let table = RopeId(0);
            self.ops.push(Op::Rope { x: q, heads, table });
            self.ops.push(Op::Rope { x: k, heads: kv_heads, table });
        }
        let shape = AttentionShape {
            heads,
            kv_heads,
            key_dim: hyper.key_dim,
            value_dim: hyper.value_dim,
            scale: 1.0 / (hyper.key_dim as f32).sqrt(),
            window: None,
            softcap: None,
            causal: false,
        };
        let layer = u16::try_from(layer).expect("layer counts are bounded");
        self.ops.push(Op::KvAppend { layer, k, v });
        self.ops.push(Op::Attention { layer, q, out: stream.attended, shape, sinks: None });
        Ok(())
    }

    /// Adds a product to the residual stream, which is normed then.
    fn add_normed(
        &mut self,
        x: BufferId,
        stem: &str,
        cols: usize,
        norm: &str,
        stream: Stream,
    ) -> Result<(), BuildError> {
        let rows = self.hyper.embedding;
        let weight = self.tensors.matrix(&format!("{stem}.weight"), rows, cols)?;
        let bias = self.bias(stem, rows)?;
        let out = stream.residual;
        let outputs = vec![Projection { weight, bias, residual: Some(out), out }];
        self.ops.push(Op::Project { x, outputs });
        self.layer_norm(out, norm)
    }

    fn attended_block(&mut self, layer: usize, stream: Stream) -> Result<(), BuildError> {
        let cols = self.hyper.heads[layer] * self.hyper.value_dim;
        let block = format!("blk.{layer}");
        let [output, norm] =
            ["attn_output", "attn_output_norm"].map(|part| format!("{block}.{part}"));
        self.add_normed(stream.attended, &output, cols, &norm, stream)
    }

    fn feed_forward_block(
        &mut self,
        encoder: &Encoder,
        layer: usize,
        stream: Stream,
    ) -> Result<(), BuildError> {
        let (width, hidden) = (self.hyper.embedding, self.hyper.feed_forward[layer]);
        let [gate, up, down, norm] = ["ffn_gate", "ffn_up", "ffn_down", "layer_output_norm"]
            .map(|part| format!("blk.{layer}.{part}"));
        let activation = encoder.activation;
        let out = self.buffer(name(stream.rows, "hidden", "last_hidden"), hidden, stream.rows);
        let weight = self.tensors.matrix(&format!("{up}.weight"), hidden, width)?;
        let x = stream.residual;
        if self.tensors.has(&format!("{gate}.weight")) {
            let gate = self.tensors.matrix(&format!("{gate}.weight"), hidden, width)?;
            self.ops.push(Op::GatedProject { x, gate, up: weight, activation, out });
        } else {
            let bias = self.bias(&up, hidden)?;
            let outputs = vec![Projection { weight, bias, residual: None, out }];
            self.ops.push(Op::Project { x, outputs });
            self.ops.push(Op::Activate { x: out, activation });
        }
        self.add_normed(out, &down, hidden, &norm, stream)
    }

    /// The classifier of a cross-encoder: one product, or two with a hyperbolic tangent between.
    fn classifier(&mut self, hidden: BufferId) -> Result<Head, BuildError> {
        let width = self.hyper.embedding;
        if !self.tensors.has("cls.output.weight") {
            return Ok(Head::None);
        }
        let mut x = hidden;
        if self.tensors.has("cls.weight") {
            let out = self.buffer("pooled", width, RowSet::Logits);
            self.classify(x, "cls", width, out)?;
            // tanh is a soft cap of 1.
            self.ops.push(Op::Softcap { x: out, cap: 1.0 });
            x = out;
        }
        let classes = self.tensors.rows("cls.output.weight")?;
        let out = self.buffer("classes", classes, RowSet::Logits);
        self.classify(x, "cls.output", classes, out)?;
        Ok(Head::Classes(out))
    }

    fn classify(
        &mut self,
        x: BufferId,
        stem: &str,
        rows: usize,
        out: BufferId,
    ) -> Result<(), BuildError> {
        let cols = self.hyper.embedding;
        let weight = self.tensors.matrix(&format!("{stem}.weight"), rows, cols)?;
        let bias = self.bias(stem, rows)?;
        let outputs = vec![Projection { weight, bias, residual: None, out }];
        self.ops.push(Op::Project { x, outputs });
        Ok(())
    }
}
