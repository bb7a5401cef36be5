//! `docs/CONFIG.md`: what every key of the configuration is, from the types that read it.
//!
//! Meanings are the comments of [`super::raw`], types its fields' types, defaults what [`super::check`] makes of a
//! configuration that names nothing but a model, or where those depend on something the key's `x-default`.

use std::fmt::Write;
use std::path::PathBuf;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value};

use super::check;
use super::raw::{RawConfig, RawModel};

const INTRODUCTION: &str = "\
<!-- Made by `baichuan-server config-reference > docs/CONFIG.md` from the code: change it there. -->
# Configuration

Every key, its type, its default and its meaning. Layers, each over the one before: the defaults here; the file named by
`--config` or `BAICHUAN_CONFIG`, in TOML; variables of the environment; flags; `--set KEY=VALUE`.

A variable is `BAICHUAN_`, then the key in capitals with `__` for each dot: `BAICHUAN_ENGINE__MAX_SEQUENCES=8` is
`--set engine.max_sequences=8` is `max_sequences = 8` under `[engine]`. A value is written as in TOML; what is no number,
truth value, quoted string or list is text. Unknown keys and bad values are errors that name the key, the value and where
it was written, all at once. `baichuan-server check-config` takes what `serve` takes and prints the configuration in
force.

The standard `OTEL_*` variables that `[telemetry]` names set those keys, over the file and under `BAICHUAN_*`. Headers,
compression and certificates of OTLP are read by its client library itself (`OTEL_EXPORTER_OTLP_HEADERS` and its like).

A duration is text such as `\"250ms\"`, `\"30s\"` or `\"1h 30m\"`.
";

/// A part of the configuration whose keys are told together.
struct Section {
    heading: String,
    meaning: String,
    keys: Vec<Key>,
}

/// One key.
struct Key {
    path: String,
    kind: String,
    default: Option<String>,
    meaning: String,
}

/// Names of element types, as [`baichuan_engine::Dtype`] reads them.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "its schema is what counts")]
pub(super) enum DtypeText {
    F32,
    F16,
    Bf16,
}

/// Names of what keys and values are kept as, as [`baichuan_engine::CacheDtype`] reads them.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "its schema is what counts")]
pub(super) enum CacheDtypeText {
    F32,
    F16,
    Bf16,
    Int8,
}

/// The whole reference, as Markdown.
///
/// # Errors
/// Only for a configuration that cannot be written as JSON.
pub fn reference() -> Result<String, serde_json::Error> {
    let mut text = INTRODUCTION.to_owned();
    for section in sections()? {
        // Writing to a string does not fail.
        let _ = write!(text, "\n## {}\n{}\n\n", section.heading, section.meaning);
        text.push_str("| key | type | default | meaning |\n|---|---|---|---|\n");
        for key in section.keys {
            let default = key.default.unwrap_or_default();
            let _ = writeln!(
                text,
                "| `{}` | {} | {default} | {} |",
                key.path, key.kind, key.meaning
            );
        }
    }
    Ok(text)
}

fn sections() -> Result<Vec<Section>, serde_json::Error> {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    let schema = settings.into_generator().into_root_schema_for::<RawConfig>();
    let mut sections = vec![Section {
        heading: "At the top".into(),
        meaning: "Before the first `[section]` of a file.".into(),
        keys: Vec::new(),
    }];
    walk(&schema, "", &defaults()?, 0, &mut sections);
    Ok(sections)
}

/// The effective configuration of a server that is told nothing but a model's folder.
fn defaults() -> Result<Value, serde_json::Error> {
    let raw = RawConfig {
        model: RawModel {
            path: Some(PathBuf::from("MODEL")),
            ..RawModel::default()
        },
        ..RawConfig::default()
    };
    let mut tree = match check::check(raw, None, false) {
        Ok(config) => serde_json::to_value(config.to_raw())?,
        // The defaults contradict each other: keys without defaults fail the test below.
        Err(_) => Value::Null,
    };
    if let Some(model) = tree.pointer_mut("/models/0").map(Value::take) {
        tree["engine"] = model["engine"].clone();
        tree["models"] = model;
    }
    Ok(tree)
}

