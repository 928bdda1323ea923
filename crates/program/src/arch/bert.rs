//! BERT and what is built like it (MiniLM, BGE, E5, GTE), and Nomic's variant of it.

use super::BuildError;
use super::encoder::Encoder;
use super::hyper::Hyper;
use crate::op::Activation;
use crate::rope::RopeStyle;

/// Learnt positions and a plain feed-forward block. GELU is its tanh form, within 0.0005 of the other.
pub(super) fn bert(_: &Hyper<'_>) -> Result<Encoder, BuildError> {
    Ok(Encoder { rope: None, activation: Activation::GeluTanh })
}

/// Rotary positions and a gated feed-forward block.
pub(super) fn nomic_bert(hyper: &Hyper<'_>) -> Result<Encoder, BuildError> {
    if hyper.optional("moe_every_n_layers", 0..=u32::MAX)?.unwrap_or(0) > 0 {
        return Err(hyper.unsupported("a mixture of experts"));
    }
    Ok(Encoder { rope: Some(hyper.rope(RopeStyle::Halves)?), activation: Activation::Silu })
}
