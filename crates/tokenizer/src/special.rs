//! Special tokens: which token plays which part, which end a generation, and finding their texts
//! inside a text.

use aho_corasick::{AhoCorasick, MatchKind};
use m40_gguf::Gguf;

use crate::vocabulary::{Kind, Vocabulary};
use crate::{FillIn, TokenizerError};

const BOS_ID: &str = "tokenizer.ggml.bos_token_id";
const EOS_ID: &str = "tokenizer.ggml.eos_token_id";
const EOT_ID: &str = "tokenizer.ggml.eot_token_id";
const EOM_ID: &str = "tokenizer.ggml.eom_token_id";
const UNKNOWN_ID: &str = "tokenizer.ggml.unknown_token_id";
/// Spelt like this in every file.
const SEPARATOR_ID: &str = "tokenizer.ggml.seperator_token_id";
const CLS_ID: &str = "tokenizer.ggml.cls_token_id";
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
const ADD_SEP: &str = "tokenizer.ggml.add_sep_token";

/// Texts that end a turn, the likeliest end-of-turn token first. Many files do not say which token
/// ends a turn, and mark some of these as ordinary text, so the text decides (llama.cpp's list).
const TURN_ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<|end_of_text|>",
    "<|endoftext|>",
];

/// Further texts after which nothing of an answer comes.
const OTHER_ENDS: &[&str] = &[
    "</s>",
    "<eos>",
    "[EOS]",
    "<|eom_id|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<|tool_response>",
    "[e~[",
    // Padding and file boundaries of fill-in-the-middle training.
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
];

/// Control tokens whatever the file says; they do not end a generation.
const CONTROLS: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
];

/// Parts of the harmony format (gpt-oss): its channels must reach the client as text, and `<|end|>`
/// ends a message, not the answer.
const HARMONY_TEXT: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// What a kind of vocabulary does when the file does not say.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Defaults {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) unknown: Option<u32>,
    pub(crate) separator: Option<u32>,
    pub(crate) adds_bos: bool,
    pub(crate) adds_separator: bool,
}

/// Which token plays which part.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roles {
    pub(crate) bos: Option<u32>,
    pub(crate) eos: Option<u32>,
    pub(crate) eot: Option<u32>,
    pub(crate) unknown: Option<u32>,
    /// Put before a text when asked for, if the model wants one there.
    pub(crate) prefix: Option<u32>,
    /// Put after a text when asked for.
    pub(crate) suffix: Option<u32>,
    pub(crate) fill_in: Option<FillIn>,
    /// Sorted.
    ends: Vec<u32>,
}

impl Roles {
    /// Reads the roles and corrects the kinds of tokens that files are known to mark wrongly.
    pub(crate) fn from_gguf<B: AsRef<[u8]>>(
        gguf: &Gguf<B>,
        vocabulary: &mut Vocabulary,
        defaults: Defaults,
    ) -> Result<Self, TokenizerError> {
        let id = |key, default: Option<u32>| role(gguf, vocabulary, key, default);
        let bos = id(BOS_ID, None)?.or(id(CLS_ID, defaults.bos)?);
        let eos = id(EOS_ID, defaults.eos)?;
        let separator = id(SEPARATOR_ID, defaults.separator)?;
        let unknown = id(UNKNOWN_ID, defaults.unknown)?;
        let (eot, eom) = (id(EOT_ID, None)?, id(EOM_ID, None)?);
        let prefix = asked(gguf, ADD_BOS, defaults.adds_bos, bos, BOS_ID)?;
        let eos_after = asked(gguf, ADD_EOS, false, eos, EOS_ID)?;
        let separator_after =
            asked(gguf, ADD_SEP, defaults.adds_separator, separator, SEPARATOR_ID)?;
        let mut roles = Self {
            bos,
            eos,
            eot: eot.or_else(|| TURN_ENDS.iter().find_map(|text| vocabulary.find(text))),
            unknown,
            prefix,
            suffix: eos_after.or(separator_after),
            fill_in: FillIn::from_gguf(gguf)?,
            ends: Vec::new(),
        };
        roles.mark(vocabulary, eom);
        Ok(roles)
    }

    fn mark(&mut self, vocabulary: &mut Vocabulary, eom: Option<u32>) {
        let find = |vocabulary: &Vocabulary, texts: &[&str]| -> Vec<u32> {
            texts.iter().filter_map(|text| vocabulary.find(text)).collect()
        };
        for id in find(vocabulary, CONTROLS) {
            vocabulary.set_kind(id, Kind::Control);
        }
        self.ends = find(vocabulary, TURN_ENDS);
        self.ends.extend(find(vocabulary, OTHER_ENDS));
        for &id in &self.ends {
            vocabulary.set_kind(id, Kind::Control);
        }
        self.ends.extend([self.eos, self.eot, eom].into_iter().flatten());
        for id in find(vocabulary, HARMONY_TEXT) {
            vocabulary.set_kind(id, Kind::UserDefined);
        }
        let has = |text: &str| vocabulary.find(text).is_some();
        let harmony = (has("<|return|>") && has("<|call|>"))
            || (has("<|flush|>") && (has("<|call|>") || has("<|calls|>")));
        if harmony && let Some(end) = vocabulary.find("<|end|>") {
            self.ends.retain(|&id| id != end);
            vocabulary.set_kind(end, Kind::UserDefined);
        }
        self.ends.sort_unstable();
        self.ends.dedup();
    }

