//! Phi-3 and Phi-3.5: fused QKV and gate/up tensors, LongRoPE factors, a window on every layer.

use super::BuildError;
use super::decoder::Decoder;
use super::hyper::Hyper;
use crate::rope::RopeStyle;

/// Plain decoder with rotary halves.
pub(super) fn phi3(hyper: &Hyper<'_>) -> Result<Decoder, BuildError> {
    Decoder::plain(hyper, hyper.rope(RopeStyle::Halves)?).windowed(hyper)
}
