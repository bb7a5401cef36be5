//! What becomes of a generation's events.

use super::*;

fn prompt_info(prompt_logprobs: Vec<v1::TokenLogprob>) -> Event {
    Event::PromptInfo(v1::PromptInfo {
        prompt_tokens: 3,
        cached_tokens: 1,
        prompt_logprobs,
        ..v1::PromptInfo::default()
    })
}

fn place(token_id: u32, logprob: f32, top: &[(u32, f32)]) -> v1::TokenLogprob {
    v1::TokenLogprob {
        token_id,
        logprob,
        text: String::new(),
        top: top
            .iter()
            .map(|(token_id, logprob)| v1::TopLogprob {
                token_id: *token_id,
                logprob: *logprob,
                text: String::new(),
            })
            .collect(),
    }
}

fn delta(index: u32, ids: &[u32]) -> Event {
    Event::Delta(v1::Delta {
        index,
        token_ids: ids.to_vec(),
        logprobs: ids.iter().map(|id| place(*id, -1.0, &[(*id, -1.0)])).collect(),
        ..v1::Delta::default()
    })
}

fn finish(index: u32, reason: v1::FinishReason, matched: Option<v1::finish::Matched>) -> Event {
    Event::Finish(v1::Finish {
        index,
        finish_reason: reason.into(),
        matched,
        usage: Some(v1::Usage {
            prompt_tokens: 3,
            completion_tokens: 4,
            total_tokens: 7,
            cached_tokens: 1,
        }),
        ..v1::Finish::default()
    })
}

fn messages(reply: &mut Reply, events: Vec<Event>) -> Vec<Response> {
    events
        .into_iter()
        .filter_map(|event| reply.take(event)?.response)
        .collect()
}

#[test]
fn a_stream_has_a_chunk_for_each_delta_and_an_end_that_repeats_the_last() {
    let mut reply = Reply::new(true, None);
    let messages = messages(
        &mut reply,
        vec![
            prompt_info(vec![]),
            delta(0, &[10, 11]),
            delta(0, &[12, 13]),
            finish(0, v1::FinishReason::Length, None),
        ],
    );
    let [
        Response::Chunk(first),
        Response::Chunk(second),
        Response::Complete(end),
    ] = &messages[..]
    else {
        panic!("{messages:?}");
    };
    assert_eq!(
        (first.token_ids.as_slice(), first.completion_tokens),
        (&[10, 11][..], 2)
    );
    assert_eq!((first.prompt_tokens, first.cached_tokens), (3, 1));
    assert_eq!(second.token_ids, [12, 13]);
    assert_eq!(second.output_logprobs.as_ref().unwrap().token_ids, [12, 13]);
    assert_eq!(
        (end.output_ids.as_slice(), end.completion_tokens),
        (&[12, 13][..], 4)
    );
    assert_eq!((end.finish_reason.as_str(), &end.matched_stop), ("length", &None));
}

#[test]
fn without_streaming_each_completion_is_one_message_with_everything() {
    let mut reply = Reply::new(false, None);
    let messages = messages(
        &mut reply,
        vec![
            prompt_info(vec![]),
            delta(0, &[10]),
            delta(1, &[20]),
            delta(0, &[11]),
            finish(
                0,
                v1::FinishReason::Stop,
                Some(v1::finish::Matched::StopString("z".into())),
            ),
            delta(1, &[21]),
            finish(
                1,
                v1::FinishReason::Stop,
                Some(v1::finish::Matched::StopTokenId(21)),
            ),
        ],
    );
    let [Response::Complete(first), Response::Complete(second)] = &messages[..] else {
        panic!("{messages:?}");
    };
    assert_eq!((first.index, first.output_ids.as_slice()), (0, &[10, 11][..]));
    assert_eq!(first.matched_stop, Some(MatchedStop::MatchedStopStr("z".into())));
    let logprobs = first.output_logprobs.as_ref().unwrap();
    assert_eq!(logprobs.token_ids, [10, 11]);
    assert_eq!(logprobs.top_logprobs.len(), 2);
    assert_eq!((second.index, second.output_ids.as_slice()), (1, &[20, 21][..]));
    assert_eq!(second.matched_stop, Some(MatchedStop::MatchedTokenId(21)));
}

#[test]
fn ends_have_the_names_that_routers_know() {
    use v1::FinishReason::{Aborted, ContextFull, Length, Stop, TimeLimit};
    for (reason, name) in [
        (Stop, Some("stop")),
        (Length, Some("length")),
        (ContextFull, Some("length")),
        (Aborted, Some("abort")),
        (TimeLimit, None),
    ] {
        let mut reply = Reply::new(true, None);
        let eos = Some(v1::finish::Matched::EosTokenId(2));
        match reply.take(finish(0, reason, eos)).and_then(|m| m.response) {
            Some(Response::Complete(end)) => {
                assert_eq!(Some(end.finish_reason.as_str()), name);
                assert_eq!(
                    end.matched_stop, None,
                    "the end of a sequence is no stop of the request's"
                );
            }
            None => assert_eq!(name, None),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_prompts_logprobs_come_with_every_completions_first_chunk_and_list_the_first_token() {
    let mut reply = Reply::new(true, Some(5));
    let places = vec![place(6, -0.5, &[(6, -0.5), (7, -2.0)])];
    let messages = messages(
        &mut reply,
        vec![
            prompt_info(places),
            delta(0, &[1]),
            delta(0, &[2]),
            delta(1, &[3]),
        ],
    );
    let inputs: Vec<_> = messages
        .iter()
        .map(|message| match message {
            Response::Chunk(chunk) => chunk.input_logprobs.as_ref(),
            Response::Complete(_) => panic!("no end yet"),
        })
        .collect();
    assert!(inputs[1].is_none());
    for logprobs in [inputs[0].unwrap(), inputs[2].unwrap()] {
        assert_eq!(logprobs.token_ids, [5, 6]);
        let values: Vec<_> = logprobs.token_logprobs.iter().map(|l| l.value).collect();
        assert_eq!(values, [None, Some(-0.5)]);
        assert_eq!(logprobs.top_logprobs[0], pb::TopLogProbs::default());
        assert_eq!(logprobs.top_logprobs[1].token_ids, [6, 7]);
    }
}
