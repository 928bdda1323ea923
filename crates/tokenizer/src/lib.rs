//! Text to tokens and back, and chat templates, from the metadata of a GGUF file.
//!
//! * [`Tokenizer`]: byte-level BPE, SentencePiece-style and WordPiece vocabularies, or a
//!   `tokenizer.json` beside the model;
//! * [`Detokenizer`]: tokens to text while they are generated;
//! * [`ChatTemplate`]: messages to the prompt a model was trained on.
//!
//! No IO, no clock: files are given as bytes, and the time a template may ask for is an argument.

#![forbid(unsafe_code)]

mod bpe;
mod detokenizer;
mod error;
mod fill_in;
mod json;
mod merge;
mod pretokenize;
mod special;
mod spm;
mod template;
mod tokenizer;
mod vocabulary;
mod wordpiece;

pub use detokenizer::Detokenizer;
pub use error::TokenizerError;
pub use fill_in::FillIn;
pub use template::{ChatTemplate, TemplateError, TemplateInput};
pub use tokenizer::{Special, Tokenizer};
