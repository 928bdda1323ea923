//! Grammars that come again.

use m40_grammar::Compiler;
use serde_json::json;

use super::*;

fn compile(compiler: &Compiler, grammar: &Grammar) -> Constraint {
    compiler.compile(grammar).unwrap_or_else(|error| panic!("{error}"))
}

fn number(n: usize) -> Grammar {
    Grammar::JsonSchema(json!({"const": n}))
}

#[test]
fn a_grammar_that_comes_again_is_not_compiled_again() {
    let compiler = Compiler::new(TINY.vocabulary.clone());
    let first = compile(&compiler, &number(1));
    assert_eq!(compile(&compiler, &number(1)), first);
    assert_ne!(compile(&compiler, &number(2)), first);
    assert_ne!(compile(&compiler, &Grammar::Lark("start: \"1\"".into())), first);
    assert!(first.is_for(compiler.vocabulary()));
    // What two answers do with it they do apart.
    let one = TINY.tokenizer.encode_within("1")[0];
    let (mut progress, mut other) = (first.start(), compile(&compiler, &number(1)).start());
    progress.accept(one).unwrap();
    assert!(progress.is_over() && !other.is_over());
    assert_eq!(TINY.allowed(&mut other), [one]);
}

#[test]
fn what_was_not_asked_for_of_late_is_forgotten() {
    let compiler = Compiler::new(TINY.vocabulary.clone());
    let [first, second] = [0, 1].map(|n| compile(&compiler, &number(n)));
    for n in 2..8 {
        compile(&compiler, &number(n));
    }
    assert_eq!(compile(&compiler, &number(0)), first);
    compile(&compiler, &number(8));
    assert_eq!(compile(&compiler, &number(0)), first, "it was asked for of late");
    assert_ne!(compile(&compiler, &number(1)), second);
}

#[test]
fn large_grammars_take_the_room_of_others() {
    let compiler = Compiler::new(TINY.vocabulary.clone());
    let first = compile(&compiler, &number(1));
    let large =
        |c: char| Grammar::Lark(format!("start: \"a\"\n// {}", c.to_string().repeat(200_000)));
    let kept = compile(&compiler, &large('a'));
    assert_eq!(compile(&compiler, &number(1)), first);
    assert_eq!(compile(&compiler, &large('a')), kept);
    compile(&compiler, &large('b'));
    assert_ne!(compile(&compiler, &large('a')), kept);
    assert!(compiler.compile(&Grammar::Lark("start: \"".into())).is_err());
}

#[test]
fn an_answer_that_asks_too_much_of_a_grammar_ends_no_other() {
    let compiler = Compiler::new(TINY.vocabulary.clone());
    // Which of the last letters were an `a` is a state for each way there is.
    let grammar = Grammar::Regex("(.|\n)*a(.|\n){60}".into());
    let letters = ["a", "b"].map(|text| TINY.tokenizer.encode_within(text)[0]);
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        letters[(seed >> 63) as usize]
    };
    let mut far = |constraint: &Constraint, most: usize| {
        let mut progress = constraint.start();
        (0..most).find(|_| progress.accept(next()).is_err())
    };
    let first = compile(&compiler, &grammar);
    assert!(far(&first, 100_000).is_some(), "it must become too much");
    assert_eq!(far(&first, 100), Some(0), "and stays so for the same request");
    assert_eq!(far(&compile(&compiler, &grammar), 100), None);
}
