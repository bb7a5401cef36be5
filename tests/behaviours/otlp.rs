//! What the program sends over OTLP, to a collector that speaks it: names, attributes, parents, buckets, and nothing of
//! what patients said.

use baichuan_client::{prompt, v1};
use e2e::checkpoint::tiny_m1;
use e2e::{
    Collector, Fake, ServerProcess, Setup, TestServer, attribute, chat, scrape, text, until_ready, within,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tonic::transport::Channel;
use tonic::{Code, Request};
use v1::inference_service_client::InferenceServiceClient;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";
/// Never to be seen anywhere but in the prompt.
const SECRET: &str = "Mrs Miller 555-1234 has a cough";

/// A call inside a caller's trace.
fn in_trace<T>(message: T, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    let traceparent = format!("00-{TRACE}-{CALLER}-{flags}");
    let metadata = request.metadata_mut();
    metadata.insert("traceparent", traceparent.parse().unwrap());
    metadata.insert("baggage", "tier=gold,secret=no".parse().unwrap());
    metadata.insert("x-request-id", "req-7".parse().unwrap());
    request
}

async fn connect(address: &str) -> InferenceServiceClient<Channel> {
    InferenceServiceClient::connect(format!("http://{address}"))
        .await
        .unwrap()
}

/// Calls `Generate` inside the caller's trace and reads the stream to its end.
async fn generate(address: &str, request: v1::GenerateRequest, flags: &str) {
    let call = connect(address).await.generate(in_trace(request, flags)).await;
    let mut stream = call.unwrap().into_inner();
    while within("a message", stream.message()).await.unwrap().is_some() {}
}

/// The program on the tiny model, told of the collector by the standard variables.
async fn traced(collector: &Collector, settings: &[&str]) -> ServerProcess {
    let model = tiny_m1().to_str().unwrap();
    let common = ["--model", model, "--model-name", "m1"];
    let settings = settings.iter().flat_map(|setting| ["--set", *setting]);
    let arguments: Vec<&str> = common.into_iter().chain(settings).collect();
    let endpoint = collector.endpoint();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_SERVICE_NAME", "clinic"),
        ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ];
    let server = ServerProcess::start_with_ports_in(&environment, &arguments).await;
    until_ready(&server.client).await;
    server
}

/// The spans, once so many calls of a method have ended: theirs come last.
async fn ended(collector: &Collector, method: &str, calls: usize) -> Vec<Span> {
    let name = format!("baichuan.v1.InferenceService/{method}");
    let enough = |spans: &[Span]| spans.iter().filter(|span| span.name == name).count() >= calls;
    collector.until(enough).await
}

/// A port that nobody listens on: bound, and given back.
async fn free_port() -> u16 {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    nobody.local_addr().unwrap().port()
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    match found[..] {
        [one] => one,
        _ => panic!("{} spans called {name} among {:?}", found.len(), names(spans)),
    }
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn says(span: &Span, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        let found = attribute(&span.attributes, name);
        assert_eq!(found.as_deref(), Some(*value), "{name} of {}", span.name);
    }
}

