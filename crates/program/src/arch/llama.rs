//! Llama 1 to 3.x, Mistral, SmolLM and everything else converters write as `llama`.

use super::BuildError;
use super::decoder::Decoder;
use super::hyper::Hyper;
use crate::rope::RopeStyle;

/// Plain decoder; Mistral's first releases add a sliding window on every layer.
pub(super) fn llama(hyper: &Hyper<'_>) -> Result<Decoder, BuildError> {
    if hyper.optional("expert_count", 0..=u32::MAX)?.unwrap_or(0) > 0 {
        return Err(hyper.unsupported("a mixture of experts"));
    }
    Decoder::plain(hyper, hyper.rope(RopeStyle::Interleaved)?).windowed(hyper)
}
