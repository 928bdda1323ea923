//! Splitting a text into words before byte-pair encoding, by the name in `tokenizer.ggml.pre`.
//!
//! Each pre-tokenizer is one or more patterns from the model's own `tokenizer.json`; each pattern
//! cuts every piece that the one before left into its matches and what lies between them.
//!
//! The patterns end in `\s+(?!\S)|\s+`: take a run of white space but leave its last character to
//! the word after it. A look-ahead needs a backtracking engine, which gives up on long runs. Here
//! the last alternative is plain `\s+`, run by a finite automaton in linear time, and a match of it
//! that is followed by a word gives its last character back: the same pieces, whatever the input.

use regex_automata::Input;
use regex_automata::meta::Regex;

use crate::TokenizerError;
use crate::error::shown;

/// English contractions, in any case.
macro_rules! contraction {
    () => {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    };
}
/// The rest of the pattern that Llama 3 made common, after the contractions; digits in groups.
macro_rules! words {
    ($digits:literal) => {
        concat!(r"[^\r\n\p{L}\p{N}]?\p{L}+|", $digits, r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+")
    };
}
/// Words by upper and lower case, as in GPT-4o's pattern; `$suffix` may follow a word.
macro_rules! cased_words {
    ($suffix:expr, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $suffix,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
        )
    };
}

const GPT2: Step =
    Step::giving_back(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const LLAMA3: Step = Step::giving_back(concat!(contraction!(), "|", words!(r"\p{N}{1,3}")));
const QWEN2: Step = Step::giving_back(concat!(contraction!(), "|", words!(r"\p{N}")));
const QWEN35: Step = Step::giving_back(concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
const TEKKEN: Step = Step::giving_back(cased_words!("", r"\p{N}"));
const GPT_4O: Step =
    Step::giving_back(cased_words!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}"));
const DIGIT: Step = Step::plain(r"\p{N}");
const LINE_BREAK: Step = Step::plain(r"[\r\n]");
/// Ideographs and Hangul, with the gaps of the original class.
const CJK: Step = Step::plain(r"[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+");
const FALCON_PUNCTUATION: Step = Step::plain(r"[\p{P}\$\+<=>\^~\|`]+");
const THREE_DIGITS: Step = Step::plain("[0-9][0-9][0-9]");
const DEEPSEEK3_WORDS: Step = Step::giving_back(concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|"##,
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
));
/// DeepSeek LLM's words: the cased letters of the Unicode version its authors had.
const DEEPSEEK_LETTERS: Step = Step::plain(concat!(
    r"\s?[",
    r"A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}",
    r"\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}",
    r"\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}",
    r"\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}",
    r"\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}",
    r"\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}",
    r"\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}",
    r"\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}",
    r"\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}",
    r"\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}",
    r"\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}",
    r"\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}",
    r"\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}",
    r"\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}",
    r"\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}",
    "]+"
));

/// One pattern of a pre-tokenizer.
#[derive(Clone, Copy)]
struct Step {
    pattern: &'static str,
    /// Whether `\s+(?!\S)|\s+` follows the pattern.
    gives_back: bool,
}

impl Step {
    const fn plain(pattern: &'static str) -> Self {
        Self { pattern, gives_back: false }
    }

    const fn giving_back(pattern: &'static str) -> Self {
        Self { pattern, gives_back: true }
    }
}

/// A pre-tokenizer that files name.
struct Known {
    /// The names; all mean the same.
    names: &'static [&'static str],
    steps: &'static [Step],
    /// Whether a word that is a token is taken whole, whatever the merges say.
    whole_words: bool,
    /// Whether a beginning-of-sequence token is added when the file does not say.
    adds_bos: bool,
}

impl Known {
    const fn new(names: &'static [&'static str], steps: &'static [Step]) -> Self {
        Self { names, steps, whole_words: false, adds_bos: false }
    }
}

