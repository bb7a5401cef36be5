//! The whole model on this machine's processor, through the real server: a child process, real sockets, the client's own
//! `bench`. Beside it, where they are given by path, llama.cpp's `llama-bench` and chatllm.cpp, in turns.
//!
//! Every figure is the median of some rounds, and every ratio the median of the rounds' own: a round measures the read
//! bandwidth before and after it decodes, with nothing else running, so that a share of it is a share of what the
//! machine gave at the time.

mod peers;
pub(crate) mod program;
pub(crate) mod report;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, ensure};
use baichuan_kernels::probe::{Bandwidth, fused_gflop_s};
use baichuan_kernels::{ElementType, GgmlFormat, KvFormat, Matrix, Threads};
use baichuan_m1::config::BaichuanConfig;
use baichuan_m1::layout::{self, Role};

use peers::{Peer, PeerModel};
use program::{Load, Programs};
use report::{Row, median};

/// Memory read to measure the bandwidth: many times what caches hold.
const PROBE_BYTES: usize = 512 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder of the checkpoint, in bf16; made with `make-model --preset bench`.
    #[arg(long, default_value = "target/models/bench")]
    model: PathBuf,
    /// Formats to measure: bf16, Q8_0, Q4_0, Q4K, Q6K.
    #[arg(long, value_delimiter = ',', default_value = "Q8_0,Q4_0,bf16")]
    formats: Vec<Numbers>,
    /// What keys and values are kept as, each with each of the formats: f32, f16, bf16, int8.
    #[arg(long, value_delimiter = ',', default_value = "bf16")]
    cache_dtypes: Vec<CacheNumbers>,
    /// Folder of the programs, built with --release.
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    /// Rounds of which medians are taken.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Streams that decode together.
    #[arg(long, default_value_t = 8)]
    streams: u32,
    /// Long context to decode at, in tokens; 0 for none.
    #[arg(long, default_value_t = 8192)]
    context: u32,
    /// llama.cpp's llama-bench.
    #[arg(long, value_name = "PATH", requires = "llama_model")]
    llama_bench: Option<PathBuf>,
    /// Its model of a format, e.g. Q8_0=llama-q8_0.gguf; `xtask/python/same_shape_llama.py` writes them.
    #[arg(long, value_name = "FORMAT=PATH")]
    llama_model: Vec<PeerModel>,
    /// chatllm.cpp's main program.
    #[arg(long, value_name = "PATH", requires = "chatllm_model")]
    chatllm: Option<PathBuf>,
    /// Its model of a format, e.g. Q8_0=m1-q8_0.bin.
    #[arg(long, value_name = "FORMAT=PATH")]
    chatllm_model: Vec<PeerModel>,
}

/// What weights are kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Numbers {
    Bf16,
    Ggml(GgmlFormat),
}

impl Numbers {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
            Self::Ggml(format) => format.name(),
        }
    }

    /// What the matrices of a role are kept as: of a quantised model the embedding has Q8_0.
    fn of(self, role: Role) -> Self {
        match self {
            Self::Ggml(_) if role == Role::Embedding => Self::Ggml(GgmlFormat::Q8_0),
            numbers => numbers,
        }
    }

    fn bytes(self, rows: usize, cols: usize) -> u64 {
        match self {
            Self::Bf16 => 2 * (rows * cols) as u64,
            Self::Ggml(format) => Matrix::packed_bytes(format, rows, cols) as u64,
        }
    }
}

impl FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let formats = GgmlFormat::ALL.into_iter().map(Self::Ggml).chain([Self::Bf16]);
        let mut named = formats.filter(|numbers| numbers.name().eq_ignore_ascii_case(text));
        named.next().ok_or_else(|| format!("no format is called {text}"))
    }
}

/// What keys and values are kept as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheNumbers {
    /// As in the configuration.
    pub(crate) name: &'static str,
    format: KvFormat,
}

impl FromStr for CacheNumbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, format) = match text {
            "f32" => ("f32", KvFormat::Plain(ElementType::F32)),
            "f16" => ("f16", KvFormat::Plain(ElementType::F16)),
            "bf16" => ("bf16", KvFormat::Plain(ElementType::Bf16)),
            "int8" => ("int8", KvFormat::Int8),
            _ => return Err(format!("keys and values are not kept as {text}")),
        };
        Ok(Self { name, format })
    }
}

