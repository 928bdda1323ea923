//! The tokenizer itself.

use std::borrow::Cow;

use m40_gguf::Gguf;

use crate::bpe::{self, Bpe, ByteText};
use crate::json::{self, Spelling};
use crate::merge::Merger;
use crate::pretokenize::PreTokenizer;
use crate::special::{Defaults, Fragment, Roles, Specials, Strips};
use crate::spm::{self, SPACE, Spm};
use crate::vocabulary::{self, Kind, Vocabulary};
use crate::{Detokenizer, TokenizerError, wordpiece};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
const SUPPORTED: &str = "gpt2, llama and bert";

/// What to do about special tokens when encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Special {
    /// Put the tokens before and after the text that the model was trained with there, such as a
    /// beginning-of-sequence token.
    pub add: bool,
    /// Recognise the texts of control tokens (`<|im_start|>`). Only for text that comes from a
    /// template: in text from outside they are ordinary characters.
    pub parse: bool,
}

/// A model's tokenizer: text to token ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    roles: Roles,
    specials: Specials,
    algorithm: Algorithm,
    spelling: Spelling,
    byte_text: ByteText,
    /// Whether a space goes before ordinary text that starts a text or follows a special token.
    space_prefix: bool,
    /// Whether the first space of a decoded text is not part of it.
    drops_first_space: bool,
}

#[derive(Debug)]
enum Algorithm {
    Bpe(PreTokenizer, Bpe),
    Spm(Spm),
    /// WordPiece, or a tokenizer.json.
    Hf(Box<tokenizers::Tokenizer>),
}

impl Tokenizer {
    /// Builds the tokenizer that a model's metadata describes.
    ///
    /// # Errors
    /// Missing or contradictory metadata, or a vocabulary or pre-tokenizer this crate does not know.
    pub fn from_gguf<B: AsRef<[u8]>>(gguf: &Gguf<B>) -> Result<Self, TokenizerError> {
        let model = gguf.get_str(MODEL)?.unwrap_or_default();
        let missing = |key| TokenizerError::MissingKey { key, model: model.to_owned() };
        match model {
            "" => return Err(TokenizerError::MissingKey { key: MODEL, model: "text".to_owned() }),
            "gpt2" | "llama" | "bert" => {}
            found => {
                return Err(TokenizerError::UnsupportedModel {
                    found: crate::error::shown(found),
                    supported: SUPPORTED,
                });
            }
        }
        let vocabulary = Vocabulary::from_gguf(gguf)?.ok_or_else(|| missing(vocabulary::TOKENS))?;
        match model {
            "gpt2" => Self::bpe(gguf, vocabulary),
            "llama" => Self::spm(gguf, vocabulary),
            _ => Self::bert(gguf, vocabulary),
        }
    }

    /// Builds a tokenizer from the `tokenizer.json` beside a model. Which tokens are special, and
    /// which are added, still comes from the model's metadata where it says so.
    ///
    /// # Errors
    /// An unusable `tokenizer.json`, or one whose tokens are not the model's.
    pub fn from_json<B: AsRef<[u8]>>(json: &[u8], gguf: &Gguf<B>) -> Result<Self, TokenizerError> {
        let hf = json::parse(json)?;
        let mut vocabulary = match Vocabulary::from_gguf(gguf)? {
            Some(vocabulary) => {
                json::check(&hf, &vocabulary)?;
                vocabulary
            }
            None => json::vocabulary(&hf)?,
        };
        let defaults = match gguf.get_str(MODEL)? {
            Some("llama") => SPM_DEFAULTS,
            Some("bert") => BERT_DEFAULTS,
            _ => Defaults::default(),
        };
        let roles = Roles::from_gguf(gguf, &mut vocabulary, defaults)?;
        let spelling = json::spelling(&hf);
        let specials = Specials::new(&vocabulary, json::strips(&hf))?;
        let prefixed = gguf.get_bool(ADD_SPACE_PREFIX)?;
        Ok(Self {
            drops_first_space: prefixed
                .unwrap_or_else(|| spelling == Spelling::Escaped && prefixes_space(&hf)),
            vocabulary,
            roles,
            specials,
            algorithm: Algorithm::Hf(Box::new(hf)),
            spelling,
            byte_text: ByteText::new(),
            // Its own normaliser puts the space there.
            space_prefix: false,
        })
    }

    fn bpe<B: AsRef<[u8]>>(
        gguf: &Gguf<B>,
        mut vocabulary: Vocabulary,
    ) -> Result<Self, TokenizerError> {
        let splitter = PreTokenizer::named(gguf.get_str(PRE)?)?;
        let merges = gguf.get_array(bpe::MERGES)?.ok_or_else(|| TokenizerError::MissingKey {
            key: bpe::MERGES,
            model: "gpt2".to_owned(),
        })?;
        let bpe = Bpe::new(&vocabulary, &ByteText::new(), merges.strings()?, splitter.whole_words)?;
        let defaults = Defaults { adds_bos: splitter.adds_bos, ..Defaults::default() };
        let roles = Roles::from_gguf(gguf, &mut vocabulary, defaults)?;
        Self::assemble(gguf, vocabulary, roles, Algorithm::Bpe(splitter, bpe), false)
    }

