//! The tokens by which a model is asked to fill in between two texts.

use m40_gguf::Gguf;

use crate::TokenizerError;
use crate::vocabulary::TOKENS;

/// The keys of the tokens before what comes before, before what comes after, and before what is to be
/// filled in; and the texts that such tokens have in files that do not say it.
const KEYS: [&str; 3] = [
    "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.ggml.fim_suf_token_id",
    "tokenizer.ggml.fim_mid_token_id",
];
const TEXTS: [[&str; 3]; 7] = [
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    ["<PRE>", "<SUF>", "<MID>"],
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    ["<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"],
];

/// A model's tokens for filling in: `prefix`, the text before, `suffix`, the text after, `middle`, and
/// then the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the type says what they are")]
pub struct FillIn {
    pub prefix: u32,
    pub suffix: u32,
    pub middle: u32,
}

impl FillIn {
    /// Those of a file, without its tokenizer being built; `None` where it has no such tokens.
    ///
    /// # Errors
    /// [`TokenizerError::Metadata`] of keys that have another type than they must.
    pub fn from_gguf<B: AsRef<[u8]>>(gguf: &Gguf<B>) -> Result<Option<Self>, TokenizerError> {
        let Some(tokens) = gguf.get_array(TOKENS)? else { return Ok(None) };
        let [prefix, suffix, middle] = KEYS.map(|key| gguf.get_u32(key));
        if let (Some(prefix), Some(suffix), Some(middle)) = (prefix?, suffix?, middle?) {
            let are_there = [prefix, suffix, middle].iter().all(|&id| (id as usize) < tokens.len());
            return Ok(are_there.then_some(Self { prefix, suffix, middle }));
        }
        let mut found = [[None; 3]; TEXTS.len()];
        for (id, text) in tokens.strings()?.enumerate() {
            for (of_spelling, texts) in found.iter_mut().zip(TEXTS) {
                if let Some(part) = texts.iter().position(|part| *part == text) {
                    of_spelling[part] = u32::try_from(id).ok();
                }
            }
        }
        Ok(found.into_iter().find_map(|found| match found {
            [Some(prefix), Some(suffix), Some(middle)] => Some(Self { prefix, suffix, middle }),
            _ => None,
        }))
    }
}

#[cfg(test)]
mod tests {
    use m40_gguf::ValueType;
    use m40_testkit::gguf::{GgufBuilder, Meta};

    use super::*;

    fn fill_in(tokens: &[&str], keys: &[u32]) -> Option<FillIn> {
        let texts = tokens.iter().map(|text| (*text).to_owned());
        let file = GgufBuilder::new().meta(TOKENS, Meta::array(ValueType::Str, texts));
        let file = KEYS.iter().zip(keys).fold(file, |file, (key, id)| file.meta(key, *id));
        FillIn::from_gguf(&Gguf::parse(file.build()).unwrap()).unwrap()
    }

    #[test]
    fn the_tokens_are_found_by_their_keys_or_by_their_texts() {
        let tokens = ["a", "<fim_middle>", "<fim_prefix>", "b", "<fim_suffix>"];
        let found = |prefix, suffix, middle| Some(FillIn { prefix, suffix, middle });
        assert_eq!(fill_in(&tokens, &[]), found(2, 4, 1));
        assert_eq!(fill_in(&tokens, &[0, 3, 4]), found(0, 3, 4), "keys come first");
        assert_eq!(fill_in(&tokens[..4], &[]), None, "one is missing");
        assert_eq!(fill_in(&tokens, &[0, 3, 5]), None, "there is no token 5");
    }
}
