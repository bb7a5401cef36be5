//! Generates the Rust code of `/proto` without protoc, or checks that it is up to date.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use prost::Message;

/// The server's own interface.
const OWN: [&str; 5] = [
    "baichuan/v1/inference.proto",
    "baichuan/v1/sampling.proto",
    "baichuan/v1/model.proto",
    "baichuan/v1/control.proto",
    "baichuan/v1/admin.proto",
];
/// The interface of the field's routers.
const ROUTERS: [&str; 2] = ["vllm/engine.proto", "smg/common.proto"];

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

/// Generates into `out` and names the files made. Each interface has descriptors of its own: reflection tells of
/// the routers' only where it is served.
fn generate(protos: &Path, out: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let own = protox::compile(OWN, [protos])?;
    fs::write(out.join("descriptors.bin"), own.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes("baichuan.v1.Embedding.data")
        .out_dir(out)
        .compile_fds(own)?;
    let routers = protox::compile(ROUTERS, [protos])?;
    fs::write(out.join("routers.bin"), routers.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes("smg.grpc.common.GetTokenizerChunk.data")
        .out_dir(out)
        .compile_fds(routers)?;
    let files = [
        "baichuan.v1.rs",
        "descriptors.bin",
        "smg.grpc.common.rs",
        "vllm.grpc.engine.rs",
        "routers.bin",
    ];
    Ok(files.map(PathBuf::from).to_vec())
}
