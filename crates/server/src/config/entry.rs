//! One model's entry, as an operator sends it to a running server.

use baichuan_engine::{Violation, Violations};

use super::effective::raw_engine;
use super::raw::{RawEngine, RawModel};
use super::{Config, ModelConfig, check};

/// The longest entry, in bytes.
const MAX_BYTES: usize = 64 << 10;

impl Config {
    /// Reads an entry as one of `[[models]]`; what it leaves out of `engine` is as for the default model.
    ///
    /// # Errors
    /// What is wrong with it, by key: `config.path`.
    pub(crate) fn model_entry(&self, text: &str) -> Result<ModelConfig, Violations> {
        if text.is_empty() || text.len() > MAX_BYTES {
            let message = format!("must have 1 to {MAX_BYTES} bytes, got {}", text.len());
            return Err(Violation::new("config", message).into());
        }
        let raw: RawModel = toml::from_str(text).map_err(|e| Violation::new("config", e.message()))?;
        let default = self.models.iter().find(|m| m.name == self.default_model);
        let common = default.map_or_else(RawEngine::default, |m| raw_engine(&m.engine));
        check::model("config", raw, &common).map_err(|findings| {
            let violations = findings.into_iter().map(|finding| {
                let own = finding.keys.iter().find(|key| key.starts_with("config"));
                Violation::new(own.map_or("config", String::as_str), finding.message)
            });
            violations.collect()
        })
    }
}
