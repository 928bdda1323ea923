//! Small vocabularies made for one rule each, and broken ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use m40_gguf::{Gguf, ValueType};
use m40_testkit::gguf::{GgufBuilder, Meta};
use m40_tokenizer::{Detokenizer, Special, Tokenizer, TokenizerError};
use proptest::prelude::*;

const PLAIN: Special = Special { add: false, parse: false };
const PARSED: Special = Special { add: false, parse: true };
const ADDED: Special = Special { add: true, parse: false };

fn load(builder: &GgufBuilder) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_gguf(&Gguf::parse(builder.build()).unwrap())
}

/// Tokens with their kinds: `n`ormal, `u`nknown, `c`ontrol, user-`d`efined, `x` unused, `b`yte.
fn tokens(builder: GgufBuilder, tokens: &[(&str, char)]) -> GgufBuilder {
    let texts: Vec<&str> = tokens.iter().map(|(text, _)| *text).collect();
    let kinds: Vec<i32> =
        tokens.iter().map(|(_, kind)| "nucdxb".find(*kind).unwrap() as i32 + 1).collect();
    builder.meta("tokenizer.ggml.tokens", texts).meta("tokenizer.ggml.token_type", kinds)
}

fn spm(vocabulary: &[(&str, char, f32)]) -> GgufBuilder {
    let kinds: Vec<(&str, char)> =
        vocabulary.iter().map(|(text, kind, _)| (*text, *kind)).collect();
    let scores: Vec<f32> = vocabulary.iter().map(|(.., score)| *score).collect();
    tokens(GgufBuilder::new().meta("tokenizer.ggml.model", "llama"), &kinds)
        .meta("tokenizer.ggml.scores", scores)
}

/// Llama 2's layout: unknown, begin, end, bytes, then words.
fn llama2() -> GgufBuilder {
    spm(&[
        ("<unk>", 'u', 0.0),
        ("<s>", 'c', 0.0),
        ("</s>", 'c', 0.0),
        ("<0xE2>", 'b', 0.0),
        ("<0x82>", 'b', 0.0),
        ("<0xAC>", 'b', 0.0),
        ("▁", 'n', -9.0),
        ("a", 'n', -9.0),
        ("b", 'n', -9.0),
        ("▁a", 'n', -1.0),
        ("ab", 'n', -2.0),
        ("▁ab", 'n', -3.0),
        ("[X]", 'd', 0.0),
    ])
}

#[test]
fn spm_puts_a_space_before_text_and_takes_it_away_again() {
    let tokenizer = load(&llama2()).unwrap();
    assert_eq!(tokenizer.encode("ab", ADDED), [1, 11]);
    assert_eq!(tokenizer.decode(&[1, 11], false), "ab");
    assert_eq!(tokenizer.decode(&[1, 11], true), "<s> ab");
    // After a special token too; text that already starts with a space gets another.
    assert_eq!(tokenizer.encode("ab</s>a", PARSED), [11, 2, 9]);
    assert_eq!(tokenizer.encode(" a", PLAIN), [6, 9]);
    assert_eq!(tokenizer.decode(&[6, 9], false), " a");
    // Text that goes on keeps its space.
    assert_eq!(Detokenizer::new(true).push(&tokenizer, 11), " ab");
    assert_eq!(Detokenizer::from_start(true).push(&tokenizer, 11), "ab");
    let unprefixed = load(&llama2().meta("tokenizer.ggml.add_space_prefix", false)).unwrap();
    assert_eq!(unprefixed.encode("ab", PLAIN), [10]);
    assert_eq!(unprefixed.decode(&[11], false), " ab");
}

#[test]
fn control_tokens_that_are_kept_have_text() {
    let tokenizer = load(&llama2()).unwrap();
    let mut stream = Detokenizer::new(true).keeping(&[2]);
    let pieces: Vec<String> = [9, 1, 2].map(|id| stream.push(&tokenizer, id)).into();
    assert_eq!(pieces, [" a", "", "</s>"]);
}

