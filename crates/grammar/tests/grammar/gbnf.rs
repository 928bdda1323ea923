//! GBNF: what its grammars take, and what is said of their mistakes.

use proptest::prelude::*;

use super::*;

fn gbnf(text: &str) -> Grammar {
    Grammar::Gbnf(text.into())
}

/// The grammar of JSON as llama.cpp's users write it.
const JSON: &str = r#"
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"#;

#[test]
fn the_grammar_of_json_takes_json() {
    let good = ["{}", "{\"a\": [1, -2.5e+3, {\"b\":\n \"\\u00e9x\"}], \"c\":null}", "{ }"];
    check(&gbnf(JSON), &good, &["[]", "{", "{\"a\":01}", "{\"a\":\"\\x\"}", "{a:1}", "{\"a\":1,}"]);
}

#[test]
fn each_sign_has_its_meaning() {
    check(
        &gbnf("root ::= \"a\"{2} \"b\"{2,} \"c\"{0,2}"),
        &["aabb", "aabbbcc"],
        &["abb", "aab", "aabbccc"],
    );
    check(&gbnf("root ::= [^a-c\\]] . [-x]"), &["d\n-", "déx"], &["ad-", "]d-", "ddd"]);
    check(&gbnf("root ::= \"\\x41\\u00e9\\U0001F600\" [\\x41]?"), &["Aé😀", "Aé😀A"], &["Aé"]);
    check(&gbnf("root ::= (\"a\" | \"b\" | )+ # \"c\"\n"), &["", "a", "abba"], &["c"]);
    check(&gbnf("root::=a-1 b_2\na-1::=\"x\"\nb_2::=\"y\"*"), &["x", "xyy"], &["y", "xx"]);
    check(&gbnf("root ::= \"a\"* \"ab\""), &["ab", "aaab"], &["a", "aaa", "abab"]);
    check(&gbnf("root ::= \"/\" [/\"#<]{2} \"<a>\""), &["///<a>", "/\"#<a>"], &["/"]);
}

#[test]
fn rules_that_come_back_to_themselves_are_no_regular_expression() {
    let nested = "root ::= pair\npair ::= \"(\" inner \")\"\ninner ::= pair inner | [a-z]*";
    check(&gbnf(nested), &["()", "(abc)", "(()())", "((x)(y)z)"], &["(", "(()", "(A)"]);
}

#[test]
fn tokens_may_be_named() {
    let start = TINY.tokenizer.token_id("<|im_start|>").unwrap();
    let a = TINY.tokenizer.encode_within("a")[0];
    let grammar = gbnf("root ::= <|im_start|> rest\nrest ::= \"a\" <[2]>?");
    assert_eq!(start, 2);
    assert!(TINY.takes(&grammar, &[start, a]));
    assert!(TINY.takes(&grammar, &[start, a, start]));
    assert!(!TINY.takes(&grammar, &[a]));
}

/// Where a mistake is, and that what is said of it has this in it.
fn mistake(text: &str, line: usize, column: usize, says: &str) {
    let (error, shown) = refusal(&gbnf(text));
    let GrammarError::Gbnf { line: l, column: c, .. } = error else { panic!("{text}: {shown}") };
    assert_eq!((l, c), (line, column), "{text}: {shown}");
    assert!(shown.contains(says), "{text}: {shown}");
}

#[test]
fn mistakes_are_told_with_line_and_column() {
    mistake("", 1, 1, "no rule root");
    mistake("a ::= \"x\"", 1, 1, "no rule root");
    mistake("root ::= \"x\" nowhere", 1, 14, "no rule nowhere");
    mistake("root ::= \"x\"\n\n  é", 3, 3, "expected");
    mistake("root = \"x\"", 1, 6, "::=");
    mistake("root ::= \"x", 1, 10, "no end");
    mistake("root ::= [a", 1, 10, "no end");
    mistake("root ::= []", 1, 10, "empty");
    mistake("root ::= [z-a]", 1, 10, "swap");
    mistake("root ::= (\"x\"", 1, 14, ")");
    mistake("root ::= \"x\")", 1, 13, "name");
    mistake("root ::= \"\\q\"", 1, 11, "\\q");
    mistake("root ::= \"\\ud800\"", 1, 11, "hexadecimal");
    mistake("root ::= \"\\x4", 1, 11, "hexadecimal");
    mistake("root ::= \"x\"{3,2}", 1, 14, "cannot be");
    mistake("root ::= \"x\"{9999999999}", 1, 14, "too often");
    mistake("root ::= \"x\"{2", 1, 15, "{2}");
    mistake("root ::= \"x\"\nroot ::= \"y\"", 2, 1, "before");
    mistake("root ::= <a b>", 1, 10, "<name>");
    mistake(&format!("root ::= {}", "(".repeat(60)), 1, 35, "parentheses");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_text_is_taken_by_the_grammar_that_spells_it_out(text in "[ -~é\n\t\u{7f}]{1,12}") {
        let escaped: String = text.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        for grammar in [format!("root ::= \"{quoted}\""), format!("root ::= rest rest?\nrest ::= \"{escaped}\"")] {
            prop_assert!(TINY.writes(&gbnf(&grammar), &text), "{grammar}");
        }
        let classes: String = text.chars().map(|c| format!("[\\U{:08x}] ", u32::from(c))).collect();
        let classes = format!("root ::= {classes}");
        prop_assert!(TINY.writes(&gbnf(&classes), &text), "{classes}");
    }

    #[test]
    fn no_text_makes_the_translation_panic(text in "(root ::= )?[ -~é\n]{0,60}") {
        // Only that it returns is of interest.
        let _ = TINY.compile(&gbnf(&text));
    }
}
