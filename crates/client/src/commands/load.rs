//! `baichuan load`: how loaded each model is.

use baichuan_client::{Client, v1};

use crate::args::Cli;
use crate::failure::Failure;
use crate::{json, output};

/// Flags of `load`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show only this model.
    #[arg(default_value = "", hide_default_value = true)]
    model: String,
}

/// Prints a line per model.
pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let client = Client::connect(&cli.connection()).await?;
    let loads = client.load(&args.model).await?;
    if cli.json {
        for load in &loads {
            output::json(&json::of("ModelLoad", load)?)?;
        }
        return Ok(());
    }
    let rows: Vec<_> = loads.iter().map(row).collect();
    output::table(
        [
            "MODEL",
            "RUNNING",
            "WAITING",
            "SLOTS",
            "BLOCKS",
            "DECODE tok/s",
            "PREFILL tok/s",
            "PREEMPTED",
        ],
        &rows,
    )?;
    Ok(())
}

fn row(load: &v1::ModelLoad) -> [String; 8] {
    let pool = |p: &v1::PoolLoad| format!("{} {}/{}", p.pool, p.blocks_used, p.blocks_total);
    [
        load.model.clone(),
        load.running.to_string(),
        load.waiting.to_string(),
        format!("{}/{}", load.slots_used, load.slots_total),
        load.pools.iter().map(pool).collect::<Vec<_>>().join(", "),
        format!("{:.1}", load.decode_tokens_per_second),
        format!("{:.1}", load.prefill_tokens_per_second),
        load.preemptions_total.to_string(),
    ]
}
