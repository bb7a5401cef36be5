//! Chat templates render as `transformers` renders them, within limits, and refuse in words.

use std::fs;
use std::time::{Duration, SystemTime};

use baichuan_engine::text::{ChatTemplate, Message, RenderOptions, SpecialTokens, TextError};

use crate::support::{Checkpoint, fixture, golden};

const CONFIG: &str = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#;

/// 2025-02-07 08:09:10 UTC.
fn golden_time() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_738_915_750)
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new("test", source, SpecialTokens::default()).expect("the template compiles")
}

fn user(content: &str) -> Vec<Message> {
    vec![Message::new("user", content)]
}

#[test]
fn prompts_are_those_of_transformers() {
    let cases = golden("chat.json");
    let mut n_prompts = 0;
    for case in cases.as_array().expect("a list of cases") {
        let name = case["template"].as_str().expect("a name");
        let source = fs::read(fixture("templates").join(name)).expect("the template is committed");
        let checkpoint = Checkpoint::new()
            .with("chat_template.jinja", source)
            .with("tokenizer_config.json", CONFIG);
        let template = ChatTemplate::from_dir(checkpoint.path())
            .unwrap()
            .expect("a template");
        let messages: Vec<(String, String)> = serde_json::from_value(case["messages"].clone()).unwrap();
        let messages: Vec<Message> = messages
            .into_iter()
            .map(|(role, content)| Message::new(role, content))
            .collect();
        let mode = case["mode"].as_str().expect("a mode");
        let continue_final_message = mode == "continue";
        let last_is_assistants = messages.last().is_some_and(|message| message.role == "assistant");
        if continue_final_message && !last_is_assistants {
            continue;
        }
        let unnamed_tool = messages.iter().any(|message| message.role == "tool") && name != "blocks.jinja";
        let options = RenderOptions {
            add_generation_prompt: mode == "prompt",
            continue_final_message,
            now: golden_time(),
        };
        let what = format!("{name}, {}, {mode}", case["chat"]);
        match (template.render(&messages, &options), case["prompt"].as_str()) {
            (Ok(actual), Some(expected)) => {
                assert_eq!(actual, expected, "{what}");
                n_prompts += 1;
            }
            (Err(TextError::UnknownRole { role, .. }), _) => {
                assert!(unnamed_tool && role == "tool", "{what}")
            }
            (Err(TextError::TemplateRefused { message }), None) => {
                assert_eq!(case["error"], format!("TemplateError: {message}"), "{what}");
            }
            (Err(TextError::Messages { .. }), Some(expected)) => {
                assert!(
                    expected.contains("CONTINUE_FINAL_MESSAGE_TAG"),
                    "{what}: theirs leaks its mark, ours does not"
                );
            }
            (Err(TextError::Messages { .. }), None) => {
                assert!(
                    case["error"]
                        .as_str()
                        .expect("an error")
                        .starts_with("ValueError: continue"),
                    "{what}"
                );
            }
            (actual, expected) => panic!("{what}: {actual:?} instead of {expected:?}"),
        }
    }
    assert!(n_prompts > 90, "{n_prompts} prompts compared");
}

#[test]
fn a_broken_template_is_named_with_its_line() {
    let broken = "{% if true %}\n\n{{ messages[ }}";
    let file = Checkpoint::new().with("chat_template.jinja", broken);
    let config = serde_json::json!({ "chat_template": broken }).to_string();
    let key = Checkpoint::new().with("tokenizer_config.json", config);
    for (checkpoint, name) in [(file, "chat_template.jinja"), (key, "tokenizer_config.json")] {
        let error = ChatTemplate::from_dir(checkpoint.path()).unwrap_err();
        assert!(matches!(error, TextError::Template { line: 3, .. }), "{error:?}");
        let expected = format!(
            "chat template {}, line 3: syntax error",
            checkpoint.path().join(name).display()
        );
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(!error.is_callers_fault());
    }
}

