//! The standard `OTEL_*` variables as keys of the configuration.
//!
//! <https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>. An empty variable is none. What
//! is not here is either another SDK's matter, or read by the OTLP client library itself: headers, compression and
//! certificates (`OTEL_EXPORTER_OTLP_HEADERS`, …), which so never become a part of what `check-config` prints.

use toml::Value;

/// A key and its value, or what is wrong with the variable.
type Setting = (&'static str, Result<Value, String>);

/// How a variable's text becomes a key's value.
type Read = fn(&str) -> Result<Value, String>;

/// Variables that name a key, and how their text becomes its value.
const KEYS: [(&str, &str, Read); 17] = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.otlp_endpoint", text),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "telemetry.otlp_timeout", millis),
    ("OTEL_SERVICE_NAME", "telemetry.service_name", text),
    ("OTEL_RESOURCE_ATTRIBUTES", "telemetry.resource_attributes", table),
    ("OTEL_TRACES_SAMPLER", "telemetry.traces_sampler", text),
    ("OTEL_TRACES_SAMPLER_ARG", "telemetry.traces_sampler_arg", number),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "telemetry.span_queue", count),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "telemetry.span_batch", count),
    ("OTEL_BSP_SCHEDULE_DELAY", "telemetry.span_delay", millis),
    (
        "OTEL_METRIC_EXPORT_INTERVAL",
        "telemetry.metrics_interval",
        millis,
    ),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "telemetry.otlp_endpoint", protocol),
    (
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        "telemetry.otlp_traces_endpoint",
        protocol,
    ),
    (
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
        "telemetry.otlp_metrics_endpoint",
        protocol,
    ),
    (
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "telemetry.otlp_traces_endpoint",
        text,
    ),
    (
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        "telemetry.otlp_metrics_endpoint",
        text,
    ),
    ("OTEL_TRACES_EXPORTER", "telemetry.otlp_traces_endpoint", exporter),
    (
        "OTEL_METRICS_EXPORTER",
        "telemetry.otlp_metrics_endpoint",
        exporter,
    ),
];

/// What the variable `name` sets; nothing for those that are not ours, and for values that change nothing.
pub(super) fn settings(name: &str, value: &str) -> Vec<Setting> {
    if value.is_empty() {
        return Vec::new();
    }
    if name == "OTEL_SDK_DISABLED" {
        let off = || Ok(Value::from("off"));
        return match value.eq_ignore_ascii_case("true") {
            true => vec![
                ("telemetry.otlp_traces_endpoint", off()),
                ("telemetry.otlp_metrics_endpoint", off()),
            ],
            false => Vec::new(),
        };
    }
    KEYS.iter()
        .filter(|(variable, ..)| *variable == name)
        .map(|(_, key, read)| (*key, read(value)))
        .filter(|(_, value)| *value != Ok(UNCHANGED))
        .collect()
}

/// Where among other variables one stands: what turns an exporter off wins over what names its endpoint.
pub(super) fn rank(name: &str) -> usize {
    let of_key = KEYS.iter().position(|(variable, ..)| *variable == name);
    of_key.map_or(KEYS.len(), |at| at)
}

/// A value that is in force anyway.
const UNCHANGED: Value = Value::Boolean(true);

fn text(text: &str) -> Result<Value, String> {
    Ok(Value::from(text))
}

fn count(text: &str) -> Result<Value, String> {
    let count: i64 = text
        .parse()
        .map_err(|_| format!("must be a whole number, got {text:?}"))?;
    Ok(Value::from(count))
}

fn number(text: &str) -> Result<Value, String> {
    let number: f64 = text
        .parse()
        .map_err(|_| format!("must be a number, got {text:?}"))?;
    Ok(Value::from(number))
}

fn millis(text: &str) -> Result<Value, String> {
    count(text)?;
    Ok(Value::from(format!("{text}ms")))
}

fn protocol(text: &str) -> Result<Value, String> {
    match text {
        "grpc" => Ok(UNCHANGED),
        other => Err(format!("OTLP is spoken over \"grpc\" only, got {other:?}")),
    }
}

fn exporter(text: &str) -> Result<Value, String> {
    match text {
        "otlp" => Ok(UNCHANGED),
        "none" => Ok(Value::from("off")),
        other => Err(format!("must be \"otlp\" or \"none\", got {other:?}")),
    }
}

/// `key=value,key=value`, each part percent-encoded.
fn table(text: &str) -> Result<Value, String> {
    let decode = |part: &str| {
        percent_encoding::percent_decode_str(part.trim())
            .decode_utf8()
            .map(|text| text.into_owned())
            .map_err(|_| format!("{part:?} is not percent-encoded UTF-8"))
    };
    let mut attributes = toml::Table::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("must be KEY=VALUE,…, got {pair:?}"))?;
        attributes.insert(decode(key)?, Value::from(decode(value)?));
    }
    Ok(Value::from(attributes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_become_keys_or_say_what_is_wrong() {
        for (name, value, key, expected) in [
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                "http://c:4317",
                "telemetry.otlp_endpoint",
                Ok(Value::from("http://c:4317")),
            ),
            (
                "OTEL_BSP_SCHEDULE_DELAY",
                "250",
                "telemetry.span_delay",
                Ok(Value::from("250ms")),
            ),
            (
                "OTEL_TRACES_SAMPLER_ARG",
                "0.25",
                "telemetry.traces_sampler_arg",
                Ok(Value::from(0.25)),
            ),
            (
                "OTEL_METRICS_EXPORTER",
                "none",
                "telemetry.otlp_metrics_endpoint",
                Ok(Value::from("off")),
            ),
            (
                "OTEL_EXPORTER_OTLP_PROTOCOL",
                "http/protobuf",
                "telemetry.otlp_endpoint",
                Err("OTLP is spoken over \"grpc\" only, got \"http/protobuf\"".into()),
            ),
            (
                "OTEL_BSP_MAX_QUEUE_SIZE",
                "many",
                "telemetry.span_queue",
                Err("must be a whole number, got \"many\"".into()),
            ),
        ] {
            assert_eq!(settings(name, value), [(key, expected)], "{name}={value}");
        }
    }

    #[test]
    fn what_is_empty_foreign_or_in_force_anyway_sets_nothing() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", ""),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "otlp"),
            ("OTEL_SDK_DISABLED", "false"),
            ("OTEL_PYTHON_LOG_LEVEL", "debug"),
        ] {
            assert_eq!(settings(name, value), [], "{name}={value}");
        }
        assert_eq!(settings("OTEL_SDK_DISABLED", "TRUE").len(), 2);
    }

    #[test]
    fn attributes_are_decoded() {
        let read = table("a=b, service.namespace = m%2C%C3%A9d ,").unwrap();
        assert_eq!(read["a"].as_str(), Some("b"));
        assert_eq!(read["service.namespace"].as_str(), Some("m,éd"));
        assert!(table("no value").is_err());
    }
}
