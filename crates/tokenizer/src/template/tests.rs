//! Short templates that use what the templates of real models use.

use serde_json::{Value as Json, json};

use super::*;

#[track_caller]
fn render(source: &str, messages: Json) -> String {
    let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
    template.render(&TemplateInput::new(&messages)).unwrap()
}

fn fails(source: &str, messages: Json) -> TemplateError {
    let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
    template.render(&TemplateInput::new(&messages)).unwrap_err()
}

fn user(text: &str) -> Json {
    json!([{"role": "user", "content": text}])
}

#[test]
fn chatml_is_the_layout_without_a_template() {
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<b> & 'x'"},
    ]);
    let template = ChatTemplate::new(CHATML, "", "").unwrap();
    let mut input = TemplateInput::new(&messages);
    let turns = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<b> & 'x'<|im_end|>\n";
    assert_eq!(template.render(&input).unwrap(), format!("{turns}<|im_start|>assistant\n"));
    input.add_generation_prompt = false;
    assert_eq!(template.render(&input).unwrap(), turns);
}

#[test]
fn llama_3_style_takes_the_system_message_out_and_writes_the_date() {
    let source = "\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now(\"%d %b %Y\") %}
    {%- else %}
        {%- set date_string = \"26 Jul 2024\" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = \"\" %}
{%- endif %}
{{- \"[system] \" + date_string + \" \" + system_message + \"\\n\" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '[' + message['role'] + '] ' + message['content'] | trim + '\\n' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception(\"one tool call at a time\") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{\"name\": \"' + tool_call.name + '\", \"parameters\": ' }}
        {{- tool_call.arguments | tojson }}
        {{- \"}\\n\" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant] ' }}
{%- endif %}
";
    let call = json!({"function": {"name": "f", "arguments": {"b": 1.0, "a": ["<x>", null]}}});
    let messages = json!([
        {"role": "system", "content": " short "},
        {"role": "user", "content": "hi\n"},
        {"role": "assistant", "tool_calls": [call]},
    ]);
    let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
    let mut input = TemplateInput::new(&messages);
    let rest = "[user] hi\n{\"name\": \"f\", \"parameters\": {\"b\": 1.0, \"a\": [\"<x>\", null]}}\n\
                [assistant] ";
    let rendered = template.render(&input).unwrap();
    assert_eq!(rendered, format!("<s>[system] 26 Jul 2024 short\n{rest}"));
    input.now = Some(1_709_210_096);
    let rendered = template.render(&input).unwrap();
    assert_eq!(rendered, format!("<s>[system] 29 Feb 2024 short\n{rest}"));
    let extra = json!({"date_string": "today", "messages": "cannot be replaced"});
    input.extra = extra.as_object();
    assert_eq!(template.render(&input).unwrap(), format!("<s>[system] today short\n{rest}"));
}

const QWEN_STYLE: &str = "\
{%- if tools %}
    {{- '# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- '\\n' }}
    {%- endfor %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == \"user\" and message.content is string and \
       not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '[think ' + reasoning.strip('\\n') + ']' }}
        {%- endif %}
        {{- '[assistant] ' + content + '\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}
            {{- '[tools]' }}
        {%- endif %}
        {{- ' ' + content }}
        {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}
            {{- '\\n' }}
        {%- endif %}
    {%- else %}
        {{- '[' + message.role + '] ' + content + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[assistant] ' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '[no think] ' }}
    {%- endif %}
{%- endif %}";

#[test]
fn qwen_3_style_follows_tools_and_thoughts() {
    let tools = json!([{"type": "function", "function": {"name": "now", "parameters": {}}}]);
    let messages = json!([
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nx"},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": null},
    ]);
    let template = ChatTemplate::new(QWEN_STYLE, "", "").unwrap();
    let extra = json!({"enable_thinking": false});
    let input = TemplateInput {
        tools: Some(&tools),
        extra: extra.as_object(),
        ..TemplateInput::new(&messages)
    };
    assert_eq!(
        template.render(&input).unwrap(),
        "# Tools\n{\"type\": \"function\", \"function\": {\"name\": \"now\", \"parameters\": {}}}\n\
         [user] q\n[think hm][assistant] x\n[tools] 1 2\n[think ][assistant] \n[assistant] [no think] "
    );
}

#[test]
fn mistral_style_insists_on_turns() {
    let source = "\
{%- if messages[0]['role'] == 'system' %}
{%- set system_message = messages[0]['content'] %}
{%- set loop_messages = messages[1:] %}
{%- else %}
{%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate user/assistant/' + loop.index0|string) }}
{%- endif %}
{%- if message['role'] == 'user' %}
{%- if loop.first and system_message is defined %}
{{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
{%- else %}
{{- ' [INST] ' + message['content'] + ' [/INST]' }}
{%- endif %}
{%- else %}
{{- ' ' + message['content'] + eos_token }}
{%- endif %}
{%- endfor %}";
    let turns = json!([
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]);
    assert_eq!(render(source, turns), "<s> [INST] S\n\na [/INST] b</s> [INST] c [/INST]");
    let twice = json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]);
    let TemplateError::Raised { message } = fails(source, twice) else { panic!("not raised") };
    assert_eq!(message, "roles must alternate user/assistant/1");
}

#[test]
fn gemma_style_folds_the_system_message_into_the_first_turn() {
    let source = "\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = \"\" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = \"model\" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else \"\") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception(\"Invalid content type\") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}";
    let messages = json!([
        {"role": "system", "content": [{"type": "text", "text": "S"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " look "}]},
        {"role": "assistant", "content": "ok "},
    ]);
    assert_eq!(
        render(source, messages),
        "<s><start_of_turn>user\nS\n\n<image>look<end_of_turn>\n\
         <start_of_turn>model\nok<end_of_turn>\n<start_of_turn>model\n"
    );
}

#[test]
fn deepseek_r1_style_drops_old_thoughts() {
    let source = "\
{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}\
{% set ns = namespace(is_first=false, is_tool=false, system_prompt='') %}\
{%- for message in messages %}{%- if message['role'] == 'system' %}\
{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}\
{{bos_token}}{{ns.system_prompt}}\
{%- for message in messages %}\
{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'[U]' + message['content']}}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] is not none %}\
{% set content = message['content'] %}\
{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{'[A]' + content + eos_token}}{%- endif %}\
{%- endfor -%}\
{% if add_generation_prompt and not ns.is_tool %}{{'[A]'}}{% endif %}";
    let messages = json!([
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "<think>x</think>2"},
        {"role": "system", "content": "S"},
        {"role": "user", "content": "3"},
    ]);
    assert_eq!(render(source, messages), "<s>S[U]1[A]2</s>[U]3[A]");
}

#[test]
fn phi_3_style_lines_keep_trimmed_blocks() {
    let source = "\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{'<|user|>\n' + message['content'] + '<|end|>\n'}}
{% elif message['role'] == 'assistant' %}
{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>\n' }}
{% else %}
{{ eos_token }}
{% endif %}
";
    // A line break after a block is dropped; one after an expression is not.
    assert_eq!(render(source, user("hi")), "<|user|>\nhi<|end|>\n\n<|assistant|>\n\n");
}

#[test]
fn python_methods_and_loop_controls_work() {
    let source = "\
{%- for m in messages -%}
{%- if m.role == 'skip' -%}{%- continue -%}{%- endif -%}
{%- if m.role == 'stop' -%}{%- break -%}{%- endif -%}
{{ m.content.upper() }}|{{ m.content.title() }}|{{ m.get('name', 'anon') }}|
{%- for key, value in m.items() -%}{{ key ~ '=' ~ value ~ ';' }}{%- endfor -%}
{%- endfor -%}";
    let messages = json!([
        {"role": "skip", "content": "a"},
        {"role": "user", "content": "ab cd"},
        {"role": "stop", "content": "b"},
    ]);
    assert_eq!(render(source, messages), "AB CD|Ab Cd|anon|role=user;content=ab cd;");
}

#[test]
fn values_print_as_python_prints_them() {
    let messages =
        json!([true, null, 1, 1.0, 1e16, 1.5e-7, "it's", ["it's", "a\"b\n"], {"k": [false]}]);
    assert_eq!(
        render("{% for m in messages %}{{ m }}\n{% endfor %}", messages),
        "True\nNone\n1\n1.0\n1e+16\n1.5e-07\nit's\n[\"it's\", 'a\"b\\n']\n{'k': [False]}\n"
    );
}

#[test]
fn json_is_pythons() {
    let value = json!([{"b": [1, 2.0, 1e22], "a": "é<&>'\u{1}\n", "c": {}, "d": []}]);
    assert_eq!(
        render("{{ messages[0] | tojson }}", value.clone()),
        r#"{"b": [1, 2.0, 1e+22], "a": "é<&>'\u0001\n", "c": {}, "d": []}"#
    );
    assert_eq!(
        render("{{ messages[0] | tojson(indent=2) }}", value.clone()),
        "{\n  \"b\": [\n    1,\n    2.0,\n    1e+22\n  ],\n  \"a\": \"é<&>'\\u0001\\n\",\n  \"c\": {},\n  \"d\": []\n}"
    );
    assert_eq!(
        render("{{ messages[0].c | tojson(ensure_ascii=False, sort_keys=true) }}", value),
        "{}"
    );
}

#[test]
fn generation_blocks_are_transparent() {
    let source = "{% for m in messages %}\n{%- generation %}[{{ m.content }}]{%- endgeneration -%}\n{% endfor %}";
    assert_eq!(render(source, user("x")), "[x]");
}

#[test]
fn a_syntax_error_is_told_with_its_line() {
    let error = ChatTemplate::new("a\nb\n{% if %}", "", "").unwrap_err();
    let TemplateError::Syntax { line, message } = &error else { panic!("{error}") };
    assert_eq!(*line, 3);
    assert!(message.starts_with("syntax error:"), "{message}");
    assert!(error.to_string().starts_with("the chat template does not parse: line 3: "));
}

#[test]
fn a_failure_is_told_with_its_line() {
    let error = fails("a\nb\n{{ messages[0].nothing.here }}", user("x"));
    let TemplateError::Render { line: 3, message } = &error else { panic!("{error}") };
    assert!(message.contains("undefined"), "{message}");
}

#[test]
fn a_template_without_end_is_stopped() {
    let source = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(matches!(fails(source, user("x")), TemplateError::TooManySteps));
}

#[test]
fn a_template_that_writes_without_end_is_stopped() {
    let source = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
    assert!(matches!(fails(source, user(&"x".repeat(9999))), TemplateError::PromptTooLong));
}

#[test]
fn a_template_that_calls_itself_without_end_is_stopped() {
    let source = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(fails(source, user("x")), TemplateError::Render { .. }));
}

#[test]
fn an_oversized_source_is_refused() {
    let error = ChatTemplate::new(&"x".repeat(MAX_SOURCE_BYTES + 1), "", "").unwrap_err();
    assert!(matches!(error, TemplateError::SourceTooLong { bytes: 1_048_577 }));
}

#[test]
fn a_template_says_what_it_has_words_for() {
    let abilities = |source: &str| {
        let template = ChatTemplate::new(source, "", "").unwrap();
        (template.takes_tools(), template.knows_thoughts())
    };
    assert_eq!(abilities("{{ messages[0].content }} tools, enable_thinking"), (false, false));
    assert_eq!(abilities(QWEN_STYLE), (true, true));
    let renamed = "{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}\
                   {%- if not tools is defined %}{% set tools = none %}{% endif %}\
                   {%- if tools is not none %}{{ tools | tojson }}{% endif %}";
    assert_eq!(abilities(renamed), (true, false), "assigned on one of the ways only");
    assert_eq!(abilities("{% set tools = 1 %}{{ tools }}"), (false, false), "its own");
    assert_eq!(abilities("Reasoning: {{ reasoning_effort }}"), (false, true));
    assert_eq!(abilities("<|Assistant|><think>\n"), (false, true));
}
