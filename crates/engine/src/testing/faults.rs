//! What can go wrong in a model's step, to be planted.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::StepHook;
use crate::error::StepError;

/// What goes wrong in a step.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The library below fails.
    Error,
    /// Memory runs out.
    OutOfMemory,
    /// The model's code panics.
    Panic,
    /// The step does not end before [`Release::release`].
    Hang(Release),
}

/// Lets steps that hang go on.
#[derive(Clone, Debug, Default)]
pub struct Release(Arc<(Mutex<bool>, Condvar)>);

impl Release {
    /// Steps go on, now and from now on.
    pub fn release(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let released = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _released = self.0.1.wait_while(released, |released| !*released);
    }
}

impl Fault {
    /// Happens in a step.
    pub fn happen(&self) -> Result<(), StepError> {
        match self {
            Self::Error => Err(StepError::Compute("planted".into())),
            Self::OutOfMemory => Err(StepError::OutOfMemory("planted".into())),
            Self::Panic => panic!("planted"),
            Self::Hang(release) => {
                release.wait();
                Ok(())
            }
        }
    }

    /// A hook that plants it in each of `steps`, counted from 0 with the two of the warm-up.
    pub fn at(self, steps: impl IntoIterator<Item = u64>) -> StepHook {
        let steps: Vec<u64> = steps.into_iter().collect();
        Box::new(move |step| {
            if steps.contains(&step) {
                self.happen()
            } else {
                Ok(())
            }
        })
    }
}
