//! What a model can do, as far as its file says it.

use std::path::Path;

use m40_gguf::{Gguf, GgufError};
use m40_tokenizer::{ChatTemplate, FillIn};
use memmap2::Mmap;

use crate::model::{LoadError, open};

/// How a file says that its outputs are joined: not at all. Any other way makes embeddings.
const NO_POOLING: u32 = 0;

/// What a model can do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Answers texts and conversations.
    pub completion: bool,
    /// Its chat template shows it the tools that there are.
    pub tools: bool,
    /// It has tokens for filling in between two texts.
    pub insert: bool,
    /// It is an encoder, whose outputs are embeddings.
    pub embedding: bool,
    /// Its chat template knows of thoughts before an answer.
    pub thinking: bool,
}

impl Abilities {
    /// Those of a file, with this chat template instead of its own if there is one. Reads the file's
    /// metadata alone. Of a split model, any of its files may be named.
    ///
    /// # Errors
    /// [`LoadError`], which names the file, if it cannot be read or what it says has a wrong form.
    pub fn of_file(path: &Path, chat_template: Option<&str>) -> Result<Self, LoadError> {
        let gguf = open(path)?;
        let encodes =
            is_encoder(&gguf).map_err(|source| LoadError::Gguf { path: path.into(), source })?;
        if encodes {
            return Ok(Self { embedding: true, ..Self::default() });
        }
        let template = match chat_template {
            Some(source) => ChatTemplate::new(source, "", "").map(Some),
            None => ChatTemplate::peek(&gguf),
        };
        let template =
            template.map_err(|source| LoadError::Template { path: path.into(), source })?;
        let fill_in = FillIn::from_gguf(&gguf)
            .map_err(|source| LoadError::Tokenizer { path: path.into(), source })?;
        Ok(Self {
            completion: true,
            tools: template.as_ref().is_some_and(ChatTemplate::takes_tools),
            insert: fill_in.is_some(),
            embedding: false,
            thinking: template.as_ref().is_some_and(ChatTemplate::knows_thoughts),
        })
    }
}

/// Whether a model's tokens see those after them, or its outputs are joined to one.
fn is_encoder(gguf: &Gguf<Mmap>) -> Result<bool, GgufError> {
    let architecture = gguf.get_str("general.architecture")?.unwrap_or_default();
    let pooling = gguf.get_u32(&format!("{architecture}.pooling_type"))?;
    let causal = gguf.get_bool(&format!("{architecture}.attention.causal"))?;
    Ok(causal == Some(false) || pooling.is_some_and(|pooling| pooling != NO_POOLING))
}
