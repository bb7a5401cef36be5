//! Metrics as text: OpenMetrics for who asks for it, the older Prometheus format for everybody else.
//!
//! The older format has no exemplars, units or end mark, and a counter's family is named with its `_total`.

use std::fmt;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    OpenMetrics,
    Prometheus,
}

impl Format {
    /// What a scraper's `Accept` asks for.
    pub(crate) fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// All metrics of a registry as text.
pub(crate) fn encode(registry: &Registry, format: Format) -> Result<String, fmt::Error> {
    let mut open = String::new();
    text::encode(&mut open, registry)?;
    Ok(match format {
        Format::OpenMetrics => open,
        Format::Prometheus => to_prometheus(&open),
    })
}

fn to_prometheus(open: &str) -> String {
    let counters: Vec<&str> = open
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter"))
        .collect();
    let mut out = String::with_capacity(open.len());
    for line in open.lines() {
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|kind| {
            let (name, rest) = line.strip_prefix(kind)?.split_once(' ')?;
            Some((kind, name, rest))
        });
        match described {
            Some((kind, name, rest)) if counters.contains(&name) => {
                out.push_str(&format!("{kind}{name}_total {rest}\n"));
            }
            Some(_) => out.push_str(&format!("{line}\n")),
            None if line.starts_with('#') => {}
            None => out.push_str(&format!("{}\n", without_exemplar(line))),
        }
    }
    out
}

/// A sample without the exemplar behind it. Label values may hold anything, so the labels are skipped first.
fn without_exemplar(sample: &str) -> &str {
    let (mut quoted, mut escaped, mut after_labels) = (false, false, 0);
    for (at, c) in sample.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted => {
                after_labels = at;
                break;
            }
            ' ' if !quoted => break,
            _ => {}
        }
    }
    match sample[after_labels..].find(" # ") {
        Some(at) => &sample[..after_labels + at],
        None => sample,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_format_names_counters_in_full_and_drops_what_it_does_not_know() {
        let open = "# HELP a Help.\n# TYPE a counter\n# UNIT a seconds\na_total{x=\"} # y\"} 1 # {trace_id=\"t\"} 1 2\n\
                    # HELP b Help.\n# TYPE b gauge\nb 2\n# EOF\n";
        let expected = "# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"} # y\"} 1\n\
                        # HELP b Help.\n# TYPE b gauge\nb 2\n";
        assert_eq!(to_prometheus(open), expected);
    }

    #[test]
    fn the_format_follows_the_accept_header() {
        assert_eq!(Format::accepted(None), Format::Prometheus);
        assert_eq!(Format::accepted(Some("text/plain")), Format::Prometheus);
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
    }
}
