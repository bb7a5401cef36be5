//! Reads the decoder of a `tokenizer.json` into the form that a stream can run.

use serde_json::Value;

use crate::text::TextError;
use crate::text::detokenizer::{Bytes, HubSpelling, PerToken, Strip};
use crate::text::files::Json;

const SUPPORTED: &str = "ByteLevel, or Metaspace, or a sequence of Replace, Strip, ByteFallback, Fuse, Strip";

/// The spelling that the file's `decoder` asks for.
pub(super) fn spelling(json: &Json) -> Result<HubSpelling, TextError> {
    let Some(decoder) = json.get("decoder") else {
        return Ok(HubSpelling {
            spaced: true,
            ..HubSpelling::default()
        });
    };
    let decoder = json.child("decoder", decoder);
    let mut reader = Reader::default();
    if decoder.str("type")? == Some("Sequence") {
        let Some(Value::Array(steps)) = decoder.get("decoders") else {
            return Err(decoder.error("decoders", "is not a list"));
        };
        for (index, step) in steps.iter().enumerate() {
            reader.step(&decoder.child(&format!("decoders.{index}"), step))?;
        }
    } else {
        reader.step(&decoder)?;
    }
    Ok(reader.spelling)
}

#[derive(Default)]
struct Reader {
    spelling: HubSpelling,
    /// All tokens are one text from here on.
    fused: bool,
}

impl Reader {
    fn step(&mut self, step: &Json) -> Result<(), TextError> {
        let kind = step
            .str("type")?
            .ok_or_else(|| step.error("type", "is missing"))?;
        let one_by_one = !self.fused && self.spelling.bytes == Bytes::Never;
        match kind {
            "ByteLevel" if one_by_one => {
                self.spelling.bytes = Bytes::Level;
                self.fused = true;
            }
            "ByteFallback" if one_by_one => self.spelling.bytes = Bytes::Fallback,
            "Fuse" => self.fused = true,
            "Metaspace" if one_by_one => {
                let replacement = single_char(step, "replacement")?;
                let scheme = step.str("prepend_scheme")?.unwrap_or("always");
                let drop_first = scheme != "never" && step.bool("add_prefix_space")? != Some(false);
                self.spelling.per_token.push(PerToken::Metaspace {
                    replacement,
                    drop_first,
                });
            }
            "Replace" if one_by_one => {
                let pattern = step
                    .get("pattern")
                    .and_then(|pattern| pattern.get("String"))
                    .and_then(Value::as_str);
                let pattern = pattern.filter(|pattern| !pattern.is_empty());
                let pattern = pattern
                    .ok_or_else(|| step.error("pattern", "is not a plain string"))?
                    .to_owned();
                let content = step
                    .str("content")?
                    .ok_or_else(|| step.error("content", "is missing"))?
                    .to_owned();
                self.spelling
                    .per_token
                    .push(PerToken::Replace { pattern, content });
            }
            "Strip" => {
                let count = |key: &str| {
                    let count = step.i64(key)?.unwrap_or(0);
                    usize::try_from(count).map_err(|_| step.error(key, format!("is {count}, not a count")))
                };
                let strip = Strip {
                    content: single_char(step, "content")?,
                    start: count("start")?,
                    stop: count("stop")?,
                };
                if self.fused && self.spelling.strip.is_none() {
                    self.spelling.strip = Some(strip);
                } else if one_by_one {
                    self.spelling.per_token.push(PerToken::Strip(strip));
                } else {
                    return Err(unsupported(step, kind));
                }
            }
            _ => return Err(unsupported(step, kind)),
        }
        Ok(())
    }
}

fn unsupported(step: &Json, kind: &str) -> TextError {
    TextError::Unsupported {
        file: step.file.clone(),
        kind: format!("the decoder {kind} in this place"),
        supported: SUPPORTED,
    }
}

fn single_char(step: &Json, key: &str) -> Result<char, TextError> {
    let text = step.str(key)?.unwrap_or_default();
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => Ok(c),
        _ => Err(step.error(key, format!("is {text:?}, not one character"))),
    }
}