    fn spm<B: AsRef<[u8]>>(
        gguf: &Gguf<B>,
        mut vocabulary: Vocabulary,
    ) -> Result<Self, TokenizerError> {
        let scores = gguf.get_array(spm::SCORES)?.ok_or_else(|| TokenizerError::MissingKey {
            key: spm::SCORES,
            model: "llama".to_owned(),
        })?;
        let roles = Roles::from_gguf(gguf, &mut vocabulary, SPM_DEFAULTS)?;
        let spm = Spm::new(&vocabulary, &scores, roles.unknown)?;
        let prefix = gguf.get_bool(ADD_SPACE_PREFIX)?.unwrap_or(true);
        Self::assemble(gguf, vocabulary, roles, Algorithm::Spm(spm), prefix)
    }

    fn bert<B: AsRef<[u8]>>(
        gguf: &Gguf<B>,
        mut vocabulary: Vocabulary,
    ) -> Result<Self, TokenizerError> {
        let roles = Roles::from_gguf(gguf, &mut vocabulary, BERT_DEFAULTS)?;
        let hf = wordpiece::build(gguf, &vocabulary, roles.unknown)?;
        let mut tokenizer =
            Self::assemble(gguf, vocabulary, roles, Algorithm::Hf(Box::new(hf)), false)?;
        // Every word start carries a space.
        tokenizer.drops_first_space = true;
        Ok(tokenizer)
    }

    fn assemble<B: AsRef<[u8]>>(
        gguf: &Gguf<B>,
        vocabulary: Vocabulary,
        roles: Roles,
        algorithm: Algorithm,
        space_prefix: bool,
    ) -> Result<Self, TokenizerError> {
        let specials = Specials::new(&vocabulary, strips(gguf, &vocabulary)?)?;
        let spelling = match algorithm {
            Algorithm::Bpe(..) => Spelling::ByteLevel,
            Algorithm::Spm(_) | Algorithm::Hf(_) => Spelling::Escaped,
        };
        Ok(Self {
            vocabulary,
            roles,
            specials,
            algorithm,
            spelling,
            byte_text: ByteText::new(),
            space_prefix,
            drops_first_space: space_prefix,
        })
    }

