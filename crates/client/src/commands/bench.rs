//! `baichuan bench`: throughput and latency under a steady number of concurrent requests.
//!
//! Prompts are random token ids, different for every request, so that nothing can be answered from a cache.

use std::time::Instant;

use baichuan_client::{Client, Error, Event, prompt, v1};
use futures::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::args::Cli;
use crate::failure::Failure;
use crate::output;

mod report;

use report::{Report, Sample};

/// Flags of `bench`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Requests that run at once.
    #[arg(long, short, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: u32,
    /// Requests in all.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens to generate, whatever the model would say.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Embed the prompts instead of completing them.
    #[arg(long)]
    embed: bool,
    /// Requests before the measurement, one after another.
    #[arg(long, default_value_t = 1)]
    warmup: u32,
    /// Connections to spread the requests over.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// Of the prompts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Served name of the model; the server's default model without it.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    model: String,
}

/// Measures and prints the report; a run in which every request failed is a failure.
pub(crate) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let options = cli.connection();
    let mut clients = Vec::new();
    for _ in 0..args.connections {
        clients.push(Client::connect(&options).await?);
    }
    let model = clients[0].model(&args.model).await?;
    let prompts = Prompts::new(args, &model)?;
    for number in 0..args.warmup {
        one(&clients[0], args, prompts.of(u64::MAX - u64::from(number))).await?;
    }
    let bar = output::progress(args.requests.into(), "requests");
    let mut report = Report::new(args.clone())?;
    let started = Instant::now();
    let mut running = stream::iter(0..args.requests)
        .map(|number| {
            let client = &clients[number as usize % clients.len()];
            one(client, args, prompts.of(number.into()))
        })
        .buffer_unordered(args.concurrency as usize);
    while let Some(outcome) = running.next().await {
        report.add(outcome);
        bar.inc(1);
    }
    report.elapsed = started.elapsed();
    bar.finish_and_clear();
    report.print(cli.json)?;
    match report.succeeded {
        0 => Err(Failure::Outcome("every request failed".into())),
        _ => Ok(()),
    }
}

/// Makes the prompt of each request.
struct Prompts {
    seed: u64,
    tokens: u32,
    vocab_size: u32,
    avoid: Vec<u32>,
}

impl Prompts {
    fn new(args: &Args, model: &v1::Model) -> Result<Self, Failure> {
        let needed = if args.embed {
            args.prompt_tokens
        } else {
            args.prompt_tokens.saturating_add(args.max_tokens)
        };
        if needed > model.max_context {
            return Err(Failure::Usage(format!(
                "prompt and completion have {needed} tokens, {} accepts {}",
                model.name, model.max_context
            )));
        }
        let special = model.bos_token_id.into_iter().chain(model.pad_token_id);
        Ok(Self {
            seed: args.seed,
            tokens: args.prompt_tokens,
            vocab_size: model.vocab_size,
            avoid: model.eos_token_ids.iter().copied().chain(special).collect(),
        })
    }

    fn of(&self, number: u64) -> Vec<u32> {
        let mut random = StdRng::seed_from_u64(self.seed.wrapping_add(number));
        let mut ids = Vec::with_capacity(self.tokens as usize);
        while ids.len() < self.tokens as usize {
            let id = random.random_range(0..self.vocab_size);
            if !self.avoid.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }
}

async fn one(client: &Client, args: &Args, prompt: Vec<u32>) -> Result<Sample, Error> {
    if args.embed {
        embed_one(client, args, prompt).await
    } else {
        generate_one(client, args, prompt).await
    }
}

async fn embed_one(client: &Client, args: &Args, prompt: Vec<u32>) -> Result<Sample, Error> {
    let started = Instant::now();
    let request = v1::EmbedRequest {
        model: args.model.clone(),
        inputs: vec![prompt::embed_tokens(prompt)],
        ..Default::default()
    };
    let usage = client.embed(request).await?.usage.unwrap_or_default();
    Ok(Sample {
        prompt_tokens: usage.prompt_tokens.into(),
        total: started.elapsed(),
        ..Sample::default()
    })
}

async fn generate_one(client: &Client, args: &Args, prompt: Vec<u32>) -> Result<Sample, Error> {
    let request = v1::GenerateRequest {
        model: args.model.clone(),
        prompt: Some(prompt::token_ids(prompt)),
        sampling: Some(v1::SamplingParams {
            temperature: Some(0.0),
            ..Default::default()
        }),
        stopping: Some(v1::StoppingParams {
            max_tokens: Some(args.max_tokens),
            ignore_eos: Some(true),
            ..Default::default()
        }),
        output: Some(v1::OutputOptions {
            return_token_ids: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    };
    let started = Instant::now();
    let mut sample = Sample::default();
    let mut previous = None;
    let mut generation = client.generate(request).await?;
    while let Some(event) = generation.next().await? {
        match event {
            Event::PromptInfo(info) => sample.prompt_tokens = info.prompt_tokens.into(),
            Event::Delta(delta) if !delta.token_ids.is_empty() => {
                let now = Instant::now();
                let tokens = delta.token_ids.len() as u32;
                match previous {
                    None => sample.first_token = Some(now - started),
                    // Tokens that come in one message share the wait for it.
                    Some(previous) => sample.gaps.push(((now - previous) / tokens, tokens)),
                }
                previous = Some(now);
                sample.generated_tokens += u64::from(tokens);
            }
            Event::Delta(_) | Event::Finish(_) => {}
        }
    }
    sample.total = started.elapsed();
    Ok(sample)
}