#[test]
fn spm_merges_the_best_score_first() {
    // "▁a" (-1) goes before "ab" (-2), and then takes the b as well.
    let tokenizer = load(&llama2()).unwrap();
    assert_eq!(tokenizer.encode("abab", PLAIN), [11, 10]);
}

#[test]
fn spm_falls_back_to_bytes_and_then_to_unknown() {
    let tokenizer = load(&llama2()).unwrap();
    assert_eq!(tokenizer.encode("a€", PLAIN), [9, 3, 4, 5]);
    assert_eq!(tokenizer.encode("aé", PLAIN), [9, 0, 0]);
    let mut stream = Detokenizer::new(true);
    let pieces: Vec<String> = [9, 3, 4, 5].map(|id| stream.push(&tokenizer, id)).into();
    assert_eq!(pieces, [" a", "", "", "€"]);
    assert_eq!(stream.finish(), "");
    // An unfinished character is one replacement, wherever it stops.
    assert_eq!(tokenizer.decode(&[3, 4, 9], false), "\u{fffd} a");
    assert_eq!(tokenizer.decode(&[9, 3, 4], false), "a\u{fffd}");
}

#[test]
fn user_defined_tokens_are_found_always_and_control_tokens_when_asked() {
    let tokenizer = load(&llama2()).unwrap();
    assert_eq!(tokenizer.encode("[X]", PLAIN), [12]);
    assert_eq!(tokenizer.encode("a<s>", PARSED), [9, 1]);
    assert!(!tokenizer.encode("a<s>", PLAIN).contains(&1));
}

#[test]
fn bos_and_eos_are_added_as_the_file_says() {
    let check = |builder: GgufBuilder, expected: &[u32]| {
        let tokenizer = load(&builder).unwrap();
        assert_eq!(tokenizer.encode("a", ADDED), expected);
        assert_eq!(tokenizer.encode("a", PLAIN), [9]);
    };
    check(llama2(), &[1, 9]);
    check(llama2().meta("tokenizer.ggml.add_bos_token", false), &[9]);
    check(llama2().meta("tokenizer.ggml.add_eos_token", true), &[1, 9, 2]);
    let swapped = llama2()
        .meta("tokenizer.ggml.bos_token_id", 2u32)
        .meta("tokenizer.ggml.eos_token_id", 1u32)
        .meta("tokenizer.ggml.add_eos_token", true);
    check(swapped, &[2, 9, 1]);
}

#[test]
fn a_prompt_starts_with_one_bos_and_ends_open() {
    let tokenizer = load(&llama2().meta("tokenizer.ggml.add_eos_token", true)).unwrap();
    assert_eq!(tokenizer.encode_prompt("a"), [1, 9]);
    assert_eq!(tokenizer.encode_prompt("<s>a"), [1, 9]);
    assert_eq!(tokenizer.encode_prompt(""), [1]);
    let without = load(&llama2().meta("tokenizer.ggml.add_bos_token", false)).unwrap();
    assert_eq!(without.encode_prompt("a"), [9]);
}

#[test]
fn phi_3_special_tokens_take_the_white_space_after_them() {
    let named = llama2().meta("general.name", "Phi-3 Mini");
    let tokenizer = load(&named).unwrap();
    assert_eq!(tokenizer.encode("</s> \n a", PARSED), [2, 9]);
    // `<s>` is an exception.
    assert_eq!(tokenizer.encode("<s> a", PARSED), [1, 6, 9]);
    assert_eq!(load(&llama2()).unwrap().encode("</s> a", PARSED), [2, 6, 9]);
}

#[test]
fn the_longest_special_token_wins_at_the_leftmost_place() {
    let vocabulary = [
        ("<unk>", 'u', 0.0),
        ("<a>", 'c', 0.0),
        ("<a><b>", 'c', 0.0),
        ("<b><c>", 'c', 0.0),
        ("<c>", 'c', 0.0),
    ];
    let tokenizer = load(&spm(&vocabulary).meta("tokenizer.ggml.add_bos_token", false)).unwrap();
    assert_eq!(tokenizer.encode("<a><b><c><a>", PARSED), [2, 4, 1]);
}

