//! Small vocabularies that can write every byte.

use super::{GgufBuilder, Meta};
use m40_gguf::ValueType;

/// The ChatML template, as models with `<|im_start|>` carry it.
pub const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' \
     + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}\
     {{ '<|im_start|>assistant\n' }}{% endif %}";

/// What the parts of the merges are joined from, by falling priority; `_` stands for a space.
const MERGES: [(&str, &str); 28] = [
    ("_", "t"),
    ("h", "e"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    ("e", "r"),
    ("_", "a"),
    ("_t", "he"),
    ("a", "n"),
    ("_", "s"),
    ("o", "r"),
    ("l", "l"),
    ("e", "n"),
    ("a", "t"),
    ("o", "u"),
    ("_", "w"),
    ("_a", "n"),
    ("in", "g"),
    ("he", "ll"),
    ("hell", "o"),
    ("H", "e"),
    ("He", "ll"),
    ("Hell", "o"),
    ("_w", "or"),
    ("_wor", "l"),
    ("_worl", "d"),
    ("_", "_"),
    ("__", "__"),
];

/// Control tokens of a byte-level BPE vocabulary, from id 0.
const BPE_CONTROL: [&str; 4] =
    ["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>"];
/// Control tokens of an SPM vocabulary, from id 0. llama.cpp wants the last one in `phi3` files.
const SPM_CONTROL: [&str; 5] = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"];
/// Id of `<unk>` in an SPM vocabulary.
const SPM_UNKNOWN: u32 = 5;

const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL_TYPE: i32 = 3;
const BYTE: i32 = 6;

/// Which algorithm a [`Vocabulary`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VocabularyKind {
    /// `tokenizer.ggml.model` = `gpt2`: byte-level BPE with merges.
    Bpe,
    /// `tokenizer.ggml.model` = `llama`: SentencePiece-style pieces with scores and byte tokens.
    Spm,
}

/// A vocabulary of about 300 tokens.
///
/// Tokens 0 to 3 are control tokens: bos (`<|begin_of_text|>`, or `<s>` in SPM), eos
/// (`<|end_of_text|>`, or `</s>`), `<|im_start|>` and `<|im_end|>` (eot). In an SPM vocabulary 4 is
/// `<|endoftext|>` and 5 `<unk>`. All 256 bytes follow.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// The algorithm.
    pub kind: VocabularyKind,
    /// `tokenizer.ggml.pre`.
    pub pre: String,
    /// Token texts in the file's encoding.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type` of each.
    pub types: Vec<i32>,
    /// Scores of each, for SPM.
    pub scores: Vec<f32>,
    /// Merges, for BPE.
    pub merges: Vec<String>,
}

impl Vocabulary {
    /// Id of the token that starts a text.
    pub const BOS: u32 = 0;
    /// Id of the token that ends a text.
    pub const EOS: u32 = 1;
    /// Id of `<|im_start|>`.
    pub const IM_START: u32 = 2;
    /// Id of `<|im_end|>`, the end of a turn.
    pub const IM_END: u32 = 3;

    /// A byte-level BPE vocabulary with this pre-tokenizer (`tokenizer.ggml.pre`).
    pub fn bpe(pre: &str) -> Self {
        let mut vocabulary = Self::new(VocabularyKind::Bpe, pre, &BPE_CONTROL);
        (0..=255).for_each(|byte| vocabulary.push(byte_char(byte).to_string(), NORMAL, 0.0));
        for (left, right) in MERGES.map(|(l, r)| (l.replace('_', "Ġ"), r.replace('_', "Ġ"))) {
            vocabulary.merges.push(format!("{left} {right}"));
            vocabulary.push(left + &right, NORMAL, 0.0);
        }
        vocabulary
    }

    /// A SentencePiece-style vocabulary: byte tokens `<0x00>` to `<0xFF>`, the printable ASCII
    /// characters and the same joined pieces as [`bpe`](Self::bpe).
    pub fn spm() -> Self {
        let mut vocabulary = Self::new(VocabularyKind::Spm, "default", &SPM_CONTROL);
        vocabulary.push("<unk>".to_owned(), UNKNOWN, 0.0);
        (0..=255).for_each(|byte: u8| vocabulary.push(format!("<0x{byte:02X}>"), BYTE, 0.0));
        let mut score = 0.0;
        let pieces = MERGES.iter().map(|(left, right)| format!("{left}{right}").replace('_', "▁"));
        // A printable `_` is its own character: only the space is written as `▁`.
        let characters = (' '..='~').map(|c| c.to_string().replace(' ', "▁"));
        for piece in pieces.chain(characters) {
            vocabulary.push(piece, NORMAL, score);
            score -= 1.0;
        }
        vocabulary
    }

