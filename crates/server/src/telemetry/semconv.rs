//! Names of OpenTelemetry's conventions, and the server's own beside them.
//!
//! RPC: <https://opentelemetry.io/docs/specs/semconv/rpc/>, GenAI: <https://opentelemetry.io/docs/specs/semconv/gen-ai/>,
//! both still moving: this module is where they move.

/// Instrumentation scope of everything sent.
pub(crate) const SCOPE: &str = "baichuan-server";

/// Who calls what: `grpc`.
pub(crate) const RPC_SYSTEM_NAME: &str = "rpc.system.name";
/// The value of [`RPC_SYSTEM_NAME`].
pub(crate) const GRPC: &str = "grpc";
/// `package.Service/Method`.
pub(crate) const RPC_METHOD: &str = "rpc.method";
/// How the call ended, e.g. `OK`.
pub(crate) const RPC_STATUS_CODE: &str = "rpc.status_code";
/// The same under the name of the stable convention.
pub(crate) const RPC_RESPONSE_STATUS_CODE: &str = "rpc.response.status_code";
/// Why something failed: one of a closed set.
pub(crate) const ERROR_TYPE: &str = "error.type";

/// `chat`, `text_completion` or `embeddings`.
pub(crate) const OPERATION: &str = "gen_ai.operation.name";
/// Whose models these are.
pub(crate) const PROVIDER: &str = "gen_ai.provider.name";
/// The value of [`PROVIDER`].
pub(crate) const BAICHUAN: &str = "baichuan";
/// The model asked for.
pub(crate) const REQUEST_MODEL: &str = "gen_ai.request.model";
/// The model that answers.
pub(crate) const RESPONSE_MODEL: &str = "gen_ai.response.model";
/// The request's name.
pub(crate) const RESPONSE_ID: &str = "gen_ai.response.id";
/// One per completion.
pub(crate) const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
/// Tokens of the prompt.
pub(crate) const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
/// Tokens generated.
pub(crate) const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
/// Tokens of the prompt that were cached.
pub(crate) const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
/// Sampling, as asked.
pub(crate) const TEMPERATURE: &str = "gen_ai.request.temperature";
/// Sampling, as asked.
pub(crate) const TOP_P: &str = "gen_ai.request.top_p";
/// Sampling, as asked.
pub(crate) const TOP_K: &str = "gen_ai.request.top_k";
/// Sampling, as asked.
pub(crate) const FREQUENCY_PENALTY: &str = "gen_ai.request.frequency_penalty";
/// Sampling, as asked.
pub(crate) const PRESENCE_PENALTY: &str = "gen_ai.request.presence_penalty";
/// Sampling, as asked or drawn.
pub(crate) const SEED: &str = "gen_ai.request.seed";
/// Longest completion, as asked.
pub(crate) const MAX_TOKENS: &str = "gen_ai.request.max_tokens";
/// Completions, where more than one.
pub(crate) const CHOICES: &str = "gen_ai.request.choice.count";
/// The prompt, where content is captured.
pub(crate) const INPUT_MESSAGES: &str = "gen_ai.input.messages";
/// The completions, where content is captured.
pub(crate) const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";

/// The request's name, on the call's span.
pub(crate) const REQUEST_ID: &str = "baichuan.request_id";
/// What its caller calls the work that a call is a part of, on the call's span.
pub(crate) const CORRELATION_ID: &str = "baichuan.correlation_id";
/// Inputs of an embedding.
pub(crate) const INPUTS: &str = "baichuan.embed.inputs";
/// Position of a prefill chunk's first token.
pub(crate) const CHUNK_START: &str = "baichuan.prefill.start";
/// Length of a prefill chunk in tokens.
pub(crate) const CHUNK_TOKENS: &str = "baichuan.prefill.tokens";
/// In front of the names of baggage members.
pub(crate) const BAGGAGE_PREFIX: &str = "baggage.";

/// From arrival to admission.
pub(crate) const QUEUE_SPAN: &str = "queue";
/// From admission to the first token.
pub(crate) const PREFILL_SPAN: &str = "prefill";
/// From the first token to the last message.
pub(crate) const DECODE_SPAN: &str = "decode";
/// A step that computed a part of the prompt.
pub(crate) const CHUNK_EVENT: &str = "prefill.chunk";

/// Seconds of a call.
pub(crate) const RPC_DURATION: &str = "rpc.server.call.duration";
/// Its buckets.
pub(crate) const RPC_DURATION_BUCKETS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// Seconds of an operation.
pub(crate) const REQUEST_DURATION: &str = "gen_ai.server.request.duration";
/// Its buckets.
pub(crate) const REQUEST_DURATION_BUCKETS: [f64; 14] = [
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
];
/// Seconds to the first token of an operation that succeeded.
pub(crate) const TIME_TO_FIRST_TOKEN: &str = "gen_ai.server.time_to_first_token";
/// Its buckets.
pub(crate) const TIME_TO_FIRST_TOKEN_BUCKETS: [f64; 16] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// Seconds a token after the first of an operation that succeeded.
pub(crate) const TIME_PER_OUTPUT_TOKEN: &str = "gen_ai.server.time_per_output_token";
/// Its buckets.
pub(crate) const TIME_PER_OUTPUT_TOKEN_BUCKETS: [f64; 13] = [
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
];
