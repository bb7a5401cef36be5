//! Tenants share a server: each within its quotas, none waiting behind another's abundance.

use std::time::Duration;

use baichuan_client::{Client, Event, Refusal, prompt, v1};
use baichuan_server::{fresh_token, token_entry};
use e2e::{Fake, Gate, Setup, TestServer, refusal, text, tokens, until_idle, until_load, within};
use futures::stream;
use tempfile::TempDir;
use tonic::Code;

struct House {
    server: TestServer,
    /// Whose quotas are set.
    small: Client,
    large: Client,
    _dir: TempDir,
}

/// A server with the tenants `small`, with these settings, and `large`, with none.
async fn start(gate: &Gate, settings: &[(&str, &str)]) -> House {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens.toml");
    let [small, large] = [fresh_token().unwrap(), fresh_token().unwrap()];
    let entries =
        [(&small, "small"), (&large, "large")].map(|(token, name)| token_entry(token, name, name).unwrap());
    std::fs::write(&file, entries.concat()).unwrap();
    let mut setup = Setup::fake(Fake::gated(gate))
        .with("auth.tokens", file.display())
        .with("tenants.small.weight", 1)
        .with("tenants.large.weight", 1)
        .with("listen.admin", "127.0.0.1:0")
        .with("reload.interval", "1h")
        .token(&large);
    for (key, value) in settings {
        setup = setup.with(key, value);
    }
    let server = TestServer::start(setup).await;
    House {
        small: server.connect_as(Some(&small)).await,
        large: server.connect_as(Some(&large)).await,
        server,
        _dir: dir,
    }
}

fn over_quota(refused: &Refusal) -> Duration {
    assert_eq!(
        (refused.code, refused.reason.as_deref()),
        (Code::ResourceExhausted, Some("TENANT_QUOTA")),
        "{refused:?}"
    );
    let delay = refused.retry_delay.expect("RetryInfo");
    assert_eq!(
        refused.retry_pushback.expect("the trailer").as_millis(),
        delay.as_millis()
    );
    delay
}

fn embed(n: usize) -> v1::EmbedRequest {
    v1::EmbedRequest {
        inputs: vec![prompt::embed_text("x"); n],
        ..Default::default()
    }
}

fn tokenize(text: &str) -> v1::TokenizeRequest {
    v1::TokenizeRequest {
        input: Some(v1::tokenize_request::Input::Text(text.into())),
        ..Default::default()
    }
}

fn detokenize() -> v1::DetokenizeRequest {
    v1::DetokenizeRequest {
        token_ids: vec![104, 105],
        ..Default::default()
    }
}

#[tokio::test]
async fn requests_per_second_bound_generations_embeddings_and_inputs_of_streams_alike() {
    // One at once, and then one in a thousand seconds.
    let house = start(&Gate::new(), &[("tenants.small.requests_per_second", "0.001")]).await;
    let small = &house.small;
    small.generate_unary(text("x", 3)).await.unwrap();
    for outcome in [
        small.generate(text("x", 3)).await.map(drop),
        small.generate_unary(text("x", 3)).await.map(drop),
        small.embed(embed(1)).await.map(drop),
        small.tokenize(tokenize("x")).await.map(drop),
        small.detokenize(detokenize()).await.map(drop),
    ] {
        let delay = over_quota(&refusal(outcome));
        assert!(
            delay > Duration::from_secs(900) && delay <= Duration::from_secs(1000),
            "{delay:?}"
        );
    }
    let inputs = stream::iter([(0, prompt::embed_text("x")), (1, prompt::embed_text("y"))]);
    let mut answers = small
        .embed_stream(v1::EmbedRequest::default(), inputs)
        .await
        .unwrap();
    for _ in 0..2 {
        let answer = answers.next().await.unwrap().unwrap();
        let failed = answer.result.unwrap_err();
        assert_eq!(
            (failed.code, failed.reason.as_str()),
            (Code::ResourceExhausted, "TENANT_QUOTA")
        );
        assert!(failed.retry_delay.is_some());
    }
    house.large.generate_unary(text("x", 3)).await.unwrap();
    let rejected = "baichuan_tenant_rejected_total{tenant=\"small\",reason=\"tenant_quota\"}";
    assert_eq!(house.server.metric(rejected).await, 7.0);
    drop((house.small, house.large));
    house.server.stop().await;
}

