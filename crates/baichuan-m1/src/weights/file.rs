//! One safetensors file: its header checked, its data mapped.

use std::fmt;
use std::path::{Path, PathBuf};

use baichuan_kernels::MappedFile;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::WeightsError;

/// Bytes before the header, its length as little-endian u64.
const LENGTH_BYTES: usize = 8;

/// A mapped safetensors file whose header fits its length.
pub(super) struct TensorFile {
    path: PathBuf,
    map: MappedFile,
    data_start: usize,
    tensors: Vec<(String, TensorInfo)>,
}

/// A tensor as it lies in its file.
#[derive(Clone, Copy)]
pub(super) struct StoredTensor<'a> {
    pub name: &'a str,
    pub file: &'a Path,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
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
        let mut tensors = match serde_json::from_slice::<Header>(header) {
            Ok(Header::Whole(tensors)) => tensors,
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

    /// The tensor at place `index` of [`Self::names`].
    pub(super) fn tensor(&self, index: usize) -> StoredTensor<'_> {
        let (name, info) = &self.tensors[index];
        let (start, end) = info.data_offsets;
        let bytes = &self.map[self.data_start + start..self.data_start + end];
        StoredTensor {
            name,
            file: &self.path,
            dtype: info.dtype,
            shape: &info.shape,
            bytes,
        }
    }
}

/// A header's entries in their order. Maps of the standard library would keep the last of two equal names.
enum Header {
    Whole(Vec<(String, TensorInfo)>),
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
                let (mut entries, mut duplicate) = (Vec::new(), None);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let info = map.next_value::<TensorInfo>()?;
                    if !names.insert(name.clone()) {
                        duplicate.get_or_insert(name);
                        continue;
                    }
                    entries.push((name, info));
                }
                Ok(duplicate.map_or(Header::Whole(entries), Header::Duplicate))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
