//! Rules of the house that no compiler checks: which crate may know which, what a source file may hold, and that the tests
//! which a page of documentation names exist.
//!
//! Every fault is reported with its file and line; `docs/ARCHITECTURE.md` says why the rules are as they are.

mod arrows;
mod shown;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use shown::PAGES;

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    /// From the root of the repository.
    file: PathBuf,
    /// Counted from 1.
    line: usize,
    what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// Checks the whole repository; an error if any rule is broken.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    for folder in ["crates", "tests"] {
        collect(&root, &PathBuf::from(folder), &mut files)?;
    }
    let mut faults = Vec::new();
    let mut sources = BTreeMap::new();
    for file in &files {
        let read =
            || fs::read_to_string(root.join(file)).with_context(|| format!("cannot read {}", file.display()));
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => {
                let text = read()?;
                faults.extend(source::check(file, &text));
                sources.insert(file.clone(), text);
            }
            Some("toml") if file.ends_with("Cargo.toml") => faults.extend(arrows::check(file, &read()?)?),
            _ => {}
        }
    }
    for page in PAGES {
        let text = fs::read_to_string(root.join(page)).with_context(|| format!("cannot read {page}"))?;
        faults.extend(shown::check(Path::new(page), &text, &sources));
    }
    if faults.is_empty() {
        return Ok(());
    }
    faults.iter().for_each(|fault| eprintln!("{fault}"));
    bail!("{} rules broken", faults.len())
}

/// Every file under `folder`, in order, as paths from the root. Folders of build products and hidden ones are left
/// out.
fn collect(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let absolute = root.join(folder);
    if !absolute.is_dir() {
        return Ok(());
    }
    let mut entries = fs::read_dir(&absolute)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot list {}", absolute.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let path = folder.join(&name);
        if entry.file_type()?.is_file() {
            files.push(path);
        } else if name != "target" && !name.to_string_lossy().starts_with('.') {
            collect(root, &path, files)?;
        }
    }
    Ok(())
}
