//! Where traces and metrics go.

use http::Uri;
use regex::Regex;

use super::Findings;
use crate::config::raw::RawTelemetry;
use crate::config::telemetry::{Pattern, TelemetryConfig};

/// Attributes are few and short in every convention; more is a mistake.
const MAX_BAGGAGE_ATTRIBUTES: usize = 16;

pub(super) fn telemetry(raw: RawTelemetry, findings: &mut Findings) -> TelemetryConfig {
    let default = TelemetryConfig::default();
    let common = raw.otlp_endpoint;
    let mut endpoint = |own: Option<String>, key: &str| {
        let endpoint = own.or_else(|| common.clone()).filter(|e| e != "off")?;
        let good = endpoint.parse::<Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|h| !h.is_empty())
        });
        findings.that(good, &[key, "telemetry.otlp_endpoint"], || {
            format!("must be http://HOST:PORT, https://HOST:PORT or \"off\", got {endpoint:?}")
        });
        Some(endpoint)
    };
    let traces_endpoint = endpoint(raw.otlp_traces_endpoint, "telemetry.otlp_traces_endpoint");
    let metrics_endpoint = endpoint(raw.otlp_metrics_endpoint, "telemetry.otlp_metrics_endpoint");
    let redact = raw.redact.unwrap_or_default().into_iter().enumerate();
    let redact = redact.filter_map(|(i, text)| match Regex::new(&text) {
        Ok(regex) => Some(Pattern(regex)),
        Err(error) => {
            findings.that(
                false,
                &[&format!("telemetry.redact[{i}]"), "telemetry.redact"],
                || format!("{text:?} is not a regular expression: {error}"),
            );
            None
        }
    });
    let redact = redact.collect();
    let telemetry = TelemetryConfig {
        traces_endpoint,
        metrics_endpoint,
        otlp_timeout: raw.otlp_timeout.map_or(default.otlp_timeout, |t| t.0),
        service_name: raw.service_name.unwrap_or(default.service_name),
        resource_attributes: raw.resource_attributes.unwrap_or_default(),
        traces_sampler: raw.traces_sampler.unwrap_or(default.traces_sampler),
        traces_sampler_arg: raw.traces_sampler_arg.unwrap_or(default.traces_sampler_arg),
        span_queue: raw.span_queue.unwrap_or(default.span_queue),
        span_batch: raw.span_batch.unwrap_or(default.span_batch),
        span_delay: raw.span_delay.map_or(default.span_delay, |t| t.0),
        metrics_interval: raw.metrics_interval.map_or(default.metrics_interval, |t| t.0),
        baggage_attributes: raw.baggage_attributes.unwrap_or_default(),
        capture_content: raw.capture_content.unwrap_or(default.capture_content),
        redact,
    };
    findings.not_zero("telemetry.otlp_timeout", telemetry.otlp_timeout);
    findings.not_zero("telemetry.metrics_interval", telemetry.metrics_interval);
    findings.at_least_one("telemetry.span_queue", telemetry.span_queue);
    findings.at_least_one("telemetry.span_batch", telemetry.span_batch);
    let share = telemetry.traces_sampler_arg;
    findings.that(
        (0.0..=1.0).contains(&share),
        &["telemetry.traces_sampler_arg"],
        || format!("must be between 0 and 1, got {share}"),
    );
    let named = telemetry.baggage_attributes.len();
    findings.that(
        named <= MAX_BAGGAGE_ATTRIBUTES,
        &["telemetry.baggage_attributes"],
        || format!("at most {MAX_BAGGAGE_ATTRIBUTES} names, got {named}"),
    );
    telemetry
}
