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
