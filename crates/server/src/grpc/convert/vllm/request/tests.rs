//! What becomes of the routers' requests.

use pb::generate_request::Input;
use pb::sampling_params::Constraint;

use super::*;

fn of(params: pb::SamplingParams) -> pb::GenerateRequest {
    pb::GenerateRequest {
        request_id: "r-1".into(),
        input: Some(Input::Tokenized(pb::TokenizedInput {
            original_text: "not read".into(),
            input_ids: vec![5, 6],
        })),
        sampling_params: Some(params),
        ..pb::GenerateRequest::default()
    }
}

fn own(request: pb::GenerateRequest) -> v1::GenerateRequest {
    generate(request, 99).map(|(own, _)| own).unwrap()
}

#[test]
fn everything_said_is_carried_over() {
    let request = own(of(pb::SamplingParams {
        temperature: Some(0.0),
        top_p: 0.9,
        top_k: 7,
        min_p: 0.1,
        frequency_penalty: 0.2,
        presence_penalty: 0.3,
        repetition_penalty: 1.1,
        max_tokens: Some(9),
        min_tokens: 2,
        stop: vec!["x".into()],
        stop_token_ids: vec![3],
        skip_special_tokens: true,
        spaces_between_special_tokens: true,
        ignore_eos: true,
        n: 2,
        logprobs: Some(4),
        prompt_logprobs: Some(1),
        seed: Some(17),
        include_stop_str_in_output: true,
        logit_bias: [(8, -1.5)].into(),
        truncate_prompt_tokens: Some(5),
        ..pb::SamplingParams::default()
    }));
    let expected = v1::GenerateRequest {
        request_id: "r-1".into(),
        prompt: Some(v1::generate_request::Prompt::TokenIds(v1::TokenIds {
            ids: vec![5, 6],
        })),
        sampling: Some(v1::SamplingParams {
            temperature: Some(0.0),
            top_p: Some(0.9),
            top_k: Some(7),
            min_p: Some(0.1),
            frequency_penalty: Some(0.2),
            presence_penalty: Some(0.3),
            repetition_penalty: Some(1.1),
            logit_bias: [(8, -1.5)].into(),
            seed: Some(17),
            n: Some(2),
            ..v1::SamplingParams::default()
        }),
        stopping: Some(v1::StoppingParams {
            max_tokens: Some(9),
            min_tokens: Some(2),
            stop: vec!["x".into()],
            stop_token_ids: vec![3],
            include_stop_str_in_output: Some(true),
            ignore_eos: Some(true),
        }),
        output: Some(v1::OutputOptions {
            logprobs: Some(4),
            prompt_logprobs: Some(1),
            return_token_ids: Some(true),
            return_text: Some(false),
            skip_special_tokens: Some(true),
            stream_interval: None,
        }),
        truncate_prompt_tokens: Some(5),
        ..v1::GenerateRequest::default()
    };
    assert_eq!(request, expected);
}

#[test]
fn what_is_not_said_is_left_to_the_checkpoint() {
    let request = own(of(pb::SamplingParams::default()));
    let sampling = request.sampling.unwrap();
    assert_eq!(
        (sampling.temperature, sampling.top_p, sampling.repetition_penalty),
        (None, None, None)
    );
    assert_eq!((sampling.n, sampling.seed), (None, None));
    // Zero is a value of these.
    assert_eq!(
        (sampling.top_k, sampling.min_p, sampling.frequency_penalty),
        (Some(0), Some(0.0), Some(0.0))
    );
    assert_eq!(request.stopping.unwrap().max_tokens, None);
    assert_eq!(request.truncate_prompt_tokens, None);
}

#[test]
fn a_seed_is_its_32_bits_and_minus_one_is_none() {
    for (theirs, ours) in [
        (Some(0), Some(0)),
        (Some(i32::MAX), Some(0x7fff_ffff)),
        (Some(-2), Some(0xffff_fffe)),
        (Some(-1), None),
        (None, None),
    ] {
        let request = own(of(pb::SamplingParams {
            seed: theirs,
            ..pb::SamplingParams::default()
        }));
        assert_eq!(request.sampling.unwrap().seed, ours, "{theirs:?}");
    }
}

