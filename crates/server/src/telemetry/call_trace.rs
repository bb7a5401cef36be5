//! One call as traces see it: who called, the span of the call, and what ties log lines and exemplars to it.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use opentelemetry::baggage::BaggageExt;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};
use prometheus_client::encoding::EncodeLabelSet;
use tonic::Code;

use super::otlp::{Otlp, instruments};
use super::semconv;
use crate::grpc::is_request_id;

/// Metadata that names the work that a call is a part of.
const CORRELATION_ID: &str = "x-correlation-id";

/// A call as traces see it. Clones are the same call.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallTrace {
    /// The caller's context with the call's span in it, as far as there are any.
    pub(super) context: Context,
    pub(super) otlp: Arc<Otlp>,
    /// What its caller calls the work that it is a part of.
    correlation_id: Option<Arc<str>>,
}

/// What an exemplar says: where to find the call behind a measurement.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub(crate) struct TraceLabels {
    trace_id: String,
    span_id: String,
}

impl CallTrace {
    /// A call begins. `method` is its `package.Service/Method`, absent for calls that get no span.
    pub(crate) fn begin(otlp: &Arc<Otlp>, method: Option<&'static str>, headers: &HeaderMap) -> Self {
        let correlation_id = correlation_id(headers);
        let headers = Headers(headers);
        let caller = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
        let (Some(tracer), Some(method)) = (&otlp.tracer, method) else {
            return Self {
                context: caller,
                otlp: otlp.clone(),
                correlation_id,
            };
        };
        let mut attributes = vec![
            KeyValue::new(semconv::RPC_SYSTEM_NAME, semconv::GRPC),
            KeyValue::new(semconv::RPC_METHOD, method),
        ];
        let correlation = correlation_id.as_deref();
        attributes.extend(correlation.map(|id| KeyValue::new(semconv::CORRELATION_ID, id.to_owned())));
        if !otlp.baggage_attributes.is_empty() {
            let baggage = BaggagePropagator::new().extract_with_context(&Context::new(), &headers);
            for name in &otlp.baggage_attributes {
                if let Some(value) = baggage.baggage().get(name) {
                    let name = format!("{}{name}", semconv::BAGGAGE_PREFIX);
                    attributes.push(KeyValue::new(name, value.as_str().to_owned()));
                }
            }
        }
        let span = tracer
            .span_builder(method)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        let span = tracer.build_with_context(span, &caller);
        Self {
            context: caller.with_span(span),
            otlp: otlp.clone(),
            correlation_id,
        }
    }

    /// The call has this name.
    pub(crate) fn named(&self, id: &str) {
        if self.is_recorded() {
            let id = KeyValue::new(semconv::REQUEST_ID, id.to_owned());
            self.context.span().set_attribute(id);
        }
    }

    /// The call ended with this code, after so long.
    pub(crate) fn end(&self, method: Option<&'static str>, code: Code, took: Duration) {
        let Some(method) = method else { return };
        let status = code_name(code);
        let is_error = code != Code::Ok;
        if let Some(instruments) = &self.otlp.instruments {
            let mut attributes = vec![
                KeyValue::new(semconv::RPC_SYSTEM_NAME, semconv::GRPC),
                KeyValue::new(semconv::RPC_METHOD, method),
                KeyValue::new(semconv::RPC_RESPONSE_STATUS_CODE, status),
            ];
            if is_error {
                attributes.push(KeyValue::new(semconv::ERROR_TYPE, status));
            }
            instruments::record(&instruments.rpc_duration, took, &attributes);
        }
        if !self.is_recorded() {
            return;
        }
        let span = self.context.span();
        span.set_attributes([
            KeyValue::new(semconv::RPC_STATUS_CODE, status),
            KeyValue::new(semconv::RPC_RESPONSE_STATUS_CODE, status),
        ]);
        if is_error {
            span.set_attribute(KeyValue::new(semconv::ERROR_TYPE, status));
        }
        if is_fault(code) {
            span.set_status(Status::error(""));
        }
        span.end();
    }

    /// Whether spans are made for it.
    pub(crate) fn is_recorded(&self) -> bool {
        self.otlp.tracer.is_some() && self.ids().is_some_and(|ids| ids.is_sampled())
    }

    /// The ids of the call's span, or else of its caller's.
    pub(crate) fn ids(&self) -> Option<SpanContext> {
        let ids = self.context.span().span_context().clone();
        ids.is_valid().then_some(ids)
    }

    /// For an exemplar; none where no collector will know the trace.
    pub(crate) fn exemplar(&self) -> Option<TraceLabels> {
        let ids = self.ids().filter(SpanContext::is_sampled)?;
        Some(TraceLabels {
            trace_id: ids.trace_id().to_string(),
            span_id: ids.span_id().to_string(),
        })
    }

    /// What its log lines are written in. The name is recorded when it is known.
    pub(crate) fn log_span(&self) -> tracing::Span {
        use tracing::field::Empty;
        // At the highest level: whatever is logged of the call is logged with its names.
        let span = tracing::error_span!(
            "call",
            request_id = Empty,
            correlation_id = Empty,
            trace_id = Empty,
            span_id = Empty
        );
        if let Some(id) = &self.correlation_id {
            span.record("correlation_id", &**id);
        }
        if let Some(ids) = self.ids() {
            span.record("trace_id", ids.trace_id().to_string());
            // The caller's own span is no place of ours.
            if !ids.is_remote() {
                span.record("span_id", ids.span_id().to_string());
            }
        }
        span
    }
}

/// What the metadata says of the work that a call is a part of, where that may be a name.
fn correlation_id(headers: &HeaderMap) -> Option<Arc<str>> {
    let id = headers.get(CORRELATION_ID)?.to_str().ok()?;
    is_request_id(id).then(|| id.into())
}

/// Whether a code tells of the server's fault and not of the caller's, as the convention for servers has it.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// As gRPC itself spells codes.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Metadata, for propagators to read.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn called_with(traceparent: &str) -> CallTrace {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", traceparent.parse().unwrap());
        CallTrace::begin(&Arc::default(), Some("a.B/C"), &headers)
    }

    #[test]
    fn without_a_collector_the_caller_s_trace_is_still_known() {
        let call = called_with(&format!("00-{TRACE}-b7ad6b7169203331-01"));
        assert_eq!(call.ids().unwrap().trace_id().to_string(), TRACE);
        assert_eq!(call.exemplar().unwrap().trace_id, TRACE);
        assert!(!call.is_recorded());
    }

    #[test]
    fn the_work_that_a_call_is_a_part_of_is_known_where_it_has_a_good_name() {
        let said = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CORRELATION_ID, id.parse().unwrap());
            CallTrace::begin(&Arc::default(), Some("a.B/C"), &headers).correlation_id
        };
        assert_eq!(said("order-7").as_deref(), Some("order-7"));
        assert_eq!(said("two words"), None);
        assert_eq!(said(&"x".repeat(129)), None);
    }

    #[test]
    fn a_trace_that_nobody_records_is_no_exemplar() {
        let call = called_with(&format!("00-{TRACE}-b7ad6b7169203331-00"));
        assert_eq!(call.exemplar(), None);
    }

    #[test]
    fn a_malformed_traceparent_is_none() {
        for text in [
            "",
            "00-xyz-b7ad6b7169203331-01",
            "not a traceparent",
            &format!("00-{TRACE}-0-01"),
        ] {
            assert!(called_with(text).ids().is_none(), "{text}");
        }
    }
}
