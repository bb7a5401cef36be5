//! What clients see of an engine, without its thread.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::error::StepError;
use crate::event::FinishReason;
use crate::ids::TokenId;
use crate::request::{Account, Pooling, SamplingOptions, StoppingOptions};
use crate::testing::{self, EOS, FakeModel, byte_tokenizer};

use self::bench::*;

mod bench;
mod sampling;

#[test]
fn greedy_tokens_are_the_models_whatever_the_chunk() {
    let prompt: Vec<TokenId> = (0..37).collect();
    let expected = greedy_tokens(&prompt, 20);
    for chunk in [1, 2, 3, 7, 16, 64] {
        let events = Bench::one(
            &config(1000, 1000, 1, chunk),
            request(generate(&prompt, greedy(), max_tokens(20))),
        );
        assert_eq!(tokens(&events, 0), expected, "chunks of {chunk}");
        let end = finished(&events, 0);
        assert_eq!(end.reason, FinishReason::Length);
        assert_eq!((end.usage.prompt_tokens, end.usage.completion_tokens), (37, 20));
        assert!(matches!(&events[0], Event::Prompt(p) if p.prompt_tokens == 37));
    }
}

#[test]
fn completions_of_one_prompt_share_its_prefill_and_differ() {
    let prompt: Vec<TokenId> = (0..30).collect();
    let options = SamplingOptions {
        seed: Some(5),
        n: Some(4),
        ..Default::default()
    };
    let mut bench = Bench::new(&roomy());
    let id = bench.submit(request(generate(&prompt, options.clone(), max_tokens(12))));
    bench.run();
    // One step for the prompt, which brings everybody's first token, and one for each further token.
    assert_eq!(bench.core.stats(false).totals.steps, 12);
    bench.assert_empty();
    let all = bench.seen.remove(&id).unwrap();
    let of = |events: &[Event]| (0..4).map(|i| tokens(events, i)).collect::<Vec<_>>();
    assert!((1..4).all(|i| of(&all)[0] != of(&all)[i]));

    // Where there is no room for copies they compute for themselves, to the same end.
    let tight = Bench::one(
        &config(11, 3, 2, 8),
        request(generate(&prompt, options, max_tokens(12))),
    );
    assert_eq!(of(&tight), of(&all));
    (0..4).for_each(|i| assert_eq!(finished(&tight, i).usage.completion_tokens, 12));
}

#[test]
fn every_way_to_end_is_told_apart() {
    let prompt: Vec<TokenId> = vec![7, 8, 9];
    let first = greedy_tokens(&prompt, 12);
    let stop = |stopping: StoppingOptions| {
        let events = Bench::one(&roomy(), request(generate(&prompt, greedy(), stopping)));
        (finished(&events, 0).reason.clone(), tokens(&events, 0))
    };
    let by_token = StoppingOptions {
        stop_token_ids: vec![first[2]],
        ..max_tokens(50)
    };
    let end = 1 + first.iter().position(|t| *t == first[2]).unwrap();
    assert_eq!(
        stop(by_token),
        (FinishReason::StopToken(first[2]), first[..end].to_vec())
    );
    assert_eq!(stop(max_tokens(4)), (FinishReason::Length, first[..4].to_vec()));
    let none = StoppingOptions {
        ignore_eos: Some(true),
        ..Default::default()
    };
    let (reason, tokens) = stop(none);
    assert_eq!(
        (reason, tokens.len()),
        (FinishReason::ContextFull, MAX_CONTEXT - 3)
    );

    let eos_next = SamplingOptions {
        logit_bias: [(EOS, 100.0)].into(),
        ..greedy()
    };
    let stopping = StoppingOptions {
        min_tokens: Some(3),
        ..Default::default()
    };
    let events = Bench::one(&roomy(), request(generate(&prompt, eos_next.clone(), stopping)));
    assert_eq!(finished(&events, 0).reason, FinishReason::Eos(EOS));
    assert_eq!(
        finished(&events, 0).usage.completion_tokens,
        4,
        "three tokens, then the end"
    );
    let events = Bench::one(&roomy(), request(generate(&prompt, eos_next, max_tokens(5))));
    assert_eq!(finished(&events, 0).reason, FinishReason::Length, "ignore_eos");
}

