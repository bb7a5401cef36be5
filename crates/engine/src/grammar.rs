//! Structured output: what a completion must look like, enforced token by token.
//!
//! [`Grammars`] belongs to a model and compiles what a client asks for; the [`Grammar`] that comes of it says at
//! every step which tokens may follow. The parser is llguidance's. Whatever a client sends is bounded: in bytes, in
//! the work of compiling, and in the work of a step.

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::error::{RequestError, SubmitError, Violation, Violations};
use crate::ids::TokenId;
use crate::text::Tokenizer;

/// Longest schema, in bytes; also of all choices together.
pub const MAX_BYTES: usize = 64 << 10;
/// Longest grammar, in bytes.
pub const MAX_GRAMMAR_BYTES: usize = 16 << 10;
/// Longest regular expression, in a schema too, and longest line of a grammar, in bytes. Compiling takes time and
/// memory with the square of it.
pub const MAX_EXPRESSION_BYTES: usize = 2 << 10;
/// Most choices.
pub const MAX_CHOICES: usize = 1024;
/// Deepest nesting of brackets in a grammar.
const MAX_NESTING: usize = 64;
/// Work of compiling expressions: some milliseconds.
const COMPILE_LEXER_FUEL: u64 = 250_000;
/// Work of the lexer for one mask: some milliseconds.
const STEP_LEXER_FUEL: u64 = 100_000;
/// Items of the parser for one mask: some milliseconds.
const STEP_MAX_ITEMS: usize = 50_000;
/// States of one request's lexer: 1 to 2 kB each.
const MAX_LEXER_STATES: usize = 20_000;
/// Compiling recurses along what the client wrote: its thread's stack holds the deepest that [`MAX_BYTES`] allow.
const COMPILE_STACK_BYTES: usize = 256 << 20;

/// What a completion must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StructuredOutput {
    /// A JSON value that a JSON schema accepts.
    JsonSchema(String),
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// A text of a context-free grammar in llguidance's variant of Lark.
    Grammar(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl StructuredOutput {
    /// Its field in a request.
    pub fn field(&self) -> &'static str {
        match self {
            Self::JsonSchema(_) => "structured_output.json_schema",
            Self::Regex(_) => "structured_output.regex",
            Self::Grammar(_) => "structured_output.grammar",
            Self::Choice(_) => "structured_output.choice",
        }
    }

    /// Checks the bounds that need no model.
    pub fn validate(self) -> Result<Self, Violations> {
        let refuse = |message: String| Err(Violation::new(self.field(), message).into());
        let bytes = match &self {
            Self::JsonSchema(text) | Self::Regex(text) | Self::Grammar(text) => text.len(),
            Self::Choice(choices) if choices.is_empty() || choices.len() > MAX_CHOICES => {
                return refuse(format!(
                    "must have 1 to {MAX_CHOICES} texts, got {}",
                    choices.len()
                ));
            }
            Self::Choice(choices) => {
                if let Some(at) = choices.iter().position(String::is_empty) {
                    let field = format!("{}.texts[{at}]", self.field());
                    return Err(Violation::new(field, "must not be empty").into());
                }
                choices.iter().map(String::len).sum()
            }
        };
        let max = match self {
            Self::Grammar(_) => MAX_GRAMMAR_BYTES,
            _ => MAX_BYTES,
        };
        if bytes == 0 || bytes > max {
            return refuse(format!("must have 1 to {max} bytes, got {bytes}"));
        }
        let (longest, what) = match &self {
            Self::Regex(expression) => (expression.len(), "it"),
            Self::Grammar(text) => (text.lines().map(str::len).max().unwrap_or(0), "a line"),
            Self::JsonSchema(text) => (longest_pattern(text), "a pattern"),
            Self::Choice(_) => (0, ""),
        };
        if longest > MAX_EXPRESSION_BYTES {
            return refuse(format!(
                "{what} has {longest} bytes, the limit is {MAX_EXPRESSION_BYTES}"
            ));
        }
        if let Self::Grammar(text) = &self {
            let depth = nesting(text);
            if depth > MAX_NESTING {
                return refuse(format!(
                    "brackets are nested {depth} deep, the limit is {MAX_NESTING}"
                ));
            }
        }
        Ok(self)
    }

    /// In the parser's terms. `Err`: what is wrong with it.
    fn to_grammar(&self) -> Result<TopLevelGrammar, String> {
        Ok(match self {
            Self::JsonSchema(text) => {
                let schema = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
                TopLevelGrammar::from_json_schema(schema)
            }
            Self::Regex(expression) => TopLevelGrammar::from_regex(expression),
            Self::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
            Self::Choice(choices) => {
                let quoted: Result<Vec<String>, _> = choices.iter().map(serde_json::to_string).collect();
                let quoted = quoted.map_err(|e| e.to_string())?;
                let lark = format!("start: {}", quoted.join(" | "));
                TopLevelGrammar::from_grammar(GrammarWithLexer::from_lark(lark))
            }
        })
    }
}

