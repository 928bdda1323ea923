//! Answers as models of each family write them.

use m40_reply::{Format, Piece, Tool, Tools};
use serde_json::{Value, json};

/// Parts of the templates that models come with, from which their formats are known.
const QWEN_3: &str = "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call> \
     {%- if '</think>' in content %}";
const QWEN_2_5: &str = "<tool_call>\\n{\\\"name\\\": <function-name>}\\n</tool_call>";
const LLAMA_3_1: &str = "<|start_header_id|> {{- \"<|python_tag|>\" }} '\"parameters\": '";
const LLAMA_3_2: &str = "<|start_header_id|> {{- '{\"name\": \"' }} {{- '\"parameters\": ' }}";
const MISTRAL_OLD: &str = "{{- \"[TOOL_CALLS] [\" }} [AVAILABLE_TOOLS]";
const MISTRAL_NEW: &str = "[TOOL_CALLS]' + name + '[ARGS]' + arguments [THINK] [/THINK]";
const GEMMA: &str = "<start_of_turn>{{ role }}";
const DEEPSEEK_R1: &str = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + type + '<｜tool▁sep｜>' + name + '\\n' + '```json' \
     content.split('</think>')[-1]";
const DEEPSEEK_V3_1: &str =
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + name + '<｜tool▁sep｜>' </think>";
const HARMONY: &str = "<|start|>assistant<|channel|>analysis<|message|>";

const GRANITE: &str = "{{- '<|start_of_role|>assistant<|end_of_role|>' }} respond only with <|tool_call|> followed by a \
     JSON list of tools used. {{- '<|start_of_role|>available_tools<|end_of_role|>' }}";
const PHI_4: &str = "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' }}";
const PHI_4_WORD: &str = "all function calls should be generated in a single JSON list formatted as functools[{\"name\": \
     [function name], \"arguments\": [function arguments as JSON]}, ...] {%- for t in tools %}";
const QWEN_3_CODER: &str = "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n\
     </parameter>\n</function>\n</tool_call>";

fn tools() -> Tools {
    let tool = |name: &str| Tool {
        name: name.into(),
        description: None,
        parameters: json!({"type": "object"}),
        strict: false,
    };
    Tools::new(["weather", "now", "function"].map(tool).into()).expect("the tools are legal")
}

/// What an answer is, as JSON: a text is content, `{"r": …}` reasoning, `[name, arguments]` a call.
fn read(template: &str, prompt_tail: &str, answer: &str) -> Value {
    read_with(template, &tools(), prompt_tail, std::iter::once(answer))
}

/// The same of an answer that comes in several texts.
fn read_with<'t>(
    template: &str,
    tools: &Tools,
    prompt_tail: &str,
    answer: impl Iterator<Item = &'t str> + Clone,
) -> Value {
    let mut reader = Format::of_template(template).reader(tools, prompt_tail);
    let mut shown: Vec<Value> = vec![];
    let mut open = false;
    let mut pieces: Vec<Piece> = answer.clone().flat_map(|text| reader.push(text)).collect();
    pieces.extend(reader.finish());
    let answer: String = answer.collect();
    for piece in pieces {
        match piece {
            Piece::Content(text) => match shown.last_mut() {
                Some(Value::String(last)) => last.push_str(&text),
                _ => shown.push(text.into()),
            },
            Piece::Reasoning(text) => match shown.last_mut().and_then(|last| last.get_mut("r")) {
                Some(Value::String(last)) => last.push_str(&text),
                _ => shown.push(json!({"r": text})),
            },
            Piece::Call { name } => {
                assert!(!open, "a call begins in another: {answer}");
                open = true;
                shown.push(json!([name, ""]));
            }
            Piece::Arguments(text) => {
                let Some(Value::String(last)) = shown.last_mut().and_then(|last| last.get_mut(1))
                else {
                    panic!("arguments of no call: {answer}")
                };
                last.push_str(&text);
            }
            Piece::CallEnd => {
                open = false;
                let call = shown.last_mut().and_then(|last| last.get_mut(1));
                let arguments = call.expect("a call ends that began");
                let text = arguments.as_str().expect("arguments are text until the call ends");
                *arguments = serde_json::from_str(text).expect("complete arguments are JSON");
                assert!(arguments.is_object(), "{answer}");
            }
        }
    }
    Value::Array(shown)
}

#[track_caller]
fn check(template: &str, answer: &str, want: Value) {
    assert_eq!(read(template, "", answer), want, "{answer}");
}

