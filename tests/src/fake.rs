//! Fake models: served by a plugin of the tests, paced by the test where it must be.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use baichuan_engine::testing::{FakeOptions, StepHook, fake_engine, logits};
use baichuan_engine::{Backend, Checkpoint, LoadError, LoadRequest, ModelPlugin, StepError};
use serde_json::json;

/// A model that answers with a hash of everything before, and fails when the engine's books are wrong.
#[derive(Clone, Debug)]
pub struct Fake {
    /// Longest sequence, in tokens.
    pub max_context: usize,
    /// Of its sliding layer, in tokens.
    pub window: usize,
    /// Whether its checkpoint has a chat template.
    pub chat: bool,
    /// Lets its steps through; absent: they all go.
    pub gate: Option<Gate>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            max_context: 4096,
            window: 32,
            chat: true,
            gate: None,
        }
    }
}

impl Fake {
    /// A model whose steps wait at `gate`.
    pub fn gated(gate: &Gate) -> Self {
        Self {
            gate: Some(gate.clone()),
            ..Self::default()
        }
    }

    /// Writes what stands for its checkpoint.
    pub(crate) fn write(&self, dir: &Path) -> std::io::Result<()> {
        let config = json!({
            "architectures": ["FakeForCausalLM"],
            "max_context": self.max_context, "window": self.window, "chat": self.chat,
        });
        std::fs::write(dir.join("config.json"), config.to_string())
    }
}

/// What the greedy completion of `prompt` must be, `n` tokens long, whatever else the engine does.
///
/// `allowed`: the only tokens to choose from.
pub fn greedy(prompt: &[u32], n: usize, allowed: &[u32]) -> Vec<u32> {
    let mut sequence = prompt.to_vec();
    for _ in 0..n {
        let row = logits(&sequence);
        let best = allowed.iter().copied().max_by(|a, b| {
            let of = |id: &u32| row[*id as usize];
            // Of equal ones the first, as argmax does.
            of(a).total_cmp(&of(b)).then(b.cmp(a))
        });
        sequence.push(best.expect("some token is allowed"));
    }
    sequence.split_off(prompt.len())
}

/// Loads [`Fake`] models.
#[derive(Default)]
pub(crate) struct FakePlugin {
    /// By served name.
    pub(crate) gates: HashMap<String, Gate>,
}

impl ModelPlugin for FakePlugin {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn accepts(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.architecture() == "FakeForCausalLM"
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Backend>, LoadError> {
        let config = request.checkpoint.config();
        let number = |key: &str| {
            let value = config[key].as_u64().and_then(|n| usize::try_from(n).ok());
            value.ok_or_else(|| LoadError::Invalid {
                path: request.checkpoint.dir().join("config.json"),
                message: format!("`{key}` must be a number"),
            })
        };
        let options = FakeOptions {
            name: request.name.into(),
            engine: request.engine.clone(),
            max_context: number("max_context")?,
            window: number("window")?,
            hook: self.gates.get(request.name).map(Gate::hook),
            chat: config["chat"] == true,
            ..FakeOptions::default()
        };
        Ok(Arc::new(fake_engine(options)?))
    }
}

/// Lets a fake model's steps through, or not. Open at first, for the warm-up.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug, Default)]
struct State {
    closed: bool,
    /// Steps that may pass a closed gate.
    allowed: u64,
    breaks: bool,
}

impl Gate {
    /// A gate that is open.
    pub fn new() -> Self {
        Self::default()
    }

    /// Steps that begin from now on wait.
    pub fn close(&self) {
        self.state().closed = true;
    }

    /// All steps go through.
    pub fn open(&self) {
        self.change(|state| state.closed = false);
    }

    /// So many more steps go through a closed gate.
    pub fn allow(&self, steps: u64) {
        self.change(|state| state.allowed += steps);
    }

    /// The next step panics, as a bug in a model would.
    pub fn break_model(&self) {
        self.change(|state| state.breaks = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.0.1.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hook(&self) -> StepHook {
        let gate = self.clone();
        Box::new(move |_| gate.pass())
    }

    fn pass(&self) -> Result<(), StepError> {
        let waits = |state: &mut State| state.closed && state.allowed == 0 && !state.breaks;
        let waited = self.0.1.wait_while(self.state(), waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut state.breaks) {
            // Those that come after wait at a closed gate.
            state.allowed = 0;
            drop(state);
            panic!("the test broke the model");
        }
        if state.closed {
            state.allowed -= 1;
        }
        Ok(())
    }
}

/// Gates that open when this is dropped: an engine whose thread waits at one could never be joined.
#[derive(Debug, Default)]
pub(crate) struct OpenAtEnd(pub(crate) Vec<Gate>);

impl Drop for OpenAtEnd {
    fn drop(&mut self) {
        self.0.iter().for_each(Gate::open);
    }
}
