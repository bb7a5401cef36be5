//! What the operator sees and does: metrics, AdminService.

use std::collections::HashSet;

use tonic::Code;

use crate::support::{TestServer, embedding, generation, refusal};

/// The value of the sample that begins with `series`.
fn sample(page: &str, series: &str) -> f64 {
    let line = page
        .lines()
        .find(|l| l.starts_with(series))
        .unwrap_or_else(|| panic!("no {series} in\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn metrics_count_what_was_served() {
    let server = TestServer::start("").await;
    server.client.generate_unary(generation("abc", 5)).await.unwrap();
    server.client.embed(embedding(&["abcd", "ef"])).await.unwrap();
    refusal(server.client.generate(generation("", 5)).await);
    let fake = "{model_name=\"fake\"";
    // An engine publishes a step's figures after its events: the last answer may be here before the last count.
    let prompt_tokens = format!("vllm:prompt_tokens_total{fake}}}");
    let page = loop {
        let (status, page) = server.page("/metrics").await;
        assert_eq!(status, 200);
        if sample(&page, &prompt_tokens) >= 9.0 && sample(&page, "vllm:num_requests_running") == 0.0 {
            break page;
        }
    };
    for (series, expected) in [
        (prompt_tokens, 9.0),
        (format!("vllm:generation_tokens_total{fake}}}"), 5.0),
        (format!("vllm:num_requests_running{fake}}}"), 0.0),
        (format!("vllm:num_requests_waiting{fake}}}"), 0.0),
        (format!("vllm:kv_cache_usage_perc{fake}}}"), 0.0),
        (format!("vllm:num_preemptions_total{fake}}}"), 0.0),
        (format!("vllm:request_success_total{fake},finished_reason=\"length\"}}"), 1.0),
        (format!("vllm:time_to_first_token_seconds_count{fake}}}"), 1.0),
        (format!("vllm:inter_token_latency_seconds_count{fake}}}"), 4.0),
        (format!("vllm:e2e_request_latency_seconds_count{fake}}}"), 1.0),
        (format!("vllm:request_prompt_tokens_sum{fake}}}"), 3.0),
        (format!("vllm:request_generation_tokens_sum{fake}}}"), 5.0),
        (format!("baichuan_kv_pool_blocks_used{fake},pool=\"window\"}}"), 0.0),
        (format!("baichuan_embed_requests_total{fake}}}"), 1.0),
        (format!("baichuan_embed_inputs_total{fake}}}"), 2.0),
        (format!("baichuan_embed_input_tokens_sum{fake}}}"), 6.0),
        ("baichuan_requests_rejected_total{reason=\"invalid\"}".into(), 1.0),
        (
            "grpc_server_handled_total{grpc_type=\"server_stream\",grpc_service=\"baichuan.v1.InferenceService\",\
             grpc_method=\"Generate\",grpc_code=\"InvalidArgument\"}"
                .into(),
            1.0,
        ),
        (
            "grpc_server_started_total{grpc_type=\"unary\",grpc_service=\"baichuan.v1.InferenceService\",\
             grpc_method=\"GenerateUnary\"}"
                .into(),
            1.0,
        ),
    ] {
        assert_eq!(sample(&page, &series), expected, "{series}");
    }
    for info in [
        "baichuan_build_info{",
        "baichuan_model_info{",
        "vllm:cache_config_info{",
    ] {
        assert_eq!(sample(&page, info), 1.0);
    }
    assert!(
        sample(
            &page,
            &format!("baichuan_kv_pool_blocks_total{fake},pool=\"global\"}}")
        ) > 0.0
    );
}

#[tokio::test]
async fn no_series_is_told_twice_and_every_name_says_what_it_is() {
    let server = TestServer::start("").await;
    server.client.generate_unary(generation("abc", 5)).await.unwrap();
    let (_, page) = server.page("/metrics").await;
    let body = page.split_once("\r\n\r\n").unwrap().1;
    let mut seen = HashSet::new();
    let typed: HashSet<&str> = body
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    for line in body.lines().filter(|l| !l.starts_with('#') && l.contains(' ')) {
        let series = line.rsplit_once(' ').unwrap().0;
        assert!(seen.insert(series), "{series} twice");
        let name = series.split('{').next().unwrap();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix).filter(|f| typed.contains(f)))
            .unwrap_or(name);
        assert!(typed.contains(family), "{name} has no type");
    }
}

#[tokio::test]
async fn what_clients_make_up_becomes_no_label() {
    let server = TestServer::start("").await;
    let mut request = generation("x", 1);
    request.model = "made-up".into();
    refusal(server.client.generate(request).await);
    assert!(!server.page("/metrics").await.1.contains("made-up"));
}

#[tokio::test]
async fn the_admin_service_is_not_served_unless_enabled() {
    let server = TestServer::start("").await;
    assert_eq!(
        refusal(server.client.drain(false).await).code,
        Code::Unimplemented
    );
    // And enabled, not where applications call.
    let server = TestServer::start("listen.admin_grpc = '127.0.0.1:0'").await;
    assert_eq!(
        refusal(server.client.drain(false).await).code,
        Code::Unimplemented
    );
    let operator = server.operator().await;
    let asked = operator.generate(generation("x", 1)).await;
    assert_eq!(refusal(asked).code, Code::Unimplemented);
}

#[tokio::test]
async fn the_operator_can_drain_without_ending_the_server() {
    let server = TestServer::start("listen.admin_grpc = '127.0.0.1:0'").await;
    let operator = server.operator().await;
    server.fake.steps.shut();
    let running = server.client.generate(generation("a", 5)).await.unwrap();
    assert_eq!(operator.drain(false).await.unwrap(), 1);
    assert_eq!(server.page("/readyz").await.0, 503);
    assert_eq!(
        refusal(server.client.generate(generation("a", 5)).await).code,
        Code::Unavailable
    );
    let (drained, completion) = tokio::join!(operator.drain(true), async {
        server.fake.steps.open();
        running.collect().await
    });
    assert_eq!(drained.unwrap(), 0);
    completion.unwrap();
    assert!(server.client.server_info().await.unwrap().draining);
}
