//! The project's chores: `cargo xtask --help`.

use clap::{Parser, Subcommand};

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
    /// Generate crates/proto/src/generated from /proto.
    Codegen {
        /// Change nothing; fail if the checked-in code differs.
        #[arg(long)]
        check: bool,
    },
    /// Make tests/golden anew with mlx-lm; needs python3 and its package index.
    Golden,
    /// Write a checkpoint with random weights.
    MakeModel(make_model::Args),
    /// Check the rules that no compiler checks: arrows between crates, headers, places of words.
    Tidy,
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Codegen { check } => codegen::run(check),
        Command::Golden => golden::run(),
        Command::MakeModel(args) => make_model::run(args),
        Command::Tidy => tidy::run(),
    }
}