/// Bytes of a schema's longest regular expression; 0 for what is no JSON, which compiling will say.
fn longest_pattern(schema: &str) -> usize {
    fn longest(value: &Value) -> usize {
        match value {
            Value::Array(items) => items.iter().map(longest).max().unwrap_or(0),
            Value::Object(members) => {
                let own = |(key, value): (&String, &Value)| match (key.as_str(), value) {
                    ("pattern", Value::String(pattern)) => pattern.len(),
                    ("patternProperties", Value::Object(by_pattern)) => {
                        let keys = by_pattern.keys().map(String::len).max().unwrap_or(0);
                        keys.max(longest(value))
                    }
                    _ => longest(value),
                };
                members.iter().map(own).max().unwrap_or(0)
            }
            _ => 0,
        }
    }
    serde_json::from_str(schema).map_or(0, |schema| longest(&schema))
}

/// How deep brackets lie in each other, wherever they stand: quoted ones count too, which only makes it stricter.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Compiles for one model's vocabulary. Clones share what they have in common.
#[derive(Clone)]
pub struct Grammars(Arc<Shared>);

struct Shared {
    tokenizer: Tokenizer,
    eos_token_ids: Vec<TokenId>,
    /// Made when it is first needed: a trie over the vocabulary takes a moment.
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grammars")
    }
}

impl Grammars {
    /// For a model that ends its completions with `eos_token_ids`.
    pub fn new(tokenizer: &Tokenizer, eos_token_ids: &[TokenId]) -> Self {
        Self(Arc::new(Shared {
            tokenizer: tokenizer.clone(),
            eos_token_ids: eos_token_ids.to_vec(),
            factory: OnceLock::new(),
        }))
    }

    /// Compiles a request's wish. Takes milliseconds, with a new model's first request a moment more: for a thread
    /// that may block.
    ///
    /// # Errors
    /// What the parser refuses, as a violation of its field; a model without an end-of-sequence token.
    pub fn compile(&self, wish: StructuredOutput) -> Result<Grammar, SubmitError> {
        if self.0.eos_token_ids.is_empty() {
            return Err(SubmitError::Unsupported {
                field: wish.field(),
                feature: "structured output without an end-of-sequence token",
            });
        }
        let wish = wish.validate()?;
        let field = wish.field();
        let shared = self.0.clone();
        let compiled = std::thread::Builder::new()
            .name("grammar".to_owned())
            .stack_size(COMPILE_STACK_BYTES)
            .spawn(move || {
                let factory = shared
                    .factory
                    .get_or_init(|| factory(&shared.tokenizer, &shared.eos_token_ids));
                let factory = factory.as_ref().map_err(Clone::clone)?;
                let grammar = wish.to_grammar()?;
                let mut matcher = Matcher::new(factory.create_parser(grammar));
                // The first mask compiles what parsing left for later.
                matcher.compute_mask_or_eos().map_err(|e| first_line(&e))?;
                Ok(matcher)
            })
            .map(std::thread::JoinHandle::join);
        let refused = |message: String| SubmitError::Invalid(Violation::new(field, message).into());
        match compiled {
            Ok(Ok(Ok(matcher))) => Ok(Grammar {
                matcher: Box::new(matcher),
                field,
            }),
            Ok(Ok(Err(message))) => Err(refused(message)),
            Ok(Err(_)) => Err(refused("the parser cannot compile it".into())),
            Err(error) => Err(refused(format!("no thread to compile it on: {error}"))),
        }
    }
}