#[tokio::test]
async fn a_generation_is_traced_from_its_caller_to_its_last_message() {
    let collector = Collector::start().await;
    let settings = [
        "engine.prefill_chunk_tokens=8",
        "telemetry.baggage_attributes=['tier']",
    ];
    let server = traced(&collector, &settings).await;
    let mut request = chat(SECRET, 5);
    request.sampling = Some(v1::SamplingParams {
        temperature: Some(0.5),
        seed: Some(3),
        ..Default::default()
    });
    generate(&server.address, request, "01").await;
    let spans = ended(&collector, "Generate", 1).await;

    let call = named(&spans, "baichuan.v1.InferenceService/Generate");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE));
    assert_eq!(hex(&call.parent_span_id), CALLER);
    assert_eq!(call.kind(), SpanKind::Server);
    says(
        call,
        &[
            ("rpc.system.name", "grpc"),
            ("rpc.method", "baichuan.v1.InferenceService/Generate"),
            ("rpc.status_code", "OK"),
            ("rpc.response.status_code", "OK"),
            ("baichuan.request_id", "req-7"),
            ("baggage.tier", "gold"),
        ],
    );
    assert_eq!(attribute(&call.attributes, "baggage.secret"), None);

    let operation = named(&spans, "chat m1");
    assert_eq!(operation.parent_span_id, call.span_id);
    says(
        operation,
        &[
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.provider.name", "baichuan"),
            ("gen_ai.request.model", "m1"),
            ("gen_ai.response.model", "m1"),
            ("gen_ai.response.id", "req-7"),
            ("gen_ai.request.temperature", "0.5"),
            ("gen_ai.request.seed", "3"),
            ("gen_ai.request.max_tokens", "5"),
            ("gen_ai.usage.output_tokens", "5"),
            ("gen_ai.response.finish_reasons", "[length]"),
        ],
    );
    let prompt: usize = attribute(&operation.attributes, "gen_ai.usage.input_tokens")
        .unwrap()
        .parse()
        .unwrap();

    let (queue, prefill, decode) = (
        named(&spans, "queue"),
        named(&spans, "prefill"),
        named(&spans, "decode"),
    );
    for phase in [queue, prefill, decode] {
        assert_eq!(phase.parent_span_id, operation.span_id, "{}", phase.name);
    }
    let chunks = prefill.events.iter().map(|event| {
        assert_eq!(event.name, "prefill.chunk");
        let tokens = attribute(&event.attributes, "baichuan.prefill.tokens").unwrap();
        tokens.parse::<usize>().unwrap()
    });
    let chunks: Vec<usize> = chunks.collect();
    assert_eq!(chunks.len(), prompt.div_ceil(8), "{chunks:?} of {prompt}");
    assert_eq!(chunks.iter().sum::<usize>(), prompt);

    // One after another, and all inside the call.
    let times = [
        call.start_time_unix_nano,
        operation.start_time_unix_nano,
        queue.end_time_unix_nano,
        prefill.end_time_unix_nano,
        decode.end_time_unix_nano,
        operation.end_time_unix_nano,
    ];
    let in_order = |pair: &[u64]| pair[0] <= pair[1] + 1_000_000;
    assert!(times.windows(2).all(in_order), "{times:?}");
    assert!(in_order(&[operation.end_time_unix_nano, call.end_time_unix_nano]));
    assert_eq!(queue.end_time_unix_nano, prefill.start_time_unix_nano);
    assert_eq!(prefill.end_time_unix_nano, decode.start_time_unix_nano);

    assert_eq!(collector.resource("service.name").as_deref(), Some("clinic"));
    assert_eq!(
        collector.resource("deployment.environment.name").as_deref(),
        Some("test")
    );
    assert!(collector.resource("service.version").is_some());
    server.signal("TERM").await;
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log:?}");
}

#[tokio::test]
async fn metrics_have_the_conventions_names_attributes_and_buckets_and_the_last_come_at_the_end() {
    let collector = Collector::start().await;
    let server = traced(&collector, &[]).await;
    generate(&server.address, text("once", 4), "00").await;
    generate(&server.address, text("twice", 4), "00").await;
    let too_many = connect(&server.address).await.generate(text("x", 0)).await;
    assert_eq!(too_many.unwrap_err().code(), Code::InvalidArgument);
    server.signal("TERM").await;
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log:?}");
    // The interval is a minute: what is here was flushed by the end.
    for (name, bounds, good) in [
        (
            "gen_ai.server.request.duration",
            &[
                0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
            ][..],
            2,
        ),
        (
            "gen_ai.server.time_to_first_token",
            &[
                0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
            ][..],
            2,
        ),
        (
            "gen_ai.server.time_per_output_token",
            &[
                0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
            ][..],
            2,
        ),
    ] {
        let points = collector.histogram(name);
        let point = points
            .iter()
            .find(|point| attribute(&point.attributes, "error.type").is_none())
            .unwrap();
        assert_eq!(point.explicit_bounds, bounds, "{name}");
        assert_eq!(point.count, good, "{name}");
        for (attribute_name, value) in [
            ("gen_ai.operation.name", "text_completion"),
            ("gen_ai.provider.name", "baichuan"),
            ("gen_ai.request.model", "m1"),
        ] {
            let found = attribute(&point.attributes, attribute_name);
            assert_eq!(found.as_deref(), Some(value), "{name}");
        }
    }
    let failed = collector.histogram("gen_ai.server.request.duration");
    let failed = failed
        .iter()
        .find_map(|point| attribute(&point.attributes, "error.type"));
    assert_eq!(failed.as_deref(), Some("invalid"));
    let calls = collector.histogram("rpc.server.call.duration");
    let generates = calls.iter().filter(|point| {
        attribute(&point.attributes, "rpc.method").as_deref() == Some("baichuan.v1.InferenceService/Generate")
    });
    let codes: Vec<(Option<String>, u64)> = generates
        .map(|point| {
            (
                attribute(&point.attributes, "rpc.response.status_code"),
                point.count,
            )
        })
        .collect();
    assert!(codes.contains(&(Some("OK".into()), 2)), "{codes:?}");
    assert!(codes.contains(&(Some("INVALID_ARGUMENT".into()), 1)), "{codes:?}");
    // The caller did not record its trace, so nobody does.
    let of_caller = |span: &Span| hex(&span.trace_id) == TRACE;
    assert!(!collector.spans().iter().any(of_caller));
}

