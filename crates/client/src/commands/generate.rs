//! `baichuan generate`: complete a text. Also shows a running completion for `chat`.

use std::io::{self, IsTerminal};
use std::time::Duration;

use baichuan_client::{Choice, Client, Completion, Event, Generation, prompt, v1};
use serde_json::json;

use crate::args::{Cli, GenerationArgs};
use crate::commands::interruptible;
use crate::failure::Failure;
use crate::input::TextSource;
use crate::{json, output};

/// How long a program that gives up tells the server so.
const ABORT_PATIENCE: Duration = Duration::from_secs(1);

/// Flags of `generate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    prompt: TextSource,
    /// The prompt as token ids, separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with_all = ["text", "file"])]
    prompt_ids: Option<Vec<u32>>,
    /// Ask for the answer in one message, as clients behind retrying proxies do.
    #[arg(long, conflicts_with = "resume")]
    unary: bool,
    #[command(flatten)]
    generation: GenerationArgs,
}

/// Completes the prompt and prints it as it comes.
pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let prompt = match &args.prompt_ids {
        Some(ids) => prompt::token_ids(ids.clone()),
        None => prompt::text(args.prompt.read()?),
    };
    let request = args.generation.request(prompt);
    let client = interruptible(async { Ok(Client::connect(&cli.connection()).await?) }).await?;
    if args.unary {
        return interruptible(unary(&client, request, cli.json)).await;
    }
    complete(cli, &client, &args.generation, request).await?;
    Ok(())
}

/// Asks for a completion, prints it as it comes and returns it. Ctrl-C and an output that nobody reads end it, on the
/// server too.
pub(crate) async fn complete(
    cli: &Cli,
    client: &Client,
    args: &GenerationArgs,
    request: v1::GenerateRequest,
) -> Result<Completion, Failure> {
    let Some(patience) = args.resume() else {
        return interruptible(async { show(client.generate(request).await?, cli.json).await }).await;
    };
    let id = request.request_id.clone();
    let shown =
        interruptible(async { show(client.generate_resumable(request, patience).await?, cli.json).await });
    let outcome = shown.await;
    if outcome
        .as_ref()
        .is_err_and(|failure| !failure.is_the_servers_word())
    {
        // A program that merely ends is a broken connection to the server, which would wait for it.
        let _ = tokio::time::timeout(ABORT_PATIENCE, client.abort(id)).await;
    }
    outcome
}

async fn unary(client: &Client, request: v1::GenerateRequest, as_json: bool) -> Result<(), Failure> {
    let answer = client.generate_unary(request).await?;
    if as_json {
        output::json(&json::of("GenerateUnaryResponse", &answer)?)?;
        return Ok(());
    }
    let several = answer.choices.len() > 1;
    for choice in &answer.choices {
        heading(several, choice.index as usize)?;
        output::text(&choice.text)?;
        output::text("\n")?;
    }
    Ok(())
}

/// Prints a completion as it comes and returns it. Of several, the first is live and the others follow.
async fn show(mut generation: Generation, as_json: bool) -> Result<Completion, Failure> {
    let mut completion = Completion::default();
    while let Some(event) = generation.next().await? {
        if as_json {
            output::json(&event_json(&event)?)?;
        } else if let Event::Delta(delta) = &event
            && delta.index == 0
        {
            output::text(&delta.text)?;
        }
        completion.push(event);
    }
    if as_json {
        return Ok(completion);
    }
    output::text("\n")?;
    for (index, choice) in completion.choices.iter().enumerate().skip(1) {
        heading(true, index)?;
        output::text(&choice.text)?;
        output::text("\n")?;
    }
    if io::stderr().is_terminal() {
        completion.choices.iter().for_each(summarise);
    }
    Ok(completion)
}

fn heading(several: bool, index: usize) -> io::Result<()> {
    if several {
        output::line(format_args!("--- {index}"))?;
    }
    Ok(())
}

fn event_json(event: &Event) -> anyhow::Result<serde_json::Value> {
    Ok(match event {
        Event::PromptInfo(info) => json!({ "prompt_info": json::of("PromptInfo", info)? }),
        Event::Delta(delta) => json!({ "delta": json::of("Delta", delta)? }),
        Event::Finish(finish) => json!({ "finish": json::of("Finish", finish)? }),
    })
}

/// One dim line on stderr: why it ended, how much, how fast.
fn summarise(choice: &Choice) {
    let Some(finish) = &choice.finish else { return };
    let reason = finish.finish_reason().as_str_name();
    let reason = reason.trim_start_matches("FINISH_REASON_").to_lowercase();
    let usage = finish.usage.unwrap_or_default();
    let timings = finish.timings.unwrap_or_default();
    output::note(format_args!(
        "\x1b[2m[{reason}: {} + {} tokens, first after {:.0} ms, then one each {:.1} ms]\x1b[0m",
        usage.prompt_tokens,
        usage.completion_tokens,
        timings.time_to_first_token_ms,
        timings.time_per_output_token_ms
    ));
}
