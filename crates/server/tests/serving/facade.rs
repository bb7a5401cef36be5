//! The routers' interface, over real sockets: what SMG asks in its order, and that both interfaces answer alike.

use baichuan_client::{Event, v1};
use baichuan_proto::smg::grpc::common;
use baichuan_proto::vllm::grpc::engine as pb;
use pb::generate_request::Input;
use pb::generate_response::Response;
use pb::vllm_engine_client::VllmEngineClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::{Fake, TestServer, generation};

const ON: &str = "grpc.vllm_facade = true";

async fn facade(server: &TestServer) -> VllmEngineClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address)).unwrap();
    VllmEngineClient::new(endpoint.connect().await.unwrap())
}

/// A greedy request for exactly `max_tokens` behind a text, as a router tokenised it.
fn request(text: &str, max_tokens: u32) -> pb::GenerateRequest {
    pb::GenerateRequest {
        input: Some(Input::Tokenized(pb::TokenizedInput {
            original_text: text.to_owned(),
            input_ids: text.bytes().map(u32::from).collect(),
        })),
        sampling_params: Some(pb::SamplingParams {
            temperature: Some(0.0),
            max_tokens: Some(max_tokens),
            ignore_eos: true,
            ..pb::SamplingParams::default()
        }),
        stream: true,
        ..pb::GenerateRequest::default()
    }
}

async fn messages(
    facade: &mut VllmEngineClient<Channel>,
    request: pb::GenerateRequest,
) -> Result<Vec<Response>, Status> {
    let mut stream = facade.generate(request).await?.into_inner();
    let mut messages = Vec::new();
    while let Some(message) = stream.message().await? {
        messages.extend(message.response);
    }
    Ok(messages)
}

fn completions(messages: &[Response]) -> Vec<&pb::GenerateComplete> {
    let ends = messages.iter().filter_map(|message| match message {
        Response::Complete(end) => Some(end),
        Response::Chunk(_) => None,
    });
    ends.collect()
}

fn violations(status: &Status) -> Vec<String> {
    let details = status.get_error_details();
    let request = details.bad_request().unwrap_or_else(|| panic!("{status:?}"));
    request.field_violations.iter().map(|v| v.field.clone()).collect()
}

#[tokio::test]
async fn both_interfaces_give_the_same_tokens_for_the_same_seed() {
    let server = TestServer::start(ON).await;
    let mut facade = facade(&server).await;
    let own = v1::GenerateRequest {
        sampling: Some(v1::SamplingParams {
            temperature: Some(1.3),
            seed: Some(11),
            n: Some(2),
            ..Default::default()
        }),
        output: Some(v1::OutputOptions {
            return_token_ids: Some(true),
            logprobs: Some(2),
            ..Default::default()
        }),
        ..generation("the same", 7)
    };
    let own = server.client.generate_unary(own).await.unwrap();
    for stream in [true, false] {
        let mut theirs = request("the same", 7);
        theirs.stream = stream;
        let params = theirs.sampling_params.as_mut().unwrap();
        (params.temperature, params.seed, params.n, params.logprobs) = (Some(1.3), Some(11), 2, Some(2));
        let messages = messages(&mut facade, theirs).await.unwrap();
        for choice in &own.choices {
            let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
            for message in &messages {
                let (index, new, place) = match message {
                    Response::Chunk(chunk) => (chunk.index, &chunk.token_ids, &chunk.output_logprobs),
                    Response::Complete(end) if !stream => (end.index, &end.output_ids, &end.output_logprobs),
                    Response::Complete(_) => continue,
                };
                if index == choice.index {
                    ids.extend(new.clone());
                    logprobs.extend(place.as_ref().unwrap().token_logprobs.clone());
                }
            }
            assert_eq!(ids, choice.token_ids);
            let expected: Vec<f32> = choice.logprobs.iter().map(|l| l.logprob).collect();
            assert_eq!(logprobs, expected);
        }
        let ends = completions(&messages);
        assert_eq!(ends.len(), 2);
        assert!(
            ends.iter()
                .all(|e| (e.finish_reason.as_str(), e.completion_tokens) == ("length", 7))
        );
    }
}

