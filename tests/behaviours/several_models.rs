//! Several models by configuration, each with an engine of its own, picked by a request's `model`.

use baichuan_client::{prompt, v1};
use e2e::checkpoint::tiny_m1;
use e2e::{Fake, Gate, Setup, TestServer, text, until_idle};

#[tokio::test]
async fn a_request_goes_to_the_model_it_names_and_else_to_the_default() {
    let setup = Setup::m1(tiny_m1()).and_fake("other", Fake::default());
    let server = TestServer::start(setup.with("default_model", "other")).await;
    let models = server.client.models().await.unwrap();
    let listed: Vec<_> = models.iter().map(|m| (m.name.as_str(), m.is_default)).collect();
    assert_eq!(listed, [("m1", false), ("other", true)]);

    for (asked, answered) in [("m1", "m1"), ("other", "other"), ("", "other")] {
        let request = v1::GenerateRequest {
            model: asked.into(),
            ..text("hello", 3)
        };
        let completion = server
            .client
            .generate(request)
            .await
            .unwrap()
            .collect()
            .await
            .unwrap();
        assert_eq!(completion.info.unwrap().model, answered);
        let embed = v1::EmbedRequest {
            model: asked.into(),
            inputs: vec![prompt::embed_text("hello")],
            ..Default::default()
        };
        let answer = server.client.embed(embed).await.unwrap();
        let dimensions = if answered == "m1" { 128 } else { 16 };
        assert_eq!(
            (answer.model.as_str(), answer.embeddings[0].dimensions),
            (answered, dimensions)
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_model_that_hangs_does_not_hold_up_the_other() {
    let gate = Gate::new();
    let setup = Setup::fake(Fake::gated(&gate)).and_fake("other", Fake::default());
    let server = TestServer::start(setup).await;
    gate.close();
    let hanging = server.client.generate(text("x", 50)).await.unwrap();
    let request = v1::GenerateRequest {
        model: "other".into(),
        ..text("x", 50)
    };
    let completion = server
        .client
        .generate(request)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(completion.choices[0].token_ids.len(), 50);
    gate.open();
    assert_eq!(hanging.collect().await.unwrap().choices[0].token_ids.len(), 50);
    for model in ["fake", "other"] {
        until_idle(&server.client, model).await;
    }
    server.stop().await;
}