#[test]
fn a_stop_string_across_tokens_ends_the_text_before_it() {
    let only_ascii = SamplingOptions {
        allowed_token_ids: (97..107).collect(),
        ..greedy()
    };
    let whole = Bench::one(
        &roomy(),
        request(generate(&[1], only_ascii.clone(), max_tokens(40))),
    );
    let whole = text(&whole, 0);
    assert_eq!(whole.len(), 40);
    let stop = whole[10..13].to_owned();
    let at = whole.find(&stop).unwrap();
    for interval in [1, 3, 100] {
        let stopping = StoppingOptions {
            stop: vec!["zz".into(), stop.clone()],
            ..max_tokens(40)
        };
        let mut request_ = generate(&[1], only_ascii.clone(), stopping);
        request_.output.stream_interval = interval;
        let events = Bench::one(&roomy(), request(request_));
        assert_eq!(text(&events, 0), whole[..at]);
        assert_eq!(
            finished(&events, 0).reason,
            FinishReason::StopString(stop.clone())
        );
        assert_eq!(tokens(&events, 0).len(), at + 3);
    }
}

#[test]
fn a_stop_string_may_begin_before_min_tokens_and_not_end_there() {
    let only_ascii = SamplingOptions {
        allowed_token_ids: (97..107).collect(),
        ..greedy()
    };
    let of = |stopping| {
        let events = Bench::one(&roomy(), request(generate(&[1], only_ascii.clone(), stopping)));
        let tokens = tokens(&events, 0).len();
        (text(&events, 0), tokens, finished(&events, 0).reason.clone())
    };
    let (whole, ..) = of(max_tokens(40));
    let at = (8..30)
        .find(|at| whole.find(&whole[*at..at + 3]) == Some(*at))
        .unwrap();
    let stop = whole[at..at + 3].to_owned();
    let again = whole[at + 1..].find(&stop).map(|next| at + 1 + next);
    for (min, expected) in [(at, Some(at)), (at + 2, Some(at)), (at + 3, again)] {
        let (text, tokens, reason) = of(StoppingOptions {
            stop: vec![stop.clone()],
            min_tokens: Some(min as u32),
            ..max_tokens(40)
        });
        match expected {
            Some(at) => {
                assert_eq!(reason, FinishReason::StopString(stop.clone()), "{min}");
                assert_eq!((text.as_str(), tokens), (&whole[..at], at + 3), "{min}");
            }
            None => assert_eq!((text, reason), (whole.clone(), FinishReason::Length), "{min}"),
        }
    }
}

#[test]
fn logprobs_of_prompt_and_completion_are_the_models() {
    let prompt: Vec<TokenId> = (40..70).collect();
    for chunk in [4, 64] {
        let mut generate = generate(&prompt, greedy(), max_tokens(3));
        generate.output.logprobs = Some(2);
        generate.output.prompt_logprobs = Some(1);
        let events = Bench::one(&config(20, 20, 2, chunk), request(generate));
        let Event::Prompt(info) = &events[0] else {
            panic!("{:?}", events[0])
        };
        assert_eq!(info.prompt_logprobs.len(), 29);
        for (i, logprobs) in info.prompt_logprobs.iter().enumerate() {
            let (expected, top) =
                crate::sampler::top_logprobs(&testing::logits(&prompt[..=i]), prompt[i + 1], 1);
            assert_eq!(
                (logprobs.token.id, logprobs.token.logprob),
                (prompt[i + 1], expected)
            );
            assert_eq!((logprobs.top[0].id, logprobs.top[0].logprob), top[0]);
        }
        let all: Vec<_> = deltas(&events, 0)
            .into_iter()
            .flat_map(|d| d.logprobs.clone())
            .collect();
        assert_eq!(all.len(), 3);
        assert!(
            all.iter().all(|l| l.top.len() == 2 && l.top[0] == l.token),
            "greedy takes the likeliest"
        );
    }
}

