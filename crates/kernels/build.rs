//! With feature `cuda`: compiles `src/cuda/*.cu` with nvcc to machine code for one GPU generation.
//!
//! `CUDA_COMPUTE_CAP` names it (`90`: Hopper, the default); nvcc is `$NVCC`, `$CUDA_HOME/bin/nvcc`,
//! `$CUDA_PATH/bin/nvcc`, or the one on the path. Without the feature this does nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// Types that a file is compiled for, as `ElementType` names them; each time `NUMBER_` and the name is defined (number.cuh).
const TYPES: [&str; 3] = ["F32", "Bf16", "F16"];
const SIXTEEN_BITS: [&str; 2] = ["Bf16", "F16"];
/// A file that knows no such type is compiled once.
const NONE: [&str; 1] = [""];

/// Kernel files and the types that each is for, what takes longest first; `src/cuda/modules.rs` embeds them.
const FILES: [(&str, &[&str]); 14] = [
    ("gemv_quant", &SIXTEEN_BITS),
    ("narrow_quant", &SIXTEEN_BITS),
    ("narrow", &SIXTEEN_BITS),
    ("attention_wgmma", &SIXTEEN_BITS),
    ("attention_decode", &SIXTEEN_BITS),
    ("attention_prefill", &SIXTEEN_BITS),
    ("gemv", &SIXTEEN_BITS),
    ("sample", &NONE),
    ("quantized", &SIXTEEN_BITS),
    ("attention_any", &TYPES),
    ("conv", &TYPES),
    ("rows", &TYPES),
    ("codes", &NONE),
    ("plain", &NONE),
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
    let compilations = FILES
        .iter()
        .flat_map(|(name, types)| types.iter().map(move |number| (*name, *number)));
    let waiting = Mutex::new(compilations);
    let n_jobs = std::env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    std::thread::scope(|scope| {
        for _ in 0..n_jobs.unwrap_or(1) {
            scope.spawn(|| {
                let next = || waiting.lock().ok()?.next();
                while let Some((name, number)) = next() {
                    compile(name, number, &cap, &out);
                }
            });
        }
    });
}

/// Compiles a kernel file for a type of numbers, if it has one.
fn compile(name: &str, number: &str, cap: &str, out: &Path) {
    let (cubin, define) = match number {
        "" => (format!("{name}.cubin"), None),
        _ => (
            format!("{name}_{number}.cubin"),
            Some(format!("-DNUMBER_{}", number.to_uppercase())),
        ),
    };
    let status = Command::new(nvcc())
        .args(["-std=c++17", "-O3", "-cubin", "-Werror", "all-warnings"])
        .arg(format!("-gencode=arch=compute_{cap},code=sm_{cap}"))
        .args(define)
        .arg("-o")
        .arg(out.join(cubin))
        .arg(Path::new("src/cuda").join(name).with_extension("cu"))
        .status();
    match status {
        Ok(status) => assert!(
            status.success(),
            "nvcc failed on src/cuda/{name}.cu {number}: {status}"
        ),
        Err(error) => panic!(
            "cannot run {}: {error}; feature `cuda` needs nvcc 12 or newer, set NVCC or CUDA_HOME",
            nvcc().display()
        ),
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