#[tokio::test]
async fn a_call_that_fails_says_why() {
    let collector = Collector::start().await;
    let server = traced(&collector, &[]).await;
    let mut request = text("x", 100_000);
    request.time_limit_ms = Some(30);
    let call = connect(&server.address)
        .await
        .generate(in_trace(request, "01"))
        .await;
    let mut stream = call.unwrap().into_inner();
    let error = loop {
        match within("the end", stream.message()).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("100000 tokens in 30 ms"),
            Err(status) => break status,
        }
    };
    assert_eq!(error.code(), Code::DeadlineExceeded);
    let spans = ended(&collector, "Generate", 1).await;
    let call = named(&spans, "baichuan.v1.InferenceService/Generate");
    says(
        call,
        &[
            ("rpc.status_code", "DEADLINE_EXCEEDED"),
            ("error.type", "DEADLINE_EXCEEDED"),
        ],
    );
    assert_eq!(call.status.as_ref().unwrap().code(), StatusCode::Error);
    let operation = named(&spans, "text_completion m1");
    says(operation, &[("error.type", "deadline_exceeded")]);
    drop(server);
}

#[tokio::test]
async fn an_embedding_is_an_operation_too() {
    let collector = Collector::start().await;
    let server = traced(&collector, &[]).await;
    let input = |text: &str| v1::EmbedInput {
        input: Some(v1::embed_input::Input::Text(text.into())),
    };
    let request = v1::EmbedRequest {
        inputs: vec![input(SECRET), input("other")],
        ..Default::default()
    };
    let call = connect(&server.address)
        .await
        .embed(in_trace(request, "01"))
        .await;
    let vectors = call.unwrap().into_inner();
    let spans = ended(&collector, "Embed", 1).await;
    let operation = named(&spans, "embeddings m1");
    let tokens = vectors.usage.unwrap().prompt_tokens.to_string();
    says(
        operation,
        &[
            ("gen_ai.operation.name", "embeddings"),
            ("baichuan.embed.inputs", "2"),
            ("gen_ai.usage.input_tokens", &tokens),
        ],
    );
    for phase in ["queue", "prefill"] {
        assert_eq!(named(&spans, phase).parent_span_id, operation.span_id);
    }
    // The very numbers are content as well.
    let first = vectors.embeddings[0].values[0].to_string();
    assert!(!collector.everything().contains(&first));
    assert!(!collector.everything().contains(SECRET));
    drop(server);
}

#[tokio::test]
async fn nothing_of_prompt_or_completion_is_in_spans_metrics_or_logs_unless_asked_for() {
    let collector = Collector::start().await;
    let server = traced(
        &collector,
        &["log.filter=info,baichuan_server=trace,baichuan_engine=trace,baichuan_m1=trace"],
    )
    .await;
    let mut request = chat(SECRET, 8);
    request.stopping.as_mut().unwrap().stop = vec!["never-said".into()];
    generate(&server.address, request, "01").await;
    // A refused one too: its message must not quote.
    let mut bad = text(SECRET, 8);
    bad.truncate_prompt_tokens = Some(0);
    let refused = connect(&server.address).await.generate(in_trace(bad, "01")).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    ended(&collector, "Generate", 2).await;
    server.signal("TERM").await;
    let (_, log) = server.ended().await;
    let (log, sent) = (log.concat(), collector.everything());
    assert!(
        log.contains("call ended"),
        "the log is as chatty as it gets: {log}"
    );
    for secret in [SECRET, "Miller", "never-said"] {
        assert!(!sent.contains(secret), "{secret} was sent");
        assert!(!log.contains(secret), "{secret} was logged");
    }
}

