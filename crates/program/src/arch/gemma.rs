//! Gemma 2 and 3: scaled embeddings, post-norms, GeGLU, local layers between global ones.
//!
//! Converters have already added the 1 of Gemma's `(1 + weight)` norms to the stored gains.
//! Sources: the Gemma 2 and Gemma 3 technical reports; query scales and layer patterns as in the
//! published configurations.

use super::BuildError;
use super::decoder::{Decoder, Layer};
use super::hyper::Hyper;
use crate::op::Activation;
use crate::rope::{RopeScaling, RopeStyle, RopeTable};

/// Layer count of the 27B models, whose queries are scaled by the width per head instead of by the
/// head size. No metadata key says so.
const GEMMA2_27B_LAYERS: usize = 46;
const GEMMA3_27B_LAYERS: usize = 62;

/// Gemma 2: every other layer is local; softcaps on scores and logits.
pub(super) fn gemma2(hyper: &Hyper<'_>) -> Result<Decoder, BuildError> {
    let softcap = |key, default| -> Result<Option<f32>, BuildError> {
        Ok(Some(hyper.optional_f32(key, 1e-3..=1e6)?.unwrap_or(default)))
    };
    let mut decoder = gemma(hyper, hyper.rope(RopeStyle::Halves)?, GEMMA2_27B_LAYERS);
    decoder.layers = layers(hyper, 4096, 2, 0)?;
    decoder.attention_softcap = softcap("attn_logit_softcapping", 50.0)?;
    decoder.logit_softcap = softcap("final_logit_softcapping", 30.0)?;
    Ok(decoder)
}

/// Gemma 3: five local layers, with unscaled rotations of a smaller base, to one global.
pub(super) fn gemma3(hyper: &Hyper<'_>) -> Result<Decoder, BuildError> {
    let local_base = hyper.rope_base("rope.freq_base_swa")?.unwrap_or(10_000.0);
    let local = hyper.rope_with(RopeStyle::Halves, local_base, &RopeScaling::None)?;
    let mut decoder = gemma(hyper, hyper.rope(RopeStyle::Halves)?, GEMMA3_27B_LAYERS);
    decoder.ropes.push(local);
    decoder.layers = layers(hyper, 1024, 6, 1)?;
    decoder.logit_softcap = hyper.optional_f32("final_logit_softcapping", 1e-3..=1e6)?;
    Ok(decoder)
}

fn gemma(hyper: &Hyper<'_>, rope: RopeTable, layers_27b: usize) -> Decoder {
    let mut decoder = Decoder::plain(hyper, rope);
    decoder.activation = Activation::GeluTanh;
    decoder.embedding_scale = (hyper.embedding as f32).sqrt();
    if hyper.layers == layers_27b {
        decoder.attention_scale = 1.0 / (hyper.embedding as f32 / hyper.heads[0] as f32).sqrt();
    }
    decoder
}

/// Local layers with a global one at the end of each `pattern`; local ones use rope `local_rope`.
fn layers(
    hyper: &Hyper<'_>,
    default_window: u32,
    default_pattern: u32,
    local_rope: u8,
) -> Result<Vec<Layer>, BuildError> {
    let window = hyper.optional("attention.sliding_window", 1..=u32::MAX)?;
    let window = window.unwrap_or(default_window);
    let pattern = hyper.optional("attention.sliding_window_pattern", 1..=1024)?;
    let pattern = pattern.unwrap_or(default_pattern) as usize;
    let layer = |i: usize| {
        if i % pattern == pattern - 1 {
            Layer { window: None, rope: 0 }
        } else {
            Layer { window: Some(window), rope: local_rope }
        }
    };
    Ok((0..hyper.layers).map(layer).collect())
}
