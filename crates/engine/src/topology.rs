//! Device and quantisation layer by layer, in the files of mistral.rs ("topologies").
//!
//! ```yaml
//! 0-8:              # layers 0 to 7
//!   isq: Q4K
//!   device: cuda[0]
//! 8:                # one layer
//!   isq: Q8_0
//! '/lm_head/':      # tensors whose names match
//!   isq: Q6K
//! ```
//!
//! As in mistral.rs, of several ranges that hold a layer the one with the highest end counts, of equal ends the later
//! one, and it counts alone; of several patterns that match a name the last one counts, before any range. What a topology
//! does not name has the model's own `isq` and `device`. Unlike there, what names nothing is an error.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use regex::Regex;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, de};

use crate::isq::IsqType;
use crate::placement::DeviceChoice;

/// What a topology file says.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    ranges: Vec<LayerRange>,
    patterns: Vec<Pattern>,
    text: String,
}

/// Some layers that follow one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRange {
    /// As it is written.
    pub selector: String,
    /// Which layers.
    pub layers: Range<usize>,
    /// What to quantise them to; absent: as the model.
    pub isq: Option<IsqType>,
    /// Where they live; absent: with the model.
    pub device: Option<DeviceChoice>,
}

/// Tensors by name.
#[derive(Clone, Debug)]
struct Pattern {
    selector: String,
    regex: Regex,
    isq: Option<IsqType>,
}

/// A topology that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopologyError {
    /// The text is no topology.
    #[error("{0}")]
    Syntax(String),
    /// An entry means nothing for this model.
    #[error("entry {entry:?}: {message}")]
    Entry {
        /// As it is written.
        entry: String,
        /// What is wrong with it.
        message: String,
    },
}

impl Topology {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.patterns.is_empty()
    }

    /// The devices it names.
    pub fn devices(&self) -> impl Iterator<Item = DeviceChoice> {
        self.ranges.iter().filter_map(|range| range.device)
    }

    /// Whether it says of any layer where it lives.
    pub fn places_layers(&self) -> bool {
        self.devices().next().is_some()
    }

    /// What is said of a layer.
    pub fn layer(&self, layer: usize) -> Option<&LayerRange> {
        let holding = self.ranges.iter().filter(|range| range.layers.contains(&layer));
        // The last of equal ones.
        holding.max_by_key(|range| range.layers.end)
    }

    /// What the tensor `name`, of this layer if of any, is quantised to; absent: as the model is.
    pub fn isq(&self, name: &str, layer: Option<usize>) -> Option<IsqType> {
        let matching = self
            .patterns
            .iter()
            .rev()
            .find(|pattern| pattern.regex.is_match(name));
        let of_layer = || layer.and_then(|layer| self.layer(layer)?.isq);
        matching.and_then(|pattern| pattern.isq).or_else(of_layer)
    }

    /// Whether every entry names something of a model with so many layers and these tensors.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check<'n>(
        &self,
        n_layers: usize,
        names: impl Iterator<Item = &'n str> + Clone,
    ) -> Result<(), TopologyError> {
        if let Some(range) = self.ranges.iter().find(|range| range.layers.end > n_layers) {
            return Err(TopologyError::Entry {
                entry: range.selector.clone(),
                message: format!("the model has {n_layers} layers, counted from 0"),
            });
        }
        for pattern in &self.patterns {
            if !names.clone().any(|name| pattern.regex.is_match(name)) {
                return Err(TopologyError::Entry {
                    entry: pattern.selector.clone(),
                    message: "no tensor of the model has such a name".into(),
                });
            }
        }
        Ok(())
    }

    /// The text it was read from.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Topology {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Topology {}

impl FromStr for Topology {
    type Err = TopologyError;

    fn from_str(text: &str) -> Result<Self, TopologyError> {
        let entries: Entries =
            serde_saphyr::from_str(text).map_err(|error| TopologyError::Syntax(error.to_string()))?;
        let mut topology = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        for (selector, entry) in entries.0 {
            topology
                .add(&selector, entry)
                .map_err(|message| TopologyError::Entry {
                    entry: selector,
                    message,
                })?;
        }
        Ok(topology)
    }
}

impl Topology {
    fn add(&mut self, selector: &str, Entry { isq, device }: Entry) -> Result<(), String> {
        let device = device.as_deref().map(device_of).transpose()?;
        let pattern = selector.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
        if let Some(pattern) = pattern {
            if device.is_some() {
                return Err("a device belongs to whole layers, name them by number".into());
            }
            let regex = Regex::new(pattern).map_err(|error| error.to_string())?;
            self.patterns.push(Pattern {
                selector: selector.to_owned(),
                regex,
                isq,
            });
            return Ok(());
        }
        let shape = || "must be LAYER, FIRST-END or /REGEX/".to_owned();
        let number = |text: &str| text.parse::<usize>().map_err(|_| shape());
        let layers = match selector.split_once('-') {
            Some((first, end)) => number(first)?..number(end)?,
            None => number(selector)?..number(selector)?.saturating_add(1),
        };
        if layers.is_empty() {
            return Err("its end, which is the first layer not of it, must be above its first".into());
        }
        self.ranges.push(LayerRange {
            selector: selector.to_owned(),
            layers,
            isq,
            device,
        });
        Ok(())
    }
}

