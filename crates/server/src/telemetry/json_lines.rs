//! Log lines as JSON objects, flat: what is known of the call stands beside what the event says.

use std::fmt::{self, Debug};

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// One object a line: `timestamp`, `level`, `target`, `message`, the fields of the event and of the spans around it,
/// such as `request_id`, `trace_id` and `span_id` of a call.
pub(super) struct JsonLines;

impl<S> FormatEvent<S, JsonFields> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Fields(Map::new());
        for span in context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>();
            let fields = fields.and_then(|fields| serde_json::from_str::<Map<_, _>>(fields).ok());
            line.0.extend(fields.into_iter().flatten());
        }
        event.record(&mut line);
        let mut timestamp = String::new();
        SystemTime.format_time(&mut Writer::new(&mut timestamp))?;
        let metadata = event.metadata();
        line.0.insert("timestamp".into(), timestamp.into());
        line.0.insert("level".into(), metadata.level().as_str().into());
        line.0.insert("target".into(), metadata.target().into());
        writeln!(writer, "{}", Value::Object(line.0))
    }
}

/// An event's fields, under their names.
struct Fields(Map<String, Value>);

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set(field, format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::super::captured::Captured;
    use super::*;

    #[test]
    fn a_line_has_the_event_s_fields_and_those_of_the_call_around_it() {
        let lines = Captured::default();
        let written = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .fmt_fields(JsonFields::new())
            .event_format(JsonLines)
            .with_writer(move || written.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let call = tracing::error_span!("call", request_id = tracing::field::Empty, trace_id = "t");
            call.record("request_id", "r");
            call.in_scope(|| tracing::warn!(n = 3, cause = %"\"quoted\"", late = true, "it failed"));
            tracing::info!(request_id = "own", "outside");
        });
        let text = lines.text();
        let parsed: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let [inside, outside] = &parsed[..] else {
            panic!("{text}");
        };
        for (key, expected) in [
            ("message", Value::from("it failed")),
            ("level", "WARN".into()),
            ("request_id", "r".into()),
            ("trace_id", "t".into()),
            ("n", 3.into()),
            ("cause", "\"quoted\"".into()),
            ("late", true.into()),
        ] {
            assert_eq!(inside[key], expected, "{key}: {text}");
        }
        assert!(inside["timestamp"].is_string() && inside["target"].is_string());
        assert_eq!(
            (&outside["request_id"], outside.get("trace_id")),
            (&"own".into(), None)
        );
    }
}
