//! Flags of a completion: every sampling, stopping and output option of the protocol.

use std::time::Duration;

use baichuan_client::v1;
use clap::Args;

/// Flags that any request to a model takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct RoutingArgs {
    /// Served name of the model; the server's default model without it.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    pub(crate) model: String,
    /// Name of the request in logs and for `abort`; the server makes one without it.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ID")]
    pub(crate) request_id: String,
    /// Lower runs first.
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,
    /// Milliseconds until the server gives up.
    #[arg(long, value_name = "MS")]
    pub(crate) time_limit_ms: Option<u32>,
}

/// Flags of a completion. What is left out is as the checkpoint or the server says.
#[derive(Args, Clone, Debug)]
pub(crate) struct GenerationArgs {
    #[command(flatten)]
    pub(crate) routing: RoutingArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    stopping: StoppingArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    structured: StructuredArgs,
    /// Keep only this many last tokens of a prompt that is longer.
    #[arg(long, value_name = "TOKENS")]
    truncate_prompt: Option<u32>,
    /// When the connection breaks, take the answer up again from where it broke, trying for so long; 30 s without a
    /// value. The server has to be willing (`requests.resume`).
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "30"
    )]
    resume: Option<u64>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// 0 is greedy.
    #[arg(long, short, allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the smallest set of tokens whose probability reaches this.
    #[arg(long, allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Keep the k most likely tokens; 0 keeps all.
    #[arg(long)]
    top_k: Option<u32>,
    /// Keep tokens at least this many times as likely as the likeliest.
    #[arg(long, allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Keep the tokens whose surprise is nearest the entropy, up to this probability.
    #[arg(long, allow_negative_numbers = true)]
    typical_p: Option<f32>,
    /// Makes tokens seen in prompt or output less likely; 1 is off.
    #[arg(long, allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Subtracted once from the logits of generated tokens.
    #[arg(long, allow_negative_numbers = true)]
    presence_penalty: Option<f32>,
    /// Subtracted per occurrence from the logits of generated tokens.
    #[arg(long, allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,
    /// Added to a token's logit; can be repeated.
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = token_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Nothing but these tokens can be chosen; can be repeated.
    #[arg(long, value_name = "TOKEN")]
    allow_token: Vec<u32>,
    /// These tokens cannot be chosen; can be repeated.
    #[arg(long, value_name = "TOKEN")]
    bad_token: Vec<u32>,
    /// Makes sampling reproducible.
    #[arg(long)]
    seed: Option<u64>,
    /// Completions of the one prompt.
    #[arg(short)]
    n: Option<u32>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Stopping")]
struct StoppingArgs {
    /// Tokens at most.
    #[arg(long)]
    max_tokens: Option<u32>,
    /// No end before this many tokens.
    #[arg(long)]
    min_tokens: Option<u32>,
    /// A string that ends the completion; can be repeated.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// A token that ends the completion; can be repeated.
    #[arg(long, value_name = "TOKEN")]
    stop_token: Vec<u32>,
    /// Let the text end with the stop string that matched.
    #[arg(long)]
    include_stop: bool,
    /// Generate through end-of-sequence tokens.
    #[arg(long)]
    ignore_eos: bool,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
struct OutputArgs {
    /// Report log-probabilities of generated tokens and of this many likeliest; seen with --json.
    #[arg(long, value_name = "K")]
    logprobs: Option<u32>,
    /// The same for the tokens of the prompt.
    #[arg(long, value_name = "K")]
    prompt_logprobs: Option<u32>,
    /// Report token ids; seen with --json.
    #[arg(long)]
    token_ids: bool,
    /// Report no text.
    #[arg(long)]
    no_text: bool,
    /// Keep special tokens in the text.
    #[arg(long)]
    special_tokens: bool,
    /// Tokens per message, at most 256.
    #[arg(long, value_name = "TOKENS")]
    stream_interval: Option<u32>,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Structured output")]
#[group(multiple = false)]
struct StructuredArgs {
    /// The text is a JSON value that this JSON schema accepts.
    #[arg(long, value_name = "SCHEMA")]
    json_schema: Option<String>,
    /// The text is one that this regular expression matches as a whole.
    #[arg(long, value_name = "EXPRESSION")]
    regex: Option<String>,
    /// The text is one of this grammar, in llguidance's variant of Lark.
    #[arg(long, value_name = "LARK")]
    grammar: Option<String>,
    /// The text is one of these; separate them by commas or repeat the flag.
    #[arg(long, value_name = "TEXT", value_delimiter = ',')]
    choice: Vec<String>,
}

impl GenerationArgs {
    /// How long to try to take a broken stream up again; absent: not at all.
    pub(crate) fn resume(&self) -> Option<Duration> {
        self.resume.map(Duration::from_secs)
    }

