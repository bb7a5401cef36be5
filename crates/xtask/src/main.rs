//! The project's chores: `cargo xtask --help`.

use clap::{Parser, Subcommand};

mod codegen;

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
}

fn main() -> anyhow::Result<()> {
    match Args::parse().command {
        Command::Codegen { check } => codegen::run(check),
    }
}
