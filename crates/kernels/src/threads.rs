//! The crate's own threads: a rayon pool that no async runtime shares.

use std::sync::Arc;

use rayon::prelude::*;

use crate::level::{Cpu, Kernel, Level};

/// The threads and the instruction set that kernels run on. Cloning gives another handle to the same threads.
#[derive(Clone, Debug)]
pub struct Threads {
    pool: Arc<rayon::ThreadPool>,
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
    Spawn(#[from] rayon::ThreadPoolBuildError),
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
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|i| format!("kernels-{i}"))
            .build()?;
        Ok(Self {
            pool: Arc::new(pool),
            cpu,
        })
    }

    /// How many threads there are.
    pub fn count(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set in use.
    pub fn level(&self) -> Level {
        self.cpu.level()
    }

    pub(crate) fn cpu(&self) -> Cpu {
        self.cpu
    }

    /// Runs `work` on one of the threads. Kernels called from there start sooner than from outside, so a caller
    /// of many kernels in a row, such as a model's forward pass, runs all of it in one `install`.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// Calls `task(0)`, …, `task(n_tasks - 1)`, in any order, and returns when all are done.
    pub(crate) fn for_each(&self, n_tasks: usize, task: impl Fn(usize) + Sync + Send) {
        if n_tasks == 1 || self.count() == 1 {
            return (0..n_tasks).for_each(task);
        }
        self.pool
            .install(|| (0..n_tasks).into_par_iter().with_max_len(1).for_each(task));
    }

    /// Runs `kernel` on the calling thread, compiled for this level.
    #[inline]
    pub(crate) fn run<K: Kernel>(&self, kernel: K) -> K::Output {
        self.cpu.run(kernel)
    }
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
    fn a_level_the_cpu_lacks_is_refused() {
        for level in Level::ALL.into_iter().filter(|level| !level.is_available()) {
            assert!(matches!(
                Threads::with_level(1, level),
                Err(ThreadsError::NoLevel { .. })
            ));
        }
    }
}
