//! With feature `cuda`: compiles `src/cuda/*.cu` with nvcc to machine code for one GPU generation.
//!
//! `CUDA_COMPUTE_CAP` names it (`90`: Hopper, the default); nvcc is `$NVCC`, `$CUDA_HOME/bin/nvcc`,
//! `$CUDA_PATH/bin/nvcc`, or the one on the path. Without the feature this does nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Kernel files, each one module; `src/cuda/modules.rs` embeds them by these names.
const FILES: [&str; 10] = [
    "attention_any",
    "attention_decode",
    "attention_prefill",
    "attention_wgmma",
    "conv",
    "gemv",
    "gemv_quant",
    "quantized",
    "rows",
    "sample",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo::rerun-if-changed=src/cuda");
    for name in ["NVCC", "CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let mut cap = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "90".into());
    if cap == "90" {
        cap.push('a'); // with the instructions of Hopper alone
    }
    println!("cargo::rustc-env=BAICHUAN_CUDA_COMPUTE_CAP={cap}");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let compilations = FILES.map(|name| {
        let child = Command::new(nvcc())
            .args(["-std=c++17", "-O3", "-cubin", "-Werror", "all-warnings"])
            .arg(format!("-gencode=arch=compute_{cap},code=sm_{cap}"))
            .arg("-o")
            .arg(out.join(name).with_extension("cubin"))
            .arg(Path::new("src/cuda").join(name).with_extension("cu"))
            .spawn();
        match child {
            Ok(child) => (name, child),
            Err(error) => panic!(
                "cannot run {}: {error}; feature `cuda` needs nvcc 12 or newer, set NVCC or CUDA_HOME",
                nvcc().display()
            ),
        }
    });
    for (name, mut child) in compilations {
        let status = child.wait().expect("nvcc was started");
        assert!(status.success(), "nvcc failed on src/cuda/{name}.cu: {status}");
    }
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = std::env::var_os("NVCC") {
        return nvcc.into();
    }
    ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(std::env::var_os)
        .map(|home| Path::new(&home).join("bin/nvcc"))
        .find(|nvcc| nvcc.exists())
        .unwrap_or_else(|| "nvcc".into())
}
