//! Panics of libraries that work on a checkpoint's files, turned into errors: what is in a file may fail, never end a thread.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is said in place of a panic's own words, which may quote a text.
pub(super) const PANICKED: &str = "the library that reads it gave up on a state it did not expect";

/// The outcome of `work`, or nothing if it panicked. What it worked on is not used any more then, or is as it was.
pub(super) fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