/// Measures and prints a table.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = BaichuanConfig::from_dir(&args.model).with_context(|| {
        format!(
            "no checkpoint in {}: cargo run --release -p xtask -- make-model --preset bench",
            args.model.display()
        )
    })?;
    let threads = Threads::physical()?;
    let bandwidth = Bandwidth::new(PROBE_BYTES);
    eprintln!(
        "{} threads, {:?}; {:.1} GB/s read, {:.0} GFLOP/s of f32 fused multiply-adds",
        threads.count(),
        threads.level(),
        bandwidth.read_gb_s(&threads),
        fused_gflop_s(&threads)
    );
    let programs = Programs::new(&args.programs)?;
    let mut rows = Vec::new();
    let each = args
        .formats
        .iter()
        .flat_map(|numbers| args.cache_dtypes.iter().map(move |cache| (*numbers, *cache)));
    for numbers in each {
        let row = measure(args, numbers, &config, &programs, (&threads, &bandwidth))?;
        eprintln!("{}", row.line());
        rows.push(row);
    }
    report::print(&rows)
}

fn measure(
    args: &Args,
    (numbers, cache): (Numbers, CacheNumbers),
    config: &BaichuanConfig,
    programs: &Programs,
    (threads, bandwidth): (&Threads, &Bandwidth),
) -> anyhow::Result<Row> {
    let peers = peers(args, numbers, threads.count());
    let context = args.context.max(2048);
    let server = programs.serve(&args.model, (numbers, Some(cache)), context, args.streams)?;
    let of_weights = |role_counts: fn(Role) -> bool| -> u64 {
        let specs = layout::all(config)
            .into_iter()
            .filter(|spec| role_counts(spec.role));
        specs
            .filter_map(|spec| Some((numbers.of(spec.role), spec.matrix()?)))
            .map(|(numbers, (rows, cols))| numbers.bytes(rows, cols))
            .sum()
    };
    // A token looks up one row of the embedding and reads everything else.
    let token_bytes = of_weights(|role| role != Role::Embedding);
    let name = format!("{}, {} cache", numbers.name(), cache.name);
    let mut row = Row::new(name, token_bytes, &peers);
    row.load_seconds = server.load_seconds;
    let one = Load {
        streams: 1,
        prompt_tokens: 128,
        max_tokens: 64,
    };
    let prompt = Load {
        streams: 1,
        prompt_tokens: 512,
        max_tokens: 1,
    };
    let several = Load {
        streams: args.streams,
        prompt_tokens: 32,
        max_tokens: 48,
    };
    let long = Load {
        streams: 1,
        prompt_tokens: args.context,
        max_tokens: 33,
    };
    for _ in 0..args.rounds {
        let before = bandwidth.read_gb_s(threads);
        row.decode.push(1e3 / server.load(&one)?.between_tokens_ms);
        row.bandwidth.push((before + bandwidth.read_gb_s(threads)) / 2.0);
        for (peer, figures) in peers.iter().zip(&mut row.peers) {
            figures.decode.push(peer.decode_tok_s()?);
        }
        if args.streams > 1 {
            let tok_s = f64::from(args.streams) * 1e3 / server.load(&several)?.between_tokens_ms;
            row.streams.push(tok_s);
        }
        row.prefill.push(512e3 / server.load(&prompt)?.first_token_ms);
        for (peer, figures) in peers.iter().zip(&mut row.peers) {
            figures.prefill.push(peer.prefill_tok_s(512)?);
        }
        if args.context > 0 {
            row.long_decode.push(1e3 / server.load(&long)?.between_tokens_ms);
        }
    }
    row.peak_bytes = server.peak_bytes()?;
    row.weight_bytes = of_weights(|_| true);
    row.cache_bytes = cache_bytes(config, cache.format, program::cache_tokens(context, args.streams));
    ensure!(median(&row.decode) > 0.0, "nothing was decoded");
    Ok(row)
}

/// Keys and values of so many tokens.
fn cache_bytes(config: &BaichuanConfig, format: KvFormat, tokens: u32) -> u64 {
    let of_layer = config
        .layers
        .iter()
        .map(|layer| 2 * layer.n_kv_heads * format.row_bytes(layer.head_dim));
    of_layer.map(|bytes| bytes as u64 * u64::from(tokens)).sum()
}

fn peers(args: &Args, numbers: Numbers, threads: usize) -> Vec<Peer> {
    let of = |program: &Option<PathBuf>, models: &[PeerModel], make: fn(PathBuf, PathBuf, usize) -> Peer| {
        let program = program.clone()?;
        let model = models.iter().find(|model| model.numbers == numbers)?;
        Some(make(absolute(&program), absolute(&model.path), threads))
    };
    [
        of(&args.llama_bench, &args.llama_model, Peer::llama),
        of(&args.chatllm, &args.chatllm_model, Peer::chatllm),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
