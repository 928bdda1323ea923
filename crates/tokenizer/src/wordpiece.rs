//! BERT's WordPiece (`tokenizer.ggml.model` = `bert`), on the `tokenizers` crate.
//!
//! GGUF keeps these vocabularies in another form than `vocab.txt`: a word start `hello` is stored
//! as `▁hello`, a continuation `##ing` as `ing`, and bracketed tokens as they are.

use ahash::AHashMap;
use m40_gguf::Gguf;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

use crate::TokenizerError;
use crate::spm::SPACE;
use crate::vocabulary::Vocabulary;

const LOWERCASE: &str = "tokenizer.ggml.normalizer.lowercase";
const STRIP_ACCENTS: &str = "tokenizer.ggml.normalizer.strip_accents";

/// The tokenizer for texts without special tokens. `unknown` is given for words that cannot be
/// spelt.
pub(crate) fn build<B: AsRef<[u8]>>(
    gguf: &Gguf<B>,
    vocabulary: &Vocabulary,
    unknown: Option<u32>,
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let unknown = unknown.ok_or_else(|| TokenizerError::MissingKey {
        key: "tokenizer.ggml.unknown_token_id",
        model: "bert".to_owned(),
    })?;
    let mut words: AHashMap<String, u32> = AHashMap::with_capacity(vocabulary.len());
    for (id, _) in vocabulary.kinds() {
        let text = vocabulary.text(id).unwrap_or_default();
        let word = if text.starts_with('[') && text.ends_with(']') {
            text.to_owned()
        } else if let Some(word) = text.strip_prefix(SPACE) {
            word.to_owned()
        } else {
            format!("##{text}")
        };
        words.entry(word).or_insert(id);
    }
    // Looked up by its text, which another form of the same token must not hide.
    let unknown_text = vocabulary.text(unknown).unwrap_or_default().to_owned();
    words.insert(unknown_text.clone(), unknown);
    let model = WordPiece::builder()
        .vocab(words)
        .unk_token(unknown_text)
        .build()
        .map_err(|error| TokenizerError::Json { reason: error.to_string() })?;
    let lowercase = gguf.get_bool(LOWERCASE)?.unwrap_or(true);
    let strip_accents = gguf.get_bool(STRIP_ACCENTS)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(BertNormalizer::new(true, true, strip_accents, lowercase)))
        .map_err(|error| TokenizerError::Json { reason: error.to_string() })?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    Ok(tokenizer)
}
