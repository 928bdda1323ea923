//! A `tokenizer.json` beside the model, run by the `tokenizers` crate.
//!
//! It takes the place of the model's own vocabulary for encoding ordinary text. Special tokens are
//! found by this crate first, by the GGUF's kinds, so that `Special` means the same everywhere.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer as Hf;
use tokenizers::normalizers::Precompiled;

use crate::TokenizerError;
use crate::error::shown;
use crate::special::Strips;
use crate::spm::SPACE;
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
    let unusable = |reason: String| TokenizerError::Json { reason };
    // The crate's own parser panics on what is not JSON, and on unusable character maps, so both
    // are looked at first.
    let value: Value = serde_json::from_slice(json).map_err(|error| unusable(error.to_string()))?;
    check_character_maps(&value).map_err(|error| unusable(error.to_string()))?;
    drop(value);
    let mut hf = std::panic::catch_unwind(|| Hf::from_bytes(json))
        .map_err(|_| unusable("the tokenizers crate cannot read it".to_owned()))?
        .map_err(|error| unusable(error.to_string()))?;
    // Text handed over has no special tokens left to find: what looks like one was not asked for.
    hf.set_encode_special_tokens(true);
    hf.with_padding(None);
    hf.with_truncation(None).map_err(|error| unusable(error.to_string()))?;
    Ok(hf)
}

fn check_character_maps(value: &Value) -> serde_json::Result<()> {
    match value {
        Value::Array(values) => values.iter().try_for_each(check_character_maps),
        Value::Object(fields) => {
            if fields.get("type").and_then(Value::as_str) == Some("Precompiled") {
                Precompiled::deserialize(value)?;
            }
            fields.values().try_for_each(check_character_maps)
        }
        _ => Ok(()),
    }
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
    let added = hf.get_added_tokens_decoder();
    for (text, token) in hf.get_vocab(false) {
        let ours = vocabulary.text(token).unwrap_or_default();
        // Converters respell added tokens, and rename holes in the numbering.
        let respelt = added.contains_key(&token) || vocabulary.kind(token) == Some(Kind::Unused);
        if !respelt && !is_same(&text, ours) {
            return Err(TokenizerError::JsonMismatch {
                token,
                json: shown(&text),
                gguf: shown(ours),
            });
        }
    }
    Ok(())
}

/// Whether a token's text in a `tokenizer.json` is its text in a GGUF: WordPiece vocabularies mark
/// word starts in the one and continuations in the other, and spaces may be written either way.
fn is_same(json: &str, gguf: &str) -> bool {
    json == gguf
        || gguf.strip_prefix(SPACE) == Some(json)
        || json.strip_prefix("##") == Some(gguf)
        || json.replace(SPACE, " ") == gguf
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