    /// Adds made-up words of six letters, each after a space, until there are this many tokens. No
    /// merge leads to them.
    ///
    /// # Panics
    /// When there are more tokens already, or as many words are not to be had.
    pub fn filled(mut self, tokens: usize) -> Self {
        let words = tokens.checked_sub(self.tokens.len());
        let words = words.unwrap_or_else(|| panic!("{tokens} tokens are too few"));
        assert!(words <= WORDS, "{tokens} tokens are too many");
        let space = match self.kind {
            VocabularyKind::Bpe => 'Ġ',
            VocabularyKind::Spm => '▁',
        };
        for number in 0..words {
            let text = format!("{space}{}", word(number));
            self.push(text, NORMAL, -1e6 - number as f32);
        }
        self
    }

    fn new(kind: VocabularyKind, pre: &str, control: &[&str]) -> Self {
        let mut vocabulary = Self {
            kind,
            pre: pre.to_owned(),
            tokens: Vec::new(),
            types: Vec::new(),
            scores: Vec::new(),
            merges: Vec::new(),
        };
        control.iter().for_each(|text| vocabulary.push((*text).to_owned(), CONTROL_TYPE, 0.0));
        vocabulary
    }

    fn push(&mut self, text: String, ty: i32, score: f32) {
        self.tokens.push(text);
        self.types.push(ty);
        self.scores.push(score);
    }

    /// Writes the `tokenizer.ggml.*` keys.
    pub(crate) fn write(&self, file: GgufBuilder, add_bos: bool) -> GgufBuilder {
        let tokens = Meta::array(ValueType::Str, self.tokens.iter().map(String::as_str));
        let model = match self.kind {
            VocabularyKind::Bpe => "gpt2",
            VocabularyKind::Spm => "llama",
        };
        let file = file
            .meta("tokenizer.ggml.model", model)
            .meta("tokenizer.ggml.pre", self.pre.as_str())
            .meta("tokenizer.ggml.tokens", tokens);
        let file = match self.kind {
            VocabularyKind::Bpe => file
                .meta("tokenizer.ggml.token_type", self.types.clone())
                .meta("tokenizer.ggml.merges", self.merges.clone()),
            VocabularyKind::Spm => file
                .meta("tokenizer.ggml.scores", self.scores.clone())
                .meta("tokenizer.ggml.token_type", self.types.clone())
                .meta("tokenizer.ggml.unknown_token_id", SPM_UNKNOWN),
        };
        file.meta("tokenizer.ggml.bos_token_id", Self::BOS)
            .meta("tokenizer.ggml.eos_token_id", Self::EOS)
            .meta("tokenizer.ggml.eot_token_id", Self::IM_END)
            .meta("tokenizer.ggml.padding_token_id", Self::EOS)
            .meta("tokenizer.ggml.add_bos_token", add_bos)
            .meta("tokenizer.ggml.add_space_prefix", false)
    }
}

/// Words that [`word`] can make: three syllables.
const WORDS: usize = 64 * 64 * 64;

/// The word of this number, such as `badigo`.
fn word(number: usize) -> String {
    let syllable = |n: usize| {
        let consonant = char::from(b"bcdfghjklmnprstv"[n / 4 % 16]);
        [consonant, char::from(b"aeio"[n % 4])]
    };
    [number / 4096, number / 64, number].into_iter().flat_map(|n| syllable(n % 64)).collect()
}

/// The character that stands for a byte in byte-level BPE: itself where it is a visible Latin-1
/// character, else the next free one from U+0100 on.
fn byte_char(byte: u8) -> char {
    let visible = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if visible(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !visible(b)).count();
    char::from_u32(0x100 + before as u32).expect("U+0100 to U+0143 are characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_characters_of_byte_level_bpe() {
        for (byte, c) in
            [(b'!', '!'), (b' ', 'Ġ'), (b'\n', 'Ċ'), (0, 'Ā'), (0xad, 'Ń'), (0xe9, 'é')]
        {
            assert_eq!(byte_char(byte), c);
        }
    }

    #[test]
    fn every_token_is_unique_and_every_merge_is_of_tokens() {
        let filled = Vocabulary::bpe("gpt-2").filled(100_000);
        assert_eq!(filled.tokens.len(), 100_000);
        for vocabulary in [Vocabulary::bpe("gpt-2"), Vocabulary::spm(), filled] {
            let mut sorted = vocabulary.tokens.clone();
            sorted.sort();
            sorted.dedup();
            assert_eq!(sorted.len(), vocabulary.tokens.len());
            assert_eq!(vocabulary.types.len(), sorted.len());
            assert_eq!(vocabulary.scores.len(), sorted.len());
            for merge in &vocabulary.merges {
                let (left, right) = merge.split_once(' ').unwrap();
                for part in [left.to_owned(), right.to_owned(), format!("{left}{right}")] {
                    assert!(sorted.binary_search(&part).is_ok(), "{part:?} is a token");
                }
            }
        }
    }
}
