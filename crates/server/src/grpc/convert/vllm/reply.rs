//! A generation's events as the routers' interface has them.
//!
//! In a stream each event of new tokens is a chunk and each end a `complete` that repeats the last chunk's tokens;
//! otherwise a `complete` carries everything.

use std::collections::BTreeMap;

use baichuan_engine::TokenId;
use baichuan_proto::v1;
use baichuan_proto::v1::generate_response::Event;
use baichuan_proto::vllm::grpc::engine as pb;
use pb::generate_complete::MatchedStop;
use pb::generate_response::Response;
use prost::Message;

use crate::grpc::convert::clamp;

/// Makes the messages of one generation.
pub(in crate::grpc) struct Reply {
    stream: bool,
    /// The prompt's first token, where log-probabilities of the prompt were asked for: it has none, and is listed.
    first_of_prompt: Option<TokenId>,
    prompt_tokens: u32,
    cached_tokens: u32,
    input_logprobs: Option<pb::InputLogProbs>,
    outputs: BTreeMap<u32, Output>,
}

/// What of one completion its `complete` will carry.
#[derive(Default)]
struct Output {
    begun: bool,
    token_ids: Vec<TokenId>,
    logprobs: Option<pb::OutputLogProbs>,
    /// The least that these take in a message.
    n_bytes: usize,
}

impl Reply {
    /// `first_of_prompt`: the prompt's first token, if log-probabilities of the prompt are asked for.
    pub(super) fn new(stream: bool, first_of_prompt: Option<TokenId>) -> Self {
        Self {
            stream,
            first_of_prompt,
            prompt_tokens: 0,
            cached_tokens: 0,
            input_logprobs: None,
            outputs: BTreeMap::new(),
        }
    }

    /// The least bytes of the largest message that will carry what is gathered.
    pub(in crate::grpc) fn n_bytes(&self) -> usize {
        self.outputs
            .values()
            .map(|output| output.n_bytes)
            .max()
            .unwrap_or(0)
    }

    /// The message for an event, if it has one.
    pub(in crate::grpc) fn take(&mut self, event: Event) -> Option<pb::GenerateResponse> {
        let response = match event {
            Event::PromptInfo(info) => {
                self.admitted(info);
                None
            }
            Event::Delta(delta) => self.grown(delta).map(Response::Chunk),
            Event::Finish(finish) => self.finished(&finish).map(Response::Complete),
        };
        response.map(|response| pb::GenerateResponse {
            response: Some(response),
        })
    }

    fn admitted(&mut self, info: v1::PromptInfo) {
        self.prompt_tokens = info.prompt_tokens;
        self.cached_tokens = info.cached_tokens;
        self.input_logprobs = self
            .first_of_prompt
            .map(|first| input_logprobs(first, info.prompt_logprobs));
    }

    fn grown(&mut self, delta: v1::Delta) -> Option<pb::GenerateStreamChunk> {
        let output = self.outputs.entry(delta.index).or_default();
        let logprobs = output_logprobs(delta.logprobs);
        if !self.stream {
            output.n_bytes += delta.token_ids.len() + logprobs.as_ref().map_or(0, Message::encoded_len);
            output.token_ids.extend(delta.token_ids);
            match (&mut output.logprobs, logprobs) {
                (Some(all), Some(new)) => append(all, new),
                (all @ None, new) => *all = new,
                (Some(_), None) => {}
            }
            return None;
        }
        let first = !std::mem::replace(&mut output.begun, true);
        output.token_ids.clone_from(&delta.token_ids);
        output.logprobs.clone_from(&logprobs);
        Some(pb::GenerateStreamChunk {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: clamp(delta.token_ids.len()),
            cached_tokens: self.cached_tokens,
            token_ids: delta.token_ids,
            output_logprobs: logprobs,
            input_logprobs: first.then(|| self.input_logprobs.clone()).flatten(),
            index: delta.index,
        })
    }

    fn finished(&mut self, finish: &v1::Finish) -> Option<pb::GenerateComplete> {
        let finish_reason = match finish.finish_reason() {
            v1::FinishReason::Stop => "stop",
            v1::FinishReason::Length | v1::FinishReason::ContextFull => "length",
            v1::FinishReason::Aborted => "abort",
            // The call ends with DEADLINE_EXCEEDED, which says it all.
            v1::FinishReason::TimeLimit | v1::FinishReason::Unspecified => return None,
        };
        let output = self.outputs.remove(&finish.index).unwrap_or_default();
        let usage = finish.usage.unwrap_or_default();
        let matched_stop = finish.matched.as_ref().and_then(|matched| match matched {
            v1::finish::Matched::StopString(text) => Some(MatchedStop::MatchedStopStr(text.clone())),
            v1::finish::Matched::StopTokenId(id) => Some(MatchedStop::MatchedTokenId(*id)),
            v1::finish::Matched::EosTokenId(_) => None,
        });
        Some(pb::GenerateComplete {
            output_ids: output.token_ids,
            finish_reason: finish_reason.to_owned(),
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
            output_logprobs: output.logprobs,
            input_logprobs: self.input_logprobs.clone(),
            index: finish.index,
            matched_stop,
        })
    }
}

fn output_logprobs(places: Vec<v1::TokenLogprob>) -> Option<pb::OutputLogProbs> {
    let mut all = pb::OutputLogProbs::default();
    for place in places {
        all.token_logprobs.push(place.logprob);
        all.token_ids.push(place.token_id);
        all.top_logprobs.extend(top(place.top));
    }
    (!all.token_ids.is_empty()).then_some(all)
}

fn append(all: &mut pb::OutputLogProbs, new: pb::OutputLogProbs) {
    all.token_logprobs.extend(new.token_logprobs);
    all.token_ids.extend(new.token_ids);
    all.top_logprobs.extend(new.top_logprobs);
}

/// `places` are those of all tokens but the first.
fn input_logprobs(first: TokenId, places: Vec<v1::TokenLogprob>) -> pb::InputLogProbs {
    let mut all = pb::InputLogProbs {
        token_logprobs: vec![pb::InputTokenLogProb { value: None }],
        token_ids: vec![first],
        top_logprobs: Vec::new(),
    };
    for place in places {
        all.token_logprobs.push(pb::InputTokenLogProb {
            value: Some(place.logprob),
        });
        all.token_ids.push(place.token_id);
        all.top_logprobs.extend(top(place.top));
    }
    if !all.top_logprobs.is_empty() {
        all.top_logprobs.insert(0, pb::TopLogProbs::default());
    }
    all
}

/// Nothing where no more than the token itself was asked for.
fn top(tokens: Vec<v1::TopLogprob>) -> Option<pb::TopLogProbs> {
    (!tokens.is_empty()).then(|| {
        let (token_ids, values) = tokens.into_iter().map(|t| (t.token_id, t.logprob)).unzip();
        pb::TopLogProbs { values, token_ids }
    })
}

#[cfg(test)]
mod tests;
