//! Qwen 2, 2.5 (QKV biases) and 3 (qk-norm); the tensors present tell them apart.

use super::BuildError;
use super::decoder::Decoder;
use super::hyper::Hyper;
use crate::rope::RopeStyle;

/// Plain decoder with rotary halves.
pub(super) fn qwen(hyper: &Hyper<'_>) -> Result<Decoder, BuildError> {
    Ok(Decoder::plain(hyper, hyper.rope(RopeStyle::Halves)?))
}
