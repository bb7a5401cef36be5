//! Requests, which can only be made valid.
//!
//! What a client may leave out is `Option` in [`SamplingOptions`] and its neighbours; [`SamplingParams`] and its
//! neighbours are what is left when defaults are filled in and every bound is checked.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::error::{Violation, Violations};
use crate::grammar::Grammar;
use crate::ids::{RequestId, TenantId, TokenId};

mod sampling;
mod stopping;

pub use sampling::{SamplingOptions, SamplingParams};
pub use stopping::{StoppingOptions, StoppingParams};

/// Most tokens whose log-probability is reported per place.
pub const MAX_LOGPROBS: u32 = 20;

/// Most tokens that wait for each other to be told together.
pub const MAX_STREAM_INTERVAL: u32 = 4096;

/// What a backend is asked to do.
#[derive(Clone, Debug)]
pub enum Request {
    /// Complete a prompt.
    Generate(Box<GenerateRequest>),
    /// Make a vector of an input.
    Embed(EmbedRequest),
}

impl Request {
    /// Its name.
    pub fn id(&self) -> &RequestId {
        match self {
            Self::Generate(r) => &r.id,
            Self::Embed(r) => &r.id,
        }
    }

    /// On whose account it runs.
    pub fn account(&self) -> &Account {
        match self {
            Self::Generate(r) => &r.account,
            Self::Embed(r) => &r.account,
        }
    }

    /// Until when its answer is of use.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Generate(r) => r.deadline,
            Self::Embed(r) => r.deadline,
        }
    }

    /// Its prompt or input.
    pub fn tokens(&self) -> &[TokenId] {
        match self {
            Self::Generate(r) => &r.prompt,
            Self::Embed(r) => &r.tokens,
        }
    }
}

/// On whose account a request runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Account {
    /// Who.
    pub tenant: TenantId,
    /// Its share of the engine beside other tenants', in proportion; at least 1.
    pub weight: u32,
    /// Share of the queue it may fill, of requests and of tokens: above 0, at most 1.
    pub queue_share: f64,
}

/// The only tenant there is.
impl Default for Account {
    fn default() -> Self {
        Self {
            tenant: TenantId::default(),
            weight: 1,
            queue_share: 1.0,
        }
    }
}

/// Complete a prompt.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Name in logs and traces.
    pub id: RequestId,
    /// The prompt, not empty.
    pub prompt: Vec<TokenId>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// When completions end.
    pub stopping: StoppingParams,
    /// What is reported.
    pub output: OutputOptions,
    /// What the text must look like; absent: anything.
    pub grammar: Option<Grammar>,
    /// Lower runs first.
    pub priority: i32,
    /// When the request reached the server; queue time counts from here.
    pub arrived: Instant,
    /// On whose account.
    pub account: Account,
    /// Until when its answer is of use; a request that cannot be done by then is refused.
    pub deadline: Option<Instant>,
}

/// Make a vector of an input.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// Name in logs and traces.
    pub id: RequestId,
    /// The input, not empty.
    pub tokens: Vec<TokenId>,
    /// How token vectors become one.
    pub pooling: Pooling,
    /// Lower runs first.
    pub priority: i32,
    /// When the request reached the server.
    pub arrived: Instant,
    /// On whose account.
    pub account: Account,
    /// Until when its answer is of use; a request that cannot be done by then is refused.
    pub deadline: Option<Instant>,
}

/// How token vectors, after the final norm, become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The last token's.
    Last,
    /// The mean.
    Mean,
    /// The mean weighted by position, counted from 1.
    WeightedMean,
    /// The first token's.
    First,
    /// No pooling: one vector per token.
    None,
}

/// What is reported of each completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputOptions {
    /// Report generated tokens' log-probabilities, with this many likeliest ones each.
    pub logprobs: Option<u32>,
    /// The same for the prompt's tokens.
    pub prompt_logprobs: Option<u32>,
    /// Report token ids.
    pub token_ids: bool,
    /// Report text.
    pub text: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Tokens per event, 1 to [`MAX_STREAM_INTERVAL`].
    pub stream_interval: u32,
}

impl Default for OutputOptions {
    fn default() -> Self {
        Self {
            logprobs: None,
            prompt_logprobs: None,
            token_ids: false,
            text: true,
            skip_special_tokens: true,
            stream_interval: 1,
        }
    }
}