    /// The request for `prompt`. One to be taken up again has a name.
    pub(crate) fn request(&self, prompt: v1::generate_request::Prompt) -> v1::GenerateRequest {
        let request_id = match self.routing.request_id.as_str() {
            "" if self.resume.is_some() => baichuan_client::new_request_id(),
            own => own.to_owned(),
        };
        v1::GenerateRequest {
            request_id,
            model: self.routing.model.clone(),
            prompt: Some(prompt),
            sampling: Some(self.sampling.to_proto()),
            stopping: Some(self.stopping.to_proto()),
            output: Some(self.output.to_proto()),
            truncate_prompt_tokens: self.truncate_prompt,
            priority: self.routing.priority,
            time_limit_ms: self.routing.time_limit_ms,
            resume_from_token: None,
            structured_output: self.structured.to_proto(),
        }
    }
}

impl StructuredArgs {
    fn to_proto(&self) -> Option<v1::StructuredOutput> {
        use v1::structured_output::{Choice, Constraint};
        let choice = (!self.choice.is_empty()).then(|| Choice {
            texts: self.choice.clone(),
        });
        let constraint = (self.json_schema.clone().map(Constraint::JsonSchema))
            .or_else(|| self.regex.clone().map(Constraint::Regex))
            .or_else(|| self.grammar.clone().map(Constraint::Grammar))
            .or_else(|| choice.map(Constraint::Choice))?;
        Some(v1::StructuredOutput {
            constraint: Some(constraint),
        })
    }
}

impl SamplingArgs {
    fn to_proto(&self) -> v1::SamplingParams {
        v1::SamplingParams {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            typical_p: self.typical_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().copied().collect(),
            allowed_token_ids: self.allow_token.clone(),
            bad_token_ids: self.bad_token.clone(),
            seed: self.seed,
            n: self.n,
        }
    }
}

impl StoppingArgs {
    fn to_proto(&self) -> v1::StoppingParams {
        v1::StoppingParams {
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token.clone(),
            include_stop_str_in_output: self.include_stop.then_some(true),
            ignore_eos: self.ignore_eos.then_some(true),
        }
    }
}

impl OutputArgs {
    fn to_proto(&self) -> v1::OutputOptions {
        v1::OutputOptions {
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            return_token_ids: self.token_ids.then_some(true),
            return_text: self.no_text.then_some(false),
            skip_special_tokens: self.special_tokens.then_some(false),
            stream_interval: self.stream_interval,
        }
    }
}

fn token_bias(argument: &str) -> Result<(u32, f32), String> {
    let (token, bias) = argument.split_once('=').ok_or("must be TOKEN=BIAS")?;
    let token = token.parse().map_err(|e| format!("token {token:?}: {e}"))?;
    let bias = bias.parse().map_err(|e| format!("bias {bias:?}: {e}"))?;
    Ok((token, bias))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Just {
        #[command(flatten)]
        generation: GenerationArgs,
    }

    fn request(arguments: &[&str]) -> v1::GenerateRequest {
        let arguments = std::iter::once("baichuan").chain(arguments.iter().copied());
        let parsed = Just::parse_from(arguments);
        parsed.generation.request(baichuan_client::prompt::text("x"))
    }

    #[test]
    fn what_is_left_out_is_left_to_the_server() {
        let request = request(&[]);
        assert_eq!(request.sampling, Some(v1::SamplingParams::default()));
        assert_eq!(request.stopping, Some(v1::StoppingParams::default()));
        assert_eq!(request.output, Some(v1::OutputOptions::default()));
        assert_eq!((request.priority, request.time_limit_ms), (None, None));
    }

    #[test]
    fn zeros_and_negative_numbers_are_sent() {
        let request = request(&[
            "--temperature",
            "0",
            "--presence-penalty",
            "-1.5",
            "--priority",
            "-3",
            "--top-k",
            "0",
        ]);
        let sampling = request.sampling.unwrap();
        assert_eq!((sampling.temperature, sampling.top_k), (Some(0.0), Some(0)));
        assert_eq!(
            (sampling.presence_penalty, request.priority),
            (Some(-1.5), Some(-3))
        );
    }

    #[test]
    fn repeated_flags_add_up() {
        let request = request(&[
            "--stop",
            "a",
            "--stop",
            "b",
            "--stop-token",
            "5",
            "--logit-bias",
            "7=-2.5",
            "--logit-bias",
            "8=1",
            "--bad-token",
            "1",
            "--allow-token",
            "2",
            "--special-tokens",
            "--no-text",
        ]);
        let (sampling, stopping) = (request.sampling.unwrap(), request.stopping.unwrap());
        assert_eq!(stopping.stop, ["a", "b"]);
        assert_eq!(stopping.stop_token_ids, [5]);
        assert_eq!(sampling.logit_bias, [(7, -2.5), (8, 1.0)].into());
        assert_eq!(
            (sampling.bad_token_ids, sampling.allowed_token_ids),
            (vec![1], vec![2])
        );
        let output = request.output.unwrap();
        assert_eq!(
            (output.skip_special_tokens, output.return_text),
            (Some(false), Some(false))
        );
    }

    #[test]
    fn one_structure_is_sent_and_two_are_refused() {
        use v1::structured_output::Constraint;
        let constraint =
            |arguments: &[&str]| request(arguments).structured_output.unwrap().constraint.unwrap();
        assert_eq!(constraint(&["--regex", "a+"]), Constraint::Regex("a+".into()));
        let Constraint::Choice(choice) = constraint(&["--choice", "yes,no", "--choice", "maybe"]) else {
            panic!("not a choice");
        };
        assert_eq!(choice.texts, ["yes", "no", "maybe"]);
        assert_eq!(request(&[]).structured_output, None);
        let two = Just::try_parse_from(["baichuan", "--regex", "a", "--json-schema", "{}"]);
        assert!(two.is_err());
    }

    #[test]
    fn an_answer_to_be_taken_up_again_has_a_name_and_a_patience() {
        for (arguments, seconds) in [
            (vec![], None),
            (vec!["--resume"], Some(30)),
            (vec!["--resume=5"], Some(5)),
        ] {
            let parsed = Just::parse_from([vec!["baichuan"], arguments].concat());
            assert_eq!(parsed.generation.resume(), seconds.map(Duration::from_secs));
            let request = parsed.generation.request(baichuan_client::prompt::text("x"));
            assert_eq!(request.request_id.is_empty(), seconds.is_none());
        }
        assert_eq!(request(&["--resume", "--request-id", "mine"]).request_id, "mine");
    }

    #[test]
    fn a_bias_that_is_none_says_what_is_wrong() {
        assert!(token_bias("7").unwrap_err().contains("TOKEN=BIAS"));
        assert!(token_bias("x=1").unwrap_err().contains("\"x\""));
        assert!(token_bias("7=y").unwrap_err().contains("\"y\""));
    }
}
