//! One completion's progress: from a row of logits to events.
//!
//! What a model's name has nothing to do with: sampling, structured output, stop rules, text, log-probabilities,
//! usage and times. A backend that has logits but its own scheduler uses it as the engine here does.

use std::sync::Arc;
use std::time::Instant;

use crate::error::{RequestError, StepError};
use crate::event::{Delta, FinishReason, Finished, Timings, TokenLogprob, TokenLogprobs, Usage};
use crate::grammar::Grammar;
use crate::ids::TokenId;
use crate::model::Sampling;
use crate::request::GenerateRequest;
use crate::sampler::{Sampler, top_logprobs};
use crate::stop::StopMatcher;
use crate::text::{Detokenizer, Tokenizer};

/// What completions of one engine share.
#[derive(Clone, Debug)]
pub struct Vocabulary {
    /// Tokens to text.
    pub tokenizer: Tokenizer,
    /// Tokens that end a completion.
    pub eos_token_ids: Vec<TokenId>,
    /// Longest prompt and completion together, in tokens.
    pub max_context: usize,
}

impl Vocabulary {
    /// A row's log-probabilities as clients see them.
    pub fn describe(&self, logits: &[f32], token: TokenId, n: u32) -> TokenLogprobs {
        let describe = |id: TokenId, logprob: f32| TokenLogprob {
            id,
            logprob,
            text: self.tokenizer.token_text(id).unwrap_or_default().to_owned(),
        };
        let (logprob, top) = top_logprobs(logits, token, n);
        TokenLogprobs {
            token: describe(token, logprob),
            top: top
                .into_iter()
                .map(|(id, logprob)| describe(id, logprob))
                .collect(),
        }
    }
}

/// One completion's progress.
pub struct Completion {
    index: u32,
    request: Arc<GenerateRequest>,
    sampler: Sampler,
    /// What may not be chosen before `min_tokens`: bad tokens and whatever ends the completion.
    forbidden_early: Vec<TokenId>,
    /// What the text must look like, as far as it has come; absent: anything.
    grammar: Option<Grammar>,
    /// Absent when nobody needs text.
    text: Option<(Detokenizer, StopMatcher)>,
    n_generated: u32,
    first_token_at: Option<Instant>,
    last_token_at: Option<Instant>,
    /// How often it was paused to make room.
    pub preemptions: u32,
}

/// What the model says of the next token.
pub enum Answer<'a> {
    /// Its logits: one per token of the vocabulary.
    Logits(&'a [f32]),
    /// Which it is, as `Completion::sampling` asked for it; none if there was no telling.
    Chosen(Option<TokenId>),
}

/// What a token led to.
pub struct Accepted {
    /// What was chosen.
    pub token: TokenId,
    /// The token as its client sees it.
    pub delta: Delta,
    /// The client learns of it now, and of what waits for it.
    pub due: bool,
    /// The completion has ended.
    pub finish: Option<FinishReason>,
}

impl Completion {
    /// Completion `index` of a request, with nothing generated yet.
    pub fn new(request: Arc<GenerateRequest>, index: u32, vocabulary: &Vocabulary) -> Self {
        let stopping = &request.stopping;
        let needs_text = request.output.text || !stopping.stop.is_empty();
        let text = needs_text.then(|| {
            (
                vocabulary
                    .tokenizer
                    .detokenizer(request.output.skip_special_tokens),
                StopMatcher::new(stopping.stop.clone(), stopping.include_stop_str_in_output),
            )
        });
        let bad = &request.sampling.bad_token_ids;
        let forbidden_early = [bad, ending(&request, vocabulary), &stopping.stop_token_ids].concat();
        Self {
            index,
            forbidden_early,
            sampler: Sampler::new(&request.sampling, index, &request.prompt),
            grammar: request.grammar.clone(),
            request,
            text,
            n_generated: 0,
            first_token_at: None,
            last_token_at: None,
            preemptions: 0,
        }
    }

