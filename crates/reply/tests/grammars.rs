//! What the grammar of a format lets by is what its reader takes for calls.

use std::sync::Arc;

use m40_gguf::{Gguf, ValueType};
use m40_grammar::{Constraint, Grammar, Vocabulary};
use m40_reply::{Format, Piece, Tool, ToolChoice, Tools};
use m40_testkit::gguf::{GgufBuilder, Meta};
use m40_tokenizer::{Detokenizer, Special, Tokenizer};
use serde_json::{Value, json};

/// What a format is known from, the end of a prompt after which it calls at once, and two calls.
const FORMATS: [(&str, &str, &str); 8] = [
    (
        "<tool_call> </think>",
        "<think>\n\n</think>\n\n",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 3}}\n</tool_call>\n\
         <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
    ),
    (
        "plain",
        "",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 3}}\n</tool_call>\n\
         <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
    ),
    (
        "<|python_tag|>",
        "",
        "{\"name\": \"weather\", \"parameters\": {\"city\": \"Ulm\", \"days\": 3}}",
    ),
    (
        "<start_of_turn>",
        "",
        "{\"name\": \"weather\", \"parameters\": {\"city\": \"Ulm\", \"days\": 3}}",
    ),
    (
        "[TOOL_CALLS]",
        "",
        "[TOOL_CALLS] [{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 3}}, \
         {\"name\": \"now\", \"arguments\": {}}]",
    ),
    (
        "[TOOL_CALLS] [ARGS] [/THINK]",
        "[/THINK]",
        "[TOOL_CALLS]weather[ARGS]{\"city\": \"Ulm\", \"days\": 3}[TOOL_CALLS]now[ARGS]{}",
    ),
    (
        "<｜tool▁call▁begin｜> ```json </think>",
        "</think>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n\
         {\"city\": \"Ulm\", \"days\": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n\
         ```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    (
        "<｜tool▁call▁begin｜> </think>",
        "</think>",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Ulm\", \"days\": 3}\
         <｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
];

const HARMONY: &str = "<|channel|><|message|>";