#[test]
fn hermes_calls_stand_between_tags() {
    let call =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm\"}}\n</tool_call>";
    let ulm = json!(["weather", {"city": "Ulm"}]);
    check(QWEN_2_5, call, json!([ulm]));
    check(QWEN_2_5, &format!("I'll look.\n{call}"), json!(["I'll look.", ulm]));
    check(QWEN_2_5, &format!("{call}\n{call}\n"), json!([ulm, ulm]));
    check(QWEN_2_5, &format!("{call}\n\nDone."), json!([ulm, "Done."]));
    // Tags and braces are forgotten by small models.
    check(QWEN_2_5, &call.replace("\n</tool_call>", ""), json!([ulm]));
    check(QWEN_2_5, &call.replace("}\n</tool_call>", "\n</tool_call>."), json!([ulm, "."]));
    let turned = r#"<tool_call>{"arguments": {"city": "Ulm"}, "name": "weather"}</tool_call>"#;
    check(QWEN_2_5, turned, json!([ulm]));
}

#[test]
fn reasoning_stands_before_all_else() {
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    check(
        QWEN_3,
        "<think>\nHm.\n\nSo.\n</think>\n\n  Hi\n",
        json!([{"r": "Hm.\n\nSo."}, "  Hi\n"]),
    );
    check(QWEN_3, &format!("<think>\nHm\n</think>\n\n{call}"), json!([{"r": "Hm"}, ["now", {}]]));
    check(QWEN_3, "<think>\n\n</think>\n\nHi", json!(["Hi"]));
    check(QWEN_3, "<think>cut \n", json!([{"r": "cut \n"}]));
    check(QWEN_3, "Say <think>x</think>", json!(["Say <think>x</think>"]));
    // A call in thoughts is none.
    check(QWEN_3, &format!("<think>{call}</think>"), json!([{"r": call}]));
    let opened = read(QWEN_3, "<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nHi");
    assert_eq!(opened, json!([{"r": "Hm."}, "Hi"]));
    let closed = read(QWEN_3, "<|im_start|>assistant\n<think>\n\n</think>\n\n", "Hi </think>");
    assert_eq!(closed, json!(["Hi </think>"]));
    check(MISTRAL_NEW, "[THINK]Hm[/THINK]Hi", json!([{"r": "Hm"}, "Hi"]));
    // A model that does not reason may write about tags.
    check(QWEN_2_5, "<think>x</think>", json!(["<think>x</think>"]));
}

#[test]
fn llama_calls_are_the_whole_answer() {
    let call = r#"{"name": "weather", "parameters": {"city": "Ulm"}}"#;
    let ulm = json!(["weather", {"city": "Ulm"}]);
    for template in [LLAMA_3_1, LLAMA_3_2] {
        check(template, call, json!([ulm]));
        check(template, &format!("\n{call}\n"), json!([ulm]));
        check(template, &format!("<|python_tag|>{call}; {call}"), json!([ulm, ulm]));
        check(template, &format!("{call};\n{call}"), json!([ulm, ulm]));
        check(template, &format!("{call}\n{call}"), json!([ulm, ulm]));
        check(template, &format!("[{call}, {call}]"), json!([ulm, ulm]));
        let typed = call.replace("{\"name", "{\"type\": \"function\", \"name");
        check(template, &typed, json!([ulm]));
        check(template, "<function=weather>{\"city\": \"Ulm\"}</function>", json!([ulm]));
        // In the middle of a text it is an example.
        check(template, &format!("Write {call}"), json!([format!("Write {call}")]));
        check(
            template,
            "{\"name\": \"Ada\", \"age\": 3}",
            json!(["{\"name\": \"Ada\", \"age\": 3}"]),
        );
        check(template, "<|python_tag|>print(1)", json!(["<|python_tag|>print(1)"]));
    }
}

