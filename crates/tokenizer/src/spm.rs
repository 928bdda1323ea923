//! SentencePiece-style vocabularies (`tokenizer.ggml.model` = `llama`).
//!
//! Encoding is llama.cpp's: spaces become U+2581, then the two neighbours whose joint text is the
//! token with the best score are merged, over and over; a character that ends up in no token is
//! given as its bytes' tokens.
//!
//! Why not the `tokenizers` crate: its BPE wants merges, which these files do not carry, and a list
//! synthesised from the scores is not exact (one token can be reached by several pairs, characters
//! without a token can be halves of one, and equal scores would need an order); its Unigram
//! maximises the sum of scores, which is another algorithm with other results.

use m40_gguf::{Array, ValueType};

use crate::TokenizerError;
use crate::merge::{Merger, NONE, Pairs, Symbol};
use crate::vocabulary::Vocabulary;

pub(crate) const SCORES: &str = "tokenizer.ggml.scores";

/// What stands for a space in token texts.
pub(crate) const SPACE: char = '\u{2581}';

#[derive(Debug)]
pub(crate) struct Spm {
    /// For each token, lowest first in order of merging.
    ranks: Vec<u32>,
    /// For each byte, the token that stands for it.
    bytes: Box<[Option<u32>; 256]>,
}

impl Spm {
    /// `unknown` stands for bytes that have no token.
    pub(crate) fn new(
        vocabulary: &Vocabulary,
        scores: &Array<'_>,
        unknown: Option<u32>,
    ) -> Result<Self, TokenizerError> {
        if scores.len() < vocabulary.len() {
            return Err(TokenizerError::LengthMismatch {
                key: SCORES,
                found: scores.len(),
                tokens: vocabulary.len(),
            });
        }
        let ranks = if scores.elem_type() == ValueType::I32 {
            scores.i32s()?.take(vocabulary.len()).map(|score| rank(score as f32)).collect()
        } else {
            scores.f32s()?.take(vocabulary.len()).map(rank).collect()
        };
        let mut bytes = Box::new([unknown; 256]);
        for (byte, token) in (0..=u8::MAX).zip(bytes.iter_mut()) {
            let found = vocabulary.find(&format!("<0x{byte:02X}>")).or_else(|| {
                byte.is_ascii()
                    .then(|| vocabulary.find(char::from(byte).encode_utf8(&mut [0; 4])))?
            });
            *token = found.or(*token);
        }
        Ok(Self { ranks, bytes })
    }

    /// Appends the tokens of `text`, in which spaces are spaces.
    pub(crate) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        prefix_space: bool,
        merger: &mut Merger,
        out: &mut Vec<u32>,
    ) {
        let mut escaped = String::with_capacity(text.len() + text.len() / 4);
        if prefix_space {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let characters = escaped.char_indices().map(|(start, c)| {
            let len = c.len_utf8();
            (start, len, vocabulary.find(&escaped[start..start + len]).unwrap_or(NONE))
        });
        let pairs = Scored { vocabulary, ranks: &self.ranks, text: &escaped };
        merger.run(characters, &pairs, |symbol| {
            if symbol.id == NONE {
                let bytes = &escaped.as_bytes()[symbol.start..symbol.start + symbol.len];
                out.extend(bytes.iter().filter_map(|&byte| self.bytes[usize::from(byte)]));
            } else {
                out.push(symbol.id);
            }
        });
    }
}

struct Scored<'a> {
    vocabulary: &'a Vocabulary,
    ranks: &'a [u32],
    text: &'a str,
}

impl Pairs for Scored<'_> {
    fn pair(&self, left: &Symbol, right: &Symbol) -> Option<(u32, u32)> {
        let id = self.vocabulary.find(&self.text[left.start..right.start + right.len])?;
        Some((self.ranks[id as usize], id))
    }
}

/// Orders scores as numbers, the best (highest) first; NaN is the worst, and -0 equals 0.
fn rank(score: f32) -> u32 {
    if score.is_nan() {
        return u32::MAX;
    }
    let bits = (score + 0.0).to_bits();
    // Flipping a negative number's bits, and a positive one's sign, makes the bits grow with it.
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_scores_best_first() {
        let scores = [f32::INFINITY, 3.5, 0.0, -1.0, -1000.0, f32::NEG_INFINITY, f32::NAN];
        let ranks: Vec<u32> = scores.iter().map(|&score| rank(score)).collect();
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        assert_eq!(rank(0.0), rank(-0.0));
    }
}