impl OutputOptions {
    /// Checks the bounds.
    pub fn validate(self) -> Result<Self, Violations> {
        let mut check = Violations::default();
        for (field, value) in [
            ("output.logprobs", self.logprobs),
            ("output.prompt_logprobs", self.prompt_logprobs),
        ] {
            let value = value.unwrap_or(0);
            check.that(value <= MAX_LOGPROBS, field, || {
                format!("must be at most {MAX_LOGPROBS}, got {value}")
            });
        }
        let interval = self.stream_interval;
        let is_good = (1..=MAX_STREAM_INTERVAL).contains(&interval);
        check.that(is_good, "output.stream_interval", || {
            format!("must be between 1 and {MAX_STREAM_INTERVAL}, got {interval}")
        });
        check.or(self)
    }
}

/// What a request may ask for, whatever the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Completions of one prompt.
    pub max_n: u32,
    /// Completions times `max_tokens`, or times what the context leaves for them.
    pub max_total_tokens: u64,
    /// Stop strings.
    pub max_stop_strings: usize,
    /// Bytes of one stop string.
    pub max_stop_bytes: usize,
    /// Entries of `logit_bias`, `allowed_token_ids`, `bad_token_ids` or `stop_token_ids`, each.
    pub max_token_list: usize,
    /// Messages of a chat.
    pub max_messages: usize,
    /// Bytes of a text: a prompt, an input, the messages of a chat together, or what tokens are written as.
    pub max_text_bytes: usize,
}

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            max_n: 16,
            max_total_tokens: 1 << 20,
            max_stop_strings: 64,
            max_stop_bytes: 1024,
            max_token_list: 4096,
            max_messages: 4096,
            max_text_bytes: 4 << 20,
        }
    }
}

/// Checks a list of token ids against the vocabulary.
pub(crate) fn check_token_ids(
    field: &str,
    ids: impl IntoIterator<Item = TokenId>,
    vocab_size: usize,
) -> Result<(), Violation> {
    match ids
        .into_iter()
        .enumerate()
        .find(|(_, id)| *id as usize >= vocab_size)
    {
        None => Ok(()),
        Some((at, id)) => Err(Violation::new(
            format!("{field}[{at}]"),
            format!("token id {id} is not in the vocabulary of {vocab_size}"),
        )),
    }
}

impl GenerateRequest {
    /// Checks what depends on the model: token ids and the context.
    pub fn check_against(&self, vocab_size: usize, max_context: usize) -> Result<(), Violations> {
        let mut violations = check_prompt(
            "token_ids.ids",
            &self.prompt,
            vocab_size,
            max_context.saturating_sub(1),
        );
        let beyond = |id: &&TokenId| **id as usize >= vocab_size;
        violations.extend(self.sampling.logit_bias.keys().find(beyond).map(|id| {
            let message = format!("token id {id} is not in the vocabulary of {vocab_size}");
            Violation::new(format!("sampling.logit_bias[{id}]"), message)
        }));
        for (field, ids) in [
            ("sampling.allowed_token_ids", &self.sampling.allowed_token_ids),
            ("sampling.bad_token_ids", &self.sampling.bad_token_ids),
            ("stopping.stop_token_ids", &self.stopping.stop_token_ids),
        ] {
            violations.extend(check_token_ids(field, ids.iter().copied(), vocab_size).err());
        }
        violations.or(())
    }
}

impl EmbedRequest {
    /// Checks what depends on the model: token ids and the context.
    pub fn check_against(&self, vocab_size: usize, max_context: usize) -> Result<(), Violations> {
        let violations = check_prompt("token_ids.ids", &self.tokens, vocab_size, max_context);
        violations.or(())
    }
}

fn check_prompt(field: &str, prompt: &[TokenId], vocab_size: usize, max_tokens: usize) -> Violations {
    let mut violations = Violations::default();
    violations.that(!prompt.is_empty(), "prompt", || "must not be empty".into());
    let n_tokens = prompt.len();
    violations.that(n_tokens <= max_tokens, "prompt", || {
        format!("prompt has {n_tokens} tokens, the model accepts {max_tokens}")
    });
    violations.extend(check_token_ids(field, prompt.iter().copied(), vocab_size).err());
    violations
}

type LogitBias = BTreeMap<TokenId, f32>;
