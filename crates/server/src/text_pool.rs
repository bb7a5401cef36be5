//! Chat rendering and tokenisation, off the async threads and bounded: so many at once, so many waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::config::RequestsConfig;
use crate::error::{ApiError, Exhausted};

/// Where texts are worked on.
#[derive(Debug)]
pub(crate) struct TextPool {
    /// Those that wait or run.
    places: Arc<Semaphore>,
    /// Those that run.
    threads: Arc<Semaphore>,
    capacity: usize,
}

impl TextPool {
    /// As configured.
    pub(crate) fn new(config: &RequestsConfig) -> Self {
        let capacity = config
            .text_queue
            .saturating_add(config.text_threads)
            .min(Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(capacity)),
            threads: Arc::new(Semaphore::new(config.text_threads.min(Semaphore::MAX_PERMITS))),
            capacity,
        }
    }

    /// Runs `work` on a blocking thread.
    ///
    /// # Errors
    /// Too many texts wait, or `work` panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            return Err(ApiError::Exhausted {
                reason: Exhausted::Queue,
                message: format!("{} texts wait for tokenisation already", self.capacity),
                retry_after: Some(Duration::from_secs(1)),
            });
        };
        let thread = self.threads.clone().acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            // Held to the end of the work, which goes on even when the call is gone.
            let _held = (place, thread);
            work()
        });
        done.await.map_err(|e| ApiError::Internal {
            cause: format!("text work failed: {e}"),
        })
    }
}
