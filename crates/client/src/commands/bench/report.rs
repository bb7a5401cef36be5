//! What a benchmark measured, and how it is printed.

use std::collections::BTreeMap;
use std::time::Duration;

use baichuan_client::Error;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::Args;
use crate::output;

/// One request.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
    /// From sending the request to the first message with a token.
    pub(super) first_token: Option<Duration>,
    /// Time per token since the message before, and how many tokens it holds for.
    pub(super) gaps: Vec<(Duration, u32)>,
    /// From sending the request to the end.
    pub(super) total: Duration,
}

/// All requests. Latencies are in microseconds, to three digits.
pub(super) struct Report {
    args: Args,
    pub(super) elapsed: Duration,
    pub(super) succeeded: u64,
    errors: BTreeMap<String, u64>,
    prompt_tokens: u64,
    generated_tokens: u64,
    first_token: Latencies,
    between_tokens: Latencies,
    request: Latencies,
}

struct Latencies(Histogram<u64>);

impl Latencies {
    /// Up to an hour; what is longer counts as an hour.
    const MAX_MICROS: u64 = 3_600_000_000;

    fn new() -> anyhow::Result<Self> {
        Ok(Self(Histogram::new_with_bounds(1, Self::MAX_MICROS, 3)?))
    }

    fn add(&mut self, latency: Duration, times: u32) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record_n(micros.max(1), times.into());
    }

    fn millis(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    fn to_json(&self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        json!({
            "p50": self.millis(0.5), "p95": self.millis(0.95), "p99": self.millis(0.99), "max": self.millis(1.0),
            "mean": self.0.mean() / 1e3, "count": self.0.len(),
        })
    }

    fn to_row(&self, name: &str) -> [String; 5] {
        let at = |quantile| format!("{:.1}", self.millis(quantile));
        [name.into(), at(0.5), at(0.95), at(0.99), at(1.0)]
    }
}

impl Report {
    pub(super) fn new(args: Args) -> anyhow::Result<Self> {
        Ok(Self {
            args,
            elapsed: Duration::ZERO,
            succeeded: 0,
            errors: BTreeMap::new(),
            prompt_tokens: 0,
            generated_tokens: 0,
            first_token: Latencies::new()?,
            between_tokens: Latencies::new()?,
            request: Latencies::new()?,
        })
    }

    pub(super) fn add(&mut self, outcome: Result<Sample, Error>) {
        let sample = match outcome {
            Ok(sample) => sample,
            Err(error) => {
                *self.errors.entry(kind(&error)).or_default() += 1;
                return;
            }
        };
        self.succeeded += 1;
        self.prompt_tokens += sample.prompt_tokens;
        self.generated_tokens += sample.generated_tokens;
        self.request.add(sample.total, 1);
        if let Some(first) = sample.first_token {
            self.first_token.add(first, 1);
        }
        for (gap, times) in sample.gaps {
            self.between_tokens.add(gap, times);
        }
    }

    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(super) fn print(&self, as_json: bool) -> std::io::Result<()> {
        if as_json {
            return output::json(&self.to_json());
        }
        let failed: u64 = self.errors.values().sum();
        let seconds = self.elapsed.as_secs_f64();
        let concurrency = self.args.concurrency;
        output::line(format_args!(
            "{} requests ({failed} failed) in {seconds:.2} s, {concurrency} at a time",
            self.succeeded + failed
        ))?;
        output::line(format_args!(
            "{:.2} requests/s, {:.1} prompt tok/s, {:.1} generated tok/s",
            self.per_second(self.succeeded),
            self.per_second(self.prompt_tokens),
            self.per_second(self.generated_tokens)
        ))?;
        let mut rows = Vec::new();
        if !self.args.embed {
            rows.push(self.first_token.to_row("first token"));
            rows.push(self.between_tokens.to_row("between tokens"));
        }
        rows.push(self.request.to_row("request"));
        output::table(["ms", "p50", "p95", "p99", "max"], &rows)?;
        for (kind, count) in &self.errors {
            output::line(format_args!("error {kind}: {count}"))?;
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        let args = &self.args;
        json!({
            "mode": if args.embed { "embed" } else { "generate" },
            "concurrency": args.concurrency,
            "connections": args.connections,
            "prompt_tokens_per_request": args.prompt_tokens,
            "max_tokens": (!args.embed).then_some(args.max_tokens),
            "seed": args.seed,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "succeeded": self.succeeded,
            "errors": self.errors,
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "requests_per_second": self.per_second(self.succeeded),
            "prompt_tokens_per_second": self.per_second(self.prompt_tokens),
            "generated_tokens_per_second": self.per_second(self.generated_tokens),
            "first_token_ms": self.first_token.to_json(),
            "between_tokens_ms": self.between_tokens.to_json(),
            "request_ms": self.request.to_json(),
        })
    }
}

/// What errors are counted under: the reason for programs, else the code.
fn kind(error: &Error) -> String {
    match error.refusal() {
        Some(refusal) => match &refusal.reason {
            Some(reason) => format!("{:?} {reason}", refusal.code),
            None => format!("{:?}", refusal.code),
        },
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Status};

    use super::*;

    fn report() -> Report {
        use clap::Parser;
        #[derive(Parser)]
        struct Just {
            #[command(flatten)]
            args: Args,
        }
        Report::new(Just::parse_from(["bench"]).args).unwrap()
    }

    #[test]
    fn tokens_of_one_message_share_its_wait() {
        let mut report = report();
        report.add(Ok(Sample {
            generated_tokens: 5,
            first_token: Some(Duration::from_millis(80)),
            gaps: vec![(Duration::from_millis(10), 1), (Duration::from_millis(4), 3)],
            ..Sample::default()
        }));
        report.elapsed = Duration::from_secs(2);
        let json = report.to_json();
        let near =
            |value: &Value, expected: f64| (value.as_f64().unwrap() - expected).abs() < expected / 500.0;
        assert_eq!(json["between_tokens_ms"]["count"], 4);
        assert!(near(&json["between_tokens_ms"]["p50"], 4.0), "{json}");
        assert!(near(&json["between_tokens_ms"]["p99"], 10.0), "{json}");
        assert!(near(&json["first_token_ms"]["p50"], 80.0), "{json}");
        assert!(near(&json["generated_tokens_per_second"], 2.5), "{json}");
    }

    #[test]
    fn errors_are_counted_by_kind_and_not_as_work() {
        let mut report = report();
        for code in [Code::Unavailable, Code::Unavailable, Code::NotFound] {
            report.add(Err(Status::new(code, "x").into()));
        }
        let json = report.to_json();
        assert_eq!(json["errors"], json!({ "Unavailable": 2, "NotFound": 1 }));
        assert_eq!(
            (&json["succeeded"], &json["request_ms"]),
            (&json!(0), &Value::Null)
        );
    }
}
