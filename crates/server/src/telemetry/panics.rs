//! What is logged of panics: where they were, and nothing of their words, which may quote a text.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{PanicHookInfo, set_hook};

/// Has panics logged from now on as lines like any other, caught ones as well.
pub fn hide_words_of_panics() {
    set_hook(Box::new(log));
}

fn log(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    if !tracing::dispatcher::has_been_set() {
        eprintln!("thread {thread:?} panicked at {at}");
        return;
    }
    // Where RUST_BACKTRACE asks for one.
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => tracing::error!(thread, at, %backtrace, "a thread panicked"),
        _ => tracing::error!(thread, at, "a thread panicked"),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{catch_unwind, take_hook};

    use super::super::captured::Captured;
    use super::*;

    #[test]
    fn a_panic_is_logged_with_its_place_and_without_its_words() {
        let lines = Captured::default();
        let written = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || written.clone())
            .finish();
        let before = take_hook();
        hide_words_of_panics();
        let caught = tracing::subscriber::with_default(subscriber, || {
            catch_unwind(|| panic!("the patient has {}", "a cough"))
        });
        set_hook(before);
        assert!(caught.is_err());
        let text = lines.text();
        assert!(
            text.contains("panics.rs") && text.contains("a thread panicked"),
            "{text}"
        );
        assert!(!text.contains("cough") && !text.contains("patient"), "{text}");
    }
}