#[test]
fn what_is_lacking_is_refused_by_name() {
    let plain = || of(pb::SamplingParams::default());
    let constrained = |constraint| {
        of(pb::SamplingParams {
            constraint: Some(constraint),
            ..pb::SamplingParams::default()
        })
    };
    let media = pb::MultimodalInputs::default;
    for (request, name) in [
        (
            pb::GenerateRequest {
                mm_inputs: Some(media()),
                ..plain()
            },
            "mm_inputs",
        ),
        (
            pb::GenerateRequest {
                extra_mm_inputs: vec![media()],
                ..plain()
            },
            "extra_mm_inputs",
        ),
        (
            pb::GenerateRequest {
                media_refs: Some(pb::MediaRefs::default()),
                ..plain()
            },
            "media_refs",
        ),
        (
            pb::GenerateRequest {
                kv_transfer_params: Some(pb::KvTransferParams::default()),
                ..plain()
            },
            "kv_transfer_params",
        ),
        (
            pb::GenerateRequest {
                kv_transfer_params_json: Some("{}".into()),
                ..plain()
            },
            "kv_transfer_params_json",
        ),
        (
            constrained(Constraint::StructuralTag("{}".into())),
            "sampling_params.structural_tag",
        ),
    ] {
        match generate(request, 99).map(|(own, _)| own) {
            Err(ApiError::Unsupported { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_constraint_is_the_own_one() {
    use v1::structured_output::{Choice, Constraint as Own};
    let texts = vec!["yes".to_owned(), "no".to_owned()];
    for (theirs, own_one) in [
        (
            Constraint::JsonSchema(r#"{"type":"string"}"#.into()),
            Some(Own::JsonSchema(r#"{"type":"string"}"#.into())),
        ),
        (
            Constraint::JsonObject(true),
            Some(Own::JsonSchema(r#"{"type":"object"}"#.into())),
        ),
        (Constraint::JsonObject(false), None),
        (Constraint::Regex("a+".into()), Some(Own::Regex("a+".into()))),
        (
            Constraint::Grammar("start: \"a\"".into()),
            Some(Own::Grammar("start: \"a\"".into())),
        ),
        (
            Constraint::Choice(pb::ChoiceConstraint {
                choices: texts.clone(),
            }),
            Some(Own::Choice(Choice { texts })),
        ),
    ] {
        let request = own(of(pb::SamplingParams {
            constraint: Some(theirs),
            ..pb::SamplingParams::default()
        }));
        assert_eq!(request.structured_output.and_then(|s| s.constraint), own_one);
    }
}

#[test]
fn a_bad_value_is_blamed_on_its_field() {
    let with = |params| of(params);
    let none = pb::SamplingParams::default;
    let text = pb::GenerateRequest {
        input: Some(Input::Text("t".into())),
        ..with(pb::SamplingParams {
            prompt_logprobs: Some(0),
            ..none()
        })
    };
    for (request, name) in [
        (
            with(pb::SamplingParams {
                logprobs: Some(-1),
                ..none()
            }),
            "sampling_params.logprobs",
        ),
        (
            with(pb::SamplingParams {
                prompt_logprobs: Some(-1),
                ..none()
            }),
            "sampling_params.prompt_logprobs",
        ),
        (text, "sampling_params.prompt_logprobs"),
        (
            with(pb::SamplingParams {
                truncate_prompt_tokens: Some(-2),
                ..none()
            }),
            "sampling_params.truncate_prompt_tokens",
        ),
        (
            with(pb::SamplingParams {
                logit_bias: [(-4, 1.0)].into(),
                ..none()
            }),
            "sampling_params.logit_bias[-4]",
        ),
        (
            pb::GenerateRequest {
                data_parallel_rank: Some(1),
                ..with(none())
            },
            "data_parallel_rank",
        ),
    ] {
        match generate(request, 99).map(|(own, _)| own) {
            Err(ApiError::Invalid(violations)) => assert_eq!(violations.listed()[0].field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn violations_are_named_as_their_sender_knows_the_fields() {
    for (own, theirs) in [
        ("sampling.top_p", "sampling_params.top_p"),
        ("stopping.stop[1]", "sampling_params.stop[1]"),
        ("output.logprobs", "sampling_params.logprobs"),
        ("truncate_prompt_tokens", "sampling_params.truncate_prompt_tokens"),
        ("structured_output.regex", "sampling_params.regex"),
        (
            "structured_output.choice.texts[1]",
            "sampling_params.choice.choices[1]",
        ),
        ("token_ids.ids[4]", "tokenized.input_ids[4]"),
        ("inputs[0].token_ids.ids", "tokenized.input_ids"),
        ("prompt", "input"),
        ("request_id", "request_id"),
        ("text", "text"),
    ] {
        let ApiError::Invalid(violations) = renamed(ApiError::invalid(own, "m")) else {
            panic!("another kind of error");
        };
        assert_eq!(violations.listed()[0].field, theirs);
    }
}

#[test]
fn a_prompt_may_be_cut_to_as_many_tokens_as_the_model_takes() {
    for (asked, expected) in [(None, None), (Some(-1), Some(99)), (Some(5), Some(5))] {
        let request = own(of(pb::SamplingParams {
            truncate_prompt_tokens: asked,
            ..pb::SamplingParams::default()
        }));
        assert_eq!(request.truncate_prompt_tokens, expected, "{asked:?}");
    }
}

#[test]
fn what_the_model_lacks_has_the_name_that_the_router_knows() {
    let error = renamed(ApiError::Unsupported {
        field: "output.prompt_logprobs".into(),
        feature: "it".into(),
    });
    match error {
        ApiError::Unsupported { field, .. } => assert_eq!(field, "sampling_params.prompt_logprobs"),
        other => panic!("{other:?}"),
    }
}