    /// How the model is to choose the next token; none if the host needs its logits.
    pub(crate) fn sampling(&self, vocab_size: usize) -> Option<Sampling<'_>> {
        let request = &self.request;
        let forbidden = if self.n_generated >= request.stopping.min_tokens {
            &request.sampling.bad_token_ids
        } else {
            &self.forbidden_early
        };
        // Where nothing else is possible, the host lets a completion end early.
        let host_only = request.output.logprobs.is_some() || self.grammar.is_some();
        if host_only || forbidden.len() >= vocab_size {
            return None;
        }
        self.sampler.sampling(&request.sampling, forbidden)
    }

    /// Takes the next token, or chooses it from its row of logits.
    ///
    /// # Errors
    /// Logits that are not numbers; a grammar that leaves nothing to choose. The completion has failed.
    pub fn accept(
        &mut self,
        answer: Answer<'_>,
        vocabulary: &Vocabulary,
        now: Instant,
    ) -> Result<Accepted, RequestError> {
        let request = self.request.clone();
        let stopping = &request.stopping;
        let eos = ending(&request, vocabulary);

        let may_end = self.n_generated >= stopping.min_tokens;
        let mut logprobs = Vec::new();
        let token = match answer {
            Answer::Logits(logits) => {
                let forbidden = if may_end {
                    Vec::new()
                } else {
                    [eos, &stopping.stop_token_ids].concat()
                };
                let token = self.choose(&request, logits, &forbidden)?;
                if let Some(n) = request.output.logprobs {
                    logprobs.push(vocabulary.describe(logits, token, n));
                }
                token
            }
            Answer::Chosen(token) => {
                let no_number = || RequestError::StepFailed(StepError::NotFinite.to_string());
                let token = token.ok_or_else(no_number)?;
                self.sampler.note(token);
                token
            }
        };
        self.n_generated += 1;
        self.first_token_at.get_or_insert(now);
        self.last_token_at = Some(now);

        let ended = if may_end && stopping.stop_token_ids.contains(&token) {
            Some(FinishReason::StopToken(token))
        } else if may_end && eos.contains(&token) {
            Some(FinishReason::Eos(token))
        } else {
            None
        };
        let n = self.n_generated;
        let mut text = String::new();
        let finish = ended
            .or_else(|| {
                let stop = self.push_text(token, may_end, &mut text);
                stop.map(FinishReason::StopString)
            })
            .or_else(|| (stopping.max_tokens == Some(n)).then_some(FinishReason::Length))
            .or_else(|| {
                let full = request.prompt.len() + n as usize >= vocabulary.max_context;
                full.then_some(FinishReason::ContextFull)
            });
        if finish
            .as_ref()
            .is_some_and(|reason| !matches!(reason, FinishReason::StopString(_)))
        {
            self.flush_text(&mut text);
        }
        if !request.output.text {
            text.clear();
        }
        let delta = Delta {
            at: now,
            index: self.index,
            text,
            token_ids: vec![token],
            logprobs,
        };
        let due = n.is_multiple_of(request.output.stream_interval) || finish.is_some();
        Ok(Accepted {
            token,
            delta,
            due,
            finish,
        })
    }

    fn choose(
        &mut self,
        request: &GenerateRequest,
        logits: &[f32],
        forbidden: &[TokenId],
    ) -> Result<TokenId, RequestError> {
        let failed = |e: StepError| RequestError::StepFailed(e.to_string());
        let Some(grammar) = &mut self.grammar else {
            let chosen = self.sampler.sample(&request.sampling, logits, forbidden, None);
            return chosen
                .and_then(|token| token.ok_or(StepError::NotFinite))
                .map_err(failed);
        };
        let mask = grammar.mask()?;
        let chosen = self
            .sampler
            .sample(&request.sampling, logits, forbidden, Some(&mask))
            .map_err(failed)?;
        let token = chosen.ok_or_else(|| grammar.failed("no token that may follow is allowed"))?;
        grammar.push(token)?;
        Ok(token)
    }

    /// Takes a token and appends to `shown` what may be shown; the stop string it completes, if any.
    fn push_text(&mut self, token: TokenId, may_end: bool, shown: &mut String) -> Option<String> {
        let (detokenizer, stop) = self.text.as_mut()?;
        // A model's vocabulary may be padded beyond its tokenizer's: such a token has no text.
        let text = detokenizer.push(token).unwrap_or_default();
        if !may_end {
            shown.push_str(&stop.push_early(text));
            return None;
        }
        let scan = stop.push(text);
        shown.push_str(&scan.text);
        scan.matched
    }

    /// Nothing more follows: what was held back is shown.
    fn flush_text(&mut self, shown: &mut String) {
        if let Some((detokenizer, stop)) = self.text.as_mut() {
            let scan = stop.push(detokenizer.finish());
            shown.push_str(&scan.text);
            shown.push_str(&stop.finish());
        }
    }

    /// The report at its end. `admitted`: when the request first got memory.
    pub fn finished(&self, reason: FinishReason, admitted: Instant, now: Instant) -> Finished {
        let arrived = self.request.arrived;
        let first = self.first_token_at.unwrap_or(now);
        let last = self.last_token_at.unwrap_or(now);
        Finished {
            index: self.index,
            reason,
            usage: Usage {
                prompt_tokens: self.request.prompt.len(),
                completion_tokens: self.n_generated as usize,
                cached_tokens: 0,
            },
            timings: Timings {
                queue: admitted.saturating_duration_since(arrived),
                prefill: first.saturating_duration_since(admitted),
                decode: last.saturating_duration_since(first),
                time_to_first_token: first.saturating_duration_since(arrived),
                total: now.saturating_duration_since(arrived),
            },
            preemptions: self.preemptions,
        }
    }
}

/// Tokens of the vocabulary that end a completion of the request.
fn ending<'v>(request: &GenerateRequest, vocabulary: &'v Vocabulary) -> &'v [TokenId] {
    if request.stopping.ignore_eos {
        &[]
    } else {
        &vocabulary.eos_token_ids
    }
}
