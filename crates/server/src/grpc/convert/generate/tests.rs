//! From messages to generation requests: what is accepted, what each fault is called.

use std::sync::LazyLock;

use baichuan_engine::Backend;
use baichuan_engine::testing::{FakeOptions, fake_engine};
use proptest::prelude::*;
use v1::generate_request::Prompt as Wire;

use super::*;

fn info(options: FakeOptions) -> BackendInfo {
    fake_engine(options).unwrap().info().clone()
}

fn text(text: &str) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(Wire::Text(text.into())),
        ..Default::default()
    }
}

fn sampled(change: impl FnOnce(&mut v1::SamplingParams)) -> v1::GenerateRequest {
    let mut sampling = v1::SamplingParams::default();
    change(&mut sampling);
    v1::GenerateRequest {
        sampling: Some(sampling),
        ..text("x")
    }
}

fn stopped(change: impl FnOnce(&mut v1::StoppingParams)) -> v1::GenerateRequest {
    let mut stopping = v1::StoppingParams::default();
    change(&mut stopping);
    v1::GenerateRequest {
        stopping: Some(stopping),
        ..text("x")
    }
}

fn chat(messages: &[(&str, &str)]) -> v1::Chat {
    let messages = messages.iter().map(|(role, content)| v1::ChatMessage {
        role: (*role).into(),
        content: (*content).into(),
    });
    v1::Chat {
        messages: messages.collect(),
        ..Default::default()
    }
}

fn chatting(chat: v1::Chat) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(Wire::Chat(chat)),
        ..Default::default()
    }
}

