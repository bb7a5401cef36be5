//! A few threads that work on one job at a time together with whoever brings it.
//!
//! A step of a model is some hundred short jobs, one after the other. Between two of them the threads wait awake for a
//! moment, because being woken takes longer than many a job; after that they sleep. Whoever brings a job works too and
//! never waits for a thread that has not begun: it leaves a job when all of its tasks are done.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Looks that a thread takes for a new job before it sleeps: some hundred microseconds.
const LOOKS: usize = 20_000;

/// Looks after which a thread that waits for the others lets them have its processor.
const LOOKS_BEFORE_YIELDING: usize = 10_000;

/// Of [`Shared::state`]: how many threads are inside the job, whether more may enter, and in the bits above its number.
const INSIDE: usize = 0xffff;
const OPEN: usize = INSIDE + 1;
const NUMBER: usize = 2 * OPEN;

/// Threads that help with jobs. Dropping it ends them.
pub(crate) struct Gang {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// Held by whoever brings a job.
    busy: Mutex<()>,
}

struct Shared {
    state: AtomicUsize,
    job: UnsafeCell<Job>,
    /// The next task that nobody has taken.
    next: AtomicUsize,
    /// What the first panic of a task said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: Vec<AtomicBool>,
    ends: AtomicBool,
}

// SAFETY: `job` is written by the one that holds `busy`, while no thread is inside and none may enter; it is read by
// threads inside. What it points at may be shared, says its type.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    n_tasks: usize,
}

impl Gang {
    /// `n_helpers` threads beside the one that brings a job.
    pub(crate) fn new(n_helpers: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicUsize::new(0),
            job: UnsafeCell::new(Job {
                task: &|_| {},
                n_tasks: 0,
            }),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            asleep: (0..n_helpers).map(|_| AtomicBool::new(false)).collect(),
            ends: AtomicBool::new(false),
        });
        let mut gang = Self {
            shared,
            helpers: Vec::new(),
            busy: Mutex::new(()),
        };
        for i in 0..n_helpers {
            let shared = gang.shared.clone();
            let helper = thread::Builder::new().name(format!("kernels-{}", i + 1));
            gang.helpers.push(helper.spawn(move || shared.help(i))?);
        }
        Ok(gang)
    }

    /// Threads that work on a job, its bringer included.
    pub(crate) fn count(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `task(0)`, …, `task(n_tasks - 1)`, in any order, and returns when all are done. Of several callers at
    /// once, and within a task, one is helped; the others do their work alone.
    pub(crate) fn run(&self, n_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let alone = n_tasks <= 1 || self.helpers.is_empty();
        let busy = match self.busy.try_lock() {
            Ok(busy) if !alone => busy,
            _ => return (0..n_tasks).for_each(task),
        };
        let shared = &*self.shared;
        // SAFETY: the lifetime alone is changed: this function waits for all that read the job before it returns.
        let task: *const (dyn Fn(usize) + Sync + 'static) = unsafe { std::mem::transmute(task) };
        // SAFETY: no thread is inside, as the last job was waited for, and none may enter.
        unsafe { *shared.job.get() = Job { task, n_tasks } };
        shared.next.store(0, Ordering::Relaxed);
        let number = shared.state.load(Ordering::Relaxed) / NUMBER;
        shared
            .state
            .store(((number + 1) * NUMBER) | OPEN, Ordering::SeqCst);
        for (asleep, helper) in shared.asleep.iter().zip(&self.helpers) {
            if asleep.load(Ordering::SeqCst) {
                Thread::unpark(helper.thread());
            }
        }
        shared.work();
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            wait(&mut looks, LOOKS_BEFORE_YIELDING);
        }
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(busy);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Lets a moment pass; a longer one when it has been looked for often.
fn wait(looks: &mut usize, before_yielding: usize) {
    *looks += 1;
    if cfg!(miri) || *looks > before_yielding {
        thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

impl Shared {
    /// What a helper does all its life.
    fn help(&self, me: usize) {
        let (mut done, mut looks) = (0, 0);
        while !self.ends.load(Ordering::Acquire) {
            let state = self.state.load(Ordering::SeqCst);
            let is_new = state & OPEN != 0 && state / NUMBER != done;
            if is_new {
                let entered =
                    self.state
                        .compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
                if entered.is_ok() {
                    done = state / NUMBER;
                    self.work();
                    self.state.fetch_sub(1, Ordering::AcqRel);
                    looks = 0;
                }
                continue;
            }
            if looks < LOOKS {
                wait(&mut looks, LOOKS);
                continue;
            }
            self.asleep[me].store(true, Ordering::SeqCst);
            // A job that came before this was seen is looked at again; one that comes after it unparks.
            let state = self.state.load(Ordering::SeqCst);
            let nothing_new = state & OPEN == 0 || state / NUMBER == done;
            if nothing_new && !self.ends.load(Ordering::SeqCst) {
                thread::park();
            }
            self.asleep[me].store(false, Ordering::SeqCst);
            looks = 0;
        }
    }

    /// Does tasks of the job until none is left.
    fn work(&self) {
        // SAFETY: the job is not changed while a thread is inside, and its bringer is here or waits for those who are.
        let Job { task, n_tasks } = unsafe { *self.job.get() };
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= n_tasks {
                return;
            }
            // SAFETY: as above: what the job points at lives until all have left it.
            let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { (*task)(index) }));
            if let Err(panic) = outcome {
                self.panic
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(panic);
            }
        }
    }
}

impl Drop for Gang {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // Helpers catch what tasks panic with: they end as they should.
            let _ = helper.join();
        }
    }
}

impl std::fmt::Debug for Gang {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gang of {}", self.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_of_every_job_is_done_once() {
        for n_helpers in [0, 1, 3] {
            let gang = Gang::new(n_helpers).unwrap();
            for n_tasks in (0..if cfg!(miri) { 5 } else { 300 }).chain([1, 0, 7]) {
                let done: Vec<AtomicUsize> = (0..n_tasks).map(|_| AtomicUsize::new(0)).collect();
                gang.run(n_tasks, &|i| {
                    done[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn jobs_brought_at_once_and_within_tasks_are_all_done() {
        let gang = Gang::new(2).unwrap();
        let done = AtomicUsize::new(0);
        let rounds = if cfg!(miri) { 2 } else { 200 };
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        gang.run(4, &|_| {
                            gang.run(3, &|_| {
                                done.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 3 * rounds * 4 * 3);
    }

    #[test]
    fn a_panic_reaches_the_caller_after_all_tasks_and_the_gang_goes_on() {
        let gang = Gang::new(1).unwrap();
        let done = AtomicUsize::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            gang.run(20, &|i| {
                done.fetch_add(1, Ordering::Relaxed);
                assert_ne!(i, 7, "the seventh");
            });
        }));
        let message = outcome.unwrap_err();
        assert!(message.downcast_ref::<String>().unwrap().contains("the seventh"));
        assert_eq!(done.load(Ordering::Relaxed), 20);
        gang.run(20, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 40);
    }

    #[test]
    fn helpers_that_went_to_sleep_are_woken() {
        let gang = Gang::new(1).unwrap();
        for _ in 0..3 {
            while !gang.shared.asleep[0].load(Ordering::SeqCst) {
                thread::yield_now();
            }
            // Both must be inside at once for the job to end.
            let inside = AtomicUsize::new(0);
            gang.run(2, &|_| {
                inside.fetch_add(1, Ordering::SeqCst);
                while inside.load(Ordering::SeqCst) < 2 {
                    thread::yield_now();
                }
            });
        }
    }
}
