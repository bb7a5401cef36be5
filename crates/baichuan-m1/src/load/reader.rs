//! Reads tensors one by one, and makes matrices of them for the kernels: rounded, quantised, or as they lie on disk.
//!
//! Rows go from the file's mapping to their place in the packed matrix; no tensor is ever in memory twice, and the
//! file's pages are let go of as soon as they were read.

use std::sync::OnceLock;

use baichuan_engine::{Dtype, LoadProgress};
use baichuan_kernels::{Affine4, ElementType, MappedBytes, Matrix, MatrixError, Threads};

use super::Tensors;
use crate::config::Quantization;
use crate::formats::Formats;
use crate::layout::{Role, TensorSpec};
use crate::weights::{Stored, StoredMatrix, Weights, WeightsError, packed_format};

/// Reads the tensors of a checkpoint.
pub(crate) struct Reader<'a> {
    weights: &'a Weights,
    /// Type of plain weights in memory; absent: as on disk.
    dtype: Option<Dtype>,
    /// What plain weights are quantised to.
    formats: &'a Formats,
    threads: &'a Threads,
    progress: &'a (dyn Fn(LoadProgress) + Sync),
    digest: blake3::Hasher,
    done: u64,
    /// Bytes of matrices that are read where they lie in the file.
    mapped_bytes: u64,
}

/// The digest of a packed checkpoint's origin, and the type of its weights.
pub(crate) const SOURCE_DIGEST: &str = "source_digest";
pub(crate) const SOURCE_DTYPE: &str = "source_dtype";

