//! Tells the program which commit it is built from: by git, or by BUILD_GIT_COMMIT where there is no repository.

use std::process::Command;

fn main() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])
        .or_else(|| std::env::var("BUILD_GIT_COMMIT").ok())
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rerun-if-env-changed=BUILD_GIT_COMMIT");
    // Not BAICHUAN_*: `cargo run` hands this on to the program, whose configuration those are.
    println!("cargo::rustc-env=BUILD_GIT_COMMIT={commit}");
    // The log of HEAD grows with every commit and checkout.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