#[test]
fn mistral_calls_are_an_array_or_named() {
    let object = r#"{"name": "weather", "arguments": {"city": "Ulm"}, "id": "abcDEF123"}"#;
    let ulm = json!(["weather", {"city": "Ulm"}]);
    check(MISTRAL_OLD, &format!("[TOOL_CALLS] [{object}]"), json!([ulm]));
    check(MISTRAL_OLD, &format!("[TOOL_CALLS][{object}, {object}]"), json!([ulm, ulm]));
    check(MISTRAL_OLD, &format!("Look: [TOOL_CALLS] [{object}"), json!(["Look:", ulm]));
    let named = "[TOOL_CALLS]weather[ARGS]{\"city\": \"Ulm\"}";
    check(MISTRAL_NEW, named, json!([ulm]));
    check(MISTRAL_NEW, &format!("{named}{named}"), json!([ulm, ulm]));
    check(MISTRAL_NEW, &format!("[THINK]Hm[/THINK]{named}"), json!([{"r": "Hm"}, ulm]));
    check(MISTRAL_NEW, &named.replace("[ARGS]", "[CALL_ID]abc1[ARGS]"), json!([ulm]));
    let other = named.replace("weather", "wetter");
    check(MISTRAL_NEW, &other, json!([other]));
    // The second of a list is no tool.
    let mixed = format!("[TOOL_CALLS][{object}, {{\"name\": \"x\", \"arguments\": {{}}}}]");
    check(MISTRAL_OLD, &mixed, json!([ulm, ", {\"name\": \"x\", \"arguments\": {}}]"]));
}

#[test]
fn gemma_calls_are_code_or_json() {
    let ulm = json!(["weather", {"city": "Ulm"}]);
    check(GEMMA, "```tool_code\nweather(city=\"Ulm\")\n```", json!([ulm]));
    check(
        GEMMA,
        "```tool_code\nprint(weather(city='Ulm'))\nnow()\n```\n",
        json!([ulm, ["now", {}]]),
    );
    let object = r#"{"name": "weather", "parameters": {"city": "Ulm"}}"#;
    check(GEMMA, object, json!([ulm]));
    check(GEMMA, &format!("```json\n{object}\n```"), json!([ulm]));
    check(GEMMA, &format!("Sure.\n```json\n[{object}]\n```"), json!(["Sure.", ulm]));
    for text in
        ["```json\n{\"a\": 1}\n```\nis it.", "```tool_code\nx = 1\n```", "```tool_code\nnow("]
    {
        check(GEMMA, text, json!([text]));
    }
}

#[test]
fn deepseek_calls_stand_between_tokens() {
    let r1 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Ulm\"}\n```<｜tool▁call▁end｜>\
              \n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let both = json!([["weather", {"city": "Ulm"}], ["now", {}]]);
    check(DEEPSEEK_R1, r1, both.clone());
    let v3 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Ulm\"}<｜tool▁call▁end｜>\
              <｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    check(DEEPSEEK_V3_1, v3, both);
    // A tool may have the name of what stands before names elsewhere.
    check(
        DEEPSEEK_V3_1,
        &v3.replace("now", "function"),
        json!([["weather", {"city": "Ulm"}], ["function", {}]]),
    );
    let reasoned = read(DEEPSEEK_R1, "<｜Assistant｜><think>\n", &format!("Hm.\n</think>\n\n{r1}"));
    assert_eq!(reasoned[0], json!({"r": "Hm."}));
    assert_eq!(reasoned[2], json!(["now", {}]));
}

#[test]
fn granite_calls_are_a_list_after_a_token() {
    let ulm = json!(["weather", {"city": "Ulm"}]);
    let object = r#"{"name": "weather", "arguments": {"city": "Ulm"}}"#;
    let now = r#"{"arguments": {}, "name": "now"}"#;
    let both = json!([ulm, ["now", {}]]);
    check(GRANITE, &format!("<|tool_call|>[{object}, {now}]"), both.clone());
    check(GRANITE, &format!("<|tool_call|> [{object},\n{now}\n]\n"), both.clone());
    check(GRANITE, &format!("<tool_call>[{object}, {now}]"), both);
    check(GRANITE, &format!("Let me see. <|tool_call|>{object}"), json!(["Let me see.", ulm]));
    for text in [
        "<|tool_call|>",
        "<|tool_call|>[]",
        "<|tool_call|>[{\"name\": \"other\", \"arguments\": {}}]",
    ] {
        check(GRANITE, text, json!([text]));
    }
}

#[test]
fn phi_calls_are_a_list_after_a_token_or_a_word() {
    let object = r#"{"name": "weather", "arguments": {"city": "Ulm"}}"#;
    let parameters = object.replace("arguments", "parameters");
    let ulm = json!(["weather", {"city": "Ulm"}]);
    for template in [PHI_4, PHI_4_WORD] {
        check(template, &format!("<|tool_call|>[{object}]<|/tool_call|>"), json!([ulm]));
        check(template, &format!("<|tool_call|>{object}<|/tool_call|>"), json!([ulm]));
        check(template, &format!("functools[{object}, {object}]"), json!([ulm, ulm]));
        check(template, &format!("So: functools[{parameters}]"), json!(["So:", ulm]));
        for text in ["import functools", "functools[1]", "functools[{\"a\": 1}]", object] {
            check(template, text, json!([text]));
        }
    }
}

