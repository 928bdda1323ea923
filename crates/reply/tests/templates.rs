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

/// As Granite 3 does, which knows no calls of before, so that they are given to it as text.
const GRANITE: &str = "\
{%- if tools %}{{- '<|start_of_role|>available_tools<|end_of_role|>' + tools | tojson + '<|end_of_text|>\\n' }}{%- endif %}
{%- for message in messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] }}
{%- endfor %}{# <|tool_call|> #}";

/// As Phi 4 does, which has tools from the system prompt.
const PHI: &str = "\
{% for message in messages %}\
{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}\
{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}\
{% else %}{{ '<|' + message['role'] + '|>' + message['content'] }}{% endif %}{% endfor %}";

/// As Qwen 3 Coder does.
const QWEN_CODER: &str = "\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role }}
    {%- for tool_call in message.tool_calls %}
        {{- '\\n<tool_call>\\n<function=' + tool_call.function.name + '>\\n' }}
        {%- for name, value in tool_call.function.arguments | items %}
            {{- '<parameter=' + name + '>\\n' }}
            {{- (value if value is string else value | tojson) + '\\n</parameter>\\n' }}
        {%- endfor %}
        {{- '</function>\\n</tool_call>' }}
    {%- endfor %}
{%- endfor %}";

fn tools() -> Tools {
    let tool = |name: &str| Tool {
        name: name.into(),
        description: None,
        parameters: json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {}}}),
        strict: false,
    };
    Tools::new(["weather", "now"].map(tool).into()).expect("the tools are legal")
}

/// Renders an assistant's message, and reads what comes after `head`.
#[track_caller]
fn check(template: &str, head: &str, message: Value, want: &[Piece]) {
    let messages = json!([message]);
    let template = ChatTemplate::new(template, "", "").expect("it parses");
    let format = Format::of_template(template.source());
    let told = format.offer(&messages, &Tools::default());
    let messages = told.as_ref().unwrap_or(&messages);
    let text = template.render(&TemplateInput::new(messages)).expect("it takes the message");
    let answer = text.strip_prefix(head).expect("it begins with the role");
    let mut reader = format.reader(&tools(), head);
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

#[test]
fn calls_are_read_that_are_given_to_granite_and_phi_as_text() {
    let message = json!({"role": "assistant", "content": "I'll look.", "tool_calls": calls()});
    let compact = |piece: Piece| match piece {
        Piece::Arguments(text) => {
            let value: Value = serde_json::from_str(&text).expect("it is JSON");
            Piece::Arguments(value.to_string())
        }
        other => other,
    };
    let calls: Vec<Piece> = read(2).into_iter().map(compact).collect();
    let want = [&[Piece::Content("I'll look.".into())][..], &calls].concat();
    let head = "<|start_of_role|>assistant<|end_of_role|>";
    check(GRANITE, head, message.clone(), &want);
    check(PHI, "<|assistant|>", message, &want);
}

#[test]
fn calls_that_qwen_coder_writes_are_read() {
    let message = json!({"role": "assistant", "content": "", "tool_calls": calls()});
    check(QWEN_CODER, "<|im_start|>assistant", message, &read(2));
}

#[test]
fn phi_is_told_of_tools_in_its_system_prompt() {
    let template = ChatTemplate::new(PHI, "", "").expect("it parses");
    let format = Format::of_template(PHI);
    assert!(format.has_tools() && !format.takes_tools());
    let user = json!({"role": "user", "content": "Hi."});
    for (messages, system) in [
        (json!([user]), "You are a helpful assistant with some tools."),
        (json!([{"role": "system", "content": "Be brief."}, user]), "Be brief."),
    ] {
        let told = format.offer(&messages, &tools()).expect("it has tools");
        let text = template.render(&TemplateInput::new(&told)).expect("it takes the messages");
        let begin = format!("<|system|>{system}<|tool|>[{{\"name\":\"weather\",");
        assert!(text.starts_with(&begin), "{text}");
        assert!(text.ends_with("}]<|/tool|><|end|><|user|>Hi."), "{text}");
        assert_eq!(format.offer(&messages, &Tools::default()), None);
    }
}