#[test]
fn a_failing_template_is_named_with_its_line() {
    for (source, line) in [
        ("a\n{{ nothing.at.all }}", 2),
        ("{{ 'x' | no_such_filter }}", 1),
        ("{{ f() }}", 1),
        ("\n\n{{ strftime_now('%') }}", 3),
    ] {
        let error = template(source)
            .render(&user("hi"), &RenderOptions::default())
            .unwrap_err();
        let TextError::Template {
            template,
            line: actual,
            ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert_eq!((template.as_str(), *actual), ("test", line), "{error}");
    }
}

#[test]
fn a_template_refuses_in_its_own_words() {
    let strict = template(
        "{% for m in messages %}{{ raise_exception('only ' ~ m.role ~ 's may not speak') }}{% endfor %}",
    );
    let error = strict.render(&user("hi"), &RenderOptions::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chat template refuses these messages: only users may not speak"
    );
    assert!(error.is_callers_fault());
}

#[test]
fn the_default_of_several_named_templates_is_taken() {
    let named = |names: &[&str]| {
        let templates: Vec<_> = names
            .iter()
            .map(|name| serde_json::json!({ "name": name, "template": name }))
            .collect();
        let config = serde_json::json!({ "chat_template": templates }).to_string();
        let checkpoint = Checkpoint::new().with("tokenizer_config.json", config);
        ChatTemplate::from_dir(checkpoint.path())
    };
    let template = named(&["tool_use", "default"]).unwrap().expect("a template");
    assert_eq!(
        template.render(&user("hi"), &RenderOptions::default()).unwrap(),
        "default"
    );
    let message = named(&["rag", "tool_use"]).unwrap_err().to_string();
    assert!(
        message.ends_with("`chat_template` has no template named `default`, only: rag, tool_use"),
        "{message}"
    );
}

#[test]
fn a_template_file_wins_over_the_configuration() {
    let checkpoint = Checkpoint::new()
        .with("chat_template.jinja", "file")
        .with("tokenizer_config.json", "{\"chat_template\": \"configuration\"}");
    let template = ChatTemplate::from_dir(checkpoint.path())
        .unwrap()
        .expect("a template");
    assert_eq!(
        template.render(&user("hi"), &RenderOptions::default()).unwrap(),
        "file"
    );
    let none = Checkpoint::new().with("tokenizer_config.json", "{\"chat_template\": null}");
    assert!(ChatTemplate::from_dir(none.path()).unwrap().is_none());
}

#[test]
fn a_role_must_be_common_or_named_in_the_template() {
    let messages = |role: &str| [Message::new("user", "hi"), Message::new(role, "there")];
    let by_name =
        template("{% for m in messages %}{% if m.role == 'tool' %}T{% endif %}{{ m.content }}{% endfor %}");
    let options = RenderOptions::default();
    assert_eq!(by_name.render(&messages("tool"), &options).unwrap(), "hiTthere");
    assert_eq!(by_name.render(&messages("system"), &options).unwrap(), "hithere");
    for role in ["wizard", "", "User", "tool' or 'x"] {
        let error = by_name.render(&messages(role), &options).unwrap_err();
        let expected = format!(
            "messages[1].role `{role}` is unknown to the chat template, known are system, user, assistant, tool"
        );
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn messages_that_make_no_prompt_are_refused() {
    let plain = template("{% for m in messages %}{{ m.content }}{% endfor %}");
    let twice = template("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}");
    let dropping = template("{{ messages[0].content }}");
    let open = RenderOptions {
        add_generation_prompt: false,
        continue_final_message: true,
        now: SystemTime::UNIX_EPOCH,
    };
    let both = RenderOptions {
        add_generation_prompt: true,
        ..open
    };
    let answered = [Message::new("user", "a"), Message::new("assistant", "b")];
    assert_eq!(plain.render(&answered, &open).unwrap(), "ab");
    let cases: [(&ChatTemplate, &[Message], &RenderOptions, &str); 5] = [
        (&plain, &[], &open, "messages: there are none"),
        (
            &plain,
            &answered,
            &both,
            "messages: cannot both continue the last one and open a new one",
        ),
        (
            &plain,
            &answered[..1],
            &open,
            "messages: only an assistant's can be continued, the last one is of `user`",
        ),
        (
            &twice,
            &answered,
            &open,
            "messages: the chat template repeats the last one, so it cannot be continued",
        ),
        (
            &dropping,
            &answered,
            &open,
            "messages: the chat template drops or rewrites the last one, so it cannot be continued",
        ),
    ];
    for (template, messages, options, expected) in cases {
        let error = template.render(messages, options).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert!(error.is_callers_fault());
    }
}

#[test]
fn what_a_template_works_and_writes_is_limited() {
    let endless =
        "{% for i in range(9999) %}{% for j in range(9999) %}{% set x = i %}{% endfor %}{% endfor %}";
    let doubling =
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    let writing = "{% for i in range(3000) %}{{ 'x' * 1000 }}{% endfor %}";
    let repeating = "{% for i in range(64) %}{{ messages[0].content }}{% endfor %}";
    for (source, limit) in [
        (endless, "steps"),
        (doubling, "steps"),
        (writing, "bytes of prompt"),
        (repeating, "bytes of prompt"),
    ] {
        let error = template(source)
            .render(&user(&"y".repeat(100_000)), &RenderOptions::default())
            .unwrap_err();
        let TextError::TemplateLimit {
            template,
            limit: actual,
        } = &error
        else {
            panic!("{source}: {error:?}")
        };
        assert!(template == "test" && actual.ends_with(limit), "{source}: {error}");
    }
}

#[test]
fn a_template_that_calls_itself_for_ever_ends_in_an_error() {
    let recursive = template("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}");
    let error = recursive
        .render(&user("hi"), &RenderOptions::default())
        .unwrap_err();
    assert!(
        matches!(
            error,
            TextError::Template { .. } | TextError::TemplateLimit { .. }
        ),
        "{error:?}"
    );
}

#[test]
fn a_long_conversation_is_within_the_limits() {
    let source = "{% for m in messages %}{{ '<' + m.role + '>' + (m.content | trim) + '\n' }}{% endfor %}";
    let messages: Vec<Message> = (0..4_000)
        .map(|_| Message::new("user", "a word ".repeat(100)))
        .collect();
    let prompt = template(source)
        .render(&messages, &RenderOptions::default())
        .unwrap();
    assert_eq!(prompt.len(), 4_000 * ("<user>".len() + 699 + 1));
}

#[test]
fn a_template_reaches_no_files() {
    for source in [
        "{% include 'chat_template.jinja' %}",
        "{% extends '/etc/passwd' %}",
        "{% import 'x' as x %}",
    ] {
        let error = template(source)
            .render(&user("hi"), &RenderOptions::default())
            .unwrap_err();
        assert!(matches!(error, TextError::Template { .. }), "{error:?}");
    }
}

#[test]
fn a_template_that_is_not_text_is_named() {
    let checkpoint = Checkpoint::new().with("chat_template.jinja", b"\xFF{{ messages }}");
    let error = ChatTemplate::from_dir(checkpoint.path()).unwrap_err();
    assert!(
        matches!(error, TextError::Read { .. }) && error.to_string().contains("chat_template.jinja"),
        "{error}"
    );
}

#[test]
fn a_tag_that_shares_its_percent_sign_is_an_error_and_no_panic() {
    for source in ["{%}", "{%}{{ x }}", "a {%}%} b"] {
        let compiled = ChatTemplate::new("test", source, SpecialTokens::default());
        assert!(compiled.is_err(), "{source}");
    }
}

#[test]
fn a_template_that_the_engine_of_templates_cannot_stand_is_an_error_and_no_panic() {
    // Found by fuzzing: minijinja 3.1 divides by the number of values to cycle through.
    let source = "{% for m in messages %}{{ loop.cycle() }}{% endfor %}";
    let template = ChatTemplate::new("test", source, SpecialTokens::default()).unwrap();
    let error = template.render(&[Message::new("user", "x")], &RenderOptions::default());
    assert!(matches!(error, Err(TextError::Template { .. })), "{error:?}");
}
