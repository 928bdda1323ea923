//! What the templates of a family write of an earlier answer, its reader reads again.

use m40_reply::{Format, Piece, Tool, Tools};
use m40_tokenizer::{ChatTemplate, TemplateInput};
use serde_json::{Value, json};

/// As Qwen 3 writes an assistant's turn.
const QWEN: &str = "\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content %}
        {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content }}
    {%- for tool_call in message.tool_calls %}
        {%- if (loop.first and message.content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
        {%- set tool_call = tool_call.function %}
        {{- '<tool_call>\\n{\"name\": \"' }}{{- tool_call.name }}{{- '\", \"arguments\": ' }}
        {{- tool_call.arguments | tojson }}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
{%- endfor %}";

/// As Llama 3 does.
const LLAMA: &str = "\
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
    {%- set tool_call = message.tool_calls[0].function %}
    {{- '{\"name\": \"' + tool_call.name + '\", ' }}
    {{- '\"parameters\": ' }}
    {{- tool_call.arguments | tojson }}
    {{- '}' }}
{%- endfor %}";

/// As Mistral does, before calls had names in front.
const MISTRAL: &str = "\
{%- for message in messages %}
    {{- '[TOOL_CALLS] [' }}
    {%- for tool_call in message.tool_calls %}
        {%- set out = tool_call.function|tojson %}
        {{- out[:-1] }}
        {{- ', \"id\": \"' + tool_call.id + '\"}' }}
        {%- if not loop.last %}{{- ', ' }}{%- else %}{{- ']' }}{%- endif %}
    {%- endfor %}
{%- endfor %}";

fn tools() -> Tools {
    let tool = |name: &str| Tool {
        name: name.into(),
        description: None,
        parameters: json!({"type": "object"}),
        strict: false,
    };
    Tools::new(["weather", "now"].map(tool).into()).expect("the tools are legal")
}

/// Renders an assistant's message, and reads what comes after `head`.
#[track_caller]
fn check(template: &str, head: &str, message: Value, want: &[Piece]) {
    let messages = json!([message]);
    let template = ChatTemplate::new(template, "", "").expect("it parses");
    let text = template.render(&TemplateInput::new(&messages)).expect("it takes the message");
    let answer = text.strip_prefix(head).expect("it begins with the role");
    let mut reader = Format::of_template(template.source()).reader(&tools(), head);
    let mut pieces = reader.push(answer);
    pieces.extend(reader.finish());
    assert_eq!(pieces, want, "{answer}");
}

fn calls() -> Value {
    let call = |id: &str, name: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let hard = json!({"city": "\"Ulm\" </tool_call> \\ é\n", "days": [1, 2.5, null, {"a": true}]});
    json!([call("abcdef123", "weather", hard), call("abcdef124", "now", json!({}))])
}

fn read(count: usize) -> Vec<Piece> {
    let hard = r#"{"city": "\"Ulm\" </tool_call> \\ é\n", "days": [1, 2.5, null, {"a": true}]}"#;
    let calls = [("weather", hard), ("now", "{}")].into_iter().take(count);
    let pieces = calls.flat_map(|(name, arguments)| {
        let call = Piece::Call { name: name.into() };
        [call, Piece::Arguments(arguments.into()), Piece::CallEnd]
    });
    pieces.collect()
}

#[test]
fn calls_and_reasoning_that_qwen_writes_are_read() {
    let message = json!({
        "role": "assistant",
        "reasoning_content": "Where?\n\nIn Ulm.",
        "content": "I'll look.",
        "tool_calls": calls(),
    });
    let said = [Piece::Reasoning("Where?\n\nIn Ulm.".into()), Piece::Content("I'll look.".into())];
    let want = [&said[..], &read(2)].concat();
    check(&format!("{QWEN}{{# </think> #}}"), "<|im_start|>assistant\n", message, &want);
}

#[test]
fn a_call_that_llama_writes_is_read() {
    let message = json!({"role": "assistant", "tool_calls": calls()});
    let head = "<|start_header_id|>assistant<|end_header_id|>\n\n";
    check(LLAMA, head, message, &read(1));
}

#[test]
fn calls_that_mistral_writes_are_read() {
    let message = json!({"role": "assistant", "tool_calls": calls()});
    check(MISTRAL, "", message, &read(2));
}
