//! What can be wrong with the weights of a checkpoint.
//!
//! Messages call files by their names: whoever reports one says which folder it is about.

use std::path::{Path, PathBuf};

/// Why weights were refused. Every message names the file and, where there is one, the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// A file cannot be opened or mapped.
    #[error("{file}: {source}", file = name(.file))]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The folder holds neither `model.safetensors` nor an index of shards.
    #[error("neither model.safetensors nor model.safetensors.index.json is there")]
    NoWeights,
    /// The index of shards cannot be understood.
    #[error("{file}: {reason}", file = name(.file))]
    BadIndex {
        /// The index.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The index places a tensor in a file that is not there.
    #[error("{index}: tensor `{tensor}` is said to be in {shard}, which does not exist", index = name(.index))]
    NoSuchShard {
        /// The index.
        index: PathBuf,
        /// The first tensor placed there.
        tensor: String,
        /// The absent file's name.
        shard: String,
    },
    /// The index places a tensor in a file that does not hold it.
    #[error("{index}: tensor `{tensor}` is said to be in {shard}, which does not hold it", index = name(.index))]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The file's name.
        shard: String,
    },
    /// The header of a safetensors file cannot be understood.
    #[error("{file}: not a safetensors file: {reason}", file = name(.file))]
    BadHeader {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file is shorter or longer than its header says.
    #[error("{file}: has {got} bytes, its header describes {expected}: truncated or damaged", file = name(.file))]
    WrongLength {
        /// The file.
        file: PathBuf,
        /// Bytes it has.
        got: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// A tensor is there more than once.
    #[error("tensor `{tensor}` is in {first} and again in {second}", first = name(.first), second = name(.second))]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// A file that holds it.
        first: PathBuf,
        /// The other; the same where one header names it twice.
        second: PathBuf,
    },
    /// A tensor that the model needs is nowhere.
    #[error("tensor `{tensor}` of shape {shape:?} is missing")]
    Missing {
        /// The tensor.
        tensor: String,
        /// The shape it should have.
        shape: Vec<usize>,
    },
    /// A tensor that the model does not know.
    #[error("{file}: tensor `{tensor}` is no part of the model that config.json describes", file = name(.file))]
    Surplus {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor has another shape than config.json implies.
    #[error("{file}: tensor `{tensor}` has shape {got:?}, config.json implies {expected:?}", file = name(.file))]
    Shape {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        got: Vec<usize>,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor is of a type that weights are not read from.
    #[error("{file}: tensor `{tensor}` is {got}, supported are {supported}", file = name(.file))]
    Type {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type, as the header spells it.
        got: String,
        /// Those it may have.
        supported: String,
    },
    /// Of matrices that are kept as one, some are quantised and some are not.
    #[error("tensor `{tensor}` and its neighbour are one matrix: both must be quantised, or neither")]
    Mixed {
        /// The first of them.
        tensor: String,
    },
    /// Quantised tensors do not make a matrix.
    #[error("tensor `{tensor}`: {source}")]
    Quantized {
        /// The matrix.
        tensor: String,
        /// What is wrong with it.
        source: baichuan_kernels::MatrixError,
    },
    /// A weight is NaN or infinite, or a value does not fit the type asked for.
    #[error("{file}: tensor `{tensor}` has {value} at element {element}", file = name(.file))]
    NotFinite {
        /// The file that holds it.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Position in row-major order.
        element: usize,
        /// The value, in the type it would be kept in.
        value: f32,
    },
}

/// A file's name without its folder.
fn name(path: &Path) -> std::path::Display<'_> {
    path.file_name().map_or(path, Path::new).display()
}
