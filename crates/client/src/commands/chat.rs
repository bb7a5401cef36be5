//! `baichuan chat`: one message, or a conversation when stdin is a terminal.

use std::io::{self, IsTerminal};

use baichuan_client::{Client, prompt, v1};
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};

use crate::args::{Cli, GenerationArgs};
use crate::commands::generate::complete;
use crate::commands::interruptible;
use crate::failure::Failure;
use crate::input::TextSource;
use crate::output;

const HELP: &str =
    "/reset forgets the conversation, /undo its last exchange, /exit or Ctrl-D ends; Ctrl-C ends an answer.";

/// Flags of `chat`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    message: TextSource,
    /// The system message.
    #[arg(long, short)]
    system: Option<String>,
    #[command(flatten)]
    generation: GenerationArgs,
}

/// Sends the message, or talks until the user has had enough.
pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let system = args.system.iter().map(|text| prompt::message("system", text));
    let mut conversation: Vec<v1::ChatMessage> = system.collect();
    let interactive = args.message.is_absent() && io::stdin().is_terminal();
    if interactive {
        return talk(cli, args, conversation).await;
    }
    conversation.push(prompt::message("user", args.message.read()?));
    let client = interruptible(async { Ok(Client::connect(&cli.connection()).await?) }).await?;
    answer(&client, cli, args, &conversation).await?;
    Ok(())
}

async fn answer(
    client: &Client,
    cli: &Cli,
    args: &Args,
    conversation: &[v1::ChatMessage],
) -> Result<String, Failure> {
    let request = args
        .generation
        .request(prompt::chat(conversation.iter().cloned()));
    let completion = complete(cli, client, &args.generation, request).await?;
    let first = completion.choices.into_iter().next();
    Ok(first.map(|choice| choice.text).unwrap_or_default())
}

async fn talk(cli: &Cli, args: &Args, mut conversation: Vec<v1::ChatMessage>) -> Result<(), Failure> {
    let client = interruptible(async { Ok(Client::connect(&cli.connection()).await?) }).await?;
    let opening = conversation.len();
    let config = Config::builder().auto_add_history(true).build();
    let mut editor = Editor::<(), MemHistory>::with_history(config, MemHistory::new()).map_err(terminal)?;
    output::note(HELP);
    loop {
        let line;
        (editor, line) = read_line(editor).await?;
        let line = match line {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => return Ok(()),
            Err(e) => return Err(terminal(e)),
        };
        match line.trim() {
            "" => continue,
            "/exit" | "/quit" => return Ok(()),
            "/help" => output::note(HELP),
            "/reset" => conversation.truncate(opening),
            "/undo" => conversation.truncate(opening.max(conversation.len().saturating_sub(2))),
            _ => exchange(&client, cli, args, &mut conversation, line).await?,
        }
    }
}

/// One message and its answer. A failed or interrupted exchange leaves the conversation as it was.
async fn exchange(
    client: &Client,
    cli: &Cli,
    args: &Args,
    conversation: &mut Vec<v1::ChatMessage>,
    line: String,
) -> Result<(), Failure> {
    conversation.push(prompt::message("user", line));
    match answer(client, cli, args, conversation).await {
        Ok(text) => conversation.push(prompt::message("assistant", text)),
        Err(failure @ (Failure::Server(_) | Failure::Interrupted)) => {
            conversation.pop();
            output::note("");
            failure.report(cli.json);
        }
        Err(failure) => return Err(failure),
    }
    Ok(())
}

type Line = Result<String, ReadlineError>;

/// Reads a line on a thread that may block, and gives the editor back.
async fn read_line(mut editor: Editor<(), MemHistory>) -> Result<(Editor<(), MemHistory>, Line), Failure> {
    let read = tokio::task::spawn_blocking(move || {
        let line = editor.readline("> ");
        (editor, line)
    });
    read.await.map_err(|e| Failure::Output(e.into()))
}

fn terminal(error: ReadlineError) -> Failure {
    Failure::Output(io::Error::other(error))
}
