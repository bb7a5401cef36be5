//! The built program with both of its plugins: models of several families from one configuration, each as if alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use baichuan_client::{Client, Health, prompt, v1};
use e2e::checkpoint::{repository, tiny_m1};
use e2e::{ServerProcess, chat, refusal, scrape, tokens, until_idle, until_ready, within};
use serde_json::Value;
use tonic::Code;

/// The checkpoint `qwen2`, `qwen3` or `qwen3-embedding`: tiny, random, and with the reference's answers beside it.
fn folder(name: &str) -> PathBuf {
    repository()
        .join("crates/mistralrs-backend/tests/golden")
        .join(name)
}

/// A prompt and what the reference makes of it: tokens or a vector.
struct Golden<T> {
    prompt: Vec<u32>,
    answer: Vec<T>,
}

/// Of each of a checkpoint's golden prompts, `key` of its entry.
fn golden<T>(name: &str, key: &str, number: fn(&Value) -> T) -> BTreeMap<String, Golden<T>> {
    let text = std::fs::read(folder(name).join("golden.json")).unwrap();
    let all: BTreeMap<String, Value> = serde_json::from_slice(&text).unwrap();
    let list = |entry: &Value, key: &str| entry[key].as_array().unwrap().clone();
    all.into_iter()
        .map(|(prompt, entry)| {
            let golden = Golden {
                prompt: list(&entry, "prompt").iter().map(token).collect(),
                answer: list(&entry, key).iter().map(number).collect(),
            };
            (prompt, golden)
        })
        .collect()
}

