//! One operation on a model, a generation or an embedding, as OpenTelemetry's GenAI conventions see it.
//!
//! The engine knows nothing of traces: its events say when things happened, and the spans of an operation (its own,
//! `queue`, `prefill`, `decode`) are made of those times when it ends.

use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{Event, Span, SpanKind, Status, TraceContextExt, Tracer};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

use super::call_trace::CallTrace;
use super::content::Content;
use super::otlp::instruments::record;
use super::semconv;

/// Parts of a prompt that are told one by one; an SDK keeps no more events of a span anyway.
const MAX_CHUNKS: usize = 128;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    TextCompletion,
    Embeddings,
}

/// How it ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) input_tokens: usize,
    pub(crate) output_tokens: usize,
    pub(crate) cached_tokens: usize,
    /// Of each completion that ended, in their order.
    pub(crate) finish_reasons: Vec<&'static str>,
    /// Why it failed, if it did: one of a closed set.
    pub(crate) error: Option<&'static str>,
}

impl Outcome {
    /// What an operation that nobody waited for failed of.
    pub(crate) const CANCELLED: &'static str = "cancelled";

    /// It failed before anything came of it.
    pub(crate) fn failed(error: &'static str) -> Self {
        Self {
            error: Some(error),
            ..Self::default()
        }
    }
}

/// An operation that runs. Dropped before [`Self::end`], it was cancelled.
#[derive(Debug)]
pub(crate) struct Operation {
    call: CallTrace,
    kind: Kind,
    model: String,
    arrived: Instant,
    admitted: Option<Instant>,
    chunks: Vec<Chunk>,
    first_token: Option<Instant>,
    attributes: Vec<KeyValue>,
    /// Absent unless content is captured.
    pub(crate) content: Option<Content>,
    ended: bool,
}

/// A part of a prompt that a step computed.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    ended: Instant,
    start: usize,
    tokens: usize,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
            Self::Embeddings => "embeddings",
        }
    }
}

impl Operation {
    /// An operation of a call that arrived then.
    pub(crate) fn begin(call: CallTrace, kind: Kind, model: &str, id: &str, arrived: Instant) -> Self {
        let attributes = match call.is_recorded() {
            true => vec![KeyValue::new(semconv::RESPONSE_ID, id.to_owned())],
            false => Vec::new(),
        };
        Self {
            content: call
                .otlp
                .capture
                .as_deref()
                .filter(|_| call.is_recorded())
                .map(Content::new),
            call,
            kind,
            model: model.to_owned(),
            arrived,
            admitted: None,
            chunks: Vec::new(),
            first_token: None,
            attributes,
            ended: false,
        }
    }

    /// Whether spans are made for it: what is only for them can be left out otherwise.
    pub(crate) fn is_recorded(&self) -> bool {
        self.call.is_recorded()
    }

    /// The call it belongs to.
    pub(crate) fn call(&self) -> &CallTrace {
        &self.call
    }

    /// What was asked.
    pub(crate) fn attribute(&mut self, name: &'static str, value: impl Into<Value>) {
        if self.is_recorded() {
            self.attributes.push(KeyValue::new(name, value));
        }
    }

    /// It holds memory, so long after its arrival.
    pub(crate) fn admitted(&mut self, queue: Duration) {
        self.admitted = self.arrived.checked_add(queue);
    }

    /// A step computed a part of the prompt.
    pub(crate) fn prefilled(&mut self, ended: Instant, start: usize, tokens: usize) {
        if self.chunks.len() < MAX_CHUNKS && self.is_recorded() {
            self.chunks.push(Chunk { ended, start, tokens });
        }
    }

    /// Its first token was chosen.
    pub(crate) fn first_token(&mut self, at: Instant) {
        self.first_token.get_or_insert(at);
    }

