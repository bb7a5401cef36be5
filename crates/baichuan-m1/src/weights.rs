//! The weights on disk: found, checked against the configuration, and handed out tensor by tensor.
//!
//! A checkpoint is one `model.safetensors` or several shards with an index. Everything about names, shapes and
//! types is checked by [`Weights::open`], before the first number is read; each number is checked as it is
//! converted. What `quantize` packed was checked then and is read where it lies. Nothing is kept in memory but the files'
//! mappings.

mod convert;
mod error;
mod file;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use baichuan_kernels::{GgmlFormat, MappedBytes, Matrix};
use safetensors::Dtype;
use serde::Deserialize;

use crate::config::{BaichuanConfig, Quantization};
use crate::layout::{self, Role, TensorSpec};

pub use convert::{Element, Stored, Values};
pub use error::WeightsError;
use file::{StoredTensor, TensorFile};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// The weights of a checkpoint, complete and of the right shapes.
pub struct Weights {
    files: Vec<TensorFile>,
    /// File and tensor number by name.
    places: HashMap<String, (usize, usize)>,
    total_bytes: u64,
    quantization: Option<Quantization>,
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
        let expected = weights.expected(config);
        weights.check(&expected)?;
        weights.quantization = config.quantization;
        Ok(weights)
    }

    /// The tensors that the configuration asks for, in the form in which they seem to be there.
    fn expected(&self, config: &BaichuanConfig) -> Vec<Expected> {
        let of_spec = |spec: TensorSpec| -> Vec<Expected> {
            match (config.quantization, spec.matrix()) {
                (Some(Quantization::Panels16(format)), Some(shape)) => {
                    let format = packed_format(spec.role, format);
                    vec![Expected::packed(spec, shape, format)]
                }
                (Some(Quantization::Affine4), Some(shape)) => {
                    match self.stored(&sibling(&spec.name, "scales")) {
                        Some(scales) => Expected::affine4(&spec, shape, &scales).into(),
                        None => vec![Expected::plain(spec)],
                    }
                }
                _ => vec![Expected::plain(spec)],
            }
        };
        let specs = match config.quantization {
            Some(Quantization::Panels16(_)) => layout::packed(config),
            Some(Quantization::Affine4) | None => layout::all(config),
        };
        specs.into_iter().flat_map(of_spec).collect()
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
            quantization: None,
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
    fn check(&mut self, expected: &[Expected]) -> Result<(), WeightsError> {
        let by_name: HashMap<&str, &Expected> = expected
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor))
            .collect();
        for stored in self.files.iter().flat_map(TensorFile::tensors) {
            let (file, tensor) = (stored.file.to_owned(), stored.name.to_owned());
            let Some(expected) = by_name.get(stored.name) else {
                if stored.name.ends_with(".rotary_emb.inv_freq") {
                    continue;
                }
                return Err(WeightsError::Surplus { file, tensor });
            };
            if stored.shape != expected.shape {
                let (got, expected) = (stored.shape.to_vec(), expected.shape.clone());
                return Err(WeightsError::Shape {
                    file,
                    tensor,
                    got,
                    expected,
                });
            }
            if !expected.types.contains(&stored.dtype) {
                return Err(WeightsError::Type {
                    file,
                    tensor,
                    got: stored.dtype.to_string(),
                    supported: expected
                        .types
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(", "),
                });
            }
            self.total_bytes += stored.bytes.len() as u64;
        }
        match expected
            .iter()
            .find(|tensor| !self.places.contains_key(&tensor.name))
        {
            None => Ok(()),
            Some(Expected { name, shape, .. }) => {
                let (tensor, shape) = (name.clone(), shape.clone());
                Err(WeightsError::Missing { tensor, shape })
            }
        }
    }

    fn stored(&self, name: &str) -> Option<StoredTensor<'_>> {
        let &(file, index) = self.places.get(name)?;
        Some(self.files[file].tensor(index))
    }

    /// A plain tensor of the configuration that these weights were opened with.
    pub fn get(&self, spec: &TensorSpec) -> Stored<'_> {
        let (file, index) = self.places[&spec.name];
        Stored::new(self.files[file].tensor(index))
    }

    /// A matrix of the configuration that these weights were opened with, however it lies on disk.
    pub fn matrix(&self, spec: &TensorSpec) -> StoredMatrix<'_> {
        let (file, index) = self.places[&spec.name];
        let stored = self.files[file].tensor(index);
        match stored.dtype {
            Dtype::U8 => StoredMatrix::Packed(self.files[file].bytes(index)),
            Dtype::U32 => {
                let cols = spec.shape.last().copied().unwrap_or_default();
                let part = |suffix| self.stored(&sibling(&spec.name, suffix)).map(Stored::new);
                match (part("scales"), part("biases")) {
                    (Some(scales), Some(biases)) => StoredMatrix::Affine4 {
                        group: cols / scales.width().max(1),
                        codes: stored.bytes,
                        scales,
                        biases,
                    },
                    // Checked when these weights were opened.
                    _ => StoredMatrix::Plain(Stored::new(stored)),
                }
            }
            _ => StoredMatrix::Plain(Stored::new(stored)),
        }
    }

    /// Lets go of the memory that a tensor read from disk takes.
    pub fn forget(&self, spec: &TensorSpec) {
        for name in std::iter::once(spec.name.clone())
            .chain(["scales", "biases"].map(|suffix| sibling(&spec.name, suffix)))
        {
            if let Some(&(file, index)) = self.places.get(&name) {
                self.files[file].forget(index);
            }
        }
    }

    /// What the writer of the files noted under this key.
    pub fn note(&self, key: &str) -> Option<&str> {
        self.files.iter().find_map(|file| file.note(key))
    }

    /// How matrices lie on disk, as the configuration says.
    pub(crate) fn quantization(&self) -> Option<Quantization> {
        self.quantization
    }

    /// Bytes of all tensors on disk.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }
}

