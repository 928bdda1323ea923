//! Byte-level byte-pair encoding (`tokenizer.ggml.model` = `gpt2`).
//!
//! Why not the `tokenizers` crate: its builder wants every text and merge as owned strings in maps
//! and takes several times as long as these tables, out of the time a user waits for the first
//! token (`examples/load_time.rs` prints both); and its splitting can fail on a text, where this
//! cannot. The results are the same, which the tests check against it.

use hashbrown::HashMap;

use crate::TokenizerError;
use crate::error::shown;
use crate::merge::{Merger, NONE, Pairs, Symbol};
use crate::vocabulary::Vocabulary;

pub(crate) const MERGES: &str = "tokenizer.ggml.merges";

/// The character that stands for each byte in token texts: the byte itself where it is a visible
/// Latin-1 character, else the next free one from U+0100. (The table of GPT-2's `encoder.py`.)
fn byte_characters() -> [char; 256] {
    let mut characters = ['\0'; 256];
    let mut next = 0x100;
    for (byte, character) in (0..=u8::MAX).zip(characters.iter_mut()) {
        *character = if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
        };
    }
    characters
}

/// The way back: characters up to U+0143 to bytes.
#[derive(Debug)]
pub(crate) struct ByteText {
    characters: [char; 256],
    bytes: [Option<u8>; 0x144],
}

impl ByteText {
    pub(crate) fn new() -> Self {
        let characters = byte_characters();
        let mut bytes = [None; 0x144];
        for (byte, &character) in (0..=u8::MAX).zip(&characters) {
            bytes[character as usize] = Some(byte);
        }
        Self { characters, bytes }
    }

    /// The text that token texts use for these bytes.
    pub(crate) fn encode(&self, bytes: &[u8], out: &mut String) {
        out.clear();
        out.extend(bytes.iter().map(|&byte| self.characters[usize::from(byte)]));
    }

    /// The bytes that a token text stands for; `None` when it has a character that stands for none,
    /// in which case the text stands for itself.
    pub(crate) fn decode(&self, text: &str) -> Option<Vec<u8>> {
        text.chars().map(|c| self.bytes.get(c as usize).copied().flatten()).collect()
    }
}

/// Merges by the two tokens they join: rank and resulting token.
type Merges = HashMap<u64, (u32, u32)>;

#[derive(Debug)]
pub(crate) struct Bpe {
    merges: Merges,
    /// The token of each single byte. A byte without one is left out, as llama.cpp does; such bytes
    /// are in no text the model was trained on.
    bytes: Box<[u32; 256]>,
    /// Whether a word that is a token is taken whole, whatever the merges say.
    whole_words: bool,
}

impl Bpe {
    pub(crate) fn new<'a>(
        vocabulary: &Vocabulary,
        text: &ByteText,
        merges: impl ExactSizeIterator<Item = &'a str>,
        whole_words: bool,
    ) -> Result<Self, TokenizerError> {
        let mut bytes = Box::new([NONE; 256]);
        for (token, character) in bytes.iter_mut().zip(text.characters) {
            *token = vocabulary.find(character.encode_utf8(&mut [0; 4])).unwrap_or(NONE);
        }
        let mut table = Merges::with_capacity(merges.len());
        let mut joined = String::new();
        for (index, merge) in merges.enumerate() {
            let (pair, token) = resolve(vocabulary, index, merge, &mut joined)?;
            table.entry(pair).or_insert((index as u32, token));
        }
        Ok(Self { merges: table, bytes, whole_words })
    }

    /// Appends the tokens of one word, as the pre-tokenizer gives it.
    pub(crate) fn encode_word(
        &self,
        vocabulary: &Vocabulary,
        text: &ByteText,
        word: &str,
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) {
        if self.whole_words && word.len() <= vocabulary.longest() {
            text.encode(word.as_bytes(), &mut scratch.text);
            if let Some(id) = vocabulary.find(&scratch.text) {
                out.push(id);
                return;
            }
        }
        let bytes = word.bytes().enumerate().map(|(at, b)| (at, 1, self.bytes[usize::from(b)]));
        scratch.merger.run(bytes, self, |symbol| {
            if symbol.id != NONE {
                out.push(symbol.id);
            }
        });
    }
}

impl Pairs for Bpe {
    fn pair(&self, left: &Symbol, right: &Symbol) -> Option<(u32, u32)> {
        self.merges.get(&key(left.id, right.id)).copied()
    }
}

/// Memory kept from word to word.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    merger: Merger,
    text: String,
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The two tokens a merge joins, as a key, and the token they become.
fn resolve(
    vocabulary: &Vocabulary,
    index: usize,
    merge: &str,
    joined: &mut String,
) -> Result<(u64, u32), TokenizerError> {
    let malformed = || TokenizerError::MalformedMerge { index, merge: shown(merge) };
    // The left text has at least one character, which may itself be a space.
    let first = merge.chars().next().ok_or_else(malformed)?.len_utf8();
    let space = merge[first..].find(' ').ok_or_else(malformed)? + first;
    let (left, right) = (&merge[..space], &merge[space + 1..]);
    joined.clear();
    joined.push_str(left);
    joined.push_str(right);
    let find = |text: &str| {
        vocabulary.find(text).ok_or_else(|| TokenizerError::UnknownMerge {
            index,
            merge: shown(merge),
            missing: shown(text),
        })
    };
    Ok((key(find(left)?, find(right)?), find(joined)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_character_of_its_own() {
        let text = ByteText::new();
        let all: Vec<u8> = (0..=u8::MAX).collect();
        let mut encoded = String::new();
        text.encode(&all, &mut encoded);
        assert_eq!(text.decode(&encoded), Some(all));
        assert!(encoded.starts_with('Ā') && encoded.contains('Ġ') && encoded.contains('Ċ'));
        assert!(!encoded.contains(char::is_whitespace) && !encoded.contains(char::is_control));
    }

    #[test]
    fn a_text_of_other_characters_stands_for_itself() {
        assert_eq!(ByteText::new().decode("Ġ日"), None);
    }
}
