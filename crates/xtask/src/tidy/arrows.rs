//! Who may depend on whom, read from the crates' manifests.

use std::path::Path;

use anyhow::Context;
use toml::Value;

use super::Fault;

/// The crates that a crate may know, of ours. What is not listed here is refused: a new crate finds its place first.
/// Development dependencies are free, as tests may look at a crate from above.
const ARROWS: [(&str, &[&str]); 9] = [
    ("baichuan-proto", &[]),
    ("baichuan-engine", &[]),
    ("baichuan-kernels", &[]),
    ("baichuan-m1", &["baichuan-engine", "baichuan-kernels"]),
    ("mistralrs-backend", &["baichuan-engine"]),
    ("bigram-plugin", &["baichuan-engine"]),
    ("baichuan-client", &["baichuan-proto"]),
    (
        "baichuan-server",
        &[
            "baichuan-proto",
            "baichuan-engine",
            "baichuan-m1",
            "mistralrs-backend",
            "baichuan-client",
        ],
    ),
    ("xtask", &["baichuan-engine", "baichuan-kernels", "baichuan-m1"]),
];

/// Libraries by the beginning of their names, and the only crates that may use them.
const LIBRARIES: [(&str, &[&str]); 5] = [
    ("candle-", &["baichuan-m1", "mistralrs-backend"]),
    ("mistralrs-core", &["mistralrs-backend"]),
    ("mistralrs-", &["baichuan-m1", "mistralrs-backend"]),
    (
        "tonic",
        &["baichuan-proto", "baichuan-client", "baichuan-server", "xtask"],
    ),
    (
        "prost",
        &[
            "baichuan-proto",
            "baichuan-client",
            "baichuan-server",
            "xtask",
            "baichuan-engine",
        ],
    ),
];

/// Tests of the whole stand above everything.
const UNBOUND: [&str; 2] = ["e2e", "fuzz"];

/// Checks the manifest `file` with this `text`.
pub(super) fn check(file: &Path, text: &str) -> anyhow::Result<Vec<Fault>> {
    let manifest: Value = toml::from_str(text).with_context(|| format!("{} is not TOML", file.display()))?;
    let Some(name) = manifest
        .get("package")
        .and_then(|package| package.get("name"))
        .and_then(Value::as_str)
    else {
        return Ok(Vec::new());
    };
    if UNBOUND.contains(&name) {
        return Ok(Vec::new());
    }
    let fault = |pattern: &str, what: String| Fault {
        file: file.to_owned(),
        line: text
            .lines()
            .position(|line| line.starts_with(pattern))
            .map_or(1, |index| index + 1),
        what,
    };
    let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
        return Ok(vec![fault(
            "name",
            format!("crate {name} has no place among the arrows of `xtask tidy`"),
        )]);
    };
    let mut faults = Vec::new();
    for dependency in dependencies(&manifest) {
        let is_ours = ARROWS.iter().any(|(known, _)| *known == dependency);
        let users = LIBRARIES
            .iter()
            .find(|(prefix, _)| dependency.starts_with(prefix))
            .map(|(_, users)| *users);
        if is_ours && !allowed.contains(&dependency.as_str()) {
            faults.push(fault(
                &dependency,
                format!("{name} must not know {dependency}, only {allowed:?}"),
            ));
        } else if !is_ours && users.is_some_and(|users| !users.contains(&name)) {
            let users = users.unwrap_or_default();
            faults.push(fault(
                &dependency,
                format!("{name} must not use {dependency}, only {users:?} may"),
            ));
        }
    }
    Ok(faults)
}

/// What is linked into a crate: its dependencies, those of some platforms only included.
fn dependencies(manifest: &Value) -> Vec<String> {
    let of = |table: &Value| -> Vec<String> {
        let table = table.get("dependencies").and_then(Value::as_table);
        table
            .into_iter()
            .flat_map(|table| table.keys().cloned())
            .collect()
    };
    let targets = manifest.get("target").and_then(Value::as_table);
    let mut names = of(manifest);
    names.extend(
        targets
            .into_iter()
            .flat_map(|targets| targets.values())
            .flat_map(of),
    );
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(manifest: &str) -> Vec<String> {
        let faults = check(Path::new("crates/some/Cargo.toml"), manifest).unwrap();
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_arrow_that_points_up_is_refused_where_it_stands() {
        let manifest =
            "[package]\nname = \"baichuan-engine\"\n\n[dependencies]\nserde = \"1\"\nbaichuan-m1 = \"1\"\n";
        let expected = "crates/some/Cargo.toml:6: baichuan-engine must not know baichuan-m1, only []";
        assert_eq!(faults(manifest), [expected]);
    }

    #[test]
    fn arrows_for_one_platform_count_and_those_of_tests_do_not() {
        let head = "[package]\nname = \"baichuan-client\"\n";
        let platform = format!("{head}[target.'cfg(unix)'.dependencies]\nbaichuan-engine.workspace = true\n");
        assert_eq!(faults(&platform).len(), 1);
        assert!(
            faults(&format!(
                "{head}[dev-dependencies]\nbaichuan-engine.workspace = true\n"
            ))
            .is_empty()
        );
        assert!(
            faults(&format!(
                "{head}[dependencies]\nbaichuan-proto.workspace = true\n"
            ))
            .is_empty()
        );
    }

    #[test]
    fn libraries_stay_where_they_belong() {
        let uses = |name: &str, library: &str| {
            faults(&format!(
                "[package]\nname = \"{name}\"\n[dependencies]\n{library}.workspace = true\n"
            ))
            .len()
        };
        for (name, library) in [
            ("baichuan-engine", "candle-core"),
            ("baichuan-server", "candle-nn"),
            ("baichuan-m1", "mistralrs-core"),
            ("baichuan-m1", "tonic"),
            ("baichuan-kernels", "prost"),
        ] {
            assert_eq!(uses(name, library), 1, "{name} with {library}");
        }
        for (name, library) in [
            ("baichuan-m1", "candle-core"),
            ("mistralrs-backend", "mistralrs-core"),
        ] {
            assert_eq!(uses(name, library), 0, "{name} with {library}");
        }
    }

    #[test]
    fn a_crate_nobody_placed_is_refused() {
        assert!(faults("[package]\nname = \"newcomer\"\n")[0].contains("crate newcomer has no place"));
    }
}
