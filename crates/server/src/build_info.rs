//! What this program is.

/// Of the release.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from; `unknown` outside a repository.
pub(crate) const GIT_COMMIT: &str = env!("BUILD_GIT_COMMIT");

/// Optional parts compiled in.
pub(crate) fn features() -> Vec<String> {
    let features = [
        ("baichuan-m1", cfg!(feature = "baichuan-m1")),
        ("mistralrs", cfg!(feature = "mistralrs")),
        ("mistralrs-cuda", cfg!(feature = "mistralrs-cuda")),
        ("cuda", cfg!(feature = "cuda")),
        ("metal", cfg!(feature = "metal")),
    ];
    let built = features.iter().filter(|(_, is_built)| *is_built);
    built.map(|(name, _)| (*name).to_owned()).collect()
}

/// The instruction sets that matter for arithmetic, and the number of threads.
pub(crate) fn cpu() -> String {
    let mut parts: Vec<&str> = vec![std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    {
        let sets = [
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("f16c", std::arch::is_x86_feature_detected!("f16c")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
            ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
            ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
        ];
        parts.extend(sets.iter().filter(|(_, has)| *has).map(|(name, _)| *name));
    }
    #[cfg(target_arch = "aarch64")]
    {
        let sets = [
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
            ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
            ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ];
        parts.extend(sets.iter().filter(|(_, has)| *has).map(|(name, _)| *name));
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    format!("{}, {threads} threads", parts.join(" "))
}
