//! Writes a checkpoint whose matrices are quantised and packed for the kernels, which then read them where they lie: it
//! loads as fast as its pages come in.
//!
//! One tensor is in memory at a time. Files are where a checkpoint has them only when all are whole.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use baichuan_engine::{Checkpoint, LoadError, LoadProgress};
use baichuan_kernels::{GgmlFormat, Matrix, Threads};
use serde_json::{Map, Value, json};

use crate::config::{BaichuanConfig, Quantization};
use crate::formats::Formats;
use crate::layout::{self, LayerSpec, TensorSpec};
use crate::load::reader::{Reader, SOURCE_DIGEST, SOURCE_DTYPE};
use crate::load::{Tensors, on_disk};
use crate::weights::{Weights, WeightsError, packed_format, packed_len};

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";

/// What weights are called in the hub's layout, ours aside: not copied.
const WEIGHT_FILES: [&str; 6] = ["safetensors", "bin", "gguf", "pt", "pth", "h5"];

/// Quantises the matrices of `checkpoint` to `format`, the embedding to [`Quantization::embedding`], and writes them to
/// the folder `out` beside copies of the checkpoint's other files.
pub(crate) fn quantize(
    checkpoint: &Checkpoint,
    out: &Path,
    format: GgmlFormat,
    threads: &Threads,
    progress: &(dyn Fn(LoadProgress) + Sync),
) -> Result<(), LoadError> {
    let dir = checkpoint.dir();
    let invalid = |message: String| LoadError::Invalid {
        path: dir.to_owned(),
        message,
    };
    let config = BaichuanConfig::from_dir(dir).map_err(|error| invalid(error.to_string()))?;
    if config.quantization.is_some() {
        return Err(invalid("its weights are quantised already".into()));
    }
    let weights = Weights::open(dir, &config).map_err(|error| invalid(error.to_string()))?;
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| LoadError::Io { path, source }
    };
    fs::create_dir_all(out).map_err(at(out))?;
    let mut there = fs::read_dir(out).map_err(at(out))?;
    if there.next().is_some() {
        return Err(LoadError::Invalid {
            path: out.to_owned(),
            message: "the folder to write to is not empty".into(),
        });
    }
    // Goes with all that is in it when this function fails: the folder is then as empty as it was.
    let unfinished = tempfile::Builder::new()
        .prefix(".unfinished-")
        .tempdir_in(out)
        .map_err(at(out))?;
    let written = unfinished.path().join(WEIGHTS);
    let mut file = PackedFile::create(&written, &config, format).map_err(at(&written))?;
    threads.install(|| -> Result<(), LoadError> {
        let formats = Formats::uniform(Some(format));
        let mut reader = Reader::new(&weights, (None, &formats), threads, progress);
        let mut outcome = Ok(());
        let read = each_tensor(&mut reader, &config, |spec, bytes| {
            outcome = file.write(spec, bytes);
            outcome.is_ok()
        });
        read.map_err(|error| invalid(error.to_string()))?;
        outcome.map_err(at(&written))?;
        let dtype = on_disk(&weights, &config);
        let digest = reader.digest().to_hex();
        file.finish(&[(SOURCE_DIGEST, &digest), (SOURCE_DTYPE, dtype.name())])
            .map_err(at(&written))
    })?;
    let mut names = vec![OsString::from(WEIGHTS)];
    for file in others(dir).map_err(at(dir))? {
        let name = file.file_name().unwrap_or_default();
        let to = unfinished.path().join(name);
        fs::copy(&file, &to).map_err(at(&to))?;
        names.push(name.to_owned());
    }
    let mut config_json = checkpoint.config().clone();
    config_json["quantization_config"] = Quantization::panels16(format);
    let name = unfinished.path().join(CONFIG);
    fs::write(&name, format!("{config_json:#}\n")).map_err(at(&name))?;
    // The last, so that a folder without it is no checkpoint.
    names.push(CONFIG.into());
    for name in names {
        let to = out.join(&name);
        fs::rename(unfinished.path().join(name), &to).map_err(at(&to))?;
    }
    Ok(())
}

/// The files of a checkpoint that are neither weights nor its config.json.
fn others(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut others = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let is_weights = path
            .extension()
            .is_some_and(|ext| WEIGHT_FILES.iter().any(|weights| ext == *weights));
        let is_left_out = is_weights || name == CONFIG || name.ends_with(".index.json");
        if path.is_file() && !is_left_out {
            others.push(path);
        }
    }
    Ok(others)
}

