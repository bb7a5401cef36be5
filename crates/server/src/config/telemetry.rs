//! What leaves the process over OTLP, and how much of requests may be in it.

use std::collections::BTreeMap;
use std::time::Duration;

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Traces and metrics over OTLP/gRPC. Without an endpoint nothing is made and nothing sent.
#[derive(Clone, Debug, PartialEq)]
pub struct TelemetryConfig {
    /// Where spans are sent; absent: nowhere.
    pub traces_endpoint: Option<String>,
    /// Where metrics are sent; absent: nowhere.
    pub metrics_endpoint: Option<String>,
    /// Time a collector has to take a batch.
    pub otlp_timeout: Duration,
    /// `service.name` of the resource.
    pub service_name: String,
    /// Further attributes of the resource.
    pub resource_attributes: BTreeMap<String, String>,
    /// Which traces are recorded.
    pub traces_sampler: TracesSampler,
    /// Share of traces recorded by the samplers that take one.
    pub traces_sampler_arg: f64,
    /// Ended spans that wait to be sent.
    pub span_queue: usize,
    /// Spans sent together at most.
    pub span_batch: usize,
    /// Longest an ended span waits for others.
    pub span_delay: Duration,
    /// How often metrics are sent.
    pub metrics_interval: Duration,
    /// Members of the caller's baggage that become attributes of the call's span.
    pub baggage_attributes: Vec<String>,
    /// Put prompts and completions into spans.
    pub capture_content: bool,
    /// What is blotted out of captured content.
    pub redact: Vec<Pattern>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            traces_endpoint: None,
            metrics_endpoint: None,
            otlp_timeout: Duration::from_secs(10),
            service_name: "baichuan-serve".into(),
            resource_attributes: BTreeMap::new(),
            traces_sampler: TracesSampler::ParentbasedAlwaysOn,
            traces_sampler_arg: 1.0,
            span_queue: 2048,
            span_batch: 512,
            span_delay: Duration::from_secs(5),
            metrics_interval: Duration::from_secs(60),
            baggage_attributes: Vec::new(),
            capture_content: false,
            redact: Vec::new(),
        }
    }
}

/// Which traces are recorded, as `OTEL_TRACES_SAMPLER` spells it.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TracesSampler {
    /// All.
    AlwaysOn,
    /// None.
    AlwaysOff,
    /// A share, whatever the caller decided.
    Traceidratio,
    /// As the caller decided; all of those without one.
    ParentbasedAlwaysOn,
    /// As the caller decided; none of those without one.
    ParentbasedAlwaysOff,
    /// As the caller decided; a share of those without one.
    ParentbasedTraceidratio,
}

/// A regular expression, equal to another by its text.
#[derive(Clone, Debug)]
pub struct Pattern(pub Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}