fn factory(tokenizer: &Tokenizer, eos_token_ids: &[TokenId]) -> Result<ParserFactory, String> {
    let n = tokenizer.vocab_size();
    let vocab_size = u32::try_from(n).map_err(|e| e.to_string())?;
    let mut words: Vec<Vec<u8>> = (0..vocab_size)
        .map(|id| tokenizer.token_bytes(id).unwrap_or_default())
        .collect();
    for id in eos_token_ids {
        if let Some(word) = words.get_mut(*id as usize) {
            word.clear();
        }
    }
    let eos: Vec<u32> = eos_token_ids
        .iter()
        .copied()
        .filter(|id| *id < vocab_size)
        .collect();
    let first = eos
        .first()
        .ok_or("no end-of-sequence token is in the vocabulary")?;
    let trie = TokTrie::from(&TokRxInfo::new(vocab_size, *first), &words).with_eos_tokens(&eos);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).map_err(|e| first_line(&e))?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.initial_lexer_fuel = COMPILE_LEXER_FUEL;
    limits.step_lexer_fuel = STEP_LEXER_FUEL;
    limits.step_max_items = STEP_MAX_ITEMS;
    limits.max_lexer_states = MAX_LEXER_STATES;
    // An error goes to logs: it must not hold what was generated.
    limits.verbose_errors = false;
    Ok(factory)
}

/// Longer messages repeat the grammar.
fn first_line(error: &anyhow::Error) -> String {
    let text = error.to_string();
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(400)
        .collect()
}

/// A compiled wish, at some place in a text. A clone begins at the same place and goes its own way.
pub struct Grammar {
    matcher: Box<Matcher>,
    field: &'static str,
}

impl Clone for Grammar {
    fn clone(&self) -> Self {
        Self {
            matcher: Box::new(self.matcher.deep_clone()),
            field: self.field,
        }
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar")
            .field("field", &self.field)
            .finish_non_exhaustive()
    }
}

/// The tokens that may follow.
#[derive(Debug)]
pub(crate) struct Mask(SimpleVob);

impl Mask {
    /// Whether `id` may follow.
    pub(crate) fn allows(&self, id: TokenId) -> bool {
        (id as usize) < self.0.len() && self.0.is_allowed(id)
    }
}

impl Grammar {
    /// What may follow: an end-of-sequence token where the text may end.
    ///
    /// # Errors
    /// The step would take more work than allowed.
    pub(crate) fn mask(&mut self) -> Result<Mask, RequestError> {
        let mask = self.matcher.compute_mask_or_eos();
        mask.map(Mask).map_err(|e| self.failed(&first_line(&e)))
    }

    /// Moves on by a token that the mask allowed.
    ///
    /// # Errors
    /// As [`Self::mask`].
    pub(crate) fn push(&mut self, token: TokenId) -> Result<(), RequestError> {
        if self.matcher.is_stopped() {
            return Ok(()); // the end-of-sequence token behind the last one
        }
        let pushed = self.matcher.consume_token(token);
        pushed.map_err(|e| self.failed(&first_line(&e)))
    }

    /// The request cannot go on because of what it asked for.
    pub(crate) fn failed(&self, message: &str) -> RequestError {
        RequestError::Grammar {
            field: self.field,
            message: message.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
