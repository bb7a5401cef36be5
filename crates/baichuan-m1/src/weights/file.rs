//! One safetensors file: its header checked, its data mapped.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use baichuan_kernels::{MappedBytes, MappedFile};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::WeightsError;

/// Bytes before the header, its length as little-endian u64.
const LENGTH_BYTES: usize = 8;

/// A mapped safetensors file whose header fits its length.
pub(super) struct TensorFile {
    path: PathBuf,
    map: MappedFile,
    data_start: usize,
    tensors: Vec<(String, TensorInfo)>,
    notes: HashMap<String, String>,
}

/// A tensor as it lies in its file.
#[derive(Clone, Copy)]
pub(super) struct StoredTensor<'a> {
    pub name: &'a str,
    pub file: &'a Path,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
    map: &'a MappedFile,
    start: usize,
}

impl StoredTensor<'_> {
    /// Lets go of the memory that some of the tensor's bytes take.
    pub(super) fn forget(&self, bytes: Range<usize>) {
        self.map.forget(self.start + bytes.start..self.start + bytes.end);
    }
}

impl TensorFile {
    pub(super) fn open(path: PathBuf) -> Result<Self, WeightsError> {
        let map = match MappedFile::open(&path) {
            Ok(map) => map,
            Err(source) => return Err(WeightsError::Io { file: path, source }),
        };
        let bad = |reason: String| WeightsError::BadHeader {
            file: path.clone(),
            reason,
        };
        let (length, rest) = map.split_first_chunk::<LENGTH_BYTES>().ok_or_else(|| {
            bad(format!(
                "{} bytes are too few for the length of a header",
                map.len()
            ))
        })?;
        let length = u64::from_le_bytes(*length);
        let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let header = header.ok_or(WeightsError::WrongLength {
            file: path.clone(),
            got: map.len() as u64,
            expected: length.saturating_add(LENGTH_BYTES as u64),
        })?;
        let data_start = LENGTH_BYTES + header.len();
        let (mut tensors, notes) = match serde_json::from_slice::<Header>(header) {
            Ok(Header::Whole(tensors, notes)) => (tensors, notes),
            Ok(Header::Duplicate(tensor)) => {
                return Err(WeightsError::Duplicate {
                    tensor,
                    first: path.clone(),
                    second: path,
                });
            }
            Err(error) => return Err(bad(error.to_string())),
        };
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let metadata = Metadata::new(None, tensors.clone()).map_err(|error| bad(error.to_string()))?;
        let expected = (data_start as u64).saturating_add(metadata.data_len() as u64);
        let got = map.len() as u64;
        if got != expected {
            return Err(WeightsError::WrongLength {
                file: path,
                got,
                expected,
            });
        }
        Ok(Self {
            path,
            map,
            data_start,
            tensors,
            notes,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Names in the order in which the tensors lie.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// Tensors in the order in which they lie.
    pub(super) fn tensors(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        (0..self.tensors.len()).map(|index| self.tensor(index))
    }

    /// What the writer noted under this key.
    pub(super) fn note(&self, key: &str) -> Option<&str> {
        self.notes.get(key).map(String::as_str)
    }

    fn range(&self, index: usize) -> Range<usize> {
        let (start, end) = self.tensors[index].1.data_offsets;
        self.data_start + start..self.data_start + end
    }

    /// The bytes of a tensor, for as long as anybody needs them.
    pub(super) fn bytes(&self, index: usize) -> MappedBytes {
        self.map.slice(self.range(index))
    }

    /// Lets go of the memory that a tensor takes.
    pub(super) fn forget(&self, index: usize) {
        self.map.forget(self.range(index));
    }

    /// The tensor at place `index` of [`Self::names`].
    pub(super) fn tensor(&self, index: usize) -> StoredTensor<'_> {
        let (name, info) = &self.tensors[index];
        let range = self.range(index);
        StoredTensor {
            name,
            file: &self.path,
            dtype: info.dtype,
            shape: &info.shape,
            start: range.start,
            bytes: &self.map[range],
            map: &self.map,
        }
    }
}

/// A header's entries in their order. Maps of the standard library would keep the last of two equal names.
enum Header {
    Whole(Vec<(String, TensorInfo)>, HashMap<String, String>),
    Duplicate(String),
}

impl<'de> serde::Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensor names to their type, shape and place")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut names = std::collections::HashSet::new();
                let (mut entries, mut duplicate, mut notes) = (Vec::new(), None, HashMap::new());
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        // Text by text; anything else there is no business of ours.
                        if let Value::Object(values) = map.next_value()? {
                            let texts = values.into_iter().filter_map(|(key, value)| match value {
                                Value::String(text) => Some((key, text)),
                                _ => None,
                            });
                            notes.extend(texts);
                        }
                        continue;
                    }
                    let info = map.next_value::<TensorInfo>()?;
                    if !names.insert(name.clone()) {
                        duplicate.get_or_insert(name);
                        continue;
                    }
                    entries.push((name, info));
                }
                Ok(match duplicate {
                    Some(tensor) => Header::Duplicate(tensor),
                    None => Header::Whole(entries, notes),
                })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
