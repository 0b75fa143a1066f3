use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn render(source: &str, input: &ChatInput) -> Result<String, TextError> {
    ChatTemplate::new(source, "<s>", "</s>").render(input)
}

fn conversation() -> ChatInput {
    ChatInput::new(&[ChatMessage::new("user", " Hi <b> "), ChatMessage::new("assistant", "Yo")])
}

#[test]
fn chatml() {
    let source = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message.content \
                  + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let text = "<|im_start|>user\n Hi <b> <|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n";
    let expected = format!("{text}<|im_start|>assistant");
    assert_eq!(render(source, &conversation()).unwrap().trim_end(), expected);
    assert_eq!(render(source, &conversation().add_generation_prompt(false)).unwrap(), text);
}

#[test]
fn blocks_are_trimmed_as_transformers_does() {
    let source = "{% for m in messages %}\n    {% if loop.first %}\n{{ bos_token }}\n    {%- endif %}\n[{{ m.role }}]\n{% endfor %}\n";
    assert_eq!(render(source, &conversation()).unwrap(), "<s>[user]\n[assistant]\n");
}

#[test]
fn python_methods_and_spellings() {
    let source = "{{ messages[0].content.strip() }}|{{ 'a,b'.split(',')[1] }}|{{ true }}|{{ none }}|\
                  {% for k, v in {'x': 1}.items() %}{{ k }}{{ v }}{% endfor %}|{{ messages[0].get('nope') is none }}|\
                  {{ missing }}|{{ 'Hi'.startswith('H') }}|{{ messages[::-1][0].role }}|{{ messages | length }}{{ missing | length }}";
    assert_eq!(render(source, &conversation()).unwrap(), "Hi <b>|b|True|None|x1|True||True|assistant|20");
}

#[test]
fn json_is_pythons() {
    let tools = [("a", vec![1.5, 2.0]), ("<é'>", vec![])];
    let input = conversation().tools(&tools);
    assert_eq!(render("{{ tools | tojson }}", &input).unwrap(), r#"[["a", [1.5, 2.0]], ["<é'>", []]]"#);
    assert_eq!(render("{{ {'b': none, 'a': true} | tojson }}", &input).unwrap(), r#"{"b": null, "a": true}"#);
    let sorted = "{{ {'b': [1, {}], 'a': 'x\n'} | tojson(indent=2, sort_keys=true) }}";
    assert_eq!(render(sorted, &input).unwrap(), "{\n  \"a\": \"x\\n\",\n  \"b\": [\n    1,\n    {}\n  ]\n}");
    assert_eq!(render("{{ 'é😀' | tojson(ensure_ascii=true) }}", &input).unwrap(), r#""\u00e9\ud83d\ude00""#);
}

#[test]
fn date_and_loop_controls() {
    let input = conversation().now(UNIX_EPOCH + Duration::from_secs(86_400)).with("n", 3);
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}", &input).unwrap(), "02 Jan 1970");
    let source = "{% for i in range(9) %}{% if i == n %}{% break %}{% endif %}{{ i }}{% endfor %}";
    assert_eq!(render(source, &input).unwrap(), "012");
}

#[test]
fn generation_tags_are_plain_blocks() {
    let source = "{%- generation -%}{{ messages[1].content }}{% endgeneration %}!";
    assert_eq!(render(source, &conversation()).unwrap(), "Yo!");
}

#[test]
fn errors_say_what_and_where() {
    let raised = render("{{ raise_exception('roles must alternate') }}", &conversation());
    assert_eq!(raised, Err(TextError::TemplateRaised { message: "roles must alternate".into() }));
    let syntax = render("ok\n{% if %}", &conversation());
    assert!(matches!(syntax, Err(TextError::Template { line: 2, .. })), "{syntax:?}");
    let undefined = render("\n\n{{ nothing.at.all }}", &conversation());
    assert!(matches!(undefined, Err(TextError::Template { line: 3, .. })), "{undefined:?}");
}

#[test]
fn endless_templates_end() {
    let source = "{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}";
    assert!(matches!(render(source, &conversation()), Err(TextError::Template { .. })));
}
