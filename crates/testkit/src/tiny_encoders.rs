//! Tiny encoders and texts for them, of which `tests/data/golden/encoders.json` says what numpy makes;
//! `tests/data/reference_encoder.py` writes it, and says how.

use m40_gguf::TensorType;

use crate::gguf::{Noise, TinyEncoder};

/// Tokens in the vocabulary of tiny encoders that are text.
const TEXT: std::ops::Range<u32> = 5..90;

/// Tokens of a text, each with its segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncoderText {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// 1 for the tokens of a pair's second text.
    pub segments: Vec<u8>,
}

/// Every model by name.
pub fn recipes() -> Vec<(&'static str, TinyEncoder)> {
    vec![
        ("bert", TinyEncoder::bert().seed(1)),
        ("bert-q8_0", TinyEncoder::bert().seed(1).weights(TensorType::Q8_0)),
        ("cross-encoder", TinyEncoder::cross_encoder().seed(2)),
        ("nomic-bert", TinyEncoder::nomic_bert().seed(3)),
    ]
}

/// Texts of one token, of a few, of more than a page of the KV cache, and a pair.
pub fn texts() -> Vec<EncoderText> {
    let mut noise = Noise::new(5);
    let mut text = |len: usize, second: usize| {
        let token = |_| TEXT.start + noise.below(TEXT.len()) as u32;
        let tokens = (0..len).map(token).collect();
        EncoderText { tokens, segments: (0..len).map(|i| u8::from(i >= second)).collect() }
    };
    vec![text(1, 1), text(7, 7), text(150, 150), text(20, 8)]
}
