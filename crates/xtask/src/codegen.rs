//! Generates the Rust code of `/proto` without protoc, or checks that it is up to date.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use prost::Message;

const PROTOS: [&str; 5] = ["inference", "sampling", "model", "control", "admin"];

/// Writes `crates/proto/src/generated`; with `check`, only compares.
pub(crate) fn run(check: bool) -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let generated = root.join("crates/proto/src/generated");
    let fresh = std::env::temp_dir().join(format!("baichuan-codegen-{}", std::process::id()));
    fs::create_dir_all(&fresh)?;
    let result = generate(&root.join("proto"), &fresh).and_then(|files| {
        for name in &files {
            let (new, old) = (fresh.join(name), generated.join(name));
            let up_to_date = fs::read(&old).is_ok_and(|old| fs::read(&new).is_ok_and(|new| new == old));
            if up_to_date {
                continue;
            }
            if check {
                bail!("{} is out of date: run `cargo xtask codegen`", old.display());
            }
            fs::create_dir_all(&generated)?;
            fs::copy(&new, &old).with_context(|| format!("write {}", old.display()))?;
        }
        Ok(())
    });
    fs::remove_dir_all(&fresh)?;
    result
}

/// Generates into `out` and names the files made.
fn generate(protos: &Path, out: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let files = PROTOS.map(|name| protos.join(format!("baichuan/v1/{name}.proto")));
    let descriptors = protox::compile(files, [protos])?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes("baichuan.v1.Embedding.data")
        .out_dir(out)
        .compile_fds(descriptors)?;
    Ok(vec!["baichuan.v1.rs".into(), "descriptors.bin".into()])
}
