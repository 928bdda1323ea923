//! A `tokenizer.json` beside the model, run by the `tokenizers` crate.
//!
//! It takes the place of the model's own vocabulary for encoding ordinary text. Special tokens are
//! found by this crate first, by the GGUF's kinds, so that `Special` means the same everywhere.

use tokenizers::Tokenizer as Hf;

use crate::TokenizerError;
use crate::error::shown;
use crate::special::Strips;
use crate::vocabulary::{Kind, Vocabulary};

/// How token texts spell the bytes they stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spelling {
    /// GPT-2's characters for bytes.
    ByteLevel,
    /// U+2581 for spaces, `<0xXX>` for bytes.
    Escaped,
}

pub(crate) fn parse(json: &[u8]) -> Result<Hf, TokenizerError> {
    let mut hf =
        Hf::from_bytes(json).map_err(|error| TokenizerError::Json { reason: error.to_string() })?;
    // Text handed over has no special tokens left to find: what looks like one was not asked for.
    hf.set_encode_special_tokens(true);
    hf.with_padding(None);
    hf.with_truncation(None).map_err(|error| TokenizerError::Json { reason: error.to_string() })?;
    Ok(hf)
}

/// The vocabulary of a model that has none of its own.
pub(crate) fn vocabulary(hf: &Hf) -> Result<Vocabulary, TokenizerError> {
    let mut tokens: Vec<(u32, String)> =
        hf.get_vocab(true).into_iter().map(|(text, id)| (id, text)).collect();
    tokens.sort_unstable();
    let count = tokens.last().map_or(0, |&(id, _)| id as usize + 1);
    let mut next = tokens.iter().peekable();
    let texts = (0..count as u32).map(|id| match next.next_if(|(other, _)| *other == id) {
        Some((_, text)) => text.as_str(),
        None => "",
    });
    let mut vocabulary = Vocabulary::new(count, texts)?;
    for (id, token) in hf.get_added_tokens_decoder() {
        vocabulary.set_kind(id, if token.special { Kind::Control } else { Kind::UserDefined });
    }
    mark_bytes(&mut vocabulary);
    Ok(vocabulary)
}

fn mark_bytes(vocabulary: &mut Vocabulary) {
    for byte in 0..=u8::MAX {
        if let Some(id) = vocabulary.find(&format!("<0x{byte:02X}>")) {
            vocabulary.set_kind(id, Kind::Byte);
        }
    }
}

/// Checks that both name the same tokens: a `tokenizer.json` of another model would give ids that
/// mean something else.
pub(crate) fn check(hf: &Hf, vocabulary: &Vocabulary) -> Result<(), TokenizerError> {
    for (text, token) in hf.get_vocab(true) {
        let ours = vocabulary.text(token).unwrap_or_default();
        // Converters rename holes in the numbering.
        if ours != text && vocabulary.kind(token) != Some(Kind::Unused) {
            return Err(TokenizerError::JsonMismatch {
                token,
                json: shown(&text),
                gguf: shown(ours),
            });
        }
    }
    Ok(())
}

/// Spelling of the tokens, from what decodes them.
pub(crate) fn spelling(hf: &Hf) -> Spelling {
    let byte_level = hf.get_decoder().is_some_and(|decoder| {
        serde_json::to_string(decoder).is_ok_and(|json| json.contains("\"ByteLevel\""))
    });
    if byte_level { Spelling::ByteLevel } else { Spelling::Escaped }
}

/// White space that goes with a special token.
pub(crate) fn strips(hf: &Hf) -> impl Fn(u32) -> Strips + use<> {
    let tokens = hf.get_added_tokens_decoder();
    move |id| {
        tokens.get(&id).map_or_else(Strips::default, |t| Strips { left: t.lstrip, right: t.rstrip })
    }
}

/// Appends the tokens of a text.
///
/// The `tokenizers` crate can fail on a text (its regular expressions give up on some); such a text
/// is cut in two until the parts succeed. What fails as a single character has no token.
pub(crate) fn encode(hf: &Hf, text: &str, out: &mut Vec<u32>) {
    if let Ok(encoding) = hf.encode_fast(text, false) {
        out.extend_from_slice(encoding.get_ids());
        return;
    }
    let middle = text.floor_char_boundary(text.len() / 2);
    let middle = if middle == 0 { text.ceil_char_boundary(1) } else { middle };
    if middle < text.len() {
        encode(hf, &text[..middle], out);
        encode(hf, &text[middle..], out);
    }
}