#[test]
fn qwen_coder_calls_have_a_tag_for_each_argument() {
    let parameters = json!({
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "line": {"type": "integer"},
            "all": {"type": "boolean"},
            "edits": {"type": "array"},
            "mode": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "mail": {"type": "string", "maxLength": 20},
        },
    });
    let edit = Tool { name: "edit".into(), description: None, parameters, strict: false };
    let now = Tool { name: "now".into(), parameters: json!({"type": "object"}), ..edit.clone() };
    let tools = Tools::new(vec![edit, now]).unwrap();
    let check = |answer: &str, want: Value| {
        let whole = read_with(QWEN_3_CODER, &tools, "", std::iter::once(answer));
        assert_eq!(whole, want, "{answer}");
        // Wherever it is cut into two.
        for at in (0..answer.len()).filter(|at| answer.is_char_boundary(*at)) {
            let (first, second) = answer.split_at(at);
            let cut = read_with(QWEN_3_CODER, &tools, "", [first, second].into_iter());
            assert_eq!(cut, want, "{first:?} {second:?}");
        }
    };
    let call =
        |inside: &str| format!("<tool_call>\n<function=edit>\n{inside}</function>\n</tool_call>");
    let tag = |key: &str, value: &str| format!("<parameter={key}>\n{value}\n</parameter>\n");
    let one = |inside: &str, arguments: Value| check(&call(inside), json!([["edit", arguments]]));
    one("", json!({}));
    one(&tag("path", "/a b/ü.txt"), json!({"path": "/a b/ü.txt"}));
    let code = "\n  if (a < b && c == \"</div>\") {\n\treturn '\\n';\n  }\n";
    one(&tag("path", code), json!({"path": code}));
    one(
        &[
            tag("path", "true"),
            tag("line", "12"),
            tag("all", "True"),
            tag("edits", "[{\"a\":\n1}]"),
        ]
        .concat(),
        json!({"path": "true", "line": 12, "all": true, "edits": [{"a": 1}]}),
    );
    one(&tag("line", "twelve"), json!({"line": "twelve"}));
    one(&tag("mode", "null"), json!({"mode": null}));
    one(
        &[tag("mode", "7"), tag("mail", "7"), tag("unknown", "7")].concat(),
        json!({"mode": "7", "mail": "7", "unknown": 7}),
    );
    one(
        "<parameter=path>a</parameter><parameter=line>1</parameter>",
        json!({"path": "a", "line": 1}),
    );
    let a = call(&tag("path", "a"));
    let told = json!(["edit", {"path": "a"}]);
    check(&format!("Look.\n\n{a}\n{a}"), json!(["Look.", told, told]));
    check(&format!("{a}\n\nDone."), json!([told, "Done."]));
    // The first tag is what models forget.
    check(a.strip_prefix("<tool_call>\n").unwrap(), json!([told]));
    check("<tool_call>\n<function=now>\n</function>\n</tool_call>", json!([["now", {}]]));
    check(
        "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        json!([["now", {}]]),
    );
    for text in [
        "Write <tool_call> first.",
        "<tool_call>\n<function=other>\n</function>\n</tool_call>",
        "<function=now> and so on",
        "<tool_call>\n<function=now>",
    ] {
        check(text, json!([text]));
    }
    check("<function=edit>\n<parameter=path>\nab\n", json!([["edit", "{\"path\": \"ab\\n"]]));
    check("<function=edit>\n<parameter=line>\n12", json!([["edit", "{\"line\": 12"]]));
}

