//! Regular expressions and Lark, and tokens that are no text.

use super::*;

fn regex(text: &str) -> Grammar {
    Grammar::Regex(text.into())
}

fn lark(text: &str) -> Grammar {
    Grammar::Lark(text.into())
}

#[test]
fn a_regular_expression_is_matched_from_start_to_end() {
    check(&regex("[a-c]{2,3}x"), &["abx", "cccx"], &["ax", "abxx", "aby", " abx", ""]);
    check(&regex("(yes|no)"), &["yes", "no"], &["yesno", "n", "maybe"]);
    check(&regex("a*"), &["", "a", "aaaa"], &["b", "ab"]);
    check(&regex("[^a]é"), &["bé", "é\u{e9}"], &["aé", "be"]);
}

#[test]
fn a_lark_grammar_may_come_back_to_itself() {
    let nested = lark("start: item\nitem: \"(\" item* \")\"");
    check(&nested, &["()", "(()())", "((()))"], &["(", "())", "(a)"]);
}

#[test]
fn what_can_only_end_is_over_and_what_may_end_may_go_on() {
    let constraint = TINY.compile(&regex("ab+")).unwrap();
    let ends = TINY.tokenizer.ends_of_generation();
    let mut progress = constraint.start();
    let [a, b] = ["a", "b"].map(|text| TINY.tokenizer.encode_within(text)[0]);
    assert_eq!(TINY.allowed(&mut progress), [a]);
    progress.accept(a).unwrap();
    assert!(!progress.is_over());
    assert_eq!(TINY.allowed(&mut progress), [b]);
    progress.accept(b).unwrap();
    assert!(!progress.is_over(), "more of b may come");
    let mut expected = [ends, &[b]].concat();
    expected.sort_unstable();
    assert_eq!(TINY.allowed(&mut progress), expected);
    let mut once = TINY.compile(&regex("a")).unwrap().start();
    once.accept(a).unwrap();
    assert!(once.is_over());
    assert_eq!(TINY.allowed(&mut once), ends);
}

#[test]
fn answers_of_one_constraint_do_not_see_each_other() {
    let constraint = TINY.compile(&regex("ab|ba")).unwrap();
    let [a, b] = ["a", "b"].map(|text| TINY.tokenizer.encode_within(text)[0]);
    let (mut one, mut other) = (constraint.start(), constraint.clone().start());
    one.accept(a).unwrap();
    other.accept(b).unwrap();
    assert_eq!(TINY.allowed(&mut one), [b]);
    assert_eq!(TINY.allowed(&mut other), [a]);
    assert_eq!(constraint, constraint.clone());
    assert_ne!(constraint, TINY.compile(&regex("ab|ba")).unwrap());
    assert!(constraint.is_for(&TINY.vocabulary.clone()));
    assert!(!constraint.is_for(&Model::tiny("llama").vocabulary));
}

#[test]
fn control_tokens_are_no_text_whatever_a_grammar_takes() {
    for grammar in [regex("(.|\n)*"), lark("start: /(.|\\n)+/"), Grammar::Json] {
        let constraint = TINY.compile(&grammar).unwrap();
        for token in TINY.allowed(&mut constraint.start()) {
            let ends = TINY.tokenizer.is_end_of_generation(token);
            assert!(!TINY.tokenizer.is_control(token) || ends, "{token} in {grammar:?}");
        }
    }
    check(&regex("(.|\n)*"), &["<|im_start|>", "<[3]>"], &[]);
}

#[test]
fn a_lark_grammar_may_name_tokens() {
    let [start, end] =
        ["<|im_start|>", "<|im_end|>"].map(|text| TINY.tokenizer.token_id(text).unwrap());
    let a = TINY.tokenizer.encode_within("a")[0];
    let named = lark(
        "# <none>\nstart: <|im_start|> \"a\" // <none>\n | <|im_end|> /a(\\/<none>)?/ \"<none>\"?",
    );
    assert!(TINY.takes(&named, &[start, a]));
    assert!(TINY.takes(&named, &[end, a]));
    assert!(!TINY.takes(&named, &[a]));
    assert!(!TINY.writes(&named, "<|im_start|>a"), "the token is meant, and not its text");
    assert!(
        TINY.takes(&lark("start: <a> <hello>"), &[a, TINY.tokenizer.token_id("hello").unwrap()])
    );
    assert!(TINY.takes(&lark(&format!("start: <[{start}]> <[{start}-{end}]>")), &[start, end]));
    let (error, _) = refusal(&lark("start: <|tool_call>"));
    assert_eq!(error, GrammarError::UnknownToken { name: "<|tool_call>".into() });
}

#[test]
fn text_that_is_forced_comes_in_the_tokens_of_a_prompt() {
    for model in [&*TINY, &Model::tiny("gemma3")] {
        let text = "hello world the";
        let constraint = model.compile(&regex(text)).unwrap();
        let (mut progress, mut forced) = (constraint.start(), vec![]);
        while !progress.is_over() {
            let [token] = model.allowed(&mut progress)[..] else { panic!("one way on") };
            progress.accept(token).unwrap();
            forced.push(token);
        }
        assert_eq!(forced, model.tokenizer.encode_within(text));
        assert!(forced.len() < text.len() / 2);
    }
}

#[test]
fn logits_of_no_token_are_banned() {
    let mut logits = vec![0.0; TINY.tokenizer.vocab_size() + 100];
    TINY.compile(&regex(".*")).unwrap().start().mask(&mut logits).unwrap();
    let (tokens, none) = logits.split_at(TINY.tokenizer.vocab_size());
    assert!(none.iter().all(|logit| *logit == f32::NEG_INFINITY));
    assert!(tokens.contains(&0.0));
}

#[test]
fn mistakes_are_told_with_their_place() {
    let (_, text) = refusal(&regex("a("));
    assert!(text.contains("regular expression") && text.contains("a("), "{text}");
    let (_, text) = refusal(&lark("start: \"a\"\nother: nowhere \"b\"\nstart2: )"));
    assert!(text.contains("Lark grammar") && text.contains('3'), "{text}");
    let (_, text) = refusal(&lark("begin: \"a\""));
    assert!(text.contains("start"), "{text}");
}