#[test]
fn embeddings_are_pooled_as_defined_whatever_the_chunk() {
    let input: Vec<TokenId> = (10..40).collect();
    let rows: Vec<Vec<f32>> = (1..=30).map(|n| testing::hidden(&input[..n])).collect();
    let mean = |weight: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let total: f64 = (0..30).map(weight).sum();
        (0..16)
            .map(|i| (0..30).map(|t| weight(t) * f64::from(rows[t][i])).sum::<f64>() / total)
            .collect()
    };
    let exact = |row: &[f32]| row.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let table = [
        (Pooling::Last, exact(&rows[29])),
        (Pooling::First, exact(&rows[0])),
        (Pooling::Mean, mean(&|_| 1.0)),
        (Pooling::WeightedMean, mean(&|t| (t + 1) as f64)),
        (Pooling::None, exact(&rows.concat())),
    ];
    for (pooling, expected) in table {
        for chunk in [1, 7, 64] {
            let events = Bench::one(&config(20, 20, 2, chunk), embed(&input, pooling));
            let [Event::Embedded(got)] = &events[..] else {
                panic!("{events:?}")
            };
            assert_eq!((got.tokens, got.values.len()), (30, expected.len()));
            let far = got
                .values
                .iter()
                .zip(&expected)
                .any(|(g, e)| (f64::from(*g) - e).abs() > 1e-5);
            assert!(!far, "{pooling:?} in chunks of {chunk}");
        }
    }
}

#[test]
fn a_dropped_stream_frees_its_blocks_at_the_next_step() {
    let mut bench = Bench::new(&roomy());
    let id = bench.submit(request(generate(&[1; 100], greedy(), max_tokens(50))));
    let waiting = bench.submit(request(generate(&[2; 100], greedy(), max_tokens(50))));
    bench.step();
    assert!(bench.core.stats(false).global.used > 0);
    bench.cancel(id);
    bench.cancel(waiting);
    bench.step();
    bench.assert_empty();
    assert_eq!(bench.core.stats(false).totals.cancelled, 2);
}

/// An engine whose model fails where `hook` says so.
fn failing(config: &EngineConfig, hook: impl FnMut(u64) -> Result<(), StepError> + Send + 'static) -> Bench {
    let model = FakeModel::new(config, MAX_CONTEXT, 10)
        .unwrap()
        .with_hook(Box::new(hook));
    Bench::with_model(config, model)
}

#[test]
fn a_step_that_fails_once_costs_nobody_anything() {
    let mut bench = failing(&config(30, 12, 4, 8), |step| match step {
        5 | 20 => Err(StepError::OutOfMemory("planted".into())),
        _ => Ok(()),
    });
    let prompts: Vec<Vec<TokenId>> = (1..5).map(|n| (0..n * 9).collect()).collect();
    let ids: Vec<u64> = prompts
        .iter()
        .map(|p| bench.submit(request(generate(p, greedy(), max_tokens(12)))))
        .collect();
    bench.run();
    for (id, prompt) in ids.iter().zip(&prompts) {
        assert_eq!(tokens(&bench.seen[id], 0), greedy_tokens(prompt, 12));
        assert_eq!(finished(&bench.seen[id], 0).reason, FinishReason::Length);
    }
    bench.assert_empty();
}

#[test]
fn a_step_that_runs_out_of_memory_is_taken_in_smaller_parts() {
    // Only steps of up to five tokens find memory, which nobody knows beforehand.
    let config = config(100, 40, 8, 32);
    let model = FakeModel::new(&config, MAX_CONTEXT, 10).unwrap().with_room_for(5);
    let mut bench = Bench::with_model(&config, model);
    let prompts: Vec<Vec<TokenId>> = (1..7).map(|n| (0..n * 9).collect()).collect();
    let ids: Vec<u64> = prompts
        .iter()
        .map(|p| bench.submit(request(generate(p, greedy(), max_tokens(12)))))
        .collect();
    bench.run();
    for (id, prompt) in ids.iter().zip(&prompts) {
        assert_eq!(tokens(&bench.seen[id], 0), greedy_tokens(prompt, 12));
        assert_eq!(finished(&bench.seen[id], 0).reason, FinishReason::Length);
    }
    let totals = bench.core.stats(false).totals;
    assert!(totals.out_of_memory >= 3, "32, 16, 8 tokens: {totals:?}");
    assert!(totals.preemptions > 0 && !bench.core.is_broken());
    bench.assert_empty();
}

