//! Makes the golden checkpoints and reference outputs of `tests/golden` anew, with mlx-lm in a Python environment
//! of its own under `target/`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// Creates the environment if need be, installs the pinned packages, runs `python/golden.py`.
pub(crate) fn run() -> anyhow::Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here.join("../..");
    let venv = root.join("target/golden-venv");
    let python = venv.join("bin/python");
    if !python.exists() {
        execute(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    }
    let requirements = here.join("python/requirements.txt");
    execute(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "-r"])
            .arg(requirements),
    )?;
    execute(
        Command::new(&python)
            .arg(here.join("python/golden.py"))
            .arg(root.join("tests/golden")),
    )
}

fn execute(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
