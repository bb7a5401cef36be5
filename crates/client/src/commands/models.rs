//! `baichuan models`: what is served.

use baichuan_client::{Client, v1};

use crate::args::Cli;
use crate::failure::Failure;
use crate::{json, output};

/// Flags of `models`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show all of this one.
    name: Option<String>,
}

/// Prints a table, or everything about one model.
pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let client = Client::connect(&cli.connection()).await?;
    if let Some(name) = &args.name {
        let model = json::of("Model", &client.model(name).await?)?;
        let text = if cli.json {
            model.to_string()
        } else {
            format!("{model:#}")
        };
        output::line(text)?;
        return Ok(());
    }
    let models = client.models().await?;
    if cli.json {
        for model in &models {
            output::json(&json::of("Model", model)?)?;
        }
        return Ok(());
    }
    let rows: Vec<_> = models.iter().map(row).collect();
    output::table(
        [
            "NAME",
            "STATE",
            "ARCHITECTURE",
            "PARAMETERS",
            "DTYPE",
            "DEVICE",
            "CONTEXT",
            "CAN",
        ],
        &rows,
    )?;
    Ok(())
}

fn row(model: &v1::Model) -> [String; 8] {
    let mark = if model.is_default { " *" } else { "" };
    let state = model.state().as_str_name().trim_start_matches("MODEL_STATE_");
    let abilities = [
        (model.supports_generate, "generate"),
        (model.supports_chat, "chat"),
        (model.supports_embed, "embed"),
    ];
    let abilities = abilities.iter().filter(|(can, _)| *can).map(|(_, what)| *what);
    [
        format!("{}{mark}", model.name),
        state.to_lowercase(),
        model.architecture.clone(),
        model.parameters.to_string(),
        model.dtype.clone(),
        model.device.clone(),
        model.max_context.to_string(),
        abilities.collect::<Vec<_>>().join(" "),
    ]
}
