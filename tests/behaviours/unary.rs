//! GenerateUnary answers with what Generate streams.

use baichuan_client::{Refusal, v1};
use e2e::{Fake, LETTERS, Setup, TestServer, refusal, text, until_idle};
use tonic::Code;

#[tokio::test]
async fn the_pieces_of_a_stream_make_the_answer_of_the_unary_call() {
    let server = TestServer::fake().await;
    for (n, seed, interval) in [(1, 1, 1), (1, 2, 3), (3, 3, 2), (2, 4, 50)] {
        let mut request = text("What helps against a cough?", 40);
        request.sampling = Some(v1::SamplingParams {
            temperature: Some(1.0),
            seed: Some(seed),
            n: Some(n),
            ..Default::default()
        });
        let output = request.output.as_mut().unwrap();
        output.stream_interval = Some(interval);
        output.logprobs = Some(2);
        let streamed = server
            .client
            .generate(request.clone())
            .await
            .unwrap()
            .collect()
            .await
            .unwrap();
        let unary = server.client.generate_unary(request).await.unwrap();
        assert_eq!(unary.choices.len(), n as usize);
        for (unary, streamed) in unary.choices.iter().zip(&streamed.choices) {
            let finish = streamed.finish.as_ref().unwrap();
            assert_eq!(unary.text, streamed.text);
            assert_eq!(unary.token_ids, streamed.token_ids);
            assert_eq!(unary.logprobs, streamed.logprobs);
            assert_eq!(unary.finish_reason, finish.finish_reason);
        }
        assert_eq!(unary.seed, seed);
    }
    server.stop().await;
}

#[tokio::test]
async fn usage_counts_the_prompt_once_and_every_choice() {
    let server = TestServer::fake().await;
    let mut request = text("abcdef", 5);
    request.sampling.as_mut().unwrap().n = Some(3);
    request.sampling.as_mut().unwrap().allowed_token_ids = LETTERS.collect();
    let answer = server.client.generate_unary(request).await.unwrap();
    let usage = answer.usage.unwrap();
    assert_eq!(
        (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
        (6, 15, 21)
    );
    server.stop().await;
}

#[tokio::test]
async fn an_answer_that_no_message_holds_is_given_up_as_soon_as_it_is_too_long() {
    let setup = Setup::fake(Fake::default()).with("grpc.max_encoding_message_bytes", 2000);
    let server = TestServer::start(setup).await;
    let before = server.client.load("").await.unwrap()[0].generated_tokens_total;
    let mut request = text("x", 3000);
    request.output.as_mut().unwrap().logprobs = Some(20);
    let too_large = |refused: Refusal| {
        assert_eq!(
            (refused.code, refused.reason.as_deref()),
            (Code::ResourceExhausted, Some("MESSAGE_TOO_LARGE")),
            "{refused:?}"
        );
        // The same again would be as long.
        assert!(refused.retry_delay.is_none());
    };
    too_large(refusal(server.client.generate_unary(request.clone()).await));
    let after = until_idle(&server.client, "").await.generated_tokens_total;
    assert!(after - before < 1500, "{before} {after}");
    // What is found out when it is written only: a message of a stream, and an answer without a model.
    let output = request.output.as_mut().unwrap();
    output.stream_interval = Some(16);
    too_large(refusal(
        server.client.generate(request).await.unwrap().collect().await,
    ));
    let long = v1::TokenizeRequest {
        input: Some(v1::tokenize_request::Input::Text("x".repeat(2000))),
        return_tokens: Some(true),
        ..Default::default()
    };
    too_large(refusal(server.client.tokenize(long).await));
    server.stop().await;
}
