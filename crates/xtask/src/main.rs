//! The project's chores: `cargo xtask --help`.

use clap::{Parser, Subcommand};

mod bench_cpu;
mod bench_families;
#[cfg(feature = "cuda")]
mod bench_gpu;
mod codegen;
mod golden;
mod make_model;
mod tidy;

#[derive(Parser)]
#[command(name = "xtask", about = "The project's chores")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the model on this machine's processor, through the server; needs `cargo build-m1`.
    BenchCpu(bench_cpu::Args),
    /// Measure another family through mistral.rs beside the model, and both in one server; needs `cargo build --release --bins`.
    BenchFamilies(bench_families::Args),
    /// Generate crates/proto/src/generated from /proto.
    Codegen {
        /// Change nothing; fail if the checked-in code differs.
        #[arg(long)]
        check: bool,
    },
    /// Make tests/golden anew with mlx-lm; needs python3 and its package index.
    Golden,
    /// Measure the server on a GPU with the published shapes and weights drawn on the device.
    #[cfg(feature = "cuda")]
    BenchGpu(bench_gpu::Args),
    /// Write a checkpoint with random weights.
    MakeModel(make_model::Args),
    /// Check the rules that no compiler checks: arrows between crates, headers, places of words.
    Tidy,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        #[cfg(feature = "cuda")]
        Command::BenchGpu(args) => bench_gpu::run(args),
        Command::BenchCpu(args) => bench_cpu::run(&args),
        Command::BenchFamilies(args) => bench_families::run(&args),
        Command::Codegen { check } => codegen::run(check),
        Command::Golden => golden::run(),
        Command::MakeModel(args) => make_model::run(args),
        Command::Tidy => tidy::run(),
    }
}
