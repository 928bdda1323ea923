//! Properties of real vocabularies, and other implementations on the same ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::path::Path;
use std::sync::LazyLock;

use ahash::AHashMap;
use m40_gguf::Gguf;
use m40_testkit::models;
use m40_tokenizer::{Detokenizer, Special, Tokenizer, TokenizerError};
use proptest::prelude::*;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;

const PLAIN: Special = Special { add: false, parse: false };

fn open(path: &Path) -> Gguf<Vec<u8>> {
    Gguf::parse(std::fs::read(path).unwrap()).unwrap()
}

static SMOLLM2_FILE: LazyLock<Gguf<Vec<u8>>> = LazyLock::new(|| open(&models::smollm2()));
static SMOLLM2: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_gguf(&SMOLLM2_FILE).unwrap());
static GEMMA3: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_gguf(&open(&models::gemma3())).unwrap());

/// SmolLM2's vocabulary in the `tokenizers` crate, with the pre-tokenizers its own file names.
static SMOLLM2_HF: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| {
    let strings = |key| SMOLLM2_FILE.get_array(key).unwrap().unwrap();
    let tokens = strings("tokenizer.ggml.tokens");
    let vocabulary: AHashMap<String, u32> =
        tokens.strings().unwrap().map(str::to_owned).zip(0..).collect();
    let merges = strings("tokenizer.ggml.merges");
    let merges = merges.strings().unwrap().map(|merge| {
        let (left, right) = merge.split_once(' ').unwrap();
        (left.to_owned(), right.to_owned())
    });
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges.collect::<Vec<_>>());
    let mut hf = tokenizers::Tokenizer::new(bpe.build().unwrap());
    let words = ByteLevel::new(false, true, true);
    hf.with_pre_tokenizer(Some(Sequence::new(vec![Digits::new(true).into(), words.into()])));
    hf.with_decoder(Some(words));
    hf
});

fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        prop::sample::select(vec![
            "The",
            " the",
            "  ",
            "\n",
            "\r\n\n",
            "\t",
            " 12",
            "345",
            "don't",
            "naïve",
            "日本語",
            "Привет",
            "🦀",
            "👩‍👧",
            "é",
            "e\u{301}",
            "<s>",
            "</s>",
            "<bos>",
            "<unused7>",
            "<|im_start|>",
            "\u{feff}",
            "\u{0}",
            "ﬁ",
            "…",
            "{\"a\": 1}",
            "fn main() {",
        ])
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
        "\\PC{0,8}",
    ];
    prop::collection::vec(part, 0..20).prop_map(|parts| parts.concat())
}

/// The bytes of a text that SmolLM2 has tokens for: rare control characters and unassigned planes
/// have none.
fn spellable(text: &str) -> String {
    let lacks = [0x04, 0x06, 0x13, 0x14, 0x16, 0x1d, 0xf1, 0xf2];
    text.chars().filter(|c| !c.to_string().bytes().any(|b| lacks.contains(&b))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn bpe_gives_every_text_back(text in text()) {
        let text = spellable(&text);
        for parse in [false, true] {
            let ids = SMOLLM2.encode(&text, Special { add: false, parse });
            prop_assert_eq!(SMOLLM2.decode(&ids, true), text.as_str());
        }
    }

    #[test]
    fn spm_gives_every_text_back(text in text()) {
        // U+2581 is how this vocabulary writes a space.
        let text = text.replace('\u{2581}', "_");
        for parse in [false, true] {
            let ids = GEMMA3.encode(&text, Special { add: false, parse });
            prop_assert_eq!(GEMMA3.decode(&ids, true), text.as_str());
        }
    }

    #[test]
    fn bpe_equals_the_tokenizers_crate(text in text()) {
        let theirs = SMOLLM2_HF.encode_fast(text.as_str(), false).unwrap();
        prop_assert_eq!(SMOLLM2.encode(&text, PLAIN), theirs.get_ids());
    }

    #[test]
    fn streamed_text_is_the_whole_text(
        ids in prop::collection::vec(prop_oneof![
            // Gemma's byte tokens, so that most characters are broken.
            238u32..494, 0u32..262_144, any::<u32>(),
        ], 0..40),
        skip in any::<bool>(),
    ) {
        for tokenizer in [&*SMOLLM2, &*GEMMA3] {
            let mut stream = Detokenizer::from_start(skip);
            let mut text: String = ids.iter().map(|&id| stream.push(tokenizer, id)).collect();
            text.push_str(&stream.finish());
            prop_assert_eq!(&text, &tokenizer.decode(&ids, !skip));
            let shown = |&&id: &&u32| !skip || !tokenizer.is_control(id);
            let bytes: Vec<u8> = ids.iter().filter(shown)
                .flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default().into_owned())
                .collect();
            prop_assert_eq!(&text, &String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn a_long_text_without_a_word_end_is_encoded() {
    // Quadratic work on this would not end.
    for tokenizer in [&*SMOLLM2, &*GEMMA3] {
        for unit in ["ab", " ", "日本", "="] {
            let text = unit.repeat(200_000);
            assert_eq!(tokenizer.decode(&tokenizer.encode(&text, PLAIN), true), text);
        }
    }
}

#[test]
fn a_tokenizer_json_gives_what_the_metadata_gives() {
    let json = SMOLLM2_HF.to_string(false).unwrap();
    let tokenizer = Tokenizer::from_json(json.as_bytes(), &SMOLLM2_FILE).unwrap();
    assert_eq!(tokenizer.eos(), SMOLLM2.eos());
    for text in
        ["Hello, world!", "<|im_start|>user\nhi 123<|im_end|>\n", "  naïve 日本語 🦀\t\n", ""]
    {
        for (add, parse) in [(false, false), (false, true), (true, true)] {
            let special = Special { add, parse };
            let ids = tokenizer.encode(text, special);
            assert_eq!(ids, SMOLLM2.encode(text, special), "{text:?}");
            assert_eq!(tokenizer.decode(&ids, true), text);
        }
    }
}

#[test]
fn a_model_without_a_vocabulary_takes_the_tokenizer_jsons() {
    let json = SMOLLM2_HF.to_string(false).unwrap();
    let bare = Gguf::parse(m40_testkit::gguf::GgufBuilder::new().build()).unwrap();
    let tokenizer = Tokenizer::from_json(json.as_bytes(), &bare).unwrap();
    assert_eq!(tokenizer.vocab_size(), 49_152);
    let ids = tokenizer.encode("naïve 日本語", PLAIN);
    assert_eq!(ids, SMOLLM2.encode("naïve 日本語", PLAIN));
    assert_eq!(tokenizer.decode(&ids, false), "naïve 日本語");
}

#[test]
fn a_tokenizer_json_of_another_model_is_refused() {
    let json = SMOLLM2_HF.to_string(false).unwrap();
    let gemma = open(&models::gemma3());
    let error = Tokenizer::from_json(json.as_bytes(), &gemma).unwrap_err();
    assert!(matches!(error, TokenizerError::JsonMismatch { .. }), "{error}");
    let error = Tokenizer::from_json(b"{\"model\": 1}", &gemma).unwrap_err();
    assert!(error.to_string().starts_with("tokenizer.json cannot be used: "), "{error}");
}
