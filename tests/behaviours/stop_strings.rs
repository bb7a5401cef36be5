//! Stop strings end a completion wherever token borders fall, and nothing of them leaks.
//!
//! The fake model's tokens are single bytes, so that every stop string here lies across their borders.

use baichuan_client::{Client, Event, v1};
use e2e::{LETTERS, TestServer, text};
use v1::finish::Matched;

fn letters(max_tokens: u32, stop: &[&str]) -> v1::GenerateRequest {
    let mut request = text("tell me", max_tokens);
    request.sampling.as_mut().unwrap().allowed_token_ids = LETTERS.collect();
    request.stopping.as_mut().unwrap().stop = stop.iter().map(|s| s.to_string()).collect();
    request
}

/// The texts of the deltas as they came, and the end.
async fn deltas(client: &Client, request: v1::GenerateRequest) -> (Vec<String>, v1::Finish) {
    let mut generation = client.generate(request).await.unwrap();
    let mut texts = Vec::new();
    loop {
        match generation.next().await.unwrap().expect("a finish before the end") {
            Event::PromptInfo(_) => {}
            Event::Delta(delta) => texts.push(delta.text),
            Event::Finish(finish) => return (texts, finish),
        }
    }
}

#[tokio::test]
async fn the_text_ends_before_the_stop_string() {
    let server = TestServer::fake().await;
    let (whole, _) = deltas(&server.client, letters(60, &[])).await;
    let whole = whole.concat();
    for length in [1, 2, 5, 11] {
        let stop = &whole[30..30 + length];
        let begins = whole.find(stop).unwrap();
        let (texts, finish) = deltas(&server.client, letters(60, &["0", stop, "@@"])).await;
        assert_eq!(texts.concat(), whole[..begins], "stop {stop:?}");
        assert_eq!(finish.finish_reason(), v1::FinishReason::Stop);
        assert_eq!(finish.matched, Some(Matched::StopString(stop.into())));
        assert_eq!(finish.usage.unwrap().completion_tokens as usize, begins + length);
        // At no time more than what is certainly not part of it was out.
        let mut out = String::new();
        for text in texts {
            out += &text;
            assert!(whole[..begins].starts_with(&out), "{out:?} leaked of {stop:?}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn it_is_part_of_the_text_when_asked_for() {
    let server = TestServer::fake().await;
    let (whole, _) = deltas(&server.client, letters(60, &[])).await;
    let whole = whole.concat();
    let stop = &whole[30..36];
    let mut request = letters(60, &[stop]);
    request.stopping.as_mut().unwrap().include_stop_str_in_output = Some(true);
    let (texts, _) = deltas(&server.client, request).await;
    assert_eq!(texts.concat(), whole[..whole.find(stop).unwrap() + 6]);
    server.stop().await;
}

#[tokio::test]
async fn what_was_held_back_for_a_stop_string_that_did_not_come_is_not_lost() {
    let server = TestServer::fake().await;
    let (whole, _) = deltas(&server.client, letters(40, &[])).await;
    let whole = whole.concat();
    // Matches up to the very last generated letter, and would need one more.
    let almost = format!("{}!", &whole[35..]);
    let (texts, finish) = deltas(&server.client, letters(40, &[&almost])).await;
    assert_eq!(texts.concat(), whole);
    assert_eq!(finish.finish_reason(), v1::FinishReason::Length);
    server.stop().await;
}

#[tokio::test]
async fn no_stop_string_counts_before_min_tokens() {
    let server = TestServer::fake().await;
    let (whole, _) = deltas(&server.client, letters(60, &[])).await;
    let whole = whole.concat();
    let stop = &whole[4..6];
    let mut request = letters(60, &[stop]);
    request.stopping.as_mut().unwrap().min_tokens = Some(20);
    let (texts, finish) = deltas(&server.client, request).await;
    assert!(texts.concat().len() >= 20 - stop.len(), "{texts:?}");
    assert!(finish.usage.unwrap().completion_tokens >= 20);
    server.stop().await;
}
