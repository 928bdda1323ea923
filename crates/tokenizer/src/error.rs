//! Why a vocabulary cannot be used.

use m40_gguf::GgufError;
use thiserror::Error;

/// A tokenizer could not be built from a model's metadata.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A tokenizer key has another type than it must.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// A key that this kind of vocabulary cannot do without.
    #[error("the model has no {key}, which its {model} tokenizer needs; convert it again")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// `tokenizer.ggml.model`, or what stands for it.
        model: String,
    },
    /// A kind of vocabulary this crate does not know.
    #[error("tokenizer.ggml.model is \"{found}\", but only {supported} are supported")]
    UnsupportedModel {
        /// What the file says.
        found: String,
        /// The supported names.
        supported: &'static str,
    },
    /// A pre-tokenizer this crate does not know. Guessing one would give wrong tokens silently.
    #[error(
        "tokenizer.ggml.pre is \"{found}\", but only {supported} are supported; put the model's \
         tokenizer.json beside it"
    )]
    UnsupportedPre {
        /// What the file says.
        found: String,
        /// The supported names.
        supported: String,
    },
    /// No tokens, or more than any model has.
    #[error("the vocabulary has {count} tokens, but must have 1 to {limit}")]
    VocabularySize {
        /// How many there are.
        count: usize,
        /// The most allowed.
        limit: usize,
    },
    /// A token text, or all of them together, beyond any model's.
    #[error("token {token} makes the vocabulary too large: its text is over {limit} bytes")]
    TextTooLong {
        /// The token's id.
        token: u32,
        /// The limit passed.
        limit: usize,
    },
    /// Two tokens with one text.
    #[error("tokens {first} and {second} have the same text \"{text}\"")]
    DuplicateToken {
        /// The text, shortened.
        text: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A list with fewer entries than there are tokens.
    #[error("{key} has {found} entries, but there are {tokens} tokens")]
    LengthMismatch {
        /// The list's key.
        key: &'static str,
        /// Its length.
        found: usize,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// A merge that is not two texts with a space between.
    #[error("merge {index} is \"{merge}\", not two token texts with a space between")]
    MalformedMerge {
        /// Its place in `tokenizer.ggml.merges`.
        index: usize,
        /// The merge, shortened.
        merge: String,
    },
    /// A merge of, or into, a text that is no token.
    #[error("merge {index} (\"{merge}\") needs the token \"{missing}\", which does not exist")]
    UnknownMerge {
        /// Its place in `tokenizer.ggml.merges`.
        index: usize,
        /// The merge, shortened.
        merge: String,
        /// The text without a token, shortened.
        missing: String,
    },
    /// A special token's id outside the vocabulary.
    #[error("{key} is {id}, but the vocabulary has {tokens} tokens")]
    SpecialOutOfRange {
        /// The key.
        key: &'static str,
        /// The id it gives.
        id: u32,
        /// Tokens in the vocabulary.
        tokens: usize,
    },
    /// The model asks for a special token it does not name.
    #[error("{asked} is true, but the model does not say which token that is ({key})")]
    MissingSpecial {
        /// The key that asks for the token.
        asked: &'static str,
        /// The key that should name it.
        key: &'static str,
    },
    /// The special tokens cannot be searched for.
    #[error("the {count} special tokens cannot be searched for together: {reason}")]
    Specials {
        /// How many there are.
        count: usize,
        /// What the search builder said.
        reason: String,
    },
    /// A `tokenizer.json` that cannot be read.
    #[error("tokenizer.json cannot be used: {reason}")]
    Json {
        /// What its parser said.
        reason: String,
    },
    /// A `tokenizer.json` of another model.
    #[error(
        "tokenizer.json does not belong to this model: token {token} is \"{json}\" in it and \
         \"{gguf}\" in the model"
    )]
    JsonMismatch {
        /// The first token that differs.
        token: u32,
        /// Its text in `tokenizer.json`, shortened.
        json: String,
        /// Its text in the model, shortened.
        gguf: String,
    },
}

/// A text for a message: at most 60 characters, control characters escaped.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    shown
}