    /// It is over: its last message was made.
    pub(crate) fn end(&mut self, outcome: &Outcome) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let now = Instant::now();
        self.measure(outcome, now);
        if let Some(tracer) = self.call.otlp.tracer.clone().filter(|_| self.is_recorded()) {
            self.trace(&tracer, outcome, now);
        }
    }

    fn measure(&self, outcome: &Outcome, now: Instant) {
        let Some(instruments) = &self.call.otlp.instruments else {
            return;
        };
        let mut attributes = vec![
            KeyValue::new(semconv::OPERATION, self.kind.name()),
            KeyValue::new(semconv::PROVIDER, semconv::BAICHUAN),
            KeyValue::new(semconv::REQUEST_MODEL, self.model.clone()),
            KeyValue::new(semconv::RESPONSE_MODEL, self.model.clone()),
        ];
        let total = now.saturating_duration_since(self.arrived);
        if let Some(error) = outcome.error {
            attributes.push(KeyValue::new(semconv::ERROR_TYPE, error));
        } else if let Some(first) = self.first_token {
            let to_first = first.saturating_duration_since(self.arrived);
            record(&instruments.time_to_first_token, to_first, &attributes);
            let further = u32::try_from(outcome.output_tokens.saturating_sub(1)).unwrap_or(u32::MAX);
            if let Some(each) = now.saturating_duration_since(first).checked_div(further) {
                record(&instruments.time_per_output_token, each, &attributes);
            }
        }
        record(&instruments.request_duration, total, &attributes);
    }

    fn trace(&mut self, tracer: &SdkTracer, outcome: &Outcome, now: Instant) {
        let clock = Clock::new(now);
        let mut attributes = std::mem::take(&mut self.attributes);
        attributes.extend([
            KeyValue::new(semconv::OPERATION, self.kind.name()),
            KeyValue::new(semconv::PROVIDER, semconv::BAICHUAN),
            KeyValue::new(semconv::REQUEST_MODEL, self.model.clone()),
            KeyValue::new(semconv::RESPONSE_MODEL, self.model.clone()),
            KeyValue::new(semconv::INPUT_TOKENS, count(outcome.input_tokens)),
        ]);
        if self.kind != Kind::Embeddings {
            let reasons = outcome.finish_reasons.iter();
            let reasons: Vec<StringValue> = reasons.map(|reason| (*reason).into()).collect();
            attributes.extend([
                KeyValue::new(semconv::OUTPUT_TOKENS, count(outcome.output_tokens)),
                KeyValue::new(semconv::CACHED_TOKENS, count(outcome.cached_tokens)),
                KeyValue::new(semconv::FINISH_REASONS, Value::Array(Array::String(reasons))),
            ]);
        }
        if let Some(content) = self.content.take() {
            attributes.extend(content.attributes(&outcome.finish_reasons));
        }
        let name = format!("{} {}", self.kind.name(), self.model);
        let span = tracer
            .span_builder(name)
            .with_kind(SpanKind::Internal)
            .with_start_time(clock.at(self.arrived))
            .with_attributes(attributes);
        let mut span = tracer.build_with_context(span, &self.call.context);
        if let Some(error) = outcome.error {
            span.set_attribute(KeyValue::new(semconv::ERROR_TYPE, error));
            span.set_status(Status::error(""));
        }
        let inside = self.call.context.with_span(span);
        self.phases(tracer, &inside, &clock, now);
        inside.span().end_with_timestamp(clock.at(now));
    }

    /// The spans of its phases, one after another, as far as it came.
    fn phases(&self, tracer: &SdkTracer, inside: &Context, clock: &Clock, now: Instant) {
        let phase = |name: &'static str, begin: Instant, end: Instant, events: Vec<Event>| {
            let span = tracer
                .span_builder(name)
                .with_start_time(clock.at(begin))
                .with_events(events);
            let mut span = tracer.build_with_context(span, inside);
            span.end_with_timestamp(clock.at(end));
        };
        let admitted = self.admitted.unwrap_or(now);
        phase(semconv::QUEUE_SPAN, self.arrived, admitted, Vec::new());
        if self.admitted.is_none() {
            return;
        }
        let chunks = self.chunks.iter().map(|chunk| {
            let attributes = vec![
                KeyValue::new(semconv::CHUNK_START, count(chunk.start)),
                KeyValue::new(semconv::CHUNK_TOKENS, count(chunk.tokens)),
            ];
            Event::new(semconv::CHUNK_EVENT, clock.at(chunk.ended), attributes, 0)
        });
        let first_token = self.first_token.unwrap_or(now);
        phase(semconv::PREFILL_SPAN, admitted, first_token, chunks.collect());
        if self.first_token.is_some() {
            phase(semconv::DECODE_SPAN, first_token, now, Vec::new());
        }
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        self.end(&Outcome::failed(Outcome::CANCELLED));
    }
}

/// The engine's clock has no date; this one has.
struct Clock {
    instant: Instant,
    date: SystemTime,
}

impl Clock {
    fn new(now: Instant) -> Self {
        Self {
            instant: now,
            date: SystemTime::now(),
        }
    }

    fn at(&self, instant: Instant) -> SystemTime {
        let ago = self.instant.saturating_duration_since(instant);
        self.date.checked_sub(ago).unwrap_or(self.date)
    }
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
