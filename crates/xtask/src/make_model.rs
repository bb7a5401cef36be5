//! Writes a Baichuan-M1 checkpoint with random weights.

use std::path::{Path, PathBuf};

use baichuan_engine::Dtype;
use baichuan_m1::random::{Preset, Recipe};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use indicatif::{ProgressBar, ProgressStyle};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Shapes: tiny has 0.6 million parameters, bench 0.85 billion, full the published 14.5 billion.
    #[arg(long, default_value = "tiny", value_parser = presets())]
    preset: Preset,
    /// Folder to write to; by default target/models/PRESET.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Type of the weights on disk.
    #[arg(long, default_value = "bf16", value_parser = dtypes())]
    dtype: Dtype,
    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Sliding window in tokens, instead of the preset's.
    #[arg(long)]
    window: Option<usize>,
    /// Number of safetensors files.
    #[arg(long, default_value_t = 1)]
    shards: usize,
    /// Indices of the sliding layers, separated by commas, instead of every second one; "none" for none.
    #[arg(long, value_parser = parse_layers)]
    sliding_layers: Option<Layers>,
    /// Taps of the convolution.
    #[arg(long)]
    conv_window: Option<usize>,
    /// Write no weights, for a server that draws them on its GPU (random_weights).
    #[arg(long)]
    no_weights: bool,
}

#[derive(Clone)]
struct Layers(Vec<usize>);

pub(crate) fn presets() -> impl TypedValueParser<Value = Preset> {
    PossibleValuesParser::new(Preset::ALL.map(Preset::name))
        .try_map(|name| Preset::from_name(&name).ok_or("no such preset"))
}

fn dtypes() -> impl TypedValueParser<Value = Dtype> {
    let all = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    PossibleValuesParser::new(all.map(Dtype::name)).try_map(move |name| {
        all.into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or("no such type")
    })
}

fn parse_layers(text: &str) -> Result<Layers, std::num::ParseIntError> {
    if text == "none" {
        return Ok(Layers(Vec::new()));
    }
    text.split(',')
        .map(|index| index.trim().parse())
        .collect::<Result<_, _>>()
        .map(Layers)
}

/// Writes the checkpoint, with a bar on a terminal.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models");
    let out = args.out.unwrap_or_else(|| models.join(args.preset.name()));
    let recipe = Recipe {
        dtype: args.dtype,
        seed: args.seed,
        shards: args.shards,
        window: args.window,
        sliding_layers: args.sliding_layers.map(|layers| layers.0),
        conv_window: args.conv_window,
        ..Recipe::new(args.preset)
    };
    if args.no_weights {
        recipe.write_description(&out)?;
        eprintln!("wrote {} without weights", out.display());
        return Ok(());
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}")?;
    let bar = ProgressBar::new(0).with_style(style);
    recipe.write(&out, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    eprintln!("wrote {}", out.display());
    Ok(())
}
