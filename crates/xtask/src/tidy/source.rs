//! What a source file may hold.

use std::path::Path;

use super::Fault;

/// Lines of a file at most.
const MAX_LINES: usize = 600;

/// Checks the source `file` with this `text`.
pub(super) fn check(file: &Path, text: &str) -> Vec<Fault> {
    let path = file.to_string_lossy().replace('\\', "/");
    if path.contains("/generated/") {
        return Vec::new();
    }
    let fault = |line: usize, what: &str| Fault {
        file: file.to_owned(),
        line,
        what: what.to_owned(),
    };
    let mut faults = Vec::new();
    if !text.starts_with("//!") {
        faults.push(fault(1, "a file opens with a `//!` that says what it is for"));
    }
    if file.ends_with("mod.rs") {
        faults.push(fault(1, "a module's file is foo.rs beside foo/, not foo/mod.rs"));
    }
    let n_lines = text.lines().count();
    if n_lines > MAX_LINES {
        let what = format!("{n_lines} lines, at most {MAX_LINES}: split it");
        faults.push(fault(MAX_LINES + 1, &what));
    }
    let rules: Vec<&Rule> = RULES.iter().filter(|rule| !(rule.allowed)(&path)).collect();
    for (index, line) in text.lines().enumerate() {
        let code = code_of(line);
        let broken = rules
            .iter()
            .filter(|rule| rule.words.iter().any(|word| has_word(&code, word)));
        faults.extend(broken.map(|rule| fault(index + 1, rule.what)));
    }
    faults
}

/// Words that belong to some files only.
struct Rule {
    words: &'static [&'static str],
    allowed: fn(&str) -> bool,
    what: &'static str,
}

const RULES: [Rule; 4] = [
    Rule {
        words: &["unsafe"],
        allowed: |path| path.starts_with("crates/kernels/"),
        what: "`unsafe` belongs in crate kernels",
    },
    Rule {
        words: &[
            "env::var",
            "env::var_os",
            "env::vars",
            "env::vars_os",
            "env::set_var",
            "env::remove_var",
        ],
        allowed: |path| {
            path == "crates/server/src/config/load.rs"
                || path.starts_with("crates/xtask/")
                || path.ends_with("/build.rs")
                || is_test(path)
        },
        what: "the environment is read in crates/server/src/config/load.rs alone",
    },
    Rule {
        words: &["candle_core", "candle_nn", "mistralrs_quant"],
        allowed: |path| {
            path.starts_with("crates/baichuan-m1/") || path.starts_with("crates/mistralrs-backend/")
        },
        what: "tensors belong in the crates of models",
    },
    Rule {
        words: &["baichuan_proto"],
        allowed: |path| {
            let of_server = path == "crates/server/src/grpc.rs"
                || path == "crates/server/src/telemetry/rpc_metrics.rs"
                || path.starts_with("crates/server/src/grpc/");
            of_server || !path.starts_with("crates/server/src/")
        },
        what: "types of the wire stop in crates/server/src/grpc",
    },
];

/// Files that hold nothing but tests.
fn is_test(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

/// A line without what its strings hold and without its comment. Strings of several lines are taken for code.
fn code_of(line: &str) -> String {
    let line = line
        .replace("'\"'", "' '")
        .replace("\\\\", "")
        .replace("\\\"", "");
    let outside = line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    outside.split("//").next().unwrap_or_default().to_owned()
}

/// Whether `word` is in `code` with nothing of an identifier on either side.
fn has_word(code: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(path: &str, text: &str) -> Vec<String> {
        check(Path::new(path), text)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_file_without_a_header_a_long_one_and_a_mod_rs_are_refused() {
        assert!(
            faults("crates/a/src/a.rs", "use b;\n")[0].starts_with("crates/a/src/a.rs:1: a file opens with")
        );
        assert!(faults("crates/a/src/b/mod.rs", "//! B.\n")[0].contains("not foo/mod.rs"));
        let long = format!("//! Long.\n{}", "\n".repeat(600));
        assert_eq!(
            faults("crates/a/src/a.rs", &long),
            ["crates/a/src/a.rs:601: 601 lines, at most 600: split it"]
        );
    }

    #[test]
    fn words_out_of_their_place_are_refused_by_line() {
        let cases = [
            ("crates/engine/src/a.rs", "    unsafe { f() }", "`unsafe` belongs"),
            (
                "crates/server/src/app.rs",
                "let x = std::env::var(\"X\");",
                "the environment is read",
            ),
            (
                "crates/engine/src/a.rs",
                "use candle_core::Tensor;",
                "tensors belong",
            ),
            (
                "crates/server/src/app.rs",
                "use baichuan_proto::v1;",
                "types of the wire stop",
            ),
        ];
        for (path, line, expected) in cases {
            let found = faults(path, &format!("//! A.\n\n{line}\n"));
            assert_eq!(found.len(), 1, "{line}: {found:?}");
            assert!(
                found[0].starts_with(&format!("{path}:3: {expected}")),
                "{found:?}"
            );
        }
    }

    #[test]
    fn words_in_their_place_in_comments_and_inside_others_are_not() {
        let cases = [
            ("crates/kernels/src/a.rs", "unsafe { f() }"),
            (
                "crates/engine/src/a.rs",
                "#![deny(unsafe_code)] // no unsafe here",
            ),
            ("crates/server/src/config/load.rs", "std::env::vars_os()"),
            (
                "crates/engine/src/a.rs",
                "let quote = '\"'; let text = \"an unsafe // word\";",
            ),
            ("crates/engine/src/a.rs", "std::env::consts::ARCH"),
            ("crates/engine/tests/a.rs", "std::env::var(\"X\")"),
            ("crates/server/src/grpc/convert/a.rs", "use baichuan_proto::v1;"),
            ("crates/client/src/a.rs", "use baichuan_proto::v1;"),
            ("crates/proto/src/generated/a.rs", "unsafe {}"),
        ];
        for (path, line) in cases {
            assert_eq!(faults(path, &format!("//! A.\n{line}\n")), [""; 0], "{path}");
        }
    }
}