#[test]
fn texts_that_end_a_turn_end_a_generation_whatever_their_kind() {
    let builder = spm(&[
        ("<unk>", 'u', 0.0),
        ("<s>", 'c', 0.0),
        ("</s>", 'd', 0.0),
        ("<|im_end|>", 'n', 0.0),
        ("<|im_start|>", 'c', 0.0),
        ("<|eom_id|>", 'd', 0.0),
    ]);
    let tokenizer = load(&builder).unwrap();
    let ends: Vec<u32> = (0..6).filter(|&id| tokenizer.is_end_of_generation(id)).collect();
    assert_eq!(ends, [2, 3, 5]);
    assert_eq!(tokenizer.ends_of_generation(), ends);
    assert_eq!(tokenizer.eot(), Some(3));
    assert!(tokenizer.is_control(2) && tokenizer.is_control(3) && tokenizer.is_control(5));
    assert_eq!(tokenizer.decode(&[3], false), "");
    let told = load(&builder.meta("tokenizer.ggml.eot_token_id", 4u32)).unwrap();
    assert_eq!(told.eot(), Some(4));
    assert!(told.is_end_of_generation(4));
}

#[test]
fn harmony_messages_are_text_and_do_not_end_the_answer() {
    let builder = spm(&[
        ("<|end|>", 'c', 0.0),
        ("<|return|>", 'c', 0.0),
        ("<|call|>", 'c', 0.0),
        ("<|channel|>", 'c', 0.0),
    ]);
    let plain = builder
        .meta("tokenizer.ggml.add_bos_token", false)
        .meta("tokenizer.ggml.eos_token_id", 1u32);
    let tokenizer = load(&plain).unwrap();
    let ends: Vec<u32> = (0..4).filter(|&id| tokenizer.is_end_of_generation(id)).collect();
    // The file names no end of turn, so `<|end|>` was found as one: harmony overrules it.
    assert_eq!(ends, [1, 2]);
    assert_eq!(tokenizer.decode(&[3, 0], false), "<|channel|><|end|>");
}

fn bert() -> GgufBuilder {
    tokens(
        GgufBuilder::new().meta("tokenizer.ggml.model", "bert"),
        &[
            ("[PAD]", 'x'),
            ("[UNK]", 'u'),
            ("[CLS]", 'c'),
            ("[SEP]", 'c'),
            ("▁hello", 'n'),
            ("▁un", 'n'),
            ("known", 'n'),
            ("▁,", 'n'),
            ("▁世", 'n'),
        ],
    )
    .meta("tokenizer.ggml.bos_token_id", 2u32)
    .meta("tokenizer.ggml.seperator_token_id", 3u32)
    .meta("tokenizer.ggml.unknown_token_id", 1u32)
}

#[test]
fn bert_normalises_and_splits_words_into_pieces() {
    let tokenizer = load(&bert()).unwrap();
    assert_eq!(tokenizer.encode("HÉLLO,  unknown 世 zzz", ADDED), [2, 4, 7, 5, 6, 8, 1, 3]);
    assert_eq!(tokenizer.suffix(), Some(3));
    assert_eq!(tokenizer.decode(&[2, 4, 5, 6, 3], false), "hello unknown");
    assert_eq!(tokenizer.encode("hello[SEP]", PARSED), [4, 3]);
    assert_eq!(tokenizer.encode("[SEP]", PLAIN), [1, 1, 1]);
    let cased = load(&bert().meta("tokenizer.ggml.normalizer.lowercase", false)).unwrap();
    assert_eq!(cased.encode("Hello hello", PLAIN), [1, 4]);
}

