//! `baichuan embed`: texts to vectors; a few in one call, the lines of a file as a stream.

use std::path::PathBuf;

use baichuan_client::{Client, prompt, v1, values};
use clap::ValueEnum;
use futures::stream;
use serde_json::json;

use crate::args::{Cli, RoutingArgs};
use crate::failure::Failure;
use crate::{input, output};

/// How many numbers of a vector are shown to people.
const SHOWN: usize = 8;

/// Flags of `embed`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Texts; without them and --file, the lines of stdin.
    texts: Vec<String>,
    /// Embed each line of a file; `-` is stdin. Answers come as they are ready, with the line's number.
    #[arg(long, short, value_name = "FILE", conflicts_with = "texts")]
    file: Option<PathBuf>,
    /// How a text's token vectors become one.
    #[arg(long, value_enum)]
    pooling: Option<PoolingArg>,
    /// Leave vectors at the length they have.
    #[arg(long)]
    no_normalize: bool,
    /// Keep only the first dimensions.
    #[arg(long)]
    dimensions: Option<u32>,
    /// Keep only this many first tokens of a text that is longer.
    #[arg(long, value_name = "TOKENS")]
    truncate: Option<u32>,
    /// Carry the numbers as bytes of this type: smaller messages.
    #[arg(long, value_enum)]
    dtype: Option<DtypeArg>,
    #[command(flatten)]
    routing: RoutingArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PoolingArg {
    Last,
    Mean,
    WeightedMean,
    First,
    None,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeArg {
    F32,
    F16,
    Bf16,
}

impl Args {
    /// The request, but for its inputs.
    fn options(&self) -> v1::EmbedRequest {
        let pooling = match self.pooling {
            None => v1::Pooling::ModelDefault,
            Some(PoolingArg::Last) => v1::Pooling::Last,
            Some(PoolingArg::Mean) => v1::Pooling::Mean,
            Some(PoolingArg::WeightedMean) => v1::Pooling::WeightedMean,
            Some(PoolingArg::First) => v1::Pooling::First,
            Some(PoolingArg::None) => v1::Pooling::None,
        };
        let (encoding, dtype) = match self.dtype {
            None => (v1::EmbeddingEncoding::Float, v1::EmbeddingDtype::F32),
            Some(DtypeArg::F32) => (v1::EmbeddingEncoding::Bytes, v1::EmbeddingDtype::F32),
            Some(DtypeArg::F16) => (v1::EmbeddingEncoding::Bytes, v1::EmbeddingDtype::F16),
            Some(DtypeArg::Bf16) => (v1::EmbeddingEncoding::Bytes, v1::EmbeddingDtype::Bf16),
        };
        v1::EmbedRequest {
            request_id: self.routing.request_id.clone(),
            model: self.routing.model.clone(),
            inputs: Vec::new(),
            pooling: pooling.into(),
            normalize: self.no_normalize.then_some(false),
            dimensions: self.dimensions,
            truncate_tokens: self.truncate,
            encoding: encoding.into(),
            dtype: dtype.into(),
            priority: self.routing.priority,
            time_limit_ms: self.routing.time_limit_ms,
        }
    }
}

/// Embeds the texts and prints a line for each.
pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    if !args.texts.is_empty() {
        return call(cli, args).await;
    }
    let lines = match &args.file {
        Some(path) => input::lines(path)?,
        None => input::stdin_lines()?,
    };
    stream_lines(cli, args, lines).await
}

async fn call(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let request = v1::EmbedRequest {
        inputs: args.texts.iter().map(prompt::embed_text).collect(),
        ..args.options()
    };
    let client = Client::connect(&cli.connection()).await?;
    for embedding in client.embed(request).await?.embeddings {
        print(embedding.index, &embedding, cli.json)?;
    }
    Ok(())
}

async fn stream_lines(cli: &Cli, args: &Args, lines: Vec<String>) -> Result<(), Failure> {
    let total = u32::try_from(lines.len()).map_err(|_| Failure::Usage("too many lines".into()))?;
    let client = Client::connect(&cli.connection()).await?;
    let inputs = (0..total).zip(lines.into_iter().map(prompt::embed_text));
    let mut answers = client.embed_stream(args.options(), stream::iter(inputs)).await?;
    let bar = output::progress(total.into(), "texts");
    let mut failed = 0;
    while let Some(answer) = answers.next().await? {
        match &answer.result {
            Ok(embedding) => bar.suspend(|| print(answer.index, embedding, cli.json))?,
            Err(failure) => {
                failed += 1;
                let error = json!({ "code": format!("{:?}", failure.code), "message": failure.message, "reason": failure.reason });
                let line = json!({ "index": answer.index, "error": error });
                bar.suspend(|| {
                    if cli.json {
                        return output::json(&line);
                    }
                    output::note(format_args!("{}\t{failure}", answer.index));
                    Ok(())
                })?;
            }
        }
        bar.inc(1);
    }
    let answered = bar.position();
    bar.finish_and_clear();
    match failed {
        0 if answered == u64::from(total) => Ok(()),
        0 => Err(Failure::Outcome(format!(
            "{answered} of {total} texts were answered"
        ))),
        failed => Err(Failure::Outcome(format!(
            "{failed} of {total} texts have no vector"
        ))),
    }
}

fn print(index: u32, embedding: &v1::Embedding, as_json: bool) -> std::io::Result<()> {
    let numbers = values(embedding).map_err(std::io::Error::other)?;
    if as_json {
        return output::json(&json!({
            "index": index,
            "tokens": embedding.tokens,
            "truncated": embedding.truncated,
            "dimensions": embedding.dimensions,
            "values": numbers,
        }));
    }
    let shown: Vec<_> = numbers.iter().take(SHOWN).map(|v| format!("{v:.4}")).collect();
    let more = if numbers.len() > SHOWN { " …" } else { "" };
    output::line(format_args!(
        "{index}\t{} tokens\t{} dimensions\t{}{more}",
        embedding.tokens,
        embedding.dimensions,
        shown.join(" ")
    ))
}