/// The names and what belongs to them are llama.cpp's, which writes these files.
const KNOWN: &[Known] = &[
    Known::new(
        &["default"],
        &[Step::plain(r"[\p{P}\$\+<=>\^~\|]+"), GPT2, Step::plain(r"\p{N}+"), THREE_DIGITS],
    ),
    Known {
        whole_words: true,
        adds_bos: true,
        ..Known::new(
            &[
                "llama-bpe",
                "llama3",
                "llama-v3",
                "falcon3",
                "falcon-h1",
                "pixtral",
                "midm-2.0",
                "lfm2",
            ],
            &[LLAMA3],
        )
    },
    Known::new(&["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], &[LLAMA3]),
    Known::new(
        &["qwen2", "deepseek-r1-qwen", "megrez", "kormo", "stablelm2", "hunyuan", "grok-2"],
        &[QWEN2],
    ),
    Known::new(&["qwen35"], &[QWEN35]),
    Known::new(
        &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        &[DIGIT, GPT2],
    ),
    Known::new(
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "exaone4",
            "trillion",
            "granite-docling",
            "modern-bert",
        ],
        &[GPT2],
    ),
    Known::new(
        &["deepseek-llm"],
        &[
            LINE_BREAK,
            DEEPSEEK_LETTERS,
            Step::plain(
                r"\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+",
            ),
            Step::plain(r"\s+$"),
            CJK,
            Step::plain(r"\p{N}+"),
        ],
    ),
    Known::new(
        &["deepseek-coder"],
        &[LINE_BREAK, Step::plain(r"\s?\p{L}+"), Step::plain(r"\s?\p{P}+"), CJK, DIGIT],
    ),
    Known::new(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        &[
            Step::plain(r"\p{N}{1,3}"),
            Step::plain(r"[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"),
            DEEPSEEK3_WORDS,
        ],
    ),
    Known::new(&["falcon"], &[FALCON_PUNCTUATION, GPT2, THREE_DIGITS]),
    Known { whole_words: true, adds_bos: true, ..Known::new(&["tekken"], &[TEKKEN]) },
    Known::new(&["gpt-4o", "llama4", "kanana2"], &[GPT_4O]),
];

/// A step ready to run.
#[derive(Debug)]
struct Splitter {
    /// Pattern 0 is the step's own; pattern 1, if there is one, white space.
    regex: Regex,
}

/// The pattern of white space.
const SPACES: usize = 1;

impl Splitter {
    fn new(step: Step) -> Self {
        let patterns =
            if step.gives_back { vec![step.pattern, r"\s+"] } else { vec![step.pattern] };
        let regex = Regex::new_many(&patterns).expect("the patterns are constants, all tested");
        Self { regex }
    }

    /// The end of the next match, and its start, at or after `from`.
    fn next(&self, text: &str, from: usize) -> Option<(usize, usize)> {
        let input = Input::new(text).range(from..);
        let found = self.regex.search(&input)?;
        let (start, end) = (found.start(), found.end());
        if found.pattern().as_usize() == SPACES && end < text.len() {
            let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
            if end - last > start {
                return Some((start, end - last));
            }
        }
        Some((start, end))
    }
}

/// Cuts texts into words.
#[derive(Debug)]
pub(crate) struct PreTokenizer {
    steps: Vec<Splitter>,
    /// See [`Known::whole_words`].
    pub(crate) whole_words: bool,
    /// See [`Known::adds_bos`].
    pub(crate) adds_bos: bool,
}

impl PreTokenizer {
    /// The pre-tokenizer that a file names; one without a name gets "default".
    pub(crate) fn named(name: Option<&str>) -> Result<Self, TokenizerError> {
        let name = name.filter(|name| !name.is_empty()).unwrap_or("default");
        let known = KNOWN.iter().find(|known| known.names.contains(&name)).ok_or_else(|| {
            TokenizerError::UnsupportedPre { found: shown(name), supported: names().join(", ") }
        })?;
        Ok(Self {
            steps: known.steps.iter().map(|&step| Splitter::new(step)).collect(),
            whole_words: known.whole_words,
            adds_bos: known.adds_bos,
        })
    }

    /// Gives the words of `text` in order; together they are the text.
    pub(crate) fn split<'t>(&self, text: &'t str, mut each: impl FnMut(&'t str)) {
        split_by(&self.steps, text, &mut each);
    }
}

fn names() -> Vec<&'static str> {
    KNOWN.iter().flat_map(|known| known.names.iter().copied()).collect()
}

fn split_by<'t>(steps: &[Splitter], text: &'t str, each: &mut dyn FnMut(&'t str)) {
    if text.is_empty() {
        return;
    }
    let Some((step, rest)) = steps.split_first() else {
        each(text);
        return;
    };
    let mut done = 0;
    while let Some((start, end)) = step.next(text, done) {
        split_by(rest, &text[done..start], each);
        split_by(rest, &text[start..end], each);
        done = end;
    }
    split_by(rest, &text[done..], each);
}

#[cfg(test)]
mod tests;
