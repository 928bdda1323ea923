//! A decoder-only transformer as ops: attention and a gated feed-forward block per layer, each
//! behind an RMS norm, around one residual stream.

use super::BuildError;
use super::emitter::{Emitter, name};
use super::hyper::Hyper;
use crate::op::{
    Activation, AttentionShape, BufferId, MatrixId, Op, Projection, RopeId, RowSet, VectorId,
};
use crate::program::{Head, Program};
use crate::rope::RopeTable;

/// How one layer attends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    /// Tokens seen, itself included; all when `None`.
    pub(super) window: Option<u32>,
    /// Index into [`Decoder::ropes`].
    pub(super) rope: u8,
}

/// What distinguishes one family from another; the tensors present decide the rest (biases,
/// qk-norm, fused weights, tied head).
#[derive(Clone, Debug)]
pub(super) struct Decoder {
    pub(super) layers: Vec<Layer>,
    pub(super) ropes: Vec<RopeTable>,
    pub(super) activation: Activation,
    /// Factor on token embeddings.
    pub(super) embedding_scale: f32,
    /// Factor on query-key products.
    pub(super) attention_scale: f32,
    pub(super) attention_softcap: Option<f32>,
    pub(super) logit_softcap: Option<f32>,
}

impl Decoder {
    /// A family with one rotary table, full attention and the usual `1/sqrt(dim)` scale.
    pub(super) fn plain(hyper: &Hyper<'_>, rope: RopeTable) -> Self {
        Self {
            layers: vec![Layer { window: None, rope: 0 }; hyper.layers],
            ropes: vec![rope],
            activation: Activation::Silu,
            embedding_scale: 1.0,
            attention_scale: 1.0 / (hyper.key_dim as f32).sqrt(),
            attention_softcap: None,
            logit_softcap: None,
        }
    }

    /// The window the file asks for, if any, on every layer.
    pub(super) fn windowed(mut self, hyper: &Hyper<'_>) -> Result<Self, BuildError> {
        let window = hyper.optional("attention.sliding_window", 0..=u32::MAX)?.filter(|w| *w > 0);
        self.layers = vec![Layer { window, rope: 0 }; hyper.layers];
        Ok(self)
    }
}

/// The buffers of one residual stream: all tokens, or those that want logits.
#[derive(Clone, Copy)]
struct Stream {
    residual: BufferId,
    normed: BufferId,
    /// Concatenated value heads, input of the output projection.
    attended: BufferId,
    rows: RowSet,
}

/// Emits the program and checks that every tensor of the file has its place in it.
pub(super) fn emit(hyper: &Hyper<'_>, decoder: &Decoder) -> Result<Program, BuildError> {
    let mut emitter = Emitter::new(hyper)?;
    let (hidden, head) = emitter.model(decoder)?;
    emitter.program(&decoder.ropes, hidden, head)
}

