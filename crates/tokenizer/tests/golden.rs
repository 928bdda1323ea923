//! Real vocabularies against what llama.cpp makes of the same texts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use m40_gguf::Gguf;
use m40_testkit::models;
use m40_tokenizer::{ChatTemplate, Detokenizer, Special, TemplateInput, Tokenizer};
use serde_json::Value;

struct Model {
    golden: Value,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Model {
    fn smollm2() -> Self {
        let golden = include_str!("../../../tests/data/golden/smollm2-135m-instruct-q4_1.json");
        Self::open(&models::smollm2(), golden)
    }

    fn gemma3() -> Self {
        let golden = include_str!("../../../tests/data/golden/gemma3-270m-q4_k_m.json");
        Self::open(&models::gemma3(), golden)
    }

    fn open(path: &std::path::Path, golden: &str) -> Self {
        let gguf = open(path);
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let template = ChatTemplate::from_gguf(&gguf, &tokenizer).unwrap();
        Self { golden: serde_json::from_str(golden).unwrap(), tokenizer, template }
    }

    fn cases(&self, key: &str) -> &[Value] {
        let cases = self.golden[key].as_array().unwrap();
        assert!(!cases.is_empty());
        cases
    }
}

fn open(path: &std::path::Path) -> Gguf<Vec<u8>> {
    Gguf::parse(std::fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

const LITERAL: Special = Special { add: true, parse: false };
const PARSED: Special = Special { add: false, parse: true };
const PROMPT: Special = Special { add: true, parse: true };

fn tokenizes_every_golden_text(model: &Model) {
    for case in model.cases("tokenize") {
        let text = case["text"].as_str().unwrap();
        let parsed = model.tokenizer.encode(text, PARSED);
        assert_eq!(parsed, ids(&case["ids_parse_special"]), "{text:?} with special tokens");
        let literal = model.tokenizer.encode(text, LITERAL);
        assert_eq!(literal, ids(&case["ids_add_special_literal"]), "{text:?} as it stands");
        assert_eq!(model.tokenizer.decode(&parsed, true), case["detokenized"].as_str().unwrap());
    }
    for case in model.cases("greedy") {
        let prompt = case["prompt"].as_str().unwrap();
        assert_eq!(model.tokenizer.encode(prompt, PROMPT), ids(&case["prompt_ids"]), "{prompt:?}");
        assert_eq!(model.tokenizer.encode_prompt(prompt), ids(&case["prompt_ids"]), "{prompt:?}");
    }
}

fn streams_every_golden_answer(model: &Model) {
    for case in model.cases("greedy") {
        let mut stream = Detokenizer::new(true);
        let mut text = String::new();
        for id in ids(&case["ids"]) {
            text.push_str(&stream.push(&model.tokenizer, id));
        }
        text.push_str(&stream.finish());
        assert_eq!(text, case["text"].as_str().unwrap());
    }
}

fn renders_every_golden_prompt(model: &Model) {
    for case in model.cases("template") {
        let prompt = model.template.render(&TemplateInput::new(&case["messages"])).unwrap();
        assert_eq!(prompt, case["prompt"].as_str().unwrap());
    }
}

#[test]
fn smollm2_is_llama_cpps() {
    let model = Model::smollm2();
    tokenizes_every_golden_text(&model);
    streams_every_golden_answer(&model);
    renders_every_golden_prompt(&model);
    let tokenizer = &model.tokenizer;
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.eot()), (Some(1), Some(2), Some(2)));
    assert_eq!(tokenizer.vocab_size(), 49_152);
    assert!(!tokenizer.adds_bos());
    assert!(tokenizer.is_control(1) && !tokenizer.is_control(42));
    // <|endoftext|>, <|im_end|> and a file boundary, but not the start of a turn.
    let ends = [0, 1, 2, 4].map(|id| tokenizer.is_end_of_generation(id));
    assert_eq!(ends, [true, false, true, true]);
}

#[test]
fn gemma3_is_llama_cpps() {
    let model = Model::gemma3();
    tokenizes_every_golden_text(&model);
    streams_every_golden_answer(&model);
    renders_every_golden_prompt(&model);
    let tokenizer = &model.tokenizer;
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.eot()), (Some(2), Some(1), Some(106)));
    assert_eq!(tokenizer.vocab_size(), 262_144);
    assert!(tokenizer.adds_bos());
    // <eos>, <start_of_turn>, <end_of_turn> and </s>, which the file marks as text.
    let ends = [1, 105, 106, 212].map(|id| tokenizer.is_end_of_generation(id));
    assert_eq!(ends, [true, false, true, true]);
}

#[test]
fn token_bytes_are_the_tokens_text() {
    let model = Model::smollm2();
    assert_eq!(model.tokenizer.token_bytes(504).unwrap().as_ref(), b"The");
    assert_eq!(model.tokenizer.token_bytes(1).unwrap().as_ref(), b"<|im_start|>");
    assert_eq!(model.tokenizer.token_bytes(49_152), None);
    let model = Model::gemma3();
    assert_eq!(model.tokenizer.token_bytes(506).unwrap().as_ref(), b" the");
    assert_eq!(model.tokenizer.token_bytes(238).unwrap().as_ref(), b"\0");
    assert_eq!(model.tokenizer.token_bytes(138).unwrap().as_ref(), b"  ");
}
