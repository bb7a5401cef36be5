//! What SentencePiece does to a text before it cuts it: character rewriting and the bookkeeping of spaces.
//!
//! The rules of rewriting come compiled into the model, as a double-array trie (the format of darts-clone)
//! from byte strings to NUL-terminated replacements.

use super::SPACE;
use super::proto::NormalizerSpec;
use super::symbols::{Symbols, char_len};

/// The normaliser of one model.
#[derive(Debug, Clone)]
pub(super) struct Normalizer {
    pub(super) add_dummy_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
    whitespace_as_suffix: bool,
    rules: Option<Rules>,
}

impl Normalizer {
    /// `Err` holds what is wrong with the compiled rules.
    pub(super) fn new(spec: &NormalizerSpec, whitespace_as_suffix: bool) -> Result<Self, String> {
        let rules = spec
            .precompiled_charsmap
            .as_deref()
            .filter(|blob| !blob.is_empty());
        Ok(Self {
            add_dummy_prefix: spec.add_dummy_prefix.unwrap_or(true),
            remove_extra_whitespaces: spec.remove_extra_whitespaces.unwrap_or(true),
            escape_whitespaces: spec.escape_whitespaces.unwrap_or(true),
            whitespace_as_suffix,
            rules: rules.map(Rules::new).transpose()?,
        })
    }

    /// The normalised text. `symbols` pass unchanged; `dummy_prefix` allows the space mark at the start
    /// (or end) if the model wants one.
    pub(super) fn normalize(&self, text: &str, symbols: &Symbols, dummy_prefix: bool) -> Vec<u8> {
        let text = text.as_bytes();
        let mut at = 0;
        if self.remove_extra_whitespaces {
            while at < text.len() {
                let (replacement, n_bytes) = self.rewrite(text, at, symbols);
                if replacement != b" " {
                    break;
                }
                at += n_bytes;
            }
        }
        if at == text.len() {
            return Vec::new();
        }

        let space = if self.escape_whitespaces {
            SPACE.as_bytes()
        } else {
            b" "
        };
        let dummy = dummy_prefix && self.add_dummy_prefix;
        let mut out = Vec::with_capacity(text.len() + text.len() / 2);
        if dummy && !self.whitespace_as_suffix {
            out.extend_from_slice(space);
        }
        let mut after_space = self.remove_extra_whitespaces;
        while at < text.len() {
            let (mut replacement, n_bytes) = self.rewrite(text, at, symbols);
            at += n_bytes;
            if after_space {
                let n_spaces = replacement.iter().take_while(|&&byte| byte == b' ').count();
                replacement = &replacement[n_spaces..];
            }
            for &byte in replacement {
                match byte {
                    b' ' => out.extend_from_slice(space),
                    _ => out.push(byte),
                }
            }
            if !replacement.is_empty() {
                after_space = self.remove_extra_whitespaces && replacement.ends_with(b" ");
            }
        }
        if self.remove_extra_whitespaces {
            while out.ends_with(space) {
                out.truncate(out.len() - space.len());
            }
        }
        if dummy && self.whitespace_as_suffix {
            out.extend_from_slice(space);
        }
        out
    }

    /// What stands for the text at `at`, and how many bytes of the text that covers (at least one).
    fn rewrite<'a>(&'a self, text: &'a [u8], at: usize, symbols: &Symbols) -> (&'a [u8], usize) {
        if let Some(len) = symbols.match_at(text, at) {
            return (&text[at..at + len], len);
        }
        if let Some(found) = self.rules.as_ref().and_then(|rules| rules.longest(&text[at..])) {
            return found;
        }
        let len = char_len(text[at]).min(text.len() - at);
        (&text[at..at + len], len)
    }
}

/// Compiled rewriting rules.
#[derive(Debug, Clone)]
struct Rules {
    /// Units of the double array: label in bits 0–7, has-leaf flag in bit 8, offset above.
    units: Vec<u32>,
    /// Replacements, each ended by NUL.
    replacements: Vec<u8>,
}

impl Rules {
    /// A blob is the trie's length in bytes (u32, little endian), the trie, the replacements.
    fn new(blob: &[u8]) -> Result<Self, String> {
        let Some((length, rest)) = blob.split_first_chunk::<4>() else {
            return Err(format!("has {} bytes, too few for a table", blob.len()));
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || !length.is_multiple_of(4) || length > rest.len() {
            return Err(format!(
                "announces a trie of {length} bytes and has {}",
                rest.len()
            ));
        }
        let (trie, replacements) = rest.split_at(length);
        let units = trie
            .chunks_exact(4)
            .map(|unit| u32::from_le_bytes([unit[0], unit[1], unit[2], unit[3]]));
        Ok(Self {
            units: units.collect(),
            replacements: replacements.to_vec(),
        })
    }

    /// The replacement of the longest rule that matches the front of `text`, and that rule's length.
    fn longest(&self, text: &[u8]) -> Option<(&[u8], usize)> {
        let mut node = offset(*self.units.first()?);
        let mut longest = None;
        for (index, &byte) in text.iter().enumerate() {
            node ^= byte as usize;
            let unit = *self.units.get(node)?;
            if unit & (1 << 31 | 0xFF) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let leaf = *self.units.get(node)?;
                longest = Some((leaf & !(1 << 31), index + 1));
            }
        }
        let (start, length) = longest?;
        let replacement = self.replacements.get(start as usize..)?;
        let end = replacement
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(replacement.len());
        Some((&replacement[..end], length))
    }
}

/// Where a unit's children are, to be combined with the label by exclusive or.
fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize
}