fn token(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

fn completions(name: &str) -> BTreeMap<String, Golden<u32>> {
    golden(name, "tokens", token)
}

fn entry(name: &str, path: &Path) -> String {
    format!("name = {name:?}\npath = {path:?}\n")
}

/// A server of these models, the first of them its default one.
async fn serve(models: &[(&str, &Path)]) -> ServerProcess {
    let config = tempfile::NamedTempFile::new().unwrap();
    let written: String = models
        .iter()
        .map(|(name, path)| format!("[[models]]\n{}", entry(name, path)))
        .collect();
    std::fs::write(config.path(), written).unwrap();
    let server = ServerProcess::start_with_ports(&[
        "--config",
        config.path().to_str().unwrap(),
        "--set",
        "engine.cache.context_tokens=16384",
    ])
    .await;
    until_ready(&server.client).await;
    server
}

fn to(model: &str, request: v1::GenerateRequest) -> v1::GenerateRequest {
    v1::GenerateRequest {
        model: model.into(),
        ..request
    }
}

async fn completed(client: &Client, request: v1::GenerateRequest) -> Vec<u32> {
    let model = request.model.clone();
    let completion = client.generate(request).await.unwrap().collect().await.unwrap();
    assert_eq!(completion.info.unwrap().model, model);
    completion.choices[0].token_ids.clone()
}

/// Every golden completion of a checkpoint, one after another.
async fn says_what_it_must(client: &Client, name: &str) {
    for (prompt, expected) in completions(name) {
        let request = to(name, tokens(&expected.prompt, expected.answer.len() as u32));
        assert_eq!(
            completed(client, request).await,
            expected.answer,
            "{name}, {prompt}"
        );
    }
}

async fn ended(server: ServerProcess) {
    server.signal("TERM").await;
    let (status, log) = server.ended().await;
    assert_eq!(status.code(), Some(0), "{log:?}");
}

#[tokio::test]
async fn models_of_several_families_are_served_at_once() {
    let (qwen2, qwen3, vectors) = (folder("qwen2"), folder("qwen3"), folder("qwen3-embedding"));
    let server = serve(&[
        ("m1", tiny_m1()),
        ("qwen2", &qwen2),
        ("qwen3", &qwen3),
        ("vectors", &vectors),
    ])
    .await;
    let client = &server.client;
    let features = client.server_info().await.unwrap().features;
    assert_eq!(features, ["baichuan-m1", "mistralrs"]);

    let models = client.models().await.unwrap();
    let listed: Vec<_> = models
        .iter()
        .map(|m| (m.name.as_str(), m.plugin.as_str(), m.is_default, m.state()))
        .collect();
    let ready = v1::ModelState::Ready;
    assert_eq!(
        listed,
        [
            ("m1", "baichuan-m1", true, ready),
            ("qwen2", "mistralrs", false, ready),
            ("qwen3", "mistralrs", false, ready),
            ("vectors", "mistralrs", false, ready),
        ]
    );
    for (name, architecture, context, does) in [
        ("m1", "BaichuanM1ForCausalLM", 32768, (true, true)),
        ("qwen2", "Qwen2ForCausalLM", 512, (true, false)),
        ("qwen3", "Qwen3ForCausalLM", 512, (true, false)),
        ("vectors", "Qwen3ForCausalLM", 512, (false, true)),
    ] {
        let model = client.model(name).await.unwrap();
        assert_eq!(
            (model.architecture.as_str(), model.max_context),
            (architecture, context)
        );
        assert_eq!(
            (model.supports_generate, model.supports_embed),
            does,
            "{name}: {model:?}"
        );
    }

    // What M1 says and embeds alone is what it says and embeds while all the others are busy.
    let m1 = |n| to("m1", tokens(&[5, 6, 7], n));
    let m1_embed = || v1::EmbedRequest {
        model: "m1".into(),
        inputs: vec![prompt::embed_tokens(vec![5, 6, 7])],
        ..Default::default()
    };
    let alone = (
        completed(client, m1(200)).await,
        client.embed(m1_embed()).await.unwrap(),
    );
    let at_once = async {
        (
            completed(client, m1(200)).await,
            client.embed(m1_embed()).await.unwrap(),
        )
    };
    let embedded = async {
        for (what, expected) in golden("qwen3-embedding", "values", |v| v.as_f64().unwrap() as f32) {
            let request = v1::EmbedRequest {
                model: "vectors".into(),
                inputs: vec![prompt::embed_tokens(expected.prompt)],
                normalize: Some(false),
                ..Default::default()
            };
            let answer = client.embed(request).await.unwrap();
            let values = baichuan_client::values(&answer.embeddings[0]).unwrap();
            assert_eq!(values.len(), expected.answer.len());
            let mut pairs = values.iter().zip(&expected.answer);
            assert!(pairs.all(|(a, b)| (a - b).abs() < 1e-3), "{what}: {values:?}");
        }
    };
    let (together, ..) = tokio::join!(
        at_once,
        says_what_it_must(client, "qwen2"),
        says_what_it_must(client, "qwen3"),
        embedded
    );
    assert_eq!(together.0, alone.0);
    assert_eq!(together.1.embeddings[0].data, alone.1.embeddings[0].data);

    let metrics = scrape(server.admin.unwrap()).await;
    for (name, plugin) in [
        ("m1", "baichuan-m1"),
        ("qwen2", "mistralrs"),
        ("qwen3", "mistralrs"),
    ] {
        let load = until_idle(client, name).await;
        assert!(load.requests_total >= 2 && load.steps_total > 16, "{load:?}");
        assert!(load.generated_tokens_total > 50 && load.prompt_tokens_total > 5);
        let label = format!("{{model_name=\"{name}\"");
        for metric in [
            "vllm:num_requests_running",
            "vllm:generation_tokens_total",
            "vllm:time_to_first_token_seconds_count",
            "vllm:inter_token_latency_seconds_count",
            "baichuan_step_duration_seconds_count",
        ] {
            let has = |line: &str| line.starts_with(&format!("{metric}{label}"));
            assert!(metrics.lines().any(has), "{metric} of {name} in {metrics}");
        }
        let info = |line: &str| {
            line.starts_with(&format!("baichuan_model_info{label}"))
                && line.contains(&format!("plugin=\"{plugin}\""))
        };
        assert!(metrics.lines().any(info), "{name} in {metrics}");
    }
    ended(server).await;
}

#[tokio::test]
async fn a_request_means_the_same_for_another_family() {
    let (qwen2, qwen3) = (folder("qwen2"), folder("qwen3"));
    let server = serve(&[("qwen3", &qwen3), ("qwen2", &qwen2)]).await;
    let client = &server.client;

    // The server's own template, tokeniser, grammar and stop rules.
    let mut request = to("qwen3", chat("How are you?", 60));
    request.stopping = Some(v1::StoppingParams {
        max_tokens: Some(60),
        ..Default::default()
    });
    request.structured_output = Some(v1::StructuredOutput {
        constraint: Some(v1::structured_output::Constraint::Regex(
            "(well|ill), [0-9]{3}".into(),
        )),
    });
    let completion = client.generate(request).await.unwrap().collect().await.unwrap();
    let (word, digits) = completion.choices[0].text.split_once(", ").unwrap();
    assert!(
        ["well", "ill"].contains(&word) && digits.len() == 3,
        "{word}, {digits}"
    );
    // "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n": three markers, the rest bytes.
    assert_eq!(completion.info.unwrap().prompt_tokens, 31);

    // What it does not do is said by the field.
    let logprobs = v1::GenerateRequest {
        output: Some(v1::OutputOptions {
            prompt_logprobs: Some(1),
            ..Default::default()
        }),
        ..to("qwen2", tokens(&[1, 2], 2))
    };
    let refused = refusal(client.generate(logprobs).await);
    assert_eq!(refused.code, Code::Unimplemented);
    assert!(refused.message.contains("output.prompt_logprobs"), "{refused:?}");
    let embed = v1::EmbedRequest {
        model: "qwen2".into(),
        inputs: vec![prompt::embed_tokens(vec![1, 2])],
        ..Default::default()
    };
    let refused = refusal(client.embed(embed).await);
    assert_eq!(refused.code, Code::Unimplemented);
    assert!(refused.message.contains("model"), "{refused:?}");

    // Its time is limited, and what it held is free.
    let late = v1::GenerateRequest {
        time_limit_ms: Some(40),
        ..to("qwen2", tokens(&[97; 400], 100))
    };
    let outcome = async { client.generate(late).await?.collect().await };
    assert_eq!(refusal(outcome.await).code, Code::DeadlineExceeded);
    until_idle(client, "qwen2").await;
    ended(server).await;
}

#[tokio::test]
async fn a_family_comes_and_goes_while_the_others_stream() {
    let (qwen2, qwen3) = (folder("qwen2"), folder("qwen3"));
    let server = serve(&[("m1", tiny_m1()), ("qwen2", &qwen2)]).await;
    let client = &server.client;
    let operator = server.operator().await;
    let m1 = to("m1", tokens(&[5, 6, 7], 900));
    let other = to("qwen2", tokens(&[104, 105], 500));
    let alone = (
        completed(client, m1.clone()).await,
        completed(client, other.clone()).await,
    );

    let mut ready = client.watch_health(Client::READINESS).await.unwrap();
    assert_eq!(ready.next().await.unwrap(), Some(Health::Serving));
    // At least once, and for as long as the other comes and goes.
    let over = AtomicBool::new(false);
    let goes_on = async |request: v1::GenerateRequest, expected: &[u32]| {
        loop {
            let ends_it = over.load(Ordering::Relaxed);
            let said = within("the stream", completed(client, request.clone())).await;
            assert_eq!(said, expected, "{}", request.model);
            if ends_it {
                return;
            }
        }
    };
    let coming_and_going = async {
        for _ in 0..2 {
            let loaded = operator.load_model(entry("qwen3", &qwen3)).await.unwrap();
            assert_eq!(
                (loaded.plugin.as_str(), loaded.state()),
                ("mistralrs", v1::ModelState::Ready)
            );
            says_what_it_must(client, "qwen3").await;
            operator.unload_model("qwen3").await.unwrap();
            let gone = refusal(client.generate(to("qwen3", tokens(&[1], 1))).await);
            assert_eq!(gone.code, Code::NotFound);
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(goes_on(m1, &alone.0), goes_on(other, &alone.1), coming_and_going);
    assert_eq!(client.health(Client::READINESS).await.unwrap(), Health::Serving);
    assert_eq!(client.models().await.unwrap().len(), 2);
    drop((ready, operator));
    ended(server).await;
}