    /// The tokens of a text. Never fails: bytes that no token stands for become the vocabulary's
    /// unknown token where it has one, and nothing where it has none.
    pub fn encode(&self, text: &str, special: Special) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        if special.add {
            ids.extend(self.roles.prefix);
        }
        let mut scratch = Scratch::default();
        let mut after_special = true;
        self.specials.split(text, special.parse, |fragment| match fragment {
            Fragment::Token(id) => {
                ids.push(id);
                after_special = true;
            }
            Fragment::Text(text) => {
                let prefix = self.space_prefix && after_special;
                self.encode_ordinary(text, prefix, &mut scratch, &mut ids);
                after_special = false;
            }
        });
        if special.add {
            ids.extend(self.roles.suffix);
        }
        ids
    }

    /// The tokens of a prompt, typed or written by a chat template: special tokens are recognised, and
    /// the beginning-of-sequence token that the model wants is there once, whether or not the text
    /// begins with it. Nothing is added at the end, where the answer begins.
    pub fn encode_prompt(&self, prompt: &str) -> Vec<u32> {
        let mut ids = self.encode(prompt, Special { add: false, parse: true });
        if let Some(prefix) = self.roles.prefix
            && ids.first() != Some(&prefix)
        {
            ids.insert(0, prefix);
        }
        ids
    }

    /// The tokens of a text that goes on from another, as a part of an answer does: nothing is put
    /// before it, and only user-defined tokens are found in it.
    pub fn encode_within(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        let mut scratch = Scratch::default();
        self.specials.split(text, false, |fragment| match fragment {
            Fragment::Token(id) => ids.push(id),
            Fragment::Text(text) => self.encode_ordinary(text, false, &mut scratch, &mut ids),
        });
        ids
    }

    fn encode_ordinary(&self, text: &str, prefix: bool, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        match &self.algorithm {
            Algorithm::Bpe(splitter, bpe) => splitter.split(text, |word| {
                bpe.encode_word(&self.vocabulary, &self.byte_text, word, &mut scratch.bpe, ids);
            }),
            Algorithm::Spm(spm) => {
                spm.encode(&self.vocabulary, text, prefix, &mut scratch.merger, ids);
            }
            Algorithm::Hf(hf) => json::encode(hf, text, ids),
        }
    }

    /// The text of tokens from the start of a text. Control tokens give theirs only with `special`.
    /// Bytes that are not UTF-8 become U+FFFD, as in [`String::from_utf8_lossy`]; ids outside the
    /// vocabulary give nothing.
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        let mut stream = Detokenizer::from_start(!special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(self, id));
        }
        text.push_str(&stream.finish());
        text
    }

    /// The bytes a token stands for, control tokens' texts included; `None` outside the vocabulary.
    /// They need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        ((id as usize) < self.vocabulary.len()).then(|| self.piece(id, true))
    }

    /// As [`Tokenizer::token_bytes`], but nothing for control tokens unless `special`, and for ids
    /// outside the vocabulary.
    pub(crate) fn piece(&self, id: u32, special: bool) -> Cow<'_, [u8]> {
        const NOTHING: &[u8] = &[];
        let (Some(text), Some(kind)) = (self.vocabulary.text(id), self.vocabulary.kind(id)) else {
            return NOTHING.into();
        };
        match kind {
            Kind::Unused => NOTHING.into(),
            Kind::Control | Kind::Unknown if !special => NOTHING.into(),
            Kind::Control | Kind::Unknown | Kind::UserDefined => text.as_bytes().into(),
            Kind::Byte => match parse_byte(text) {
                Some(byte) => vec![byte].into(),
                None => text.as_bytes().into(),
            },
            Kind::Normal => self.spelt(text),
        }
    }

    fn spelt<'t>(&self, text: &'t str) -> Cow<'t, [u8]> {
        match self.spelling {
            Spelling::ByteLevel => match self.byte_text.decode(text) {
                Some(bytes) => bytes.into(),
                None => text.as_bytes().into(),
            },
            Spelling::Escaped if text.contains(SPACE) => {
                text.replace(SPACE, " ").into_bytes().into()
            }
            Spelling::Escaped => text.as_bytes().into(),
        }
    }

    pub(crate) fn drops_first_space(&self) -> bool {
        self.drops_first_space
    }

    /// How many tokens there are; ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// The beginning-of-sequence token (`[CLS]` for BERT).
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// The end-of-turn token: the one the file names, else the first known end-of-turn text in the
    /// vocabulary.
    pub fn eot(&self) -> Option<u32> {
        self.roles.eot
    }

    /// Whether [`Special::add`] puts a beginning-of-sequence token before the text. A chat template
    /// that writes the token itself must then be encoded without `add`.
    pub fn adds_bos(&self) -> bool {
        self.roles.prefix.is_some()
    }

    /// The token that [`Special::add`] puts after a text, such as `[SEP]`.
    pub fn suffix(&self) -> Option<u32> {
        self.roles.suffix
    }

    /// Whether an answer ends with this token: end of sequence, of turn, of message, or a text that
    /// is known to mean one of these.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.roles.ends_generation(id)
    }

    /// All tokens that [end an answer](Self::is_end_of_generation), ascending.
    pub fn ends_of_generation(&self) -> &[u32] {
        self.roles.ends()
    }

    /// Whether the token steers the model and is not part of any text.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.vocabulary.kind(id), Some(Kind::Control | Kind::Unknown))
    }

    /// The token with exactly this text, as the vocabulary spells it.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocabulary.find(text)
    }

    /// A special token's text as chat templates use it; empty without a token.
    pub(crate) fn special_text(&self, id: Option<u32>) -> &str {
        id.and_then(|id| self.vocabulary.text(id)).unwrap_or_default()
    }
}

/// Memory kept from fragment to fragment.
#[derive(Default)]
struct Scratch {
    bpe: bpe::Scratch,
    merger: Merger,
}

const SPM_DEFAULTS: Defaults = Defaults {
    bos: Some(1),
    eos: Some(2),
    unknown: Some(0),
    separator: None,
    adds_bos: true,
    adds_separator: false,
};

/// The places of `[CLS]`, `[UNK]` and `[SEP]` in the vocabulary of the original BERT.
const BERT_DEFAULTS: Defaults = Defaults {
    bos: Some(101),
    eos: None,
    unknown: Some(100),
    separator: Some(102),
    adds_bos: true,
    adds_separator: true,
};

/// The byte of `<0xXX>`.
fn parse_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Whether a tokenizer.json of the SentencePiece kind puts a space before a text.
fn prefixes_space(hf: &tokenizers::Tokenizer) -> bool {
    hf.encode_fast("a", false).is_ok_and(|encoding| {
        encoding
            .get_ids()
            .first()
            .and_then(|&id| hf.id_to_token(id))
            .is_some_and(|text| text.starts_with(SPACE))
    })
}

/// Which special tokens take white space with them. GGUF has no key for it; Phi-3's were trained
/// so, and its files are known by their name.
fn strips<B: AsRef<[u8]>>(
    gguf: &Gguf<B>,
    vocabulary: &Vocabulary,
) -> Result<impl Fn(u32) -> Strips, TokenizerError> {
    let name = gguf.get_str("general.name")?.unwrap_or_default().to_ascii_lowercase();
    let phi3 = name.contains("phi-3") || name.contains("phi3");
    let plain = ["<unk>", "<s>", "<|endoftext|>"].map(|text| vocabulary.find(text));
    Ok(move |id| Strips { left: false, right: phi3 && !plain.contains(&Some(id)) })
}