/// Adds what is under `path` to section `at` and to new ones.
fn walk(schema: &Schema, path: &str, defaults: &Value, at: usize, sections: &mut Vec<Section>) {
    for (name, property) in properties(schema) {
        let own = match path {
            "" => name.clone(),
            _ => format!("{path}.{name}"),
        };
        let default = &defaults[name.as_str()];
        let items = property.get("items").and_then(as_schema);
        let meaning = text_of(&property, "description");
        // One model alone has the keys of a listed one, and their engines those of `engine`.
        let told_elsewhere = match own.as_str() {
            "model" => continue,
            "models[].engine" => Some("as `engine`"),
            _ => None,
        };
        let values = property.get("additionalProperties").and_then(as_schema);
        if let Some(values) = values.filter(|values| !properties(values).is_empty()) {
            // A table by name: its defaults are told by its keys alone.
            let path = format!("{own}.NAME");
            let section = new_section(format!("`[{path}]`"), meaning, sections);
            walk(&values, &path, &Value::Null, section, sections);
        } else if let Some(items) = items.filter(|items| !properties(items).is_empty()) {
            let path = format!("{own}[]");
            let section = new_section(format!("`[[{own}]]`"), meaning, sections);
            walk(&items, &path, default, section, sections);
        } else if told_elsewhere.is_none() && !properties(&property).is_empty() {
            let section = new_section(format!("`[{own}]`"), meaning, sections);
            walk(&property, &own, default, section, sections);
        } else {
            let told = text_of(&property, "x-default");
            let constant = (!default.is_null()).then(|| format!("`{default}`"));
            let default = if told.is_empty() { constant } else { Some(told) };
            let elsewhere = told_elsewhere.map(str::to_owned);
            sections[at].keys.push(Key {
                path: own,
                kind: elsewhere.clone().unwrap_or_else(|| kind(&property)),
                default: elsewhere.or(default),
                meaning,
            });
        }
    }
}

fn new_section(heading: String, meaning: String, sections: &mut Vec<Section>) -> usize {
    sections.push(Section {
        heading,
        meaning,
        keys: Vec::new(),
    });
    sections.len() - 1
}

/// What a type is called in the reference.
fn kind(schema: &Schema) -> String {
    let told = text_of(schema, "x-type");
    if !told.is_empty() {
        return told;
    }
    let mut constants = Vec::new();
    collect_constants(schema, &mut constants);
    if !constants.is_empty() {
        return constants.join(" or ");
    }
    let types = schema.get("type");
    let is = |name: &str| match types {
        Some(Value::Array(several)) => several.iter().any(|one| one == name),
        Some(one) => one == name,
        None => false,
    };
    if let Some(items) = schema.get("items").and_then(as_schema) {
        return format!("list of {}", kind(&items));
    }
    if let Some(values) = schema.get("additionalProperties").and_then(as_schema) {
        return format!("table of {}", kind(&values));
    }
    match () {
        () if is("integer") => "whole number".into(),
        () if is("number") => "number".into(),
        () if is("boolean") => "`true` or `false`".into(),
        () if is("string") => "text".into(),
        () => "?".into(),
    }
}

/// The values of an enumeration, wherever in alternatives they stand.
fn collect_constants(schema: &Schema, constants: &mut Vec<String>) {
    let many = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let all = schema.get("const").into_iter().chain(many);
    constants.extend(all.filter(|v| !v.is_null()).map(|v| format!("`{v}`")));
    for alternatives in ["anyOf", "oneOf"] {
        let list = schema.get(alternatives).and_then(Value::as_array);
        for alternative in list.into_iter().flatten().filter_map(as_schema) {
            collect_constants(&alternative, constants);
        }
    }
}

fn properties(schema: &Schema) -> Vec<(String, Schema)> {
    let map: Option<&Map<String, Value>> = schema.get("properties").and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), as_schema(value)?)))
        .collect()
}

fn as_schema(value: &Value) -> Option<Schema> {
    value.as_object().map(|object| Schema::from(object.clone()))
}

/// A keyword's text on one line, fit for a table's cell.
fn text_of(schema: &Schema, keyword: &str) -> String {
    let text = schema.get(keyword).and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_type_a_default_and_a_meaning() {
        let sections = sections().unwrap();
        assert!(sections.iter().map(|s| s.keys.len()).sum::<usize>() > 50);
        for section in sections {
            assert!(!section.meaning.is_empty(), "{}: no meaning", section.heading);
            for key in section.keys {
                assert!(!key.meaning.is_empty(), "{}: no comment in raw.rs", key.path);
                assert_ne!(key.kind, "?", "{}: its schema has no type", key.path);
                let told = "neither its effective value nor `x-default` in raw.rs tells its default";
                assert!(key.default.is_some(), "{}: {told}", key.path);
            }
        }
    }

    #[test]
    fn the_printed_reference_is_this_code_s() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/CONFIG.md");
        let printed = std::fs::read_to_string(file).unwrap_or_default();
        let remedy = "run `cargo run -p baichuan-server -- config-reference > docs/CONFIG.md`";
        assert!(
            printed == reference().unwrap(),
            "docs/CONFIG.md is out of date: {remedy}"
        );
    }

    #[test]
    fn a_key_s_row_says_what_the_code_says() {
        let text = reference().unwrap();
        for row in [
            "| `engine.max_sequences` | whole number | `64` | Sequences that may hold memory at once. |",
            "| `log.format` | `\"text\"` or `\"json\"` | `\"text\"` | How a line looks. |",
            "| `requests.max_time` | duration or `\"off\"` | `\"off\"` |",
            "| `models[].dtype` | `\"f32\"` or `\"f16\"` or `\"bf16\"` | as in the checkpoint |",
            "| `models[].engine` | as `engine` | as `engine` |",
        ] {
            assert!(text.contains(row), "{row}\n{text}");
        }
    }
}