#[test]
fn harmony_messages_go_where_their_channels_say() {
    let prompt = "<|start|>assistant";
    let check =
        |answer: &str, want: Value| assert_eq!(read(HARMONY, prompt, answer), want, "{answer}");
    let thought = "<|channel|>analysis<|message|>Hm.<|end|>";
    let ulm = json!(["weather", {"city": "Ulm"}]);
    check(
        &format!("{thought}<|start|>assistant<|channel|>final<|message|>Hi there"),
        json!([{"r": "Hm."}, "Hi there"]),
    );
    for header in [
        "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.weather<|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.weather json<|message|>",
        " to=functions.weather<|channel|>commentary <|constrain|>json<|message|>",
        "<|channel|>analysis to=functions.weather code<|message|>",
    ] {
        let call = format!("{header}{{\"city\": \"Ulm\"}}");
        check(&call, json!([ulm]));
        check(&format!("{thought}<|start|>assistant{call}<|call|>"), json!([{"r": "Hm."}, ulm]));
    }
    let preamble = "<|channel|>commentary<|message|>I'll look.<|end|>";
    let call = "<|start|>assistant<|channel|>commentary to=functions.now<|message|>{}";
    check(&format!("{preamble}{call}"), json!(["I'll look.", ["now", {}]]));
    for text in [
        "just text",
        "to be",
        "<|channel|>commentary to=functions.other<|message|>{}",
        "<|channel|>commentary to=functions.now<|message|>x",
        "<|channel|>commentary to=functions.now",
        "<|channel|>odd<|message|>x",
    ] {
        check(text, json!([text]));
    }
    let begun = read(HARMONY, "<|start|>assistant<|channel|>analysis<|message|>", "Hm.<|end|>");
    assert_eq!(begun, json!([{"r": "Hm."}]));
}

#[test]
fn what_only_looks_like_a_call_stays_as_it_was_written() {
    for text in [
        "The tag <tool_call> begins a call.",
        "<tool_call>",
        "<tool_call>\n{\"name\": \"weather\"",
        "<tool_call>\n{\"name\": \"weather\"}\n</tool_call>",
        "<tool_call>\n{\"name\": \"other\", \"arguments\": {}}\n</tool_call>",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": \"Ulm\"}\n</tool_call>",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": [1]}\n</tool_call>",
        "<tool_call>\n{\"name\": \"weather\", \"arguments\":",
        "a\n\n<tool_call>\n{name: weather}\n</tool_call>  ",
        "{\"name\": \"weather\", \"arguments\": {}}",
        " \n",
    ] {
        check(QWEN_3, text, json!([text]));
    }
    // The second is one.
    let text =
        "<tool_call> is written so: <tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    check(QWEN_3, text, json!(["<tool_call> is written so:", ["now", {}]]));
}

#[test]
fn broken_arguments_end_without_the_end_of_the_call() {
    let head = "<tool_call>{\"name\": \"weather\", \"arguments\": ";
    check(QWEN_3, &format!("{head}{{\"city\": Ulm}}"), json!([["weather", "{\"city\": Ulm}"]]));
    check(QWEN_3, &format!("{head}{{\"city\": \"Ul"), json!([["weather", "{\"city\": \"Ul"]]));
}

#[test]
fn without_tools_nothing_is_a_call() {
    let text = "a \n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    let mut reader = Format::of_template(QWEN_3).reader(&Tools::default(), "");
    assert_eq!(reader.push(text), [Piece::Content(text.into())]);
    assert_eq!(reader.finish(), []);
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut reader = Format::of_template(QWEN_3).reader(&tools(), "");
    assert_eq!(reader.push("<tool_call>\n{\"name\": \"wea"), []);
    assert_eq!(reader.push("ther\", \"arguments\": "), []);
    let first = reader.push("{\"ci");
    assert_eq!(first, [Piece::Call { name: "weather".into() }, Piece::Arguments("{\"ci".into())]);
    assert_eq!(reader.push("ty\": \"U"), [Piece::Arguments("ty\": \"U".into())]);
    assert_eq!(reader.push("lm\"}}\n"), [Piece::Arguments("lm\"}".into()), Piece::CallEnd]);
    assert_eq!(reader.push("</tool_call>"), []);
    assert_eq!(reader.finish(), []);
}

#[test]
fn a_model_without_a_format_is_asked_to_call_as_hermes_does() {
    let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    check("{{ messages[0].content }}", call, json!([["now", {}]]));
}

#[test]
fn a_template_says_what_its_models_can_do() {
    for (template, tools, reasoning) in [
        ("{{ messages[0].content }}", false, false),
        (QWEN_2_5, true, false),
        (QWEN_3, true, true),
        (LLAMA_3_2, true, false),
        (MISTRAL_NEW, true, true),
        (DEEPSEEK_R1, true, true),
        (HARMONY, true, true),
        (GRANITE, true, false),
        (PHI_4, true, false),
        (QWEN_3_CODER, true, false),
    ] {
        let format = Format::of_template(template);
        assert_eq!((format.has_tools(), format.has_reasoning()), (tools, reasoning), "{template}");
    }
    assert_eq!(Format::of_template(MISTRAL_NEW).markers().len(), 5);
}