#[tokio::test]
async fn a_vector_is_the_one_that_the_own_interface_gives() {
    let server = TestServer::start(ON).await;
    let ids: Vec<u32> = "heart".bytes().map(u32::from).collect();
    let own = v1::EmbedRequest {
        inputs: vec![v1::EmbedInput {
            input: Some(v1::embed_input::Input::TokenIds(v1::TokenIds {
                ids: ids.clone(),
            })),
        }],
        ..Default::default()
    };
    let own = server.client.embed(own).await.unwrap();
    let theirs = pb::EmbedRequest {
        request_id: "embed-1".into(),
        tokenized: Some(pb::TokenizedInput {
            original_text: String::new(),
            input_ids: ids,
        }),
    };
    let mut facade = facade(&server).await;
    let response = facade.embed(theirs).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "embed-1");
    let response = response.into_inner();
    assert_eq!(response.embedding, own.embeddings[0].values);
    assert_eq!(response.embedding_dim as usize, response.embedding.len());
    assert_eq!(response.prompt_tokens, 5);

    let empty = facade.embed(pb::EmbedRequest::default()).await.unwrap_err();
    assert_eq!(
        (empty.code(), violations(&empty)),
        (Code::InvalidArgument, vec!["tokenized".into()])
    );
}

#[tokio::test]
async fn a_bad_field_is_named_as_the_router_knows_it() {
    let server = TestServer::start(ON).await;
    let mut facade = facade(&server).await;
    let mut bad = request("x", 1);
    let params = bad.sampling_params.as_mut().unwrap();
    (params.top_p, params.min_tokens, params.logprobs) = (1.7, 5, Some(21));
    let refused = messages(&mut facade, bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        violations(&refused),
        [
            "sampling_params.top_p",
            "sampling_params.min_tokens",
            "sampling_params.logprobs"
        ]
    );
    let mut outside = request("x", 1);
    outside.input = Some(Input::Tokenized(pb::TokenizedInput {
        original_text: String::new(),
        input_ids: vec![1, 50_000],
    }));
    let refused = messages(&mut facade, outside).await.unwrap_err();
    assert_eq!(violations(&refused), ["tokenized.input_ids[1]"]);
    let refused = messages(&mut facade, pb::GenerateRequest::default())
        .await
        .unwrap_err();
    assert_eq!(violations(&refused), ["input"]);

    let mut media = request("x", 1);
    media.mm_inputs = Some(pb::MultimodalInputs {});
    let refused = messages(&mut facade, media).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("mm_inputs"), "{refused:?}");
}

