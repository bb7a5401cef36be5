//! Every bad checkpoint is refused by a message that names the file and the tensor; every good one opens.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use baichuan_engine::Dtype;
use baichuan_m1::config::BaichuanConfig;
use baichuan_m1::layout;
use baichuan_m1::random::{Preset, Recipe};
use baichuan_m1::weights::{Values, Weights, WeightsError};
use half::{bf16, f16};
use safetensors::tensor::{Dtype as Stored, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use serde_json::{Value, json};
use tempfile::TempDir;

type Tensors = BTreeMap<String, (Stored, Vec<usize>, Vec<u8>)>;

fn checkpoint(recipe: Recipe) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    recipe.write(folder.path(), &|_, _| {}).unwrap();
    folder
}

fn tiny() -> TempDir {
    checkpoint(Recipe {
        dtype: Dtype::F32,
        ..Recipe::new(Preset::Tiny)
    })
}

fn open(dir: &Path) -> Result<Weights, WeightsError> {
    Weights::open(dir, &BaichuanConfig::from_dir(dir).unwrap())
}

fn refusal(dir: &Path) -> String {
    open(dir).err().expect("the checkpoint is bad").to_string()
}

/// Rewrites a safetensors file with some of its tensors changed.
fn edit(file: &Path, change: impl FnOnce(&mut Tensors)) {
    let bytes = fs::read(file).unwrap();
    let mut tensors: Tensors = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, t)| {
            (
                name.to_owned(),
                (t.dtype(), t.shape().to_vec(), t.data().to_vec()),
            )
        })
        .collect();
    change(&mut tensors);
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()))
        .collect();
    serialize_to_file(views, None, file).unwrap();
}

/// A safetensors file whose header is as given, with `data_bytes` of zeros behind it.
fn write_raw(file: &Path, header: &str, data_bytes: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    fs::write(file, bytes).unwrap();
}

fn edit_json(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(&mut value);
    fs::write(file, value.to_string()).unwrap();
}

