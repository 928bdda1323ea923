//! Templates as models of Ollama's registries have them.

use serde_json::{Value, json};

use super::super::{ChatTemplate, TemplateError, TemplateInput};

fn rendered(source: &str, input: &TemplateInput<'_>) -> Result<String, TemplateError> {
    ChatTemplate::new(source, "", "")?.render(input)
}

#[track_caller]
fn check(source: &str, messages: &Value, expected: &str) {
    assert_eq!(rendered(source, &TemplateInput::new(messages)).unwrap(), expected, "{source}");
}

fn turns() -> Value {
    json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ])
}

/// ChatML, one turn at a time.
const TURN: &str = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}\
    {{ if .Prompt }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n{{ end }}<|im_start|>assistant\n\
    {{ .Response }}<|im_end|>\n";

#[test]
fn a_template_of_one_turn_writes_all_and_ends_where_the_answer_begins() {
    let expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
                    <|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n\
                    <|im_start|>assistant\n";
    check(TURN, &turns(), expected);
    let without = TURN.split("{{ .Response }}").next().unwrap();
    let hello = json!([{"role": "user", "content": "Hi"}]);
    check(without, &hello, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

/// As newer ones are: messages, tools and calls.
const MESSAGES: &str = r#"
{{- if or .System .Tools }}<|system|>
{{- if .System }}
{{ .System }}
{{- end }}
{{- if .Tools }}
# Tools
{{- range .Tools }}
{"type": "function", "function": {{ .Function }}}
{{- end }}
{{- end }}
{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 -}}
{{- if eq .Role "user" }}<|user|>{{ .Content }}
{{ else if eq .Role "assistant" }}<|assistant|>
{{- if .Content }}{{ .Content }}
{{- else if .ToolCalls }}<tool_call>
{{- range .ToolCalls }}
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
{{- end }}</tool_call>
{{- end }}{{ if not $last }}
{{ end }}
{{- else if eq .Role "tool" }}<|tool|>{{ .Content }}
{{ end }}
{{- if and (ne .Role "assistant") $last }}<|assistant|>{{ end }}
{{- end }}"#;

#[test]
fn a_template_of_messages_has_tools_and_their_calls() {
    let messages = json!([
        {"role": "system", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "two "}, {"type": "text", "text": "parts"}]},
        {"role": "user", "content": "joined"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\": [1, 2.5], \"a\": \"<x>\"}"}},
        ]},
        {"role": "tool", "content": "42"},
    ]);
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let mut input = TemplateInput::new(&messages);
    input.tools = Some(&tools);
    let expected = "<|system|>\nS\n# Tools\n\
        {\"type\": \"function\", \"function\": {\"name\":\"f\",\"parameters\":{}}}\n\
        <|user|>two parts\n\njoined\n\
        <|assistant|><tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\":[1,2.5],\"a\":\"<x>\"}}</tool_call>\n\
        <|tool|>42\n<|assistant|>";
    assert_eq!(rendered(MESSAGES, &input).unwrap(), expected);
    let template = ChatTemplate::new(MESSAGES, "", "").unwrap();
    assert!(template.takes_tools() && !template.knows_thoughts());
    assert!(!ChatTemplate::new(TURN, "", "").unwrap().takes_tools());
}

#[test]
fn values_functions_and_blocks_are_as_in_go() {
    let messages = json!([{"role": "user", "content": "abc"}, {"role": "tool", "content": "d"}]);
    for (source, expected) in [
        ("{{ range .Messages }}{{ .Role }}:{{ len .Content }} {{ end }}", "user:3 tool:1 "),
        ("{{ (index .Messages 1).Content }}", "d"),
        ("{{ with index .Messages 0 }}{{ slice .Content 1 2 }}{{ end }}", "b"),
        (
            "{{ range $i, $m := .Messages }}{{ if $i }}, {{ end }}{{ $m.Role }}{{ end }}",
            "user, tool",
        ),
        ("{{ $n := 0 }}{{ range .Messages }}{{ $n = len .Content }}{{ end }}{{ $n }}", "1"),
        (
            "{{ range .Messages }}{{ if eq .Role \"tool\" }}{{ break }}{{ end }}{{ .Role }}{{ end }}",
            "user",
        ),
        (
            "{{ range .Messages }}{{ if eq .Role \"user\" \"x\" }}{{ continue }}{{ end }}{{ .Role }}{{ end }}",
            "tool",
        ),
        ("{{ range .Tools }}x{{ else }}none{{ end }}{{ .Messages | len }}", "none2"),
        ("{{ with .Tools }}x{{ else with .Messages }}{{ len . }}{{ end }}", "2"),
        (
            "a {{- /* no */ -}} b{{ `\\n` }}{{ \"\\n\\\"\" }}{{ .Messages | len | print \"=\" }}",
            "ab\\n\n\"=2",
        ),
        ("{{ print 1 2 \"a\" 3 }}{{ if .Messages }}{{ end }}", "1 2a3"),
        ("{{ (index .Messages 0) | json }}", "{\"role\":\"user\",\"content\":\"abc\"}"),
        ("{{ if and .Messages (not .Tools) (gt (len .Messages) 1) }}yes{{ end }}", "yes"),
        ("{{ or .Tools \"x\" }}{{ and .Tools .Nothing.There }}{{ len .Messages }}", "x2"),
        (
            "{{ if .IsThinkSet }}set{{ else if .Think }}on{{ else }}off{{ end }}{{ if .Messages }}{{ end }}",
            "off",
        ),
    ] {
        check(source, &messages, expected);
    }
    let extra = json!({"enable_thinking": true});
    let mut input = TemplateInput::new(&messages);
    input.extra = extra.as_object();
    let source = "{{ .Messages | len }}{{ if and .IsThinkSet .Think }} /think{{ end }}";
    assert_eq!(rendered(source, &input).unwrap(), "2 /think");
    assert!(ChatTemplate::new(source, "", "").unwrap().knows_thoughts());
}