#[tokio::test]
async fn tokens_per_minute_count_prompts_and_completions() {
    let house = start(&Gate::new(), &[("tenants.small.tokens_per_minute", "60")]).await;
    let small = &house.small;
    // 10 tokens of prompt and 40 generated: 10 are left, and one comes each second.
    small.generate_unary(tokens(&[1; 10], 40)).await.unwrap();
    let delay = over_quota(&refusal(small.generate(tokens(&[1; 50], 1)).await));
    assert!(
        delay > Duration::from_secs(20) && delay <= Duration::from_secs(40),
        "{delay:?}"
    );
    small.generate_unary(tokens(&[1; 5], 1)).await.unwrap();
    for (kind, expected) in [("prompt", 15.0), ("completion", 41.0)] {
        let series = format!("baichuan_tenant_tokens_total{{tenant=\"small\",kind=\"{kind}\"}}");
        assert_eq!(house.server.metric(&series).await, expected, "{kind}");
    }
    let used = house
        .server
        .metric("baichuan_tenant_quota_used_ratio{tenant=\"small\"}")
        .await;
    assert!(used > 0.5 && used <= 1.0, "{used}");
    house.large.generate_unary(tokens(&[1; 50], 50)).await.unwrap();
    drop((house.small, house.large));
    house.server.stop().await;
}

#[tokio::test]
async fn tokens_that_were_generated_are_charged_and_told_though_their_message_was_not_due() {
    let gate = Gate::new();
    let house = start(&gate, &[("tenants.small.tokens_per_minute", "600")]).await;
    let small = &house.small;
    let mut request = text("x", 4000);
    request.request_id = "waits".into();
    request.output.as_mut().unwrap().stream_interval = Some(200);
    let charged = "baichuan_tenant_tokens_total{tenant=\"small\",kind=\"completion\"}";
    gate.close();
    let aborted = small.generate(request.clone()).await.unwrap();
    gate.allow(6);
    until_load(small, "", |load| load.generated_tokens_total == 6).await;
    small.abort("waits").await.unwrap();
    let completion = within("the end", aborted.collect()).await.unwrap();
    let choice = &completion.choices[0];
    let finish = choice.finish.as_ref().unwrap();
    assert_eq!(finish.finish_reason(), v1::FinishReason::Aborted);
    assert_eq!(
        (choice.token_ids.len(), finish.usage.unwrap().completion_tokens),
        (6, 6)
    );
    assert_eq!(house.server.metric(charged).await, 6.0);

    // The engine learns of the abort at its next step.
    gate.allow(1);
    until_idle(small, "").await;
    let before = small.load("").await.unwrap()[0].generated_tokens_total;
    let dropped = small.generate(request).await.unwrap();
    gate.allow(5);
    until_load(small, "", |load| load.generated_tokens_total == before + 5).await;
    drop(dropped);
    house.server.until_metric(charged, 11.0).await;
    gate.open();
    drop((house.small, house.large));
    house.server.stop().await;
}

