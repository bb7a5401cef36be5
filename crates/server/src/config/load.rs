//! Reads the configuration's layers and remembers where each value was written.
//!
//! The only place of the server that reads the process environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use config::{Map, Source, Value, ValueKind};
use serde_path_to_error::Segment;

use super::check::{self, Finding};
use super::locate::Places;
use super::otel_env;
use super::raw::RawConfig;
use super::{Config, ConfigError, Problem};

/// What variables of the environment begin with; `__` separates the parts of a key.
const PREFIX: &str = "BAICHUAN_";
/// The configuration file, where no flag names one.
const FILE_VARIABLE: &str = "BAICHUAN_CONFIG";
/// Variables with the prefix that are not keys: the file's, and those of the client program.
const NOT_KEYS: [&str; 7] = [
    FILE_VARIABLE,
    "BAICHUAN_SERVER",
    "BAICHUAN_TOKEN",
    "BAICHUAN_TLS_CA",
    "BAICHUAN_TLS_CERT",
    "BAICHUAN_TLS_KEY",
    "BAICHUAN_TLS_SERVER_NAME",
];
/// What variables begin with that steer tests.
const TEST_PREFIX: &str = "TEST_";

/// Said by a flag of the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As the user wrote it, e.g. `--listen`.
    pub name: String,
    /// The key it sets, e.g. `listen.grpc`.
    pub key: String,
    /// A TOML value, or text.
    pub value: String,
}

/// Everything a configuration is made of.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// The environment's variables.
    pub env: Vec<(OsString, OsString)>,
    /// In order of precedence: later ones win.
    pub flags: Vec<Flag>,
    /// Where the default checkpoint may be.
    pub places: Places,
    /// Whether a model's folder that is not there is an error.
    pub models_must_exist: bool,
}

impl Inputs {
    /// A file and flags together with this process's environment, working directory and program.
    pub fn from_process(file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        Self {
            file: file.or_else(|| std::env::var_os(FILE_VARIABLE).map(PathBuf::from)),
            env: std::env::vars_os().collect(),
            flags,
            places: Places {
                cwd: std::env::current_dir().ok(),
                exe: std::env::current_exe().ok(),
            },
            models_must_exist: true,
        }
    }
}

/// Reads, merges and checks all layers.
pub fn load(inputs: &Inputs) -> Result<Config, ConfigError> {
    let tree = merge(inputs)?;
    let raw = parse(&tree)?;
    let default_model = if check::names_a_model(&raw) {
        None
    } else {
        Some(default_model(inputs, &raw)?)
    };
    check::check(raw, default_model, inputs.models_must_exist).map_err(|findings| {
        let problems = findings.into_iter().map(|f| blame(f, &tree));
        ConfigError::Problems(problems.collect())
    })
}

fn default_model(inputs: &Inputs, raw: &RawConfig) -> Result<PathBuf, ConfigError> {
    let searched = inputs.places.candidates(raw.models_dir.as_deref());
    let found = searched.iter().find(|dir| dir.join("config.json").is_file());
    found.cloned().ok_or(ConfigError::NoModel { searched })
}

/// The layers as one tree, in which each value knows where it was written.
fn merge(inputs: &Inputs) -> Result<Value, ConfigError> {
    let mut layers = Vec::new();
    if let Some(path) = &inputs.file {
        layers.push(file_layer(path)?);
    }
    let mut standard: Vec<(&str, &str)> = inputs
        .env
        .iter()
        .filter_map(|(name, value)| Some((name.to_str()?, value.to_str()?)))
        .collect();
    standard.sort_by_key(|(name, _)| otel_env::rank(name));
    for (name, text) in standard {
        let origin = format!("environment variable {name}");
        for (key, set) in otel_env::settings(name, text) {
            let set = set.map_err(|message| problem(key, message, &origin))?;
            layers.push(nested(key, value(set, &origin), &origin)?);
        }
    }
    for (name, value) in &inputs.env {
        layers.extend(env_layer(name, value)?);
    }
    for flag in &inputs.flags {
        layers.push(single(&flag.key, &flag.value, &flag.name)?);
    }
    let builder = layers
        .into_iter()
        .fold(config::Config::builder(), |b, layer| b.add_source(layer));
    let merged = builder
        .build()
        .map_err(|e| problem("", e.to_string(), "merged configuration"))?;
    Ok(merged.cache)
}

