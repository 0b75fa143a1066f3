//! Instruction sets that kernels are written for, oldest to newest.

use std::fmt;

/// An instruction set, as a bundle of extensions that kernels may use together.
///
/// Ordered: a newer set implies that the host also runs the older ones of its architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// What the compiler's baseline target offers: every host.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, VNNI and VBMI (and all of [`Isa::Avx2`]).
    Avx512,
    /// x86-64 with AVX-512 BF16 (and all of [`Isa::Avx512`]).
    Avx512Bf16,
    /// x86-64 with AMX for bfloat16 and bytes, which the operating system lets this process use (and all of [`Isa::Avx512Bf16`]).
    Amx,
    /// AArch64 with Advanced SIMD, which hardly a CPU lacks.
    Neon,
    /// AArch64 with dot products of bytes (and all of [`Isa::Neon`]).
    Dotprod,
    /// AArch64 with matrix products of bytes (and all of [`Isa::Dotprod`]).
    I8mm,
}

impl Isa {
    /// Every set of this host's architecture, oldest first.
    #[cfg(target_arch = "x86_64")]
    pub const ALL: &[Isa] = &[Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];
    /// Every set of this host's architecture, oldest first.
    #[cfg(target_arch = "aarch64")]
    pub const ALL: &[Isa] = &[Isa::Portable, Isa::Neon, Isa::Dotprod, Isa::I8mm];
    /// Every set of this host's architecture, oldest first.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    pub const ALL: &[Isa] = &[Isa::Portable];

    /// The name that reports print.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
            Isa::Neon => "neon",
            Isa::Dotprod => "dotprod",
            Isa::I8mm => "i8mm",
        }
    }

    /// Whether this host runs the set (asks the CPU and the operating system; the answer is cached by std).
    pub fn available(self) -> bool {
        self == Isa::Portable || detected(self)
    }

    /// The newest set that this host runs, but for one that an older one outruns.
    pub fn host() -> Isa {
        let quick = |isa: &&Isa| isa.available() && !outrun(**isa);
        Self::ALL.iter().rev().find(quick).copied().unwrap_or(Isa::Portable)
    }
}

#[cfg(target_arch = "x86_64")]
fn detected(isa: Isa) -> bool {
    match isa {
        Isa::Avx2 => {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        }
        Isa::Avx512 => {
            detected(Isa::Avx2)
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("avx512vbmi")
        }
        Isa::Avx512Bf16 => detected(Isa::Avx512) && is_x86_feature_detected!("avx512bf16"),
        Isa::Amx => detected(Isa::Avx512Bf16) && crate::x86_64::amx::available(),
        _ => false,
    }
}

/// Intel's cores multiply bfloat16 in vectors at two thirds of the rate of f32, conversion of the weights included (79 and 118 GFLOPS a
/// thread of an Emerald Rapids); AMD's at nearly twice the rate. Where there are tiles, they make up for it.
#[cfg(target_arch = "x86_64")]
fn outrun(isa: Isa) -> bool {
    use std::arch::x86_64::__cpuid;
    let vendor = || {
        let leaf = __cpuid(0);
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes)
    };
    isa == Isa::Avx512Bf16 && vendor().as_flattened() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn outrun(_: Isa) -> bool {
    false
}

#[cfg(target_arch = "aarch64")]
fn detected(isa: Isa) -> bool {
    use std::arch::is_aarch64_feature_detected;
    match isa {
        Isa::Neon => is_aarch64_feature_detected!("neon"),
        Isa::Dotprod => detected(Isa::Neon) && is_aarch64_feature_detected!("dotprod"),
        Isa::I8mm => detected(Isa::Dotprod) && is_aarch64_feature_detected!("i8mm"),
        _ => false,
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected(_: Isa) -> bool {
    false
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_set_implies_the_older_ones() {
        let newest = Isa::ALL.iter().rev().find(|isa| isa.available()).expect("the portable set is one");
        for isa in Isa::ALL {
            assert_eq!(isa.available(), isa <= newest, "{isa}");
        }
    }

    #[test]
    fn a_host_takes_its_newest_set_or_one_that_outruns_it() {
        let host = Isa::host();
        assert!(host.available() && !outrun(host));
        assert!(Isa::ALL.iter().all(|isa| *isa <= host || !isa.available() || outrun(*isa)), "{host}");
    }
}
