//! However an answer is cut into texts, it says the same, and loses nothing.

use m40_reply::{Format, Piece, Tool, Tools};
use proptest::prelude::*;
use serde_json::json;

/// Sources with what formats are known from.
const TEMPLATES: [&str; 11] = [
    "<tool_call> </think>",
    "<|python_tag|>",
    "[TOOL_CALLS] [ARGS] [/THINK]",
    "<start_of_turn>",
    "<｜tool▁call▁begin｜> ```json </think>",
    "<｜tool▁call▁begin｜> </think>",
    "<|channel|><|message|>",
    "plain",
    "<|start_of_role|> <|tool_call|>",
    "<|/tool|> functools[",
    "<tool_call> <function= <parameter= </think>",
];

/// Of these all formats are made, and what only looks like them.
const PARTS: [&str; 65] = [
    "<tool_call>",
    "</tool_call>",
    "<tool_",
    "<think>",
    "</think>",
    "[THINK]",
    "[/THINK]",
    "<|python_tag|>",
    "<function=now>",
    "<|tool_call|>",
    "<|/tool_call|>",
    "functools",
    "<tool_call>\n<function=now>\n",
    "<parameter=text>\n",
    "<parameter=count>\n",
    "<parameter=",
    "</parameter>",
    "\n</parameter>\n",
    "<parameter=text>\na \"b\"\n\n</parameter>\n",
    "3.5",
    "</function>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "```tool_code\n",
    "```json\n",
    "```",
    "now()",
    "print(now(a=1))",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "function<｜tool▁sep｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "<|start|>assistant",
    "<|channel|>analysis",
    "<|channel|>commentary to=functions.now ",
    "<|channel|>final",
    "<|constrain|>json",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "{\"name\": \"now\", \"arguments\": ",
    "{\"name\": \"now\", \"parameters\": {}}",
    "{\"name\": \"other\", \"arguments\": {}}",
    "{\"arguments\": {\"a\": [1]}, \"name\": \"now\"}",
    "{\"a\": \"é\\n\"}",
    "{}",
    "{",
    "}",
    "[",
    "]",
    ",",
    ";",
    "\"id\": 1",
    "now",
    "other",
    "word",
    "é",
    " ",
    "\n",
    "\n\n",
    "<",
    "\"",
];

fn tools() -> Tools {
    let parameters = json!({
        "type": "object",
        "properties": {"text": {"type": "string"}, "count": {"type": "integer"}},
    });
    let now = Tool { name: "now".into(), description: None, parameters, strict: false };
    Tools::new(vec![now]).expect("the tools are legal")
}

/// The pieces of an answer in these texts, neighbours of one kind joined.
fn read<'t>(template: &str, texts: impl IntoIterator<Item = &'t str>) -> Vec<Piece> {
    let mut reader = Format::of_template(template).reader(&tools(), "");
    let mut pieces: Vec<Piece> = texts.into_iter().flat_map(|text| reader.push(text)).collect();
    pieces.extend(reader.finish());
    let mut joined: Vec<Piece> = vec![];
    for piece in pieces {
        match (joined.last_mut(), piece) {
            (Some(Piece::Content(last)), Piece::Content(text))
            | (Some(Piece::Reasoning(last)), Piece::Reasoning(text))
            | (Some(Piece::Arguments(last)), Piece::Arguments(text)) => last.push_str(&text),
            (_, piece) => joined.push(piece),
        }
    }
    joined
}

fn letters(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(|_| true)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_gives_the_same_pieces(
        parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..14),
        template in prop::sample::select(&TEMPLATES[..]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let text = parts.concat();
        let whole = read(template, [&*text]);
        prop_assert_eq!(&read(template, letters(&text)), &whole, "by letters: {}", text);
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        at.extend([0, text.len()]);
        at.retain(|at| text.is_char_boundary(*at));
        at.sort_unstable();
        let texts = at.windows(2).map(|ends| &text[ends[0]..ends[1]]);
        prop_assert_eq!(&read(template, texts), &whole, "cut: {}", text);
    }

    #[test]
    fn complete_arguments_are_json_and_calls_do_not_overlap(
        parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..14),
        template in prop::sample::select(&TEMPLATES[..]),
    ) {
        let mut call: Option<String> = None;
        for piece in read(template, parts) {
            match piece {
                Piece::Call { name } => {
                    prop_assert_eq!(name, "now");
                    prop_assert_eq!(call.replace(String::new()), None);
                }
                Piece::Arguments(text) => call.as_mut().expect("a call has begun").push_str(&text),
                Piece::CallEnd => {
                    let arguments = call.take().expect("a call has begun");
                    prop_assert!(
                        serde_json::from_str::<serde_json::Map<_, _>>(&arguments).is_ok(),
                        "{}", arguments
                    );
                }
                Piece::Content(_) | Piece::Reasoning(_) => prop_assert_eq!(&call, &None),
            }
        }
    }

    #[test]
    fn a_text_without_marks_is_content(
        text in "[a-z{}\\[\\]\"`<>| \n]{0,60}",
        template in prop::sample::select(&TEMPLATES[..]),
    ) {
        let want = if text.is_empty() { vec![] } else { vec![Piece::Content(text.clone())] };
        prop_assert_eq!(read(template, letters(&text)), want);
    }

    #[test]
    fn without_calls_and_thoughts_nothing_is_lost(
        parts in prop::collection::vec(prop::sample::select(&PARTS[..]), 0..14),
        template in prop::sample::select(&TEMPLATES[..6]),
    ) {
        let text = parts.concat();
        let pieces = read(template, [&*text]);
        if let [Piece::Content(content)] = &pieces[..]
            && !text.to_lowercase().contains("think")
        {
            prop_assert_eq!(content, &text);
        }
    }
}

#[test]
fn what_is_held_back_is_bounded() {
    let mut reader = Format::of_template(TEMPLATES[0]).reader(&tools(), "");
    let head = "<tool_call>{\"id\": \"";
    assert_eq!(reader.push(head), []);
    let mut told = 0;
    for _ in 0..1000 {
        for piece in reader.push(&"x".repeat(100)) {
            let Piece::Content(text) = piece else { panic!("{piece:?}") };
            told += text.len();
        }
    }
    assert_eq!(told, head.len() + 100_000);
}
