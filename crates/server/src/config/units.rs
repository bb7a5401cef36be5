//! Values of the configuration that are written for people: durations, and limits that may be `"off"`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A value written as in `"30s"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Human<T>(pub(crate) T);

/// A limit written as in `"30s"`, or `"off"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit<T>(pub(crate) Option<T>);

impl fmt::Display for Human<Duration> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for Human<Duration> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|e| format!("{text:?} is not a duration such as \"30s\" or \"500ms\": {e}"))
    }
}

impl<'de> Deserialize<'de> for Human<Duration> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl Serialize for Human<Duration> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Limit<Duration> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "off" {
            return Ok(Self(None));
        }
        text.parse::<Human<Duration>>()
            .map(|d| Self(Some(d.0)))
            .map_err(|e| de::Error::custom(format!("{e}; \"off\" turns it off")))
    }
}

impl Serialize for Limit<Duration> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(duration) => Human(duration).serialize(serializer),
            None => serializer.serialize_str("off"),
        }
    }
}

impl JsonSchema for Human<Duration> {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-type": "duration" })
    }
}

impl JsonSchema for Limit<Duration> {
    fn schema_name() -> Cow<'static, str> {
        "DurationLimit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-type": "duration or `\"off\"`" })
    }
}