impl Emitter<'_> {
    fn stream(&mut self, layer: usize, rows: RowSet) -> Stream {
        let hyper = self.hyper;
        let attended = hyper.heads[layer] * hyper.value_dim;
        let name = |all, last| name(rows, all, last);
        Stream {
            residual: self.buffer(name("residual", "last_residual"), hyper.embedding, rows),
            normed: self.buffer(name("normed", "last_normed"), hyper.embedding, rows),
            attended: self.buffer(name("attended", "last_attended"), attended, rows),
            rows,
        }
    }

    fn norm(&mut self, x: BufferId, weight: &str, out: BufferId) -> Result<(), BuildError> {
        let weight = self.tensors.vector(weight, self.hyper.embedding)?;
        let eps = self.hyper.norm_eps;
        self.ops.push(Op::RmsNorm { x, weight, eps, residual: None, out });
        Ok(())
    }

    /// The hidden states after the last norm, and the logits.
    fn model(&mut self, decoder: &Decoder) -> Result<(BufferId, Head), BuildError> {
        let (width, vocab) = (self.hyper.embedding, self.vocab);
        let table = self.tensors.matrix("token_embd.weight", vocab, width)?;
        let mut stream = self.stream(0, RowSet::All);
        let scale = decoder.embedding_scale;
        self.ops.push(Op::Embed { table, scale, out: stream.residual });

        for layer in 0..self.hyper.layers {
            stream = self.stream(layer, RowSet::All);
            self.attention(decoder, layer, stream)?;
            if layer + 1 == self.hyper.layers {
                stream = self.keep_logit_rows(layer, stream);
            }
            self.attention_output(layer, stream)?;
            self.feed_forward(decoder, layer, stream)?;
        }

        self.norm(stream.residual, "output_norm.weight", stream.normed)?;
        let tied = !self.tensors.has("output.weight");
        let head = if tied { "token_embd.weight" } else { "output.weight" };
        let weight = self.tensors.matrix(head, vocab, width)?;
        let bias = self.tensors.optional_vector_slice("output.bias", vocab, 0, vocab)?;
        let logits = self.buffer("logits", vocab, RowSet::Logits);
        let outputs = vec![Projection { weight, bias, residual: None, out: logits }];
        self.ops.push(Op::Project { x: stream.normed, outputs });
        if let Some(cap) = decoder.logit_softcap {
            self.ops.push(Op::Softcap { x: logits, cap });
        }
        Ok((stream.normed, Head::Logits(logits)))
    }

    /// After the last layer's attention only rows whose logits are wanted go on.
    fn keep_logit_rows(&mut self, layer: usize, all: Stream) -> Stream {
        let last = self.stream(layer, RowSet::Logits);
        self.ops.push(Op::Gather { x: all.residual, out: last.residual });
        self.ops.push(Op::Gather { x: all.attended, out: last.attended });
        last
    }

    /// Norm, Q, K, V, qk-norm, rotation, cache, attention and its sinks.
    fn attention(
        &mut self,
        decoder: &Decoder,
        layer: usize,
        stream: Stream,
    ) -> Result<(), BuildError> {
        let hyper = self.hyper;
        let (heads, kv_heads) = (hyper.heads[layer], hyper.kv_heads[layer]);
        self.norm(stream.residual, &format!("blk.{layer}.attn_norm.weight"), stream.normed)?;
        let [q, k, v] = self.project_qkv(layer, stream.normed)?;
        for (x, heads, name) in [(q, heads, "attn_q_norm"), (k, kv_heads, "attn_k_norm")] {
            let name = format!("blk.{layer}.{name}.weight");
            let dim = hyper.key_dim;
            if let Some(weight) = self.tensors.optional_vector_slice(&name, dim, 0, dim)? {
                self.ops.push(Op::HeadNorm { x, heads, weight, eps: hyper.norm_eps });
            }
        }
        let described = decoder.layers[layer];
        let table = RopeId(described.rope);
        self.ops.push(Op::Rope { x: q, heads, table });
        self.ops.push(Op::Rope { x: k, heads: kv_heads, table });

        let shape = AttentionShape {
            heads,
            kv_heads,
            key_dim: hyper.key_dim,
            value_dim: hyper.value_dim,
            scale: decoder.attention_scale,
            window: described.window,
            softcap: decoder.attention_softcap,
            causal: true,
        };
        let sinks = format!("blk.{layer}.attn_sinks.weight");
        let sinks = self.tensors.optional_vector_slice(&sinks, heads, 0, heads)?;
        let layer = u16::try_from(layer).expect("layer counts are bounded");
        self.ops.push(Op::KvAppend { layer, k, v });
        self.ops.push(Op::Attention { layer, q, out: stream.attended, shape, sinks });
        Ok(())
    }

    /// Adds `x * weight^T (+ bias)` to the residual stream, through a post-norm if the layer has one.
    fn add_block(
        &mut self,
        x: BufferId,
        weight: MatrixId,
        bias: Option<VectorId>,
        post_norm: &str,
        stream: Stream,
    ) -> Result<(), BuildError> {
        let residual = stream.residual;
        let width = self.hyper.embedding;
        let post_norm = self.tensors.optional_vector_slice(post_norm, width, 0, width)?;
        let Some(gain) = post_norm else {
            let outputs =
                vec![Projection { weight, bias, residual: Some(residual), out: residual }];
            self.ops.push(Op::Project { x, outputs });
            return Ok(());
        };
        let block = self.buffer(name(stream.rows, "block", "last_block"), width, stream.rows);
        let outputs = vec![Projection { weight, bias, residual: None, out: block }];
        self.ops.push(Op::Project { x, outputs });
        let eps = self.hyper.norm_eps;
        let add = Some(residual);
        self.ops.push(Op::RmsNorm { x: block, weight: gain, eps, residual: add, out: residual });
        Ok(())
    }

    fn attention_output(&mut self, layer: usize, stream: Stream) -> Result<(), BuildError> {
        let rows = self.hyper.embedding;
        let cols = self.hyper.heads[layer] * self.hyper.value_dim;
        let weight = self.tensors.matrix(&format!("blk.{layer}.attn_output.weight"), rows, cols)?;
        let bias = format!("blk.{layer}.attn_output.bias");
        let bias = self.tensors.optional_vector_slice(&bias, rows, 0, rows)?;
        let post_norm = format!("blk.{layer}.post_attention_norm.weight");
        self.add_block(stream.attended, weight, bias, &post_norm, stream)
    }

    fn feed_forward(
        &mut self,
        decoder: &Decoder,
        layer: usize,
        stream: Stream,
    ) -> Result<(), BuildError> {
        let (width, hidden) = (self.hyper.embedding, self.hyper.feed_forward[layer]);
        let out = self.buffer(name(stream.rows, "hidden", "last_hidden"), hidden, stream.rows);
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        self.norm(stream.residual, &name("ffn_norm"), stream.normed)?;
        let (gate, up) = if self.tensors.has(&name("ffn_gate")) {
            (
                self.tensors.matrix(&name("ffn_gate"), hidden, width)?,
                self.tensors.matrix(&name("ffn_up"), hidden, width)?,
            )
        } else {
            // One tensor holds the gate's rows, then the up projection's.
            let fused = name("ffn_up");
            (
                self.tensors.slice(&fused, 2 * hidden, width, 0, hidden)?,
                self.tensors.slice(&fused, 2 * hidden, width, hidden, hidden)?,
            )
        };
        let activation = decoder.activation;
        self.ops.push(Op::GatedProject { x: stream.normed, gate, up, activation, out });
        let down = self.tensors.matrix(&name("ffn_down"), width, hidden)?;
        self.add_block(out, down, None, &name("post_ffw_norm"), stream)
    }
}