#[test]
fn a_bert_tokenizer_json_fits_its_gguf() {
    let json = r#"{"version": "1.0", "added_tokens": [
            {"id": 2, "content": "[CLS]", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true}],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "\u0023\u0023", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "\u0023\u0023",
                  "max_input_chars_per_word": 100,
                  "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "hello": 4, "un": 5,
                            "\u0023\u0023known": 6, ",": 7, "世": 8}}}"#;
    let gguf = Gguf::parse(bert().build()).unwrap();
    let tokenizer = Tokenizer::from_json(json.as_bytes(), &gguf).unwrap();
    assert_eq!(tokenizer.encode("Hello, unknown", ADDED), [2, 4, 7, 5, 6, 3]);
    let other = Gguf::parse(gpt2().build()).unwrap();
    let error = Tokenizer::from_json(json.as_bytes(), &other).unwrap_err();
    assert!(error.to_string().starts_with("tokenizer.json does not belong to this model: token "));
}

fn gpt2() -> GgufBuilder {
    tokens(
        GgufBuilder::new().meta("tokenizer.ggml.model", "gpt2"),
        &[("a", 'n'), ("b", 'n'), ("Ġ", 'n'), ("ab", 'n'), ("Ġab", 'n'), ("<|x|>", 'c')],
    )
    .meta("tokenizer.ggml.pre", "gpt-2")
    .meta("tokenizer.ggml.merges", vec!["a b", "Ġ ab"])
}

#[test]
fn bpe_merges_by_rank_and_leaves_out_bytes_without_a_token() {
    let tokenizer = load(&gpt2()).unwrap();
    assert_eq!(tokenizer.encode("ab abz a<|x|>", PARSED), [3, 4, 2, 0, 5]);
    assert_eq!(tokenizer.decode(&[3, 4, 2, 0, 5], false), "ab ab a");
    assert_eq!(tokenizer.decode(&[4], false), " ab");
}

#[test]
fn a_word_that_is_a_token_is_taken_whole_where_the_model_says_so() {
    let unreachable = gpt2().meta("tokenizer.ggml.merges", Vec::<&str>::new());
    assert_eq!(load(&unreachable).unwrap().encode(" ab", PLAIN), [2, 0, 1]);
    let llama3 = unreachable
        .meta("tokenizer.ggml.pre", "llama-bpe")
        .meta("tokenizer.ggml.bos_token_id", 5u32);
    let tokenizer = load(&llama3).unwrap();
    assert_eq!(tokenizer.encode(" ab", PLAIN), [4]);
    assert!(tokenizer.adds_bos(), "llama-bpe adds one when the file does not say");
}

#[test]
fn merges_may_join_a_space_itself() {
    let builder = tokens(
        GgufBuilder::new().meta("tokenizer.ggml.model", "gpt2"),
        &[(" ", 'n'), ("x", 'n'), (" x", 'n')],
    )
    .meta("tokenizer.ggml.merges", vec!["  x"]);
    assert!(load(&builder).is_ok());
}