/// `cpu`, `cuda[1]`, `metal[0]`.
fn device_of(text: &str) -> Result<DeviceChoice, String> {
    let bracketed = |kind: &str| {
        let ordinal = text.strip_prefix(kind)?.strip_prefix('[')?.strip_suffix(']')?;
        ordinal.parse::<usize>().ok()
    };
    match (text, bracketed("cuda"), bracketed("metal")) {
        ("cpu", _, _) => Ok(DeviceChoice::Cpu),
        (_, Some(ordinal), _) => Ok(DeviceChoice::Cuda(ordinal)),
        (_, _, Some(ordinal)) => Ok(DeviceChoice::Metal(ordinal)),
        _ => Err(format!(
            "device must be cpu, cuda[ORDINAL] or metal[ORDINAL], got {text:?}"
        )),
    }
}

/// What is said of some layers or tensors.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    isq: Option<IsqType>,
    device: Option<String>,
}

/// In the order of the file.
struct Entries(Vec<(String, Entry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("layers or patterns, each with isq, device, or both")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(selector) = map.next_key::<String>()? {
                    let entry = map
                        .next_value::<Entry>()
                        .map_err(|error| A::Error::custom(format!("entry {selector:?}: {error}")))?;
                    entries.push((selector, entry));
                }
                Ok(Entries(entries))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Entries, E> {
                Ok(Entries(Vec::new()))
            }
        }
        deserializer.deserialize_any(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Topology {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_patterns_and_single_layers_are_read() {
        let topology = read(
            "0-8:\n  isq: q4k\n  device: cuda[1]\n9:\n  isq: 8\n10-12: {device: cpu}\n'/lm_head/':\n  isq: Q6K\n",
        );
        let of = |layer| topology.layer(layer).map(|range| (range.isq, range.device));
        assert_eq!(of(0), Some((Some(IsqType::Q4K), Some(DeviceChoice::Cuda(1)))));
        assert_eq!(of(7), of(0));
        assert_eq!(of(8), None);
        assert_eq!(of(9), Some((Some(IsqType::Bits8), None)));
        assert_eq!(of(11), Some((None, Some(DeviceChoice::Cpu))));
        assert_eq!(topology.isq("lm_head.weight", None), Some(IsqType::Q6K));
        assert_eq!(topology.isq("model.embed_tokens.weight", None), None);
        assert!(topology.places_layers() && !topology.is_empty());
        assert!(read("").is_empty() && !read("0: {isq: Q4K}").places_layers());
    }

    /// mistral.rs's own tests of the same.
    #[test]
    fn of_several_entries_the_one_counts_that_counts_in_mistral_rs() {
        let highest_end = read("2-6:\n  isq: Q6K\n0-4:\n  isq: Q4K\n");
        let isq = |topology: &Topology, layer| topology.isq("", Some(layer));
        assert_eq!(isq(&highest_end, 0), Some(IsqType::Q4K));
        assert_eq!(isq(&highest_end, 2), Some(IsqType::Q6K));
        let later = read("0-4:\n  isq: Q4K\n2-4:\n  isq: Q3K\n");
        assert_eq!(isq(&later, 1), Some(IsqType::Q4K));
        assert_eq!(isq(&later, 3), Some(IsqType::Q3K));
        let patterns = read("'/ffn\\./':\n  isq: Q4K\n'/ffn\\.weight$/':\n  isq: Q6K\n0-9:\n  isq: Q8_0\n");
        assert_eq!(
            patterns.isq("model.layers.2.ffn.weight", Some(2)),
            Some(IsqType::Q6K)
        );
        assert_eq!(
            patterns.isq("model.layers.2.ffn.bias", Some(2)),
            Some(IsqType::Q4K)
        );
        assert_eq!(
            patterns.isq("model.layers.2.attn.weight", Some(2)),
            Some(IsqType::Q8_0)
        );
    }

    #[test]
    fn a_bad_entry_is_named() {
        for (text, entry, says) in [
            ("8-4: {isq: Q4K}", "8-4", "above its first"),
            ("4-4: {isq: Q4K}", "4-4", "above its first"),
            ("a-4: {isq: Q4K}", "a-4", "FIRST-END"),
            ("first: {isq: Q4K}", "first", "FIRST-END"),
            ("'/(/': {isq: Q4K}", "/(/", "unclosed group"),
            ("'/x/': {device: cpu}", "/x/", "whole layers"),
            ("0-4: {device: gpu}", "0-4", "cuda[ORDINAL]"),
            ("0-4: {device: 'cuda[x]'}", "0-4", "cuda[x]"),
            ("0-4: {isq: Q3_7}", "0-4", "Q8_0"),
            ("0-4: {isq: Q4K, devise: cpu}", "0-4", "devise"),
            ("0-4: Q4K", "0-4", ""),
        ] {
            let message = text.parse::<Topology>().unwrap_err().to_string();
            assert!(message.contains(&format!("{entry:?}")), "{text}: {message}");
            assert!(message.contains(says), "{text}: {message}");
        }
        assert!("- a".parse::<Topology>().is_err() && "0-4: [".parse::<Topology>().is_err());
    }

    #[test]
    fn an_entry_that_names_nothing_is_told() {
        let names = ["lm_head.weight", "model.layers.3.mlp.down_proj.weight"];
        let check = |text: &str| read(text).check(4, names.into_iter()).map_err(|e| e.to_string());
        assert_eq!(check("0-4: {isq: Q4K}\n'/mlp/': {isq: Q8_0}"), Ok(()));
        let message = check("2-5: {isq: Q4K}").unwrap_err();
        assert!(
            message.contains("\"2-5\"") && message.contains("4 layers"),
            "{message}"
        );
        let message = check("'/ffn/': {isq: Q4K}").unwrap_err();
        assert!(
            message.contains("\"/ffn/\"") && message.contains("no tensor"),
            "{message}"
        );
    }
}