#[test]
fn each_fault_of_a_single_file_is_refused_by_name() {
    type Break = fn(&Path);
    let cases: &[(Break, &[&str])] = &[
        (
            |file| edit(file, |t| drop(t.remove("model.layers.2.mlp.up_proj.weight"))),
            &["tensor `model.layers.2.mlp.up_proj.weight` of shape [256, 128] is missing"],
        ),
        (
            |file| {
                edit(file, |t| {
                    drop(t.insert("model.extra".into(), (Stored::F32, vec![1], vec![0; 4])))
                })
            },
            &["model.safetensors: tensor `model.extra` is no part of the model"],
        ),
        (
            |file| edit(file, |t| t.get_mut("model.norm.weight").unwrap().1 = vec![2, 64]),
            &[
                "model.safetensors: tensor `model.norm.weight` has shape [2, 64]",
                "implies [128]",
            ],
        ),
        (
            |file| {
                edit_json(&file.with_file_name("config.json"), |config| {
                    config["conv_window"] = 3.into()
                });
            },
            &[
                "`model.layers.0.self_attn.conv_k` has shape [1, 1, 1, 1, 2]",
                "implies [1, 1, 1, 1, 3]",
            ],
        ),
        (
            |file| edit(file, |t| t.get_mut("model.norm.weight").unwrap().0 = Stored::I32),
            &["model.safetensors: tensor `model.norm.weight` is I32, supported are F32, F16, BF16"],
        ),
        (
            |file| {
                let bytes = fs::read(file).unwrap();
                fs::write(file, &bytes[..bytes.len() - 1]).unwrap();
            },
            &["model.safetensors: has ", "truncated or damaged"],
        ),
        (
            |file| {
                let bytes = fs::read(file).unwrap();
                fs::write(file, &bytes[..100]).unwrap();
            },
            &["model.safetensors: has 100 bytes", "truncated or damaged"],
        ),
        (
            |file| fs::write(file, b"abc").unwrap(),
            &["model.safetensors: not a safetensors file: 3 bytes"],
        ),
        (
            |file| write_raw(file, "{\"a\":", 0),
            &["model.safetensors: not a safetensors file: EOF"],
        ),
        (
            |file| {
                let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
                write_raw(file, &format!("{{\"a\":{entry},\"a\":{entry}}}"), 4);
            },
            &["tensor `a` is in ", "model.safetensors and again in "],
        ),
        (
            |file| {
                write_raw(
                    file,
                    r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
                    8,
                )
            },
            &["model.safetensors: not a safetensors file"],
        ),
        (
            |file| fs::remove_file(file).unwrap(),
            &["neither model.safetensors nor model.safetensors.index.json"],
        ),
    ];
    for (break_it, expected) in cases {
        let folder = tiny();
        break_it(&folder.path().join("model.safetensors"));
        let message = refusal(folder.path());
        for part in *expected {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}

#[test]
fn each_fault_of_an_index_is_refused_by_name() {
    type Break = fn(&Path);
    const NORM: &str = "model.norm.weight";
    let cases: &[(Break, &[&str])] = &[
        (
            |dir| fs::remove_file(dir.join("model-00002-of-00002.safetensors")).unwrap(),
            &[
                "index.json: tensor `",
                "in model-00002-of-00002.safetensors, which does not exist",
            ],
        ),
        (
            |dir| {
                let index = dir.join("model.safetensors.index.json");
                edit_json(&index, |index| {
                    index["weight_map"][NORM] = "model-00001-of-00002.safetensors".into();
                });
            },
            &[
                "tensor `model.norm.weight`",
                "in model-00001-of-00002.safetensors, which does not hold it",
            ],
        ),
        (
            |dir| {
                let index = dir.join("model.safetensors.index.json");
                edit_json(&index, |index| {
                    index["weight_map"][NORM] = "../elsewhere.safetensors".into()
                });
            },
            &["\"../elsewhere.safetensors\" is not the name of a file in the same folder"],
        ),
        (
            |dir| {
                edit_json(&dir.join("model.safetensors.index.json"), |index| {
                    *index = json!({"weights": 1})
                })
            },
            &["index.json: missing field `weight_map`"],
        ),
        (
            |dir| {
                edit(&dir.join("model-00001-of-00002.safetensors"), |tensors| {
                    tensors.insert(NORM.into(), (Stored::F32, vec![128], vec![0; 512]));
                });
            },
            &[
                "tensor `model.norm.weight` is in ",
                "00001-of-00002.safetensors and again in ",
                "00002-of-00002",
            ],
        ),
    ];
    for (break_it, expected) in cases {
        let folder = checkpoint(Recipe {
            shards: 2,
            ..Recipe::new(Preset::Tiny)
        });
        break_it(folder.path());
        let message = refusal(folder.path());
        for part in *expected {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}

#[test]
fn tables_of_rotary_angles_are_ignored() {
    let folder = tiny();
    edit(&folder.path().join("model.safetensors"), |tensors| {
        let name = "model.layers.0.self_attn.rotary_emb.inv_freq";
        tensors.insert(name.into(), (Stored::F32, vec![32], vec![0; 128]));
    });
    open(folder.path()).unwrap();
}

#[test]
fn a_weight_that_is_not_a_number_is_refused_where_it_stands() {
    let cases: [(Stored, &[u8]); 4] = [
        (Stored::F32, &f32::NAN.to_le_bytes()),
        (Stored::F32, &f32::NEG_INFINITY.to_le_bytes()),
        (Stored::BF16, &bf16::INFINITY.to_le_bytes()),
        (Stored::F16, &f16::NAN.to_le_bytes()),
    ];
    for (dtype, bad) in cases {
        let folder = tiny();
        edit(&folder.path().join("model.safetensors"), |tensors| {
            let (stored, _, data) = tensors.get_mut("model.layers.1.mlp.down_proj.weight").unwrap();
            *stored = dtype;
            *data = vec![0; 128 * 256 * bad.len()];
            data[1000 * bad.len()..][..bad.len()].copy_from_slice(bad);
        });
        let config = BaichuanConfig::from_dir(folder.path()).unwrap();
        let weights = Weights::open(folder.path(), &config).unwrap();
        let down = layout::LayerSpec::new(&config, 1, &config.layers[1]).down;
        let message = weights
            .get(&down)
            .to_vec::<f32>()
            .expect_err("not finite")
            .to_string();
        assert!(
            message.contains("tensor `model.layers.1.mlp.down_proj.weight` has "),
            "{message}"
        );
        assert!(message.ends_with("at element 1000"), "{message}");
    }
}

#[test]
fn a_weight_beyond_the_range_of_the_type_asked_for_is_refused() {
    let folder = tiny();
    edit(&folder.path().join("model.safetensors"), |tensors| {
        tensors.get_mut("model.norm.weight").unwrap().2[..4].copy_from_slice(&1e6_f32.to_le_bytes());
    });
    let config = BaichuanConfig::from_dir(folder.path()).unwrap();
    let weights = Weights::open(folder.path(), &config).unwrap();
    let norm = weights.get(&layout::final_norm(&config));
    assert!(norm.to_vec::<bf16>().is_ok());
    let message = norm.to_vec::<f16>().expect_err("too large for f16").to_string();
    assert!(
        message.contains("`model.norm.weight` has inf at element 0"),
        "{message}"
    );
}

#[test]
fn every_stored_type_reads_as_the_same_numbers() {
    let read = |dtype| {
        let folder = checkpoint(Recipe {
            dtype,
            ..Recipe::new(Preset::Tiny)
        });
        let config = BaichuanConfig::from_dir(folder.path()).unwrap();
        let weights = Weights::open(folder.path(), &config).unwrap();
        weights.get(&layout::embedding(&config)).to_vec::<f32>().unwrap()
    };
    let exact = read(Dtype::F32);
    assert_eq!(
        read(Dtype::Bf16),
        exact
            .iter()
            .map(|&x| bf16::from_f32(x).to_f32())
            .collect::<Vec<_>>()
    );
    assert_eq!(
        read(Dtype::F16),
        exact
            .iter()
            .map(|&x| f16::from_f32(x).to_f32())
            .collect::<Vec<_>>()
    );
}

#[test]
fn rows_of_the_head_are_normalised_and_rounded_to_the_type_on_disk() {
    let folder = checkpoint(Recipe::new(Preset::Tiny));
    let config = BaichuanConfig::from_dir(folder.path()).unwrap();
    let weights = Weights::open(folder.path(), &config).unwrap();
    let stored = weights.get(&layout::head(&config).unwrap());
    let raw: Vec<f32> = stored.to_vec().unwrap();
    let Values::F32(head) = stored.normalised(Dtype::F32).unwrap() else {
        panic!("f32 was asked for")
    };
    for (raw, head) in raw
        .chunks(config.hidden_size)
        .zip(head.chunks(config.hidden_size))
    {
        let norm = raw.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        for (&raw, &head) in raw.iter().zip(head) {
            assert_eq!(bf16::from_f32(head).to_f32(), head);
            assert!((f64::from(raw) / norm - f64::from(head)).abs() <= f64::from(head).abs() / 256.0);
        }
    }
}

/// A tensor that is read row by row is not in memory beside what is made of it.
#[cfg(target_os = "linux")]
#[test]
fn rows_are_let_go_of_once_they_were_read_and_read_as_before_when_they_are_wanted_again() {
    const VOCABULARY: usize = 1 << 17;
    let tiny = checkpoint(Recipe::new(Preset::Tiny));
    let folder = crate::rewrite::rewritten(tiny.path(), |tensors, config| {
        config["vocab_size"] = VOCABULARY.into();
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let (_, shape, bytes) = tensors.get_mut(name).unwrap();
            *bytes = bytes
                .iter()
                .copied()
                .cycle()
                .take(VOCABULARY * shape[1] * 2)
                .collect();
            shape[0] = VOCABULARY;
        }
    });
    let config = BaichuanConfig::from_dir(folder.path()).unwrap();
    let weights = Weights::open(folder.path(), &config).unwrap();
    let stored = weights.get(&layout::embedding(&config));
    let all: Vec<f32> = stored.to_vec().unwrap();
    let in_memory = mapped_kib(folder.path());
    let mut row = vec![0.0; config.hidden_size];
    for (index, expected) in all.chunks(config.hidden_size).enumerate() {
        stored.row(index, Dtype::Bf16, false, &mut row).unwrap();
        assert_eq!(row, expected, "row {index}");
    }
    let kept = mapped_kib(folder.path());
    assert!(
        kept + 8 * 1024 < in_memory && kept < 4 * 1024,
        "{kept} KiB of {in_memory}"
    );
    stored.row(3, Dtype::Bf16, false, &mut row).unwrap();
    assert_eq!(row, all[3 * config.hidden_size..][..config.hidden_size]);
}

/// KiB of the files in `folder` that this process holds in memory.
#[cfg(target_os = "linux")]
fn mapped_kib(folder: &Path) -> usize {
    let maps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = maps.lines();
    let mut kib = 0;
    while let Some(line) = lines.next() {
        if line.contains(folder.to_str().unwrap()) {
            let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
            kib += rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap();
        }
    }
    kib
}
