//! The plugins a server was composed of, and the choice among them.

use std::sync::Arc;

use crate::error::LoadError;
use crate::plugin::{Checkpoint, ModelPlugin};

/// Plugins in the order of registration.
#[derive(Clone, Default)]
pub struct Registry {
    plugins: Vec<Arc<dyn ModelPlugin>>,
}

impl Registry {
    /// No plugin yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a plugin.
    pub fn with(mut self, plugin: impl ModelPlugin + 'static) -> Self {
        self.plugins.push(Arc::new(plugin));
        self
    }

    /// The plugin called `name`; without a name, the only one that accepts the checkpoint.
    pub fn pick(
        &self,
        name: Option<&str>,
        checkpoint: &Checkpoint,
    ) -> Result<Arc<dyn ModelPlugin>, LoadError> {
        if let Some(name) = name {
            return self
                .plugins
                .iter()
                .find(|p| p.name() == name)
                .cloned()
                .ok_or_else(|| LoadError::UnknownPlugin {
                    name: name.into(),
                    plugins: names(self.plugins.iter()),
                });
        }
        let accepting: Vec<_> = self.plugins.iter().filter(|p| p.accepts(checkpoint)).collect();
        match accepting[..] {
            [plugin] => Ok(plugin.clone()),
            [] => Err(LoadError::NoPlugin {
                path: checkpoint.dir().into(),
                architecture: checkpoint.architecture().into(),
                plugins: names(self.plugins.iter()),
            }),
            _ => Err(LoadError::Ambiguous {
                path: checkpoint.dir().into(),
                architecture: checkpoint.architecture().into(),
                plugins: names(accepting.into_iter()),
            }),
        }
    }
}

fn names<'a>(plugins: impl Iterator<Item = &'a Arc<dyn ModelPlugin>>) -> String {
    plugins.map(|p| p.name()).collect::<Vec<_>>().join(", ")
}
