//! Other programs that run such a model on a processor.

use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::Numbers;

/// A peer's model in some format.
#[derive(Clone, Debug)]
pub(super) struct PeerModel {
    pub(super) numbers: Numbers,
    pub(super) path: PathBuf,
}

impl FromStr for PeerModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (format, path) = text.split_once('=').ok_or("must be FORMAT=PATH")?;
        Ok(Self {
            numbers: format.parse()?,
            path: path.into(),
        })
    }
}

/// A program and its model.
pub(super) struct Peer {
    kind: Kind,
    program: PathBuf,
    model: PathBuf,
    threads: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Llama,
    ChatLlm,
}

impl Peer {
    pub(super) fn llama(program: PathBuf, model: PathBuf, threads: usize) -> Self {
        Self {
            kind: Kind::Llama,
            program,
            model,
            threads,
        }
    }

    pub(super) fn chatllm(program: PathBuf, model: PathBuf, threads: usize) -> Self {
        Self {
            kind: Kind::ChatLlm,
            program,
            model,
            threads,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Llama => "llama.cpp",
            Kind::ChatLlm => "chatllm.cpp",
        }
    }

    pub(super) fn decode_tok_s(&self) -> anyhow::Result<f64> {
        match self.kind {
            // At a depth of 128 tokens, as the server decodes.
            Kind::Llama => self.llama_bench(&["-p", "0", "-n", "64", "-d", "128"]),
            Kind::ChatLlm => self.chatllm_timing("a", 64, "eval time"),
        }
    }

    pub(super) fn prefill_tok_s(&self, tokens: usize) -> anyhow::Result<f64> {
        match self.kind {
            Kind::Llama => self.llama_bench(&["-p", &tokens.to_string(), "-n", "0"]),
            Kind::ChatLlm => self.chatllm_timing(&"a ".repeat(tokens), 1, "prompt eval time"),
        }
    }

    fn llama_bench(&self, what: &[&str]) -> anyhow::Result<f64> {
        let threads = self.threads.to_string();
        let mut command = Command::new(&self.program);
        command.arg("-m").arg(&self.model);
        command.args(["-t", &threads, "-r", "1", "-o", "json"]).args(what);
        let output = run(&mut command)?;
        let report: Value = serde_json::from_str(&output).context("llama-bench printed no JSON")?;
        report[0]["avg_ts"]
            .as_f64()
            .context("llama-bench printed no avg_ts")
    }

    /// Reads `timings: eval time = 1 ms / 2 tokens ( 3 ms per token, 4 tokens per second)`.
    fn chatllm_timing(&self, prompt: &str, max_tokens: usize, what: &str) -> anyhow::Result<f64> {
        let mut command = Command::new(&self.program);
        command.arg("-m").arg(&self.model);
        command.args([
            "-n",
            &self.threads.to_string(),
            "--max_length",
            "2048",
            "--hide_banner",
        ]);
        command.args(["--max_new_tokens", &max_tokens.to_string(), "-p", prompt]);
        let output = run(&mut command)?;
        timing(&output, what).with_context(|| format!("chatllm.cpp printed no {what}"))
    }
}

/// Tokens per second of the timing called `what`.
fn timing(output: &str, what: &str) -> Option<f64> {
    let named = |line: &&str| line.trim_start_matches("timings:").trim().starts_with(what);
    let line = output.lines().find(named)?;
    let rate = line.rsplit(',').next()?.split_whitespace().next()?;
    rate.parse().ok()
}

/// What a program printed on either output.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {err}",
        output.status
    );
    Ok(if out.trim_start().starts_with('[') {
        out.into()
    } else {
        format!("{out}\n{err}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_from_the_line_of_their_name() {
        let output = "hello\n\
            timings: prompt eval time =       631.03 ms /    28 tokens (    22.54 ms per token,    44.37 tokens per second)\n\
            timings:        eval time =     45880.58 ms /  1001 tokens (    45.83 ms per token,    21.82 tokens per second)\n";
        assert_eq!(timing(output, "prompt eval time"), Some(44.37));
        assert_eq!(timing(output, "eval time"), Some(21.82));
        assert_eq!(timing(output, "load time"), None);
    }

    #[test]
    fn a_model_is_given_with_its_format() {
        let model: PeerModel = "q8_0=a=b.gguf".parse().unwrap();
        assert_eq!(model.numbers.name(), "Q8_0");
        assert_eq!(model.path, PathBuf::from("a=b.gguf"));
        assert!("a.gguf".parse::<PeerModel>().is_err());
        assert!("Q9=a.gguf".parse::<PeerModel>().is_err());
    }
}