#[tokio::test]
async fn calls_at_once_are_bounded_and_one_that_ends_makes_room() {
    let gate = Gate::new();
    let house = start(&gate, &[("tenants.small.max_concurrent", "2")]).await;
    gate.close();
    let mut running = Vec::new();
    for _ in 0..2 {
        running.push(house.small.generate(text("x", 5)).await.unwrap());
    }
    over_quota(&refusal(house.small.generate(text("x", 5)).await));
    over_quota(&refusal(house.small.embed(embed(1)).await));
    let other = house.large.generate(text("x", 5)).await.unwrap();
    gate.open();
    for generation in running.into_iter().chain([other]) {
        generation.collect().await.unwrap();
    }
    let again = async {
        // A stream's end is seen here before the server has put it away.
        while house.small.generate_unary(text("x", 5)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    within("room", again).await;
    drop((house.small, house.large));
    house.server.stop().await;
}

#[tokio::test]
async fn a_tenant_fills_its_share_of_the_queue_and_no_more() {
    let gate = Gate::new();
    let settings = [
        ("engine.max_sequences", "1"),
        ("engine.max_waiting", "4"),
        ("tenants.small.queue_share", "0.5"),
    ];
    let house = start(&gate, &settings).await;
    gate.close();
    let mut first = house.large.generate(text("run", 5)).await.unwrap();
    assert!(matches!(first.next().await.unwrap(), Some(Event::PromptInfo(_))));
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(house.small.generate(text("x", 5)).await.unwrap());
    }
    over_quota(&refusal(house.small.generate(text("x", 5)).await));
    for _ in 0..2 {
        waiting.push(house.large.generate(text("x", 5)).await.unwrap());
    }
    let full = refusal(house.large.generate(text("x", 5)).await);
    assert_eq!(full.reason.as_deref(), Some("QUEUE_FULL"));
    gate.open();
    first.collect().await.unwrap();
    for generation in waiting {
        generation.collect().await.unwrap();
    }
    drop((house.small, house.large));
    house.server.stop().await;
}

#[tokio::test]
async fn one_tenants_request_does_not_wait_for_the_end_of_anothers_many() {
    let gate = Gate::new();
    let house = start(&gate, &[("engine.max_sequences", "2")]).await;
    gate.close();
    let mut flood = Vec::new();
    for _ in 0..20 {
        flood.push(house.large.generate(text("x", 2000)).await.unwrap());
    }
    let small = house.small.generate(text("y", 3)).await.unwrap();
    gate.open();
    let quick = within("the one request", small.collect()).await.unwrap();
    assert_eq!(quick.choices[0].token_ids.len(), 3);
    let load = house.large.load("").await.unwrap().remove(0);
    assert!(
        load.running + load.waiting > 10,
        "the flood is far from over: {load:?}"
    );
    drop((flood, house.small, house.large));
    house.server.stop().await;
}

#[tokio::test]
async fn calls_are_counted_by_tenant_and_nobodys_by_none() {
    let house = start(&Gate::new(), &[]).await;
    house.small.generate_unary(text("x", 3)).await.unwrap();
    refusal(house.small.generate(text("", 3)).await);
    let nobody = house
        .server
        .connect_as(Some("not a token at all, however long it is"))
        .await;
    refusal(nobody.generate(text("x", 3)).await);
    let series =
        |code: &str| format!("baichuan_tenant_requests_total{{tenant=\"small\",grpc_code=\"{code}\"}}");
    house.server.until_metric(&series("OK"), 1.0).await;
    house.server.until_metric(&series("InvalidArgument"), 1.0).await;
    assert_eq!(house.server.metric(&series("Unauthenticated")).await, 0.0);
    assert_eq!(
        house
            .server
            .metric("baichuan_requests_rejected_total{reason=\"unauthenticated\"}")
            .await,
        1.0
    );
    drop((nobody, house.small, house.large));
    house.server.stop().await;
}

#[tokio::test]
async fn inputs_that_were_taken_before_another_was_refused_are_charged() {
    let gate = Gate::new();
    let settings = [
        ("engine.max_waiting", "2"),
        ("tenants.small.tokens_per_minute", "600"),
    ];
    let house = start(&gate, &settings).await;
    // While this runs, nothing leaves the queue.
    gate.close();
    let mut first = house.large.generate(text("run", 5)).await.unwrap();
    assert!(matches!(first.next().await.unwrap(), Some(Event::PromptInfo(_))));
    let embed = house.small.embed(v1::EmbedRequest {
        inputs: vec![prompt::embed_tokens(vec![1; 10]); 50],
        ..Default::default()
    });
    let open = async {
        // All 50 are charged, and offered to the engine with that.
        let used = "baichuan_tenant_quota_used_ratio{tenant=\"small\"}";
        house.server.until_metric(used, 0.5).await;
        gate.open();
    };
    let (refused, ()) = within("the refusal", async { tokio::join!(embed, open) }).await;
    assert_eq!(refusal(refused).code, Code::ResourceExhausted);
    let charged = "baichuan_tenant_tokens_total{tenant=\"small\",kind=\"prompt\"}";
    assert_eq!(house.server.metric(charged).await, 20.0);
    first.collect().await.unwrap();
    gate.open();
    drop((house.small, house.large));
    house.server.stop().await;
}
