//! The crate's own threads, which no async runtime shares, and the instruction set that they use.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::gang::Gang;
use crate::level::{Cpu, Kernel, Level};

/// The threads and the instruction set that kernels run on. Cloning gives another handle to the same threads.
///
/// The thread that calls a kernel is one of them.
#[derive(Clone, Debug)]
pub struct Threads {
    gang: Arc<Gang>,
    /// Made when it is first needed.
    pool: Arc<OnceLock<rayon::ThreadPool>>,
    cpu: Cpu,
}

/// Why [`Threads`] could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ThreadsError {
    /// A pool of no threads was asked for.
    #[error("kernels need at least one thread")]
    NoThreads,
    /// The CPU lacks the instructions of the level asked for.
    #[error("this CPU has no {level:?} kernels, its best are {}", format!("{:?}", Level::detect()))]
    NoLevel {
        /// The level asked for.
        level: Level,
    },
    /// The operating system refused a thread.
    #[error("the kernels' threads could not be started")]
    Spawn(#[from] std::io::Error),
}

impl Threads {
    /// One thread per physical core that this process may use, at the best level of the CPU.
    pub fn physical() -> Result<Self, ThreadsError> {
        let usable = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self::new(usable.min(num_cpus::get_physical()).max(1))
    }

    /// `n_threads` threads at the best level of the CPU.
    pub fn new(n_threads: usize) -> Result<Self, ThreadsError> {
        Self::with_level(n_threads, Level::detect())
    }

    /// `n_threads` threads at a given level; an error if the CPU lacks it.
    pub fn with_level(n_threads: usize, level: Level) -> Result<Self, ThreadsError> {
        if n_threads == 0 {
            return Err(ThreadsError::NoThreads);
        }
        let cpu = Cpu::new(level).ok_or(ThreadsError::NoLevel { level })?;
        Ok(Self {
            gang: Arc::new(Gang::new(n_threads - 1)?),
            pool: Arc::default(),
            cpu,
        })
    }

    /// How many threads there are.
    pub fn count(&self) -> usize {
        self.gang.count()
    }

    /// The instruction set in use.
    pub fn level(&self) -> Level {
        self.cpu.level()
    }

    pub(crate) fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// Runs `work` where rayon's parallel iterators have as many threads as kernels have: for loading, which uses both.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.get_or_init(|| rayon_pool(self.count())).install(work)
    }

    /// Calls `work` with each of the items, in any order and on all threads, and returns when all are done.
    pub fn each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync) {
        let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        self.for_each(items.len(), |i| {
            let item = items[i].lock().unwrap_or_else(PoisonError::into_inner).take();
            item.into_iter().for_each(&work);
        });
    }

    /// Calls `task(0)`, …, `task(n_tasks - 1)`, in any order, and returns when all are done.
    pub(crate) fn for_each(&self, n_tasks: usize, task: impl Fn(usize) + Sync) {
        self.gang.run(n_tasks, &task);
    }

    /// How many of `n` pieces of `bytes` each a task should take, whole numbers of `unit` of them: enough for its start
    /// to weigh nothing, and few enough that threads of unequal speed end together.
    pub(crate) fn share(&self, n: usize, unit: usize, bytes: usize) -> usize {
        const BYTES_PER_TASK: usize = 1 << 18;
        const TASKS_PER_THREAD: usize = 8;
        if self.count() == 1 {
            return n;
        }
        let even = n.div_ceil(self.count());
        let worth = BYTES_PER_TASK.div_ceil(bytes.max(1));
        n.div_ceil(self.count() * TASKS_PER_THREAD)
            .max(worth)
            .min(even)
            .next_multiple_of(unit)
    }

    /// Runs `kernel` on the calling thread, compiled for this level.
    #[inline]
    pub(crate) fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        self.cpu.run(kernel)
    }
}

/// # Panics
/// If the system refuses a thread.
#[allow(
    clippy::expect_used,
    reason = "the kernels' own threads were had a moment before"
)]
fn rayon_pool(n_threads: usize) -> rayon::ThreadPool {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
    pool.thread_name(|i| format!("loading-{i}"))
        .build()
        .expect("threads for loading")
}

/// Every level of this CPU, on one thread and on two.
#[cfg(test)]
pub(crate) fn all_for_tests() -> Vec<Threads> {
    let levels = Level::ALL.into_iter().filter(|level| level.is_available());
    levels
        .flat_map(|level| [1, 2].map(|n| Threads::with_level(n, level).unwrap()))
        .collect()
}

/// A pointer that tasks writing to disjoint places may share.
pub(crate) struct Shared<T>(*mut T);

// SAFETY: whoever dereferences the pointer answers for the places being disjoint.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    pub(crate) fn ptr(&self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_without_threads_is_refused() {
        assert!(matches!(Threads::new(0), Err(ThreadsError::NoThreads)));
    }

    #[test]
    fn each_item_is_worked_on_once() {
        let threads = Threads::new(2).unwrap();
        let mut values = [0; 100];
        threads.each(values.iter_mut().collect(), |value| *value += 1);
        assert_eq!(values, [1; 100]);
    }

    #[test]
    fn a_level_the_cpu_lacks_is_refused() {
        for level in Level::ALL.into_iter().filter(|level| !level.is_available()) {
            assert!(matches!(
                Threads::with_level(1, level),
                Err(ThreadsError::NoLevel { .. })
            ));
        }
    }
}
