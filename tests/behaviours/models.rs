//! ListModels and GetModel say what is served.

use baichuan_client::v1;
use e2e::checkpoint::tiny_m1;
use e2e::{Setup, TestServer, refusal};
use tonic::Code;

#[tokio::test]
async fn a_model_is_described_by_its_checkpoint() {
    let server = TestServer::start(Setup::m1(tiny_m1())).await;
    let model = server.client.model("").await.unwrap();
    assert_eq!(
        server.client.models().await.unwrap(),
        std::slice::from_ref(&model)
    );
    assert_eq!((model.name.as_str(), model.is_default), ("m1", true));
    assert_eq!(model.state(), v1::ModelState::Ready);
    assert_eq!(
        (model.architecture.as_str(), model.plugin.as_str()),
        ("BaichuanM1ForCausalLM", "baichuan-m1")
    );
    assert_eq!((model.vocab_size, model.hidden_size), (512, 128));
    assert_eq!(
        (model.dtype.as_str(), model.default_pooling()),
        ("f32", v1::Pooling::Last)
    );
    assert!(model.supports_generate && model.supports_embed && model.supports_chat);
    assert_eq!(
        (model.bos_token_id, &model.eos_token_ids[..]),
        (Some(1), &[2][..])
    );
    // From generation_config.json.
    let sampling = model.default_sampling.unwrap();
    assert_eq!((sampling.temperature, sampling.top_k), (Some(0.3), Some(5)));
    assert!(model.parameters > 500_000 && !model.system_fingerprint.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_model_is_not_found_and_those_served_are_named() {
    let server = TestServer::fake().await;
    let refused = refusal(server.client.model("nobody").await);
    assert_eq!(refused.code, Code::NotFound);
    assert_eq!(refused.domain.as_deref(), Some("baichuan.v1"));
    assert!(refused.reason.is_some_and(|reason| !reason.is_empty()));
    assert!(
        refused.message.contains("nobody") && refused.message.contains("fake"),
        "{}",
        refused.message
    );
    server.stop().await;
}
