//! `baichuan abort`: end a running request.

use baichuan_client::Client;
use serde_json::json;

use crate::args::Cli;
use crate::failure::Failure;
use crate::output;

/// Flags of `abort`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The request's id, as given with --request-id or reported on admission.
    request_id: String,
}

/// Ends the request.
pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    Client::connect(&cli.connection())
        .await?
        .abort(&args.request_id)
        .await?;
    if cli.json {
        output::json(&json!({ "request_id": args.request_id }))?;
    }
    Ok(())
}