fn tools() -> Tools {
    let tool = |name: &str, parameters| Tool {
        name: name.into(),
        description: None,
        parameters,
        strict: true,
    };
    let weather = json!({
        "type": "object",
        "properties": {
            "city": {"enum": ["Ulm", "Köln"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
        },
        "required": ["city", "days"],
    });
    let now = json!({"type": "object", "properties": {}});
    Tools::new(vec![tool("weather", weather), tool("now", now)]).expect("the tools are legal")
}

/// A vocabulary of all bytes, in which some texts are control tokens.
struct Model {
    tokenizer: Arc<Tokenizer>,
    vocabulary: Vocabulary,
}

impl Model {
    fn new(controls: &[&str]) -> Self {
        // Byte-level BPE spells the bytes that do not print by characters from 256 on.
        let prints = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let mut other = 256;
        let byte = |byte: u32| {
            other += u32::from(!prints(byte));
            char::from_u32(if prints(byte) { byte } else { other - 1 }).expect("no surrogate")
        };
        let mut tokens: Vec<String> = (0..256).map(byte).map(String::from).collect();
        tokens.push("<|im_end|>".to_owned());
        tokens.extend(controls.iter().map(|text| (*text).to_owned()));
        let types = (0..tokens.len()).map(|id| if id < 256 { 1 } else { 3_i32 });
        let file = GgufBuilder::new()
            .meta("tokenizer.ggml.model", "gpt2")
            .meta("tokenizer.ggml.pre", "gpt-2")
            .meta("tokenizer.ggml.token_type", Meta::array(ValueType::I32, types))
            .meta("tokenizer.ggml.tokens", Meta::array(ValueType::Str, tokens))
            .meta("tokenizer.ggml.merges", Meta::array(ValueType::Str, Vec::<String>::new()))
            .meta("tokenizer.ggml.eos_token_id", 256_u32);
        let file = Gguf::parse(file.build()).expect("the file is whole");
        let tokenizer = Arc::new(Tokenizer::from_gguf(&file).expect("it has a vocabulary"));
        let vocabulary = Vocabulary::new(Arc::clone(&tokenizer)).expect("an ordinary one");
        Self { tokenizer, vocabulary }
    }

    fn control(&self, text: &str) -> Option<u32> {
        self.tokenizer.token_id(text).filter(|id| self.tokenizer.is_control(*id))
    }

    fn compile(
        &self,
        format: &Format,
        choice: &ToolChoice,
        parallel: bool,
        tail: &str,
    ) -> Constraint {
        let is_control = |text: &str| self.control(text).is_some();
        let lark = format.grammar(&tools(), choice, parallel, tail, &is_control);
        let lark = lark.expect("a call must come");
        let compiled = self.vocabulary.compile(&Grammar::Lark(lark.clone()));
        compiled.unwrap_or_else(|error| panic!("{error}: {lark}"))
    }

    /// How many tokens of a text may come, and whether the end may follow.
    fn takes(&self, constraint: &Constraint, text: &str) -> (bool, bool) {
        let mut progress = constraint.start();
        for token in self.tokenizer.encode(text, Special { add: false, parse: true }) {
            let mut logits = vec![0.0; self.tokenizer.vocab_size()];
            progress.mask(&mut logits).expect("there is a way on");
            if logits[token as usize] != 0.0 {
                return (false, false);
            }
            progress.accept(token).expect("it may come");
        }
        let mut logits = vec![0.0; self.tokenizer.vocab_size()];
        progress.mask(&mut logits).expect("there is a way on");
        (true, logits[256] == 0.0)
    }

    /// An answer of tokens that are drawn from those that may come.
    fn draw(&self, constraint: &Constraint, format: &Format, rng: &mut fastrand::Rng) -> String {
        let marks: Vec<u32> =
            format.markers().into_iter().filter_map(|m| self.control(m)).collect();
        let mut stream = Detokenizer::new(true).keeping(&marks);
        let mut progress = constraint.start();
        let mut text = String::new();
        loop {
            let mut logits = vec![0.0; self.tokenizer.vocab_size()];
            progress.mask(&mut logits).expect("there is a way on");
            let allowed: Vec<u32> =
                (0..).zip(logits).filter(|(_, l)| *l == 0.0).map(|(t, _)| t).collect();
            let token = allowed[rng.usize(..allowed.len())];
            if token == 256 {
                return text + &stream.finish();
            }
            progress.accept(token).expect("it may come");
            text += &stream.push(&self.tokenizer, token);
        }
    }
}

/// The calls of an answer; all else that it says fails the test.
fn calls(format: &Format, tail: &str, answer: &str) -> Vec<(String, Value)> {
    let mut reader = format.reader(&tools(), tail);
    let mut pieces = reader.push(answer);
    pieces.extend(reader.finish());
    let (mut calls, mut name, mut text) = (vec![], String::new(), String::new());
    for piece in pieces {
        match piece {
            Piece::Call { name: next } => name = next,
            Piece::Arguments(more) => text += &more,
            Piece::CallEnd => {
                let arguments = serde_json::from_str(&std::mem::take(&mut text));
                calls.push((std::mem::take(&mut name), arguments.expect("JSON")));
            }
            Piece::Content(_) | Piece::Reasoning(_) => panic!("{piece:?} in {answer}"),
        }
    }
    assert!(name.is_empty(), "a call does not end: {answer}");
    calls
}

/// Without control tokens, and with all marks being some.
fn models(format: &Format) -> [Model; 2] {
    let markers: Vec<_> =
        format.markers().into_iter().filter(|mark| mark.starts_with(['<', '['])).collect();
    [Model::new(&[]), Model::new(&markers)]
}

#[test]
fn calls_as_the_model_was_taught_them_may_come() {
    let ulm = json!({"city": "Ulm", "days": 3});
    for (template, tail, answer) in FORMATS {
        let format = Format::of_template(template);
        for model in models(&format) {
            let any = model.compile(&format, &ToolChoice::Required, true, tail);
            assert_eq!(model.takes(&any, answer), (true, true), "{answer}");
            assert_eq!(model.takes(&any, "I cannot."), (false, false), "{template}");
            let other = answer.replace("Ulm", "Rom");
            assert_eq!(model.takes(&any, &other), (false, false), "{other}");
            let now = model.compile(&format, &ToolChoice::Named("now".into()), true, tail);
            assert_eq!(model.takes(&now, answer), (false, false), "{answer}");
        }
        assert_eq!(calls(&format, tail, answer)[0], ("weather".to_owned(), ulm.clone()));
    }
}

#[test]
fn whatever_may_come_is_read_as_calls() {
    let mut rng = fastrand::Rng::with_seed(5);
    for (template, tail, _) in FORMATS {
        let format = Format::of_template(template);
        for model in models(&format) {
            let many = model.compile(&format, &ToolChoice::Required, true, tail);
            let one = model.compile(&format, &ToolChoice::Required, false, tail);
            for _ in 0..5 {
                let answer = model.draw(&many, &format, &mut rng);
                assert!(!calls(&format, tail, &answer).is_empty(), "{answer}");
                let answer = model.draw(&one, &format, &mut rng);
                assert_eq!(calls(&format, tail, &answer).len(), 1, "{answer}");
            }
        }
    }
}

#[test]
fn a_model_may_reason_before_it_calls() {
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let thought = "Which < tool?\n</think>\n\n";
    for (tail, before) in [("<think>\n", thought.to_owned()), ("", format!("<think>\n{thought}"))] {
        let format = Format::of_template(FORMATS[0].0);
        for model in models(&format) {
            let grammar = model.compile(&format, &ToolChoice::Required, true, tail);
            assert_eq!(model.takes(&grammar, &format!("{before}{call}")), (true, true), "{before}");
            assert_eq!(model.takes(&grammar, &before), (true, false), "{before}");
            assert_eq!(model.takes(&grammar, &format!("{before}No.")), (false, false));
        }
    }
    let format = Format::of_template(HARMONY);
    let controls = format.markers();
    let model = Model::new(&controls);
    let grammar = model.compile(&format, &ToolChoice::Required, true, "<|start|>assistant");
    let call = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}";
    let thought = "<|channel|>analysis<|message|>Which?<|end|><|start|>assistant";
    assert_eq!(model.takes(&grammar, call), (true, true));
    assert_eq!(model.takes(&grammar, &format!("{thought}{call}")), (true, true));
    let said = "<|channel|>final<|message|>No";
    assert_eq!(model.takes(&grammar, said), (false, false));
}