#[test]
fn a_text_is_filled_in_by_a_template_that_knows_of_it() {
    let messages = json!([{"role": "user", "content": "fn a"}]);
    let extra = json!({"suffix": "}"});
    let mut input = TemplateInput::new(&messages);
    input.extra = extra.as_object();
    let source =
        "{{ if .Suffix }}<PRE>{{ .Prompt }}<SUF>{{ .Suffix }}<MID>{{ else }}{{ .Prompt }}{{ end }}";
    assert_eq!(rendered(source, &input).unwrap(), "<PRE>fn a<SUF>}<MID>");
}

#[test]
fn what_is_not_known_or_wrong_is_said_with_its_line() {
    for (source, line, why) in [
        ("{{ .A }}\n{{ call .F }}", 2, "no function \"call\""),
        ("{{ if .A }}\n\nx", 3, "if has no end"),
        ("{{ template \"x\" . }}", 1, "template is not supported"),
        ("{{ .A }}{{ end }}", 1, "an end of nothing"),
        ("{{ .A }}{{ else }}", 1, "else without"),
        ("{{ .A .B }}", 1, "has arguments"),
        ("{{ .A | .B }}", 1, "only a function"),
        ("{{ .A", 1, "where an action should end"),
        ("{{ $x, $y := .A }}", 1, "two variables"),
        ("{{ break }}{{ .A }}", 1, "not in a range"),
        ("{{ \"a }}{{ .A }}", 1, "no end"),
    ] {
        match ChatTemplate::new(source, "", "") {
            Err(TemplateError::Syntax { line: found, message }) => {
                assert!(found == line && message.contains(why), "{source}: {found}: {message}");
            }
            other => panic!("{source}: {other:?}"),
        }
    }
    let messages = turns();
    for (source, why) in [
        ("{{ $x }}{{ .Messages }}", "no variable $x"),
        ("{{ index .Messages 9 }}", "outside"),
        ("{{ slice .Messages 2 1 }}", "outside"),
        ("{{ len 1 }}{{ .Messages }}", "len of"),
        ("{{ lt .Messages 1 }}", "no order"),
        ("{{ range .System }}{{ end }}{{ .Messages }}", "range goes"),
    ] {
        match rendered(source, &TemplateInput::new(&messages)) {
            Err(TemplateError::Render { line: 1, message }) => {
                assert!(message.contains(why), "{source}: {message}");
            }
            other => panic!("{source}: {other:?}"),
        }
    }
}

#[test]
fn hostile_templates_end() {
    let deep = format!("{}{}", "{{ if .A }}".repeat(10_000), "{{ end }}".repeat(10_000));
    let parentheses = format!("{{{{ {}.A{} }}}}", "(".repeat(10_000), ")".repeat(10_000));
    let chain = format!("{{{{ if .A }}}}{}{{{{ end }}}}", "{{ else if .A }}".repeat(10_000));
    let name = format!("{{{{ .{} }}}}", "A".repeat(1000));
    for source in [deep, parentheses, chain, name] {
        assert!(matches!(ChatTemplate::new(&source, "", ""), Err(TemplateError::Syntax { .. })));
    }
    let many: Vec<Value> = (0..400)
        .map(|i| json!({"role": if i % 2 == 0 { "user" } else { "tool" }, "content": "x".repeat(99)}))
        .collect();
    let many = Value::from(many);
    let loops = "{{ range $.Messages }}".repeat(5) + &"{{ end }}".repeat(5);
    let found = rendered(&loops, &TemplateInput::new(&many));
    assert!(matches!(found, Err(TemplateError::TooManySteps)), "{found:?}");
    let doubles = "{{ $x := \"xxxxxxxx\" }}{{ range .Messages }}{{ $x = print $x $x }}{{ end }}";
    let found = rendered(doubles, &TemplateInput::new(&many));
    assert!(matches!(found, Err(TemplateError::PromptTooLong)), "{found:?}");
    let variables = "{{ $x := 1 }}".repeat(300) + "{{ .Messages }}";
    assert!(rendered(&variables, &TemplateInput::new(&many)).is_err());
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(source in "(\\{\\{|-| |\\}\\}|\\.|\\$|x|:=|if|range|end|else|\\(|\\)|\\||\"|len|1|\n|é){0,40}") {
        let messages = turns();
        if let Ok(template) = super::GoTemplate::parse(&source) {
            let _ = template.render(&TemplateInput::new(&messages));
        }
    }
}
