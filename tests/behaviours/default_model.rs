//! The model that ships with the server, served when none is named, knows what it was trained on.

use baichuan_client::{Client, prompt, v1, values};
use e2e::{Setup, TestServer};

const MEANINGS: [(&str, &str); 6] = [
    ("appendicitis", "inflammation of the vermiform appendix"),
    ("hematemesis", "vomiting blood"),
    (
        "tummy tuck",
        "cosmetic surgery of the abdomen to remove wrinkles and tighten the skin over the stomach",
    ),
    (
        "ligation",
        "(surgery) tying a duct or blood vessel with a ligature (as to prevent bleeding during surgery)",
    ),
    ("drug bust", "seizure of illegal drugs by the police"),
    (
        "necropsy",
        "an examination and dissection of a dead body to determine cause of death or the changes produced by disease",
    ),
];

/// The model's answer, sampled as its checkpoint says, which is greedily.
async fn answer(client: &Client, messages: Vec<v1::ChatMessage>) -> (String, v1::FinishReason) {
    let request = v1::GenerateRequest {
        prompt: Some(prompt::chat(messages)),
        stopping: Some(v1::StoppingParams {
            max_tokens: Some(100),
            ..Default::default()
        }),
        ..Default::default()
    };
    let answer = client.generate_unary(request).await.unwrap();
    (answer.choices[0].text.clone(), answer.choices[0].finish_reason())
}

fn question(term: &str) -> v1::ChatMessage {
    prompt::message("user", format!("What is {term}?"))
}

#[tokio::test]
async fn it_says_what_words_mean_alone_and_within_a_conversation_longer_than_its_window() {
    let server = TestServer::start(Setup::default_model()).await;
    let model = server.client.model("").await.unwrap();
    assert_eq!(
        (model.name.as_str(), model.supports_chat),
        ("baichuan-m1-wordnet", true)
    );
    let mut conversation = Vec::new();
    for (term, meaning) in MEANINGS {
        let expected = (meaning.to_owned(), v1::FinishReason::Stop);
        assert_eq!(answer(&server.client, vec![question(term)]).await, expected);
        conversation.push(question(term));
        assert_eq!(
            answer(&server.client, conversation.clone()).await,
            expected,
            "{conversation:?}"
        );
        conversation.push(prompt::message("assistant", meaning));
    }
    let [load] = server.client.load("").await.unwrap().try_into().unwrap();
    assert!(
        load.window_tokens > 0 && load.window_rows_peak >= load.window_tokens,
        "{load:?}"
    );
    server.stop().await;
}

#[tokio::test]
async fn synonyms_lie_nearer_to_each_other_than_to_strangers() {
    let server = TestServer::start(Setup::default_model()).await;
    let terms = [
        "What is hematemesis?",
        "What is haematemesis?",
        "What is a drug bust?",
    ];
    let request = v1::EmbedRequest {
        inputs: terms.map(prompt::embed_text).into(),
        ..Default::default()
    };
    let answer = server.client.embed(request).await.unwrap();
    let vectors: Vec<_> = answer.embeddings.iter().map(|e| values(e).unwrap()).collect();
    let similarity = |a: usize, b: usize| {
        vectors[a]
            .iter()
            .zip(&vectors[b])
            .map(|(a, b)| a * b)
            .sum::<f32>()
    };
    assert!(
        similarity(0, 1) > similarity(0, 2),
        "{} {}",
        similarity(0, 1),
        similarity(0, 2)
    );
    server.stop().await;
}
