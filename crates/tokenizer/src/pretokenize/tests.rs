//! Every pattern against `fancy-regex`, the engine that `tokenizers` itself uses, running the
//! patterns as the models' own files have them, look-aheads and all.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

const LLAMA3_ORIGINAL: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_ORIGINAL: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2_ORIGINAL: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const TEKKEN_ORIGINAL: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O_ORIGINAL: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3_ORIGINAL: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

/// The patterns as published, by name.
const ORIGINALS: &[(&str, &[&str])] = &[
    ("llama-bpe", &[LLAMA3_ORIGINAL]),
    ("qwen2", &[QWEN2_ORIGINAL]),
    ("gpt-2", &[GPT2_ORIGINAL]),
    ("smollm", &[r"\p{N}", GPT2_ORIGINAL]),
    ("tekken", &[TEKKEN_ORIGINAL]),
    ("gpt-4o", &[GPT_4O_ORIGINAL]),
    ("falcon", &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2_ORIGINAL, "[0-9][0-9][0-9]"]),
    ("default", &[r"[\p{P}\$\+<=>\^~\|]+", GPT2_ORIGINAL, r"\p{N}+", "[0-9][0-9][0-9]"]),
    ("deepseek-v3", &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3_ORIGINAL]),
    ("deepseek-coder", &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"]),
];

/// Built once: the patterns are large.
static OURS: LazyLock<Vec<(&str, PreTokenizer)>> = LazyLock::new(|| {
    let named =
        |known: &Known| (known.names[0], PreTokenizer::named(Some(known.names[0])).unwrap());
    KNOWN.iter().map(named).collect()
});
static THEIRS: LazyLock<Vec<(&str, Vec<fancy_regex::Regex>)>> = LazyLock::new(|| {
    let compile = |patterns: &[&str]| {
        patterns.iter().map(|pattern| fancy_regex::Regex::new(pattern).unwrap()).collect()
    };
    ORIGINALS.iter().map(|(name, patterns)| (*name, compile(patterns))).collect()
});

fn cut<'t>(splitter: &PreTokenizer, text: &'t str) -> Vec<&'t str> {
    let mut words = Vec::new();
    splitter.split(text, |word| words.push(word));
    words
}

fn words<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
    cut(&PreTokenizer::named(Some(name)).unwrap(), text)
}

/// Cuts each piece into matches and gaps, pattern by pattern.
fn reference<'t>(patterns: &[fancy_regex::Regex], text: &'t str) -> Vec<&'t str> {
    let mut pieces = vec![text];
    for regex in patterns {
        let mut next = Vec::new();
        for piece in pieces {
            let mut done = 0;
            for found in regex.find_iter(piece) {
                let found = found.unwrap();
                next.extend([&piece[done..found.start()], found.as_str()]);
                done = found.end();
            }
            next.push(&piece[done..]);
        }
        next.retain(|piece| !piece.is_empty());
        pieces = next;
    }
    pieces
}

fn tricky_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop::sample::select(vec![
            " ", "  ", "\t", "\n", "\r\n", "\u{a0}", "\u{3000}", "'s", "'LL", "'ſ", "'", "don't",
            "WE'RE", "abc", "Abc", "ABC", "é", "e\u{301}", "ǅ", "ʰ", "日本語", "ひらがな", "カナ",
            "한국어", "12", "3456", "٣", "½", "²", "Ⅷ", ",", "...", "!?", "$", "+", "`", "、", "/",
            "://", "_", "-", "(x)", "👩‍👧", "\u{200b}", "\0", "Ж", "हिन्दी", "ﬁ", "𝔘", "«»",
        ]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..14).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn splits_as_the_original_patterns_do(text in tricky_text()) {
        for (name, patterns) in THEIRS.iter() {
            let (_, ours) = OURS.iter().find(|(ours, _)| ours == name).unwrap();
            prop_assert_eq!(cut(ours, &text), reference(patterns, &text), "{}", name);
        }
    }

    #[test]
    fn the_words_together_are_the_text(text in tricky_text()) {
        for (_, ours) in OURS.iter() {
            prop_assert_eq!(cut(ours, &text).concat(), text.as_str());
        }
    }
}

#[track_caller]
fn check(name: &str, text: &str, expected: &[&str]) {
    assert_eq!(words(name, text), expected, "{name}");
}

#[test]
fn llama3_groups_three_digits_and_joins_line_breaks() {
    let text = "I'LL pay  12345 €!\n\n ok\t\tx";
    check(
        "llama-bpe",
        text,
        &["I", "'LL", " pay", " ", " ", "123", "45", " €!\n\n", " ok", "\t", "\tx"],
    );
}

#[test]
fn qwen2_takes_digits_one_by_one() {
    check("qwen2", "in 2024", &["in", " ", "2", "0", "2", "4"]);
}

#[test]
fn gpt2_keeps_numbers_whole_and_knows_lower_case_contractions_only() {
    check("gpt-2", "I'll WE'RE 2024", &["I", "'ll", " WE", "'", "RE", " 2024"]);
}

#[test]
fn smollm_takes_digits_before_the_space_can_join_them() {
    check("smollm", "a 12", &["a", " ", "1", "2"]);
    check("starcoder", "x  y", &["x", " ", " y"]);
}

#[test]
fn falcon_takes_punctuation_first_and_digits_by_three() {
    check("falcon", "a, 12345!", &["a", ",", " ", "123", "45", "!"]);
}

#[test]
fn tekken_cuts_between_cases() {
    check("tekken", "HelloWorld ABCdef 12", &["Hello", "World", " ABCdef", " ", "1", "2"]);
}

#[test]
fn gpt_4o_keeps_contractions_with_the_word() {
    check("gpt-4o", "we're ok/\n1234", &["we're", " ok", "/\n", "123", "4"]);
}

#[test]
fn deepseek_llm_separates_lines_letters_and_ideographs() {
    check(
        "deepseek-llm",
        "Hi 你好, 12ab  \n",
        &["Hi", " ", "你好", ",", " ", "12", "ab", "  ", "\n"],
    );
}

#[test]
fn deepseek_coder_separates_digits() {
    // `=` is a symbol, not punctuation: it stays with what no pattern takes.
    check("deepseek-coder", "x = 12;", &["x", " = ", "1", "2", ";"]);
}

#[test]
fn a_file_without_a_name_gets_the_default() {
    let mut words = Vec::new();
    PreTokenizer::named(None).unwrap().split("a 1234", |word| words.push(word));
    assert_eq!(words, ["a", " ", "123", "4"]);
}

#[test]
fn an_unknown_name_is_told_with_the_known_ones() {
    let message = PreTokenizer::named(Some("kimi-k2")).unwrap_err().to_string();
    assert!(message.starts_with("tokenizer.ggml.pre is \"kimi-k2\", but only default, llama-bpe,"));
    assert!(message.ends_with("put the model's tokenizer.json beside it"));
}

#[test]
fn a_megabyte_of_spaces_is_split_in_linear_time() {
    let text = format!("{}x", " ".repeat(1 << 20));
    for (_, ours) in OURS.iter() {
        assert_eq!(cut(ours, &text).concat(), text);
    }
}