impl<'a> Reader<'a> {
    pub(crate) fn new(
        weights: &'a Weights,
        (dtype, formats): (Option<Dtype>, &'a Formats),
        threads: &'a Threads,
        progress: &'a (dyn Fn(LoadProgress) + Sync),
    ) -> Self {
        Self {
            weights,
            dtype,
            formats,
            threads,
            progress,
            digest: blake3::Hasher::new(),
            done: 0,
            mapped_bytes: 0,
        }
    }

    /// The digest of all tensors read so far, as they are on disk; of a packed checkpoint that of its origin.
    pub(crate) fn digest(&self) -> blake3::Hash {
        let source = self.weights.note(SOURCE_DIGEST);
        let of_source = source.and_then(|digest| blake3::Hash::from_hex(digest).ok());
        of_source.unwrap_or_else(|| self.digest.finalize())
    }

    /// Bytes of weights that stay in the file's mapping.
    pub(crate) fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// Exchanges what was read so far for what was counted elsewhere.
    #[cfg(feature = "cuda")]
    pub(crate) fn swap_counts(&mut self, (digest, done): (&mut blake3::Hasher, &mut u64)) {
        std::mem::swap(&mut self.digest, digest);
        std::mem::swap(&mut self.done, done);
    }

    /// The head, rows of length one, of an embedding that is tied to it and was read already.
    ///
    /// Where the embedding is quantised, so is what it stands for: its rows are divided by their lengths in f32, and
    /// kept in bf16.
    pub(crate) fn tied_head(
        &mut self,
        spec: &TensorSpec,
        embedding: &Matrix,
    ) -> Result<Matrix, WeightsError> {
        if let StoredMatrix::Plain(stored) = self.weights.matrix(spec) {
            let head = self.plain(&spec.as_head(), &[stored], shape(&[spec]))?;
            self.weights.forget(spec);
            return Ok(head);
        }
        let (rows, cols) = shape(&[spec]);
        Ok(Matrix::round(
            self.threads,
            ElementType::Bf16,
            rows,
            cols,
            |row, out| {
                embedding.dequantize_row(row, out);
                let norm = out.iter().map(|x| x * x).sum::<f32>().sqrt() + 1e-7;
                out.iter_mut().for_each(|x| *x /= norm);
            },
        ))
    }

    /// A matrix of plain tensors; the head's rows are divided by their lengths.
    fn plain(
        &self,
        spec: &TensorSpec,
        parts: &[Stored<'_>],
        (rows, cols): (usize, usize),
    ) -> Result<Matrix, WeightsError> {
        let part_rows = rows / parts.len();
        let dtype = self.dtype.unwrap_or(parts[0].dtype());
        let failed = OnceLock::new();
        let source = |row: usize, out: &mut [f32]| {
            let (part, row) = (&parts[row / part_rows], row % part_rows);
            if let Err(error) = part.row(row, dtype, spec.role == Role::Head, out) {
                // One of them is enough to tell.
                let _ = failed.set(error);
            }
        };
        let element = match dtype {
            Dtype::F32 => ElementType::F32,
            Dtype::F16 => ElementType::F16,
            Dtype::Bf16 => ElementType::Bf16,
        };
        let matrix = match self.formats.of(spec) {
            Some(format) => {
                Matrix::quantize(self.threads, packed_format(spec.role, format), rows, cols, source)
            }
            None => Matrix::round(self.threads, element, rows, cols, source),
        };
        failed.into_inner().map_or(Ok(matrix), Err)
    }

    fn packed(
        &mut self,
        spec: &TensorSpec,
        (rows, cols): (usize, usize),
        bytes: &MappedBytes,
    ) -> Result<Matrix, WeightsError> {
        let Some(Quantization::Panels16(format)) = self.weights.quantization() else {
            let tensor = spec.name.clone();
            return Err(WeightsError::Mixed { tensor });
        };
        let format = packed_format(spec.role, format);
        let used = bytes.first(Matrix::packed_bytes(format, rows, cols));
        self.tell(bytes.len());
        Matrix::from_packed(self.threads, format, rows, cols, used).map_err(|source| quantized(spec, source))
    }

    /// Counts tensors as read.
    fn note(&mut self, tensors: &[Stored<'_>]) {
        for stored in tensors {
            stored.hash(&mut self.digest);
            self.tell(stored.bytes().len());
        }
    }

    fn tell(&mut self, bytes: usize) {
        self.done += bytes as u64;
        (self.progress)(LoadProgress {
            stage: if self.formats.quantise() {
                "quantising"
            } else {
                "weights"
            },
            done: self.done,
            total: self.weights.total_bytes(),
        });
    }
}

impl Tensors for Reader<'_> {
    /// f32, whatever the weights are.
    fn vector(&mut self, spec: &TensorSpec) -> Result<Vec<f32>, WeightsError> {
        let stored = self.weights.get(spec);
        let values = stored.to_vec()?;
        self.note(&[stored]);
        Ok(values)
    }

    fn matrix(&mut self, specs: &[&TensorSpec]) -> Result<Matrix, WeightsError> {
        let stored: Vec<_> = specs.iter().map(|spec| self.weights.matrix(spec)).collect();
        let shape = shape(specs);
        let matrix = match &stored[..] {
            [StoredMatrix::Packed(bytes)] => self.packed(specs[0], shape, bytes)?,
            _ => match (all(&stored, plain), all(&stored, affine4)) {
                (Some(plain), _) => {
                    let matrix = self.plain(specs[0], &plain, shape)?;
                    self.note(&plain);
                    matrix
                }
                (_, Some(parts)) => {
                    for numbers in parts.iter().flat_map(|(_, numbers)| numbers) {
                        numbers.to_vec::<f32>()?;
                    }
                    let affine: Vec<_> = parts.iter().map(|(affine, _)| *affine).collect();
                    let matrix = Matrix::from_affine4(self.threads, shape.0, shape.1, &affine);
                    for (affine, [scales, biases]) in &parts {
                        self.digest.update(affine.codes);
                        self.done += affine.codes.len() as u64;
                        self.note(&[*scales, *biases]);
                    }
                    matrix.map_err(|source| quantized(specs[0], source))?
                }
                _ => {
                    let tensor = specs[0].name.clone();
                    return Err(WeightsError::Mixed { tensor });
                }
            },
        };
        if matches!(stored[..], [StoredMatrix::Packed(_)]) {
            self.mapped_bytes += matrix.bytes() as u64;
        } else {
            specs.iter().for_each(|spec| self.weights.forget(spec));
        }
        Ok(matrix)
    }
}

/// Rows of all, columns of each.
fn shape(specs: &[&TensorSpec]) -> (usize, usize) {
    (specs.iter().map(|spec| spec.shape[0]).sum(), specs[0].shape[1])
}

fn all<'a, 'w, T>(
    stored: &'a [StoredMatrix<'w>],
    of: impl Fn(&'a StoredMatrix<'w>) -> Option<T>,
) -> Option<Vec<T>> {
    stored.iter().map(of).collect()
}

fn plain<'w>(stored: &StoredMatrix<'w>) -> Option<Stored<'w>> {
    match stored {
        StoredMatrix::Plain(stored) => Some(*stored),
        _ => None,
    }
}

fn affine4<'w>(stored: &StoredMatrix<'w>) -> Option<(Affine4<'w>, [Stored<'w>; 2])> {
    match *stored {
        StoredMatrix::Affine4 {
            group,
            codes,
            scales,
            biases,
        } => {
            let affine = Affine4 {
                group,
                codes,
                scales: scales.bytes(),
                biases: biases.bytes(),
                element: match scales.dtype() {
                    Dtype::F32 => ElementType::F32,
                    Dtype::F16 => ElementType::F16,
                    Dtype::Bf16 => ElementType::Bf16,
                },
            };
            Some((affine, [scales, biases]))
        }
        _ => None,
    }
}

fn quantized(spec: &TensorSpec, source: MatrixError) -> WeightsError {
    let tensor = spec.name.clone();
    WeightsError::Quantized { tensor, source }
}