#[test]
fn a_step_that_panics_ends_its_own_requests_and_no_others() {
    let mut bench = failing(&config(1000, 1000, 2, 16), |step| {
        assert!(step != 5, "planted");
        Ok(())
    });
    let prompts: Vec<Vec<TokenId>> = (1..7).map(|n| (0..n * 9).collect()).collect();
    let ids: Vec<u64> = prompts
        .iter()
        .map(|p| bench.submit(request(generate(p, greedy(), max_tokens(12)))))
        .collect();
    while !bench.core.is_broken() {
        bench.step();
    }
    bench.core.recover().unwrap();
    assert!(!bench.core.is_broken());
    bench.run();
    let failed = Event::Failed(RequestError::EngineStopped);
    let ended: Vec<_> = ids.iter().filter(|id| bench.seen[id].contains(&failed)).collect();
    assert_eq!(ended.len(), 2, "two sequences run at once");
    for (id, prompt) in ids.iter().zip(&prompts).filter(|(id, _)| !ended.contains(id)) {
        assert_eq!(tokens(&bench.seen[id], 0), greedy_tokens(prompt, 12));
        assert_eq!(finished(&bench.seen[id], 0).reason, FinishReason::Length);
    }
    assert_eq!(bench.core.stats(false).totals.restarts, 1);
    bench.assert_empty();
}

#[test]
fn a_cache_that_cannot_be_copied_costs_its_completion_only_time() {
    let options = SamplingOptions {
        seed: Some(5),
        n: Some(3),
        ..Default::default()
    };
    let request_ = || request(generate(&[1, 2, 3], options.clone(), max_tokens(8)));
    let config = roomy();
    let model = FakeModel::new(&config, MAX_CONTEXT, 10).unwrap().without_copies();
    let mut bench = Bench::with_model(&config, model);
    let id = bench.submit(request_());
    bench.run();
    let whole = Bench::one(&config, request_());
    for index in 0..3 {
        assert_eq!(tokens(&bench.seen[&id], index), tokens(&whole, index));
        finished(&bench.seen[&id], index);
    }
    bench.assert_empty();
}

#[test]
fn the_time_from_a_cancellation_to_free_memory_is_measured() {
    let mut bench = Bench::new(&roomy());
    let id = bench.submit(request(generate(&[1; 100], greedy(), max_tokens(50))));
    bench.step();
    assert_eq!(bench.core.stats(false).measured.cancel_to_free.count(), 0);
    bench.cancel(id);
    bench.step();
    let measured = bench.core.stats(false).measured;
    assert_eq!(measured.cancel_to_free.count(), 1);
    assert_eq!(measured.prefill_steps.count(), 1);
    assert_eq!(
        (measured.step_tokens.count(), measured.step_tokens.sum()),
        (1, 64.0)
    );
}

#[test]
fn a_request_that_fails_every_step_it_is_in_is_refused_alone() {
    const POISON: TokenId = 255;
    let config = config(1000, 1000, 8, 16);
    let model = FakeModel::new(&config, MAX_CONTEXT, 10)
        .unwrap()
        .with_poison(POISON);
    let mut bench = Bench::with_model(&config, model);
    let clean = SamplingOptions {
        bad_token_ids: vec![POISON],
        ..greedy()
    };
    let prompts: Vec<Vec<TokenId>> = (1..4).map(|n| (0..n * 9).collect()).collect();
    let mut ids: Vec<u64> = prompts
        .iter()
        .map(|p| bench.submit(request(generate(p, clean.clone(), max_tokens(12)))))
        .collect();
    bench.step();
    let poisoned = bench.submit(request(generate(&[1, 2, POISON], clean.clone(), max_tokens(12))));
    bench.run();
    let ends: Vec<_> = bench.seen[&poisoned]
        .iter()
        .filter(|e| matches!(e, Event::Failed(_)))
        .collect();
    assert_eq!(
        ends,
        [&Event::Failed(RequestError::StepFailed("poisoned".into()))]
    );
    for (id, prompt) in ids.drain(..).zip(&prompts) {
        let solo = Bench::one(&roomy(), request(generate(prompt, clean.clone(), max_tokens(12))));
        assert_eq!(tokens(&bench.seen[&id], 0), tokens(&solo, 0));
    }
    bench.assert_empty();
}

