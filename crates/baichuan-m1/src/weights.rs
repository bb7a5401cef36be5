//! The weights on disk: found, checked against the configuration, and handed out tensor by tensor.
//!
//! A checkpoint is one `model.safetensors` or several shards with an index. Everything about names, shapes and
//! types is checked by [`Weights::open`], before the first number is read; each number is checked as it is
//! converted. Nothing is kept in memory but the files' mappings.

mod convert;
mod error;
mod file;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde::Deserialize;

use crate::config::BaichuanConfig;
use crate::layout::{self, TensorSpec};

pub use convert::{Element, Stored, Values};
pub use error::WeightsError;
use file::TensorFile;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The weights of a checkpoint, complete and of the right shapes.
pub struct Weights {
    files: Vec<TensorFile>,
    /// File and tensor number by name.
    places: HashMap<String, (usize, usize)>,
    total_bytes: u64,
}

/// The shard index of the hub's layout.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Weights {
    /// Opens the checkpoint in the folder `dir` and checks that it holds the tensors of `config`, no less and no
    /// more. Tables of rotary angles (`*.rotary_emb.inv_freq`), which some exporters add, are ignored.
    pub fn open(dir: &Path, config: &BaichuanConfig) -> Result<Self, WeightsError> {
        let mut weights = if dir.join(SINGLE).exists() {
            Self::of_files(vec![dir.join(SINGLE)])?
        } else if dir.join(INDEX).exists() {
            Self::of_index(dir)?
        } else {
            return Err(WeightsError::NoWeights);
        };
        weights.check(&layout::all(config))?;
        Ok(weights)
    }

    fn of_files(paths: Vec<PathBuf>) -> Result<Self, WeightsError> {
        let files = paths
            .into_iter()
            .map(TensorFile::open)
            .collect::<Result<Vec<_>, _>>()?;
        let mut places: HashMap<String, (usize, usize)> = HashMap::new();
        for (number, file) in files.iter().enumerate() {
            for (index, name) in file.names().enumerate() {
                if let Some((first, _)) = places.insert(name.to_owned(), (number, index)) {
                    let (first, second) = (files[first].path().to_owned(), file.path().to_owned());
                    return Err(WeightsError::Duplicate {
                        tensor: name.to_owned(),
                        first,
                        second,
                    });
                }
            }
        }
        Ok(Self {
            files,
            places,
            total_bytes: 0,
        })
    }

    fn of_index(dir: &Path) -> Result<Self, WeightsError> {
        let index = dir.join(INDEX);
        let text = std::fs::read(&index).map_err(|source| WeightsError::Io {
            file: index.clone(),
            source,
        })?;
        let bad = |reason| WeightsError::BadIndex {
            file: index.clone(),
            reason,
        };
        let Index { weight_map } = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        let mut entries: Vec<_> = weight_map.into_iter().collect();
        entries.sort();
        let mut shards: Vec<&str> = entries.iter().map(|(_, shard)| shard.as_str()).collect();
        shards.sort_unstable();
        shards.dedup();
        if let Some(shard) = shards
            .iter()
            .find(|shard| Path::new(shard).file_name() != Some(shard.as_ref()))
        {
            return Err(bad(format!(
                "{shard:?} is not the name of a file in the same folder"
            )));
        }
        for (tensor, shard) in &entries {
            if !dir.join(shard).is_file() {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                return Err(WeightsError::NoSuchShard { index, tensor, shard });
            }
        }
        let weights = Self::of_files(shards.iter().map(|shard| dir.join(shard)).collect())?;
        for (tensor, shard) in &entries {
            let holder = weights
                .places
                .get(tensor)
                .map(|&(file, _)| weights.files[file].path());
            if holder != Some(dir.join(shard).as_path()) {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                return Err(WeightsError::NotInShard { index, tensor, shard });
            }
        }
        Ok(weights)
    }

    /// Holds what is there against what must be there, and counts its bytes.
    fn check(&mut self, specs: &[TensorSpec]) -> Result<(), WeightsError> {
        let expected: HashMap<&str, &TensorSpec> =
            specs.iter().map(|spec| (spec.name.as_str(), spec)).collect();
        for stored in self.files.iter().flat_map(TensorFile::tensors) {
            let (file, tensor) = (stored.file.to_owned(), stored.name.to_owned());
            let Some(spec) = expected.get(stored.name) else {
                if stored.name.ends_with(".rotary_emb.inv_freq") {
                    continue;
                }
                return Err(WeightsError::Surplus { file, tensor });
            };
            if stored.shape != spec.shape {
                let (got, expected) = (stored.shape.to_vec(), spec.shape.clone());
                return Err(WeightsError::Shape {
                    file,
                    tensor,
                    got,
                    expected,
                });
            }
            if !matches!(stored.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
                return Err(WeightsError::Type {
                    file,
                    tensor,
                    got: stored.dtype.to_string(),
                });
            }
            self.total_bytes += stored.bytes.len() as u64;
        }
        match specs.iter().find(|spec| !self.places.contains_key(&spec.name)) {
            None => Ok(()),
            Some(TensorSpec { name, shape, .. }) => {
                let (tensor, shape) = (name.clone(), shape.clone());
                Err(WeightsError::Missing { tensor, shape })
            }
        }
    }

    /// A tensor of the configuration that these weights were opened with.
    pub fn get(&self, spec: &TensorSpec) -> Stored<'_> {
        let (file, index) = self.places[&spec.name];
        Stored::new(self.files[file].tensor(index))
    }

    /// Bytes of all tensors on disk.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }
}
