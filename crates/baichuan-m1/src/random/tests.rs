//! Random checkpoints are ones that this crate loads.

use std::fs;

use super::*;
use crate::weights::Weights;

fn written(recipe: &Recipe) -> (tempfile::TempDir, BaichuanConfig) {
    let folder = tempfile::tempdir().unwrap();
    recipe.write(folder.path(), &|_, _| {}).unwrap();
    let config = BaichuanConfig::from_dir(folder.path()).unwrap();
    (folder, config)
}

#[test]
fn every_type_and_number_of_files_opens_as_a_whole_checkpoint() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for shards in [1, 3] {
            let (folder, config) = written(&Recipe {
                dtype,
                shards,
                ..Recipe::new(Preset::Tiny)
            });
            let weights = Weights::open(folder.path(), &config).unwrap();
            let n: usize = crate::layout::all(&config)
                .iter()
                .map(|spec| spec.n_elements())
                .sum();
            assert_eq!(weights.total_bytes(), (n * dtype.bytes()) as u64);
        }
    }
}

#[test]
fn a_seed_fixes_every_byte_and_another_seed_changes_them() {
    let read = |seed| {
        let (folder, _) = written(&Recipe {
            seed,
            ..Recipe::new(Preset::Tiny)
        });
        fs::read(folder.path().join("model.safetensors")).unwrap()
    };
    let (first, again, other) = (read(7), read(7), read(8));
    assert!(first == again);
    assert!(first != other);
}

#[test]
fn weights_have_the_mean_and_deviation_of_their_role() {
    let (folder, config) = written(&Recipe {
        dtype: Dtype::F32,
        ..Recipe::new(Preset::Tiny)
    });
    let weights = Weights::open(folder.path(), &config).unwrap();
    let values: Vec<f32> = weights.get(&crate::layout::embedding(&config)).to_vec().unwrap();
    let n = values.len() as f32;
    let mean = values.iter().sum::<f32>() / n;
    let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
    assert!(
        mean.abs() < 0.01 && (deviation - 0.5).abs() < 0.01,
        "{mean} {deviation}"
    );
}

#[test]
fn window_pattern_and_taps_can_be_chosen() {
    let recipe = Recipe {
        window: Some(5),
        sliding_layers: Some(vec![0]),
        conv_window: Some(3),
        ..Recipe::new(Preset::Tiny)
    };
    let (folder, config) = written(&recipe);
    Weights::open(folder.path(), &config).unwrap();
    assert_eq!(config.layers[0].span, crate::config::Span::Sliding { window: 5 });
    assert!(
        config.layers[1..]
            .iter()
            .all(|layer| layer.span == crate::config::Span::Global)
    );
    assert_eq!(config.conv_window, 3);
}

#[test]
fn progress_ends_at_the_total() {
    let folder = tempfile::tempdir().unwrap();
    let last = std::cell::Cell::new((0, 0));
    Recipe::new(Preset::Tiny)
        .write(folder.path(), &|done, total| last.set((done, total)))
        .unwrap();
    assert!(last.get().0 > 0 && last.get().0 == last.get().1, "{last:?}");
}

#[test]
fn what_describes_no_checkpoint_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |recipe: Recipe| {
        recipe
            .write(folder.path(), &|_, _| {})
            .expect_err("invalid")
            .to_string()
    };
    let tiny = Recipe::new(Preset::Tiny);
    assert!(
        refused(Recipe {
            window: Some(0),
            ..tiny.clone()
        })
        .contains("`sliding_window` is 0")
    );
    assert!(
        refused(Recipe {
            shards: 0,
            ..tiny.clone()
        })
        .contains("0 shards")
    );
    assert!(refused(Recipe { shards: 1000, ..tiny }).contains("1000 shards for 39 tensors"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