#[test]
fn a_client_that_does_not_read_is_cut_off_alone() {
    let mut bench = Bench::new(&roomy());
    let reader = bench.submit(request(generate(&[1], greedy(), max_tokens(30))));
    let place = bench.queue.enter(&Account::default(), 1, 0.0).unwrap();
    let (sink, mut lazy) = EventSink::channel(4);
    bench.core.submit(Job {
        request: request(generate(&[2], greedy(), max_tokens(30))),
        sink,
        place,
        span: tracing::Span::none(),
    });
    bench.run();
    assert_eq!(tokens(&bench.seen[&reader], 0), greedy_tokens(&[1], 30));
    let mut events = Vec::new();
    while let Some(Some(event)) = futures::FutureExt::now_or_never(lazy.next()) {
        events.push(event);
    }
    assert_eq!(events.len(), 5);
    assert_eq!(events[4], Event::Failed(RequestError::SlowClient { pending: 4 }));
    bench.assert_empty();
}

#[test]
fn warm_up_leaves_nothing_behind() {
    let mut bench = Bench::new(&config(2, 2, 1, 4));
    bench.core.warm_up().unwrap();
    bench.assert_empty();
    let id = bench.submit(request(generate(&[1, 2], greedy(), max_tokens(3))));
    bench.run();
    assert_eq!(tokens(&bench.seen[&id], 0), greedy_tokens(&[1, 2], 3));
}

#[derive(Clone, Debug)]
enum Act {
    Generate {
        prompt: usize,
        max_tokens: u32,
        n: u32,
        seed: Option<u64>,
        priority: i32,
    },
    Embed {
        len: usize,
    },
    Cancel(prop::sample::Index),
    Steps(u8),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1..60usize, 1..20u32, 1..4u32, proptest::option::of(0..9u64), -1..2i32)
            .prop_map(|(prompt, max_tokens, n, seed, priority)| Act::Generate { prompt, max_tokens, n, seed, priority }),
        1 => (1..60usize).prop_map(|len| Act::Embed { len }),
        1 => any::<prop::sample::Index>().prop_map(Act::Cancel),
        3 => (0..12u8).prop_map(Act::Steps),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Alone = in any batch = in any chunks = preempted and resumed; one end each; all memory comes back.
    #[test]
    fn what_a_request_yields_depends_on_itself_alone(
        acts in proptest::collection::vec(act(), 1..20),
        global in 20usize..40,
        window in 3usize..10,
        slots in 1usize..6,
        chunk in 1usize..20,
    ) {
        let mut bench = Bench::new(&config(global, window, slots, chunk));
        let mut alive: BTreeMap<u64, Act> = BTreeMap::new();
        let prompt_of = |salt: usize, len: usize| -> Vec<TokenId> {
            (0..len).map(|i| ((i * 31 + salt * 7) % 250) as TokenId).collect()
        };
        let make = |act: &Act| match act {
            Act::Generate { prompt, max_tokens: max, n, seed, priority } => {
                let options = match seed {
                    Some(_) => SamplingOptions { seed: *seed, n: Some(*n), ..Default::default() },
                    None => SamplingOptions { n: Some(*n), ..greedy() },
                };
                let mut generate = generate(&prompt_of(*prompt, *prompt), options, max_tokens(*max));
                generate.priority = *priority;
                request(generate)
            }
            Act::Embed { len } => embed(&prompt_of(*len, *len), Pooling::Last),
            _ => unreachable!(),
        };
        for act in acts {
            match &act {
                Act::Generate { .. } | Act::Embed { .. } => {
                    let id = bench.submit(make(&act));
                    alive.insert(id, act);
                }
                Act::Cancel(which) if !alive.is_empty() => {
                    let id = *alive.keys().nth(which.index(alive.len())).expect("not empty");
                    alive.remove(&id);
                    bench.cancel(id);
                }
                Act::Cancel(_) => {}
                Act::Steps(n) => (0..*n).for_each(|_| bench.step()),
            }
        }
        bench.run();
        bench.assert_empty();
        for (id, act) in alive {
            let seen = &bench.seen[&id];
            let solo = Bench::one(&roomy(), make(&act));
            match act {
                Act::Generate { n, .. } => {
                    for index in 0..n {
                        prop_assert_eq!(tokens(seen, index), tokens(&solo, index));
                        prop_assert_eq!(text(seen, index), text(&solo, index));
                        prop_assert_eq!(&finished(seen, index).reason, &finished(&solo, index).reason);
                    }
                    let prompts = seen.iter().filter(|e| matches!(e, Event::Prompt(_))).count();
                    prop_assert_eq!(prompts, 1);
                }
                _ => match (&seen[..], &solo[..]) {
                    ([Event::Embedded(a)], [Event::Embedded(b)]) => prop_assert_eq!(&a.values, &b.values),
                    other => prop_assert!(false, "{:?}", other),
                },
            }
        }
    }
}