/// Reads every tensor, in the order in which a model's digest is taken, and hands out the bytes of each; ends early
/// where `write` says no.
fn each_tensor(
    reader: &mut Reader<'_>,
    config: &BaichuanConfig,
    mut write: impl FnMut(&TensorSpec, &[u8]) -> bool,
) -> Result<(), WeightsError> {
    let mut matrix = |spec: &TensorSpec, matrix: &Matrix| {
        // Whatever is quantised here has such bytes.
        write(spec, matrix.packed().unwrap_or_default())
    };
    let le_bytes = |values: Vec<f32>| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let embedding_spec = layout::embedding(config);
    let embedding = reader.matrix(&[&embedding_spec])?;
    let mut goes_on = matrix(&embedding_spec, &embedding);
    let mut vectors = Vec::new();
    for (index, shape) in config.layers.iter().enumerate() {
        let spec = LayerSpec::new(config, index, shape);
        let mut vector = |reader: &mut Reader<'_>, spec: &TensorSpec| {
            vectors.push((spec.clone(), le_bytes(reader.vector(spec)?)));
            Ok(())
        };
        vector(reader, &spec.input_norm)?;
        let pack = reader.matrix(&[&spec.pack])?;
        goes_on = goes_on && matrix(&spec.pack, &pack);
        drop(pack);
        vector(reader, &spec.taps_k)?;
        vector(reader, &spec.taps_v)?;
        let out = reader.matrix(&[&spec.out])?;
        goes_on = goes_on && matrix(&spec.out, &out);
        drop(out);
        vector(reader, &spec.post_norm)?;
        let gate_up = reader.matrix(&[&spec.gate, &spec.up])?;
        goes_on = goes_on && matrix(&spec.gate_up(), &gate_up);
        drop(gate_up);
        let down = reader.matrix(&[&spec.down])?;
        goes_on = goes_on && matrix(&spec.down, &down);
        if !goes_on {
            return Ok(());
        }
    }
    let norm = layout::final_norm(config);
    vectors.push((norm.clone(), le_bytes(reader.vector(&norm)?)));
    let head = match layout::head(config) {
        Some(head) => reader.matrix(&[&head])?,
        None => reader.tied_head(&embedding_spec, &embedding)?,
    };
    goes_on = goes_on && matrix(&layout::own_head(config), &head);
    for (spec, bytes) in vectors {
        goes_on = goes_on && write(&spec, &bytes);
    }
    Ok(())
}

/// A safetensors file of the tensors of [`layout::packed`], written in any order.
struct PackedFile {
    file: File,
    header: Map<String, Value>,
    /// Where each tensor begins in the file.
    places: BTreeMap<String, u64>,
    header_len: usize,
}

impl PackedFile {
    fn create(path: &Path, config: &BaichuanConfig, format: GgmlFormat) -> io::Result<Self> {
        let mut header = Map::new();
        let mut offsets = BTreeMap::new();
        let mut end = 0;
        for spec in layout::packed(config) {
            let (dtype, shape, bytes) = match spec.matrix() {
                Some((rows, cols)) => {
                    let bytes = packed_len(packed_format(spec.role, format), rows, cols);
                    ("U8", vec![bytes], bytes)
                }
                None => ("F32", spec.shape.clone(), spec.n_elements() * size_of::<f32>()),
            };
            header.insert(
                spec.name.clone(),
                json!({ "dtype": dtype, "shape": shape, "data_offsets": [end, end + bytes] }),
            );
            offsets.insert(spec.name, end as u64);
            end += bytes;
        }
        // The notes are known when all is written: as long as they may become.
        header.insert(
            "__metadata__".into(),
            json!({ SOURCE_DIGEST: "0".repeat(64), SOURCE_DTYPE: "bf16" }),
        );
        let text = Value::Object(header.clone()).to_string();
        // Data begins at a whole line of the cache, and so do matrices, which come first.
        let header_len = (8 + text.len()).next_multiple_of(Matrix::PACKED_ALIGN) - 8;
        let file = File::create(path)?;
        file.set_len(8 + header_len as u64 + end as u64)?;
        let places = offsets
            .into_iter()
            .map(|(name, offset)| (name, 8 + header_len as u64 + offset))
            .collect();
        Ok(Self {
            file,
            header,
            places,
            header_len,
        })
    }

    fn write(&mut self, spec: &TensorSpec, bytes: &[u8]) -> io::Result<()> {
        let place = self.places.get(&spec.name).copied();
        let place = place.ok_or_else(|| io::Error::other(format!("no place for tensor {}", spec.name)))?;
        self.file.seek(SeekFrom::Start(place))?;
        self.file.write_all(bytes)
    }

    fn finish(mut self, notes: &[(&str, &str)]) -> io::Result<()> {
        let notes: Map<String, Value> = notes
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
            .collect();
        self.header.insert("__metadata__".into(), Value::Object(notes));
        let text = Value::Object(self.header).to_string();
        let padded = format!("{text:<width$}", width = self.header_len);
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&(self.header_len as u64).to_le_bytes())?;
        self.file.write_all(padded.as_bytes())?;
        self.file.sync_all()
    }
}
