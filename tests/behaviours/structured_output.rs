//! Structured output: a completion is what the request says it must look like, or the request is refused.

use baichuan_client::{prompt, v1};
use e2e::{TestServer, refusal};
use tonic::Code;
use v1::structured_output::{Choice, Constraint};

fn request(constraint: Constraint) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(prompt::text("fever")),
        sampling: Some(v1::SamplingParams {
            temperature: Some(1.0),
            seed: Some(5),
            n: Some(3),
            ..Default::default()
        }),
        stopping: Some(v1::StoppingParams {
            max_tokens: Some(500),
            ..Default::default()
        }),
        structured_output: Some(v1::StructuredOutput {
            constraint: Some(constraint),
        }),
        ..Default::default()
    }
}

fn choice(texts: &[&str]) -> Constraint {
    Constraint::Choice(Choice {
        texts: texts.iter().map(|text| (*text).to_owned()).collect(),
    })
}

#[tokio::test]
async fn every_completion_is_whole_and_as_asked() {
    let server = TestServer::fake().await;
    let schema = r#"{"type": "object", "properties": {"fever": {"type": "boolean"},
        "grade": {"enum": ["mild", "severe"]}}, "required": ["fever", "grade"], "additionalProperties": false}"#;
    let is_json = |text: &str| {
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        value["fever"].is_boolean() && ["mild", "severe"].contains(&value["grade"].as_str().unwrap())
    };
    let is_dose = |text: &str| {
        let (number, unit) = text.split_at(2);
        number.bytes().all(|b| b.is_ascii_digit()) && [" mg", " \u{b5}g"].contains(&unit)
    };
    type Case<'a> = (Constraint, &'a dyn Fn(&str) -> bool);
    let table: [Case<'_>; 4] = [
        (Constraint::JsonSchema(schema.into()), &is_json),
        (Constraint::Regex("[0-9]{2} (mg|\u{b5}g)".into()), &is_dose),
        (
            Constraint::Grammar("start: NUMBER \" \" (\"mg\" | \"\u{b5}g\")\nNUMBER: /[0-9]{2}/".into()),
            &is_dose,
        ),
        (choice(&["yes", "no"]), &|text| ["yes", "no"].contains(&text)),
    ];
    for (constraint, holds) in table {
        let generation = server.client.generate(request(constraint.clone())).await.unwrap();
        let completions = generation.collect().await.unwrap();
        assert_eq!(completions.choices.len(), 3);
        for completion in &completions.choices {
            assert!(holds(&completion.text), "{constraint:?}: {:?}", completion.text);
            let finish = completion.finish.as_ref().unwrap();
            assert_eq!(finish.finish_reason(), v1::FinishReason::Stop);
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_wish_that_cannot_be_fulfilled_names_its_field() {
    let server = TestServer::fake().await;
    let with = |change: &dyn Fn(&mut v1::GenerateRequest)| {
        let mut request = request(choice(&["yes"]));
        change(&mut request);
        request
    };
    let table = [
        (
            request(Constraint::JsonSchema("{".into())),
            "structured_output.json_schema",
        ),
        (
            request(Constraint::JsonSchema(
                r#"{"$ref": "https://example.org/schema.json"}"#.into(),
            )),
            "structured_output.json_schema",
        ),
        (request(Constraint::Regex("(".into())), "structured_output.regex"),
        (
            request(Constraint::Grammar("start: x".into())),
            "structured_output.grammar",
        ),
        (request(choice(&[])), "structured_output.choice"),
        (request(choice(&["a", ""])), "structured_output.choice.texts[1]"),
        (
            with(&|r| r.structured_output = Some(v1::StructuredOutput::default())),
            "structured_output",
        ),
        (
            with(&|r| r.stopping.as_mut().unwrap().ignore_eos = Some(true)),
            "stopping.ignore_eos",
        ),
        // Found while it runs: of the tokens allowed, none can begin a text that is asked for.
        (
            with(&|r| r.sampling.as_mut().unwrap().allowed_token_ids = vec![u32::from(b'x')]),
            "structured_output.choice",
        ),
    ];
    for (request, field) in table {
        let outcome = async { server.client.generate(request).await?.collect().await };
        let refusal = refusal(outcome.await);
        assert_eq!(refusal.code, Code::InvalidArgument, "{field}: {refusal:?}");
        let fields: Vec<&str> = refusal.violations.iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, [field], "{refusal:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_request_without_a_wish_runs_beside_one_with_as_if_alone() {
    let server = TestServer::fake().await;
    let plain = v1::GenerateRequest {
        structured_output: None,
        ..request(choice(&["yes"]))
    };
    let alone = server.client.generate(plain.clone()).await.unwrap();
    let alone = alone.collect().await.unwrap();
    let (beside, _) = tokio::join!(
        async {
            server
                .client
                .generate(plain)
                .await
                .unwrap()
                .collect()
                .await
                .unwrap()
        },
        async {
            let wish = Constraint::Regex("[a-z]{200}".into());
            server
                .client
                .generate(request(wish))
                .await
                .unwrap()
                .collect()
                .await
                .unwrap()
        }
    );
    let texts = |completions: &baichuan_client::Completion| -> Vec<String> {
        completions.choices.iter().map(|c| c.text.clone()).collect()
    };
    assert_eq!(texts(&alone), texts(&beside));
    server.stop().await;
}