/// A set of values with one origin.
#[derive(Clone, Debug)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

fn file_layer(path: &Path) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.into(),
        source,
    })?;
    let table: toml::Table = toml::from_str(&text).map_err(|e| ConfigError::Syntax {
        path: path.into(),
        message: e.to_string(),
    })?;
    let origin = path.display().to_string();
    let values = table.into_iter().map(|(k, v)| (k, value(v, &origin)));
    Ok(Layer(values.collect()))
}

/// A variable's layer; none for those that are not the configuration's.
fn env_layer(name: &OsString, value: &OsString) -> Result<Option<Layer>, ConfigError> {
    let Some(key) = name.to_str().and_then(|n| n.strip_prefix(PREFIX)) else {
        return Ok(None);
    };
    let variable = format!("{PREFIX}{key}");
    let not_ours = NOT_KEYS.contains(&variable.as_str()) || key.starts_with(TEST_PREFIX);
    if not_ours || is_service_link(key) {
        return Ok(None);
    }
    let origin = format!("environment variable {variable}");
    let key = key.to_ascii_lowercase().replace("__", ".");
    let Some(text) = value.to_str() else {
        return Err(problem(&key, "is not UTF-8".into(), &origin));
    };
    single(&key, text, &origin).map(Some)
}

/// Whether Kubernetes set the variable because a Service in the namespace is named `baichuan` or `baichuan-…`.
fn is_service_link(key: &str) -> bool {
    let port = key.find("PORT").map(|at| &key[at..]).unwrap_or_default();
    let numbered = port
        .strip_prefix("PORT_")
        .is_some_and(|p| p.starts_with(|c: char| c.is_ascii_digit()));
    key.ends_with("SERVICE_HOST") || key.contains("SERVICE_PORT") || port == "PORT" || numbered
}

/// The layer of one `a.b.c = value`, the value as text.
fn single(key: &str, text: &str, origin: &str) -> Result<Layer, ConfigError> {
    nested(key, value_of_text(text, origin), origin)
}

/// The layer of one `a.b.c = value`.
fn nested(key: &str, value: Value, origin: &str) -> Result<Layer, ConfigError> {
    let mut parts: Vec<&str> = key.split('.').collect();
    if parts.iter().any(|p| p.is_empty()) {
        return Err(problem(
            key,
            "is not a key such as `engine.max_sequences`".into(),
            origin,
        ));
    }
    let root = parts.remove(0).to_string();
    let nested = parts.into_iter().rev().fold(value, |inner, part| {
        let table: Map<String, Value> = [(part.to_string(), inner)].into_iter().collect();
        Value::new(Some(&origin.into()), ValueKind::Table(table))
    });
    Ok(Layer([(root, nested)].into_iter().collect()))
}

/// A variable's or flag's text: a TOML number, truth value, string or list, and otherwise the text itself.
fn value_of_text(text: &str, origin: &str) -> Value {
    let parsed = toml::from_str::<toml::Table>(&format!("v = {text}")).ok();
    let single = parsed.filter(|t| t.len() == 1).and_then(|mut t| t.remove("v"));
    match single {
        Some(toml::Value::Datetime(_)) | None => Value::new(Some(&origin.into()), text),
        Some(parsed) => value(parsed, origin),
    }
}

fn value(toml: toml::Value, origin: &str) -> Value {
    let kind = match toml {
        toml::Value::String(s) => ValueKind::String(s),
        toml::Value::Integer(i) => ValueKind::I64(i),
        toml::Value::Float(f) => ValueKind::Float(f),
        toml::Value::Boolean(b) => ValueKind::Boolean(b),
        toml::Value::Datetime(d) => ValueKind::String(d.to_string()),
        toml::Value::Array(items) => ValueKind::Array(items.into_iter().map(|v| value(v, origin)).collect()),
        toml::Value::Table(table) => {
            ValueKind::Table(table.into_iter().map(|(k, v)| (k, value(v, origin))).collect())
        }
    };
    Value::new(Some(&origin.into()), kind)
}

