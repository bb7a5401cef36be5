//! Generate streams a completion: what was admitted, its pieces, why it ended.

use baichuan_client::{Event, prompt, v1};
use e2e::{Fake, LETTERS, Setup, TestServer, generate, greedy, refusal, text, tokens};
use tonic::IntoRequest;
use v1::finish::Matched;

#[tokio::test]
async fn the_events_of_a_stream_come_in_order_and_add_up() {
    let server = TestServer::fake().await;
    let request = v1::GenerateRequest {
        request_id: "named".into(),
        ..text("fever", 10)
    };
    let mut generation = server.client.generate(request).await.unwrap();
    assert_eq!(generation.request_id(), "named");
    let mut events = Vec::new();
    while let Some(event) = generation.next().await.unwrap() {
        events.push(event);
    }
    let [Event::PromptInfo(info), deltas @ .., Event::Finish(finish)] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(
        (info.request_id.as_str(), info.model.as_str(), info.prompt_tokens),
        ("named", "fake", 5)
    );
    let n_tokens = deltas.iter().map(|event| match event {
        Event::Delta(delta) => delta.token_ids.len(),
        other => panic!("{other:?} between the deltas"),
    });
    assert_eq!(n_tokens.sum::<usize>(), 10);
    assert_eq!(finish.finish_reason(), v1::FinishReason::Length);
    let usage = v1::Usage {
        prompt_tokens: 5,
        completion_tokens: 10,
        total_tokens: 15,
        cached_tokens: 0,
    };
    assert_eq!(finish.usage, Some(usage));
    let timings = finish.timings.unwrap();
    assert!(timings.time_to_first_token_ms <= timings.total_ms, "{timings:?}");
    assert_eq!(finish.system_fingerprint, "fake");
    server.stop().await;
}

#[tokio::test]
async fn greedy_tokens_are_the_models_likeliest() {
    let server = TestServer::fake().await;
    let prompt: Vec<u32> = "chills".bytes().map(u32::from).collect();
    let allowed: Vec<u32> = LETTERS.collect();
    let mut request = tokens(&prompt, 40);
    request.sampling.as_mut().unwrap().allowed_token_ids = allowed.clone();
    let completion = server
        .client
        .generate(request)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(completion.choices[0].token_ids, greedy(&prompt, 40, &allowed));
    server.stop().await;
}

#[tokio::test]
async fn an_end_of_sequence_token_ends_the_completion_and_is_not_text() {
    let server = TestServer::fake().await;
    let eos = baichuan_engine::testing::EOS;
    let mut request = text("x", 100);
    request.stopping.as_mut().unwrap().ignore_eos = None;
    let sampling = request.sampling.as_mut().unwrap();
    sampling.logit_bias = [(eos, 100.0)].into();
    let completion = server
        .client
        .generate(request.clone())
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let choice = &completion.choices[0];
    let finish = choice.finish.as_ref().unwrap();
    assert_eq!(
        (finish.finish_reason(), finish.matched.as_ref()),
        (v1::FinishReason::Stop, Some(&Matched::EosTokenId(eos)))
    );
    assert_eq!(
        (choice.text.as_str(), finish.usage.unwrap().completion_tokens),
        ("", 1)
    );

    request.stopping.as_mut().unwrap().min_tokens = Some(4);
    let completion = server
        .client
        .generate(request)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(
        completion.choices[0]
            .finish
            .as_ref()
            .unwrap()
            .usage
            .unwrap()
            .completion_tokens,
        5
    );
    server.stop().await;
}

#[tokio::test]
async fn a_stop_token_is_named_in_the_end() {
    let server = TestServer::fake().await;
    let mut request = text("x", 100);
    request.sampling.as_mut().unwrap().allowed_token_ids = vec![u32::from(b'q')];
    request.stopping.as_mut().unwrap().stop_token_ids = vec![u32::from(b'q')];
    let completion = server
        .client
        .generate(request)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let finish = completion.choices[0].finish.as_ref().unwrap();
    assert_eq!(finish.finish_reason(), v1::FinishReason::Stop);
    assert_eq!(finish.matched, Some(Matched::StopTokenId(u32::from(b'q'))));
    server.stop().await;
}

