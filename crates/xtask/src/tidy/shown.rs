//! Tests that a page of documentation names as its proof exist.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Fault;

/// Pages that name tests.
pub(super) const PAGES: [&str; 2] = ["docs/SECURITY.md", "docs/reliability.md"];

/// Checks the page `file` with this `text` against the repository's sources.
///
/// `module::name` is a test of `tests/behaviours/module.rs`; a name alone, of four words or more, a test of any file.
/// A name that ends with `…` is the beginning of one.
pub(super) fn check(file: &Path, text: &str, sources: &BTreeMap<PathBuf, String>) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in line.split('`').skip(1).step_by(2) {
            let Some((module, name)) = test_named_by(word) else {
                continue;
            };
            let is_there = sources.iter().any(|(path, source)| {
                let is_in_place = module.is_none_or(|module| {
                    *path == Path::new("tests/behaviours").join(module).with_extension("rs")
                });
                is_in_place && source.contains(&format!("fn {name}"))
            });
            if !is_there {
                faults.push(Fault {
                    file: file.to_owned(),
                    line: index + 1,
                    what: format!("there is no test {word:?}"),
                });
            }
        }
    }
    faults
}

/// The module and the name, or its beginning, where `word` names a test.
fn test_named_by(word: &str) -> Option<(Option<&str>, &str)> {
    let (module, name) = match word.split_once("::") {
        Some((module, name)) => (Some(module), name),
        None => (None, word),
    };
    let name = name.strip_suffix('…').unwrap_or(name).trim_end_matches('_');
    let is_name = |text: &str| {
        let letters = text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        letters && !text.is_empty()
    };
    let is_metric = name.starts_with("baichuan_");
    let is_long = module.is_some() || name.matches('_').count() >= 3;
    let names_a_test = is_name(name) && module.is_none_or(is_name) && is_long && !is_metric;
    names_a_test.then_some((module, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_not_where_the_page_says_is_a_fault() {
        let sources = BTreeMap::from([
            (
                PathBuf::from("tests/behaviours/tls.rs"),
                "async fn calls_are_encrypted_and_more()".to_owned(),
            ),
            (
                PathBuf::from("crates/a/src/b.rs"),
                "fn one_of_this_crate()".to_owned(),
            ),
        ]);
        let page = "Shown by `tls::calls_are_encrypted_and_more`, `tls::calls_are_…` and `one_of_this_crate`.\n\
                    Not by `tls::one_of_this_crate`, `tokens::calls_are_encrypted_and_more`, `another_of_this_crate`.\n\
                    `drain_timeout`, `baichuan_tls_handshake_failures_total`, `A::B` and `cargo deny` are none.\n";
        let faults = check(Path::new("docs/x.md"), page, &sources);
        let found: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "docs/x.md:2: there is no test \"tls::one_of_this_crate\"",
                "docs/x.md:2: there is no test \"tokens::calls_are_encrypted_and_more\"",
                "docs/x.md:2: there is no test \"another_of_this_crate\"",
            ]
        );
    }
}
