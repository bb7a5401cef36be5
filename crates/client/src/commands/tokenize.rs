//! `baichuan tokenize`: text to token ids, or ids to text.

use baichuan_client::{Client, prompt, v1};
use v1::tokenize_request::Input;

use crate::args::Cli;
use crate::failure::Failure;
use crate::input::TextSource;
use crate::{json, output};

/// Flags of `tokenize`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: TextSource,
    /// Served name of the model; the server's default model without it.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    model: String,
    /// Treat the text as a user's message and render it by the chat template.
    #[arg(long)]
    chat: bool,
    /// Leave out what the tokenizer adds to every prompt.
    #[arg(long)]
    no_special_tokens: bool,
    /// Show each token's text.
    #[arg(long)]
    tokens: bool,
    /// Turn these ids into text instead; separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',', conflicts_with_all = ["text", "file", "chat", "tokens"])]
    decode: Option<Vec<u32>>,
    /// With --decode: keep special tokens in the text.
    #[arg(long, requires = "decode")]
    special_tokens: bool,
}

/// Prints the ids, or the text.
pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    if let Some(ids) = &args.decode {
        return decode(cli, args, ids).await;
    }
    let text = args.source.read()?;
    let input = if args.chat {
        Input::Chat(prompt::conversation([prompt::message("user", text)]))
    } else {
        Input::Text(text)
    };
    let request = v1::TokenizeRequest {
        model: args.model.clone(),
        input: Some(input),
        add_special_tokens: args.no_special_tokens.then_some(false),
        return_tokens: Some(args.tokens),
        request_id: String::new(),
    };
    let answer = Client::connect(&cli.connection())
        .await?
        .tokenize(request)
        .await?;
    if cli.json {
        output::json(&json::of("TokenizeResponse", &answer)?)?;
    } else if args.tokens {
        for (id, token) in answer.token_ids.iter().zip(&answer.tokens) {
            output::line(format_args!("{id}\t{token:?}"))?;
        }
    } else {
        let ids: Vec<_> = answer.token_ids.iter().map(u32::to_string).collect();
        output::line(ids.join(","))?;
    }
    Ok(())
}

async fn decode(cli: &Cli, args: &Args, ids: &[u32]) -> Result<(), Failure> {
    let request = v1::DetokenizeRequest {
        model: args.model.clone(),
        token_ids: ids.into(),
        skip_special_tokens: args.special_tokens.then_some(false),
        request_id: String::new(),
    };
    let answer = Client::connect(&cli.connection())
        .await?
        .detokenize(request)
        .await?;
    if cli.json {
        output::json(&json::of("DetokenizeResponse", &answer)?)?;
    } else {
        output::text(&answer.text)?;
        output::text("\n")?;
    }
    Ok(())
}