/// A matrix as it lies on disk.
pub enum StoredMatrix<'a> {
    /// Numbers.
    Plain(Stored<'a>),
    /// MLX's groups of four-bit codes.
    Affine4 {
        /// Columns that share a scale and a bias.
        group: usize,
        /// `[rows, cols / 8]` of u32.
        codes: &'a [u8],
        /// `[rows, cols / group]`.
        scales: Stored<'a>,
        /// `[rows, cols / group]`.
        biases: Stored<'a>,
    },
    /// Packed for the kernels, filled up to whole lines of the cache.
    Packed(MappedBytes),
}

/// A tensor that must be there.
struct Expected {
    name: String,
    shape: Vec<usize>,
    types: &'static [Dtype],
}

const NUMBERS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16];

impl Expected {
    fn plain(spec: TensorSpec) -> Self {
        Self {
            name: spec.name,
            shape: spec.shape,
            types: NUMBERS,
        }
    }

    /// Of MLX's three tensors, if the first has the siblings `scales` of which this is the shape.
    fn affine4(spec: &TensorSpec, (rows, cols): (usize, usize), scales: &StoredTensor<'_>) -> [Self; 3] {
        // The group that the number of scales implies, else one that makes a shape to be told of.
        let implied = scales.shape.last().filter(|&&n| n > 0).map(|n| cols / n);
        let group = implied
            .filter(|group| [32, 64, 128].contains(group))
            .unwrap_or(64);
        let tensor = |name, cols, types| Self {
            name,
            shape: vec![rows, cols],
            types,
        };
        let same = NUMBERS.iter().position(|dtype| *dtype == scales.dtype);
        let numbers = same.map_or(NUMBERS, |i| &NUMBERS[i..=i]);
        [
            tensor(spec.name.clone(), cols / 8, &[Dtype::U32]),
            tensor(sibling(&spec.name, "scales"), cols / group, numbers),
            tensor(sibling(&spec.name, "biases"), cols / group, numbers),
        ]
    }

    fn packed(spec: TensorSpec, (rows, cols): (usize, usize), format: GgmlFormat) -> Self {
        Self {
            name: spec.name,
            shape: vec![packed_len(format, rows, cols)],
            types: &[Dtype::U8],
        }
    }
}

/// Bytes that a packed matrix takes in a file.
pub(crate) fn packed_len(format: GgmlFormat, rows: usize, cols: usize) -> usize {
    Matrix::packed_bytes(format, rows, cols).next_multiple_of(Matrix::PACKED_ALIGN)
}

/// The format of a matrix in a packed checkpoint of `format`.
pub(crate) fn packed_format(role: Role, format: GgmlFormat) -> GgmlFormat {
    match role {
        Role::Embedding => Quantization::embedding(format),
        _ => format,
    }
}

/// `….scales` of `….weight`.
fn sibling(name: &str, suffix: &str) -> String {
    format!("{}.{suffix}", name.strip_suffix(".weight").unwrap_or(name))
}
