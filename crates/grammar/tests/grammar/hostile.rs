//! Grammars that ask for more than anybody means: refused, or served with bounded work.

use serde_json::{Value, json};

use super::*;

/// Compiles on a thread with the little stack that server threads have.
fn outcome(grammar: Grammar) -> Result<(), GrammarError> {
    let work = move || TINY.compile(&grammar).map(|_| ());
    let thread = std::thread::Builder::new().stack_size(256 << 10).spawn(work).expect("a thread");
    thread.join().expect("it must not panic")
}

fn is_refused(grammar: Grammar) {
    let what = format!("{grammar:?}").chars().take(120).collect::<String>();
    let error = outcome(grammar).expect_err(&what);
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 900, "{text}");
}

#[test]
fn schemas_are_bounded_in_depth_width_and_length() {
    let deep = (0..100).fold(json!(true), |inner, _| json!({"items": inner}));
    is_refused(Grammar::JsonSchema(deep));
    let names = |n: usize| (0..n).map(|i| (format!("p{i}"), json!({"type": "null"})));
    is_refused(Grammar::JsonSchema(json!({"properties": Value::Object(names(30_000).collect())})));
    is_refused(Grammar::JsonSchema(json!({"const": "x".repeat(300_000)})));
}

#[test]
fn schemas_that_multiply_are_refused_or_served() {
    // Only that these return, and do not take the process with them, is of interest.
    let mut doubling = serde_json::Map::new();
    for i in 0..60 {
        let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
        doubling.insert(
            format!("d{i}"),
            json!({"allOf": [next, next], "properties": {"a": next, "b": next}}),
        );
    }
    doubling.insert("d60".into(), json!({"type": "object"}));
    let chain: serde_json::Map<_, _> = (0..5000)
        .map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", (i + 1) % 5000)})))
        .collect();
    for schema in [
        json!({"$ref": "#/$defs/d0", "$defs": doubling}),
        json!({"$ref": "#/$defs/d0", "$defs": chain}),
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
        json!({"type": "array", "minItems": 1_000_000_000_u64}),
        json!({"type": "array", "maxItems": u64::MAX}),
        json!({"type": "array", "minItems": -1}),
        json!({"type": "string", "minLength": 1_000_000_000_u64}),
        json!({"type": "string", "maxLength": 1_000_000_u64}),
        json!({"type": "integer", "minimum": -1e300, "maximum": 1e300}),
        json!({"type": "number", "multipleOf": 1e-30}),
        json!({"type": "number", "multipleOf": 1e300}),
        json!({"type": "string", "pattern": "((a{1000}){1000}){1000}"}),
        json!({"type": "string", "pattern": "(a|b|ab)*{50}c"}),
        json!({"type": "string", "pattern": "(a*)*(b+)+$"}),
        json!({"type": "string", "format": "é".repeat(200)}),
        json!({"not": "é".repeat(200)}),
        json!({"type": "object", "minProperties": 1_000_000_u64}),
        json!({"patternProperties": {"^a": true, "a$": true}}),
        json!({"x-guidance": 7}),
    ] {
        let _ = outcome(Grammar::JsonSchema(schema));
    }
}

#[test]
fn grammars_are_bounded_in_depth_and_length() {
    for long in [
        Grammar::Regex("a".repeat(300_000)),
        Grammar::Lark(format!("start: \"{}\"", "a".repeat(300_000))),
        Grammar::Gbnf(format!("root ::= \"{}\"", "a".repeat(300_000))),
        Grammar::Regex("(".repeat(100_000)),
        Grammar::Regex(format!("{}a{}", "(".repeat(5000), ")".repeat(5000))),
        Grammar::Lark(format!("start: {}\"a\"{}", "(".repeat(5000), ")".repeat(5000))),
        Grammar::Lark(format!("start: {}\"a\"", "~".repeat(5000))),
        Grammar::Lark(format!("start: %json {}", "[".repeat(5000))),
        Grammar::Gbnf(format!("root ::= {}\"a\"{}", "(".repeat(5000), ")".repeat(5000))),
    ] {
        is_refused(long);
    }
}

#[test]
fn chains_of_rules_do_not_end_the_process() {
    let chain = |n: usize, sign: &str, name: &dyn Fn(usize) -> String| -> String {
        (0..n).map(|i| format!("{}{sign} {}\n", name(i), name(i + 1))).collect()
    };
    let rules = chain(9000, ":", &|i| format!("r{i}"));
    let _ = outcome(Grammar::Lark(format!("start: r0\n{rules}r9000: \"a\"\n")));
    let terminals = chain(9000, ":", &|i| format!("R{i}"));
    let _ = outcome(Grammar::Lark(format!("start: R0\n{terminals}R9000: \"a\"\n")));
    let nested: String = (0..3000).map(|i| format!("R{i}: \"a\" R{} \"b\"\n", i + 1)).collect();
    let _ = outcome(Grammar::Lark(format!("start: R0\n{nested}R3000: \"a\"\n")));
    let gbnf: String = (0..3000).map(|i| format!("r{i} ::= \"a\" r{} | \"b\"\n", i + 1)).collect();
    let _ = outcome(Grammar::Gbnf(format!("root ::= r0\n{gbnf}r3000 ::= root\n")));
    let doubling: String = (0..60).map(|i| format!("r{i} ::= r{0} r{0}\n", i + 1)).collect();
    let _ = outcome(Grammar::Gbnf(format!("root ::= r0\n{doubling}r60 ::= [a-z]\n")));
}

#[test]
fn an_answer_whose_grammar_takes_too_much_work_is_told() {
    // Each letter may be of any of many rules, and each of those goes on anyhow.
    let rules: String = (0..60).map(|i| format!("r{i}: /[a-z]/ any /[a-z]/\n")).collect();
    let any: Vec<_> = (0..60).map(|i| format!("r{i}")).collect();
    let grammar = Grammar::Lark(format!("start: any+\nany: {} | \"a\"\n{rules}", any.join(" | ")));
    let a = TINY.tokenizer.encode_within("a")[0];
    let Ok(constraint) = TINY.compile(&grammar) else { return };
    let mut progress = constraint.start();
    let mut logits = vec![0.0; TINY.tokenizer.vocab_size()];
    for _ in 0..200 {
        match progress.mask(&mut logits).and_then(|()| progress.accept(a)) {
            Ok(()) => {}
            Err(error) => {
                assert!(matches!(error, GrammarError::Stuck { .. }), "{error}");
                assert!(!error.to_string().contains('\n'), "{error}");
                return;
            }
        }
    }
}
