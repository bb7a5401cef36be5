//! A request means here what it means for any other plugin.

use baichuan_engine::StructuredOutput;
use baichuan_engine::event::{Event, FinishReason};
use baichuan_engine::request::{SamplingOptions, StoppingOptions};

use crate::support::{Completed, collect, golden, greedy, load, one, submit, within};

const LETTERS: std::ops::RangeInclusive<u32> = b'a' as u32..=b'z' as u32;

fn drawn(seed: u64) -> SamplingOptions {
    SamplingOptions {
        temperature: Some(1.0),
        top_p: Some(0.95),
        typical_p: Some(0.9),
        allowed_token_ids: LETTERS.collect(),
        seed: Some(seed),
        ..SamplingOptions::default()
    }
}

#[tokio::test]
async fn the_events_of_a_stream_come_in_order_and_add_up() {
    let backend = load("qwen2");
    let mut stream = greedy(&[102, 101, 118, 101, 114], 8).submit(&backend);
    let mut events = Vec::new();
    while let Some(event) = within("an event", stream.next()).await {
        events.push(event);
    }
    let [
        Event::Prompt(prompt),
        Event::Prefilled(prefilled),
        deltas @ ..,
        Event::Finished(finished),
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!(
        (prefilled.start, prefilled.tokens, prefilled.is_last),
        (0, 5, true)
    );
    assert_eq!((prompt.prompt_tokens, prompt.cached_tokens), (5, 0));
    assert_eq!(deltas.len(), 8);
    assert_eq!(finished.reason, FinishReason::Length);
    assert_eq!(
        (finished.usage.prompt_tokens, finished.usage.completion_tokens),
        (5, 8)
    );
    let timings = finished.timings;
    assert!(
        timings.time_to_first_token <= timings.total && timings.decode <= timings.total,
        "{timings:?}"
    );
}

#[tokio::test]
async fn equal_seeds_draw_equal_tokens_and_others_others() {
    let backend = load("qwen3");
    let mut texts = Vec::new();
    for seed in [7, 7, 8] {
        let mut wish = greedy(&[104, 105], 24);
        wish.sampling = drawn(seed);
        texts.push(one(wish.submit(&backend)).await.text);
    }
    assert_eq!(texts[0], texts[1]);
    assert_ne!(texts[0], texts[2]);
    assert!(
        texts.concat().bytes().all(|b| LETTERS.contains(&u32::from(b))),
        "{texts:?}"
    );
}

#[tokio::test]
async fn several_completions_of_one_prompt_are_several() {
    let backend = load("qwen2");
    let mut wish = greedy(&[104, 105], 12);
    wish.sampling = SamplingOptions {
        n: Some(3),
        ..drawn(3)
    };
    let all = collect(wish.submit(&backend)).await.unwrap();
    assert_eq!(all.len(), 3);
    assert!(
        all.iter()
            .all(|whole| whole.tokens.len() == 12 && whole.finished.is_some())
    );
    assert!(
        all[0].text != all[1].text && all[1].text != all[2].text,
        "{all:?}"
    );
}

#[tokio::test]
async fn every_rule_of_stopping_ends_a_completion() {
    let backend = load("qwen3");
    let golden = golden::<Completed>("qwen3");
    let expected = &golden["a sentence"];
    let third = expected.tokens[2];
    let first_at = expected.tokens.iter().position(|t| *t == third).unwrap() as u32;
    let stopped = |stopping: StoppingOptions| {
        let mut wish = greedy(&expected.prompt, 20);
        wish.stopping = StoppingOptions {
            max_tokens: Some(20),
            ..stopping
        };
        wish
    };
    let by_token = one(stopped(StoppingOptions {
        stop_token_ids: vec![third],
        ..StoppingOptions::default()
    })
    .submit(&backend))
    .await;
    let finished = by_token.finished.unwrap();
    assert_eq!(finished.reason, FinishReason::StopToken(third));
    assert_eq!(by_token.tokens, expected.tokens[..=first_at as usize]);

    let mut letters = stopped(StoppingOptions {
        ignore_eos: Some(true),
        ..StoppingOptions::default()
    });
    letters.sampling.allowed_token_ids = LETTERS.collect();
    let plain = one(letters.submit(&backend)).await.text;
    let stop = plain[5..7].to_owned();
    let mut wish = stopped(StoppingOptions {
        stop: vec![stop.clone()],
        ..StoppingOptions::default()
    });
    wish.sampling.allowed_token_ids = LETTERS.collect();
    let by_text = one(wish.submit(&backend)).await;
    assert_eq!(
        by_text.finished.unwrap().reason,
        FinishReason::StopString(stop.clone())
    );
    assert_eq!(by_text.text, plain[..plain.find(&stop).unwrap()]);

    // The only token allowed ends it, but not before the fourth.
    let eos = backend.info().eos_token_ids[0];
    let mut wish = stopped(StoppingOptions {
        min_tokens: Some(3),
        ..StoppingOptions::default()
    });
    wish.sampling.allowed_token_ids = vec![eos, 97];
    wish.sampling.logit_bias = [(eos, 100.0)].into();
    let by_eos = one(wish.submit(&backend)).await;
    assert_eq!(by_eos.finished.unwrap().reason, FinishReason::Eos(eos));
    assert_eq!(by_eos.tokens, [97, 97, 97, eos]);
    assert_eq!(by_eos.text, "aaa");
}

#[tokio::test]
async fn a_full_context_ends_a_completion() {
    let backend = load("qwen2");
    let max = backend.info().max_context;
    assert_eq!(max, 512);
    let mut wish = greedy(&vec![97; max - 4], 1);
    wish.stopping.max_tokens = None;
    let whole = one(wish.submit(&backend)).await;
    assert_eq!(whole.finished.unwrap().reason, FinishReason::ContextFull);
    assert_eq!(whole.tokens.len(), 4);
}

#[tokio::test]
async fn a_grammar_is_kept_to() {
    let backend = load("qwen3");
    let wish = StructuredOutput::Regex("(yes|no), [0-9]{3}".into());
    let grammar = backend.info().grammars.compile(wish).unwrap();
    for seed in 0..4 {
        let mut wish = greedy(&[104, 105], 60);
        wish.sampling = SamplingOptions {
            allowed_token_ids: Vec::new(),
            ..drawn(seed)
        };
        wish.stopping.ignore_eos = None;
        let mut request = wish.request();
        request.grammar = Some(grammar.clone());
        let whole = one(submit(&backend, request)).await;
        let (word, digits) = whole.text.split_once(", ").unwrap();
        assert!(
            ["yes", "no"].contains(&word) && digits.len() == 3,
            "{:?}",
            whole.text
        );
        assert!(digits.bytes().all(|b| b.is_ascii_digit()));
        assert!(matches!(whole.finished.unwrap().reason, FinishReason::Eos(_)));
    }
}

#[tokio::test]
async fn characters_of_several_tokens_come_whole() {
    let backend = load("qwen2");
    let bytes = "\u{1f912}".bytes().map(u32::from).collect::<Vec<_>>();
    let wish = StructuredOutput::Choice(vec!["\u{1f912}\u{1f912}".into()]);
    let mut request = greedy(&bytes, 20).request();
    request.stopping = StoppingOptions::default()
        .validate(&baichuan_engine::request::RequestLimits::default(), 1)
        .unwrap();
    request.grammar = Some(backend.info().grammars.compile(wish).unwrap());
    let whole = one(submit(&backend, request)).await;
    assert_eq!(whole.text, "\u{1f912}\u{1f912}");
    assert_eq!(whole.tokens.len(), 9, "eight bytes and the end");
    assert!(
        whole
            .deltas
            .iter()
            .all(|d| d.text.is_empty() || d.text == "\u{1f912}")
    );
}