#[test]
fn an_unusable_tokenizer_json_is_an_error() {
    let bare = Gguf::parse(GgufBuilder::new().build()).unwrap();
    let normaliser = |json: &str| SMALL_JSON.replace(r#"{"type":"NFC"}"#, json);
    let cases = [
        String::new(),
        "null".to_owned(),
        SMALL_JSON[..SMALL_JSON.len() - 2].to_owned(),
        normaliser(r#"{"type":"Precompiled","precompiled_charsmap":"AAAA"}"#),
        normaliser(r#"{"type":"Precompiled","precompiled_charsmap":"/////w=="}"#),
        normaliser(r#"{"type":"\ud800"}"#),
        normaliser(r#"{"type":"Nothing"}"#),
        "[".repeat(100_000),
    ];
    for json in cases {
        let error = Tokenizer::from_json(json.as_bytes(), &bare).unwrap_err();
        assert!(matches!(error, TokenizerError::Json { .. }), "{error}");
    }
    assert!(Tokenizer::from_json(SMALL_JSON.as_bytes(), &bare).is_ok());
}

#[test]
fn unusable_metadata_is_told_exactly() {
    let check = |builder: GgufBuilder, message: &str| {
        assert_eq!(load(&builder).unwrap_err().to_string(), message);
    };
    check(
        GgufBuilder::new(),
        "the model has no tokenizer.ggml.model, which its text tokenizer needs; convert it again",
    );
    check(
        GgufBuilder::new().meta("tokenizer.ggml.model", "rwkv"),
        "tokenizer.ggml.model is \"rwkv\", but only gpt2, llama and bert are supported",
    );
    check(
        gpt2().without_meta("tokenizer.ggml.tokens"),
        "the model has no tokenizer.ggml.tokens, which its gpt2 tokenizer needs; convert it again",
    );
    check(
        gpt2().without_meta("tokenizer.ggml.merges"),
        "the model has no tokenizer.ggml.merges, which its gpt2 tokenizer needs; convert it again",
    );
    check(
        llama2().without_meta("tokenizer.ggml.scores"),
        "the model has no tokenizer.ggml.scores, which its llama tokenizer needs; convert it again",
    );
    check(
        gpt2().meta("tokenizer.ggml.tokens", Meta::array::<&str>(ValueType::Str, [])),
        "the vocabulary has 0 tokens, but must have 1 to 4194304",
    );
    check(
        gpt2().meta("tokenizer.ggml.tokens", vec!["a", "b\n", "b\n"]),
        "tokens 1 and 2 have the same text \"b\\n\"",
    );
    check(
        gpt2().meta("tokenizer.ggml.token_type", vec![1i32]),
        "tokenizer.ggml.token_type has 1 entries, but there are 6 tokens",
    );
    check(
        llama2().meta("tokenizer.ggml.scores", vec![0.0f32; 3]),
        "tokenizer.ggml.scores has 3 entries, but there are 13 tokens",
    );
    check(
        gpt2().meta("tokenizer.ggml.merges", vec!["a b", "ab"]),
        "merge 1 is \"ab\", not two token texts with a space between",
    );
    check(
        gpt2().meta("tokenizer.ggml.merges", vec!["a a"]),
        "merge 0 (\"a a\") needs the token \"aa\", which does not exist",
    );
    check(
        llama2().meta("tokenizer.ggml.eos_token_id", 13u32),
        "tokenizer.ggml.eos_token_id is 13, but the vocabulary has 13 tokens",
    );
    check(
        gpt2().meta("tokenizer.ggml.add_bos_token", true),
        "tokenizer.ggml.add_bos_token is true, but the model does not say which token that is \
         (tokenizer.ggml.bos_token_id)",
    );
    check(
        gpt2().meta("tokenizer.ggml.tokens", vec!["a", &"b".repeat(70_000)]),
        "token 1 makes the vocabulary too large: its text is over 65536 bytes",
    );
    let error = load(&gpt2().meta("tokenizer.ggml.tokens", vec![1u32])).unwrap_err();
    assert!(matches!(error, TokenizerError::Metadata(_)), "{error}");
}

/// llama.cpp's loop, the slow way: look at every pair again after every merge.
fn plain_merges(text: &str, scores: &[(String, f32)]) -> Vec<u32> {
    let find = |text: &str| scores.iter().position(|(token, _)| token == text);
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let best = (1..parts.len())
            .filter_map(|right| {
                let joined = parts[right - 1].clone() + &parts[right];
                Some((right, scores[find(&joined)?].1))
            })
            .reduce(|best, next| if next.1 > best.1 { next } else { best });
        let Some((right, _)) = best else { break };
        let joined = parts.remove(right);
        parts[right - 1].push_str(&joined);
    }
    parts.iter().map(|part| find(part).unwrap() as u32).collect()
}

const SMALL_JSON: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[
{"id":5,"content":"<|x|>","single_word":false,"lstrip":false,"rstrip":true,"normalized":false,"special":true}],
"normalizer":{"type":"NFC"},"pre_tokenizer":{"type":"Sequence","pretokenizers":[
{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}| ?\\p{L}+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},
{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]},
"post_processor":null,"decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
"model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
"vocab":{"a":0,"b":1,"Ġ":2,"ab":3,"Ġab":4},"merges":["a b","Ġ ab"]}}"#;

fn any_meta() -> impl Strategy<Value = Meta> {
    let text = prop_oneof![
        Just(String::new()),
        prop::sample::select(vec![
            "a", "b", "ab", "Ġ", "▁", "<s>", "</s>", "<0x41>", "<0xZZ>", "[X]"
        ])
        .prop_map(str::to_owned),
        "\\PC{0,4}",
    ];
    let merge = ("\\PC{0,3}", "\\PC{0,3}").prop_map(|(a, b)| format!("{a} {b}"));
    prop_oneof![
        4 => prop::collection::vec(text, 0..12).prop_map(Meta::from),
        1 => prop::collection::vec(merge, 0..6).prop_map(Meta::from),
        2 => prop::collection::vec(any::<i32>(), 0..14).prop_map(Meta::from),
        2 => prop::collection::vec(-1i32..8, 0..14).prop_map(Meta::from),
        2 => prop::collection::vec(any::<f32>(), 0..14).prop_map(Meta::from),
        1 => any::<u32>().prop_map(Meta::from),
        2 => (0u32..14).prop_map(Meta::from),
        1 => any::<bool>().prop_map(Meta::from),
        1 => "\\PC{0,8}".prop_map(Meta::from),
        1 => prop::sample::select(vec!["gpt2", "llama", "bert", "llama-bpe", "default"])
            .prop_map(Meta::from),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn spm_equals_the_plain_loop(
        merged in prop::collection::vec(("[abc▁]{2,4}", -6i32..0), 0..14), text in "[abc ]{0,24}"
    ) {
        let mut scores: Vec<(String, f32)> =
            ["a", "b", "c", "▁"].map(|text| (text.to_owned(), -9.0)).into();
        for (token, score) in merged {
            if scores.iter().all(|(known, _)| *known != token) {
                scores.push((token, score as f32));
            }
        }
        let vocabulary: Vec<_> =
            scores.iter().map(|(text, score)| (text.as_str(), 'n', *score)).collect();
        let builder = spm(&vocabulary)
            .meta("tokenizer.ggml.add_space_prefix", false)
            .meta("tokenizer.ggml.add_bos_token", false);
        let tokenizer = load(&builder).unwrap();
        let expected = plain_merges(&text.replace(' ', "▁"), &scores);
        prop_assert_eq!(tokenizer.encode(&text, PLAIN), expected);
    }

    #[test]
    fn a_damaged_tokenizer_json_gives_a_tokenizer_or_an_error(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        text in "\\PC{0,20}",
    ) {
        let mut json = SMALL_JSON.as_bytes().to_vec();
        for (place, byte) in edits {
            let at = place.index(json.len());
            json[at] = if byte.is_ascii_graphic() { byte } else { b'0' + byte % 10 };
        }
        let bare = Gguf::parse(GgufBuilder::new().build()).unwrap();
        if let Ok(tokenizer) = Tokenizer::from_json(&json, &bare) {
            let ids = tokenizer.encode(&text, PARSED);
            tokenizer.decode(&ids, true);
        }
    }

    #[test]
    fn any_metadata_gives_a_tokenizer_or_an_error(
        model in prop::sample::select(vec!["gpt2", "llama", "bert"]),
        values in prop::collection::vec(any_meta(), 10),
        mask in 0u32..1024, text in "\\PC{0,20}", ids in prop::collection::vec(any::<u32>(), 0..5),
    ) {
        let keys = [
            "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id",
            "unknown_token_id", "seperator_token_id", "add_bos_token", "pre",
        ];
        // Valid but for the entries that the mask picks.
        let base = match model { "gpt2" => gpt2(), "llama" => llama2(), _ => bert() };
        let builder = keys.iter().zip(values).enumerate().fold(base, |builder, (i, (key, value))| {
            if mask >> i & 1 == 1 && mask.count_ones() < 6 {
                builder.meta(&format!("tokenizer.ggml.{key}"), value)
            } else {
                builder
            }
        });
        if let Ok(tokenizer) = load(&builder) {
            for special in [PLAIN, PARSED, ADDED] {
                let ids = tokenizer.encode(&text, special);
                prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                tokenizer.decode(&ids, true);
            }
            tokenizer.decode(&ids, true);
        }
    }
}
