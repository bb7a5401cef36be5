//! Generations: their events, their ends, their errors.

use baichuan_client::{Event, prompt, v1};
use baichuan_engine::testing::{VOCAB_SIZE, byte_tokenizer, logits};
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_types::StatusExt;
use v1::FinishReason;
use v1::inference_service_client::InferenceServiceClient;

use crate::support::{Fake, TestServer, fields, generation, refusal};

/// What the fake model says greedily behind a text.
fn greedy(text: &str, n: usize) -> Vec<u32> {
    let mut tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    for _ in 0..n {
        let row = logits(&tokens);
        let best = (0..VOCAB_SIZE)
            .max_by(|a, b| row[*a].total_cmp(&row[*b]))
            .unwrap();
        tokens.push(best as u32);
    }
    tokens.split_off(text.len())
}

fn with_ids(request: v1::GenerateRequest) -> v1::GenerateRequest {
    v1::GenerateRequest {
        output: Some(v1::OutputOptions {
            return_token_ids: Some(true),
            ..Default::default()
        }),
        ..request
    }
}

#[tokio::test]
async fn a_stream_tells_of_the_prompt_then_the_pieces_then_the_end() {
    let server = TestServer::start("").await;
    let request = with_ids(v1::GenerateRequest {
        request_id: "mine-1".into(),
        ..generation("hello", 5)
    });
    let mut generation = server.client.generate(request).await.unwrap();
    assert_eq!(generation.request_id(), "mine-1");
    let Some(Event::PromptInfo(info)) = generation.next().await.unwrap() else {
        panic!("no prompt info first");
    };
    assert_eq!(
        (info.request_id.as_str(), info.model.as_str(), info.prompt_tokens),
        ("mine-1", "fake", 5)
    );
    let (mut ids, mut text) = (Vec::new(), String::new());
    let finish = loop {
        match generation.next().await.unwrap() {
            Some(Event::Delta(delta)) => {
                ids.extend(delta.token_ids);
                text.push_str(&delta.text);
            }
            Some(Event::Finish(finish)) => break finish,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(generation.next().await.unwrap(), None);
    assert_eq!(ids, greedy("hello", 5));
    assert_eq!(text, byte_tokenizer().unwrap().decode(&ids, true).unwrap());
    assert_eq!(
        (finish.finish_reason(), finish.system_fingerprint.as_str()),
        (FinishReason::Length, "fake")
    );
    let usage = finish.usage.unwrap();
    assert_eq!(
        (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
        (5, 5, 10)
    );
    let timings = finish.timings.unwrap();
    assert!(timings.total_ms > 0.0 && timings.tokenize_ms > 0.0);
    assert!(timings.total_ms >= timings.time_to_first_token_ms);
}

#[tokio::test]
async fn a_unary_answer_is_the_stream_put_together() {
    let server = TestServer::start("").await;
    let request = with_ids(v1::GenerateRequest {
        sampling: Some(v1::SamplingParams {
            temperature: Some(1.0),
            n: Some(3),
            seed: Some(7),
            ..Default::default()
        }),
        ..generation("ask", 6)
    });
    let streamed = server
        .client
        .generate(request.clone())
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    let unary = server.client.generate_unary(request).await.unwrap();
    assert_eq!((unary.choices.len(), unary.seed), (3, 7));
    for (one, other) in unary.choices.iter().zip(&streamed.choices) {
        assert_eq!((&one.text, &one.token_ids), (&other.text, &other.token_ids));
        assert_eq!(one.finish_reason(), FinishReason::Length);
    }
    let usage = unary.usage.unwrap();
    assert_eq!(
        (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
        (3, 18, 21)
    );
}

#[tokio::test]
async fn a_drawn_seed_is_reported_and_gives_the_same_again() {
    let server = TestServer::start("").await;
    let mut request = generation("ask", 8);
    request.sampling = Some(v1::SamplingParams {
        temperature: Some(1.5),
        ..Default::default()
    });
    let first = server.client.generate_unary(request.clone()).await.unwrap();
    request.sampling.as_mut().unwrap().seed = Some(first.seed);
    let again = server.client.generate_unary(request).await.unwrap();
    assert_eq!(first.choices[0].text, again.choices[0].text);
}

#[tokio::test]
async fn a_chat_is_rendered_by_the_template() {
    let server = TestServer::start("").await;
    let chat = v1::GenerateRequest {
        prompt: Some(prompt::chat([prompt::message("user", "hi")])),
        ..with_ids(generation("", 4))
    };
    let tokenized = server
        .client
        .tokenize(v1::TokenizeRequest {
            input: Some(v1::tokenize_request::Input::Chat(prompt::conversation([
                prompt::message("user", "hi"),
            ]))),
            ..Default::default()
        })
        .await
        .unwrap();
    let plain = v1::GenerateRequest {
        prompt: Some(prompt::token_ids(tokenized.token_ids)),
        ..chat.clone()
    };
    let (chat, plain) = (
        server.client.generate_unary(chat).await.unwrap(),
        server.client.generate_unary(plain).await.unwrap(),
    );
    assert_eq!(chat.choices[0].token_ids, plain.choices[0].token_ids);
}

#[tokio::test]
async fn a_prompt_is_cut_to_its_last_tokens_only_when_asked() {
    let server = TestServer::start("engine.max_context = 16").await;
    let long = generation("0123456789abcdefghij", 2);
    let refused = refusal(server.client.generate_unary(long.clone()).await);
    assert_eq!(
        (refused.code, fields(&refused)),
        (Code::InvalidArgument, vec!["request.text"])
    );
    assert!(
        refused.violations[0].description.contains("20 tokens"),
        "{refused:?}"
    );
    let cut = v1::GenerateRequest {
        truncate_prompt_tokens: Some(4),
        ..with_ids(long)
    };
    let cut = server.client.generate_unary(cut).await.unwrap();
    assert_eq!(cut.usage.unwrap().prompt_tokens, 4);
    assert_eq!(cut.choices[0].token_ids, greedy("ghij", 2));
}

#[tokio::test]
async fn a_bad_request_names_its_fields_over_the_wire() {
    let server = TestServer::start("").await;
    let mut request = generation("x", 1);
    request.sampling.as_mut().unwrap().top_p = Some(1.7);
    request.stopping.as_mut().unwrap().min_tokens = Some(5);
    let refused = refusal(server.client.generate(request).await);
    assert_eq!(refused.code, Code::InvalidArgument);
    assert_eq!(fields(&refused), ["sampling.top_p", "stopping.min_tokens"]);
    assert!(refused.request_id.is_some());
}

#[tokio::test]
async fn a_stop_token_beyond_the_vocabulary_is_named() {
    let server = TestServer::start("").await;
    let mut request = generation("x", 1);
    request.stopping.as_mut().unwrap().stop_token_ids = vec![3, 50_000];
    let refused = refusal(server.client.generate(request).await);
    assert_eq!(fields(&refused), ["stopping.stop_token_ids[1]"]);
}

#[tokio::test]
async fn an_unknown_model_is_not_found_and_the_served_ones_are_named() {
    let server = TestServer::start("").await;
    let request = v1::GenerateRequest {
        model: "gpt".into(),
        ..generation("x", 1)
    };
    let refused = refusal(server.client.generate(request).await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::NotFound, Some("MODEL_NOT_FOUND"))
    );
    assert!(
        refused.message.contains("gpt") && refused.message.contains("fake"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn several_models_are_picked_by_name_and_the_default_by_none() {
    let toml =
        "default_model = 'b'\n[[models]]\nname = 'a'\npath = 'DIR'\n[[models]]\nname = 'b'\npath = 'DIR'";
    let server = TestServer::start(toml).await;
    for (asked, answers) in [("a", "a"), ("b", "b"), ("", "b")] {
        let request = v1::GenerateRequest {
            model: asked.into(),
            ..generation("x", 1)
        };
        assert_eq!(
            server.client.generate_unary(request).await.unwrap().model,
            answers
        );
    }
    let models = server.client.models().await.unwrap();
    let models: Vec<_> = models.iter().map(|m| (m.name.as_str(), m.is_default)).collect();
    assert_eq!(models, [("a", false), ("b", true)]);
}

#[tokio::test]
async fn chat_without_a_template_is_unimplemented() {
    let fake = Fake {
        chatless: true,
        ..Fake::default()
    };
    let server = TestServer::start_with(fake, "").await;
    let request = v1::GenerateRequest {
        prompt: Some(prompt::chat([prompt::message("user", "hi")])),
        ..Default::default()
    };
    let streamed = refusal(server.client.generate(request.clone()).await);
    let unary = refusal(server.client.generate_unary(request).await);
    for (refused, field) in [(streamed, "chat"), (unary, "request.chat")] {
        assert_eq!(
            (refused.code, refused.reason.as_deref()),
            (Code::Unimplemented, Some("UNSUPPORTED_FEATURE"))
        );
        assert_eq!(refused.metadata["field"], field);
    }
}

#[tokio::test]
async fn a_time_limit_ends_a_stream_with_what_there_is_and_then_the_status() {
    let server = TestServer::start("").await;
    let request = v1::GenerateRequest {
        time_limit_ms: Some(1500),
        sampling: Some(v1::SamplingParams {
            n: Some(2),
            ..Default::default()
        }),
        ..generation("x", 4000)
    };
    let mut generation = server.client.generate(request).await.unwrap();
    let mut finishes = Vec::new();
    let mut deltas = 0;
    let error = loop {
        match generation.next().await {
            Ok(Some(Event::PromptInfo(_))) => {}
            Ok(Some(Event::Delta(_))) => {
                deltas += 1;
                // Held with tokens out: only the timer can end this.
                server.fake.steps.shut();
            }
            Ok(Some(Event::Finish(finish))) => finishes.push(finish),
            Ok(None) => panic!("ended well"),
            Err(error) => break error,
        }
    };
    assert!(deltas > 0);
    assert_eq!(finishes.iter().map(|f| f.index).collect::<Vec<_>>(), [0, 1]);
    let mut completion_tokens = 0;
    for finish in &finishes {
        assert_eq!(finish.finish_reason(), FinishReason::TimeLimit);
        let usage = finish.usage.unwrap();
        assert!(usage.prompt_tokens == 1 && finish.timings.unwrap().total_ms >= 1500.0);
        completion_tokens += usage.completion_tokens;
    }
    let refused = refusal::<()>(Err(error));
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::DeadlineExceeded, Some("DEADLINE_EXCEEDED"))
    );
    assert_eq!(
        refused.metadata["completion_tokens"],
        completion_tokens.to_string()
    );
    assert_eq!(refused.metadata["prompt_tokens"], "1");
    server.fake.steps.open();
    server
        .load_until(|load| load.running == 0 && load.pools[0].blocks_used == 0)
        .await;
}

#[tokio::test]
async fn a_time_limit_counts_in_the_queue_too() {
    let server = TestServer::start("engine.max_sequences = 1").await;
    let mut running = server.client.generate(generation("x", 4000)).await.unwrap();
    running.next().await.unwrap();
    server.fake.steps.shut();
    let late = v1::GenerateRequest {
        time_limit_ms: Some(500),
        ..generation("y", 1)
    };
    let refused = refusal(server.client.generate_unary(late).await);
    assert_eq!(refused.code, Code::DeadlineExceeded);
    assert!(refused.message.contains("queue"), "{refused:?}");
    assert_eq!(refused.metadata["completion_tokens"], "0");
}

#[tokio::test]
async fn a_server_wide_limit_on_time_binds_requests_without_one() {
    let server = TestServer::start("requests.max_time = '100ms'").await;
    server.fake.steps.shut();
    let refused = refusal(server.client.generate_unary(generation("x", 4)).await);
    assert_eq!(refused.code, Code::DeadlineExceeded);
}

#[tokio::test]
async fn abort_finishes_every_completion_and_the_stream_ends_well() {
    let server = TestServer::start("").await;
    let request = v1::GenerateRequest {
        request_id: "doomed".into(),
        sampling: Some(v1::SamplingParams {
            n: Some(2),
            ..Default::default()
        }),
        ..generation("x", 4000)
    };
    let mut generation = server.client.generate(request).await.unwrap();
    generation.next().await.unwrap();
    server.client.abort("doomed").await.unwrap();
    let completion = generation.collect().await.unwrap();
    let reasons: Vec<_> = completion
        .choices
        .iter()
        .map(|c| c.finish.as_ref().unwrap().finish_reason())
        .collect();
    assert_eq!(reasons, [FinishReason::Aborted; 2]);
    server.load_until(|load| load.running == 0).await;
    let refused = refusal(server.client.abort("doomed").await);
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::NotFound, Some("REQUEST_NOT_FOUND"))
    );
}

#[tokio::test]
async fn abort_of_a_unary_generation_answers_with_what_there_is() {
    let server = TestServer::start("").await;
    server.fake.steps.shut();
    let request = v1::GenerateRequest {
        request_id: "held".into(),
        ..generation("x", 4000)
    };
    let (answer, ()) = tokio::join!(server.client.generate_unary(request), async {
        while server.client.abort("held").await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(answer.unwrap().choices[0].finish_reason(), FinishReason::Aborted);
}

#[tokio::test]
async fn a_running_requests_name_is_not_given_twice_and_is_free_afterwards() {
    let server = TestServer::start("").await;
    let named = || v1::GenerateRequest {
        request_id: "twin".into(),
        ..generation("x", 3)
    };
    server.fake.steps.shut();
    let mut first = server.client.generate(named()).await.unwrap();
    let refused = refusal(server.client.generate(named()).await);
    assert_eq!(
        (refused.code, fields(&refused)),
        (Code::InvalidArgument, vec!["request_id"])
    );
    server.fake.steps.open();
    while first.next().await.unwrap().is_some() {}
    drop(first);
    server.client.generate_unary(named()).await.unwrap();
}

#[tokio::test]
async fn a_dropped_stream_frees_what_it_held() {
    let server = TestServer::start("").await;
    let mut generation = server.client.generate(generation("x", 4000)).await.unwrap();
    generation.next().await.unwrap();
    server.load_until(|load| load.running == 1).await;
    drop(generation);
    server
        .load_until(|load| {
            load.running == 0 && load.slots_used == 0 && load.pools.iter().all(|p| p.blocks_used == 0)
        })
        .await;
}

#[tokio::test]
async fn a_name_comes_from_the_message_or_the_metadata_or_the_server() {
    let server = TestServer::start("").await;
    let named = |field: &str, header: Option<&str>| {
        let mut request = Request::new(v1::GenerateRequest {
            request_id: field.into(),
            ..generation("x", 1)
        });
        if let Some(header) = header {
            request
                .metadata_mut()
                .insert("x-request-id", header.parse().unwrap());
        }
        request
    };
    for (field, header, expected) in [("f", Some("h"), "f"), ("f", None, "f"), ("", Some("h"), "h")] {
        let generation = server.client.generate(named(field, header)).await.unwrap();
        assert_eq!(generation.request_id(), expected);
        generation.collect().await.unwrap();
    }
    let made = server.client.generate(named("", None)).await.unwrap();
    assert_eq!(made.request_id().len(), 36);
    let refused = refusal(server.client.generate(named("has space", Some("h"))).await);
    assert_eq!(
        (fields(&refused), refused.request_id.as_deref()),
        (vec!["request_id"], Some("h"))
    );
}

#[tokio::test]
async fn a_reader_that_stops_reading_is_cut_off_alone() {
    let server = TestServer::start("engine.event_buffer = 64\ngrpc.max_send_buffer_bytes = 1024").await;
    let channel = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    let channel = channel.initial_stream_window_size(64).connect().await.unwrap();
    let mut request = generation("x", 4000);
    request.output = Some(v1::OutputOptions {
        logprobs: Some(20),
        ..Default::default()
    });
    let slow = InferenceServiceClient::new(channel)
        .generate(request)
        .await
        .unwrap();
    // Nobody reads it, and the window lets through a message or two.
    let quick = server.client.generate_unary(generation("y", 50)).await.unwrap();
    assert_eq!(quick.usage.unwrap().completion_tokens, 50);
    server.load_until(|load| load.running == 0).await;

    let mut slow = slow.into_inner();
    let status = loop {
        match slow.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended well"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(
        status.get_error_details().error_info().unwrap().reason,
        "SLOW_CLIENT"
    );
    assert!(status.metadata().contains_key("grpc-retry-pushback-ms"));
}