/// Strictly: no number becomes a truth value, no fraction a whole number.
fn parse(tree: &Value) -> Result<RawConfig, ConfigError> {
    let json = to_json(tree);
    serde_path_to_error::deserialize(json).map_err(|e| {
        let parts: Vec<Part> = e.path().iter().filter_map(part).collect();
        problem(&spell(&parts), e.inner().to_string(), &origin_of(tree, &parts))
    })
}

fn to_json(value: &Value) -> serde_json::Value {
    use serde_json::Value as Json;
    match &value.kind {
        ValueKind::Boolean(b) => Json::from(*b),
        ValueKind::I64(i) => Json::from(*i),
        // JSON has no NaN: as text it is refused where a number is due.
        ValueKind::Float(f) if !f.is_finite() => Json::from(f.to_string()),
        ValueKind::Float(f) => Json::from(*f),
        ValueKind::Table(table) => Json::Object(table.iter().map(|(k, v)| (k.clone(), to_json(v))).collect()),
        ValueKind::Array(items) => Json::Array(items.iter().map(to_json).collect()),
        ValueKind::Nil => Json::Object(serde_json::Map::new()),
        other => Json::from(other.to_string()),
    }
}

/// A step of a path into the tree.
enum Part {
    Key(String),
    Index(usize),
}

fn part(segment: &Segment) -> Option<Part> {
    match segment {
        Segment::Map { key } => Some(Part::Key(key.clone())),
        Segment::Seq { index } => Some(Part::Index(*index)),
        Segment::Enum { .. } | Segment::Unknown => None,
    }
}

fn spell(parts: &[Part]) -> String {
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Index(i) => text.push_str(&format!("[{i}]")),
            Part::Key(key) if text.is_empty() => text.push_str(key),
            Part::Key(key) => text.push_str(&format!(".{key}")),
        }
    }
    text
}

fn parts_of(key: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    for piece in key.split('.') {
        let (name, index) = piece.split_once('[').unwrap_or((piece, ""));
        parts.push(Part::Key(name.into()));
        parts.extend(index.trim_end_matches(']').parse().ok().map(Part::Index));
    }
    parts
}

fn find<'a>(tree: &'a Value, parts: &[Part]) -> Option<&'a Value> {
    parts
        .iter()
        .try_fold(tree, |value, part| match (&value.kind, part) {
            (ValueKind::Table(table), Part::Key(key)) => table.get(key),
            (ValueKind::Array(items), Part::Index(index)) => items.get(*index),
            _ => None,
        })
}

/// Where the value at the path, or else what is nearest above it, was written.
fn origin_of(tree: &Value, parts: &[Part]) -> String {
    (1..=parts.len())
        .rev()
        .find_map(|n| any_origin(find(tree, &parts[..n])?))
        .unwrap_or("default")
        .into()
}

/// A value's origin. A table that several layers wrote has none of its own: then one of what is in it.
fn any_origin(value: &Value) -> Option<&str> {
    value.origin().or_else(|| match &value.kind {
        ValueKind::Table(table) => table.values().find_map(any_origin),
        ValueKind::Array(items) => items.iter().find_map(any_origin),
        _ => None,
    })
}

/// Blames the first of a finding's keys that was written somewhere.
fn blame(finding: Finding, tree: &Value) -> Problem {
    let written = |key: &&String| find(tree, &parts_of(key)).is_some();
    let key = finding.keys.iter().find(written).or(finding.keys.first());
    let key = key.cloned().unwrap_or_default();
    Problem {
        origin: origin_of(tree, &parts_of(&key)),
        message: finding.message,
        key,
    }
}

fn problem(key: &str, message: String, origin: &str) -> ConfigError {
    ConfigError::Problems(vec![Problem {
        key: key.into(),
        message,
        origin: origin.into(),
    }])
}
