//! Names of metrics: a contract with dashboards and routers. Counters are named without their `_total`.

/// Sequences that hold cache memory.
pub(crate) const RUNNING: &str = "vllm:num_requests_running";
/// Sequences that wait for it.
pub(crate) const WAITING: &str = "vllm:num_requests_waiting";
/// Share of cache memory in use, 0 to 1: of the fuller pool.
pub(crate) const CACHE_USAGE: &str = "vllm:kv_cache_usage_perc";
/// How the cache is set up, in labels.
pub(crate) const CACHE_CONFIG: &str = "vllm:cache_config_info";
/// Prompt tokens of admitted requests.
pub(crate) const PROMPT_TOKENS: &str = "vllm:prompt_tokens";
/// Tokens generated.
pub(crate) const GENERATION_TOKENS: &str = "vllm:generation_tokens";
/// Prompt tokens looked up in a cache of prefixes.
pub(crate) const PREFIX_QUERIES: &str = "vllm:prefix_cache_queries";
/// Of these, how many were there.
pub(crate) const PREFIX_HITS: &str = "vllm:prefix_cache_hits";
/// Sequences paused to make room.
pub(crate) const PREEMPTIONS: &str = "vllm:num_preemptions";
/// Completions ended, by reason.
pub(crate) const SUCCESS: &str = "vllm:request_success";
/// From arrival to the first token.
pub(crate) const TIME_TO_FIRST_TOKEN: &str = "vllm:time_to_first_token_seconds";
/// Between tokens of a completion.
pub(crate) const INTER_TOKEN: &str = "vllm:inter_token_latency_seconds";
/// Mean time between tokens of a completion.
pub(crate) const TIME_PER_OUTPUT_TOKEN: &str = "vllm:request_time_per_output_token_seconds";
/// From arrival to the end.
pub(crate) const E2E: &str = "vllm:e2e_request_latency_seconds";
/// From arrival to admission.
pub(crate) const QUEUE_TIME: &str = "vllm:request_queue_time_seconds";
/// From admission to the first token.
pub(crate) const PREFILL_TIME: &str = "vllm:request_prefill_time_seconds";
/// From the first token to the last.
pub(crate) const DECODE_TIME: &str = "vllm:request_decode_time_seconds";
/// Prompt tokens of a request.
pub(crate) const REQUEST_PROMPT_TOKENS: &str = "vllm:request_prompt_tokens";
/// Tokens of a step. A histogram: the name is given, `_total` is no counter's here.
pub(crate) const STEP_TOKENS: &str = "vllm:iteration_tokens_total";
/// Tokens of a completion.
pub(crate) const REQUEST_GENERATION_TOKENS: &str = "vllm:request_generation_tokens";

/// Blocks in some sequence's table.
pub(crate) const POOL_USED: &str = "baichuan_kv_pool_blocks_used";
/// Blocks in all. A gauge: the name is given, `_total` is no counter's here.
pub(crate) const POOL_TOTAL: &str = "baichuan_kv_pool_blocks_total";
/// Requests refused, by reason.
pub(crate) const REJECTED: &str = "baichuan_requests_rejected";
/// Requests whose caller went away, by how far they had come.
pub(crate) const CANCELLED: &str = "baichuan_requests_cancelled";
/// Requests whose time was up, by how far they had come.
pub(crate) const DEADLINE_EXCEEDED: &str = "baichuan_deadline_exceeded";
/// Changed files taken up, or not, by what they are.
pub(crate) const RELOADS: &str = "baichuan_reloads";
/// Calls of a tenant ended, by code.
pub(crate) const TENANT_REQUESTS: &str = "baichuan_tenant_requests";
/// Requests of a tenant refused, by reason.
pub(crate) const TENANT_REJECTED: &str = "baichuan_tenant_rejected";
/// Tokens of a tenant, by kind.
pub(crate) const TENANT_TOKENS: &str = "baichuan_tenant_tokens";
/// Sequences of a tenant that hold cache memory.
pub(crate) const TENANT_RUNNING: &str = "baichuan_tenant_running";
/// Requests of a tenant that wait for it.
pub(crate) const TENANT_WAITING: &str = "baichuan_tenant_waiting";
/// Share of its tokens per minute that a tenant has used.
pub(crate) const TENANT_QUOTA_USED: &str = "baichuan_tenant_quota_used_ratio";
/// Connections lost under a stream that can be taken up.
pub(crate) const STREAMS_LOST: &str = "baichuan_streams_lost";
/// Streams taken up again.
pub(crate) const STREAMS_RESUMED: &str = "baichuan_streams_resumed";
/// Running streams that were lost and not taken up in time.
pub(crate) const STREAMS_EXPIRED: &str = "baichuan_streams_expired";
/// Streams that can be taken up now.
pub(crate) const STREAMS_KEPT: &str = "baichuan_streams_kept";
/// TLS handshakes that failed.
pub(crate) const HANDSHAKE_FAILURES: &str = "baichuan_tls_handshake_failures";
/// When the server's certificate ends, in seconds since 1970.
pub(crate) const CERTIFICATE_END: &str = "baichuan_tls_certificate_not_after_timestamp_seconds";
/// From a stream's being dropped until all that its request held is free.
pub(crate) const CANCEL_TO_FREE: &str = "baichuan_cancel_to_free_seconds";
/// Time of a step, by what it did.
pub(crate) const STEP_SECONDS: &str = "baichuan_step_duration_seconds";
/// Steps that failed or panicked.
pub(crate) const FAILED_STEPS: &str = "baichuan_failed_steps";
/// Steps that ran out of memory and were taken in smaller parts.
pub(crate) const OUT_OF_MEMORY: &str = "baichuan_out_of_memory_steps";
/// Times the model was made anew after it failed.
pub(crate) const RESTARTS: &str = "baichuan_engine_restarts";
/// Embed calls and streams.
pub(crate) const EMBED_REQUESTS: &str = "baichuan_embed_requests";
/// Inputs embedded.
pub(crate) const EMBED_INPUTS: &str = "baichuan_embed_inputs";
/// Tokens of an embedded input.
pub(crate) const EMBED_INPUT_TOKENS: &str = "baichuan_embed_input_tokens";
/// Whether requests would be served, 1 or 0.
pub(crate) const READY: &str = "baichuan_ready";
/// Whether no engine has died, 1 or 0.
pub(crate) const LIVE: &str = "baichuan_live";
/// Whether a model is loaded and its engine runs.
pub(crate) const MODEL_READY: &str = "baichuan_model_ready";
/// Tasks of the process's runtime that have not ended.
pub(crate) const TASKS: &str = "baichuan_tasks";
/// What a model is, in labels.
pub(crate) const MODEL_INFO: &str = "baichuan_model_info";
/// What this program is, in labels.
pub(crate) const BUILD_INFO: &str = "baichuan_build_info";

/// Spans that a collector took.
pub(crate) const SPANS_EXPORTED: &str = "baichuan_otlp_spans_exported";
/// Spans that no collector got, by reason.
pub(crate) const SPANS_DROPPED: &str = "baichuan_otlp_spans_dropped";
/// Exports of metrics over OTLP that failed.
pub(crate) const METRIC_EXPORTS_FAILED: &str = "baichuan_otlp_metric_exports_failed";

/// Calls begun.
pub(crate) const RPC_STARTED: &str = "grpc_server_started";
/// Calls ended, by code.
pub(crate) const RPC_HANDLED: &str = "grpc_server_handled";
/// Time of a call.
pub(crate) const RPC_SECONDS: &str = "grpc_server_handling_seconds";
