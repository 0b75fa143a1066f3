//! What this host can do.

use bessemer_format::manifest::CodeIsa;
#[cfg(target_arch = "x86_64")]
use bessemer_kernels::Isa;

/// Features that x86-64-v3 adds and generated code uses.
const X86_64_V3: &[&str] = &["avx2", "bmi1", "bmi2", "f16c", "fma", "lzcnt", "movbe"];

/// Whether code for `isa` runs here.
pub(crate) fn runs(isa: CodeIsa) -> bool {
    match isa {
        CodeIsa::X86_64V3 => cfg!(target_arch = "x86_64") && X86_64_V3.iter().all(|f| has_cpu_feature(f)),
        CodeIsa::Aarch64 => cfg!(target_arch = "aarch64"),
    }
}

macro_rules! features {
    ($detect:ident, $name:expr, $($feature:tt)*) => {
        match $name {
            $($feature => std::arch::$detect!($feature),)*
            _ => false,
        }
    };
}

/// Whether the CPU has the feature of this name. A name that this version does not know counts as missing.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_cpu_feature(name: &str) -> bool {
    // Std does not know them yet, and an operating system has to let a process use them.
    if matches!(name, "amx-tile" | "amx-bf16" | "amx-int8") {
        return Isa::Amx.available();
    }
    features!(is_x86_feature_detected, name,
        "avx" "avx2" "fma" "f16c" "bmi1" "bmi2" "lzcnt" "movbe" "popcnt" "sse4.1" "sse4.2" "avxvnni"
        "avx512f" "avx512bw" "avx512cd" "avx512dq" "avx512vl" "avx512vnni" "avx512vbmi" "avx512bf16" "avx512fp16"
    )
}

/// Whether the CPU has the feature of this name. A name that this version does not know counts as missing.
#[cfg(target_arch = "aarch64")]
pub(crate) fn has_cpu_feature(name: &str) -> bool {
    features!(is_aarch64_feature_detected, name, "neon" "dotprod" "i8mm" "bf16" "fp16" "sve" "sve2")
}

/// Whether the CPU has the feature of this name.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) fn has_cpu_feature(_name: &str) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_features_are_missing() {
        assert!(!has_cpu_feature("avx1024"));
    }

    #[test]
    fn only_one_kind_of_code_runs_here() {
        assert!(!(runs(CodeIsa::X86_64V3) && runs(CodeIsa::Aarch64)));
    }
}