#[tokio::test]
async fn content_is_captured_where_the_operator_wants_it_and_redacted() {
    let collector = Collector::start().await;
    let settings = [
        "telemetry.capture_content=true",
        "telemetry.redact=['\\d{3}-\\d{4}', 'Mrs \\w+']",
    ];
    let server = traced(&collector, &settings).await;
    let mut request = text(SECRET, 3);
    request.prompt = Some(prompt::chat([
        prompt::message("system", "Be brief."),
        prompt::message("user", SECRET),
    ]));
    generate(&server.address, request, "01").await;
    let spans = ended(&collector, "Generate", 1).await;
    let operation = named(&spans, "chat m1");
    let input = attribute(&operation.attributes, "gen_ai.input.messages").unwrap();
    assert!(input.contains("Be brief."), "{input}");
    assert!(input.contains("[REDACTED] [REDACTED] has a cough"), "{input}");
    let output = attribute(&operation.attributes, "gen_ai.output.messages").unwrap();
    assert!(
        output.contains(r#""role":"assistant""#) && output.contains(r#""finish_reason":"length""#),
        "{output}"
    );
    drop(server);
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_no_call_and_what_is_lost_is_counted() {
    let endpoint = format!("http://127.0.0.1:{}", free_port().await);
    lost(&endpoint, "export_failed", 1).await;
}

#[tokio::test]
async fn a_collector_that_never_answers_costs_no_call_and_what_has_no_room_is_counted() {
    let collector = Collector::stuck().await;
    lost(&collector.endpoint(), "queue_full", 1).await;
}

/// Serves calls while spans go nowhere, and expects them to be counted as dropped for `reason`.
async fn lost(endpoint: &str, reason: &str, at_least: u64) {
    let setup = Setup::fake(Fake::default())
        .with("listen.admin", "127.0.0.1:0")
        .with("telemetry.otlp_endpoint", endpoint)
        .with("telemetry.span_queue", 4)
        .with("telemetry.span_batch", 2)
        .with("telemetry.span_delay", "1ms")
        .with("telemetry.otlp_timeout", "2s");
    let server = TestServer::start(setup).await;
    let admin = server.admin.expect("it listens");
    let counted = async {
        loop {
            let generation = server.client.generate(text("x", 5)).await.unwrap();
            generation.collect().await.unwrap();
            let metrics = scrape(admin).await;
            let name = format!("baichuan_otlp_spans_dropped_total{{reason=\"{reason}\"}} ");
            let dropped = metrics.lines().find_map(|line| line.strip_prefix(&name));
            if dropped.is_some_and(|n| n.parse::<u64>().unwrap() >= at_least) {
                return;
            }
        }
    };
    within("dropped spans", counted).await;
    within("the end", server.stop()).await;
}

#[tokio::test]
async fn log_lines_and_exemplars_name_the_trace() {
    let collector = Collector::start().await;
    let setup = Setup::fake(Fake::default())
        .with("listen.admin", "127.0.0.1:0")
        .with("telemetry.otlp_endpoint", collector.endpoint());
    let server = TestServer::start(setup).await;
    generate(&server.address(), text("x", 5), "01").await;
    let metrics = scrape(server.admin.expect("it listens")).await;
    for name in [
        "vllm:time_to_first_token_seconds",
        "vllm:e2e_request_latency_seconds",
    ] {
        let bucket = format!("{name}_bucket");
        let exemplar = format!("# {{trace_id=\"{TRACE}\",span_id=\"");
        let named = |line: &&str| line.starts_with(&bucket) && line.contains(&exemplar);
        assert_eq!(metrics.lines().filter(named).count(), 1, "{name}:\n{metrics}");
    }
    server.stop().await;

    let process = traced(&collector, &[]).await;
    let admin = process.admin_grpc.expect("it listens");
    let channel = Channel::from_shared(format!("http://{admin}")).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut admin = v1::admin_service_client::AdminServiceClient::new(channel);
    let filter = v1::SetLogFilterRequest {
        filter: "debug".into(),
    };
    admin.set_log_filter(in_trace(filter, "01")).await.unwrap();
    let filter = v1::SetLogFilterRequest {
        filter: "info".into(),
    };
    admin.set_log_filter(in_trace(filter, "01")).await.unwrap();
    process.signal("TERM").await;
    let (_, log) = process.ended().await;
    let lines: Vec<serde_json::Value> = log
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let changed: Vec<_> = lines
        .iter()
        .filter(|l| l["message"] == "log filter changed")
        .collect();
    assert_eq!(changed.len(), 2, "{log:?}");
    for line in changed {
        assert_eq!(
            (&line["trace_id"], &line["request_id"]),
            (&TRACE.into(), &"req-7".into())
        );
        assert!(
            line["span_id"]
                .as_str()
                .is_some_and(|id| id.len() == 16 && id != CALLER)
        );
    }
    // The level changed while it ran: debug lines came only in between.
    let ended = |l: &&serde_json::Value| l["message"] == "call ended" && l["method"] == "SetLogFilter";
    assert_eq!(lines.iter().filter(ended).count(), 1, "{log:?}");
}
