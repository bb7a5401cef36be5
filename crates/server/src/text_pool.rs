//! Chat rendering and tokenisation, off the async threads and bounded: so many at once, so many waiting, and of one tenant
//! its share of those.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use baichuan_engine::TenantId;
use baichuan_engine::request::Account;
use tokio::sync::Semaphore;

use crate::config::RequestsConfig;
use crate::error::{ApiError, Exhausted};

/// When a place will be free is not known; texts take milliseconds.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Where texts are worked on.
#[derive(Debug)]
pub(crate) struct TextPool {
    places: Arc<Places>,
    /// Those that run.
    threads: Arc<Semaphore>,
}

/// Room for texts that wait or run.
#[derive(Debug)]
struct Places {
    capacity: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_tenant: HashMap<TenantId, usize>,
}

/// A text's place.
struct Place {
    places: Arc<Places>,
    tenant: TenantId,
}

impl TextPool {
    /// As configured.
    pub(crate) fn new(config: &RequestsConfig) -> Self {
        Self {
            places: Arc::new(Places {
                capacity: config.text_queue.saturating_add(config.text_threads),
                taken: Mutex::default(),
            }),
            threads: Arc::new(Semaphore::new(config.text_threads.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Runs `work` on a blocking thread, on a tenant's account.
    ///
    /// # Errors
    /// Too many texts wait, in all or of the tenant, or `work` panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        account: Account,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let place = self.places.take(account)?;
        let thread = self.threads.clone().acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            // Held to the end of the work, which goes on even when the call is gone.
            let _held = (place, thread);
            work()
        });
        // Its own words may quote a text.
        done.await.map_err(|_| ApiError::Internal {
            cause: "work on a text panicked".into(),
        })
    }
}

impl Places {
    fn take(self: &Arc<Self>, account: Account) -> Result<Place, ApiError> {
        let share = (self.capacity as f64 * account.queue_share).ceil() as usize;
        let share = share.clamp(1, self.capacity);
        let mut taken = self.taken();
        let all = taken.all;
        let of_tenant = taken.by_tenant.entry(account.tenant).or_default();
        let refuse = |reason, message| {
            Err(ApiError::Exhausted {
                reason,
                message,
                retry_after: Some(RETRY_DELAY),
            })
        };
        if all >= self.capacity {
            return refuse(
                Exhausted::Queue,
                format!("{all} texts wait for tokenisation already"),
            );
        }
        if *of_tenant >= share {
            return refuse(
                Exhausted::TenantQuota,
                format!(
                    "{of_tenant} texts of this tenant wait for tokenisation already, its share is {share}"
                ),
            );
        }
        *of_tenant += 1;
        taken.all += 1;
        Ok(Place {
            places: self.clone(),
            tenant: account.tenant,
        })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all -= 1;
        if let Some(of_tenant) = taken.by_tenant.get_mut(&self.tenant) {
            *of_tenant -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tenant_takes_its_share_of_places_and_leaves_the_rest_to_others() {
        let pool = TextPool::new(&RequestsConfig {
            text_threads: 1,
            text_queue: 3,
            ..RequestsConfig::default()
        });
        let of = |tenant| Account {
            tenant: TenantId(tenant),
            weight: 1,
            queue_share: 0.5,
        };
        let reason = |outcome: Result<Place, ApiError>| match outcome.err() {
            Some(ApiError::Exhausted { reason, .. }) => Some(reason),
            _ => None,
        };
        let first = [pool.places.take(of(1)).unwrap(), pool.places.take(of(1)).unwrap()];
        assert_eq!(reason(pool.places.take(of(1))), Some(Exhausted::TenantQuota));
        let others = [pool.places.take(of(2)).unwrap(), pool.places.take(of(2)).unwrap()];
        assert_eq!(reason(pool.places.take(of(3))), Some(Exhausted::Queue));
        drop(first);
        assert_eq!(pool.run(of(1), || 7).await.unwrap(), 7);
        drop(others);
        assert_eq!(pool.places.taken().all, 0);
    }
}