#[test]
fn every_part_of_a_prompt_is_told_and_the_last_as_such() {
    let prompt: Vec<TokenId> = (0..37).collect();
    for ask in [
        request(generate(&prompt, greedy(), max_tokens(3))),
        embed(&prompt, Pooling::Mean),
    ] {
        let mut bench = Bench::new(&config(1000, 1000, 1, 16));
        bench.sees_prefill = true;
        let id = bench.submit(ask);
        bench.run();
        let parts: Vec<_> = bench.seen[&id]
            .iter()
            .filter_map(|event| match event {
                Event::Prefilled(part) => Some((part.start, part.tokens, part.is_last)),
                _ => None,
            })
            .collect();
        assert_eq!(parts, [(0, 16, false), (16, 16, false), (32, 5, true)]);
    }
}

#[test]
fn the_clock_is_the_one_passed_in() {
    let config = roomy();
    let model = FakeModel::new(&config, MAX_CONTEXT, 10).unwrap();
    let vocabulary = Vocabulary {
        tokenizer: byte_tokenizer().unwrap(),
        eos_token_ids: vec![],
        max_context: MAX_CONTEXT,
    };
    let queue = Queue::new(10, 1000);
    let start = Instant::now();
    let ticks = std::sync::atomic::AtomicU64::new(0);
    // Every look at the clock is a second later: two a step, before and after the model runs.
    let clock = move || start + Duration::from_secs(ticks.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let mut core = EngineCore::new(model, vocabulary, &config, queue.clone(), clock);
    let (sink, mut stream) = EventSink::channel(100);
    let mut generate = generate(&[1], greedy(), max_tokens(3));
    generate.arrived = start;
    core.submit(Job {
        request: request(generate),
        sink,
        place: queue.enter(&Account::default(), 1, 0.0).unwrap(),
        span: tracing::Span::none(),
    });
    while !core.is_idle() {
        core.step();
    }
    let mut events = Vec::new();
    while let Some(Some(event)) = futures::FutureExt::now_or_never(stream.next()) {
        events.push(event);
    }
    let timings = finished(&events, 0).timings;
    let seconds = [
        timings.queue,
        timings.prefill,
        timings.decode,
        timings.time_to_first_token,
        timings.total,
    ];
    assert_eq!(seconds.map(|d| d.as_secs()), [0, 1, 4, 1, 5]);
    assert_eq!(timings.time_per_output_token(3), Duration::from_secs(2));
}
