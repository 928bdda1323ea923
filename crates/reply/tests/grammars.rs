//! What the grammar of a format lets by is what its reader takes for calls.

use std::sync::Arc;

use m40_gguf::{Gguf, ValueType};
use m40_grammar::{Constraint, Grammar, Vocabulary};
use m40_reply::{Format, Piece, Tool, ToolChoice, Tools};
use m40_testkit::gguf::{GgufBuilder, Meta};
use m40_tokenizer::{Detokenizer, Special, Tokenizer};
use serde_json::{Value, json};

/// What a format is known from, the end of a prompt after which it calls at once, and two calls.
const FORMATS: [(&str, &str, &str); 12] = [
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
        "<|start_of_role|> <|tool_call|>",
        "",
        "<|tool_call|>[{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 3}}, \
         {\"name\": \"now\", \"arguments\": {}}]",
    ),
    (
        "<|tool|> <|/tool|>",
        "",
        "<|tool_call|>[{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 3}}, \
         {\"name\": \"now\", \"arguments\": {}}]<|/tool_call|>",
    ),
    (
        "functools[",
        "",
        "functools[{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\", \"days\": 3}}, \
         {\"name\": \"now\", \"arguments\": {}}]",
    ),
    (
        "<tool_call> <function= <parameter=",
        "",
        "<tool_call>\n<function=weather>\n<parameter=city>\nUlm\n</parameter>\n<parameter=days>\n3\n\
         </parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
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
const HARMONY_CALL: &str = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>\
                            {\"city\": \"Ulm\", \"days\": 3}";

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
            "city": {"type": "string", "enum": ["Ulm", "Köln"]},
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
        Self::with(controls, &[])
    }

    /// With tokens of more than a byte, too.
    fn with(controls: &[&str], words: &[&str]) -> Self {
        // Byte-level BPE spells the bytes that do not print by characters from 256 on.
        let prints = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let mut other = 256;
        let byte = |byte: u32| {
            other += u32::from(!prints(byte));
            char::from_u32(if prints(byte) { byte } else { other - 1 }).expect("no surrogate")
        };
        let mut tokens: Vec<String> = (0..256).map(byte).map(String::from).collect();
        tokens.push("<|im_end|>".to_owned());
        tokens.extend(controls.iter().chain(words).map(|text| (*text).to_owned()));
        let types = (0..tokens.len()).map(|id| match id {
            ..256 => 1,
            _ if id <= 256 + controls.len() => 3,
            _ => 4_i32,
        });
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
        let lark = lark.expect("calls can be held to the tools").expect("a call may come");
        let compiled = self.vocabulary.compile(&Grammar::Lark(lark.clone()));
        compiled.unwrap_or_else(|error| panic!("{error}: {lark}"))
    }

    /// How many tokens of a text may come, and whether the end may follow.
    fn takes(&self, constraint: &Constraint, text: &str) -> (bool, bool) {
        let mut progress = constraint.start();
        for token in self.tokenizer.encode(text, Special { add: false, parse: true }) {
            let mut logits = vec![0.0; self.tokenizer.vocab_size()];
            progress.mask(&mut logits).unwrap_or_else(|e| panic!("{e} at {token}: {text}"));
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
            // All bytes together as often as all marks and words.
            let first = allowed.partition_point(|token| *token < 256);
            let (bytes, others) = allowed.split_at(first);
            let drawn =
                if others.is_empty() || (!bytes.is_empty() && rng.bool()) { bytes } else { others };
            let token = drawn[rng.usize(..drawn.len())];
            if self.tokenizer.is_end_of_generation(token) {
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

/// The calls of an answer that may say other things.
fn calls_in(format: &Format, tail: &str, answer: &str) -> Vec<(String, Value)> {
    let mut reader = format.reader(&tools(), tail);
    let mut pieces = reader.push(answer);
    pieces.extend(reader.finish());
    let (mut calls, mut text) = (vec![], String::new());
    for piece in pieces {
        match piece {
            Piece::Call { name } => calls.push((name, Value::Null)),
            Piece::Arguments(more) => text += &more,
            Piece::CallEnd => {
                let arguments = serde_json::from_str(&std::mem::take(&mut text));
                calls.last_mut().expect("a call has begun").1 = arguments.expect("JSON");
            }
            Piece::Content(_) | Piece::Reasoning(_) => {}
        }
    }
    assert!(text.is_empty(), "a call does not end: {answer}");
    calls
}

fn is_strict(name: &str, arguments: &Value) -> bool {
    let object = arguments.as_object().expect("arguments are an object");
    match name {
        "now" => object.is_empty(),
        "weather" => {
            object.len() == 2
                && ["Ulm", "Köln"].iter().any(|city| object["city"] == *city)
                && object["days"].as_i64().is_some_and(|days| (1..=14).contains(&days))
        }
        _ => false,
    }
}

/// Without control tokens, and with all marks being some.
fn models(format: &Format) -> [Model; 2] {
    [Model::new(&[]), Model::new(&marks(format))]
}

fn marks(format: &Format) -> Vec<&'static str> {
    // No vocabulary has those of functions.
    let is_token = |mark: &&str| mark.starts_with(['<', '[']) && !mark.contains("function");
    format.markers().into_iter().filter(is_token).collect()
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

#[test]
fn a_model_that_may_call_writes_text_or_calls_that_are_strict() {
    let formats = FORMATS.into_iter().chain([(HARMONY, "<|start|>assistant", HARMONY_CALL)]);
    for (template, tail, answer) in formats {
        let format = Format::of_template(template);
        let (text, talks) = match template {
            HARMONY => ("<|channel|>final<|message|>I cannot.", None),
            "<|python_tag|>" | "<start_of_turn>" => ("I cannot.", None),
            _ => ("I cannot.", Some("I'll < look.\n")),
        };
        for model in models(&format) {
            let may = model.compile(&format, &ToolChoice::Auto, true, tail);
            assert_eq!(model.takes(&may, text), (true, true), "{template}");
            assert_eq!(model.takes(&may, answer), (true, true), "{answer}");
            if let Some(talk) = talks {
                let both = format!("{talk}{answer}");
                assert_eq!(model.takes(&may, &both), (true, true), "{both}");
                let both = format!("{talk}{}", answer.replace("weather", "wetter"));
                assert_eq!(model.takes(&may, &both), (false, false), "{both}");
            }
            for (right, wrong) in [("Ulm", "Rom"), ("3", "99"), ("weather", "other")] {
                let other = answer.replace(right, wrong);
                assert_eq!(model.takes(&may, &other), (false, false), "{other}");
            }
            let one = model.compile(&format, &ToolChoice::Auto, false, tail);
            assert_eq!(model.takes(&one, answer).0, !answer.contains("now"), "{answer}");
        }
    }
}

#[test]
fn whatever_may_come_has_no_call_that_is_not_strict() {
    // Of these calls are made, and what only looks like some.
    let words = [
        "{\"name\": \"",
        "{\"",
        "name\": ",
        "weather",
        "now",
        "\", \"arguments\": ",
        "\", \"parameters\": ",
        "{\"city\": \"Ulm\"",
        "{}",
        "{}}",
        ", \"days\": 3}",
        ", \"days\": 99}",
        "```json\n",
        "```tool_code\n",
        "now()\n```",
        "<function=now>",
        "function",
        "<think>",
        "</think>",
        "commentary to=functions.now ",
        "functools",
        "<function=",
        "weather>\n",
        "<parameter=",
        "city>\nUlm\n",
        "</parameter>\n",
        "</function>\n",
        "final",
        "assistant",
        "json",
    ];
    let mut rng = fastrand::Rng::with_seed(7);
    let formats = FORMATS.into_iter().chain([(HARMONY, "<|start|>assistant", HARMONY_CALL)]);
    let mut found = 0;
    for (template, tail, _) in formats {
        let format = Format::of_template(template);
        let mut spelt: Vec<&str> = words.into_iter().chain(marks(&format)).collect();
        spelt.sort_unstable();
        spelt.dedup();
        let others: Vec<&str> =
            words.into_iter().filter(|word| !marks(&format).contains(word)).collect();
        for model in [Model::with(&marks(&format), &others), Model::with(&[], &spelt)] {
            for parallel in [true, false] {
                let may = model.compile(&format, &ToolChoice::Auto, parallel, tail);
                for _ in 0..30 {
                    let answer = model.draw(&may, &format, &mut rng);
                    let calls = calls_in(&format, tail, &answer);
                    assert!(calls.iter().all(|(name, of)| is_strict(name, of)), "{answer:?}");
                    assert!(parallel || calls.len() < 2, "{answer:?}");
                    found += calls.len();
                }
            }
        }
    }
    assert!(found > 20, "{found}");
}

#[test]
fn a_model_that_may_call_may_reason_and_speak_of_calls_there() {
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    for (tail, open) in [("<think>\n", ""), ("", "<think>\n")] {
        let format = Format::of_template(FORMATS[0].0);
        // A control token has no place in thoughts.
        for (model, mark) in models(&format).into_iter().zip(["<tool_call>", "<tool_"]) {
            let before = format!("{open}Shall I {mark}?\n</think>\n\n");
            let may = model.compile(&format, &ToolChoice::Auto, true, tail);
            for said in ["No.", call, "", &format!("So:\n\n{call}")] {
                let answer = format!("{before}{said}");
                assert_eq!(model.takes(&may, &answer), (true, true), "{answer}");
            }
            let example = format!("{before}Write <tool_call>.");
            assert_eq!(model.takes(&may, &example), (false, false));
        }
    }
}

#[test]
fn tools_that_are_not_strict_leave_the_answer_free() {
    let loose = tools().iter().map(|tool| Tool { strict: false, ..tool.clone() }).collect();
    let loose = Tools::new(loose).unwrap();
    for (template, tail, _) in FORMATS {
        let format = Format::of_template(template);
        let of = |tools| format.grammar(tools, &ToolChoice::Auto, true, tail, &|_| false).unwrap();
        assert_eq!(of(&loose), None);
        assert!(of(&tools()).is_some());
    }
}

#[test]
fn arguments_in_tags_are_held_to_their_schema() {
    let format = Format::of_template("<tool_call> <function= <parameter=");
    let parameters = json!({
        "type": "object",
        "properties": {
            "code": {"type": "string"},
            "size": {"$ref": "#/$defs/size"},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
            "mail": {"type": "string", "pattern": "^[a-z]+@x$"},
        },
        "required": ["code", "size"],
        "$defs": {"size": {"enum": ["big", 7]}},
    });
    let tool =
        |parameters| Tool { name: "run".into(), description: None, parameters, strict: true };
    let tools = Tools::new(vec![tool(parameters)]).unwrap();
    let model = Model::new(&[]);
    let lark = format.grammar(&tools, &ToolChoice::Required, true, "", &|_| false).unwrap();
    let held = model.vocabulary.compile(&Grammar::Lark(lark.unwrap())).unwrap();
    let call =
        |inside: &str| format!("<tool_call>\n<function=run>\n{inside}</function>\n</tool_call>");
    let tag = |key: &str, value: &str| format!("<parameter={key}>\n{value}\n</parameter>\n");
    let code = "if a < b {\n    \"</p>\"\n}\n";
    for (inside, want) in [
        (tag("code", code) + &tag("size", "7"), json!({"code": code, "size": 7})),
        (tag("code", "") + &tag("size", "\"big\""), json!({"code": "", "size": "big"})),
        (
            tag("code", "7") + &tag("size", "7") + &tag("tags", "[\"a\", \"b\"]"),
            json!({"code": "7", "size": 7, "tags": ["a", "b"]}),
        ),
        (
            tag("code", "a") + &tag("size", "7") + &tag("mail", "\"a@x\""),
            json!({"code": "a", "size": 7, "mail": "a@x"}),
        ),
    ] {
        let answer = call(&inside);
        assert_eq!(model.takes(&held, &answer), (true, true), "{answer}");
        let mut reader = format.reader(&tools, "");
        let mut arguments = String::new();
        for piece in reader.push(&answer).into_iter().chain(reader.finish()) {
            match piece {
                Piece::Arguments(text) => arguments += &text,
                Piece::Call { .. } | Piece::CallEnd => {}
                other => panic!("{other:?} in {answer}"),
            }
        }
        let arguments: Value = serde_json::from_str(&arguments).unwrap();
        assert_eq!(arguments, want, "{answer}");
    }
    for inside in [
        tag("size", "7"),
        tag("code", "a"),
        tag("code", "a") + &tag("size", "8"),
        tag("code", "</parameter>") + &tag("size", "7"),
        tag("code", "a") + &tag("size", "7") + &tag("mail", "\"a\""),
        tag("code", "a") + &tag("size", "7") + &tag("other", "a"),
    ] {
        assert!(!model.takes(&held, &call(&inside)).0, "{inside}");
    }
    for (parameters, key) in [
        (json!({"allOf": [{"type": "object"}]}), "allOf"),
        (json!({"properties": {"a>b": {"type": "string"}}}), "a>b"),
        (json!({"properties": {"a": {"type": "string", "enum": ["</parameter>"]}}}), "a"),
        (json!({"properties": {}, "required": ["b"]}), "required: b"),
    ] {
        let tools = Tools::new(vec![tool(parameters)]).unwrap();
        let refused = format.grammar(&tools, &ToolChoice::Auto, true, "", &|_| false);
        let refused = refused.unwrap_err();
        assert_eq!((&*refused.tool, &*refused.key), ("run", key));
    }
}