fn fields(request: v1::GenerateRequest, info: &BackendInfo) -> Vec<String> {
    match check(request, info, 1) {
        Err(ApiError::Invalid(violations)) => {
            let listed = violations.listed().iter();
            listed.map(|v| v.field.clone()).collect()
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => Vec::new(),
    }
}

#[test]
fn a_bad_field_is_named_by_its_path_in_the_message() {
    let info = info(FakeOptions::default());
    for (request, field) in [
        (v1::GenerateRequest::default(), "prompt"),
        (text(""), "text"),
        (
            v1::GenerateRequest {
                prompt: Some(Wire::TokenIds(v1::TokenIds { ids: vec![1, 99_999] })),
                ..Default::default()
            },
            "token_ids.ids[1]",
        ),
        (chatting(chat(&[])), "chat.messages"),
        (chatting(chat(&[("", "hi")])), "chat.messages[0].role"),
        (
            chatting(v1::Chat {
                add_generation_prompt: Some(true),
                continue_final_message: Some(true),
                ..chat(&[("assistant", "hi")])
            }),
            "chat.continue_final_message",
        ),
        (sampled(|s| s.top_p = Some(1.7)), "sampling.top_p"),
        (
            sampled(|s| s.temperature = Some(f32::NAN)),
            "sampling.temperature",
        ),
        (sampled(|s| s.temperature = Some(-1.0)), "sampling.temperature"),
        (sampled(|s| s.n = Some(0)), "sampling.n"),
        (sampled(|s| s.n = Some(17)), "sampling.n"),
        (
            sampled(|s| {
                s.logit_bias.insert(3, f32::INFINITY);
            }),
            "sampling.logit_bias[3]",
        ),
        (stopped(|s| s.max_tokens = Some(0)), "stopping.max_tokens"),
        (stopped(|s| s.max_tokens = Some(u32::MAX)), "stopping.max_tokens"),
        (stopped(|s| s.stop = vec!["x".into(); 10_000]), "stopping.stop"),
        (stopped(|s| s.stop = vec![String::new()]), "stopping.stop[0]"),
        (
            v1::GenerateRequest {
                output: Some(v1::OutputOptions {
                    logprobs: Some(21),
                    ..Default::default()
                }),
                ..text("x")
            },
            "output.logprobs",
        ),
        (
            v1::GenerateRequest {
                truncate_prompt_tokens: Some(0),
                ..text("x")
            },
            "truncate_prompt_tokens",
        ),
        (
            v1::GenerateRequest {
                time_limit_ms: Some(0),
                ..text("x")
            },
            "time_limit_ms",
        ),
        (
            v1::GenerateRequest {
                request_id: "two words".into(),
                ..text("x")
            },
            "request_id",
        ),
    ] {
        assert_eq!(fields(request, &info), [field]);
    }
}

#[test]
fn all_bad_fields_are_told_at_once() {
    let request = v1::GenerateRequest {
        time_limit_ms: Some(0),
        stopping: stopped(|s| s.max_tokens = Some(0)).stopping,
        ..sampled(|s| {
            s.top_p = Some(0.0);
            s.min_p = Some(2.0);
        })
    };
    let fields = fields(request, &info(FakeOptions::default()));
    let expected = [
        "time_limit_ms",
        "sampling.top_p",
        "sampling.min_p",
        "stopping.max_tokens",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn what_a_request_leaves_out_is_the_checkpoints_and_then_the_servers() {
    let info = info(FakeOptions {
        default_sampling: SamplingOptions {
            temperature: Some(0.3),
            top_k: Some(5),
            ..SamplingOptions::default()
        },
        ..FakeOptions::default()
    });
    let request = sampled(|s| s.temperature = Some(0.0));
    let sampling = check(request, &info, 42).unwrap().sampling;
    let expected = SamplingOptions {
        temperature: Some(0.0),
        top_k: Some(5),
        seed: Some(42),
        ..SamplingOptions::default()
    };
    assert_eq!(sampling, expected.validate(&info.limits, 0).unwrap());
}

#[test]
fn an_absent_max_tokens_is_the_backends() {
    let info = BackendInfo {
        default_max_tokens: Some(9),
        ..info(FakeOptions::default())
    };
    let expected = StoppingOptions {
        max_tokens: Some(9),
        ..StoppingOptions::default()
    };
    let stopping = check(text("x"), &info, 0).unwrap().stopping;
    assert_eq!(stopping, expected.validate(&info.limits, 1).unwrap());
}

#[test]
fn continuing_the_last_message_opens_no_new_turn() {
    let request = chatting(v1::Chat {
        continue_final_message: Some(true),
        ..chat(&[("assistant", "hi")])
    });
    let Prompt::Chat { options, .. } = check(request, &info(FakeOptions::default()), 0).unwrap().prompt
    else {
        panic!("not a chat");
    };
    assert!(options.continue_final_message && !options.add_generation_prompt);
}

#[test]
fn chat_without_a_template_is_not_supported() {
    let info = info(FakeOptions {
        chat: false,
        ..FakeOptions::default()
    });
    let error = check(chatting(chat(&[("user", "hi")])), &info, 0).err().unwrap();
    assert!(
        matches!(&error, ApiError::Unsupported { field, .. } if field == "chat"),
        "{error:?}"
    );
}

proptest! {
    #[test]
    fn any_numbers_make_a_request_or_violations_and_never_a_panic(
        floats in prop::collection::vec(prop::option::of(any::<f32>()), 8),
        ints in prop::collection::vec(prop::option::of(any::<u32>()), 8),
    ) {
        static INFO: LazyLock<BackendInfo> = LazyLock::new(|| info(FakeOptions::default()));
        let request = v1::GenerateRequest {
            sampling: Some(v1::SamplingParams {
                temperature: floats[0], top_p: floats[1], min_p: floats[2], typical_p: floats[3],
                repetition_penalty: floats[4], presence_penalty: floats[5], frequency_penalty: floats[6],
                top_k: ints[0], n: ints[1], ..Default::default()
            }),
            stopping: Some(v1::StoppingParams { max_tokens: ints[2], min_tokens: ints[3], ..Default::default() }),
            output: Some(v1::OutputOptions {
                logprobs: ints[4], prompt_logprobs: ints[5], stream_interval: ints[6], ..Default::default()
            }),
            truncate_prompt_tokens: ints[7],
            ..text("x")
        };
        if let Ok(valid) = check(request, &INFO, 0) {
            prop_assert!((1..=16).contains(&valid.sampling.n()));
        }
    }
}