#[tokio::test]
async fn a_completion_ends_where_the_context_is_full() {
    let fake = Fake {
        max_context: 64,
        ..Fake::default()
    };
    let server = TestServer::start(Setup::fake(fake)).await;
    let mut request = tokens(&[97; 40], 1);
    request.stopping.as_mut().unwrap().max_tokens = None;
    let completion = server
        .client
        .generate(request)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let finish = completion.choices[0].finish.as_ref().unwrap();
    assert_eq!(finish.finish_reason(), v1::FinishReason::ContextFull);
    assert_eq!(finish.usage.unwrap().total_tokens, 64);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_interval_gathers_tokens_into_fewer_messages() {
    let server = TestServer::fake().await;
    let mut request = text("x", 10);
    request.output.as_mut().unwrap().stream_interval = Some(4);
    let mut generation = server.client.generate(request).await.unwrap();
    let mut sizes = Vec::new();
    while let Some(event) = generation.next().await.unwrap() {
        if let Event::Delta(delta) = event {
            sizes.push(delta.token_ids.len());
        }
    }
    assert_eq!(sizes, [4, 4, 2]);
    server.stop().await;
}

#[tokio::test]
async fn a_prompt_is_cut_only_when_asked_to_and_then_at_its_front() {
    let server = TestServer::fake().await;
    let prompt: Vec<u32> = (0..200).collect();
    let whole = v1::GenerateRequest {
        truncate_prompt_tokens: Some(20),
        ..tokens(&prompt, 12)
    };
    let cut = server
        .client
        .generate(whole)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let tail = server
        .client
        .generate(tokens(&prompt[180..], 12))
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(cut.info.unwrap().prompt_tokens, 20);
    assert_eq!(cut.choices[0].token_ids, tail.choices[0].token_ids);
    server.stop().await;
}

#[tokio::test]
async fn without_a_name_the_server_gives_one_and_the_header_names_requests_too() {
    let server = TestServer::fake().await;
    let first = server.client.generate(text("x", 2)).await.unwrap();
    let id = first.request_id().to_owned();
    let completion = first.collect().await.unwrap();
    assert!(!id.is_empty());
    assert_eq!(completion.info.unwrap().request_id, id);

    let mut request = generate(prompt::text("x"), 2).into_request();
    request
        .metadata_mut()
        .insert("x-request-id", "from-the-header".parse().unwrap());
    let second = server.client.generate(request).await.unwrap();
    assert_eq!(second.request_id(), "from-the-header");
    server.stop().await;
}

#[tokio::test]
async fn text_is_left_out_when_nobody_wants_it() {
    let server = TestServer::fake().await;
    let mut request = text("x", 6);
    request.output.as_mut().unwrap().return_text = Some(false);
    let completion = server
        .client
        .generate(request)
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    assert_eq!(
        (
            completion.choices[0].text.as_str(),
            completion.choices[0].token_ids.len()
        ),
        ("", 6)
    );
    server.stop().await;
}

#[tokio::test]
async fn completions_that_only_the_context_bounds_are_within_the_total_too() {
    let setup = Setup::fake(Fake::default()).with("engine.limits.max_total_tokens", 5000);
    let server = TestServer::start(setup).await;
    let mut request = text("x", 10);
    request.sampling.as_mut().unwrap().n = Some(2);
    server.client.generate_unary(request.clone()).await.unwrap();
    request.stopping.as_mut().unwrap().max_tokens = None;
    let refused = refusal(server.client.generate_unary(request).await);
    assert_eq!(refused.violations[0].field, "request.stopping.max_tokens");
    server.stop().await;
}