    pub(crate) fn ends(&self) -> &[u32] {
        &self.ends
    }

    pub(crate) fn ends_generation(&self, id: u32) -> bool {
        self.ends.binary_search(&id).is_ok()
    }
}

/// The id under `key`, else the default if the vocabulary has such a token.
fn role<B: AsRef<[u8]>>(
    gguf: &Gguf<B>,
    vocabulary: &Vocabulary,
    key: &'static str,
    default: Option<u32>,
) -> Result<Option<u32>, TokenizerError> {
    let tokens = vocabulary.len();
    match gguf.get_u32(key)? {
        Some(id) if id as usize >= tokens => {
            Err(TokenizerError::SpecialOutOfRange { key, id, tokens })
        }
        Some(id) => Ok(Some(id)),
        None => Ok(default.filter(|&id| (id as usize) < tokens)),
    }
}

/// The token to add, if the file (or the default) asks for one.
fn asked<B: AsRef<[u8]>>(
    gguf: &Gguf<B>,
    asked: &'static str,
    default: bool,
    token: Option<u32>,
    key: &'static str,
) -> Result<Option<u32>, TokenizerError> {
    match (gguf.get_bool(asked)?, token) {
        (Some(true), None) => Err(TokenizerError::MissingSpecial { asked, key }),
        (Some(false), _) => Ok(None),
        (Some(true), token) => Ok(token),
        (None, token) => Ok(token.filter(|_| default)),
    }
}

/// White space beside a special token that belongs to it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Strips {
    pub(crate) left: bool,
    pub(crate) right: bool,
}

/// A piece of a text: ordinary, or a special token's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// Finds special tokens in texts: the leftmost, and of those that start there the longest. One pass
/// whatever the number of tokens (Gemma has 6414).
#[derive(Debug)]
pub(crate) struct Specials {
    /// User-defined tokens, which are always found.
    always: Option<Finder>,
    /// These and control tokens.
    all: Option<Finder>,
}

#[derive(Debug)]
struct Finder {
    automaton: AhoCorasick,
    /// For each pattern.
    tokens: Vec<(u32, Strips)>,
}

impl Specials {
    /// `strips` says which white space goes with a token.
    pub(crate) fn new(
        vocabulary: &Vocabulary,
        strips: impl Fn(u32) -> Strips,
    ) -> Result<Self, TokenizerError> {
        let finder = |wanted: &dyn Fn(Kind) -> bool| Finder::new(vocabulary, wanted, &strips);
        let always = finder(&|kind| kind == Kind::UserDefined)?;
        let all =
            finder(&|kind| matches!(kind, Kind::UserDefined | Kind::Control | Kind::Unknown))?;
        Ok(Self { always, all })
    }

    /// Gives the fragments of `text` in order; empty texts are left out.
    pub(crate) fn split<'t>(&self, text: &'t str, parse: bool, mut each: impl FnMut(Fragment<'t>)) {
        let finder = if parse { &self.all } else { &self.always };
        let ordinary = |text: &'t str, each: &mut dyn FnMut(Fragment<'t>)| {
            if !text.is_empty() {
                each(Fragment::Text(text));
            }
        };
        let mut done = 0;
        for found in finder.iter().flat_map(|finder| finder.automaton.find_iter(text)) {
            let Some((id, strips)) =
                finder.as_ref().map(|finder| finder.tokens[found.pattern().as_usize()])
            else {
                continue;
            };
            if found.start() < done {
                // Inside white space that the token before took.
                continue;
            }
            let before = &text[done..found.start()];
            ordinary(if strips.left { before.trim_end() } else { before }, &mut each);
            each(Fragment::Token(id));
            done = found.end();
            if strips.right {
                let after = &text[done..];
                done += after.len() - after.trim_start().len();
            }
        }
        ordinary(&text[done..], &mut each);
    }
}

impl Finder {
    fn new(
        vocabulary: &Vocabulary,
        wanted: &dyn Fn(Kind) -> bool,
        strips: &dyn Fn(u32) -> Strips,
    ) -> Result<Option<Self>, TokenizerError> {
        let (texts, tokens): (Vec<&str>, Vec<_>) = vocabulary
            .kinds()
            .filter(|&(_, kind)| wanted(kind))
            .filter_map(|(id, _)| Some((vocabulary.text(id)?, (id, strips(id)))))
            .filter(|(text, _)| !text.is_empty())
            .unzip();
        if texts.is_empty() {
            return Ok(None);
        }
        let automaton =
            AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&texts).map_err(
                |error| TokenizerError::Specials { count: texts.len(), reason: error.to_string() },
            )?;
        Ok(Some(Self { automaton, tokens }))
    }
}
