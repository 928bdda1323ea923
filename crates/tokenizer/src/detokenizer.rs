//! Tokens back to text, one at a time.

use crate::Tokenizer;

/// Turns a stream of tokens into text that is valid whenever it is looked at: a character whose
/// bytes come in several tokens is given whole, with the last of them.
///
/// All pieces together are what [`String::from_utf8_lossy`] makes of the tokens' bytes together.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    skip_special: bool,
    /// Control tokens that give text all the same.
    kept: Vec<u32>,
    /// Whether the next text is the first of all, where some vocabularies have a space to drop.
    at_start: bool,
    /// The start of a character, at most 3 bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// For text that goes on from something, as an answer does from its prompt: nothing is dropped
    /// at the start. With `skip_special`, control tokens give no text.
    pub fn new(skip_special: bool) -> Self {
        Self { skip_special, kept: Vec::new(), at_start: false, pending: Vec::new() }
    }

    /// As this, but these tokens give text though they are control tokens.
    pub fn keeping(self, kept: &[u32]) -> Self {
        Self { kept: kept.to_vec(), ..self }
    }

    /// For a whole text from its start: where the vocabulary puts a space before every text, that
    /// space is dropped again, as [`Tokenizer::decode`] does.
    pub fn from_start(skip_special: bool) -> Self {
        Self { at_start: true, ..Self::new(skip_special) }
    }

    /// Takes the next token; gives the text that is certain now, often none. A token outside the
    /// vocabulary has no text.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        let piece = tokenizer.piece(id, !self.skip_special || self.kept.contains(&id));
        let mut piece = piece.as_ref();
        if self.at_start && !piece.is_empty() {
            self.at_start = false;
            if tokenizer.drops_first_space() {
                piece = piece.strip_prefix(b" ").unwrap_or(piece);
            }
        }
        self.pending.extend_from_slice(piece);
        self.take_certain()
    }

    /// Ends the stream: an unfinished character becomes one U+FFFD.
    pub fn finish(&mut self) -> String {
        if self.pending.is_empty() {
            return String::new();
        }
        self.pending.clear();
        char::REPLACEMENT_CHARACTER.to_string()
    }

    /// Everything up to an unfinished character at the end, which stays.
    fn take_certain(&mut self) -> String {
        let mut text = String::new();
        let mut rest = 0;
        for chunk in self.pending.utf8_chunks() {
            text.push_str(chunk.valid());
            rest += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if rest + invalid.len() == self.pending.len() && is_unfinished(invalid) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            rest += invalid.len();
        }
        self.pending.drain(..rest);
        text
    }
}

/// Whether bytes that are no character could become one with more bytes after them.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