#[tokio::test]
async fn a_worker_tells_what_a_router_asks_when_it_takes_it_up() {
    let server = TestServer::start(&format!(
        "{ON}\nengine.max_sequences = 3\nengine.max_context = 64"
    ))
    .await;
    let mut facade = facade(&server).await;
    let health = facade
        .health_check(pb::HealthCheckRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(health.healthy, "{health:?}");
    let model = facade
        .get_model_info(pb::GetModelInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (model.served_model_name.as_str(), model.is_generation),
        ("fake", true)
    );
    assert_eq!((model.max_context_length, model.max_req_input_len), (64, 63));
    assert!(std::path::Path::new(&model.tokenizer_path).is_absolute());
    let info = facade
        .get_server_info(pb::GetServerInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (info.max_num_seqs, info.data_parallel_size, info.is_paused),
        (3, 1, false)
    );
    assert_eq!(info.kv_cache_dtype, "auto");
    let loads = facade
        .get_loads(pb::GetLoadsRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!((loads.dp_rank_count, loads.loads.len()), (1, 1));
    assert_eq!(loads.loads[0].max_running_requests, 3);
    assert!(loads.loads[0].max_total_num_tokens >= 64);
    let other_rank = pb::GetLoadsRequest {
        dp_rank: Some(2),
        include: vec![],
    };
    let refused = facade.get_loads(other_rank).await.unwrap_err();
    assert_eq!(violations(&refused), ["dp_rank"]);
    let flushed = facade
        .flush_cache(common::FlushCacheRequest::default())
        .await
        .unwrap();
    assert!(flushed.into_inner().success);
    let events = facade
        .subscribe_kv_events(common::SubscribeKvEventsRequest::default())
        .await;
    assert_eq!(events.unwrap_err().code(), Code::Unimplemented);
    let mut tokenizer = facade
        .get_tokenizer(common::GetTokenizerRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut archive = Vec::new();
    while let Some(piece) = tokenizer.message().await.unwrap() {
        archive.extend_from_slice(&piece.data);
    }
    assert!(archive.starts_with(b"PK"), "a zip archive");
}

#[tokio::test]
async fn a_worker_that_loads_is_not_there_and_one_that_drains_is_not_well() {
    let fake = Fake::default();
    fake.loading.shut();
    let server = TestServer::launch(fake, &format!("{ON}\nlisten.admin_grpc = '127.0.0.1:0'")).await;
    let mut facade = facade(&server).await;
    let loading = facade.health_check(pb::HealthCheckRequest {}).await.unwrap_err();
    assert_eq!(loading.code(), Code::Unavailable);
    server.fake.loading.open();
    while !facade
        .health_check(pb::HealthCheckRequest {})
        .await
        .is_ok_and(|health| health.get_ref().healthy)
    {}
    server.operator().await.drain(false).await.unwrap();
    let health = facade
        .health_check(pb::HealthCheckRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(!health.healthy);
    let info = facade
        .get_server_info(pb::GetServerInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(info.is_paused);
    let refused = messages(&mut facade, request("x", 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
}

#[tokio::test]
async fn abort_ends_what_runs_by_either_interface_and_passes_over_the_rest() {
    let server = TestServer::start(ON).await;
    let mut facade = facade(&server).await;
    server.fake.steps.shut();
    let own = v1::GenerateRequest {
        request_id: "own".into(),
        ..generation("x", 50)
    };
    let mut own = server.client.generate(own).await.unwrap();
    let theirs = pb::GenerateRequest {
        request_id: "theirs".into(),
        ..request("y", 50)
    };
    let mut theirs = facade.generate(theirs).await.unwrap().into_inner();
    let abort = pb::AbortRequest {
        request_ids: vec!["gone".into(), "own".into(), "theirs".into()],
    };
    facade.abort(abort).await.unwrap();
    server.fake.steps.open();
    let end = loop {
        match own.next().await.unwrap() {
            Some(Event::Finish(finish)) => break finish.finish_reason(),
            Some(_) => {}
            None => panic!("no end"),
        }
    };
    assert_eq!(end, v1::FinishReason::Aborted);
    let end = loop {
        match theirs.message().await.unwrap().unwrap().response.unwrap() {
            Response::Complete(end) => break end.finish_reason,
            Response::Chunk(_) => {}
        }
    };
    assert_eq!(end, "abort");
    server
        .load_until(|load| load.running == 0 && load.slots_used == 0)
        .await;
}

#[tokio::test]
async fn a_call_by_the_facade_counts_under_the_same_limits_and_metrics() {
    let server = TestServer::start(&format!("{ON}\ngrpc.max_concurrent_calls = 1")).await;
    let mut facade = facade(&server).await;
    server.fake.steps.shut();
    let held = facade.generate(request("x", 5)).await.unwrap();
    let refused = messages(&mut facade, request("y", 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.get_error_details().retry_info().is_some());
    // Asked while a generation holds the only place: not limited.
    facade.health_check(pb::HealthCheckRequest {}).await.unwrap();
    server.fake.steps.open();
    let mut held = held.into_inner();
    while held.message().await.unwrap().is_some() {}
    let (_, page) = server.page("/metrics").await;
    let started = r#"grpc_server_started_total{grpc_type="server_stream",grpc_service="vllm.grpc.engine.VllmEngine",grpc_method="Generate"} 2"#;
    assert!(page.contains(started), "{page}");
    assert!(page.contains("vllm:request_success_total{"), "{page}");
}

#[tokio::test]
async fn a_deadline_ends_a_facades_call_with_its_error() {
    let server = TestServer::start(ON).await;
    let mut facade = facade(&server).await;
    server.fake.steps.shut();
    let mut limited = tonic::Request::new(request("x", 50));
    limited
        .metadata_mut()
        .insert("grpc-timeout", "50m".parse().unwrap());
    let mut stream = facade.generate(limited).await.unwrap().into_inner();
    let outcome = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("ended without its error"),
            Err(status) => break status.code(),
        }
    };
    server.fake.steps.open();
    assert_eq!(outcome, Code::DeadlineExceeded);
}

#[tokio::test]
async fn the_facade_is_not_there_unless_it_is_turned_on() {
    let server = TestServer::start("").await;
    let mut facade = facade(&server).await;
    let refused = facade.health_check(pb::HealthCheckRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}

#[tokio::test]
async fn the_probabilities_of_a_prompt_that_was_cut_begin_at_its_first_token_left() {
    let server = TestServer::start(ON).await;
    let mut facade = facade(&server).await;
    for (keep, left) in [(Some(4), "long"), (Some(-1), "is long"), (None, "is long")] {
        let mut request = request("is long", 1);
        let params = request.sampling_params.as_mut().unwrap();
        (params.prompt_logprobs, params.truncate_prompt_tokens) = (Some(0), keep);
        let messages = messages(&mut facade, request).await.unwrap();
        let of_prompt = messages.iter().find_map(|message| match message {
            Response::Chunk(chunk) => chunk.input_logprobs.as_ref(),
            Response::Complete(end) => end.input_logprobs.as_ref(),
        });
        let ids: Vec<u32> = left.bytes().map(u32::from).collect();
        assert_eq!(of_prompt.unwrap().token_ids, ids, "{keep:?}");
    }
}
