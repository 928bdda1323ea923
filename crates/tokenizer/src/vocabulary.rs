//! The tokens of a model: their texts, what kind each is, and the way back from a text to its id.

use hashbrown::{DefaultHashBuilder, HashTable};
use m40_gguf::{Array, Gguf};
use std::hash::BuildHasher;

use crate::TokenizerError;
use crate::error::shown;

/// Sixteen times the largest vocabulary in use.
const MAX_TOKENS: usize = 1 << 22;
/// No token of a real model has a thousandth of this.
const MAX_TOKEN_BYTES: usize = 1 << 16;
/// All texts together; offsets are 32 bits.
const MAX_TEXT_BYTES: usize = 1 << 30;

pub(crate) const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";

/// What a token is for, as `tokenizer.ggml.token_type` numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Ordinary text.
    Normal,
    /// Stands for text that has no token.
    Unknown,
    /// Steers the model; found in a text only when asked for.
    Control,
    /// Text that is always one token.
    UserDefined,
    /// A hole in the numbering; has no text.
    Unused,
    /// One byte, written `<0xXX>`.
    Byte,
}

impl Kind {
    fn from_number(number: i128) -> Self {
        match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            6 => Self::Byte,
            // 5 is "unused"; 0 and numbers of the future have no text either.
            _ => Self::Unused,
        }
    }
}

/// Having a `Vocabulary` means: at least one token, ids are dense from 0, and no two tokens have
/// the same text (empty texts aside, which nothing can look up).
pub(crate) struct Vocabulary {
    /// All texts, one after another.
    texts: String,
    /// Where each token's text ends.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    ids: HashTable<u32>,
    hasher: DefaultHashBuilder,
    longest: usize,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vocabulary").field("tokens", &self.len()).finish_non_exhaustive()
    }
}

impl Vocabulary {
    /// Reads `tokenizer.ggml.tokens` and `tokenizer.ggml.token_type`; `None` when the model has no
    /// tokens.
    pub(crate) fn from_gguf<B: AsRef<[u8]>>(
        gguf: &Gguf<B>,
    ) -> Result<Option<Self>, TokenizerError> {
        let Some(tokens) = gguf.get_array(TOKENS)? else { return Ok(None) };
        let mut vocabulary = Self::new(tokens.len(), tokens.strings()?)?;
        if let Some(types) = gguf.get_array(TOKEN_TYPE)? {
            vocabulary.set_kinds(&types)?;
        }
        Ok(Some(vocabulary))
    }

    /// A vocabulary of normal tokens, in id order.
    pub(crate) fn new<'a>(
        count: usize,
        tokens: impl Iterator<Item = &'a str>,
    ) -> Result<Self, TokenizerError> {
        if count == 0 || count > MAX_TOKENS {
            return Err(TokenizerError::VocabularySize { count, limit: MAX_TOKENS });
        }
        let mut vocabulary = Self {
            texts: String::with_capacity(count.saturating_mul(8)),
            ends: Vec::with_capacity(count),
            kinds: vec![Kind::Normal; count],
            ids: HashTable::with_capacity(count),
            hasher: DefaultHashBuilder::default(),
            longest: 0,
        };
        for token in tokens.take(count) {
            vocabulary.push(token)?;
        }
        vocabulary.kinds.truncate(vocabulary.ends.len());
        Ok(vocabulary)
    }

    fn push(&mut self, text: &str) -> Result<(), TokenizerError> {
        let id = self.ends.len() as u32;
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenizerError::TextTooLong { token: id, limit: MAX_TOKEN_BYTES });
        }
        if self.texts.len() + text.len() > MAX_TEXT_BYTES {
            return Err(TokenizerError::TextTooLong { token: id, limit: MAX_TEXT_BYTES });
        }
        if !text.is_empty() {
            self.index(id, text)?;
        }
        self.texts.push_str(text);
        self.ends.push(self.texts.len() as u32);
        self.longest = self.longest.max(text.len());
        Ok(())
    }

    fn index(&mut self, id: u32, text: &str) -> Result<(), TokenizerError> {
        let (texts, ends, hasher) = (&self.texts, &self.ends, &self.hasher);
        let hash = hasher.hash_one(text);
        if let Some(&first) = self.ids.find(hash, |&other| text_of(texts, ends, other) == text) {
            return Err(TokenizerError::DuplicateToken { text: shown(text), first, second: id });
        }
        let rehash = |&other: &u32| hasher.hash_one(text_of(texts, ends, other));
        self.ids.insert_unique(hash, id, rehash);
        Ok(())
    }

    fn set_kinds(&mut self, types: &Array<'_>) -> Result<(), TokenizerError> {
        if types.len() < self.len() {
            return Err(TokenizerError::LengthMismatch {
                key: TOKEN_TYPE,
                found: types.len(),
                tokens: self.len(),
            });
        }
        for (kind, number) in self.kinds.iter_mut().zip(types.integers()?) {
            *kind = Kind::from_number(number);
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the longest token's text.
    pub(crate) fn longest(&self) -> usize {
        self.longest
    }

    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        ((id as usize) < self.len()).then(|| text_of(&self.texts, &self.ends, id))
    }

    pub(crate) fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    pub(crate) fn set_kind(&mut self, id: u32, kind: Kind) {
        if let Some(slot) = self.kinds.get_mut(id as usize) {
            *slot = kind;
        }
    }

    /// The token with exactly this text.
    pub(crate) fn find(&self, text: &str) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        let same = |&id: &u32| text_of(&self.texts, &self.ends, id) == text;
        self.ids.find(self.hasher.hash_one(text), same).copied()
    }

    /// Every token's id and kind, in id order.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (u32, Kind)> {
        self.kinds.iter().enumerate().map(|(id, &kind)| (id as u32, kind))
    }
}

fn text_of<'a>(texts: &'a str, ends: &[u32], id: u32) -> &'a str {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] as usize };
    &texts[start..ends[id] as usize]
}
